//! The one thread that writes, and its group commit.
//!
//! A transaction's price is its fsync. So the thread begins one for the first write that waits, applies every write
//! that queued up behind it, commits once, and then answers them all: while it waits for the disk the next group
//! gathers. There is no timer, so a lone write is committed at once. Each write runs in a savepoint of its own: one
//! that is refused is undone alone.
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::Receiver;
use rusqlite::{Connection, Error};

use super::counters::Counters;
use super::job::{Job, Ran};

/// The longest that a group gathers once it has begun, which bounds how long its first write waits; at some 20 µs
/// a write this is about 1,000 of them, and the fsync is then a small part of the whole.
const GROUP_TIME: Duration = Duration::from_millis(20);

/// A write on its way, with the bytes that it was let in with.
pub struct Queued {
    pub job: Box<dyn Job>,
    pub bytes: usize,
}

/// Works until it takes `None` from the queue; what was queued before is done, what came after is dropped.
pub fn run(connection: &Connection, queue: &Receiver<Option<Queued>>, counters: &Counters) {
    let mut group = Vec::new();
    let mut is_open = true;
    while is_open {
        let Ok(Some(first)) = queue.recv() else { return };
        let committed = commit_group(connection, first, queue, &mut group, &mut is_open);
        let writes = group.len();
        let counter = match &committed {
            Ok(()) => {
                counters.transactions.fetch_add(1, Ordering::Relaxed);
                &counters.writes
            }
            Err(error) => {
                roll_back(connection);
                tracing::error!(%error, writes, "registry transaction failed");
                &counters.writes_failed
            }
        };
        counter.fetch_add(writes as u64, Ordering::Relaxed);
        for Queued { job, bytes } in group.drain(..) {
            counters.writes_queued.fetch_sub(1, Ordering::Relaxed);
            counters.bytes_queued.fetch_sub(bytes, Ordering::Relaxed);
            job.answer(committed.clone());
        }
    }
}

/// Applies `first` and what waits behind it in one transaction. Whatever was taken from the queue is in `group`
/// afterwards, also when the transaction failed; `is_open` turns false when the end of the queue was taken.
fn commit_group(
    connection: &Connection,
    first: Queued,
    queue: &Receiver<Option<Queued>>,
    group: &mut Vec<Queued>,
    is_open: &mut bool,
) -> Result<(), Arc<Error>> {
    let deadline = Instant::now() + GROUP_TIME;
    group.push(first);
    execute(connection, "BEGIN IMMEDIATE")?;
    let mut at = 0;
    while let Some(queued) = group.get_mut(at) {
        apply(connection, queued.job.as_mut())?;
        at += 1;
        if *is_open && Instant::now() < deadline {
            match queue.try_recv() {
                Ok(Some(next)) => group.push(next),
                Ok(None) => *is_open = false,
                Err(_) => {}
            }
        }
    }
    execute(connection, "COMMIT")
}

/// Runs one write in a savepoint; an error means that the transaction is lost.
fn apply(connection: &Connection, job: &mut dyn Job) -> Result<(), Arc<Error>> {
    execute(connection, "SAVEPOINT write")?;
    let ran = job.run(connection);
    if let Ran::Failed(error) = &ran {
        // A full disk, among others, makes SQLite roll the whole transaction back by itself.
        if connection.is_autocommit() {
            return Err(Arc::clone(error));
        }
    }
    if !matches!(ran, Ran::Done) {
        execute(connection, "ROLLBACK TO write")?;
    }
    execute(connection, "RELEASE write")
}

fn execute(connection: &Connection, sql: &'static str) -> Result<(), Arc<Error>> {
    connection.prepare_cached(sql).and_then(|mut statement| statement.execute([])).map(drop).map_err(Arc::new)
}

/// Ends a transaction that failed, if SQLite has not done so itself.
fn roll_back(connection: &Connection) {
    if !connection.is_autocommit() {
        if let Err(error) = execute(connection, "ROLLBACK") {
            tracing::error!(%error, "registry transaction could not be rolled back");
        }
    }
}
