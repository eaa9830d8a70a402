//! The segment files that are written to: appending a group, rolling over, taking back what failed.
use std::io;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::disk::DiskFile;
use super::error::CommitError;
use super::format::{SegmentFooter, SegmentHeader, SEGMENT_FOOTER_BYTES, SEGMENT_HEADER_BYTES};
use super::inner::{Batch, Inner};
use super::options::SyncMode;
use super::segment::{Extent, Segment};
use super::Seq;

/// A full disk fails every group; one line a second tells that as well as thousands.
const REPORT_EVERY: Duration = Duration::from_secs(1);

/// A segment and the file it is written through.
#[derive(Clone)]
pub(super) struct OpenSegment {
    pub segment: Arc<Segment>,
    pub file: Arc<DiskFile>,
}

/// Behind one lock: its holder is the only one who writes.
#[derive(Default)]
pub(super) struct Log {
    /// `None` until the first group, and after a segment was sealed.
    pub active: Option<OpenSegment>,
    /// Sealed, not yet fsynced, oldest first. At most what is written between two fsyncs; empty with `never`.
    pub unsynced: Vec<OpenSegment>,
    /// A file was created and its name is not yet durable.
    pub is_dir_dirty: bool,
    /// The active file may hold bytes of a failed group behind its end. They must go before anything else happens,
    /// else they would be read as records after a crash.
    has_leftover: bool,
    /// Emptied buffer of the last group, for the next.
    pub spare: Vec<u8>,
    last_report: Option<Instant>,
}

impl Log {
    /// Appends `batch` as a whole or not at all.
    pub fn write(&mut self, inner: &Inner, batch: &Batch) -> Result<(), CommitError> {
        if let Some(error) = inner.read_only.get() {
            return Err(CommitError::ReadOnly(error.clone()));
        }
        self.remove_leftover()?;
        self.roll_if_full(inner, batch.buffer.len() as u64);
        let active = match &self.active {
            Some(active) => active,
            None => {
                let created = create(inner, batch.first_seq)?;
                self.is_dir_dirty = true;
                self.active.insert(created)
            }
        };
        let end = active.segment.extent().data_end;
        if let Err(source) = active.file.write_all_at(&batch.buffer, end) {
            let error = write_error("write", active, source);
            self.has_leftover = true;
            // When even this fails the next group tries again before it writes.
            let _ = self.remove_leftover();
            return Err(error);
        }
        active.segment.publish(batch.records, batch.last_seq, end + batch.buffer.len() as u64);
        Ok(())
    }

    /// Cuts the active file back to its last good record, if a failed write may have left something behind it.
    fn remove_leftover(&mut self) -> Result<(), CommitError> {
        if let (true, Some(active)) = (self.has_leftover, &self.active) {
            let end = active.segment.extent().data_end;
            active.file.truncate(end).map_err(|source| write_error("cut back", active, source))?;
        }
        self.has_leftover = false;
        Ok(())
    }

    fn roll_if_full(&mut self, inner: &Inner, coming: u64) {
        let is_full = self.active.as_ref().is_some_and(|active| {
            let extent = active.segment.extent();
            extent.records > 0 && extent.data_end + coming > inner.options.segment_bytes
        });
        if is_full {
            self.seal(inner);
        }
    }

    /// Ends the active segment. Its footer only speeds up the next start, so a disk too full for it is no failure.
    pub fn seal(&mut self, inner: &Inner) {
        if self.remove_leftover().is_err() {
            return;
        }
        let Some(active) = self.active.take() else { return };
        let segment = &active.segment;
        let extent = segment.extent();
        let mut file_bytes = extent.data_end;
        match active.file.write_all_at(&footer_of(segment.first_seq, &extent).encode(), file_bytes) {
            Ok(()) => {
                file_bytes += SEGMENT_FOOTER_BYTES as u64;
                inner.claimed.fetch_add(SEGMENT_FOOTER_BYTES as u64, Relaxed);
                inner.stored.fetch_add(SEGMENT_FOOTER_BYTES as u64, Relaxed);
            }
            Err(error) => {
                tracing::warn!(path = %segment.path.display(), %error, "cannot write segment footer, next start will scan it");
                // A part of a footer is no record: recovery cuts it as a torn tail.
                let _ = active.file.truncate(file_bytes);
            }
        }
        segment.seal(file_bytes);
        if inner.options.sync != SyncMode::Never {
            self.unsynced.push(active);
        }
    }

    /// Logs a failed group, at most once a second.
    pub fn report(&mut self, error: &CommitError, records: u64) {
        if self.last_report.is_none_or(|at| at.elapsed() >= REPORT_EVERY) {
            self.last_report = Some(Instant::now());
            let cause = std::error::Error::source(error).map(ToString::to_string);
            tracing::error!(%error, cause, records, "journal group failed");
        }
    }
}

pub(super) fn footer_of(first_seq: Seq, extent: &Extent) -> SegmentFooter {
    SegmentFooter { first_seq, last_seq: extent.last_seq, records: extent.records, data_end: extent.data_end }
}

fn write_error(operation: &'static str, active: &OpenSegment, source: io::Error) -> CommitError {
    CommitError::Write { operation, path: active.segment.path.clone(), source: Arc::new(source) }
}

/// Makes the file of a new segment and puts it at the end of the table.
fn create(inner: &Inner, first_seq: Seq) -> Result<OpenSegment, CommitError> {
    let segment = Segment::empty(&inner.options.dir, first_seq);
    let failed =
        |source| CommitError::Write { operation: "create", path: segment.path.clone(), source: Arc::new(source) };
    let file = DiskFile::create_new(&segment.path, &inner.faults).map_err(failed)?;
    let header = SegmentHeader { identity: inner.identity, first_seq }.encode();
    if let Err(source) = file.write_all_at(&header, 0) {
        // Should it stay, recovery finds a segment without records and deletes it.
        let _ = std::fs::remove_file(&segment.path);
        return Err(failed(source));
    }
    inner.claimed.fetch_add(SEGMENT_HEADER_BYTES as u64, Relaxed);
    inner.stored.fetch_add(SEGMENT_HEADER_BYTES as u64, Relaxed);
    let segment = Arc::new(segment);
    inner.table.write().push_back(segment.clone());
    Ok(OpenSegment { segment, file: Arc::new(file) })
}
