//! The bytes of the journal: segment header, record frame, segment footer, and how a reader finds its way again
//! after damage. Pure: slices in, values out; no file, no clock, no runtime.
//!
//! ```text
//! segment  = header(64) frame* [footer(64)]            integers are little-endian
//! header   = magic(8) version(4) salt(4) journal_id(16) first_seq(8) zero(20) crc(4)
//! frame    = length(4) seq(8) payload_crc(4) header_crc(4) payload(length)
//! footer   = magic(8) first_seq(8) last_seq(8) records(8) data_end(8) zero(20) crc(4)
//! ```
//!
//! Every checksum is CRC32C. `payload_crc` covers the payload, `header_crc` covers the 16 bytes before it, which
//! include `payload_crc`, so one flipped bit anywhere in a frame is always found (CRC32C finds every burst up to
//! 32 bits). Two checksums instead of one, because then a damaged payload leaves a trustworthy length: the next
//! record is found at once and the lost sequence number is known. Only a damaged frame header needs a search.
//!
//! Checksums start from `salt`, a random number of the journal. A payload that holds the image of a frame (a hostile
//! client can send one) is therefore not taken for a record by that search.
use std::ops::Range;

use uuid::Uuid;

use super::Seq;

pub const SEGMENT_HEADER_BYTES: usize = 64;
pub const SEGMENT_FOOTER_BYTES: usize = 64;
pub const FRAME_HEADER_BYTES: usize = 20;

/// The largest payload of one record. A heartbeat row is 100 bytes to some kilobytes; with a full process list it
/// stays below 1 MiB. The bound keeps a damaged length from asking for gigabytes.
pub const MAX_PAYLOAD_BYTES: usize = 4 << 20;

/// Version of everything in this file; a segment of a higher version is refused, never guessed at.
pub const FORMAT_VERSION: u32 = 1;

const SEGMENT_MAGIC: [u8; 8] = *b"FLTDJSEG";
const FOOTER_MAGIC: [u8; 8] = *b"FLTDJEND";

/// What all segments of a journal share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    pub id: Uuid,
    pub salt: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    pub identity: Identity,
    /// No record of the segment has a lower number.
    pub first_seq: Seq,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadHeader {
    /// Too short, wrong magic or wrong checksum.
    Damaged,
    /// Intact, but of a format this build does not know.
    Version(u32),
}

/// Written once when a segment is sealed, so that recovery need not read the segment to know its range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentFooter {
    pub first_seq: Seq,
    /// Of the last record; `first_seq - 1` when there is none.
    pub last_seq: Seq,
    pub records: u64,
    /// Offset in the file just past the last frame; the footer starts here.
    pub data_end: u64,
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

/// Puts the checksum of the first 60 bytes into the last 4.
pub(super) fn seal_block(block: &mut [u8; 64]) {
    let crc = crc32c::crc32c(&block[..60]);
    block[60..].copy_from_slice(&crc.to_le_bytes());
}

pub(super) fn block_is_intact(block: &[u8], magic: [u8; 8]) -> bool {
    block.len() >= 64 && block[..8] == magic && u32_at(block, 60) == crc32c::crc32c(&block[..60])
}

