//! The shared heart: where records queue, and how one of those who wait writes for all.
//!
//! # Group commit
//!
//! `append` frames the record into the pending buffer under a short lock and leaves. Whoever then waits for its ticket
//! tries the log's lock; the one who gets it takes the whole buffer, writes it with one `pwrite`, and resolves the group.
//! There is no timer, so an idle server writes at once, and no thread to hand over to, so a loaded one does not pay for
//! context switches. Nobody ever blocks on the log's lock except the keeper thread.
//!
//! Invariant that keeps anybody from waiting for ever: a waiter that finds the lock taken says so first and tries once
//! more; whoever releases the lock looks *afterwards* whether somebody said so, and then writes for them. It does not
//! write what nobody asked for: the next group may still be growing.
use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{fence, AtomicBool, AtomicU64, Ordering::Acquire, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};

use parking_lot::{Mutex, MutexGuard, RwLock};
use tokio::sync::Notify;

use super::disk::Faults;
use super::error::{AppendError, CommitError, TrimError};
use super::format::{
    frame_header, payload_crc, u32_at, Identity, FRAME_HEADER_BYTES, MAX_PAYLOAD_BYTES, SEGMENT_FOOTER_BYTES,
    SEGMENT_HEADER_BYTES,
};
use super::group::Group;
use super::keeper::Mailbox;
use super::log::Log;
use super::meta::{MetaFile, RESERVED_BLOCK};
use super::options::{JournalOptions, SyncMode};
use super::quarantine::Quarantine;
use super::segment::Segment;
use super::stats::Counters;
use super::Seq;

/// Bytes that may wait for the disk. At 75 MB/s (500,000 heartbeats) this is a stall of nearly half a second, after which
/// it is better to tell clients to come back later than to grow.
pub const MAX_PENDING_BYTES: usize = 32 << 20;

/// A waiter that writes goes on with what queued up behind it so many times, then leaves it to the next, so that one
/// worker cannot be held by the records of the others.
const MAX_ROUNDS: u32 = 2;

/// A buffer that grew in a burst is given back above this; 1 MiB holds a group of 7,000 usual heartbeats.
const KEPT_BUFFER_BYTES: usize = 1 << 20;

/// What a write adds to its records when it ends a segment and begins another.
const ROLL_BYTES: u64 = (SEGMENT_FOOTER_BYTES + SEGMENT_HEADER_BYTES) as u64;

/// Records that are framed and numbered, not yet written.
pub(super) struct Pending {
    pub buffer: Vec<u8>,
    pub records: u64,
    /// Number of the first record in `buffer`; `next_seq` when it is empty.
    pub first_seq: Seq,
    pub next_seq: Seq,
    /// First number that is not reserved.
    pub reserved_end: Seq,
    pub group: Arc<Group>,
    pub is_closed: bool,
}

/// A pending buffer on its way to the file.
pub(super) struct Batch {
    pub buffer: Vec<u8>,
    pub records: u64,
    pub first_seq: Seq,
    pub last_seq: Seq,
    pub group: Arc<Group>,
}

pub(super) struct Inner {
    pub options: JournalOptions,
    pub identity: Identity,
    pub faults: Faults,
    /// Size of a reservation; a constant but for tests.
    pub reserved_block: u64,
    pub pending: Mutex<Pending>,
    /// Lock order: `log` before `pending` before `table`.
    pub log: Mutex<Log>,
    /// Somebody found the log's lock taken since its holder last looked.
    pub is_asked: AtomicBool,
    pub table: RwLock<VecDeque<Arc<Segment>>>,
    pub meta: Mutex<MetaFile>,
    /// Bytes on disk and pending, against the capacity.
    pub claimed: AtomicU64,
    /// Bytes on disk.
    pub stored: AtomicU64,
    pub written: AtomicU64,
    pub synced: AtomicU64,
    pub written_changed: Notify,
    /// Least number that somebody waits for in `written_past`; `Seq::MAX` while nobody does. Waking the ClickHouse
    /// writer for each group, only to have it see that its batch is not full, cost a tenth of the server's time.
    pub awaited: AtomicU64,
    pub mailbox: Mailbox,
    pub quarantine: Quarantine,
    pub counters: Counters,
    /// Set once, when unsynced records could not be saved after a failed fsync.
    pub read_only: OnceLock<Arc<io::Error>>,
    pub is_stopped: AtomicBool,
    pub stopped: Notify,
}

impl Inner {
    pub fn append(&self, payload: &[u8]) -> Result<(Seq, Arc<Group>), AppendError> {
        if payload.len() > MAX_PAYLOAD_BYTES {
            return Err(AppendError::TooLarge { bytes: payload.len() as u64, limit: MAX_PAYLOAD_BYTES as u64 });
        }
        let crc = payload_crc(self.identity.salt, payload);
        let mut pending = self.admit(FRAME_HEADER_BYTES + payload.len(), 1)?;
        let seq = pending.next_seq;
        // Fits: checked above against MAX_PAYLOAD_BYTES.
        let header = frame_header(self.identity.salt, payload.len() as u32, seq, crc);
        pending.buffer.extend_from_slice(&header);
        pending.buffer.extend_from_slice(payload);
        pending.next_seq += 1;
        pending.records += 1;
        Ok((seq, pending.group.clone()))
    }

