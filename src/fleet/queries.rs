//! Runs queries on threads of their own, so that a list holds up neither the worker that took the request nor the
//! heartbeats of the devices that worker serves.
//!
//! The threads run at a lower priority than the workers. On an idle machine a query takes all that it can use; on a
//! busy one heartbeats go first, since a device that is not answered repeats itself, and a person waits a moment.
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::{bounded, Receiver, Sender, TrySendError};
use tokio::sync::oneshot;

use super::members::Members;
use super::scan::{Page, Selection};
use super::targets::{Survey, SurveyRequest};
use super::{CheckupRequest, Examined, FleetIndex, OnlineNow};
use crate::error::{ApiError, ErrorCode};
use crate::health::HealthRules;
use crate::presence::Moment;
use crate::query::{Field, Filter, OrderBy, SortValue};

/// Queries that may wait. One takes 5 to 30 ms over a million devices (docs/performance.md), so the last of a full
/// queue waits a second or two, which is as long as a person does.
const QUEUE: usize = 64;

/// How long a query may wait for a thread. Who waited longer has given up or tries again, and an answer would only
/// take the time of those behind.
const MAX_WAIT: Duration = Duration::from_secs(5);

/// How long a query may work. The costliest that is of use (a text in the metadata of a million devices) takes a tenth
/// of it; a filter of a thousand substrings could take a minute, and is stopped.
const MAX_WORK: Duration = Duration::from_secs(2);

/// Lower priority of the threads: at 8 a thread gets a sixth of what a worker gets, when both want the same core
/// (weights 172 and 1,024 in Linux's scheduler). So lists that never end cost full workers on two cores a tenth.
#[cfg(target_os = "linux")]
const NICENESS: libc::c_int = 8;

/// When to try again after [`QueryFailure::Busy`].
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Why a query has no answer.
#[derive(Debug, thiserror::Error)]
pub enum QueryFailure {
    #[error("too many lists and selections of devices are waiting; try again in a moment")]
    Busy,
    #[error(
        "the query was stopped after {} ms, with {percent} % of the fleet looked at; ask for fewer texts, or narrow it \
         by status, type or another plain field",
        MAX_WORK.as_millis()
    )]
    TooCostly { percent: usize },
    #[error("nobody waits for the query any more")]
    Abandoned,
    #[error("the query failed inside; report it with the server's log")]
    Died,
    #[error("the server is stopping")]
    Closed,
}

impl From<QueryFailure> for ApiError {
    fn from(failure: QueryFailure) -> Self {
        let message = failure.to_string();
        match failure {
            QueryFailure::Busy | QueryFailure::Closed => Self::unavailable(message, RETRY_AFTER),
            QueryFailure::TooCostly { .. } => Self::new(ErrorCode::ResourceExhausted, message),
            QueryFailure::Abandoned => Self::new(ErrorCode::Canceled, message),
            QueryFailure::Died => Self::internal(message),
        }
    }
}

/// What queries have done since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueryStats {
    /// Run to their end.
    pub answered: u64,
    /// Turned away because too many waited, or because they had waited too long.
    pub refused: u64,
    /// Stopped because they cost too much.
    pub stopped: u64,
    /// Microseconds that queries worked, waiting not counted.
    pub work_micros: u64,
    /// Waiting now.
    pub waiting: u64,
}

#[derive(Default)]
struct Counters {
    answered: AtomicU64,
    refused: AtomicU64,
    stopped: AtomicU64,
    work_micros: AtomicU64,
}

type Job = Box<dyn FnOnce() + Send>;

/// Cheap, cloneable handle. The threads end with the last one.
#[derive(Clone)]
pub struct FleetQueries {
    index: FleetIndex,
    jobs: Sender<Job>,
    counters: Arc<Counters>,
}

