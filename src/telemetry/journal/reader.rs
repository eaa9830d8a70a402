//! Reading the journal back, in order, each record once, with every checksum verified.
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::Ordering::Acquire;
use std::sync::Arc;

use bytes::Bytes;

use super::error::ReadError;
use super::format::{lost_records, resync, step, u64_at, Step};
use super::inner::Inner;
use super::segment::Segment;
use super::Seq;

/// A reader looks at no less than this at a time, so that a small `max_bytes` does not become a read per record.
const MIN_READ_BYTES: u64 = 4 << 10;

/// Consecutive records; payloads are slices of one buffer.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Number of the first and of the last record.
    pub first_seq: Seq,
    pub last_seq: Seq,
    buffer: Bytes,
    index: Vec<(Seq, Range<u32>)>,
}

impl Batch {
    /// Number of records, at least 1.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// Bytes of all payloads.
    pub fn payload_bytes(&self) -> usize {
        self.index.iter().map(|(_, range)| range.len()).sum()
    }

    pub fn iter(&self) -> impl ExactSizeIterator<Item = (Seq, &[u8])> {
        self.index.iter().map(|(seq, range)| (*seq, &self.buffer[range.start as usize..range.end as usize]))
    }

    /// The payload at `at`, sharing the batch's buffer.
    pub fn payload(&self, at: usize) -> Bytes {
        let range = &self.index[at].1;
        self.buffer.slice(range.start as usize..range.end as usize)
    }
}

/// A place in the journal. Independent of other readers; does blocking file reads, mostly from the page cache.
pub struct Reader {
    inner: Arc<Inner>,
    read_through: Seq,
    place: Option<Place>,
}

/// Everything before `offset` was read.
struct Place {
    segment: Arc<Segment>,
    file: File,
    offset: u64,
}

/// What one look at a chunk came to.
enum Look {
    Batch(Batch),
    /// Nothing to deliver in it, but the place moved on.
    Skipped,
    /// The first frame is longer than the chunk.
    NeedsBytes(u64),
    /// No frame starts at the place.
    Lost,
}

impl Reader {
    /// `from` is the first number that is wanted.
    pub(super) fn new(inner: Arc<Inner>, from: Seq) -> Self {
        Self { inner, read_through: from.saturating_sub(1), place: None }
    }

    /// Every record up to this number was delivered, or is known to be damaged, trimmed or not to exist. After `Ok(None)`
    /// this is what to wait on: `journal.written_past(reader.read_through())`.
    pub fn read_through(&self) -> Seq {
        self.read_through
    }

    /// The next records: at least one, at most `max_records`, and at most `max_bytes` (framing included) unless
    /// the first alone is longer. `None` when everything that is written was read.
    ///
    /// A batch never spans two segments. Damaged bytes are set aside and counted
    /// ([`JournalStats`](super::JournalStats)), then reading goes on behind them. After an error the place is unchanged.
    pub fn next_batch(&mut self, max_records: usize, max_bytes: usize) -> Result<Option<Batch>, ReadError> {
        self.next_batch_through(Seq::MAX, max_records, max_bytes)
    }

    /// As [`next_batch`](Self::next_batch), but with no record above `last_seq_inclusive`: for reading again
    /// exactly the range that a batch had.
    pub fn next_batch_through(
        &mut self,
        last_seq_inclusive: Seq,
        max_records: usize,
        max_bytes: usize,
    ) -> Result<Option<Batch>, ReadError> {
        let mut chunk_bytes = (max_bytes as u64).max(MIN_READ_BYTES);
        while self.read_through < last_seq_inclusive {
            if self.place.is_none() {
                // Taken before the look: what is written after it may be in a segment that was not there yet.
                let written = self.inner.written.load(Acquire);
                self.place = self.locate()?;
                if self.place.is_none() {
                    // All that was written is read or trimmed. Not to say so would have the caller wait for it in vain.
                    self.read_through = self.read_through.max(written.min(last_seq_inclusive));
                }
            }
            let Some(place) = &self.place else { return Ok(None) };
            let published = place.segment.extent();
            if place.offset >= published.data_end {
                self.read_through = self.read_through.max(published.last_seq.min(last_seq_inclusive));
                if !published.is_sealed {
                    return Ok(None);
                }
                self.place = None;
                if !self.has_segment_after(self.read_through) {
                    return Ok(None);
                }
                continue;
            }
            let chunk = place.read(chunk_bytes.min(published.data_end - place.offset))?;
            match self.look(chunk, last_seq_inclusive, max_records.max(1), max_bytes) {
                Look::Batch(batch) => return Ok(Some(batch)),
                Look::Skipped => {}
                // A frame that claims to be longer than what is published is no frame.
                Look::NeedsBytes(bytes) if self.has_published(bytes) => chunk_bytes = bytes,
                Look::NeedsBytes(_) | Look::Lost => self.skip_damage()?,
            }
        }
        Ok(None)
    }

    fn has_published(&self, bytes: u64) -> bool {
        self.place.as_ref().is_some_and(|place| place.segment.extent().data_end - place.offset >= bytes)
    }

