//! `journal.meta`: who the journal is, and which sequence numbers may have been used.
//!
//! A number must never be used twice, not even when a power loss takes back records that ClickHouse already has:
//! the row that took the number would look as if it were delivered, and be lost. So numbers are reserved in blocks,
//! durably, before the first of a block is given out, and a start after a crash goes on behind the whole block. That is
//! why numbers have gaps. A clean stop gives the rest of the block back.
//!
//! The file has two slots, written in turn and in place: a torn write leaves the other slot, and no space is needed, so
//! a journal can be opened, read and drained on a full disk.
use std::io;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::disk::{sync_dir, DiskFile, Faults};
use super::error::OpenError;
use super::format::{block_is_intact, seal_block, u32_at, u64_at, Identity, FORMAT_VERSION};
use super::Seq;

pub(super) const FILE_NAME: &str = "journal.meta";

/// Numbers reserved at once: two minutes at 500,000 records a second, so one small fsync a minute; and a server that
/// crashes once a second for four years still stays below 2^53, which JSON numbers hold exactly.
pub(super) const RESERVED_BLOCK: u64 = 1 << 26;

const MAGIC: [u8; 8] = *b"FLTDJMET";
const SLOT_BYTES: usize = 64;
/// Slots are a disk page apart, so that no torn write can hit both.
const SLOT_OFFSETS: [u64; 2] = [0, 4096];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Slot {
    identity: Identity,
    generation: u64,
    /// No number from here on was ever used.
    unused_from: Seq,
}

impl Slot {
    fn encode(&self) -> [u8; SLOT_BYTES] {
        let mut block = [0; SLOT_BYTES];
        block[..8].copy_from_slice(&MAGIC);
        block[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        block[12..16].copy_from_slice(&self.identity.salt.to_le_bytes());
        block[16..32].copy_from_slice(self.identity.id.as_bytes());
        block[32..40].copy_from_slice(&self.generation.to_le_bytes());
        block[40..48].copy_from_slice(&self.unused_from.to_le_bytes());
        seal_block(&mut block);
        block
    }
}

enum Decoded {
    Blank,
    Damaged,
    Version(u32),
    Intact(Slot),
}

fn decode(block: &[u8]) -> Decoded {
    if block.iter().all(|byte| *byte == 0) {
        return Decoded::Blank;
    }
    if !block_is_intact(block, MAGIC) {
        return Decoded::Damaged;
    }
    if u32_at(block, 8) != FORMAT_VERSION {
        return Decoded::Version(u32_at(block, 8));
    }
    let mut id = [0; 16];
    id.copy_from_slice(&block[16..32]);
    let identity = Identity { id: Uuid::from_bytes(id), salt: u32_at(block, 12) };
    Decoded::Intact(Slot { identity, generation: u64_at(block, 32), unused_from: u64_at(block, 40) })
}

/// What the file says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Stored {
    /// No file, or a file that was never finished.
    Nothing,
    /// There is a file, but neither slot can be read.
    Damaged,
    Meta {
        identity: Identity,
        generation: u64,
        unused_from: Seq,
    },
}

pub(super) fn load(dir: &Path) -> Result<Stored, OpenError> {
    let path = dir.join(FILE_NAME);
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Stored::Nothing),
        Err(error) => return Err(OpenError::io("read", path)(error)),
    };
    let mut best: Option<Slot> = None;
    let mut is_damaged = false;
    for offset in SLOT_OFFSETS {
        let from = (offset as usize).min(bytes.len());
        match decode(&bytes[from..(from + SLOT_BYTES).min(bytes.len())]) {
            Decoded::Blank => {}
            Decoded::Damaged => is_damaged = true,
            Decoded::Version(version) => {
                return Err(OpenError::NewerFormat { path, version, supported: FORMAT_VERSION });
            }
            Decoded::Intact(slot) => best = best.filter(|best| best.generation > slot.generation).or(Some(slot)),
        }
    }
    Ok(match best {
        Some(slot) => {
            if is_damaged {
                tracing::warn!(path = %path.display(), "one slot of the journal's meta file is damaged, the other serves");
            }
            // The damaged slot may have been the newer one; a generation moves the number by one block at most.
            let unused_from = slot.unused_from + if is_damaged { RESERVED_BLOCK } else { 0 };
            Stored::Meta { identity: slot.identity, generation: slot.generation + 1, unused_from }
        }
        None if is_damaged => Stored::Damaged,
        None => Stored::Nothing,
    })
}

