//! Counters of the journal, cheap to bump on the hot path, read as one snapshot by the metrics page.
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::Seq;

/// Buckets of a [`Distribution`]; bucket `i` counts values up to `2^i`, the last takes the rest. 2^20 covers a million
/// records a group and, in microseconds, an fsync of a second.
pub const DISTRIBUTION_BUCKETS: usize = 22;

/// How values spread, in powers of two.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Distribution {
    pub count: u64,
    pub sum: u64,
    /// `buckets[i]` counts values in `(2^(i-1), 2^i]`, not cumulated; the last bucket is open.
    pub buckets: [u64; DISTRIBUTION_BUCKETS],
}

#[derive(Default)]
pub(super) struct Recorder {
    sum: AtomicU64,
    buckets: [AtomicU64; DISTRIBUTION_BUCKETS],
}

impl Recorder {
    pub fn record(&self, value: u64) {
        let bucket = (u64::BITS - value.saturating_sub(1).leading_zeros()) as usize;
        self.buckets[bucket.min(DISTRIBUTION_BUCKETS - 1)].fetch_add(1, Relaxed);
        self.sum.fetch_add(value, Relaxed);
    }

    fn snapshot(&self) -> Distribution {
        let mut buckets = [0; DISTRIBUTION_BUCKETS];
        for (to, from) in buckets.iter_mut().zip(&self.buckets) {
            *to = from.load(Relaxed);
        }
        Distribution { count: buckets.iter().sum(), sum: self.sum.load(Relaxed), buckets }
    }
}

/// Counters since the journal was opened, and what it holds now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JournalStats {
    /// Records written since open.
    pub records: u64,
    /// Bytes written since open, framing included.
    pub written_bytes: u64,
    /// Bytes on disk now, untrimmed.
    pub bytes: u64,
    pub capacity_bytes: u64,
    pub segments: u64,
    pub first_seq: Seq,
    pub written_seq: Seq,
    pub synced_seq: Seq,
    /// Records of each group, that is, of each write to the file.
    pub commit_records: Distribution,
    /// Microseconds of each fsync round.
    pub sync_micros: Distribution,
    pub sync_errors: u64,
    /// Appends refused with `Full`.
    pub full_rejections: u64,
    /// Appends refused with `Backlogged` or `Unreserved`.
    pub busy_rejections: u64,
    /// Groups that failed with a write error, and how many records were in them.
    pub write_errors: u64,
    pub failed_records: u64,
    /// Damage found since open, by recovery or by readers; each stretch is counted once.
    pub quarantined_stretches: u64,
    pub quarantined_records: u64,
    pub quarantined_bytes: u64,
    /// Bytes of unfinished writes that were cut off at open. A process that is killed leaves some at most behind its last
    /// group; more means that the disk did not keep what was written.
    pub torn_bytes: u64,
    /// Segments that were trimmed but could not be deleted from disk.
    pub delete_errors: u64,
}

#[derive(Default)]
pub(super) struct Counters {
    pub records: AtomicU64,
    pub written_bytes: AtomicU64,
    pub commit_records: Recorder,
    pub sync_micros: Recorder,
    pub sync_errors: AtomicU64,
    pub full_rejections: AtomicU64,
    pub busy_rejections: AtomicU64,
    pub write_errors: AtomicU64,
    pub failed_records: AtomicU64,
    pub quarantined_stretches: AtomicU64,
    pub quarantined_records: AtomicU64,
    pub quarantined_bytes: AtomicU64,
    pub torn_bytes: AtomicU64,
    pub delete_errors: AtomicU64,
}

impl Counters {
    pub fn committed(&self, records: u64, bytes: u64) {
        self.records.fetch_add(records, Relaxed);
        self.written_bytes.fetch_add(bytes, Relaxed);
        self.commit_records.record(records);
    }

    pub fn synced(&self, took: Duration) {
        self.sync_micros.record(took.as_micros() as u64);
    }

    pub fn quarantined(&self, records: u64, bytes: u64) {
        self.quarantined_stretches.fetch_add(1, Relaxed);
        self.quarantined_records.fetch_add(records, Relaxed);
        self.quarantined_bytes.fetch_add(bytes, Relaxed);
    }

    pub fn snapshot(&self) -> JournalStats {
        JournalStats {
            records: self.records.load(Relaxed),
            written_bytes: self.written_bytes.load(Relaxed),
            commit_records: self.commit_records.snapshot(),
            sync_micros: self.sync_micros.snapshot(),
            sync_errors: self.sync_errors.load(Relaxed),
            full_rejections: self.full_rejections.load(Relaxed),
            busy_rejections: self.busy_rejections.load(Relaxed),
            write_errors: self.write_errors.load(Relaxed),
            failed_records: self.failed_records.load(Relaxed),
            quarantined_stretches: self.quarantined_stretches.load(Relaxed),
            quarantined_records: self.quarantined_records.load(Relaxed),
            quarantined_bytes: self.quarantined_bytes.load(Relaxed),
            torn_bytes: self.torn_bytes.load(Relaxed),
            delete_errors: self.delete_errors.load(Relaxed),
            ..JournalStats::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_counts_in_the_bucket_of_the_next_power_of_two() {
        let recorder = Recorder::default();
        for value in [0, 1, 2, 3, 4, 5, u64::MAX >> 1] {
            recorder.record(value);
        }
        let seen = recorder.snapshot();
        assert_eq!(&seen.buckets[..4], &[2, 1, 2, 1]);
        assert_eq!(seen.buckets[DISTRIBUTION_BUCKETS - 1], 1);
        assert_eq!(seen.count, 7);
    }
}
