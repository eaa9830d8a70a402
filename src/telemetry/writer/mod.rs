//! The writer: takes the journal into ClickHouse, exactly once, and lets the journal forget only what was counted there.
//!
//! | file | what it owns |
//! |---|---|
//! | `handle` | what the rest of the server sees |
//! | `task` | the loop: read, send, commit, audit, trim |
//! | `source` | the journal as batches |
//! | `batch` | rows of a range of the journal, as the bytes of inserts |
//! | `plan` | when to send, under which token, what is missing; pure |
//! | `checkpoint` | what was acknowledged and what is on its way, on disk |
//! | `deliver` | one batch, whatever ClickHouse or the network do |
//! | `presence` | the questions to ClickHouse that settle doubt |
//! | `audit` | counts a segment before it is deleted, repairs what is missing |
//! | `set_aside` | rows that ClickHouse will not have |
//!
//! The promise holds because nothing rests on one mechanism: a batch has the same range and token whenever it is sent;
//! after any doubt ClickHouse is asked which rows it has; and the journal keeps every record until its segment was
//! counted. A writer that dies at any instruction leaves behind rows that are in ClickHouse, or in the journal, or both,
//! and the next run tells these apart by asking.
mod audit;
mod backoff;
mod batch;
mod checkpoint;
mod deliver;
mod handle;
mod plan;
mod presence;
mod set_aside;
mod source;
mod status;
mod task;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

pub(in crate::telemetry) use backoff::Backoff;
pub use batch::{MAX_BATCH_BYTES, MAX_BATCH_ROWS};
pub use checkpoint::CheckpointError;
pub(in crate::telemetry) use deliver::chain;
pub use handle::{NotReached, WriterHandle};
pub use plan::BATCH_EVERY;
pub use set_aside::SetAsideError;
pub use status::WriterStatus;

use super::clickhouse::ClickHouse;
use super::journal::Journal;
use super::schema::Retention;

/// What an operator may choose about the writer.
#[derive(Clone, Debug)]
pub struct WriterOptions {
    /// The server's data directory, which must exist: holds `writer.checkpoint` and `set-aside/`.
    pub data_dir: PathBuf,
    /// As the tables have it: rows past it are not missed by the audit.
    pub retention: Retention,
    /// How often what is committed is counted in ClickHouse while no segment is due; a segment is counted in any case
    /// before it is deleted.
    pub audit_every: Duration,
}

impl WriterOptions {
    /// The defaults, in `data_dir`.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self { data_dir: data_dir.into(), retention: Retention::default(), audit_every: Duration::from_secs(60) }
    }
}

/// Why the writer cannot start.
#[derive(Debug, thiserror::Error)]
pub enum WriterError {
    #[error("the writer cannot start")]
    Checkpoint(#[from] CheckpointError),
    #[error("the writer cannot start")]
    SetAside(#[from] SetAsideError),
    #[error("the writer cannot start its thread")]
    Thread(#[source] std::io::Error),
}

/// Starts the writer on a thread of its own, so that neither its reading nor its fsyncs hold up a heartbeat.
///
/// The tables must be there (see [`migrate`](super::schema::migrate)). ClickHouse may be away: the writer waits for it.
pub fn start(journal: Journal, clickhouse: ClickHouse, options: WriterOptions) -> Result<WriterHandle, WriterError> {
    let path = options.data_dir.join("writer.checkpoint");
    let (checkpoint, position) = checkpoint::Checkpoint::open(&path, journal.id())?;
    let set_aside = set_aside::SetAside::open(&options.data_dir.join("set-aside"), journal.id())?;
    let shared = Arc::new(handle::Shared::new());
    let courier = Arc::new(deliver::Courier {
        clickhouse,
        journal: journal.id(),
        set_aside,
        status: Arc::clone(&shared.status),
        accepted: Default::default(),
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(WriterError::Thread)?;
    let thread = std::thread::Builder::new().name("clickhouse-writer".into()).spawn({
        let (journal, shared) = (journal.clone(), Arc::clone(&shared));
        move || {
            // Also when the loop panics: whoever waits for progress must learn that there will be none.
            let _stopped = Stopped(&shared);
            runtime
                .block_on(task::Task::new(journal, courier, options, Arc::clone(&shared), checkpoint, position).run());
        }
    });
    let thread = Arc::new(Mutex::new(Some(thread.map_err(WriterError::Thread)?)));
    Ok(WriterHandle { shared, journal, thread })
}

struct Stopped<'a>(&'a handle::Shared);

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        self.0.stopped();
    }
}
