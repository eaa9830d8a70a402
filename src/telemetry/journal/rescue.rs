//! After a failed fsync: unsynced records are read back, checked, and written to a new file that is then made durable.
use std::io;
use std::sync::atomic::Ordering::{Relaxed, Release};
use std::sync::Arc;

use super::disk::DiskFile;
use super::error::CommitError;
use super::format::{scan, u64_at, SegmentHeader, SEGMENT_FOOTER_BYTES, SEGMENT_HEADER_BYTES};
use super::inner::Inner;
use super::log::{footer_of, Log, OpenSegment};
use super::segment::{Extent, Segment, RESCUE_SUFFIX};
use super::Seq;

/// Moves everything unsynced out of `suspects` and whatever was written since. On success all that is written is
/// durable; else the journal is read-only.
pub(super) fn rescue(inner: &Inner, log: &mut Log, mut suspects: Vec<OpenSegment>) -> Result<(), CommitError> {
    log.seal(inner);
    // With a failed cut the active segment stays; it is read up to its last good record like the others.
    suspects.append(&mut log.unsynced);
    suspects.extend(log.active.take());
    let mut seen: Vec<Seq> = Vec::new();
    for suspect in &suspects {
        let segment = &suspect.segment;
        if seen.contains(&segment.first_seq) || segment.synced_end() >= segment.extent().data_end {
            continue;
        }
        seen.push(segment.first_seq);
        if let Err(source) = move_unsynced(inner, suspect) {
            let source = Arc::new(source);
            // Set once; a second failure changes nothing.
            let _ = inner.read_only.set(source.clone());
            return Err(CommitError::Sync { path: segment.path.clone(), source });
        }
    }
    // It may be the folder that failed: its files are durable then, their names are not.
    if let Err(source) = inner.faults.sync_dir(&inner.options.dir) {
        let source = Arc::new(source);
        let _ = inner.read_only.set(source.clone());
        return Err(CommitError::Sync { path: inner.options.dir.clone(), source });
    }
    inner.synced.fetch_max(inner.written.load(Relaxed), Release);
    Ok(())
}

fn move_unsynced(inner: &Inner, suspect: &OpenSegment) -> io::Result<()> {
    let old = &suspect.segment;
    let from = old.synced_end().max(SEGMENT_HEADER_BYTES as u64);
    let end = old.extent().data_end;
    if from == end {
        return Ok(());
    }
    // The page cache still has them in nearly all cases; the checksums tell.
    let mut frames = vec![0; (end - from) as usize];
    suspect.file.read_exact_at(&mut frames, from)?;
    let first_seq = u64_at(&frames, 4);
    let found = scan(&frames, inner.identity.salt, first_seq.saturating_sub(1), Seq::MAX);
    if found.data_end != frames.len() || !found.damage.is_empty() {
        return Err(io::Error::other("unsynced records changed when they were read back"));
    }

    let data_end = (SEGMENT_HEADER_BYTES + frames.len()) as u64;
    let file_bytes = data_end + SEGMENT_FOOTER_BYTES as u64;
    let dir = &inner.options.dir;
    let extent = Extent { last_seq: found.last_seq, records: found.records, data_end, file_bytes, is_sealed: true };
    let new = Segment::durable(dir, first_seq, extent);
    // First under another name: the old file may have the same one, and goes only when the new is durable.
    let temporary = new.path.with_extension(&RESCUE_SUFFIX[1..]);
    let _ = std::fs::remove_file(&temporary);
    let file = DiskFile::create_new(&temporary, &inner.faults)?;
    file.write_all_at(&SegmentHeader { identity: inner.identity, first_seq }.encode(), 0)?;
    file.write_all_at(&frames, SEGMENT_HEADER_BYTES as u64)?;
    file.write_all_at(&footer_of(first_seq, &extent).encode(), data_end)?;
    file.sync()?;
    std::fs::rename(&temporary, &new.path)?;
    inner.faults.sync_dir(dir)?;
    replace(inner, suspect, new, from);
    Ok(())
}

/// Puts `new` into the table behind what is left of the old segment, which ends at `cut` now. Readers see all records
/// once, before and after: they look for a segment under the table's lock.
fn replace(inner: &Inner, suspect: &OpenSegment, new: Segment, cut: u64) {
    let old = &suspect.segment;
    let mut table = inner.table.write();
    let bytes_before = old.extent().file_bytes;
    let moved = new.extent();
    let is_same_file = old.path == new.path;
    let left = old.shrink(cut, moved.records, new.first_seq);
    old.set_synced_end(cut);
    let kept_bytes = match table.iter().position(|segment| Arc::ptr_eq(segment, old)) {
        Some(at) if left.records == 0 => {
            table[at] = Arc::new(new);
            if !is_same_file {
                // A leftover holds nothing that the new segment has not; recovery cuts it as superseded.
                let _ = std::fs::remove_file(&old.path);
            }
            0
        }
        Some(at) => {
            table.insert(at + 1, Arc::new(new));
            // Not needed for correctness either: recovery ends a segment where the next begins.
            let _ = suspect.file.truncate(cut);
            cut
        }
        // Trimmed meanwhile, and no longer accounted for: its records are delivered.
        None => {
            let _ = std::fs::remove_file(&new.path);
            return;
        }
    };
    for sum in [&inner.claimed, &inner.stored] {
        sum.fetch_add(moved.file_bytes + kept_bytes, Relaxed);
        sum.fetch_sub(bytes_before, Relaxed);
    }
}
