//! Bytes that should have been records and are not: counted, and kept in `quarantine/` for whoever investigates.
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::stats::Counters;
use super::Seq;

const DIR_NAME: &str = "quarantine";

pub(super) struct Quarantine {
    dir: PathBuf,
}

impl Quarantine {
    pub fn new(journal_dir: &Path) -> Self {
        Self { dir: journal_dir.join(DIR_NAME) }
    }

    /// Keeps `bytes`, found at `offset` of the segment that starts with `first_seq`, and counts them.
    ///
    /// The name follows from the place, so the same damage met again (another reader, the next start) is neither
    /// kept nor counted twice; `false` says so. On an error it is counted all the same, but nothing is kept.
    pub fn set_aside(
        &self,
        first_seq: Seq,
        offset: u64,
        bytes: &[u8],
        records_at_most: u64,
        counters: &Counters,
    ) -> io::Result<bool> {
        let path = self.dir.join(format!("{first_seq:020}-{offset:012}.bytes"));
        if std::fs::metadata(&path).is_ok_and(|kept| kept.len() == bytes.len() as u64) {
            return Ok(false);
        }
        counters.quarantined(records_at_most, bytes.len() as u64);
        tracing::error!(
            segment = first_seq,
            offset,
            bytes = bytes.len(),
            records_at_most,
            kept = %path.display(),
            "journal bytes are damaged, set aside"
        );
        std::fs::create_dir_all(&self.dir)?;
        let mut file = std::fs::File::create(&path)?;
        file.write_all(bytes)?;
        file.sync_data()?;
        Ok(true)
    }

    /// Takes a whole segment file whose damage could not be copied; needs no space.
    pub fn adopt(&self, path: &Path) -> io::Result<()> {
        std::fs::create_dir_all(&self.dir)?;
        std::fs::rename(path, self.dir.join(path.file_name().unwrap_or_default()))
    }
}
