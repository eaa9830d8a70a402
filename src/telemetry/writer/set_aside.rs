//! What ClickHouse will not have, and what does not read as rows: kept as files with the reason beside them, so that a
//! poison row stops neither the fleet nor gets lost.
//!
//! `<journal>.<table>.<seq>.<row_index>.rowbinary` holds one row as it was sent; `<journal>.record.<seq>.bin` a whole
//! record. The `.json` of the same name says why and, for a row, the statement that takes the file as it is, once the
//! cause is mended:
//!
//! ```text
//! curl "$CLICKHOUSE_URL/?database=fleetd&query=$(jq -r '.sql|@uri' NAME.json)" --data-binary @NAME.rowbinary
//! ```
use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

use super::batch::{Malformed, RowKey};
use crate::telemetry::journal::{JournalId, Seq};
use crate::telemetry::row::Table;

/// Why something could not be set aside; the writer tries again until it can.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {}", path.display())]
pub struct SetAsideError {
    operation: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// The folder, and which rows of the journal's present range are in it: the audit does not miss those.
pub struct SetAside {
    dir: PathBuf,
    journal: JournalId,
    rows: Mutex<HashSet<(Table, RowKey)>>,
}

impl SetAside {
    /// Opens the folder, which is made with the first file.
    pub fn open(dir: &Path, journal: JournalId) -> Result<Self, SetAsideError> {
        let mut rows = HashSet::new();
        match fs::read_dir(dir) {
            Ok(entries) => {
                for entry in entries {
                    let entry = entry.map_err(|source| error("list", dir, source))?;
                    rows.extend(entry.file_name().to_str().and_then(|name| parse_name(name, journal)));
                }
            }
            Err(missing) if missing.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(error("list", dir, source)),
        }
        Ok(Self { dir: dir.to_path_buf(), journal, rows: Mutex::new(rows) })
    }

    pub fn contains(&self, table: Table, key: RowKey) -> bool {
        self.rows.lock().contains(&(table, key))
    }

    /// Forgets rows that the journal no longer holds; their files stay.
    pub fn forget_through(&self, seq: Seq) {
        self.rows.lock().retain(|(_, key)| key.seq > seq);
    }

    /// Keeps one row, with the prefix it was sent with.
    pub fn keep_row(&self, table: Table, key: RowKey, row: &[u8], why: &str) -> Result<(), SetAsideError> {
        let name = format!("{}.{}.{}.{}", self.journal.0, table.name(), key.seq, key.row_index);
        let note = serde_json::json!({
            "journal_id": self.journal.0.to_string(),
            "table": table.name(),
            "seq": key.seq,
            "row_index": key.row_index,
            "why": why,
            "sql": format!("INSERT INTO {} ({}) FORMAT RowBinary", table.name(), table.column_list()),
        });
        self.keep(&name, "rowbinary", row, &note)?;
        self.rows.lock().insert((table, key));
        Ok(())
    }

    /// Keeps a record that does not read as rows.
    pub fn keep_record(&self, malformed: &Malformed) -> Result<(), SetAsideError> {
        let name = format!("{}.record.{}", self.journal.0, malformed.seq);
        let note = serde_json::json!({
            "journal_id": self.journal.0.to_string(),
            "seq": malformed.seq,
            "why": malformed.why.to_string(),
        });
        self.keep(&name, "bin", &malformed.record, &note)
    }

    /// The note goes last: where it is, the bytes are whole. Repeating it after a crash gives the same files.
    fn keep(&self, name: &str, kind: &str, bytes: &[u8], note: &serde_json::Value) -> Result<(), SetAsideError> {
        fs::create_dir_all(&self.dir).map_err(|source| error("create", &self.dir, source))?;
        write_durably(&self.dir.join(format!("{name}.{kind}")), bytes)?;
        write_durably(&self.dir.join(format!("{name}.json")), format!("{note:#}\n").as_bytes())?;
        File::open(&self.dir).and_then(|dir| dir.sync_all()).map_err(|source| error("fsync", &self.dir, source))
    }
}

fn error(operation: &'static str, path: &Path, source: io::Error) -> SetAsideError {
    SetAsideError { operation, path: path.to_path_buf(), source }
}

fn parse_name(name: &str, journal: JournalId) -> Option<(Table, RowKey)> {
    let mut parts = name.strip_suffix(".rowbinary")?.split('.');
    let (of, table, seq, row_index) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let table = Table::ALL.into_iter().find(|known| known.name() == table)?;
    let key = RowKey { seq: seq.parse().ok()?, row_index: row_index.parse().ok()? };
    (of == journal.0.to_string() && parts.next().is_none()).then_some((table, key))
}

fn write_durably(path: &Path, bytes: &[u8]) -> Result<(), SetAsideError> {
    let temporary = path.with_extension("tmp");
    let mut file = File::create(&temporary).map_err(|source| error("create", &temporary, source))?;
    file.write_all(bytes).map_err(|source| error("write", &temporary, source))?;
    file.sync_all().map_err(|source| error("fsync", &temporary, source))?;
    fs::rename(&temporary, path).map_err(|source| error("rename", &temporary, source))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::row::MalformedRecord;

    const JOURNAL: JournalId = JournalId(uuid::Uuid::from_u128(7));

    #[test]
    fn what_was_set_aside_is_known_after_a_restart_with_its_bytes_and_reason() {
        let dir = tempfile::tempdir().expect("a folder");
        let dir = dir.path().join("set-aside");
        let key = RowKey { seq: 9, row_index: 2 };
        SetAside::open(&dir, JOURNAL).expect("opens").keep_row(Table::Processes, key, b"row", "too bad").expect("kept");

        let again = SetAside::open(&dir, JOURNAL).expect("opens");
        assert!(again.contains(Table::Processes, key));
        assert!(!again.contains(Table::Heartbeats, key));
        assert!(!SetAside::open(&dir, JournalId(uuid::Uuid::nil())).expect("opens").contains(Table::Processes, key));
        let name = format!("{}.processes.9.2", JOURNAL.0);
        assert_eq!(fs::read(dir.join(format!("{name}.rowbinary"))).expect("bytes"), b"row");
        let note = fs::read_to_string(dir.join(format!("{name}.json"))).expect("a note");
        assert!(note.contains("too bad") && note.contains("INSERT INTO processes (journal_id, seq"), "{note}");

        again.forget_through(9);
        assert!(!again.contains(Table::Processes, key));
    }

    #[test]
    fn a_malformed_record_is_kept_whole() {
        let dir = tempfile::tempdir().expect("a folder");
        let why = MalformedRecord::UnknownTable { at: 0, number: 99 };
        let malformed = Malformed { seq: 3, why, record: vec![99, 1, 2] };
        SetAside::open(dir.path(), JOURNAL).expect("opens").keep_record(&malformed).expect("kept");
        let name = format!("{}.record.3", JOURNAL.0);
        assert_eq!(fs::read(dir.path().join(format!("{name}.bin"))).expect("bytes"), [99, 1, 2]);
        assert!(fs::read_to_string(dir.path().join(format!("{name}.json"))).expect("a note").contains("table 99"));
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("file");
        fs::write(&file, b"").expect("writes");
        let refused = SetAside::open(&file.join("below"), JOURNAL).err().map(|error| error.to_string());
        assert!(refused.is_some_and(|text| text.contains("below")));
    }
}
