//! The `exports` table.
use std::collections::HashSet;

use rusqlite::{params, OptionalExtension, Row};

use super::error::classify;
use super::{connection, SqliteStore};
use crate::artifacts::Checksum;
use crate::clock::UnixMillis;
use crate::store::{ExportRecord, ExportState, ExportStore, ExportedFile, NewExport, StoreError, StoreFuture};

const ID_PREFIX: &str = "exp-";

/// Bytes of a queued write beside its texts.
const WRITE_OVERHEAD: usize = 256;

const COLUMNS: &str = "pk, form, subject, state, requested_at, expires_at, rows_written, size_bytes, checksum, message";

/// As the column `state` has them.
const RUNNING: i64 = 1;
const SUCCEEDED: i64 = 2;
const FAILED: i64 = 3;
const EXPIRED: i64 = 4;

impl ExportStore for SqliteStore {
    fn begin_export(&self, export: NewExport) -> StoreFuture<ExportRecord> {
        self.write("keep an export", WRITE_OVERHEAD, move |connection| {
            let kept = connection
                .prepare_cached(&format!(
                    "INSERT INTO exports (form, subject, state, requested_at, expires_at) VALUES (?1, ?2, ?3, ?4, ?5) \
                     RETURNING {COLUMNS}"
                ))?
                .query_row(
                    params![
                        export.form,
                        export.subject,
                        RUNNING,
                        export.requested_at.as_millis(),
                        export.expires_at.as_millis()
                    ],
                    record,
                )?;
            Ok(kept)
        })
    }

    fn export(&self, id: &str) -> StoreFuture<Option<ExportRecord>> {
        let Some(pk) = number_of(id) else { return Box::pin(async { Ok(None) }) };
        self.read("read an export", move |connection| {
            let mut statement = connection.prepare_cached(&format!("SELECT {COLUMNS} FROM exports WHERE pk = ?1"))?;
            Ok(statement.query_row([pk], record).optional()?)
        })
    }

    fn prolong_export(&self, id: &str, expires_at: UnixMillis) -> StoreFuture<bool> {
        let Some(pk) = number_of(id) else { return Box::pin(async { Ok(false) }) };
        self.write("keep until when an export is kept", WRITE_OVERHEAD, move |connection| {
            let changed = connection
                .prepare_cached("UPDATE exports SET expires_at = ?2 WHERE pk = ?1 AND state = ?3")?
                .execute(params![pk, expires_at.as_millis(), RUNNING])?;
            Ok(changed == 1)
        })
    }

    fn finish_export(&self, id: &str, file: ExportedFile) -> StoreFuture<bool> {
        let Some(pk) = number_of(id) else { return Box::pin(async { Ok(false) }) };
        self.write("keep that an export is whole", WRITE_OVERHEAD, move |connection| {
            let changed = connection
                .prepare_cached(
                    "UPDATE exports SET state = ?2, rows_written = ?3, size_bytes = ?4, checksum = ?5 \
                     WHERE pk = ?1 AND state = ?6",
                )?
                .execute(params![
                    pk,
                    SUCCEEDED,
                    // Far below 2^63: the file has at most `MAX_BINARY_BYTES`.
                    file.rows as i64,
                    file.size_bytes as i64,
                    file.checksum.as_bytes(),
                    RUNNING
                ])?;
            Ok(changed == 1)
        })
    }

    fn fail_export(&self, id: &str, message: String) -> StoreFuture<bool> {
        let Some(pk) = number_of(id) else { return Box::pin(async { Ok(false) }) };
        self.write("keep that an export failed", WRITE_OVERHEAD + message.len(), move |connection| {
            let changed = connection
                .prepare_cached("UPDATE exports SET state = ?2, message = ?3 WHERE pk = ?1 AND state = ?4")?
                .execute(params![pk, FAILED, message, RUNNING])?;
            Ok(changed == 1)
        })
    }

    fn expire_exports(&self, now: UnixMillis, limit: usize) -> StoreFuture<Vec<String>> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.write("expire exports", WRITE_OVERHEAD, move |connection| {
            let mut statement = connection.prepare_cached(
                "UPDATE exports SET state = ?1 WHERE pk IN \
                 (SELECT pk FROM exports WHERE state = ?2 AND expires_at <= ?3 LIMIT ?4) RETURNING pk",
            )?;
            let ids = statement
                .query_map(params![EXPIRED, SUCCEEDED, now.as_millis(), limit], |row| row.get(0).map(id_of))?;
            Ok(ids.collect::<rusqlite::Result<_>>()?)
        })
    }

    fn forget_exports(&self, before: UnixMillis, limit: usize) -> StoreFuture<usize> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.write("forget exports", WRITE_OVERHEAD, move |connection| {
            let forgotten = connection
                .prepare_cached(
                    "DELETE FROM exports WHERE pk IN \
                     (SELECT pk FROM exports WHERE state IN (?1, ?2) AND expires_at < ?3 LIMIT ?4)",
                )?
                .execute(params![FAILED, EXPIRED, before.as_millis(), limit])?;
            Ok(forgotten)
        })
    }

    fn fail_running_exports(&self, message: &str) -> StoreFuture<usize> {
        let message = message.to_owned();
        self.write("fail exports that nobody writes", WRITE_OVERHEAD + message.len(), move |connection| {
            let failed = connection
                .prepare_cached("UPDATE exports SET state = ?1, message = ?2 WHERE state = ?3")?
                .execute(params![FAILED, message, RUNNING])?;
            Ok(failed)
        })
    }

    fn exports_with_file(&self) -> Result<HashSet<String>, StoreError> {
        let connection = connection::open_reader(&self.path)?;
        let failed = |source| classify("read which exports have files", source);
        let mut statement = connection.prepare("SELECT pk FROM exports WHERE state = ?1").map_err(failed)?;
        let rows = statement.query_map([SUCCEEDED], |row| row.get(0).map(id_of)).map_err(failed)?;
        rows.collect::<Result<_, _>>().map_err(failed)
    }
}