impl FleetQueries {
    /// Starts the threads: one for every two cores, so that lists alone never fill the machine.
    ///
    /// # Errors
    /// When the system has no room for another thread.
    pub fn start(index: FleetIndex) -> std::io::Result<Self> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let (jobs, queue) = bounded(QUEUE);
        for number in 0..(cores / 2).max(1) {
            let queue: Receiver<Job> = queue.clone();
            std::thread::Builder::new().name(format!("fleet-query-{number}")).spawn(move || work(&queue))?;
        }
        Ok(Self { index, jobs, counters: Arc::default() })
    }

    pub fn index(&self) -> &FleetIndex {
        &self.index
    }

    /// The first `size` (1 or more) devices of `order` that match `filter`, after the place `after`.
    ///
    /// # Errors
    /// See [`QueryFailure`].
    pub async fn page(
        &self,
        filter: Filter,
        order: OrderBy,
        after: Option<(Vec<SortValue>, String)>,
        size: usize,
    ) -> Result<Page, QueryFailure> {
        self.run(move |index, run| index.page(&filter, &order, after, size, run)).await
    }

    /// Up to `limit` devices that match `filter`, and how many match.
    ///
    /// # Errors
    /// See [`QueryFailure`].
    pub async fn select(&self, filter: Filter, limit: usize) -> Result<Selection, QueryFailure> {
        self.run(move |index, run| index.select(&filter, limit, run)).await
    }

    /// How many devices match `filter`.
    ///
    /// # Errors
    /// See [`QueryFailure`].
    pub async fn count(&self, filter: Filter) -> Result<usize, QueryFailure> {
        Ok(self.select(filter, 0).await?.total)
    }

    /// The devices that match `filter`, grouped by the texts and labels `fields`.
    ///
    /// # Errors
    /// See [`QueryFailure`].
    pub async fn members(&self, filter: Filter, fields: Vec<Field>) -> Result<Members, QueryFailure> {
        self.run(move |index, run| index.members(&filter, &fields, run)).await
    }

    /// Whether a registered device has a label of this key.
    ///
    /// # Errors
    /// See [`QueryFailure`].
    pub async fn has_label(&self, key: String) -> Result<bool, QueryFailure> {
        self.run(move |index, run| index.has_label(&key, run)).await
    }

    /// What `then` makes of a survey, on the thread that made the survey: both may take long, and neither holds up a
    /// heartbeat.
    ///
    /// # Errors
    /// See [`QueryFailure`].
    pub async fn survey<T: Send + 'static>(
        &self,
        request: SurveyRequest,
        then: impl FnOnce(Survey) -> T + Send + 'static,
    ) -> Result<T, QueryFailure> {
        self.run(move |index, run| Ok(then(index.survey(&request, run)?))).await
    }

    /// The devices that are ONLINE by what was told of them.
    ///
    /// # Errors
    /// See [`QueryFailure`].
    pub async fn online_now(&self) -> Result<OnlineNow, QueryFailure> {
        self.run(FleetIndex::online_now).await
    }

    /// Shows each device of `request` once to `see`, with the thresholds that `rules` have for it; what `see` makes of
    /// them comes back. It fails where `see` does.
    ///
    /// # Errors
    /// See [`QueryFailure`], and those of `see`.
    pub fn checkup<T, E>(
        &self,
        request: CheckupRequest,
        rules: Arc<HealthRules>,
        mut made: T,
        see: fn(&mut T, Examined<'_>) -> Result<(), E>,
    ) -> impl Future<Output = Result<T, E>> + Send + use<T, E>
    where
        T: Send + 'static,
        E: From<QueryFailure> + Send + 'static,
    {
        let submitted = self.submit(move |index, run| {
            let seen = index.checkup(&request, &rules, run, &mut |device| see(&mut made, device));
            Ok(seen.map(|()| made))
        });
        async move { answer(submitted).await? }
    }

    /// What `work` gives, which takes long enough to hold up heartbeats where it was asked for.
    ///
    /// # Errors
    /// See [`QueryFailure`].
    pub async fn work<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, QueryFailure> {
        self.run(move |_, _| Ok(work())).await
    }

    pub fn stats(&self) -> QueryStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        QueryStats {
            answered: read(&self.counters.answered),
            refused: read(&self.counters.refused),
            stopped: read(&self.counters.stopped),
            work_micros: read(&self.counters.work_micros),
            waiting: self.jobs.len() as u64,
        }
    }

    async fn run<T, F>(&self, query: F) -> Result<T, QueryFailure>
    where
        T: Send + 'static,
        F: FnOnce(&FleetIndex, &Run<'_>) -> Result<T, QueryFailure> + Send + 'static,
    {
        answer(self.submit(query)).await
    }

    fn submit<T, F>(&self, query: F) -> Result<Submitted<T>, QueryFailure>
    where
        T: Send + 'static,
        F: FnOnce(&FleetIndex, &Run<'_>) -> Result<T, QueryFailure> + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let (index, counters, asked_at) = (self.index.clone(), Arc::clone(&self.counters), Instant::now());
        let job = move || {
            let begun_at = Instant::now();
            let outcome = if begun_at.duration_since(asked_at) > MAX_WAIT {
                Err(QueryFailure::Busy)
            } else {
                let is_abandoned = || answer.is_closed();
                let (moment, until) = (index.moment(), begun_at + MAX_WORK);
                query(&index, &Run { moment, until, is_abandoned: &is_abandoned })
            };
            counters.count(&outcome, begun_at.elapsed());
            // Who asked may have gone.
            let _ = answer.send(outcome);
        };
        match self.jobs.try_send(Box::new(job)) {
            Ok(()) => Ok(answered),
            Err(TrySendError::Full(_)) => {
                self.counters.refused.fetch_add(1, Ordering::Relaxed);
                Err(QueryFailure::Busy)
            }
            Err(TrySendError::Disconnected(_)) => Err(QueryFailure::Closed),
        }
    }
}

