//! The registry in one SQLite file: `DATA_DIR/registry.db`.
//!
//! One thread writes (`writer`), a few read (`READERS`), each with a connection of its own; callers hand them
//! closures over bounded queues and await the answer, so no SQL runs on an asynchronous thread. A write is
//! acknowledged after the fsync of its transaction; `connection` says what that guards against and what it costs.
//!
//! To add a subject: a numbered file in `migrations/`, a trait in `crate::store`, and a file beside
//! `devices` that implements it with `SqliteStore::read` and `SqliteStore::write`.
mod binaries;
mod command_delivery;
#[cfg(test)]
mod command_tests;
mod commands;
mod connection;
mod counters;
mod deployment_devices;
#[cfg(test)]
mod deployment_tests;
mod deployments;
mod devices;
mod error;
mod exports;
mod job;
mod migrations;
mod settings;
#[cfg(test)]
mod tests;
mod updates;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam::channel::{bounded, Receiver, Sender, TrySendError};
use rusqlite::Connection;
use tokio::sync::oneshot;

use self::counters::Counters;
use self::deployments::Underway;
use self::job::{job, Job, JobError};
use self::writer::Queued;
use super::{Store, StoreError, StoreFuture, StoreStats};

/// The database's file name inside the data directory.
pub const DATABASE_FILE: &str = "registry.db";

/// Writes that may wait. The writer applies some 50,000 a second (`benches/store.rs`), so a full queue is about 100 ms
/// of work: long enough to ride out a slow fsync, and whoever is let in is answered before a client gives up.
const WRITE_QUEUE: usize = 4_096;

/// Bytes that waiting writes may hold, since one write may be a batch of large devices.
const WRITE_QUEUE_BYTES: usize = 64 << 20;

/// Reads that may wait: at some 20 µs for a device and 1 ms for a page of a list, within a second of work.
const READ_QUEUE: usize = 1_024;

/// Threads that read. Reads come from memory nearly always; more than a few helps only while some wait for a disk.
const READERS: usize = 4;

/// Opens the registry in `data_dir`, and makes it if there is none. The caller holds the directory's lock.
///
/// # Errors
/// [`StoreError::Foreign`] and [`StoreError::Newer`] for a file that is not this program's to touch (it is left as
/// it is), [`StoreError::Damaged`] and [`StoreError::Open`] for one that cannot be used.
pub fn open(data_dir: &Path) -> Result<Arc<dyn Store>, StoreError> {
    Ok(Arc::new(SqliteStore::open(&data_dir.join(DATABASE_FILE))?))
}

/// A handle on the database's threads. When the last one is dropped, what is queued is still done, then they end.
struct SqliteStore {
    path: PathBuf,
    queues: Queues,
    readers: Vec<JoinHandle<()>>,
    writer: Option<JoinHandle<()>>,
}

/// The ways to the threads; cloned into futures that send more than one piece of work. `None` ends a thread: a
/// future that is still around keeps a sender, so the threads cannot wait for the last of them to go.
#[derive(Clone)]
struct Queues {
    writes: Sender<Option<Queued>>,
    reads: Sender<Option<Box<dyn Job>>>,
    counters: Arc<Counters>,
    underway: Underway,
}

impl SqliteStore {
    fn open(path: &Path) -> Result<Self, StoreError> {
        let writer = connection::open_writer(path)?;
        deployments::remove_incomplete(&writer)?;
        let readers = (0..READERS).map(|_| connection::open_reader(path)).collect::<Result<Vec<_>, _>>()?;
        Self::start(path, writer, readers)
    }

    fn start(path: &Path, writer: Connection, readers: Vec<Connection>) -> Result<Self, StoreError> {
        let counters = Arc::new(Counters::default());
        let (writes, write_queue) = bounded(WRITE_QUEUE);
        let (reads, read_queue) = bounded(READ_QUEUE);
        let mut store = Self {
            path: path.to_owned(),
            queues: Queues { writes, reads, counters: Arc::clone(&counters), underway: Underway::default() },
            readers: Vec::with_capacity(readers.len()),
            writer: None,
        };
        let shared = Arc::clone(&counters);
        store.writer = Some(store.spawn("store-writer", move || writer::run(&writer, &write_queue, &shared))?);
        for reader in readers {
            let (queue, counters) = (read_queue.clone(), Arc::clone(&counters));
            store.readers.push(store.spawn("store-reader", move || run_reads(&reader, &queue, &counters))?);
        }
        Ok(store)
    }

