//! The keeper: the journal's one thread, for all that may block on the disk. It fsyncs, reserves sequence numbers,
//! deletes trimmed segments, and writes a group whose waiters have all gone away.
use std::sync::atomic::{AtomicBool, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::disk::DiskFile;
use super::error::CommitError;
use super::group::Group;
use super::inner::Inner;
use super::log::{Log, OpenSegment};
use super::options::SyncMode;
use super::rescue::rescue;
use super::segment::Segment;

/// How long after a failed reservation the next is tried. Half a block is left when the first try is made.
const RESERVE_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// What the keeper is asked to do.
#[derive(Default)]
struct Tasks {
    /// Written groups that wait for an fsync; as many as clients wait, and bounded by the journal's capacity.
    groups: Vec<Arc<Group>>,
    dirty_since: Option<Instant>,
    /// Trimmed segments to delete; bounded by the number of segments.
    deletions: Vec<Arc<Segment>>,
    flush: bool,
    reserve_at: Option<Instant>,
    close: bool,
}

#[derive(Default)]
pub(super) struct Mailbox {
    tasks: Mutex<Tasks>,
    wake: Condvar,
    /// So that a group after the first of an interval costs one load, not a lock.
    is_dirty: AtomicBool,
    is_reserving: AtomicBool,
}

impl Mailbox {
    fn post(&self, change: impl FnOnce(&mut Tasks)) {
        change(&mut self.tasks.lock());
        self.wake.notify_one();
    }

    pub fn sync_for(&self, group: Arc<Group>) {
        self.post(|tasks| tasks.groups.push(group));
    }

    pub fn mark_dirty(&self) {
        if !self.is_dirty.load(Acquire) && !self.is_dirty.swap(true, Acquire) {
            self.post(|tasks| tasks.dirty_since = Some(Instant::now()));
        }
    }

    pub fn flush(&self) {
        self.post(|tasks| tasks.flush = true);
    }

    pub fn reserve(&self) {
        if !self.is_reserving.load(Relaxed) && !self.is_reserving.swap(true, Relaxed) {
            self.post(|tasks| tasks.reserve_at = Some(Instant::now()));
        }
    }

    pub fn delete(&self, segments: Vec<Arc<Segment>>) {
        self.post(|tasks| tasks.deletions.extend(segments));
    }

    pub fn close(&self) {
        self.post(|tasks| tasks.close = true);
    }
}

/// One round of work.
struct Round {
    groups: Vec<Arc<Group>>,
    is_sync_due: bool,
    deletions: Vec<Arc<Segment>>,
    flush: bool,
    reserve: bool,
    close: bool,
}

/// The thread's body; ends when the journal is closed.
pub(super) fn run(inner: &Inner) {
    loop {
        let round = next_round(inner);
        if round.flush {
            inner.flush_blocking();
        }
        if round.reserve {
            reserve(inner);
        }
        if round.is_sync_due {
            sync(inner, round.groups);
        }
        for segment in round.deletions {
            delete(inner, &segment);
        }
        if round.close {
            return close(inner);
        }
    }
}

/// Waits for something to do.
fn next_round(inner: &Inner) -> Round {
    let mailbox = &inner.mailbox;
    let mut tasks = mailbox.tasks.lock();
    loop {
        let now = Instant::now();
        let sync_at = match inner.options.sync {
            SyncMode::Always => (!tasks.groups.is_empty()).then_some(now),
            SyncMode::Interval(every) => tasks.dirty_since.map(|since| since + every),
            SyncMode::Never => None,
        };
        let is_due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        let is_sync_due = is_due(sync_at);
        let reserve = is_due(tasks.reserve_at);
        if is_sync_due || reserve || tasks.flush || tasks.close || !tasks.deletions.is_empty() {
            if is_sync_due {
                tasks.dirty_since = None;
                // Before the log is looked at: a group written after this marks it dirty again.
                mailbox.is_dirty.store(false, Release);
            }
            if reserve {
                tasks.reserve_at = None;
            }
            return Round {
                groups: if is_sync_due { std::mem::take(&mut tasks.groups) } else { Vec::new() },
                is_sync_due,
                deletions: std::mem::take(&mut tasks.deletions),
                flush: std::mem::take(&mut tasks.flush),
                reserve,
                close: tasks.close,
            };
        }
        match [sync_at, tasks.reserve_at].into_iter().flatten().min() {
            Some(at) => {
                mailbox.wake.wait_until(&mut tasks, at);
            }
            None => mailbox.wake.wait(&mut tasks),
        }
    }
}

/// Makes durable what is written, and tells `groups`, all of which were written before.
fn sync(inner: &Inner, groups: Vec<Arc<Group>>) {
    let (targets, written, is_dir_dirty) = inner.with_log(|log| {
        let targets: Vec<(OpenSegment, u64)> = log
            .unsynced
            .iter()
            .chain(&log.active)
            .map(|open| (open.clone(), open.segment.extent().data_end))
            // Of a sealed one the footer may be all that is missing; it is synced with the rest or not needed.
            .filter(|(open, end)| open.segment.synced_end() < *end)
            .collect();
        log.unsynced.clear();
        (targets, inner.written.load(Acquire), std::mem::take(&mut log.is_dir_dirty))
    });
    let started = Instant::now();
    let result = sync_all(inner, &targets, is_dir_dirty);
    inner.counters.synced(started.elapsed());
    let outcome = match (result, inner.read_only.get()) {
        // Groups that were written while the move of their records failed.
        (_, Some(error)) => Err(CommitError::ReadOnly(error.clone())),
        (Ok(()), None) => {
            inner.synced.fetch_max(written, Release);
            Ok(())
        }
        (Err(error), None) => recover_from(inner, targets, error),
    };
    for group in groups {
        group.resolve(outcome.clone());
    }
}

/// Oldest first, so that what is durable has no holes.
fn sync_all(inner: &Inner, targets: &[(OpenSegment, u64)], is_dir_dirty: bool) -> Result<(), CommitError> {
    for (open, end) in targets {
        open.file.sync().map_err(|source| sync_error(&open.segment.path, source))?;
        open.segment.set_synced_end(*end);
    }
    if is_dir_dirty {
        inner.faults.sync_dir(&inner.options.dir).map_err(|source| sync_error(&inner.options.dir, source))?;
    }
    Ok(())
}

fn sync_error(path: &std::path::Path, source: std::io::Error) -> CommitError {
    CommitError::Sync { path: path.to_owned(), source: Arc::new(source) }
}

/// After a failed fsync the kernel calls the pages clean, and a second fsync would succeed without having written
/// them (<https://wiki.postgresql.org/wiki/Fsync_Errors>). So the segment is given up, and its unsynced
/// records are written once more, to a new file. When that fails too, the journal takes no more records.
fn recover_from(inner: &Inner, targets: Vec<(OpenSegment, u64)>, error: CommitError) -> Result<(), CommitError> {
    inner.counters.sync_errors.fetch_add(1, Relaxed);
    let cause = std::error::Error::source(&error).map(ToString::to_string);
    tracing::error!(%error, cause, "fsync failed, moving unsynced records to a new segment");
    let targets = targets.into_iter().map(|(open, _)| open).collect();
    match inner.with_log(|log| rescue(inner, log, targets)) {
        Ok(()) => {
            tracing::warn!("unsynced records are safe in a new segment");
            Ok(())
        }
        Err(error) => {
            tracing::error!(%error, "unsynced records could not be moved, the journal is read-only until a restart");
            Err(error)
        }
    }
}

fn reserve(inner: &Inner) {
    match inner.reserve() {
        Ok(()) => inner.mailbox.is_reserving.store(false, Release),
        Err(error) => {
            let path = inner.meta.lock().path().display().to_string();
            tracing::error!(path, %error, "cannot reserve sequence numbers, trying again");
            inner.mailbox.tasks.lock().reserve_at = Some(Instant::now() + RESERVE_AGAIN_AFTER);
        }
    }
}

fn delete(inner: &Inner, segment: &Segment) {
    let result =
        if segment.is_kept() { inner.quarantine.adopt(&segment.path) } else { std::fs::remove_file(&segment.path) };
    if let Err(error) = result {
        inner.counters.delete_errors.fetch_add(1, Relaxed);
        tracing::error!(path = %segment.path.display(), %error, "cannot delete trimmed segment, the next start finds it again");
    }
}

/// With `never` sealed segments are not queued for fsync while the journal runs; a clean stop is durable all the same.
fn queue_unsynced(inner: &Inner, log: &mut Log) {
    if inner.options.sync != SyncMode::Never {
        return;
    }
    for segment in inner.table.read().iter().filter(|segment| segment.synced_end() < segment.extent().data_end) {
        match DiskFile::open(&segment.path, &inner.faults) {
            Ok(file) => log.unsynced.push(OpenSegment { segment: segment.clone(), file: Arc::new(file) }),
            Err(error) => tracing::error!(path = %segment.path.display(), %error, "cannot open segment to fsync it"),
        }
    }
}

/// Writes the rest, makes it durable in every mode, and notes that no number was used beyond it.
fn close(inner: &Inner) {
    inner.flush_blocking();
    inner.with_log(|log| {
        log.seal(inner);
        queue_unsynced(inner, log);
    });
    let groups = std::mem::take(&mut inner.mailbox.tasks.lock().groups);
    sync(inner, groups);
    let next_seq = inner.pending.lock().next_seq;
    if inner.read_only.get().is_none() {
        if let Err(error) = inner.meta.lock().reserve(next_seq) {
            tracing::warn!(%error, "cannot give back reserved sequence numbers, the next start skips them");
        }
    }
    inner.is_stopped.store(true, Release);
    inner.written_changed.notify_waiters();
    inner.stopped.notify_waiters();
}
