//! Where the writer was: a small file that says what ClickHouse has acknowledged and which batches are on their way.
//!
//! Two slots of a file of fixed size are written in turn, so that a write that is torn or a sector that rots costs one
//! step back, and a full disk costs nothing. A step back, or the loss of both slots, is safe: whatever the journal held
//! when the writer starts is asked for before it is sent. The file only makes that asking short, and keeps the ranges of
//! batches the same over a restart, so that their tokens are too.
//!
//! ```text
//! slot: magic 8 | generation u64 | journal id 16 | committed u64 | batches u32 | (first u64, last u64) × 2 | crc32c u32
//! ```
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::batch::SeqRange;
use crate::telemetry::journal::{JournalId, Seq};

/// Batches that may be on their way at once; see [`task`](super::task).
pub const MAX_OPEN_BATCHES: usize = 2;

const MAGIC: [u8; 8] = *b"FLTDCKP1";
const SLOT_BYTES: usize = 8 + 8 + 16 + 8 + 4 + MAX_OPEN_BATCHES * 16 + 4;
/// Slots lie in blocks of their own, so that no torn write of one touches the other.
const SLOT_OFFSETS: [u64; 2] = [0, 4096];
const FILE_BYTES: u64 = 8192;

/// What a slot says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    /// All through this seq is acknowledged by ClickHouse or set aside.
    pub committed: Seq,
    /// Batches that were sent, or are about to be, in order, following each other from `committed + 1`.
    pub open: Vec<SeqRange>,
}

/// Why the file cannot be used; the path is named.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} the writer's checkpoint {}", path.display())]
pub struct CheckpointError {
    operation: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// The file, open for as long as the writer runs.
pub struct Checkpoint {
    file: File,
    path: PathBuf,
    journal: JournalId,
    generation: u64,
}

impl Checkpoint {
    /// Opens or makes the file; the position is `None` when there is none for this journal that can be read.
    pub fn open(path: &Path, journal: JournalId) -> Result<(Self, Option<Position>), CheckpointError> {
        let failed = |operation| {
            let path = path.to_path_buf();
            move |source| CheckpointError { operation, path, source }
        };
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).open(path).map_err(failed("open"))?;
        let mut newest: Option<(u64, Position)> = None;
        let mut damaged = false;
        for offset in SLOT_OFFSETS {
            match read_slot(&file, offset).map_err(failed("read"))? {
                Slot::Holds { generation, journal: of, position } if of == journal.0 => {
                    if newest.as_ref().is_none_or(|(newest, _)| *newest < generation) {
                        newest = Some((generation, position));
                    }
                }
                Slot::Damaged => damaged = true,
                Slot::Blank | Slot::Holds { .. } => {}
            }
        }
        if damaged {
            tracing::warn!(path = %path.display(), "checkpoint has a damaged slot, more of the journal is compared with clickhouse");
        }
        // Space is taken now, while a failure can still be told to whoever starts the server.
        file.set_len(FILE_BYTES).map_err(failed("size"))?;
        file.sync_all().map_err(failed("fsync"))?;
        let generation = newest.as_ref().map_or(0, |(generation, _)| *generation);
        let checkpoint = Self { file, path: path.to_path_buf(), journal, generation };
        Ok((checkpoint, newest.map(|(_, position)| position)))
    }

    /// Writes the position durably; takes one fdatasync.
    ///
    /// # Panics
    /// If there are more than [`MAX_OPEN_BATCHES`].
    pub fn record(&mut self, position: &Position) -> Result<(), CheckpointError> {
        let generation = self.generation + 1;
        let slot = encode_slot(generation, self.journal, position);
        let offset = SLOT_OFFSETS[(generation % 2) as usize];
        let failed = |operation| {
            let path = self.path.clone();
            move |source| CheckpointError { operation, path, source }
        };
        self.file.write_all_at(&slot, offset).map_err(failed("write"))?;
        self.file.sync_data().map_err(failed("fsync"))?;
        self.generation = generation;
        Ok(())
    }
}

enum Slot {
    Blank,
    Damaged,
    Holds { generation: u64, journal: uuid::Uuid, position: Position },
}