    /// All of `payloads` or none; the number returned is that of the last, they are consecutive.
    pub fn append_many<P: AsRef<[u8]>>(
        &self,
        payloads: impl IntoIterator<Item = P>,
    ) -> Result<(Seq, u64, Arc<Group>), AppendError> {
        // Checksums and copies first, numbers under the lock.
        let salt = self.identity.salt;
        let mut frames: Vec<u8> = Vec::new();
        let mut records = 0;
        for payload in payloads {
            let payload = payload.as_ref();
            let bytes = payload.len().max(frames.len() + FRAME_HEADER_BYTES + payload.len());
            if payload.len() > MAX_PAYLOAD_BYTES || bytes > MAX_PENDING_BYTES {
                let limit = if payload.len() > MAX_PAYLOAD_BYTES { MAX_PAYLOAD_BYTES } else { MAX_PENDING_BYTES };
                return Err(AppendError::TooLarge { bytes: bytes as u64, limit: limit as u64 });
            }
            frames.extend_from_slice(&(payload.len() as u32).to_le_bytes());
            frames.extend_from_slice(&[0; 8]);
            frames.extend_from_slice(&payload_crc(salt, payload).to_le_bytes());
            frames.extend_from_slice(&[0; 4]);
            frames.extend_from_slice(payload);
            records += 1;
        }
        let mut pending = self.admit(frames.len(), records)?;
        if records == 0 {
            // No write will come for it.
            return Ok((pending.next_seq - 1, 0, Arc::new(Group::committed())));
        }
        let mut seq = pending.next_seq;
        let mut at = 0;
        while at < frames.len() {
            let length = u32_at(&frames, at);
            let header = frame_header(salt, length, seq, u32_at(&frames, at + 12));
            frames[at..at + FRAME_HEADER_BYTES].copy_from_slice(&header);
            at += FRAME_HEADER_BYTES + length as usize;
            seq += 1;
        }
        pending.buffer.extend_from_slice(&frames);
        pending.next_seq = seq;
        pending.records += records;
        Ok((seq - 1, records, pending.group.clone()))
    }

