//! The bounds of questions to ClickHouse: how many at once, how long, over how many rows, in how much memory. What they
//! leave to heartbeats while they run one after the other is the business of `pacing.rs`.
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clickhouse::query::Query;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::pacing::{Pacer, MAX_PAUSE};
use crate::error::{ApiError, ErrorCode};
use crate::telemetry::clickhouse::{ClickHouse, ClickHouseError};

/// Most questions at once on any machine. Each has one thread of ClickHouse's ([`SETTINGS`]) and up to 1 GB of its memory;
/// with two cores and more for each of them, another would make none of them quicker.
const MAX_RUNNING: usize = 4;

/// Questions at once on so many processors: ingest keeps half of them.
fn at_once(processors: usize) -> usize {
    (processors / 2).clamp(1, MAX_RUNNING)
}

/// How long a statement waits for its turn, beside the pause that there may be. Who waited longer has given up or tries again.
const MAX_WAIT: Duration = Duration::from_secs(10).saturating_add(MAX_PAUSE);

/// How long work in the background waits for its turn: everybody else's come up within it, unless ClickHouse stands still.
const LONGEST_WAIT: Duration = Duration::from_secs(600);

/// How long an answer is waited for: longer than ClickHouse may work ([`SETTINGS`]), so that it says itself what was too
/// much.
const PATIENCE: Duration = Duration::from_secs(40);

/// When to try again after [`PoolError::Busy`].
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// Below the threads of the server and of inserts: at 10 a thread gets a ninth of what they get, when both want one processor.
/// ClickHouse sets it where it has CAP_SYS_NICE, and leaves it where it has not; then [`Pacer`]'s pauses are all there is.
pub const NICE: (&str, &str) = ("os_thread_priority", "10");

/// What one question may cost.
///
/// 2 billion rows are a million devices for half a day, or ten thousand for two months; one thread reads some
/// 50 million a second of a column. 1 GB holds the groups and sketches of any answer that fits the contract.
const SETTINGS: [(&str, &str); 7] = [
    ("max_execution_time", "30"),
    ("max_rows_to_read", "2000000000"),
    ("max_memory_usage", "1000000000"),
    ("max_result_rows", "1000000"),
    ("max_threads", "1"),
    NICE,
    // Reads and temporary tables alone.
    ("readonly", "2"),
];

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    #[error("{}", busy(*.at_once))]
    Busy { at_once: usize },
    #[error("{0}")]
    TooCostly(&'static str),
    #[error("clickhouse did not answer")]
    ClickHouse(#[source] ClickHouseError),
    #[error("the question failed inside; report it with the server's log")]
    Died,
}

fn busy(at_once: usize) -> String {
    let running = if at_once == 1 { "one question".to_owned() } else { format!("{at_once} questions") };
    let waited = MAX_WAIT.as_secs();
    format!(
        "the telemetry answers {running} at a time here, and others had every turn for {waited} s; try again in a moment"
    )
}

impl From<PoolError> for ApiError {
    fn from(error: PoolError) -> Self {
        let message = error.to_string();
        match error {
            PoolError::Busy { .. } => Self::unavailable(message, RETRY_AFTER),
            PoolError::TooCostly(_) => Self::new(ErrorCode::ResourceExhausted, message),
            PoolError::Died => Self::internal(message),
            PoolError::ClickHouse(source) if source.code.is_none() => {
                Self::unavailable("the telemetry store does not answer; try again in a moment", RETRY_AFTER)
                    .with_source(source)
            }
            PoolError::ClickHouse(source) if source.code.is_some_and(|code| PASSING.contains(&code)) => {
                let message = "the telemetry store is busy, or a part of it is away; try again in a moment";
                Self::unavailable(message, RETRY_AFTER).with_source(source)
            }
            PoolError::ClickHouse(source) => {
                Self::internal("the telemetry store refused the question; report it with the server's log")
                    .with_source(source)
            }
        }
    }
}

/// Codes of ClickHouse's `ErrorCodes.cpp` that say a limit was reached, and what to do about it.
const LIMITS: [(u32, &str); 5] = [
    (
        158,
        "the question would read more than 2 billion rows; ask for a shorter time, fewer devices or a longer interval",
    ),
    (159, "the question took longer than 30 s; ask for a shorter time, fewer devices or a longer interval"),
    (160, "the question would take longer than 30 s; ask for a shorter time, fewer devices or a longer interval"),
    (241, "the question needs more than 1 GB of memory; ask for a shorter time, fewer devices or fewer groups"),
    (396, "the answer has more than a million rows; ask for a shorter time, fewer groups or a longer interval"),
];

/// Codes that say that another try may do: TOO_MANY_SIMULTANEOUS_QUERIES, NO_FREE_CONNECTION, SOCKET_TIMEOUT, NETWORK_ERROR,
/// NO_ZOOKEEPER, ABORTED, TABLE_IS_READ_ONLY, ALL_CONNECTION_TRIES_FAILED, QUERY_WAS_CANCELLED, SERVER_OVERLOADED,
/// KEEPER_EXCEPTION.
const PASSING: [u32; 11] = [202, 203, 209, 210, 225, 236, 242, 279, 394, 745, 999];

/// What questions have done since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolStats {
    /// Answered.
    pub answered: u64,
    /// Turned away because others were running.
    pub refused: u64,
    /// Stopped because they cost too much.
    pub stopped: u64,
    /// ClickHouse did not answer, or refused.
    pub failed: u64,
    /// Microseconds that ClickHouse worked on questions, waiting for a turn not counted.
    pub work_micros: u64,
}

