//! The receipt for appended records, on which an acknowledgement waits.
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use super::error::CommitError;
use super::group::Group;
use super::inner::Inner;
use super::options::SyncMode;
use super::Seq;

/// Turns that a waiter gives its runtime while another thread writes, before it has itself woken. A write takes
/// microseconds, and being woken from another thread costs a system call there and a turn here.
const TURNS_BEFORE_WAITING: u32 = 4;

/// A disk that takes longer does not answer at all; the client is told, instead of being kept.
const SLOWEST_COMMIT: Duration = Duration::from_secs(15);

/// Records that were taken. They will be written whether or not anybody waits; dropping a ticket stalls nobody.
#[must_use = "records are acknowledged only after `committed`"]
pub struct Ticket {
    pub(super) inner: Arc<Inner>,
    pub(super) group: Arc<Group>,
    pub(super) last_seq: Seq,
    pub(super) records: u64,
    /// Place in the group's list of waiters.
    pub(super) slot: Option<usize>,
}

impl Ticket {
    /// Number of the record; of the last one after `append_many`.
    pub fn seq(&self) -> Seq {
        self.last_seq
    }

    /// Number of the first record of `append_many`; the numbers up to [`seq`](Self::seq) are consecutive. Above `seq`
    /// when there was no record at all.
    pub fn first_seq(&self) -> Seq {
        self.last_seq + 1 - self.records
    }

    /// As [`committed`](Self::committed), for tickets that are awaited one after another: one whose group was written
    /// with an earlier ticket's costs nothing.
    pub async fn committed_in_turn(self) -> Result<Seq, CommitError> {
        match self.group.outcome() {
            Some(outcome) => outcome.map(|()| self.last_seq),
            None => self.committed().await,
        }
    }

    /// Waits until the records are as safe as the sync mode promises, and returns [`seq`](Self::seq). Cancel safe: the
    /// records stay taken. Needs a runtime whose timer is enabled.
    pub async fn committed(mut self) -> Result<Seq, CommitError> {
        let last_seq = self.last_seq;
        for _ in 0..TURNS_BEFORE_WAITING {
            // One turn for the runtime: every connection that is ready joins the group before it is written. On a
            // tokio current-thread runtime a yielded task goes on after the I/O driver was polled and its tasks ran.
            tokio::task::yield_now().await;
            if self.group.is_queued() {
                self.inner.flush();
            }
            if let Some(outcome) = self.group.outcome() {
                return outcome.map(|()| last_seq);
            }
            if self.inner.options.sync == SyncMode::Always {
                // What is still to come is an fsync, which takes longer than a few turns.
                break;
            }
        }
        let waited = poll_fn(|context| {
            if self.group.is_queued() {
                self.inner.flush();
            }
            if let Some(outcome) = self.group.outcome() {
                return Poll::Ready(outcome);
            }
            // Somebody else is writing, or the fsync is still to come. Registered first, then looked once more, so
            // that nothing that happened between the two is missed.
            let Self { group, slot, .. } = &mut self;
            group.register(slot, context.waker());
            if self.group.is_queued() {
                self.inner.flush();
            }
            self.group.outcome().map_or(Poll::Pending, Poll::Ready)
        });
        let outcome = tokio::time::timeout(SLOWEST_COMMIT, waited).await;
        outcome.unwrap_or(Err(CommitError::Slow { waited: SLOWEST_COMMIT })).map(|()| last_seq)
    }
}

impl Drop for Ticket {
    /// A waiter that goes away may have been the one that was to write, so it does that on the way out.
    fn drop(&mut self) {
        if self.group.is_queued() {
            self.inner.flush();
        }
    }
}