impl SegmentHeader {
    pub fn encode(&self) -> [u8; SEGMENT_HEADER_BYTES] {
        let mut block = [0; SEGMENT_HEADER_BYTES];
        block[..8].copy_from_slice(&SEGMENT_MAGIC);
        block[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        block[12..16].copy_from_slice(&self.identity.salt.to_le_bytes());
        block[16..32].copy_from_slice(self.identity.id.as_bytes());
        block[32..40].copy_from_slice(&self.first_seq.to_le_bytes());
        seal_block(&mut block);
        block
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, BadHeader> {
        if !block_is_intact(bytes, SEGMENT_MAGIC) {
            return Err(BadHeader::Damaged);
        }
        let version = u32_at(bytes, 8);
        if version != FORMAT_VERSION {
            return Err(BadHeader::Version(version));
        }
        let mut id = [0; 16];
        id.copy_from_slice(&bytes[16..32]);
        let identity = Identity { id: Uuid::from_bytes(id), salt: u32_at(bytes, 12) };
        Ok(Self { identity, first_seq: u64_at(bytes, 32) })
    }
}

impl SegmentFooter {
    pub fn encode(&self) -> [u8; SEGMENT_FOOTER_BYTES] {
        let mut block = [0; SEGMENT_FOOTER_BYTES];
        block[..8].copy_from_slice(&FOOTER_MAGIC);
        block[8..16].copy_from_slice(&self.first_seq.to_le_bytes());
        block[16..24].copy_from_slice(&self.last_seq.to_le_bytes());
        block[24..32].copy_from_slice(&self.records.to_le_bytes());
        block[32..40].copy_from_slice(&self.data_end.to_le_bytes());
        seal_block(&mut block);
        block
    }

    pub fn decode(bytes: &[u8]) -> Option<Self> {
        block_is_intact(bytes, FOOTER_MAGIC).then(|| Self {
            first_seq: u64_at(bytes, 8),
            last_seq: u64_at(bytes, 16),
            records: u64_at(bytes, 24),
            data_end: u64_at(bytes, 32),
        })
    }
}

/// Checksum of a payload, the part of a frame that can be computed before the sequence number is known.
pub fn payload_crc(salt: u32, payload: &[u8]) -> u32 {
    crc32c::crc32c_append(salt, payload)
}

/// The 20 bytes before a payload. `length` is at most [`MAX_PAYLOAD_BYTES`].
pub fn frame_header(salt: u32, length: u32, seq: Seq, payload_crc: u32) -> [u8; FRAME_HEADER_BYTES] {
    let mut header = [0; FRAME_HEADER_BYTES];
    header[..4].copy_from_slice(&length.to_le_bytes());
    header[4..12].copy_from_slice(&seq.to_le_bytes());
    header[12..16].copy_from_slice(&payload_crc.to_le_bytes());
    let crc = crc32c::crc32c_append(salt, &header[..16]);
    header[16..].copy_from_slice(&crc.to_le_bytes());
    header
}

/// What stands at one offset of a segment's frames.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    Record {
        seq: Seq,
        payload: Range<usize>,
    },
    /// The frame header is intact, the payload is not: exactly this record is lost.
    BadPayload {
        seq: Seq,
        end: usize,
    },
    /// No frame starts here; [`resync`] finds the next.
    BadHeader,
    /// The bytes end inside a frame that has this many bytes in all (as far as known).
    Incomplete {
        frame_bytes: usize,
    },
    End,
}

/// Reads the frame at `at`. Its number must be above `after`, else the frame is not one of this place.
pub fn step(bytes: &[u8], at: usize, salt: u32, after: Seq) -> Step {
    let rest = &bytes[at..];
    if rest.is_empty() {
        return Step::End;
    }
    if rest.len() < FRAME_HEADER_BYTES {
        return Step::Incomplete { frame_bytes: FRAME_HEADER_BYTES };
    }
    let Some((seq, length)) = intact_header(rest, salt, after) else {
        return Step::BadHeader;
    };
    let frame_bytes = FRAME_HEADER_BYTES + length;
    if rest.len() < frame_bytes {
        return Step::Incomplete { frame_bytes };
    }
    if payload_crc(salt, &rest[FRAME_HEADER_BYTES..frame_bytes]) != u32_at(rest, 12) {
        return Step::BadPayload { seq, end: at + frame_bytes };
    }
    Step::Record { seq, payload: at + FRAME_HEADER_BYTES..at + frame_bytes }
}

/// `(seq, length)` if the 20 bytes at the start of `rest` are an intact frame header with a number above `after`.
/// The number is compared first: that alone turns away nearly every offset of a search.
fn intact_header(rest: &[u8], salt: u32, after: Seq) -> Option<(Seq, usize)> {
    let seq = u64_at(rest, 4);
    let length = u32_at(rest, 0) as usize;
    let plausible = seq > after && seq != Seq::MAX && length <= MAX_PAYLOAD_BYTES;
    (plausible && u32_at(rest, 16) == crc32c::crc32c_append(salt, &rest[..16])).then_some((seq, length))
}

