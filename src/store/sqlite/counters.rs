//! What the store's threads count, for `/metrics` and for the bounds of their queues.
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::store::StoreStats;

#[derive(Debug, Default)]
pub struct Counters {
    pub transactions: AtomicU64,
    pub writes: AtomicU64,
    pub writes_failed: AtomicU64,
    pub writes_queued: AtomicU64,
    /// Bytes that queued writes hold.
    pub bytes_queued: AtomicUsize,
    pub reads: AtomicU64,
    pub overloaded: AtomicU64,
}

impl Counters {
    pub fn snapshot(&self) -> StoreStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        StoreStats {
            transactions: read(&self.transactions),
            writes: read(&self.writes),
            writes_queued: read(&self.writes_queued),
            reads: read(&self.reads),
            overloaded: read(&self.overloaded),
            writes_failed: read(&self.writes_failed),
        }
    }
}