fn id_of(pk: i64) -> String {
    format!("{ID_PREFIX}{pk:03}")
}

fn record(row: &Row<'_>) -> rusqlite::Result<ExportRecord> {
    Ok(ExportRecord {
        id: id_of(row.get(0)?),
        form: row.get(1)?,
        subject: row.get(2)?,
        state: match row.get(3)? {
            RUNNING => ExportState::Running,
            SUCCEEDED => ExportState::Succeeded,
            EXPIRED => ExportState::Expired,
            _ => ExportState::Failed,
        },
        requested_at: UnixMillis::from_millis_clamped(row.get(4)?),
        expires_at: UnixMillis::from_millis_clamped(row.get(5)?),
        rows: row.get::<_, i64>(6)?.unsigned_abs(),
        size_bytes: row.get::<_, i64>(7)?.unsigned_abs(),
        checksum: row.get::<_, Option<[u8; 32]>>(8)?.map(Checksum::from_bytes),
        message: row.get(9)?,
    })
}

/// The key in an id, if it is written as this store writes it: `exp-1` and `exp-0001` are not `exp-001`.
fn number_of(id: &str) -> Option<i64> {
    let number = id.strip_prefix(ID_PREFIX)?.parse().ok()?;
    (id_of(number) == id).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: UnixMillis = UnixMillis::from_unix_seconds(1_700_000_000);

    fn in_seconds(seconds: i64) -> UnixMillis {
        UnixMillis::from_millis_clamped(AT.as_millis() + 1_000 * seconds)
    }

    fn export(seconds: i64) -> NewExport {
        NewExport { form: "CSV", subject: "DEVICE_METRICS", requested_at: AT, expires_at: in_seconds(seconds) }
    }

    const FILE: ExportedFile = ExportedFile { rows: 3, size_bytes: 100, checksum: Checksum::from_bytes([7; 32]) };

    #[tokio::test]
    async fn an_export_ends_once() {
        let folder = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&folder.path().join("registry.db")).unwrap();
        let first = store.begin_export(export(60)).await.unwrap();
        assert_eq!((first.id.as_str(), first.state), ("exp-001", ExportState::Running));
        let later = UnixMillis::from_unix_seconds(1_900_000_000);
        assert!(store.prolong_export("exp-001", later).await.unwrap());
        assert!(store.finish_export("exp-001", FILE).await.unwrap());
        assert!(!store.prolong_export("exp-001", UnixMillis::EPOCH).await.unwrap(), "what was promised stays");
        assert_eq!(store.export("exp-001").await.unwrap().unwrap().expires_at, later);
        assert!(!store.fail_export("exp-001", "late".into()).await.unwrap());
        let kept = store.export("exp-001").await.unwrap().unwrap();
        assert_eq!((kept.state, kept.rows, kept.size_bytes), (ExportState::Succeeded, 3, 100));
        assert_eq!((kept.checksum, kept.message.as_str()), (Some(FILE.checksum), ""));

        let second = store.begin_export(export(60)).await.unwrap();
        assert!(store.fail_export(&second.id, "the disk is full".into()).await.unwrap());
        assert!(!store.finish_export(&second.id, FILE).await.unwrap());
        let kept = store.export(&second.id).await.unwrap().unwrap();
        assert_eq!((kept.state, kept.message.as_str()), (ExportState::Failed, "the disk is full"));
        assert_eq!(store.exports_with_file().unwrap(), HashSet::from(["exp-001".to_owned()]));
        for id in ["", "exp-", "exp-1", "exp-0001", "exp--01", "EXP-001", "exp-999", "bin-001", "exp-001.csv"] {
            assert_eq!(store.export(id).await.unwrap(), None, "{id}");
        }
    }

    #[tokio::test]
    async fn files_expire_and_records_are_forgotten_later() {
        let folder = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&folder.path().join("registry.db")).unwrap();
        for seconds in [10, 20, 30] {
            let begun = store.begin_export(export(seconds)).await.unwrap();
            assert!(store.finish_export(&begun.id, FILE).await.unwrap());
        }
        let running = store.begin_export(export(10)).await.unwrap();
        assert_eq!(store.expire_exports(in_seconds(9), 10).await.unwrap(), Vec::<String>::new());
        assert_eq!(store.expire_exports(in_seconds(20), 1).await.unwrap().len(), 1);
        assert_eq!(store.expire_exports(in_seconds(20), 10).await.unwrap().len(), 1);
        assert_eq!(store.export("exp-001").await.unwrap().unwrap().state, ExportState::Expired);
        assert_eq!(store.export(&running.id).await.unwrap().unwrap().state, ExportState::Running);
        assert_eq!(store.forget_exports(in_seconds(20), 10).await.unwrap(), 1, "the first alone");
        assert_eq!(store.export("exp-001").await.unwrap(), None);
        assert_eq!(store.fail_running_exports("the server stopped").await.unwrap(), 1);
        assert_eq!(store.export(&running.id).await.unwrap().unwrap().message, "the server stopped");
        // An id is never given twice.
        assert_eq!(store.begin_export(export(10)).await.unwrap().id, "exp-005");
    }
}
