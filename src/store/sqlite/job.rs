//! A piece of work for a database thread, and the answer that its caller waits for.
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::Arc;

use rusqlite::Connection;
use tokio::sync::oneshot;

use super::error::classify_shared;
use crate::store::StoreError;

/// Why a piece of work came to nothing.
#[derive(Debug)]
pub enum JobError {
    Sqlite(rusqlite::Error),
    /// The work decided so, such as a registration that finds its id taken.
    Refused(StoreError),
}

impl From<rusqlite::Error> for JobError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

impl From<StoreError> for JobError {
    fn from(error: StoreError) -> Self {
        Self::Refused(error)
    }
}

/// What became of the statements of a job.
pub enum Ran {
    /// Commit them with the group.
    Done,
    /// Undo them; the job keeps its reason for the answer.
    Refused,
    /// As `Refused`, and the whole group may be affected.
    Failed(Arc<rusqlite::Error>),
}

#[derive(Debug, thiserror::Error)]
#[error("the work panicked, which is a bug")]
struct Panicked;

/// Work that a database thread can hold without knowing its types.
pub trait Job: Send {
    /// Runs the statements, once.
    fn run(&mut self, connection: &Connection) -> Ran;

    /// Tells the caller: what the work came to, or, if its transaction failed, that failure.
    fn answer(self: Box<Self>, transaction: Result<(), Arc<rusqlite::Error>>);

    /// Whether nobody waits for the answer any more.
    fn is_abandoned(&self) -> bool;
}

/// A closure over a connection, with the way back to its caller.
pub struct Work<T, F> {
    operation: &'static str,
    work: Option<F>,
    outcome: Option<Result<T, StoreError>>,
    reply: oneshot::Sender<Result<T, StoreError>>,
}

/// Wraps `work` as a job; `operation` (an infinitive) names it in errors.
pub fn job<T, F>(operation: &'static str, work: F) -> (Box<dyn Job>, oneshot::Receiver<Result<T, StoreError>>)
where
    T: Send + 'static,
    F: FnOnce(&Connection) -> Result<T, JobError> + Send + 'static,
{
    let (reply, answer) = oneshot::channel();
    (Box::new(Work { operation, work: Some(work), outcome: None, reply }), answer)
}

impl<T, F> Job for Work<T, F>
where
    T: Send,
    F: FnOnce(&Connection) -> Result<T, JobError> + Send,
{
    fn run(&mut self, connection: &Connection) -> Ran {
        let Some(work) = self.work.take() else { return Ran::Refused };
        // One piece of work that panics must not take the thread, and with it the registry, away from all others.
        // Unwind safety: the closure is gone, and the connection is brought back by a rollback.
        let (outcome, ran) = match catch_unwind(AssertUnwindSafe(|| work(connection))) {
            Ok(Ok(value)) => (Ok(value), Ran::Done),
            Ok(Err(JobError::Refused(error))) => (Err(error), Ran::Refused),
            Ok(Err(JobError::Sqlite(error))) => {
                let error = Arc::new(error);
                (Err(classify_shared(self.operation, &error)), Ran::Failed(error))
            }
            Err(_) => {
                tracing::error!(operation = self.operation, "registry work panicked");
                let source = Arc::new(Panicked);
                (Err(StoreError::Backend { operation: self.operation, source }), Ran::Refused)
            }
        };
        self.outcome = Some(outcome);
        ran
    }

    fn answer(self: Box<Self>, transaction: Result<(), Arc<rusqlite::Error>>) {
        let answer = match (self.outcome, transaction) {
            // Its own reason is the better one.
            (Some(Err(error)), _) => Err(error),
            (_, Err(error)) => Err(classify_shared(self.operation, &error)),
            (Some(Ok(value)), Ok(())) => Ok(value),
            (None, Ok(())) => Err(StoreError::Closed { operation: self.operation }),
        };
        // A caller that went away needs no answer.
        let _ = self.reply.send(answer);
    }

    fn is_abandoned(&self) -> bool {
        self.reply.is_closed()
    }
}
