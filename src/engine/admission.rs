//! How many statements run at once, how many wait, and for how long: the engine's only queue.
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::exception::{code, Exception};

/// Statements that run at once, each on a thread and a connection of its own. ClickHouse spreads one statement over
/// all cores, so a few fill the machine; sixteen leave room for short ones beside long ones, and bound the memory.
pub const RUNNING_STATEMENTS: usize = 16;

/// Statements that may wait for a place: a dashboard with many panels arrives all at once. Each holds a socket and
/// no memory to speak of.
pub const WAITING_STATEMENTS: usize = 256;

/// How long one waits before it is told to come back, below the usual time-outs of clients (30 s).
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// The gate in front of the engine.
pub struct Admission {
    places: Arc<Semaphore>,
    waiting: AtomicUsize,
}

/// Leaves the count of the waiting also when the client goes away while it waits.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Admission {
    pub fn new() -> Self {
        Self { places: Arc::new(Semaphore::new(RUNNING_STATEMENTS)), waiting: AtomicUsize::new(0) }
    }

    /// Waits for a place; it is free again when the permit is dropped.
    ///
    /// # Errors
    /// `TOO_MANY_SIMULTANEOUS_QUERIES` when too many wait already, or the wait was too long.
    pub async fn enter(&self) -> Result<OwnedSemaphorePermit, Exception> {
        if let Ok(permit) = Arc::clone(&self.places).try_acquire_owned() {
            return Ok(permit);
        }
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= WAITING_STATEMENTS {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            return Err(full(format!("{WAITING_STATEMENTS} statements wait already")));
        }
        let _waiting = Waiting(&self.waiting);
        match tokio::time::timeout(LONGEST_WAIT, Arc::clone(&self.places).acquire_owned()).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_closed)) => Err(Exception::new(code::ABORTED, "ABORTED", "The engine is stopping")),
            Err(_elapsed) => Err(full(format!("no place became free in {} s", LONGEST_WAIT.as_secs()))),
        }
    }

    /// Waits until no statement runs, and lets none in after.
    pub async fn close_and_drain(&self) {
        // The semaphore stays open until all places are back; then nobody can be inside.
        if let Ok(permits) = self.places.acquire_many(RUNNING_STATEMENTS as u32).await {
            permits.forget();
        }
        self.places.close();
    }

    pub fn running(&self) -> usize {
        RUNNING_STATEMENTS.saturating_sub(self.places.available_permits())
    }
}

fn full(why: String) -> Exception {
    let message = format!("Too many simultaneous queries: {RUNNING_STATEMENTS} run, and {why}; try again later");
    Exception::new(code::TOO_MANY_SIMULTANEOUS_QUERIES, "TOO_MANY_SIMULTANEOUS_QUERIES", message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on_a_runtime(future: impl std::future::Future<Output = ()>) {
        tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime").block_on(future);
    }

    #[test]
    fn a_place_that_is_given_back_goes_to_one_who_waits() {
        on_a_runtime(async {
            let gate = Admission::new();
            let mut inside = Vec::new();
            for _ in 0..RUNNING_STATEMENTS {
                inside.push(gate.enter().await.expect("a free place"));
            }
            assert_eq!(gate.running(), RUNNING_STATEMENTS);
            let (entered, ()) = tokio::join!(gate.enter(), async { drop(inside.pop()) });
            assert!(entered.is_ok());
        });
    }

    #[test]
    fn beyond_the_bound_of_the_waiting_the_answer_is_at_once_to_come_back_later() {
        on_a_runtime(async {
            let gate = Admission::new();
            let mut inside = Vec::new();
            for _ in 0..RUNNING_STATEMENTS {
                inside.push(gate.enter().await.expect("a free place"));
            }
            let mut waiting: Vec<_> = (0..WAITING_STATEMENTS).map(|_| Box::pin(gate.enter())).collect();
            for one in &mut waiting {
                assert!(futures_util::poll!(one.as_mut()).is_pending());
            }
            let refused = gate.enter().await.expect_err("full");
            assert_eq!((refused.code(), refused.http_status()), (code::TOO_MANY_SIMULTANEOUS_QUERIES, 503));
            // Those who go away leave their place in the queue.
            waiting.clear();
            assert_eq!(gate.waiting.load(Ordering::Relaxed), 0);
        });
    }
}
