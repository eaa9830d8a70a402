//! The tables that are computed from heartbeats, and how far they are.
//!
//! A journal's numbers are cut into ranges that do not overlap. A builder takes a range once all its rows are in
//! ClickHouse, aggregates them with one INSERT … SELECT, and then moves on what [`Coverage`] says. So at any moment a
//! heartbeat is either in a computed table (its number is covered) or still to be read from `heartbeats`, never both: a
//! reader that takes the covered part from the one and the rest from the other is exact, however late rows came.
//!
//! | file | what it owns |
//! |---|---|
//! | `handle` | what the rest of the server sees |
//! | `task` | the loop: what to build, in which order, when |
//! | `plan` | which range is next; pure |
//! | `build` | the statements, with what they may cost |
//! | `sql` | their text |
//! | `progress` | how far each table is, in ClickHouse |
//! | `coverage` | the same, for those who ask questions |
//! | `audit` | compares ranges with their heartbeats, and builds those again that differ |
//!
//! A range is written down before its first attempt and is the same whenever it is tried again; each attempt has a
//! greater generation, and its rows replace those of the attempts before it. So a statement that was killed in the middle,
//! or arrives late, leaves nothing behind that counts. See docs/decisions/0010.
mod audit;
mod build;
pub mod coverage;
mod handle;
mod plan;
mod progress;
mod sql;
mod status;
mod task;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::mpsc;

pub use audit::AuditReport;
pub use coverage::{Coverage, Rollup};
pub use handle::{AuditSpan, RollupError, RollupHandle};
pub use status::{RollupStatus, TableStatus};

use super::clickhouse::ClickHouse;
use super::journal::{JournalId, Seq};
use super::schema::Retention;

/// How often minutes are built by default: what is not built yet is read from heartbeats, at most as many as come in a
/// minute or two.
pub const DEFAULT_EVERY: Duration = Duration::from_secs(60);

/// Hours are built once for so many passes: a pass a minute makes one range an hour.
const PASSES_OF_HOURS: u32 = 60;

/// What an operator may choose about the builder.
#[derive(Clone, Copy, Debug)]
pub struct RollupOptions {
    /// From one pass to the next, before jitter.
    pub every: Duration,
    /// As the tables have it: a range whose heartbeats may be dropped already is never built again.
    pub retention: Retention,
}

impl Default for RollupOptions {
    fn default() -> Self {
        Self { every: DEFAULT_EVERY, retention: Retention::default() }
    }
}

/// How far the writer is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Positions {
    /// All heartbeats through this number are in ClickHouse.
    pub committed: Seq,
    /// All through this number were counted there: none of them will be sent again.
    pub audited: Seq,
}

/// What the builder works on.
pub struct Parts {
    /// Its own journal: each server builds what it has written.
    pub journal: JournalId,
    /// Asked at each pass.
    pub positions: Box<dyn Fn() -> Positions + Send>,
    pub clickhouse: ClickHouse,
    pub coverage: Coverage,
}

/// Starts the builder on a thread of its own. ClickHouse and its tables may be away: it waits for them.
///
/// # Errors
/// The system has no thread for it.
pub fn start(parts: Parts, options: RollupOptions) -> std::io::Result<RollupHandle> {
    let shared = Arc::new(handle::Shared::new());
    let (requests, received) = mpsc::channel(handle::MAX_REQUESTS);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let thread = std::thread::Builder::new().name("rollups".into()).spawn({
        let shared = Arc::clone(&shared);
        move || {
            // Also when it panics: whoever waits for it must learn that it is over.
            let _stopped = Stopped(&shared);
            runtime.block_on(task::Task::new(parts, options, Arc::clone(&shared)).run(received));
        }
    })?;
    Ok(RollupHandle { shared, requests, thread: Arc::new(Mutex::new(Some(thread))) })
}

struct Stopped<'a>(&'a handle::Shared);

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        self.0.stopped();
    }
}
