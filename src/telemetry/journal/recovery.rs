//! Opening a folder: finding out what is there after whatever happened, and making it fit to go on.
//!
//! A sealed segment with an intact footer is not read: its checksums are checked when it is delivered, and that
//! it is complete was known when it was sealed. So a start costs two small reads a segment, and one scan of the segment
//! that the last run was writing to. Every start writes to a new segment; old ones never change again.
use std::collections::VecDeque;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::disk::{sync_dir, DiskFile, Faults};
use super::error::OpenError;
use super::format::{
    scan, BadHeader, Identity, Scan, SegmentFooter, SegmentHeader, FORMAT_VERSION, SEGMENT_FOOTER_BYTES,
    SEGMENT_HEADER_BYTES,
};
use super::log::footer_of;
use super::meta::{self, Stored, RESERVED_BLOCK};
use super::quarantine::Quarantine;
use super::segment::{parse_file_name, Extent, Segment, RESCUE_SUFFIX};
use super::stats::Counters;
use super::Seq;

/// What [`Journal::open`](super::Journal::open) found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// The number of the next record; above every number that was ever used.
    pub next_seq: Seq,
    /// Records that can be read.
    pub records: u64,
    /// Bytes on disk.
    pub bytes: u64,
    pub segments: u64,
    /// Segments without an intact footer, which were read as a whole.
    pub scanned_segments: u64,
    /// Bytes of unfinished writes that were cut off; they were never acknowledged.
    pub torn_bytes: u64,
    /// Damage found now for the first time; `quarantined_records` is an upper bound.
    pub quarantined_records: u64,
    pub quarantined_bytes: u64,
    pub duration: Duration,
}

/// All that the running journal starts from.
pub(super) struct Recovered {
    pub identity: Identity,
    /// Generation of the next write to the meta file.
    pub generation: u64,
    pub table: VecDeque<Arc<Segment>>,
    /// Number of the last record that can be read, or 0.
    pub last_seq: Seq,
    pub recovery: Recovery,
}

struct Found {
    path: PathBuf,
    first_seq: Seq,
    header: Result<SegmentHeader, BadHeader>,
}

pub(super) fn recover(dir: &Path, faults: &Faults, counters: &Counters) -> Result<Recovered, OpenError> {
    let started = Instant::now();
    let found = list(dir)?;
    let stored = meta::load(dir)?;
    let (identity, generation, unused_from) = identify(dir, &stored, &found)?;
    let mut opener =
        Opener { dir, identity, faults, counters, quarantine: Quarantine::new(dir), recovery: Recovery::default() };
    let mut table = VecDeque::with_capacity(found.len());
    let mut next_seq = unused_from;
    for (at, file) in found.iter().enumerate() {
        let below = found.get(at + 1).map_or(Seq::MAX, |next| next.first_seq);
        // Even an empty segment took its first number, or one before it, from the reserved block.
        next_seq = next_seq.max(file.first_seq);
        if let Some(segment) = opener.open_segment(file, below)? {
            next_seq = next_seq.max(segment.extent().last_seq + 1);
            table.push_back(Arc::new(segment));
        }
    }
    if !matches!(stored, Stored::Meta { .. }) && !found.is_empty() {
        tracing::warn!(dir = %dir.display(), "journal meta file is lost, restored from the segments");
        // How far the last block reached is lost with it: at most one block beyond a number in use, and one to spare.
        next_seq += 2 * RESERVED_BLOCK;
    }
    sync_dir(dir).map_err(OpenError::io("fsync", dir))?;
    let mut recovery = opener.recovery;
    recovery.next_seq = next_seq;
    recovery.segments = table.len() as u64;
    recovery.records = table.iter().map(|segment| segment.extent().records).sum();
    recovery.bytes = table.iter().map(|segment| segment.extent().file_bytes).sum();
    recovery.duration = started.elapsed();
    let last_seq = table.back().map_or(0, |segment| segment.extent().last_seq);
    Ok(Recovered { identity, generation, table, last_seq, recovery })
}