    fn spawn(&self, name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, StoreError> {
        std::thread::Builder::new().name(name.to_owned()).spawn(work).map_err(|source| StoreError::Open {
            operation: "start a thread for",
            path: self.path.clone(),
            source: Arc::new(source),
        })
    }

    fn read<T, F>(&self, operation: &'static str, work: F) -> StoreFuture<T>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, JobError> + Send + 'static,
    {
        self.queues.read(operation, work)
    }

    fn write<T, F>(&self, operation: &'static str, bytes: usize, work: F) -> StoreFuture<T>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, JobError> + Send + 'static,
    {
        self.queues.write(operation, bytes, work)
    }
}

impl Queues {
    /// Runs `work` on a thread that reads; `operation` is an infinitive that names it in errors.
    fn read<T, F>(&self, operation: &'static str, work: F) -> StoreFuture<T>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, JobError> + Send + 'static,
    {
        let (job, answer) = job(operation, work);
        let sent = self.reads.try_send(Some(job)).map_err(|refused| self.refuse(operation, "reads", &refused));
        Box::pin(wait(operation, sent, answer))
    }

    /// Runs `work`, which holds about `bytes` of memory, in the next transaction. All of it is committed or none.
    fn write<T, F>(&self, operation: &'static str, bytes: usize, work: F) -> StoreFuture<T>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, JobError> + Send + 'static,
    {
        let (job, answer) = job(operation, work);
        Box::pin(wait(operation, self.enqueue(operation, bytes, job), answer))
    }

    /// Counts first and sends then, so that the writer never counts down what was not counted up.
    fn enqueue(&self, operation: &'static str, bytes: usize, job: Box<dyn Job>) -> Result<(), StoreError> {
        let counters = &self.counters;
        counters.writes_queued.fetch_add(1, Ordering::Relaxed);
        let held = counters.bytes_queued.fetch_add(bytes, Ordering::Relaxed);
        let queued = Some(Queued { job, bytes });
        // A write that is larger than the whole bound passes when it is alone.
        let sent = if held > 0 && held + bytes > WRITE_QUEUE_BYTES {
            Err(TrySendError::Full(queued))
        } else {
            self.writes.try_send(queued)
        };
        sent.map_err(|refused| {
            counters.writes_queued.fetch_sub(1, Ordering::Relaxed);
            counters.bytes_queued.fetch_sub(bytes, Ordering::Relaxed);
            self.refuse(operation, "writes", &refused)
        })
    }

    fn refuse<J>(&self, operation: &'static str, work: &'static str, refused: &TrySendError<J>) -> StoreError {
        match refused {
            TrySendError::Full(_) => {
                self.counters.overloaded.fetch_add(1, Ordering::Relaxed);
                StoreError::Overloaded { work }
            }
            TrySendError::Disconnected(_) => StoreError::Closed { operation },
        }
    }
}

async fn wait<T>(
    operation: &'static str,
    sent: Result<(), StoreError>,
    answer: oneshot::Receiver<Result<T, StoreError>>,
) -> Result<T, StoreError> {
    sent?;
    answer.await.unwrap_or(Err(StoreError::Closed { operation }))
}

/// The life of a thread that reads.
fn run_reads(connection: &Connection, queue: &Receiver<Option<Box<dyn Job>>>, counters: &Counters) {
    while let Ok(Some(mut job)) = queue.recv() {
        if job.is_abandoned() {
            continue;
        }
        job.run(connection);
        counters.reads.fetch_add(1, Ordering::Relaxed);
        job.answer(Ok(()));
    }
}

impl Store for SqliteStore {
    fn stats(&self) -> StoreStats {
        self.queues.counters.snapshot()
    }
}

/// Waits for the threads, so that after it the file may be moved or opened anew. The writer goes last: only then is
/// its connection the last one, and SQLite copies the log back into the file and removes it.
impl Drop for SqliteStore {
    fn drop(&mut self) {
        // A send fails only when the thread is gone already, which joining it then reports.
        for _ in &self.readers {
            let _ = self.queues.reads.send(None);
        }
        self.readers.drain(..).for_each(join);
        let _ = self.queues.writes.send(None);
        self.writer.take().into_iter().for_each(join);
    }
}

fn join(thread: JoinHandle<()>) {
    if thread.join().is_err() {
        tracing::error!("a registry thread panicked");
    }
}