    fn has_segment_after(&self, seq: Seq) -> bool {
        self.inner.table.read().iter().any(|segment| segment.extent().may_hold_after(seq))
    }

    /// Opens the segment that holds the first number not yet read, or the next that exists.
    fn locate(&self) -> Result<Option<Place>, ReadError> {
        loop {
            let wanted = {
                let table = self.inner.table.read();
                let found = table.iter().find(|segment| segment.extent().may_hold_after(self.read_through));
                found.cloned()
            };
            let Some(segment) = wanted else { return Ok(None) };
            match File::open(&segment.path) {
                Ok(file) => {
                    let offset = super::format::SEGMENT_HEADER_BYTES as u64;
                    return Ok(Some(Place { segment, file, offset }));
                }
                // Trimmed between the two steps: look again. Still in the table: somebody else deleted it.
                Err(error) if error.kind() == io::ErrorKind::NotFound && !self.is_listed(&segment) => {}
                Err(source) => return Err(read_error("open", &segment.path, source)),
            }
        }
    }

    fn is_listed(&self, segment: &Arc<Segment>) -> bool {
        self.inner.table.read().iter().any(|listed| Arc::ptr_eq(listed, segment))
    }

    /// Takes what fits out of `chunk`, which starts at the place, and moves the place.
    fn look(&mut self, chunk: Vec<u8>, last_seq_inclusive: Seq, max_records: usize, max_bytes: usize) -> Look {
        let Some(place) = &mut self.place else { return Look::Skipped };
        let salt = self.inner.identity.salt;
        let start = place.offset;
        let mut seen = place.segment.first_seq - 1;
        let mut index: Vec<(Seq, Range<u32>)> = Vec::with_capacity(max_records.min(chunk.len() / 64 + 1));
        let mut at = 0;
        while index.len() < max_records {
            match step(&chunk, at, salt, seen) {
                Step::Record { seq, .. } if seq > last_seq_inclusive => {
                    self.read_through = last_seq_inclusive;
                    break;
                }
                Step::Record { seq, payload } => {
                    if seq > self.read_through {
                        if payload.end > max_bytes && !index.is_empty() {
                            break;
                        }
                        // A chunk is at most a few times MAX_PENDING_BYTES long, far below 4 GiB.
                        index.push((seq, payload.start as u32..payload.end as u32));
                        self.read_through = seq;
                    }
                    seen = seq;
                    at = payload.end;
                }
                Step::Incomplete { frame_bytes } if at == 0 => return Look::NeedsBytes(frame_bytes as u64),
                Step::BadHeader if at == 0 => return Look::Lost,
                Step::BadPayload { seq, end } if at == 0 => {
                    self.read_through = self.read_through.max(seq);
                    set_aside(&self.inner, place, &chunk[..end], 1);
                    return Look::Skipped;
                }
                // What was read before it comes first; the next look starts here.
                Step::Incomplete { .. } | Step::BadHeader | Step::BadPayload { .. } | Step::End => break,
            }
        }
        place.offset = start + at as u64;
        match (index.first(), index.last()) {
            (Some((first_seq, _)), Some((last_seq, _))) => {
                Look::Batch(Batch { first_seq: *first_seq, last_seq: *last_seq, buffer: chunk.into(), index })
            }
            _ => Look::Skipped,
        }
    }

    /// Sets aside everything up to the next intact frame, or to the end of what is published.
    fn skip_damage(&mut self) -> Result<(), ReadError> {
        let Some(place) = &mut self.place else { return Ok(()) };
        let published = place.segment.extent();
        let rest = place.read(published.data_end - place.offset)?;
        let before = self.read_through.max(place.segment.first_seq - 1);
        let next = resync(&rest, 1, self.inner.identity.salt, place.segment.first_seq - 1);
        let damaged = &rest[..next.unwrap_or(rest.len())];
        let next_seq = next.map_or(published.last_seq + 1, |at| u64_at(&rest, at + 4));
        let records_at_most = lost_records(damaged.len(), before, Some(next_seq));
        set_aside(&self.inner, place, damaged, records_at_most);
        Ok(())
    }
}

/// Keeps and counts the damaged bytes at the place, and moves the place behind them.
fn set_aside(inner: &Inner, place: &mut Place, bytes: &[u8], records_at_most: u64) {
    let first_seq = place.segment.first_seq;
    let result = inner.quarantine.set_aside(first_seq, place.offset, bytes, records_at_most, &inner.counters);
    if let Err(error) = result {
        let path = place.segment.path.display();
        tracing::error!(%path, %error, "cannot set damaged journal bytes aside, keeping the segment");
        place.segment.keep_on_trim();
    }
    place.offset += bytes.len() as u64;
}

impl Place {
    fn read(&self, bytes: u64) -> Result<Vec<u8>, ReadError> {
        let mut chunk = vec![0; bytes as usize];
        self.file
            .read_exact_at(&mut chunk, self.offset)
            .map_err(|source| read_error("read", &self.segment.path, source))?;
        Ok(chunk)
    }
}

fn read_error(operation: &'static str, path: &Path, source: io::Error) -> ReadError {
    ReadError { operation, path: path.to_owned(), source }
}