/// The segments of the folder in the order of their numbers; leftovers of an unfinished rescue are deleted.
fn list(dir: &Path) -> Result<Vec<Found>, OpenError> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(OpenError::io("list", dir))? {
        let path = entry.map_err(OpenError::io("list", dir))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.ends_with(RESCUE_SUFFIX) {
            std::fs::remove_file(&path).map_err(OpenError::io("delete", &path))?;
        } else if let Some(first_seq) = parse_file_name(name) {
            let mut bytes = Vec::with_capacity(SEGMENT_HEADER_BYTES);
            std::fs::File::open(&path)
                .and_then(|file| file.take(SEGMENT_HEADER_BYTES as u64).read_to_end(&mut bytes))
                .map_err(OpenError::io("read", &path))?;
            let header = match SegmentHeader::decode(&bytes) {
                Err(BadHeader::Version(version)) => {
                    return Err(OpenError::NewerFormat { path, version, supported: FORMAT_VERSION });
                }
                Ok(header) if header.first_seq != first_seq => {
                    return Err(OpenError::Misnamed { path, first_seq: header.first_seq });
                }
                header => header,
            };
            found.push(Found { path, first_seq, header });
        }
    }
    found.sort_by_key(|file| file.first_seq);
    Ok(found)
}

/// Who the journal is: by its meta file, else by any segment; every intact header must agree.
fn identify(dir: &Path, stored: &Stored, found: &[Found]) -> Result<(Identity, u64, Seq), OpenError> {
    let by_header = || found.iter().find_map(|file| file.header.ok()).map(|header| header.identity);
    let (identity, generation, unused_from) = match stored {
        Stored::Meta { identity, generation, unused_from } => (*identity, *generation, *unused_from),
        Stored::Nothing if found.is_empty() => {
            let id = uuid::Uuid::new_v4();
            // Any four random bytes of another id; the id itself is visible in every row.
            let salt = uuid::Uuid::new_v4().as_u128() as u32;
            (Identity { id, salt }, 1, 1)
        }
        Stored::Nothing | Stored::Damaged => match by_header() {
            Some(identity) => (identity, 1, 1),
            None => return Err(OpenError::Unidentified { path: dir.join(meta::FILE_NAME) }),
        },
    };
    for file in found {
        match file.header {
            Ok(header) if header.identity != identity => {
                return Err(OpenError::Foreign {
                    path: file.path.clone(),
                    found: header.identity.id,
                    expected: identity.id,
                });
            }
            _ => {}
        }
    }
    Ok((identity, generation, unused_from))
}

struct Opener<'a> {
    dir: &'a Path,
    identity: Identity,
    faults: &'a Faults,
    counters: &'a Counters,
    quarantine: Quarantine,
    recovery: Recovery,
}

