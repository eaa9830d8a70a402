//! The files of updates as the registry knows them; their bytes are elsewhere (`crate::artifacts`).
use std::collections::HashSet;

use super::{StoreError, StoreFuture};
use crate::artifacts::Checksum;
use crate::clock::UnixMillis;

/// A file to be registered; its id is the store's to give.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewBinary {
    /// The four together are the file: a second one with all of them is the same one.
    pub name: String,
    pub version: String,
    /// The device type that it is for; empty fits all.
    pub platform: String,
    pub checksum: Checksum,
    pub size_bytes: u64,
    pub uploaded_at: UnixMillis,
}

/// A file as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BinaryRecord {
    /// `bin-001` and on: three digits or more.
    pub id: String,
    pub name: String,
    pub version: String,
    pub platform: String,
    pub checksum: Checksum,
    pub size_bytes: u64,
    pub uploaded_at: UnixMillis,
}

/// The files of updates.
pub trait BinaryStore: Send + Sync {
    /// Keeps a file and gives it an id. A repeat keeps nothing and answers with what is there, its time included.
    fn put_binary(&self, binary: NewBinary) -> StoreFuture<BinaryRecord>;

    /// The file with this id; `None` also for what is no id.
    fn binary(&self, id: &str) -> StoreFuture<Option<BinaryRecord>>;

    /// Whether any file has these bytes.
    fn has_binary_bytes(&self, checksum: &Checksum) -> StoreFuture<bool>;

    /// The checksums of all files. For the start of the server: blocks.
    fn binary_checksums(&self) -> Result<HashSet<Checksum>, StoreError>;
}
