//! The writer's one loop: what to read, what to send, what to audit, in which order.
//!
//! Deciding and sending overlap: while one batch is on its way, the next is read and joins it. Batches are committed in
//! order, so `committed` never runs ahead of a batch that is still in doubt.
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use futures_util::stream::{FuturesOrdered, StreamExt};
use futures_util::Future;

use super::audit::{Audit, AuditReport};
use super::backoff::Backoff;
use super::batch::{Batch, SeqRange};
use super::checkpoint::{Checkpoint, Position, MAX_OPEN_BATCHES};
use super::deliver::{chain, Courier};
use super::handle::Shared;
use super::plan;
use super::presence;
use super::source::Source;
use super::WriterOptions;
use crate::telemetry::journal::{Journal, Seq};

/// A batch on its way; resolves to its range.
type Sending = Pin<Box<dyn Future<Output = SeqRange>>>;
/// An audit on its way; resolves to what was audited.
type Auditing = Pin<Box<dyn Future<Output = (SeqRange, AuditReport)>>>;

pub struct Task {
    journal: Journal,
    courier: Arc<Courier>,
    options: WriterOptions,
    shared: Arc<Shared>,
    checkpoint: Checkpoint,
    source: Source,
    position: Position,
    /// Ranges that an earlier run had on their way: they are sent as the same batches again.
    reopened: VecDeque<SeqRange>,
    /// All through this seq may be in ClickHouse already: it was in the journal when this run began.
    suspect_through: Seq,
    sending: FuturesOrdered<Sending>,
    /// When the oldest row of each batch on its way was received.
    oldest: VecDeque<Option<i64>>,
    auditing: Option<Auditing>,
    audited: Seq,
    last_audit: Instant,
    last_batch: Option<Instant>,
    /// Records that make a full batch, going by the last one.
    full_batch: u64,
    /// When the first record that was not read yet was noticed.
    waiting_since: Option<Instant>,
    read_backoff: Backoff,
}

impl Task {
    pub fn new(
        journal: Journal,
        courier: Arc<Courier>,
        options: WriterOptions,
        shared: Arc<Shared>,
        checkpoint: Checkpoint,
        found: Option<Position>,
    ) -> Self {
        let suspect_through = journal.written_seq();
        // Asked after that: a journal without a segment has nothing at or below what was written then.
        let first_segment = journal.segments().first().map(|segment| segment.first_seq.saturating_sub(1));
        let before_first = first_segment.unwrap_or(suspect_through);
        let mut position = found.unwrap_or(Position { committed: before_first, open: Vec::new() });
        position.committed = position.committed.max(before_first);
        let reopened = position.open.drain(..).filter(|range| range.last > position.committed).collect();
        Self {
            source: Source::at(&journal, position.committed + 1),
            journal,
            courier,
            options,
            shared,
            checkpoint,
            position,
            reopened,
            suspect_through,
            sending: FuturesOrdered::new(),
            oldest: VecDeque::new(),
            auditing: None,
            // Whatever the journal still holds may have been lost since it was audited.
            audited: before_first,
            last_audit: Instant::now(),
            last_batch: None,
            full_batch: super::batch::MAX_BATCH_ROWS as u64,
            waiting_since: None,
            read_backoff: Backoff::default(),
        }
    }

    /// Runs until it is told to stop and everything written by then is committed.
    pub async fn run(mut self) {
        self.publish();
        tokio::select! {
            () = self.wait_for_former_inserts() => {}
            () = self.shared.aborted() => {}
        }
        loop {
            if self.is_done() {
                break;
            }
            if self.auditing.is_none() {
                self.auditing = self.next_audit();
            }
            let due = self.due();
            let can_send = self.sending.len() < MAX_OPEN_BATCHES;
            let full_at = self.source.next() + self.full_batch - 1;
            tokio::select! {
                biased;
                Some(range) = self.sending.next(), if !self.sending.is_empty() => self.committed(range),
                (range, _report) = async { self.auditing.as_mut().expect("guarded below").await },
                    if self.auditing.is_some() => self.audited(range),
                () = self.shared.woken() => {}
                // A full batch waits for nobody.
                () = written_through(&self.journal, full_at), if can_send => self.send_next().await,
                () = tokio::time::sleep_until(due.unwrap_or_else(far_away).into()), if can_send && due.is_some() => {
                    self.send_next().await;
                }
                () = written_through(&self.journal, self.source.next()), if self.waiting_since.is_none() => {
                    self.waiting_since = Some(Instant::now());
                }
                () = tokio::time::sleep_until((self.last_audit + self.options.audit_every).into()),
                    if self.auditing.is_none() => self.last_audit = Instant::now(),
            }
        }
        if !self.shared.is_aborted() {
            // So that the next start has nothing to ask.
            self.record();
        }
    }

    /// An insert of an earlier run may still be running, under a token that this run does not know any more.
    async fn wait_for_former_inserts(&self) {
        if self.suspect_through <= self.position.committed {
            return;
        }
        let prefix = format!("{}:", self.courier.journal.0);
        let range = SeqRange { first: self.position.committed + 1, last: self.suspect_through };
        let mut backoff = Backoff::default();
        loop {
            match presence::wait_until_idle(&self.courier.clickhouse, &prefix).await {
                Ok(true) => return,
                Ok(false) => tracing::warn!(%range, "an insert of an earlier run is still running, waiting for it"),
                Err(error) => self.courier.wait(&mut backoff, range, &error).await,
            }
        }
    }

