//! The `binaries` table.
use std::collections::HashSet;

use rusqlite::{params, OptionalExtension, Row};

use super::error::classify;
use super::{connection, SqliteStore};
use crate::artifacts::Checksum;
use crate::clock::UnixMillis;
use crate::store::{BinaryRecord, BinaryStore, NewBinary, StoreError, StoreFuture};

const ID_PREFIX: &str = "bin-";

/// Bytes of a queued write beside its texts.
const WRITE_OVERHEAD: usize = 256;

const COLUMNS: &str = "pk, name, version, platform, checksum, size_bytes, uploaded_at";

impl BinaryStore for SqliteStore {
    fn put_binary(&self, binary: NewBinary) -> StoreFuture<BinaryRecord> {
        let bytes = WRITE_OVERHEAD + binary.name.len() + binary.version.len() + binary.platform.len();
        self.write("register a file", bytes, move |connection| {
            let checksum = binary.checksum.as_bytes();
            connection
                .prepare_cached(
                    "INSERT INTO binaries (name, version, platform, checksum, size_bytes, uploaded_at) \
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT (checksum, name, version, platform) DO NOTHING",
                )?
                .execute(params![
                    binary.name,
                    binary.version,
                    binary.platform,
                    checksum,
                    // At most `MAX_BINARY_BYTES`.
                    binary.size_bytes as i64,
                    binary.uploaded_at.as_millis(),
                ])?;
            let kept = connection
                .prepare_cached(&format!(
                    "SELECT {COLUMNS} FROM binaries \
                     WHERE checksum = ?1 AND name = ?2 AND version = ?3 AND platform = ?4"
                ))?
                .query_row(params![checksum, binary.name, binary.version, binary.platform], record)?;
            Ok(kept)
        })
    }

    fn binary(&self, id: &str) -> StoreFuture<Option<BinaryRecord>> {
        let Some(pk) = number_of(id) else { return Box::pin(async { Ok(None) }) };
        self.read("read a file's record", move |connection| {
            let mut statement = connection.prepare_cached(&format!("SELECT {COLUMNS} FROM binaries WHERE pk = ?1"))?;
            Ok(statement.query_row([pk], record).optional()?)
        })
    }

    fn has_binary_bytes(&self, checksum: &Checksum) -> StoreFuture<bool> {
        let checksum = *checksum;
        self.read("look for a file's bytes", move |connection| {
            let mut statement = connection.prepare_cached("SELECT 1 FROM binaries WHERE checksum = ?1")?;
            Ok(statement.exists([checksum.as_bytes()])?)
        })
    }

    fn binary_checksums(&self) -> Result<HashSet<Checksum>, StoreError> {
        let connection = connection::open_reader(&self.path)?;
        let failed = |source| classify("read the checksums of files", source);
        let mut statement = connection.prepare("SELECT DISTINCT checksum FROM binaries").map_err(failed)?;
        let rows = statement.query_map([], |row| row.get(0).map(Checksum::from_bytes)).map_err(failed)?;
        rows.collect::<Result<_, _>>().map_err(failed)
    }
}

fn record(row: &Row<'_>) -> rusqlite::Result<BinaryRecord> {
    Ok(BinaryRecord {
        id: format!("{ID_PREFIX}{:03}", row.get::<_, i64>(0)?),
        name: row.get(1)?,
        version: row.get(2)?,
        platform: row.get(3)?,
        checksum: Checksum::from_bytes(row.get(4)?),
        // The table holds no negative size.
        size_bytes: row.get::<_, i64>(5)?.unsigned_abs(),
        uploaded_at: UnixMillis::from_millis_clamped(row.get(6)?),
    })
}

/// The key in an id, if it is written as this store writes it: `bin-1` and `bin-0001` are not `bin-001`.
fn number_of(id: &str) -> Option<i64> {
    let number = id.strip_prefix(ID_PREFIX)?.parse().ok()?;
    (format!("{ID_PREFIX}{number:03}") == id).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binary(name: &str, byte: u8) -> NewBinary {
        NewBinary {
            name: name.into(),
            version: "2.0.0".into(),
            platform: "raspberry-pi".into(),
            checksum: Checksum::from_bytes([byte; 32]),
            size_bytes: 1 << 31,
            uploaded_at: UnixMillis::from_unix_seconds(1_700_000_000),
        }
    }

    #[tokio::test]
    async fn the_same_file_has_one_id_and_another_has_another() {
        let folder = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&folder.path().join("registry.db")).unwrap();
        let first = store.put_binary(binary("a.bin", 1)).await.unwrap();
        assert_eq!(first.id, "bin-001");
        let later = NewBinary { uploaded_at: UnixMillis::from_unix_seconds(1_800_000_000), ..binary("a.bin", 1) };
        assert_eq!(store.put_binary(later).await.unwrap(), first, "a repeat is told what is there");
        let mut ids = vec![first.id.clone()];
        for other in [
            binary("b.bin", 1),
            binary("a.bin", 2),
            NewBinary { version: "2.0.1".into(), ..binary("a.bin", 1) },
            NewBinary { platform: String::new(), ..binary("a.bin", 1) },
        ] {
            ids.push(store.put_binary(other).await.unwrap().id);
        }
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), 5, "{ids:?}");
        assert_eq!(store.binary("bin-001").await.unwrap(), Some(first));
        assert_eq!(store.binary_checksums().unwrap().len(), 2);
        assert!(store.has_binary_bytes(&Checksum::from_bytes([2; 32])).await.unwrap());
        assert!(!store.has_binary_bytes(&Checksum::from_bytes([3; 32])).await.unwrap());
    }

    #[tokio::test]
    async fn what_is_no_id_is_not_found() {
        let folder = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&folder.path().join("registry.db")).unwrap();
        store.put_binary(binary("a.bin", 1)).await.unwrap();
        for id in ["", "bin-", "bin-1", "bin-0001", "bin-+01", "bin--01", "BIN-001", "bin-002", "../bin-001"] {
            assert_eq!(store.binary(id).await.unwrap(), None, "{id}");
        }
    }
}