/// The open file; the only writer of the reservation.
pub(super) struct MetaFile {
    file: DiskFile,
    path: PathBuf,
    identity: Identity,
    generation: u64,
}

impl MetaFile {
    /// Opens or creates the file. `generation` is the next one to write.
    pub fn open(dir: &Path, identity: Identity, generation: u64, faults: &Faults) -> Result<Self, OpenError> {
        let path = dir.join(FILE_NAME);
        let is_new = !path.exists();
        let file = if is_new { DiskFile::create_new(&path, faults) } else { DiskFile::open(&path, faults) }
            .map_err(OpenError::io("open", &path))?;
        let meta = Self { file, path, identity, generation };
        if is_new || meta.file.len().map_err(OpenError::io("read", &meta.path))? < SLOT_OFFSETS[1] {
            // Takes the space of both slots now, while failing is still allowed.
            meta.file
                .write_all_at(&[0; SLOT_OFFSETS[1] as usize + SLOT_BYTES], 0)
                .and_then(|()| meta.file.sync())
                .and_then(|()| sync_dir(dir))
                .map_err(OpenError::io("create", &meta.path))?;
        }
        Ok(meta)
    }

    /// Durably notes that numbers below `unused_from` may be used. After an error the note may or may not hold.
    pub fn reserve(&mut self, unused_from: Seq) -> io::Result<()> {
        let slot = Slot { identity: self.identity, generation: self.generation, unused_from };
        let offset = SLOT_OFFSETS[(self.generation % 2) as usize];
        self.file.write_all_at(&slot.encode(), offset)?;
        self.file.sync()?;
        self.generation += 1;
        Ok(())
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        Identity { id: Uuid::from_u128(7), salt: 9 }
    }

    fn unused_from(dir: &Path) -> Option<Seq> {
        match load(dir).expect("a readable file") {
            Stored::Meta { unused_from, identity: found, .. } if found == identity() => Some(unused_from),
            _ => None,
        }
    }

    #[test]
    fn the_newest_reservation_wins_and_a_folder_without_one_says_so() {
        let dir = tempfile::tempdir().expect("a folder");
        assert_eq!(load(dir.path()).expect("no file is fine"), Stored::Nothing);
        let mut meta = MetaFile::open(dir.path(), identity(), 1, &Faults::default()).expect("a file");
        assert_eq!(load(dir.path()).expect("a readable file"), Stored::Nothing);
        for bound in [100, 200, 150, 300] {
            meta.reserve(bound).expect("room");
            assert_eq!(unused_from(dir.path()), Some(bound));
        }
    }

    #[test]
    fn a_flipped_bit_never_lowers_the_reservation() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut meta = MetaFile::open(dir.path(), identity(), 1, &Faults::default()).expect("a file");
        meta.reserve(1000).expect("room");
        meta.reserve(1000 + RESERVED_BLOCK).expect("room");
        let path = dir.path().join(FILE_NAME);
        let intact = std::fs::read(&path).expect("the file");
        for slot in SLOT_OFFSETS {
            for bit in 0..SLOT_BYTES * 8 {
                let mut bytes = intact.clone();
                bytes[slot as usize + bit / 8] ^= 1 << (bit % 8);
                std::fs::write(&path, &bytes).expect("room");
                let bound = unused_from(dir.path()).expect("the other slot");
                assert!(bound >= 1000 + RESERVED_BLOCK, "bit {bit} of slot {slot}: {bound}");
            }
        }
        std::fs::write(&path, vec![0xAA; intact.len()]).expect("room");
        assert_eq!(load(dir.path()).expect("a readable file"), Stored::Damaged);
    }
}