    /// The pending buffer, locked, if `records` of `bytes` in all may go into it; their bytes are then claimed.
    fn admit(&self, bytes: usize, records: u64) -> Result<MutexGuard<'_, Pending>, AppendError> {
        if let Some(error) = self.read_only.get() {
            return Err(AppendError::ReadOnly(error.clone()));
        }
        let pending = self.pending.lock();
        if pending.is_closed {
            return Err(AppendError::Closed);
        }
        // All that claim for records hold this lock, so the sum cannot pass the capacity between the two steps. The write
        // may end a segment and begin another.
        let claimed = self.claimed.load(Relaxed);
        if claimed + bytes as u64 + ROLL_BYTES > self.options.capacity_bytes {
            self.counters.full_rejections.fetch_add(1, Relaxed);
            return Err(AppendError::Full { bytes: claimed, capacity: self.options.capacity_bytes });
        }
        if pending.buffer.len() + bytes > MAX_PENDING_BYTES {
            self.counters.busy_rejections.fetch_add(1, Relaxed);
            let bytes = pending.buffer.len() as u64;
            return Err(AppendError::Backlogged { bytes, limit: MAX_PENDING_BYTES as u64 });
        }
        let left = pending.reserved_end - pending.next_seq;
        if left < self.reserved_block / 2 {
            self.mailbox.reserve();
        }
        if left < records {
            self.counters.busy_rejections.fetch_add(1, Relaxed);
            return Err(AppendError::Unreserved);
        }
        self.claimed.fetch_add(bytes as u64, Relaxed);
        Ok(pending)
    }

    /// Writes what is pending, unless somebody else is at it; then that one will.
    pub fn flush(&self) {
        for _ in 0..MAX_ROUNDS {
            let Some(mut log) = self.log.try_lock().or_else(|| self.ask_for_log()) else { return };
            let done = self.write_pending_locked(&mut log);
            drop(log);
            if let Some((group, outcome)) = done {
                group.resolve(outcome);
            }
            // After the lock is free: the other half of `ask_for_log`.
            fence(SeqCst);
            if !self.is_asked.swap(false, SeqCst) || self.pending.lock().records == 0 {
                return;
            }
        }
        // Waiters of this group found the lock taken. One of them goes on, and should all of them be gone by
        // then (their clients hung up), the keeper does.
        let group = self.pending.lock().group.clone();
        group.nudge();
        self.mailbox.flush();
    }

    /// Leaves word for the holder of the log's lock that a record waits for it. Either the holder sees the word when it
    /// has let go, or it let go before, and then the lock can be had here.
    fn ask_for_log(&self) -> Option<MutexGuard<'_, Log>> {
        self.is_asked.store(true, SeqCst);
        fence(SeqCst);
        self.log.try_lock()
    }

    /// Writes what is pending however long it takes. Only the keeper thread may wait like this.
    pub fn flush_blocking(&self) {
        self.with_log(|_| ());
        while self.pending.lock().records > 0 {
            let done = self.write_pending_locked(&mut self.log.lock());
            if let Some((group, outcome)) = done {
                group.resolve(outcome);
            }
        }
    }

    /// Runs `work` with the log to itself, then writes for those who came meanwhile. Blocks: keeper thread only.
    pub fn with_log<T>(&self, work: impl FnOnce(&mut Log) -> T) -> T {
        let result = work(&mut self.log.lock());
        self.flush();
        result
    }

    /// Sequentially consistent against the registration in `written_past`: either this sees that somebody waits, or
    /// that one sees what was written.
    fn publish_written(&self, last_seq: Seq) {
        self.written.store(last_seq, SeqCst);
        if last_seq >= self.awaited.load(SeqCst) {
            // Those who wait for more register again.
            self.awaited.store(Seq::MAX, SeqCst);
            self.written_changed.notify_waiters();
        }
    }

    /// Returns the group that can be told its outcome, which the caller does when the lock is free. With `always` a
    /// written group goes to the keeper instead, still under the lock, so that an fsync never misses one.
    fn write_pending_locked(&self, log: &mut Log) -> Option<(Arc<Group>, Result<(), CommitError>)> {
        let batch = {
            let mut pending = self.pending.lock();
            if pending.records == 0 {
                return None;
            }
            let buffer = std::mem::replace(&mut pending.buffer, std::mem::take(&mut log.spare));
            let batch = Batch {
                buffer,
                records: std::mem::take(&mut pending.records),
                first_seq: pending.first_seq,
                last_seq: pending.next_seq - 1,
                group: std::mem::take(&mut pending.group),
            };
            pending.first_seq = pending.next_seq;
            batch.group.take();
            batch
        };
        let outcome = log.write(self, &batch);
        let bytes = batch.buffer.len() as u64;
        match &outcome {
            Ok(()) => {
                self.counters.committed(batch.records, bytes);
                self.stored.fetch_add(bytes, Relaxed);
                self.publish_written(batch.last_seq);
            }
            Err(error) => {
                self.claimed.fetch_sub(bytes, Relaxed);
                self.counters.write_errors.fetch_add(1, Relaxed);
                self.counters.failed_records.fetch_add(batch.records, Relaxed);
                log.report(error, batch.records);
            }
        }
        let mut buffer = batch.buffer;
        buffer.clear();
        buffer.shrink_to(KEPT_BUFFER_BYTES);
        log.spare = buffer;
        match (self.options.sync, &outcome) {
            (SyncMode::Always, Ok(())) => {
                self.mailbox.sync_for(batch.group);
                return None;
            }
            (SyncMode::Interval(_), Ok(())) => self.mailbox.mark_dirty(),
            _ => {}
        }
        Some((batch.group, outcome))
    }

    /// Durably reserves the next block of numbers.
    pub fn reserve(&self) -> io::Result<()> {
        let end = self.pending.lock().next_seq + self.reserved_block;
        self.meta.lock().reserve(end)?;
        self.pending.lock().reserved_end = end;
        Ok(())
    }

    pub fn trim_through(&self, seq_inclusive: Seq) -> Result<super::Trimmed, TrimError> {
        let written = self.pending.lock().first_seq - 1;
        if seq_inclusive > written {
            return Err(TrimError::Unwritten { asked: seq_inclusive, written });
        }
        let mut trimmed = super::Trimmed::default();
        let mut removed = Vec::new();
        {
            let mut table = self.table.write();
            while let Some(segment) = table.pop_front() {
                let extent = segment.extent();
                if !extent.is_sealed || extent.last_seq > seq_inclusive {
                    table.push_front(segment);
                    break;
                }
                trimmed.segments += 1;
                trimmed.bytes += extent.file_bytes;
                removed.push(segment);
            }
        }
        self.claimed.fetch_sub(trimmed.bytes, Relaxed);
        self.stored.fetch_sub(trimmed.bytes, Relaxed);
        if !removed.is_empty() {
            self.mailbox.delete(removed);
        }
        Ok(trimmed)
    }

    pub fn first_seq(&self) -> Seq {
        // Taken before the table, so that it is not above what a concurrent append then puts there; and from what is
        // written, since the first group of a journal has left the pending buffer before its segment is in the table.
        let next = self.written.load(Acquire) + 1;
        self.table.read().front().map_or(next, |segment| segment.first_seq)
    }

    pub async fn written_past(&self, seq: Seq) -> Seq {
        loop {
            let mut changed = std::pin::pin!(self.written_changed.notified());
            // Registered before the look, so that a write between the two is not missed.
            changed.as_mut().enable();
            self.awaited.fetch_min(seq.saturating_add(1), SeqCst);
            let written = self.written.load(SeqCst);
            if written > seq || self.is_stopped.load(Acquire) {
                return written;
            }
            changed.await;
        }
    }
}

/// A fresh reservation is a whole block.
pub(super) const DEFAULT_RESERVED_BLOCK: u64 = RESERVED_BLOCK;
