//! One segment as the running journal knows it: its file name, how far it is readable, how far it is durable.
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Acquire, Ordering::Release};

use parking_lot::Mutex;

use super::format::SEGMENT_HEADER_BYTES;
use super::Seq;

const SUFFIX: &str = ".segment";
/// A segment being rewritten after a failed fsync, before it takes its place; recovery deletes leftovers.
pub(super) const RESCUE_SUFFIX: &str = ".rescue";

/// Twenty digits hold every `u64`, so names sort as numbers do.
pub(super) fn file_name(first_seq: Seq) -> String {
    format!("{first_seq:020}{SUFFIX}")
}

/// The inverse of [`file_name`]; `None` for any other file. Numbers start at 1.
pub(super) fn parse_file_name(name: &str) -> Option<Seq> {
    let digits = name.strip_suffix(SUFFIX)?;
    (digits.len() == 20 && digits.bytes().all(|byte| byte.is_ascii_digit()))
        .then(|| digits.parse().ok())?
        .filter(|seq| *seq > 0)
}

/// What [`Journal::segments`](super::Journal::segments) tells of one segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentInfo {
    pub first_seq: Seq,
    /// `first_seq - 1` while it has no record.
    pub last_seq: Seq,
    pub records: u64,
    /// Bytes on disk, header and footer included.
    pub bytes: u64,
    /// Sealed segments do not change any more, and only they can be trimmed.
    pub sealed: bool,
}

/// Shared by the one that writes, the readers and the keeper thread.
pub(super) struct Segment {
    pub first_seq: Seq,
    pub path: PathBuf,
    /// One lock for all of it, so that no reader sees the end of one state with the range of another.
    /// Changed only by whoever holds the log's lock.
    extent: Mutex<Extent>,
    /// Up to here the file is durable. Changed by the keeper thread alone.
    synced_end: AtomicU64,
    /// Damage in it could not be set aside (full disk), so trimming moves the file to the quarantine instead.
    keep: AtomicBool,
}

/// How far a segment reaches.
#[derive(Clone, Copy)]
pub(super) struct Extent {
    /// `first_seq - 1` while there is no record.
    pub last_seq: Seq,
    pub records: u64,
    /// Offset just past the last record; everything before it can be read.
    pub data_end: u64,
    pub file_bytes: u64,
    pub is_sealed: bool,
}

impl Extent {
    /// Whether a reader that read everything up to `seq` may find something here, now or later.
    pub fn may_hold_after(&self, seq: Seq) -> bool {
        !self.is_sealed || self.last_seq > seq
    }
}

impl Segment {
    /// A segment that holds its header and nothing else.
    pub fn empty(dir: &Path, first_seq: Seq) -> Self {
        let header = SEGMENT_HEADER_BYTES as u64;
        let extent =
            Extent { last_seq: first_seq - 1, records: 0, data_end: header, file_bytes: header, is_sealed: false };
        Self::new(dir, first_seq, extent, 0)
    }

    /// A segment that is complete and durable.
    pub fn durable(dir: &Path, first_seq: Seq, extent: Extent) -> Self {
        Self::new(dir, first_seq, extent, extent.data_end)
    }

    fn new(dir: &Path, first_seq: Seq, extent: Extent, synced_end: u64) -> Self {
        Self {
            first_seq,
            path: dir.join(file_name(first_seq)),
            extent: Mutex::new(extent),
            synced_end: AtomicU64::new(synced_end),
            keep: AtomicBool::new(false),
        }
    }

    pub fn extent(&self) -> Extent {
        *self.extent.lock()
    }

    pub fn publish(&self, records: u64, last_seq: Seq, data_end: u64) {
        let mut extent = self.extent.lock();
        extent.records += records;
        extent.last_seq = last_seq;
        extent.data_end = data_end;
        extent.file_bytes = data_end;
    }

    pub fn seal(&self, file_bytes: u64) {
        let mut extent = self.extent.lock();
        extent.file_bytes = file_bytes;
        extent.is_sealed = true;
    }

    /// Its tail of `moved` records from `first_moved` on was rewritten elsewhere. Returns what is left.
    pub fn shrink(&self, data_end: u64, moved: u64, first_moved: Seq) -> Extent {
        let mut extent = self.extent.lock();
        extent.records -= moved;
        extent.last_seq = first_moved - 1;
        extent.data_end = data_end;
        extent.file_bytes = data_end;
        extent.is_sealed = true;
        *extent
    }

    pub fn synced_end(&self) -> u64 {
        self.synced_end.load(Acquire)
    }

    pub fn set_synced_end(&self, end: u64) {
        self.synced_end.store(end, Release);
    }

    pub fn keep_on_trim(&self) {
        self.keep.store(true, Release);
    }

    pub fn is_kept(&self) -> bool {
        self.keep.load(Acquire)
    }

    pub fn info(&self) -> SegmentInfo {
        let extent = self.extent();
        SegmentInfo {
            first_seq: self.first_seq,
            last_seq: extent.last_seq,
            records: extent.records,
            bytes: extent.file_bytes,
            sealed: extent.is_sealed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_sort_as_numbers_and_read_back() {
        let numbers = [1, 9, 10, 99, 1 << 40, u64::MAX];
        let names: Vec<_> = numbers.iter().map(|seq| file_name(*seq)).collect();
        assert!(names.is_sorted());
        for (seq, name) in numbers.iter().zip(&names) {
            assert_eq!(parse_file_name(name), Some(*seq));
        }
        for name in [
            "1.segment",
            "0000000000000000001x.segment",
            "00000000000000000000.segment",
            "99999999999999999999.segment",
        ] {
            assert_eq!(parse_file_name(name), None, "{name}");
        }
    }
}
