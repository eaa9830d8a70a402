//! A commit group: the records that one write carries, and everybody who waits for it.
use std::sync::atomic::{AtomicU8, Ordering::Acquire, Ordering::Release};
use std::task::Waker;

use parking_lot::Mutex;

use super::error::CommitError;

/// Its records are in the pending buffer; somebody has yet to write them.
const QUEUED: u8 = 0;
/// Somebody is writing it, or it waits for the fsync: whoever has it will resolve it.
const TAKEN: u8 = 1;
const COMMITTED: u8 = 2;
const FAILED: u8 = 3;

/// Queued, then taken, then resolved, once.
#[derive(Default)]
pub(super) struct Group {
    state: AtomicU8,
    waiters: Mutex<Waiters>,
}

#[derive(Default)]
struct Waiters {
    /// One slot a waiter, bounded by the tickets of the group. A waiter that went away leaves a waker that does nothing.
    wakers: Vec<Waker>,
    error: Option<CommitError>,
}

impl Group {
    /// A group of no records, with nothing to wait for.
    pub fn committed() -> Self {
        Self { state: AtomicU8::new(COMMITTED), ..Self::default() }
    }

    /// Whether a waiter should see to it that it is written.
    pub fn is_queued(&self) -> bool {
        self.state.load(Acquire) == QUEUED
    }

    pub fn take(&self) {
        self.state.store(TAKEN, Release);
    }

    /// `None` while it is not resolved.
    pub fn outcome(&self) -> Option<Result<(), CommitError>> {
        match self.state.load(Acquire) {
            COMMITTED => Some(Ok(())),
            // Invariant: the error is stored before the state; a group without one is not failed.
            FAILED => self.waiters.lock().error.clone().map(Err),
            _ => None,
        }
    }

    /// Has `waker` woken when the group is resolved. `slot` is the waiter's own memory of its place.
    pub fn register(&self, slot: &mut Option<usize>, waker: &Waker) {
        let mut waiters = self.waiters.lock();
        if self.state.load(Acquire) > TAKEN {
            return;
        }
        match *slot {
            Some(at) => waiters.wakers[at].clone_from(waker),
            None => {
                *slot = Some(waiters.wakers.len());
                waiters.wakers.push(waker.clone());
            }
        }
    }

    /// Has every waiter look again, so that one of them takes over the writing.
    pub fn nudge(&self) {
        for waker in &self.waiters.lock().wakers {
            waker.wake_by_ref();
        }
    }

    pub fn resolve(&self, outcome: Result<(), CommitError>) {
        let wakers = {
            let mut waiters = self.waiters.lock();
            let state = if outcome.is_ok() { COMMITTED } else { FAILED };
            waiters.error = outcome.err();
            self.state.store(state, Release);
            std::mem::take(&mut waiters.wakers)
        };
        wakers.into_iter().for_each(Waker::wake);
    }
}