impl Opener<'_> {
    /// `None` when it holds no record; it is deleted then.
    fn open_segment(&mut self, found: &Found, below: Seq) -> Result<Option<Segment>, OpenError> {
        let path = &found.path;
        let file = DiskFile::open(path, self.faults).map_err(OpenError::io("open", path))?;
        let length = file.len().map_err(OpenError::io("read", path))?;
        if let Some(footer) = read_footer(path, found, length, below)? {
            if found.header.is_err() {
                self.repair_header(found, &file)?;
            }
            let SegmentFooter { last_seq, records, data_end, .. } = footer;
            let extent = Extent { last_seq, records, data_end, file_bytes: length, is_sealed: true };
            return Ok(Some(Segment::durable(self.dir, found.first_seq, extent)));
        }
        self.recovery.scanned_segments += 1;
        let bytes = std::fs::read(path).map_err(OpenError::io("read", path))?;
        let frames = bytes.get(SEGMENT_HEADER_BYTES..).unwrap_or_default();
        let scan = scan(frames, self.identity.salt, found.first_seq - 1, below);
        if found.header.is_err() && scan.records > 0 {
            self.repair_header(found, &file)?;
        }
        let is_kept = self.set_damage_aside(found, frames, &scan);
        self.recovery.torn_bytes += scan.torn_bytes as u64;
        self.counters.torn_bytes.fetch_add(scan.torn_bytes as u64, Relaxed);
        if scan.records == 0 && !is_kept {
            std::fs::remove_file(path).map_err(OpenError::io("delete", path))?;
            return Ok(None);
        }
        let data_end = (SEGMENT_HEADER_BYTES + scan.data_end) as u64;
        let mut extent =
            Extent { last_seq: scan.last_seq, records: scan.records, data_end, file_bytes: length, is_sealed: true };
        if !is_kept {
            extent.file_bytes = self.seal(found, &file, &extent)?;
        }
        let segment = Segment::durable(self.dir, found.first_seq, extent);
        if is_kept {
            segment.keep_on_trim();
        }
        Ok(Some(segment))
    }

    /// Cuts what is not a record off the end, writes the footer and makes all durable. Returns the file's length.
    fn seal(&self, found: &Found, file: &DiskFile, extent: &Extent) -> Result<u64, OpenError> {
        let Found { path, first_seq, .. } = found;
        let data_end = extent.data_end;
        file.truncate(data_end).map_err(OpenError::io("cut the torn tail of", path))?;
        let footer = footer_of(*first_seq, extent).encode();
        let mut file_bytes = data_end + footer.len() as u64;
        if let Err(error) = file.write_all_at(&footer, data_end) {
            // A full disk must not keep the server from starting: only so can the journal drain.
            tracing::warn!(path = %path.display(), %error, "cannot write segment footer, next start will scan it again");
            file.truncate(data_end).map_err(OpenError::io("cut the footer of", path))?;
            file_bytes = data_end;
        }
        file.sync().map_err(OpenError::io("fsync", path))?;
        Ok(file_bytes)
    }

    /// True when some damage could not be kept elsewhere, so the file itself must be kept.
    fn set_damage_aside(&mut self, found: &Found, frames: &[u8], scan: &Scan) -> bool {
        let mut is_kept = false;
        for damage in &scan.damage {
            let offset = (SEGMENT_HEADER_BYTES + damage.range.start) as u64;
            is_kept |= self.set_aside(found, offset, &frames[damage.range.clone()], damage.records_at_most);
        }
        is_kept
    }

    fn set_aside(&mut self, found: &Found, offset: u64, bytes: &[u8], records_at_most: u64) -> bool {
        let result = self.quarantine.set_aside(found.first_seq, offset, bytes, records_at_most, self.counters);
        match result {
            Ok(is_new) => {
                if is_new {
                    self.recovery.quarantined_records += records_at_most;
                    self.recovery.quarantined_bytes += bytes.len() as u64;
                }
                false
            }
            Err(error) => {
                tracing::error!(path = %found.path.display(), %error, "cannot set damaged journal bytes aside, keeping the segment");
                self.recovery.quarantined_records += records_at_most;
                self.recovery.quarantined_bytes += bytes.len() as u64;
                true
            }
        }
    }

    /// All that a header says is known otherwise, so a damaged one loses nothing.
    fn repair_header(&mut self, found: &Found, file: &DiskFile) -> Result<(), OpenError> {
        let mut damaged = [0; SEGMENT_HEADER_BYTES];
        file.read_exact_at(&mut damaged, 0).map_err(OpenError::io("read", &found.path))?;
        self.set_aside(found, 0, &damaged, 0);
        let header = SegmentHeader { identity: self.identity, first_seq: found.first_seq };
        file.write_all_at(&header.encode(), 0)
            .and_then(|()| file.sync())
            .map_err(OpenError::io("repair the header of", &found.path))
    }
}

/// The footer, if it is intact and fits its file and its neighbour.
fn read_footer(path: &Path, found: &Found, length: u64, below: Seq) -> Result<Option<SegmentFooter>, OpenError> {
    let footer_bytes = SEGMENT_FOOTER_BYTES as u64;
    if length < SEGMENT_HEADER_BYTES as u64 + footer_bytes {
        return Ok(None);
    }
    let mut block = [0; SEGMENT_FOOTER_BYTES];
    std::fs::File::open(path)
        .and_then(|file| file.read_exact_at(&mut block, length - footer_bytes))
        .map_err(OpenError::io("read", path))?;
    Ok(SegmentFooter::decode(&block).filter(|footer| {
        footer.data_end == length - footer_bytes && footer.first_seq == found.first_seq && footer.last_seq < below
    }))
}
