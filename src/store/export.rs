//! Exports as the registry knows them; their files are elsewhere (`crate::artifacts`), and how far one is that is being
//! written only its task knows (`crate::analytics::export`).
use std::collections::HashSet;

use super::{StoreError, StoreFuture};
use crate::artifacts::Checksum;
use crate::clock::UnixMillis;

/// What became of an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExportState {
    /// Waiting or being written.
    Running,
    /// The file is whole and kept.
    Succeeded,
    /// There never was a file.
    Failed,
    /// The file was removed.
    Expired,
}

/// An export to be begun; its id is the store's to give.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewExport {
    /// As the contract spells it: `CSV`.
    pub form: &'static str,
    /// As the contract spells it: `DEVICE_METRICS`.
    pub subject: &'static str,
    pub requested_at: UnixMillis,
    pub expires_at: UnixMillis,
}

/// An export as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportRecord {
    /// `exp-001` and on: three digits or more.
    pub id: String,
    pub form: String,
    pub subject: String,
    pub state: ExportState,
    pub requested_at: UnixMillis,
    pub expires_at: UnixMillis,
    /// Of the whole file, 0 before.
    pub rows: u64,
    /// Of the whole file, 0 before.
    pub size_bytes: u64,
    /// Of the whole file, `None` before.
    pub checksum: Option<Checksum>,
    /// Why it failed; empty if it did not.
    pub message: String,
}

/// A file that is whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExportedFile {
    pub rows: u64,
    pub size_bytes: u64,
    pub checksum: Checksum,
}

/// Exports. Only one that is [`ExportState::Running`] succeeds or fails: what was decided stays.
pub trait ExportStore: Send + Sync {
    /// Keeps an export as running and gives it an id.
    fn begin_export(&self, export: NewExport) -> StoreFuture<ExportRecord>;

    /// The export with this id; `None` also for what is no id.
    fn export(&self, id: &str) -> StoreFuture<Option<ExportRecord>>;

    /// Its turn came after a wait: it is kept until `expires_at` now. Whether it was running still.
    fn prolong_export(&self, id: &str, expires_at: UnixMillis) -> StoreFuture<bool>;

    /// Its file is whole. Whether it was running still.
    fn finish_export(&self, id: &str, file: ExportedFile) -> StoreFuture<bool>;

    /// It failed. Whether it was running still.
    fn fail_export(&self, id: &str, message: String) -> StoreFuture<bool>;

    /// Marks up to `limit` exports whose file has expired, and gives their ids.
    fn expire_exports(&self, now: UnixMillis, limit: usize) -> StoreFuture<Vec<String>>;

    /// Forgets up to `limit` exports that expired or failed and whose time ended before `before`; how many.
    fn forget_exports(&self, before: UnixMillis, limit: usize) -> StoreFuture<usize>;

    /// Fails all that are running: for the start of the server, when nobody writes them any more. How many.
    fn fail_running_exports(&self, message: &str) -> StoreFuture<usize>;

    /// The ids of all exports with a file. For the start of the server: blocks.
    fn exports_with_file(&self) -> Result<HashSet<String>, StoreError>;
}
