//! The rest of the server's view of the writer: a cheap handle, and what it shares with the writer's thread.
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{watch, Notify};
use tokio::time::Instant;

use super::status::WriterStatus;
use crate::telemetry::journal::{Journal, Seq};
use crate::telemetry::row::UnixMillis;

/// What was asked of the writer did not happen in time; it goes on trying.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotReached {
    #[error(
        "the journal is in clickhouse through {committed}, not through {wanted}, after the time allowed; \
         the rest stays in the journal and is sent at the next start{}",
        match .last_error { Some(error) => format!("; the last failure was: {error}"), None => String::new() }
    )]
    Deadline { wanted: Seq, committed: Seq, last_error: Option<String> },
    #[error("the writer has stopped at {committed}, before {wanted}; what is missing stays in the journal")]
    Stopped { wanted: Seq, committed: Seq },
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Progress {
    pub committed: Seq,
    pub audited: Seq,
    pub has_stopped: bool,
}

/// No oldest row is on its way.
const NONE: i64 = i64::MIN;

/// Between handle and thread: wishes go one way, progress the other.
pub(super) struct Shared {
    flush_through: AtomicU64,
    audit_through: AtomicU64,
    is_stopping: AtomicBool,
    is_aborted: AtomicBool,
    wake: Notify,
    abort: Notify,
    progress: watch::Sender<Progress>,
    oldest: AtomicI64,
    pub status: Arc<Mutex<WriterStatus>>,
}

impl Shared {
    pub fn new() -> Self {
        Self {
            flush_through: AtomicU64::new(0),
            audit_through: AtomicU64::new(0),
            is_stopping: AtomicBool::new(false),
            is_aborted: AtomicBool::new(false),
            wake: Notify::new(),
            abort: Notify::new(),
            progress: watch::Sender::new(Progress::default()),
            oldest: AtomicI64::new(NONE),
            status: Arc::default(),
        }
    }

    pub async fn woken(&self) {
        self.wake.notified().await;
    }

    pub async fn aborted(&self) {
        self.abort.notified().await;
    }

    pub fn is_aborted(&self) -> bool {
        self.is_aborted.load(Ordering::Acquire)
    }

    pub fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::Acquire)
    }

    pub fn flush_through(&self) -> Seq {
        self.flush_through.load(Ordering::Acquire)
    }

    pub fn audit_through(&self) -> Seq {
        self.audit_through.load(Ordering::Acquire)
    }

    pub fn publish(&self, committed: Seq, audited: Seq) {
        self.progress.send_modify(|progress| (progress.committed, progress.audited) = (committed, audited));
    }

    pub fn stopped(&self) {
        self.progress.send_modify(|progress| progress.has_stopped = true);
    }

    /// When the oldest row on its way was received.
    pub fn set_oldest(&self, received_at: Option<i64>) {
        self.oldest.store(received_at.unwrap_or(NONE), Ordering::Relaxed);
    }
}

/// A handle on the writer. Cheap to clone; the writer goes on when all are dropped, until the process ends.
#[derive(Clone)]
pub struct WriterHandle {
    pub(super) shared: Arc<Shared>,
    pub(super) journal: Journal,
    pub(super) thread: Arc<Mutex<Option<std::thread::JoinHandle<()>>>>,
}

impl WriterHandle {
    /// A snapshot of counters and positions; takes no wait.
    pub fn status(&self) -> WriterStatus {
        let progress = *self.shared.progress.borrow();
        let written_seq = self.journal.written_seq();
        let oldest = self.shared.oldest.load(Ordering::Relaxed);
        let lag_ms = if oldest == NONE { 0 } else { UnixMillis::now().as_millis().saturating_sub(oldest).max(0) };
        WriterStatus {
            is_running: !progress.has_stopped,
            committed_seq: progress.committed,
            audited_seq: progress.audited,
            written_seq,
            lag_records: written_seq.saturating_sub(progress.committed),
            lag: Duration::from_millis(lag_ms as u64),
            ..self.shared.status.lock().clone()
        }
    }

    /// Sends what is written through `through` without waiting for a full batch, and waits until it is committed.
    pub async fn flush(&self, through: Seq, within: Duration) -> Result<(), NotReached> {
        self.shared.flush_through.fetch_max(through, Ordering::AcqRel);
        self.shared.wake.notify_one();
        self.reached(through, within, |progress| progress.committed).await
    }

    /// Flushes, then has everything through `through` counted in ClickHouse, and waits for that.
    pub async fn audit(&self, through: Seq, within: Duration) -> Result<(), NotReached> {
        self.shared.flush_through.fetch_max(through, Ordering::AcqRel);
        self.shared.audit_through.fetch_max(through, Ordering::AcqRel);
        self.shared.wake.notify_one();
        self.reached(through, within, |progress| progress.audited).await
    }

    /// Commits what is written and stops. When `within` is over it stops all the same: nothing is lost, the next start
    /// goes on from there.
    pub async fn shutdown(&self, within: Duration) -> Result<(), NotReached> {
        let through = self.journal.written_seq();
        self.shared.is_stopping.store(true, Ordering::Release);
        self.shared.wake.notify_one();
        let mut progress = self.shared.progress.subscribe();
        let stopped = tokio::time::timeout(within, progress.wait_for(|progress| progress.has_stopped)).await;
        if stopped.is_err() {
            self.abort();
        }
        let committed = self.shared.progress.borrow().committed;
        let last_error = self.shared.status.lock().last_error.clone();
        match committed >= through {
            true => Ok(()),
            false => Err(NotReached::Deadline { wanted: through, committed, last_error }),
        }
    }

    /// Stops at once, wherever the writer is, and waits for its thread. Leaves behind what a crash would.
    pub fn abort(&self) {
        self.shared.is_aborted.store(true, Ordering::Release);
        self.shared.abort.notify_one();
        self.shared.wake.notify_one();
        let thread = self.thread.lock().take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the writer's thread panicked");
        }
    }

    async fn reached(&self, wanted: Seq, within: Duration, of: fn(&Progress) -> Seq) -> Result<(), NotReached> {
        let deadline = Instant::now() + within;
        let mut progress = self.shared.progress.subscribe();
        let reached = progress.wait_for(|progress| of(progress) >= wanted || progress.has_stopped);
        let seen = tokio::time::timeout_at(deadline, reached).await.map(|seen| seen.map(|progress| *progress));
        match seen {
            Ok(Ok(progress)) if of(&progress) >= wanted => Ok(()),
            Ok(Ok(progress)) => Err(NotReached::Stopped { wanted, committed: of(&progress) }),
            // `Shared` holds the sender for as long as this handle lives, so only the time can have run out.
            Ok(Err(_)) | Err(_) => {
                let last_error = self.shared.status.lock().last_error.clone();
                Err(NotReached::Deadline { wanted, committed: of(&self.shared.progress.borrow()), last_error })
            }
        }
    }
}
