//! Which exports run, which wait, and how long their files are kept.
//!
//! The registry says what became of each export. One that it calls running when the server starts has nobody who writes it:
//! it failed. A file that it does not call succeeded is removed.
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{watch, Semaphore, SemaphorePermit};

use super::job::{Job, JobError, Tools};
use super::progress::{Progress, Snapshot};
use crate::analytics::pool::AnalystPool;
use crate::artifacts::{BlobError, BlobStore};
use crate::clock::UnixMillis;
use crate::error::ApiError;
use crate::fleet::FleetQueries;
use crate::store::{ExportRecord, ExportState, ExportedFile, NewExport, Store, StoreError};
use crate::telemetry::writer::WriterHandle;

/// Exports that are written at once: each has a core of ClickHouse's, as long as heartbeats are not short of it
/// ([`Pacer`](crate::analytics::Pacer)).
const MAX_RUNNING: usize = 2;

/// Exports that wait. They hold nothing but a few hundred bytes; more than these would wait for hours.
const MAX_WAITING: usize = 16;

/// When to come back to a queue that is full: an export of a few million rows takes so long.
const RETRY_AFTER: Duration = Duration::from_secs(30);

/// How often it is looked for files that have expired.
const EXPIRE_EVERY: Duration = Duration::from_secs(5);

/// Exports that expire at once; what is more waits for the next time.
const EXPIRE_AT_ONCE: usize = 100;

/// How long an export without a file can be asked for, so that a program that comes late learns what became of it.
const REMEMBERED_FOR: Duration = Duration::from_secs(30 * 86_400);

/// How long a stop waits until running exports have noted that they failed. The next start does it for those that have not.
const STOP_WITHIN: Duration = Duration::from_secs(1);

/// What exports are made of.
pub struct Parts {
    pub store: Arc<dyn Store>,
    pub queries: FleetQueries,
    pub pool: AnalystPool,
    pub blobs: BlobStore,
    pub writer: WriterHandle,
    pub stopping: watch::Receiver<bool>,
    /// How long an export may wait, then how long writing and keeping its file may take together.
    pub retention: Duration,
}

