//! The files of updates: kept by their content, taken in and given out in streams of bounded memory.
//!
//! An upload goes through [`BlobStore::begin`] into a temporary object, is hashed on the way, and becomes an object
//! named by its SHA-256 only when it is whole and fits what was said about it ([`Upload::finish`]). What breaks off is
//! removed at once, or at the next start when there was no time for it. [`BlobReader`] reads a range back, and `feed`
//! carries it to a client at the client's pace. [`DownloadUrls`] signs the URLs that devices are given.
//!
//! The files of exports go the same way, under names of their own.
//!
//! What is known of a file beside its bytes is in the registry (`crate::store::BinaryStore`, `ExportStore`).
mod blobs;
mod checksum;
mod counters;
mod description;
mod error;
mod feed;
mod read;
mod room;
#[cfg(test)]
mod tests;
mod upload;
mod urls;

pub use blobs::{BlobStore, StoreTarget};
pub use checksum::{Checksum, InvalidChecksum};
pub use counters::TransferCounters;
pub use description::{Description, InvalidDescription};
pub use error::BlobError;
pub use feed::{Feed, FeedError, Feeder};
pub use read::BlobReader;
pub use upload::{Kept, Upload, MAX_BINARY_BYTES};
pub use urls::{DownloadUrls, UrlRefusal, UrlsError, EXPORT_PATH_PREFIX, PATH_PREFIX};
