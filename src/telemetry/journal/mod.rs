//! The journal: an append-only segmented log between the device actors and ClickHouse. A heartbeat is acknowledged after
//! its record is written here, and deleted from here after ClickHouse has it.
//!
//! # What holds
//!
//! - An acknowledged record survives a killed process in every [`SyncMode`]; what a power loss may take is said there.
//! - Numbers ([`Seq`]) strictly increase and are never used twice, over all restarts and power losses. They have gaps:
//!   the numbers of a failed group are skipped (its waiters were told them), and a start after a crash skips the rest of
//!   the block that was reserved (a record that ClickHouse has may be gone here; reusing its number would hide a
//!   later record behind it). A clean stop leaves no gap.
//! - A group that cannot be written is taken back as a whole: its waiters get the error, it does not appear after a
//!   restart, and the journal goes on when there is room again.
//! - A flipped bit is found, counted, its bytes are set aside in `quarantine/`, and all other records are delivered.
//! - After a failed fsync the unsynced records are written once more to a new file; if that fails, no more are taken.
//! - Nothing is ordered or decided by wall-clock time.
//!
//! # Where things are
//!
//! | file | owns |
//! |---|---|
//! | `format` | the bytes (pure) |
//! | `inner`, `group`, `ticket` | queueing and group commit |
//! | `log`, `segment`, `disk` | the files |
//! | `keeper`, `rescue` | fsync, and what follows when it fails |
//! | `meta` | identity and reserved numbers |
//! | `recovery`, `reader`, `quarantine` | reading back |
//!
//! Unix only: files are written at offsets and folders are fsynced.
mod disk;
mod error;
mod format;
mod group;
mod inner;
mod keeper;
mod log;
mod meta;
mod options;
mod quarantine;
mod reader;
mod recovery;
mod rescue;
mod segment;
mod stats;
mod ticket;

#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Acquire, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;

pub use error::{AppendError, CommitError, OpenError, ReadError, TrimError};
pub use format::MAX_PAYLOAD_BYTES;
pub use inner::MAX_PENDING_BYTES;
pub use options::{
    InvalidSyncMode, JournalOptions, SyncMode, DEFAULT_CAPACITY_BYTES, DEFAULT_SEGMENT_BYTES, MIN_CAPACITY_SEGMENTS,
    MIN_SEGMENT_BYTES,
};
pub use reader::{Batch, Reader};
pub use recovery::Recovery;
pub use segment::SegmentInfo;
pub use stats::{Distribution, JournalStats, DISTRIBUTION_BUCKETS};
pub use ticket::Ticket;

use disk::Faults;
use inner::{Inner, Pending, DEFAULT_RESERVED_BLOCK};

/// Number of a record; the first is 1.
pub type Seq = u64;

/// Name of a journal, made once with its folder. With the [`Seq`] it names a record in the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct JournalId(pub uuid::Uuid);

impl fmt::Display for JournalId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What [`Journal::trim_through`] freed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trimmed {
    pub segments: u64,
    pub bytes: u64,
}

/// A cheap handle. When the last one is dropped the journal is closed, which blocks for an fsync: in async code call
/// [`close`](Self::close) before.
#[derive(Clone)]
pub struct Journal {
    owner: Arc<Owner>,
}

/// Stops the keeper thread with the last handle.
struct Owner {
    inner: Arc<Inner>,
    keeper: Mutex<Option<JoinHandle<()>>>,
}

impl Journal {
    /// Opens or creates the journal in `options.dir`. Blocks while it reads the segment that was written to last.
    ///
    /// Only one process may have the folder open; the caller holds the lock of the data directory.
    pub fn open(options: JournalOptions) -> Result<(Self, Recovery), OpenError> {
        Self::open_with(options, DEFAULT_RESERVED_BLOCK, Faults::default())
    }

    fn open_with(options: JournalOptions, reserved_block: u64, faults: Faults) -> Result<(Self, Recovery), OpenError> {
        let at_least = |name, value, least| match value {
            value if value < least => Err(OpenError::Option { name, value, least }),
            _ => Ok(()),
        };
        at_least("segment_bytes", options.segment_bytes, MIN_SEGMENT_BYTES)?;
        let least_capacity = options.segment_bytes.saturating_mul(MIN_CAPACITY_SEGMENTS);
        at_least("capacity_bytes", options.capacity_bytes, least_capacity)?;
        std::fs::create_dir_all(&options.dir).map_err(OpenError::io("create", &options.dir))?;

        let counters = stats::Counters::default();
        let recovered = recovery::recover(&options.dir, &faults, &counters)?;
        let meta = meta::MetaFile::open(&options.dir, recovered.identity, recovered.generation, &faults)?;
        let recovery = recovered.recovery;
        let inner = Arc::new(Inner {
            quarantine: quarantine::Quarantine::new(&options.dir),
            identity: recovered.identity,
            faults,
            reserved_block,
            pending: Mutex::new(Pending {
                buffer: Vec::new(),
                records: 0,
                first_seq: recovery.next_seq,
                next_seq: recovery.next_seq,
                reserved_end: recovery.next_seq,
                group: Arc::default(),
                is_closed: false,
            }),
            log: Mutex::default(),
            is_asked: AtomicBool::new(false),
            table: RwLock::new(recovered.table),
            meta: Mutex::new(meta),
            claimed: AtomicU64::new(recovery.bytes),
            stored: AtomicU64::new(recovery.bytes),
            written: AtomicU64::new(recovered.last_seq),
            synced: AtomicU64::new(recovered.last_seq),
            written_changed: Notify::new(),
            awaited: AtomicU64::new(Seq::MAX),
            mailbox: keeper::Mailbox::default(),
            counters,
            read_only: OnceLock::new(),
            is_stopped: AtomicBool::new(false),
            stopped: Notify::new(),
            options,
        });
        if let Err(error) = inner.reserve() {
            // Not fatal: what is in the journal can be read and delivered, and the keeper tries again.
            tracing::error!(%error, "cannot reserve sequence numbers, no record is taken until that works");
            inner.mailbox.reserve();
        }
        let for_keeper = inner.clone();
        let keeper = std::thread::Builder::new()
            .name("journal-keeper".to_owned())
            .spawn(move || keeper::run(&for_keeper))
            .map_err(OpenError::io("start the keeper thread of", &inner.options.dir))?;
        tracing::info!(
            dir = %inner.options.dir.display(),
            id = %inner.identity.id,
            next_seq = recovery.next_seq,
            records = recovery.records,
            torn_bytes = recovery.torn_bytes,
            quarantined_bytes = recovery.quarantined_bytes,
            millis = recovery.duration.as_millis() as u64,
            "journal open"
        );
        Ok((Self { owner: Arc::new(Owner { inner, keeper: Mutex::new(Some(keeper)) }) }, recovery))
    }