/// Why exports cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ExportsError {
    #[error(transparent)]
    Blobs(#[from] BlobError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// For `/metrics`.
#[derive(Debug, Default)]
pub struct ExportCounters {
    pub succeeded: AtomicU64,
    pub failed: AtomicU64,
    /// Turned away because too many waited.
    pub refused: AtomicU64,
    /// Of files that are whole.
    pub bytes: AtomicU64,
}

/// Cheap, cloneable handle.
#[derive(Clone)]
pub struct Exports(Arc<Inner>);

struct Inner {
    store: Arc<dyn Store>,
    tools: Tools,
    stopping: watch::Receiver<bool>,
    retention: Duration,
    places: Semaphore,
    /// Those that are written or wait, by their ids.
    running: Mutex<HashMap<String, Arc<Progress>>>,
    /// Why those failed for which the registry did not take that they did, by their ids.
    unrecorded: Mutex<HashMap<String, String>>,
    /// Those that are let in; also those that have no id yet.
    admitted: watch::Sender<usize>,
    counters: ExportCounters,
}

/// Leaves the count of the admitted, however its export ends.
struct Admitted(Arc<Inner>);

impl Drop for Admitted {
    fn drop(&mut self) {
        self.0.admitted.send_modify(|admitted| *admitted -= 1);
    }
}

/// An export that is written or waits. It is no more however its task ends, and has failed where the task panicked.
struct Running {
    exports: Exports,
    id: String,
    progress: Arc<Progress>,
}

impl Running {
    fn note(exports: &Exports, id: &str) -> Self {
        let progress = Arc::new(Progress::default());
        exports.0.running.lock().insert(id.to_owned(), Arc::clone(&progress));
        Self { exports: exports.clone(), id: id.to_owned(), progress }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let inner = &self.exports.0;
        if std::thread::panicking() {
            let message = "the export failed inside; ask for it again, and report it with the server's log".to_owned();
            inner.unrecorded.lock().insert(self.id.clone(), message);
            inner.counters.failed.fetch_add(1, Ordering::Relaxed);
        }
        inner.running.lock().remove(&self.id);
    }
}

impl Exports {
    /// Fails what was running when the server ended, removes what is left of it, and keeps watch over the files from now on.
    pub async fn start(parts: Parts) -> Result<Self, ExportsError> {
        let Parts { store, queries, pool, blobs, writer, stopping, retention } = parts;
        let failed =
            store.fail_running_exports("the server ended while the export was written; ask for it again").await?;
        let known = store.exports_with_file()?;
        let removed = blobs.remove_unknown_exports(|id| known.contains(id)).await?;
        if failed + removed as usize > 0 {
            tracing::info!(failed, removed, "exports that the last run did not finish have failed");
        }
        let exports = Self(Arc::new(Inner {
            store,
            // An export that has waited for its place waits for its turns as well.
            tools: Tools { queries, pool: pool.for_the_patient(), blobs, writer },
            stopping,
            retention,
            places: Semaphore::new(MAX_RUNNING),
            running: Mutex::default(),
            unrecorded: Mutex::default(),
            admitted: watch::Sender::new(0),
            counters: ExportCounters::default(),
        }));
        tokio::spawn(exports.clone().keep());
        Ok(exports)
    }

    pub fn counters(&self) -> &ExportCounters {
        &self.0.counters
    }

    /// Exports that are written or wait.
    pub fn under_way(&self) -> usize {
        *self.0.admitted.borrow()
    }

    /// Begins an export, which goes on whatever its caller does from then on; not to be dropped before. The receiver's sender is dropped when it is over.
    ///
    /// # Errors
    /// UNAVAILABLE when too many wait, or the registry does not take it.
    pub async fn begin(&self, job: Job) -> Result<(ExportRecord, watch::Receiver<()>), ApiError> {
        let admitted = self.admit()?;
        let requested_at = UnixMillis::now();
        let expires_at = self.expiry_from(requested_at);
        let export = NewExport { form: job.form.name(), subject: job.subject.name(), requested_at, expires_at };
        let record = self.0.store.begin_export(export).await?;
        let running = Running::note(self, &record.id);
        let (over, is_over) = watch::channel(());
        let exports = self.clone();
        tokio::spawn(async move {
            exports.carry_out(&running.id, &job, &running.progress, expires_at).await;
            drop((running, admitted, over));
        });
        Ok((record, is_over))
    }

    fn expiry_from(&self, begin: UnixMillis) -> UnixMillis {
        let retention = i64::try_from(self.0.retention.as_millis()).unwrap_or(i64::MAX);
        UnixMillis::from_millis_clamped(begin.as_millis().saturating_add(retention))
    }

    fn admit(&self) -> Result<Admitted, ApiError> {
        let mut is_admitted = false;
        self.0.admitted.send_modify(|admitted| {
            is_admitted = *admitted < MAX_RUNNING + MAX_WAITING;
            *admitted += usize::from(is_admitted);
        });
        if is_admitted {
            return Ok(Admitted(Arc::clone(&self.0)));
        }
        self.0.counters.refused.fetch_add(1, Ordering::Relaxed);
        let message = format!(
            "{MAX_RUNNING} exports are being written and {MAX_WAITING} wait, the most at once; try again in a while"
        );
        Err(ApiError::unavailable(message, RETRY_AFTER))
    }

    /// The export with this id, and how far it is.
    pub async fn look(&self, id: &str) -> Result<Option<(ExportRecord, Snapshot)>, StoreError> {
        let progress = self.0.running.lock().get(id).cloned();
        let unrecorded = self.0.unrecorded.lock().get(id).cloned();
        let Some(mut record) = self.0.store.export(id).await? else { return Ok(None) };
        if let (ExportState::Running, None, Some(message)) = (record.state, &progress, unrecorded) {
            (record.state, record.message) = (ExportState::Failed, message);
        }
        Ok(Some((record, progress.map(|progress| progress.snapshot()).unwrap_or_default())))
    }

    async fn carry_out(&self, id: &str, job: &Job, progress: &Progress, expires_at: UnixMillis) {
        let outcome = match self.turn(id, expires_at).await {
            Ok((_place, expires_at)) => tokio::select! {
                outcome = self.write(id, job, progress) => outcome,
                () = self.stopped() => Err(JobError::Stopping.to_string()),
                () = expired(expires_at) => Err(JobError::Expired.to_string()),
            },
            Err(error) => Err(error.to_string()),
        };
        let counters = &self.0.counters;
        match outcome {
            Ok(file) => {
                counters.succeeded.fetch_add(1, Ordering::Relaxed);
                counters.bytes.fetch_add(file.size_bytes, Ordering::Relaxed);
                tracing::info!(id, rows = file.rows, bytes = file.size_bytes, "export is whole");
            }
            Err(message) => {
                counters.failed.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(id, message, "export failed");
                self.fail(id, message).await;
            }
        }
    }

    /// Waits for a place, until the time that the export was given at first. It has that time anew once it has a place, or
    /// the file of one that waited would be removed as soon as it is whole, or before.
    async fn turn(&self, id: &str, expires_at: UnixMillis) -> Result<(SemaphorePermit<'_>, UnixMillis), JobError> {
        if let Ok(place) = self.0.places.try_acquire() {
            return Ok((place, expires_at));
        }
        let place = tokio::select! {
            // Never closed.
            place = self.0.places.acquire() => place.map_err(|_| JobError::Stopping)?,
            () = self.stopped() => return Err(JobError::Stopping),
            () = expired(expires_at) => return Err(JobError::NeverBegan),
        };
        let prolonged = self.expiry_from(UnixMillis::now());
        match self.0.store.prolong_export(id, prolonged).await {
            Ok(_) => Ok((place, prolonged)),
            Err(error) => {
                let cause = &error as &dyn std::error::Error;
                tracing::warn!(
                    id,
                    cause,
                    "the registry does not take that an export begins, it has the time that is left"
                );
                Ok((place, expires_at))
            }
        }
    }

    /// Records that an export failed, now or when the registry can. What the registry calls whole it leaves alone: the
    /// export may have been told to end in the moment in which it succeeded.
    async fn fail(&self, id: &str, message: String) {
        let recorded = self.0.store.fail_export(id, message.clone()).await;
        if recorded.is_ok() {
            self.0.unrecorded.lock().remove(id);
        }
        match recorded {
            Ok(true) => self.remove_file(id).await,
            Ok(false) => {}
            Err(error) => {
                let cause = &error as &dyn std::error::Error;
                tracing::warn!(id, cause, "the registry does not take that an export failed, it is told again later");
                self.0.unrecorded.lock().insert(id.to_owned(), message);
            }
        }
    }

    async fn write(&self, id: &str, job: &Job, progress: &Progress) -> Result<ExportedFile, String> {
        let mark = format!("fleetd {id} {}", uuid::Uuid::new_v4().simple());
        let (kept, rows) = job.run(&self.0.tools, &mark, progress).await.map_err(|error| {
            tracing::warn!(id, cause = &error as &dyn std::error::Error, "export broke off");
            error.to_string()
        })?;
        let file = ExportedFile { rows, size_bytes: kept.size_bytes, checksum: kept.checksum };
        kept.publish_export(id).await.map_err(|error| JobError::Store(error).to_string())?;
        match self.0.store.finish_export(id, file).await {
            Ok(true) => Ok(file),
            Ok(false) => Err("the registry does not know the export any more".to_owned()),
            Err(error) => Err(format!("the registry does not take that the file is whole: {error}")),
        }
    }

    async fn remove_file(&self, id: &str) {
        if let Err(error) = self.0.tools.blobs.remove_export(id).await {
            let cause = &error as &dyn std::error::Error;
            tracing::warn!(id, cause, "the file of an export stays until the next start");
        }
    }

    /// Returns when the server is told to stop.
    async fn stopped(&self) {
        // An error means that the sender is gone, which only happens when the server is.
        let _ = self.0.stopping.clone().wait_for(|is_stopping| *is_stopping).await;
    }

    /// Waits a little until what was running has noted that it failed.
    pub async fn stop(&self) {
        let mut admitted = self.0.admitted.subscribe();
        let ended = tokio::time::timeout(STOP_WITHIN, admitted.wait_for(|admitted| *admitted == 0)).await;
        if ended.is_err() {
            tracing::warn!("exports are still ending; the next start notes that they failed");
        }
    }

    /// Removes files whose time is over, until the server stops.
    async fn keep(self) {
        let mut ticks = tokio::time::interval(EXPIRE_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = self.stopped() => return,
            }
            let unrecorded = self.0.unrecorded.lock().clone();
            for (id, message) in unrecorded {
                self.fail(&id, message).await;
            }
            if let Err(error) = self.expire(UnixMillis::now()).await {
                tracing::warn!(cause = &error as &dyn std::error::Error, "exports could not be expired");
            }
        }
    }

    /// Registry first: a file that is gone must not be one that the registry promises.
    async fn expire(&self, now: UnixMillis) -> Result<(), StoreError> {
        for id in self.0.store.expire_exports(now, EXPIRE_AT_ONCE).await? {
            self.remove_file(&id).await;
        }
        let remembered = i64::try_from(REMEMBERED_FOR.as_millis()).unwrap_or(i64::MAX);
        let before = UnixMillis::from_millis_clamped(now.as_millis().saturating_sub(remembered));
        self.0.store.forget_exports(before, EXPIRE_AT_ONCE).await.map(drop)
    }
}

/// Returns at this time by the wall clock, which may jump: it is looked at now and then.
async fn expired(at: UnixMillis) {
    while UnixMillis::now() < at {
        let left = u64::try_from(at.as_millis() - UnixMillis::now().as_millis()).unwrap_or(0);
        tokio::time::sleep(Duration::from_millis(left.clamp(10, 60_000))).await;
    }
}