#[derive(Default)]
struct Counters {
    answered: AtomicU64,
    refused: AtomicU64,
    stopped: AtomicU64,
    failed: AtomicU64,
    work_micros: AtomicU64,
}

impl Counters {
    fn count<T>(&self, outcome: &Result<T, PoolError>, worked: Duration) {
        let counter = match outcome {
            Ok(_) => &self.answered,
            Err(PoolError::TooCostly(_)) => &self.stopped,
            // Who had no turn was counted when it did not come.
            Err(PoolError::Busy { .. } | PoolError::ClickHouse(_) | PoolError::Died) => &self.failed,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        self.work_micros.fetch_add(worked.as_micros() as u64, Ordering::Relaxed);
    }
}

/// Runs questions. Cheap to clone.
#[derive(Clone)]
pub struct AnalystPool {
    clickhouse: ClickHouse,
    turns: Arc<Semaphore>,
    at_once: usize,
    max_wait: Duration,
    pacer: Pacer,
    counters: Arc<Counters>,
}

/// The right to have ClickHouse work. When it is dropped, the next may have it once ingest has had its part ([`Pacer`]).
pub struct Turn {
    /// Until it is dropped.
    permit: Option<OwnedSemaphorePermit>,
    pacer: Pacer,
    begun: Instant,
}

impl Drop for Turn {
    fn drop(&mut self) {
        let (permit, pacer, worked) = (self.permit.take(), self.pacer.clone(), self.begun.elapsed());
        // Without a runtime the server is ending.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                pacer.pause(worked).await;
                drop(permit);
            });
        }
    }
}

impl AnalystPool {
    /// For a ClickHouse with processors of its own.
    pub fn new(clickhouse: ClickHouse) -> Self {
        Self::of(clickhouse, MAX_RUNNING, Pacer::default())
    }

    /// For a ClickHouse that shares this server's processors: fewer at once, with pauses while heartbeats are short of them.
    pub fn beside_ingest(clickhouse: ClickHouse) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self::of(clickhouse, at_once(processors), Pacer::of_shared_processors())
    }

    fn of(clickhouse: ClickHouse, at_once: usize, pacer: Pacer) -> Self {
        let clickhouse = clickhouse.with_query_timeout(PATIENCE);
        let turns = Arc::new(Semaphore::new(at_once));
        Self { clickhouse, turns, at_once, max_wait: MAX_WAIT, pacer, counters: Arc::default() }
    }

    /// The same turns, for work that waits in the background for as long as it must.
    pub fn for_the_patient(&self) -> Self {
        Self { max_wait: LONGEST_WAIT, ..self.clone() }
    }

    /// How many statements run at once.
    pub fn at_once(&self) -> usize {
        self.at_once
    }

    /// What paces questions, for other work of ClickHouse's that can wait.
    pub fn pacer(&self) -> &Pacer {
        &self.pacer
    }

    /// For what is not a question: the caller answers for its cost.
    pub fn clickhouse(&self) -> &ClickHouse {
        &self.clickhouse
    }

    /// Waits for a turn.
    ///
    /// # Errors
    /// [`PoolError::Busy`] when none comes in time.
    pub async fn turn(&self) -> Result<Turn, PoolError> {
        match tokio::time::timeout(self.max_wait, Arc::clone(&self.turns).acquire_owned()).await {
            Ok(Ok(permit)) => {
                self.pacer.begin();
                Ok(Turn { permit: Some(permit), pacer: self.pacer.clone(), begun: Instant::now() })
            }
            // Nobody closes it, so only the time can have run out.
            Ok(Err(_)) | Err(_) => {
                self.counters.refused.fetch_add(1, Ordering::Relaxed);
                Err(PoolError::Busy { at_once: self.at_once })
            }
        }
    }

    /// A question with the pool's limits; bind its values with [`Query::param`], run it with [`Self::rows`].
    pub fn query(&self, sql: &str) -> Query {
        SETTINGS.iter().fold(self.clickhouse.query(sql), |query, (name, value)| query.with_setting(*name, *value))
    }

    /// Waits for a turn, runs a question and collects its rows. Once it runs it keeps its turn to its end, also when nobody
    /// waits for it any more: ClickHouse goes on with it, and who hangs up and asks again must not run more at once.
    pub async fn rows<T>(&self, operation: &'static str, query: Query) -> Result<Vec<T>, PoolError>
    where
        T: clickhouse::RowOwned + clickhouse::RowRead + Send + 'static,
    {
        let turn = self.turn().await?;
        let (clickhouse, counters) = (self.clickhouse.clone(), Arc::clone(&self.counters));
        let running = tokio::spawn(async move {
            let begun = Instant::now();
            let outcome = clickhouse.rows(operation, query).await.map_err(PoolError::of);
            counters.count(&outcome, begun.elapsed());
            drop(turn);
            outcome
        });
        running.await.unwrap_or(Err(PoolError::Died))
    }

    pub fn stats(&self) -> PoolStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        PoolStats {
            answered: read(&self.counters.answered),
            refused: read(&self.counters.refused),
            stopped: read(&self.counters.stopped),
            failed: read(&self.counters.failed),
            work_micros: read(&self.counters.work_micros),
        }
    }
}