    fn inner(&self) -> &Arc<Inner> {
        &self.owner.inner
    }

    pub fn id(&self) -> JournalId {
        JournalId(self.inner().identity.id)
    }

    /// Takes one record and gives it its number. Never waits for the disk.
    pub fn append(&self, payload: &[u8]) -> Result<Ticket, AppendError> {
        let (last_seq, group) = self.inner().append(payload)?;
        Ok(Ticket { inner: self.inner().clone(), group, last_seq, records: 1, slot: None })
    }

    /// Takes all of `payloads`, at most [`MAX_PENDING_BYTES`] with 20 bytes of framing each, or none. One ticket stands
    /// for all; a crash before it is committed may keep a first part of them.
    pub fn append_many<P: AsRef<[u8]>>(&self, payloads: impl IntoIterator<Item = P>) -> Result<Ticket, AppendError> {
        let (last_seq, records, group) = self.inner().append_many(payloads)?;
        Ok(Ticket { inner: self.inner().clone(), group, last_seq, records, slot: None })
    }

    /// The lowest number that may still be in the journal.
    pub fn first_seq(&self) -> Seq {
        self.inner().first_seq()
    }

    /// The highest number that can be read, 0 when nothing ever could. Stays behind the numbers given out by what is
    /// pending or failed.
    pub fn written_seq(&self) -> Seq {
        self.inner().written.load(Acquire)
    }

    /// Every record up to this number is durable. Moves in `never` mode only when the journal is closed.
    pub fn synced_seq(&self) -> Seq {
        self.inner().synced.load(Acquire)
    }

    /// Bytes on disk, untrimmed.
    pub fn bytes(&self) -> u64 {
        self.inner().stored.load(Relaxed)
    }

    /// Waits until [`written_seq`](Self::written_seq) is above `seq`, and returns it; returns at once, perhaps with less,
    /// when the journal is closed.
    pub async fn written_past(&self, seq: Seq) -> Seq {
        self.inner().written_past(seq).await
    }

    /// Whether no record is taken any more, until a restart: an fsync failed and its records could not be moved.
    pub fn is_read_only(&self) -> bool {
        self.inner().read_only.get().is_some()
    }

    /// A reader whose first record is the one with number `from`, or the next that exists.
    pub fn reader(&self, from: Seq) -> Reader {
        Reader::new(self.inner().clone(), from)
    }

    /// Gives up all whole segments whose records are at or below `seq_inclusive`. Their files are deleted in the
    /// background; after a crash some may be back, with the same numbers.
    pub fn trim_through(&self, seq_inclusive: Seq) -> Result<Trimmed, TrimError> {
        self.inner().trim_through(seq_inclusive)
    }

    /// Oldest first.
    pub fn segments(&self) -> Vec<SegmentInfo> {
        self.inner().table.read().iter().map(|segment| segment.info()).collect()
    }

    pub fn metrics(&self) -> JournalStats {
        // A statement of its own, so that the table is free again before `first_seq` looks into it: whoever reads it
        // twice at once waits for ever when a writer comes in between.
        let segments = self.inner().table.read().len() as u64;
        JournalStats {
            bytes: self.bytes(),
            capacity_bytes: self.inner().options.capacity_bytes,
            segments,
            first_seq: self.first_seq(),
            written_seq: self.written_seq(),
            synced_seq: self.synced_seq(),
            ..self.inner().counters.snapshot()
        }
    }

    /// Writes and fsyncs what was taken, in every sync mode, then stops. Later appends get
    /// [`AppendError::Closed`]; readers go on. May be called more than once.
    pub async fn close(&self) {
        self.owner.begin_close();
        let inner = self.inner();
        loop {
            let mut stopped = std::pin::pin!(inner.stopped.notified());
            stopped.as_mut().enable();
            if inner.is_stopped.load(Acquire) {
                return;
            }
            stopped.await;
        }
    }
}

impl Owner {
    fn begin_close(&self) {
        self.inner.pending.lock().is_closed = true;
        self.inner.mailbox.close();
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.begin_close();
        let keeper = self.keeper.lock().take();
        if keeper.is_some_and(|keeper| keeper.join().is_err()) {
            tracing::error!("journal keeper thread panicked");
        }
    }
}
