//! The rest of the server's view of the builder: a cheap handle, and what it shares with the builder's thread.
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch, Notify};

use super::audit::AuditReport;
use super::coverage::Rollup;
use super::status::RollupStatus;
use crate::clock::UnixMillis;
use crate::telemetry::clickhouse::ClickHouseError;
use crate::telemetry::journal::Seq;

/// Wishes that wait for the thread. Each is a person's or a test's; a ninth waits in its caller.
pub(super) const MAX_REQUESTS: usize = 8;

/// Why the builder did not do what it was asked to do.
#[derive(Debug, thiserror::Error)]
pub enum RollupError {
    #[error("the table {} could not be brought up to date", rollup.table())]
    ClickHouse {
        rollup: Rollup,
        #[source]
        source: ClickHouseError,
    },
    #[error("the builder of the computed tables has stopped")]
    Stopped,
}

/// What an audit looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuditSpan {
    /// The ranges that hold these numbers of the journal, ends included.
    Seqs { first: Seq, last: Seq },
    /// The ranges that hold heartbeats measured in this time, ends included.
    Time { from: UnixMillis, until: UnixMillis },
}

pub(super) enum Request {
    Build(oneshot::Sender<Result<(), RollupError>>),
    Audit(AuditSpan, oneshot::Sender<Result<AuditReport, RollupError>>),
}

/// Between handle and thread.
pub(super) struct Shared {
    is_stopping: AtomicBool,
    /// Ends a pause.
    pub wake: Notify,
    /// Ends a statement, too.
    pub abort: Notify,
    has_stopped: watch::Sender<bool>,
    pub status: Mutex<RollupStatus>,
}

impl Shared {
    pub fn new() -> Self {
        Self {
            is_stopping: AtomicBool::new(false),
            wake: Notify::new(),
            abort: Notify::new(),
            has_stopped: watch::Sender::new(false),
            status: Mutex::new(RollupStatus { is_running: true, ..RollupStatus::default() }),
        }
    }

    pub fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::Acquire)
    }

    pub fn stopped(&self) {
        self.status.lock().is_running = false;
        self.has_stopped.send_replace(true);
    }
}

/// A handle on the builder. Cheap to clone; the builder goes on when all are dropped, until the process ends.
#[derive(Clone)]
pub struct RollupHandle {
    pub(super) shared: Arc<Shared>,
    pub(super) requests: mpsc::Sender<Request>,
    pub(super) thread: Arc<Mutex<Option<std::thread::JoinHandle<()>>>>,
}

impl RollupHandle {
    /// A snapshot; takes no wait.
    pub fn status(&self) -> RollupStatus {
        self.shared.status.lock().clone()
    }

    /// Builds all that is committed into every table now, hours that are not over included.
    ///
    /// # Errors
    /// What was built before ClickHouse failed stays; the builder tries the rest again by itself.
    pub async fn build(&self) -> Result<(), RollupError> {
        let (answer, answered) = oneshot::channel();
        self.requests.send(Request::Build(answer)).await.map_err(|_| RollupError::Stopped)?;
        answered.await.unwrap_or(Err(RollupError::Stopped))
    }

    /// Compares all ranges of a span with their heartbeats, as far as the writer has counted these, and builds those again
    /// that differ. Ranges whose heartbeats may have been dropped by their retention are left as they are.
    ///
    /// # Errors
    /// ClickHouse failed; what was repaired before stays so.
    pub async fn audit(&self, span: AuditSpan) -> Result<AuditReport, RollupError> {
        let (answer, answered) = oneshot::channel();
        self.requests.send(Request::Audit(span, answer)).await.map_err(|_| RollupError::Stopped)?;
        answered.await.unwrap_or(Err(RollupError::Stopped))
    }

    /// Stops after the statement that runs, or without it when `within` is over: the next start builds its range again.
    pub async fn shutdown(&self, within: Duration) {
        self.shared.is_stopping.store(true, Ordering::Release);
        self.shared.wake.notify_one();
        let mut stopped = self.shared.has_stopped.subscribe();
        if tokio::time::timeout(within, stopped.wait_for(|stopped| *stopped)).await.is_err() {
            tracing::info!("a range of a computed table is given up, the next start builds it again");
        }
        self.abort();
    }

    /// Stops at once and waits for the thread. Leaves behind what a crash would.
    pub fn abort(&self) {
        self.shared.is_stopping.store(true, Ordering::Release);
        self.shared.abort.notify_one();
        self.shared.wake.notify_one();
        let thread = self.thread.lock().take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that builds the computed tables panicked");
        }
    }
}
