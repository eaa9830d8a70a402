//! The schema, as numbered steps that are applied when the database is opened.
//!
//! The number of the last step applied is the database's `user_version`. All steps that are missing run in one
//! transaction, so a start that dies half way leaves the schema as it was. A step that was released is never
//! edited: a change is a new step.
use std::path::Path;

use rusqlite::{Connection, TransactionBehavior};

use super::error::{classify, open_error};
use crate::store::StoreError;

/// In order; the first is version 1.
const MIGRATIONS: &[&str] = &[
    include_str!("migrations/0001_devices.sql"),
    include_str!("migrations/0002_heartbeat_interval.sql"),
    include_str!("migrations/0003_commands.sql"),
    include_str!("migrations/0004_offline.sql"),
    include_str!("migrations/0005_updates.sql"),
    include_str!("migrations/0006_binaries.sql"),
    include_str!("migrations/0007_exports.sql"),
    include_str!("migrations/0008_late.sql"),
];

/// "fltd" in ASCII, the `application_id` by which `file` and the next start know the database.
const APPLICATION_ID: i64 = 0x666c_7464;

/// Makes sure that the database at `path` is one that this program may change; changes nothing.
///
/// # Errors
/// [`StoreError::Foreign`] for a database of another program, [`StoreError::Newer`] for one of a newer fleetd.
pub fn check(connection: &Connection, path: &Path) -> Result<(), StoreError> {
    applied_steps(connection, path, MIGRATIONS.len()).map(drop)
}

/// Brings the database at `path` to this program's schema.
///
/// # Errors
/// As [`check`], and when a step fails; the schema is then as it was.
pub fn migrate(connection: &mut Connection, path: &Path) -> Result<(), StoreError> {
    migrate_with(connection, path, MIGRATIONS)
}

fn migrate_with(connection: &mut Connection, path: &Path, migrations: &[&str]) -> Result<(), StoreError> {
    let failed = |source| classify("bring the registry's schema up to date", source);
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
    let applied = applied_steps(&transaction, path, migrations.len())?;
    if applied == migrations.len() {
        return Ok(());
    }
    for sql in &migrations[applied..] {
        transaction.execute_batch(sql).map_err(failed)?;
    }
    transaction.pragma_update(None, "application_id", APPLICATION_ID).map_err(failed)?;
    transaction.pragma_update(None, "user_version", migrations.len() as i64).map_err(failed)?;
    transaction.commit().map_err(failed)?;
    tracing::info!(from = applied, to = migrations.len(), path = %path.display(), "registry schema migrated");
    Ok(())
}

/// How many steps the database has seen.
fn applied_steps(connection: &Connection, path: &Path, supported: usize) -> Result<usize, StoreError> {
    let fact = |sql| connection.query_row(sql, [], |row| row.get::<_, i64>(0)).map_err(|e| open_error(path, e));
    let foreign = || StoreError::Foreign { path: path.to_owned(), what: "a database of another program" };
    let application_id = fact("PRAGMA application_id")?;
    let tables = fact("SELECT count(*) FROM sqlite_schema")?;
    let version = fact("PRAGMA user_version")?;
    match (application_id, usize::try_from(version)) {
        (APPLICATION_ID, Ok(applied)) if applied <= supported => Ok(applied),
        (APPLICATION_ID, Ok(_)) => {
            Err(StoreError::Newer { path: path.to_owned(), found: version, supported: supported as i64 })
        }
        (0, Ok(0)) if tables == 0 => Ok(0),
        _ => Err(foreign()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(connection: &Connection) -> i64 {
        connection.query_row("PRAGMA user_version", [], |row| row.get(0)).unwrap()
    }

    #[test]
    fn each_step_runs_once_and_in_order() {
        let mut connection = Connection::open_in_memory().unwrap();
        let path = Path::new("registry.db");
        let steps = ["CREATE TABLE a (x)", "ALTER TABLE a RENAME TO b", "INSERT INTO b VALUES (7)"];
        migrate_with(&mut connection, path, &steps[..1]).unwrap();
        assert_eq!(version(&connection), 1);
        migrate_with(&mut connection, path, &steps).unwrap();
        migrate_with(&mut connection, path, &steps).unwrap();
        assert_eq!(version(&connection), 3);
        let rows: i64 = connection.query_row("SELECT count(*) FROM b", [], |row| row.get(0)).unwrap();
        assert_eq!(rows, 1);
    }

    #[test]
    fn a_step_that_fails_undoes_those_before_it() {
        let mut connection = Connection::open_in_memory().unwrap();
        let path = Path::new("registry.db");
        migrate_with(&mut connection, path, &["CREATE TABLE a (x)"]).unwrap();
        let steps = ["CREATE TABLE a (x)", "CREATE TABLE b (x)", "CREATE TABLE a (x)"];
        migrate_with(&mut connection, path, &steps).unwrap_err();
        assert_eq!(version(&connection), 1);
        assert!(connection.prepare("SELECT * FROM b").is_err());
    }

    #[test]
    fn a_newer_schema_is_refused_with_both_numbers() {
        let mut connection = Connection::open_in_memory().unwrap();
        let path = Path::new("registry.db");
        migrate_with(&mut connection, path, &["CREATE TABLE a (x)", "CREATE TABLE b (x)"]).unwrap();
        let error = migrate_with(&mut connection, path, &["CREATE TABLE a (x)"]).unwrap_err();
        assert!(matches!(error, StoreError::Newer { found: 2, supported: 1, .. }), "{error}");
        assert!(error.to_string().starts_with("registry.db was written by a newer fleetd (schema 2; "), "{error}");
    }

    #[test]
    fn another_programs_database_is_refused_and_untouched() {
        for sql in ["CREATE TABLE photos (x)", "PRAGMA application_id = 7"] {
            let mut connection = Connection::open_in_memory().unwrap();
            connection.execute_batch(sql).unwrap();
            let error = migrate(&mut connection, Path::new("registry.db")).unwrap_err();
            assert!(matches!(error, StoreError::Foreign { .. }), "{error}");
            assert!(connection.prepare("SELECT * FROM devices").is_err());
        }
    }
}