    fn is_done(&self) -> bool {
        let is_drained = self.sending.is_empty() && self.position.committed >= self.journal.written_seq();
        self.shared.is_aborted() || (self.shared.is_stopping() && is_drained)
    }

    /// When what waits shall be sent, full or not.
    fn due(&self) -> Option<Instant> {
        let since = self.waiting_since?;
        let is_urgent = self.shared.is_stopping()
            || self.shared.flush_through() >= self.source.next()
            || self.source.next() <= self.suspect_through;
        Some(if is_urgent { since } else { plan::due(since, self.last_batch) })
    }

    /// Decides the next batch, records it, and puts it on its way.
    async fn send_next(&mut self) {
        let read = match self.reopened.front() {
            Some(range) => self.source.exactly_through(range.last),
            // Batches that may be there already and new ones are kept apart: new ones need no question.
            None if self.source.next() <= self.suspect_through => self.source.batch(self.suspect_through),
            None => self.source.batch(Seq::MAX),
        };
        let batch = match read {
            Ok(batch) => batch,
            Err(error) => {
                let first = self.source.next();
                self.courier
                    .wait(&mut self.read_backoff, SeqRange { first, last: self.journal.written_seq() }, &error)
                    .await;
                return;
            }
        };
        self.read_backoff = Backoff::default();
        let next = self.source.next();
        self.reopened.retain(|range| range.last >= next);
        let now = Instant::now();
        self.waiting_since = (self.journal.written_seq() >= next).then_some(now);
        // Nothing: the range holds no readable record. The journal keeps and counts damaged ones.
        let Some(batch) = batch else {
            self.settle();
            return;
        };
        self.last_batch = Some(now);
        self.full_batch = plan::records_of_full_batch(batch.records, batch.rows(), batch.bytes());
        self.position.open.push(batch.range);
        self.record();
        self.send(batch);
    }

    fn send(&mut self, batch: Batch) {
        let is_suspect = batch.range.first <= self.suspect_through;
        let courier = Arc::clone(&self.courier);
        self.oldest.push_back(batch.oldest_received_at());
        self.shared.set_oldest(self.oldest.front().copied().flatten());
        self.sending.push_back(Box::pin(async move {
            courier.deliver(&batch, is_suspect).await;
            batch.range
        }));
    }

    fn committed(&mut self, range: SeqRange) {
        self.position.committed = range.last;
        self.position.open.retain(|open| open.last > range.last);
        self.oldest.pop_front();
        self.shared.set_oldest(self.oldest.front().copied().flatten());
        self.settle();
    }

    /// With nothing on its way, all that was read is committed, damaged records behind the last batch included.
    fn settle(&mut self) {
        if self.sending.is_empty() {
            self.position.committed = self.position.committed.max(self.source.next() - 1);
        }
        self.publish();
    }

    /// A failure is no reason to stop: without the record, the next start asks for more.
    fn record(&mut self) {
        let Position { committed, open } = &self.position;
        // What an earlier run sent and this one has not come to yet may still arrive: its range must not be forgotten.
        let open = open.iter().chain(&self.reopened).copied().collect();
        if let Err(error) = self.checkpoint.record(&Position { committed: *committed, open }) {
            let error = chain(&error);
            tracing::error!(error, "checkpoint not written, the next start will compare more with clickhouse");
            self.courier.status.lock().last_error = Some(error);
        }
    }

    /// The oldest sealed segment that is committed; or, now and then and when asked, all that is committed.
    fn next_audit(&mut self) -> Option<Auditing> {
        let committed = self.position.committed;
        let sealed = self.journal.segments().into_iter().find(|segment| segment.sealed);
        let range = match sealed {
            Some(segment) if segment.last_seq <= committed => {
                SeqRange { first: segment.first_seq, last: segment.last_seq }
            }
            _ => {
                let is_due = self.last_audit.elapsed() >= self.options.audit_every;
                let is_asked = self.shared.audit_through() > self.audited;
                if !(is_due || is_asked) || committed <= self.audited {
                    return None;
                }
                SeqRange { first: self.audited + 1, last: committed }
            }
        };
        self.last_audit = Instant::now();
        let courier = Arc::clone(&self.courier);
        let journal = self.journal.clone();
        let retention = self.options.retention;
        Some(Box::pin(async move {
            let report = Audit { courier: &courier, journal: &journal, retention }.run(range).await;
            (range, report)
        }))
    }

    /// Only now may the journal forget.
    fn audited(&mut self, range: SeqRange) {
        self.auditing = None;
        self.audited = self.audited.max(range.last);
        // Told before it is forgotten, so that nobody sees a journal that begins behind what was audited.
        self.publish();
        let segments = self.journal.segments();
        let ends_segment = segments.iter().any(|segment| segment.sealed && segment.last_seq == range.last);
        let is_whole = segments.first().is_some_and(|segment| segment.first_seq >= range.first);
        if ends_segment && is_whole {
            match self.journal.trim_through(range.last) {
                Ok(_) => self.courier.set_aside.forget_through(range.last),
                Err(error) => tracing::error!(error = chain(&error), %range, "journal not trimmed"),
            }
        }
    }

    fn publish(&self) {
        self.shared.publish(self.position.committed, self.audited);
    }
}

/// Waits until `seq`, or a later one, is written. For ever when the journal was closed before.
async fn written_through(journal: &Journal, seq: Seq) {
    if journal.written_past(seq - 1).await < seq {
        std::future::pending().await
    }
}

/// A time that does not come, for a branch that is disabled anyway.
fn far_away() -> Instant {
    Instant::now() + std::time::Duration::from_secs(86_400)
}