/// The first offset at or after `from` where an intact record starts, payload and all.
///
/// The header alone would not do: one that fits by chance claims any number, and all records below that number would
/// be passed over as read before. A record whose payload is damaged too is therefore lost with what precedes it.
pub fn resync(bytes: &[u8], from: usize, salt: u32, after: Seq) -> Option<usize> {
    let last = bytes.len().checked_sub(FRAME_HEADER_BYTES)?;
    (from..=last).find(|&at| matches!(step(bytes, at, salt, after), Step::Record { .. }))
}

/// A stretch of bytes that hold no intact record, though they should.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    pub range: Range<usize>,
    /// At most this many records were there; exact when only payloads are hit. Numbers skipped by failed writes
    /// cannot be told from lost ones when a frame header is hit.
    pub records_at_most: u64,
}

/// How many records fit between two neighbours in `bytes` bytes; at least the one that was damaged.
pub fn lost_records(bytes: usize, before: Seq, next: Option<Seq>) -> u64 {
    let by_size = (bytes / FRAME_HEADER_BYTES).max(1) as u64;
    next.map_or(by_size, |next| (next - before).saturating_sub(1).clamp(1, by_size))
}

/// What a whole scan of a segment's frames found. Offsets are relative to the scanned slice.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Scan {
    pub records: u64,
    /// Of the last intact record; the `after` given to [`scan`] when there is none.
    pub last_seq: Seq,
    /// Just past the last intact record. What follows is cut.
    pub data_end: usize,
    /// In file order; a stretch at or past `data_end` is cut after it was set aside.
    pub damage: Vec<Damage>,
    /// Bytes of a frame that was never finished, or of zeros that a power loss left: nothing that was ever whole.
    pub torn_bytes: usize,
    /// Bytes of records from `below` up: the next segment holds them (it was rewritten after a failed fsync).
    pub superseded_bytes: usize,
}

/// Reads all frames of a segment that was not sealed. Numbers are in `after < seq < below`.
///
/// A torn tail (the last write was cut short by a crash) is told from damage (bits changed later): a torn tail is a
/// prefix of a frame, or zeros, and nothing intact follows. Everything else counts as damage, so in doubt bytes are
/// set aside rather than dropped.
pub fn scan(bytes: &[u8], salt: u32, after: Seq, below: Seq) -> Scan {
    let mut found = Scan { last_seq: after, ..Scan::default() };
    let mut at = 0;
    let mut seen = after;
    loop {
        match step(bytes, at, salt, seen) {
            Step::End => return found,
            Step::Record { seq, .. } | Step::BadPayload { seq, .. } if seq >= below => {
                found.superseded_bytes = bytes.len() - at;
                return found;
            }
            Step::Record { seq, payload } => {
                at = payload.end;
                seen = seq;
                found.records += 1;
                found.last_seq = seq;
                found.data_end = at;
            }
            Step::BadPayload { seq, end } => {
                found.damage.push(Damage { range: at..end, records_at_most: 1 });
                at = end;
                seen = seq;
            }
            Step::Incomplete { .. } => {
                found.torn_bytes = bytes.len() - at;
                return found;
            }
            Step::BadHeader => match resync(bytes, at + 1, salt, seen) {
                Some(next) => {
                    let records_at_most = lost_records(next - at, seen, Some(u64_at(bytes, next + 4)));
                    found.damage.push(Damage { range: at..next, records_at_most });
                    at = next;
                }
                None => {
                    let rest = at..bytes.len();
                    if bytes[at..].iter().all(|byte| *byte == 0) {
                        found.torn_bytes = rest.len();
                    } else {
                        let records_at_most = lost_records(rest.len(), seen, None);
                        found.damage.push(Damage { range: rest, records_at_most });
                    }
                    return found;
                }
            },
        }
    }
}
