//! What uploads and downloads count, for `/metrics`.
use std::sync::atomic::{AtomicU64, Ordering};

#[derive(Debug, Default)]
pub struct TransferCounters {
    /// Files that came whole and were registered, repeats included.
    pub uploads: AtomicU64,
    /// Uploads that broke off or were refused.
    pub uploads_failed: AtomicU64,
    pub uploaded_bytes: AtomicU64,
    /// Downloads that began, each range one.
    pub downloads: AtomicU64,
    /// Downloads that were refused because too many were under way.
    pub downloads_refused: AtomicU64,
    pub downloaded_bytes: AtomicU64,
}

impl TransferCounters {
    pub fn uploaded(&self) {
        add(&self.uploads, 1);
    }

    pub fn upload_failed(&self) {
        add(&self.uploads_failed, 1);
    }

    pub fn uploaded_bytes(&self, bytes: usize) {
        add(&self.uploaded_bytes, bytes as u64);
    }

    pub(super) fn download_began(&self) {
        add(&self.downloads, 1);
    }

    pub(super) fn download_refused(&self) {
        add(&self.downloads_refused, 1);
    }

    pub(super) fn downloaded_bytes(&self, bytes: usize) {
        add(&self.downloaded_bytes, bytes as u64);
    }
}

fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}