impl PoolError {
    /// Tells a limit that was reached from any other failure.
    pub fn of(error: ClickHouseError) -> Self {
        let limit = error.code.and_then(|code| LIMITS.iter().find(|(limit, _)| i64::from(*limit) == i64::from(code)));
        limit.map_or(Self::ClickHouse(error), |(_, message)| Self::TooCostly(message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::clickhouse::ClickHouseConfig;

    #[derive(clickhouse::Row, serde::Deserialize)]
    struct One {
        #[expect(dead_code, reason = "nobody answers")]
        one: u8,
    }

    #[tokio::test]
    async fn a_question_whose_asker_hung_up_keeps_its_turn_until_it_is_over() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let pool = AnalystPool::new(ClickHouse::new(&ClickHouseConfig::new(url)));
        let mut questions = Vec::new();
        for _ in 0..pool.at_once {
            let asked = pool.clone();
            let asker =
                tokio::spawn(async move { asked.rows::<One>("ask", asked.query("SELECT 1 AS one")).await.map(drop) });
            questions.push(listener.accept().await.expect("a question"));
            asker.abort();
            assert!(asker.await.is_err_and(|error| error.is_cancelled()));
        }
        assert_eq!(pool.turns.available_permits(), 0, "they go on");
        drop((listener, questions));
        let turns = tokio::time::timeout(MAX_WAIT, pool.turns.acquire_many(pool.at_once as u32)).await;
        assert!(turns.is_ok(), "they are over");
        assert_eq!(pool.stats().failed, pool.at_once as u64);
    }

    #[test]
    fn half_of_the_processors_are_left_to_ingest() {
        for (processors, questions) in [(1, 1), (2, 1), (3, 1), (4, 2), (8, 4), (64, MAX_RUNNING)] {
            assert_eq!(at_once(processors), questions, "{processors}");
        }
    }

    #[test]
    fn who_waited_in_vain_is_told_how_many_run() {
        let told = |at_once| PoolError::Busy { at_once }.to_string();
        for (at_once, begin) in
            [(1, "the telemetry answers one question at a time"), (3, "the telemetry answers 3 questions")]
        {
            assert!(told(at_once).starts_with(begin), "{}", told(at_once));
        }
    }

    #[test]
    fn a_refusal_says_whether_to_try_again_to_ask_for_less_or_to_report_it() {
        for (answer, code, advice) in [
            ("Code: 159. DB::Exception: Timeout exceeded", ErrorCode::ResourceExhausted, "ask for a shorter time"),
            ("Code: 202. DB::Exception: Too many simultaneous queries", ErrorCode::Unavailable, "try again"),
            ("Code: 279. DB::Exception: All connection tries failed", ErrorCode::Unavailable, "try again"),
            ("Code: 47. DB::Exception: Unknown identifier", ErrorCode::Internal, "report it"),
            ("502 Bad Gateway", ErrorCode::Unavailable, "try again"),
        ] {
            let source = clickhouse::error::Error::BadResponse(answer.into());
            let error = ApiError::from(PoolError::of(ClickHouseError::new("ask", source)));
            assert_eq!(error.code, code, "{answer}");
            assert!(error.message.contains(advice), "{answer}: {}", error.message);
        }
    }
}