/// Where the answer of a query comes.
type Submitted<T> = oneshot::Receiver<Result<T, QueryFailure>>;

async fn answer<T>(submitted: Result<Submitted<T>, QueryFailure>) -> Result<T, QueryFailure> {
    submitted?.await.unwrap_or(Err(QueryFailure::Died))
}

impl Counters {
    fn count<T>(&self, outcome: &Result<T, QueryFailure>, worked: Duration) {
        let counter = match outcome {
            Ok(_) => &self.answered,
            Err(QueryFailure::TooCostly { .. }) => &self.stopped,
            Err(QueryFailure::Busy) => &self.refused,
            Err(_) => return,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        self.work_micros.fetch_add(worked.as_micros() as u64, Ordering::Relaxed);
    }
}

/// The life of a query thread.
fn work(queue: &Receiver<Job>) {
    yield_to_workers();
    while let Ok(job) = queue.recv() {
        // A query only reads, so a panic leaves nothing half done; the one who asked is told by the lost answer.
        if std::panic::catch_unwind(AssertUnwindSafe(job)).is_err() {
            tracing::error!("a query over the fleet panicked");
        }
    }
}

/// Lowers the priority of this thread; on Linux niceness is a thread's, elsewhere it would be the whole server's.
fn yield_to_workers() {
    #[cfg(target_os = "linux")]
    {
        // SAFETY: setpriority takes three integers and touches no memory of ours; 0 is the calling thread.
        if unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICENESS) } != 0 {
            let error = std::io::Error::last_os_error();
            tracing::warn!(%error, "queries run at the priority of heartbeats");
        }
    }
}

/// What a query goes by while it runs.
pub(super) struct Run<'a> {
    /// The time by which it judges presence.
    pub moment: Moment,
    /// How long it may go on.
    pub until: Instant,
    pub is_abandoned: &'a dyn Fn() -> bool,
}

impl Run<'_> {
    /// Between two chunks, of which `done` out of `all` were looked at.
    pub fn check(&self, done: usize, all: usize) -> Result<(), QueryFailure> {
        if (self.is_abandoned)() {
            return Err(QueryFailure::Abandoned);
        }
        if Instant::now() > self.until {
            return Err(QueryFailure::TooCostly { percent: 100 * done / all.max(1) });
        }
        Ok(())
    }
}
