//! How the database is opened: one connection that writes, a few that only read.
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use super::error::open_error;
use super::migrations;
use crate::store::StoreError;

/// How long a statement waits for a lock of another process (`sqlite3`, a backup) before it gives up.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Prepared statements kept a connection; more than there are different ones.
const STATEMENT_CACHE: usize = 128;

/// Each connection is used by one thread at a time, so SQLite's own mutexes would only cost.
const FLAGS: OpenFlags = OpenFlags::SQLITE_OPEN_NO_MUTEX;

/// `journal_mode = WAL`: readers see a snapshot and never block the writer, and a commit is one sequential append.
///
/// `synchronous = FULL`: the log is fsynced at each commit, so what was acknowledged survives a power cut. With
/// NORMAL it would be fsynced only when the log is copied back: a killed process would lose nothing then either,
/// but a power cut could take back the last commits, devices would hold keys that the registry never heard of, and
/// nobody could tell. EXTRA adds nothing in WAL mode. The price is one fsync a transaction, which group commit
/// shares among all writes that wait; `fullfsync` is what makes an fsync real on macOS.
///
/// `wal_autocheckpoint`: 16 MiB of log (4,096 pages of 4 KiB) before it is copied back, so that a bulk
/// registration copies a page once for many commits that touched it. `journal_size_limit`: a log that a long read
/// let grow is cut back to 64 MiB. `cache_size` (KiB, negative): the inner pages of all indexes at a million
/// devices, and most leaves.
const WRITER_PRAGMAS: &str = "
    PRAGMA journal_mode = WAL;
    PRAGMA synchronous = FULL;
    PRAGMA fullfsync = ON;
    PRAGMA checkpoint_fullfsync = ON;
    PRAGMA wal_autocheckpoint = 4096;
    PRAGMA journal_size_limit = 67108864;
    PRAGMA cache_size = -65536;
    PRAGMA foreign_keys = ON;
    PRAGMA trusted_schema = OFF;
";

const READER_PRAGMAS: &str = "
    PRAGMA query_only = ON;
    PRAGMA cache_size = -8192;
    PRAGMA trusted_schema = OFF;
";

/// Opens the database for writing; makes it if there is none, and brings its schema up to date.
///
/// # Errors
/// As [`super::open`].
pub fn open_writer(path: &Path) -> Result<Connection, StoreError> {
    let failed = |source| open_error(path, source);
    let flags = FLAGS | OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
    let mut connection = Connection::open_with_flags(path, flags).map_err(failed)?;
    connection.busy_timeout(BUSY_TIMEOUT).map_err(failed)?;
    connection.set_prepared_statement_cache_capacity(STATEMENT_CACHE);
    // Before the pragmas: switching the journal's mode writes to the file, and it may be somebody else's.
    migrations::check(&connection, path)?;
    connection.execute_batch(WRITER_PRAGMAS).map_err(failed)?;
    migrations::migrate(&mut connection, path)?;
    sync_directory(path)?;
    Ok(connection)
}

/// Opens the database for reading; the writer has been opened before.
pub fn open_reader(path: &Path) -> Result<Connection, StoreError> {
    let failed = |source| open_error(path, source);
    let connection = Connection::open_with_flags(path, FLAGS | OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(failed)?;
    connection.busy_timeout(BUSY_TIMEOUT).map_err(failed)?;
    connection.set_prepared_statement_cache_capacity(STATEMENT_CACHE);
    connection.execute_batch(READER_PRAGMAS).map_err(failed)?;
    Ok(connection)
}

/// Makes the names of a new database and of its log survive a power cut.
fn sync_directory(path: &Path) -> Result<(), StoreError> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(|source| StoreError::Open {
        operation: "sync the directory",
        path: directory.to_owned(),
        source: Arc::new(source),
    })
}