fn encode_slot(generation: u64, journal: JournalId, position: &Position) -> [u8; SLOT_BYTES] {
    assert!(position.open.len() <= MAX_OPEN_BATCHES, "more batches are open than the writer allows itself");
    let mut slot = [0; SLOT_BYTES];
    slot[..8].copy_from_slice(&MAGIC);
    slot[8..16].copy_from_slice(&generation.to_le_bytes());
    slot[16..32].copy_from_slice(journal.0.as_bytes());
    slot[32..40].copy_from_slice(&position.committed.to_le_bytes());
    slot[40..44].copy_from_slice(&(position.open.len() as u32).to_le_bytes());
    for (at, range) in position.open.iter().enumerate() {
        slot[44 + at * 16..][..8].copy_from_slice(&range.first.to_le_bytes());
        slot[52 + at * 16..][..8].copy_from_slice(&range.last.to_le_bytes());
    }
    let crc = crc32c::crc32c(&slot[..SLOT_BYTES - 4]);
    slot[SLOT_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
    slot
}

fn read_slot(file: &File, offset: u64) -> io::Result<Slot> {
    let mut slot = [0; SLOT_BYTES];
    match file.read_exact_at(&mut slot, offset) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            return Ok(if file.metadata()?.len() == 0 { Slot::Blank } else { Slot::Damaged });
        }
        Err(error) => return Err(error),
    }
    if slot == [0; SLOT_BYTES] {
        return Ok(Slot::Blank);
    }
    Ok(decode_slot(&slot).unwrap_or(Slot::Damaged))
}

fn decode_slot(slot: &[u8; SLOT_BYTES]) -> Option<Slot> {
    let word = |at: usize| -> Option<u64> { Some(u64::from_le_bytes(slot.get(at..at + 8)?.try_into().ok()?)) };
    let crc = u32::from_le_bytes(slot[SLOT_BYTES - 4..].try_into().ok()?);
    let count = u32::from_le_bytes(slot[40..44].try_into().ok()?) as usize;
    if slot[..8] != MAGIC || crc != crc32c::crc32c(&slot[..SLOT_BYTES - 4]) || count > MAX_OPEN_BATCHES {
        return None;
    }
    let open = (0..count)
        .map(|at| Some(SeqRange { first: word(44 + at * 16)?, last: word(52 + at * 16)? }))
        .collect::<Option<_>>()?;
    let journal = uuid::Uuid::from_slice(&slot[16..32]).ok()?;
    Some(Slot::Holds { generation: word(8)?, journal, position: Position { committed: word(32)?, open } })
}

#[cfg(test)]
mod tests {
    use super::*;

    const JOURNAL: JournalId = JournalId(uuid::Uuid::from_u128(7));

    fn position(committed: Seq) -> Position {
        let open = vec![
            SeqRange { first: committed + 1, last: committed + 10 },
            SeqRange { first: committed + 11, last: committed + 12 },
        ];
        Position { committed, open }
    }

    fn reopened(path: &Path) -> Option<Position> {
        Checkpoint::open(path, JOURNAL).expect("opens").1
    }

    #[test]
    fn the_last_position_that_was_recorded_is_read_back() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("writer.checkpoint");
        assert_eq!(reopened(&path), None);
        for round in 0..5 {
            let (mut checkpoint, _) = Checkpoint::open(&path, JOURNAL).expect("opens");
            for committed in [round * 10, round * 10 + 1] {
                checkpoint.record(&position(committed)).expect("records");
                assert_eq!(reopened(&path), Some(position(committed)));
            }
        }
    }

    #[test]
    fn a_journal_knows_only_its_own_positions() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("writer.checkpoint");
        Checkpoint::open(&path, JOURNAL).expect("opens").0.record(&position(3)).expect("records");
        let other = JournalId(uuid::Uuid::from_u128(8));
        let (mut checkpoint, found) = Checkpoint::open(&path, other).expect("opens");
        assert_eq!(found, None);
        for committed in [1, 2] {
            checkpoint.record(&position(committed)).expect("records");
        }
        assert_eq!(Checkpoint::open(&path, other).expect("opens").1, Some(position(2)));
        assert_eq!(reopened(&path), None);
    }

    #[test]
    fn a_flipped_bit_or_a_cut_anywhere_never_reads_as_a_position_that_was_not_recorded() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("writer.checkpoint");
        let (mut checkpoint, _) = Checkpoint::open(&path, JOURNAL).expect("opens");
        for committed in [100, 200] {
            checkpoint.record(&position(committed)).expect("records");
        }
        let whole = std::fs::read(&path).expect("reads");
        let recorded = [None, Some(position(100)), Some(position(200))];
        let offsets = SLOT_OFFSETS.iter().flat_map(|&offset| offset as usize..offset as usize + SLOT_BYTES);
        for at in offsets.clone() {
            let mut flipped = whole.clone();
            flipped[at] ^= 1 << (at % 8);
            std::fs::write(&path, &flipped).expect("writes");
            assert!(recorded[1..].contains(&reopened(&path)), "flipped at {at}");
        }
        for cut in offsets {
            std::fs::write(&path, &whole[..cut]).expect("writes");
            assert!(recorded.contains(&reopened(&path)), "cut at {cut}");
        }
    }
}
