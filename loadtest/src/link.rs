//! A connection that heals: when the server goes away it is opened again, with backoff, until the run ends.
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::device::Device;
use crate::random::Random;
use crate::target::Target;
use crate::transport::{self, Sender};
use crate::wire::Protocol;

/// First wait after a failed connect; doubled up to [`BACKOFF_MAX`]. A restarting server is noticed at once.
const BACKOFF_MIN: Duration = Duration::from_millis(10);

/// Longest wait between two connects: a restart is seen within it, and a thousand connections do not beat a dead port.
const BACKOFF_MAX: Duration = Duration::from_millis(500);

/// How often requests in flight are looked over for one that waits too long.
const WATCH_STEP: Duration = Duration::from_millis(100);

/// The address that all links of a run connect to. It can change while they run: a server that restarts on port 0
/// comes back on another port.
pub(crate) type SharedTarget = Arc<Mutex<Target>>;

/// One connection of the run, with the slots that send over it.
#[derive(Debug)]
pub(crate) struct Link {
    state: Mutex<State>,
    changed: Notify,
    closed: AtomicBool,
    /// Slots that still send over it.
    slots_left: AtomicUsize,
    /// For each slot when its request left, in ms since `epoch` plus one; 0 while none is in flight.
    in_flight: Vec<AtomicU64>,
    epoch: Instant,
    /// How often a connection was opened.
    opened: AtomicU64,
    /// Its devices without a heartbeat in flight, the longest idle first: round-robin. A device, or the gateway that
    /// speaks for it, keeps its connection, so devices stay with their link.
    idle: Mutex<VecDeque<Device>>,
}

#[derive(Debug, Default)]
struct State {
    /// Counts the connections; a slot that met the end of one waits for a higher number.
    generation: u64,
    sender: Option<Sender>,
}

impl Link {
    pub(crate) fn new(slots: usize, devices: VecDeque<Device>) -> Self {
        Self {
            state: Mutex::default(),
            changed: Notify::new(),
            closed: AtomicBool::new(false),
            slots_left: AtomicUsize::new(slots),
            in_flight: (0..slots).map(|_| AtomicU64::new(0)).collect(),
            epoch: Instant::now(),
            opened: AtomicU64::new(0),
            idle: Mutex::new(devices),
        }
    }

    pub(crate) fn idle(&self) -> MutexGuard<'_, VecDeque<Device>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a connection newer than `seen`; `None` when the run is over.
    pub(crate) async fn connection_after(&self, seen: u64) -> Option<(u64, Sender)> {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if self.closed.load(Ordering::Acquire) {
                return None;
            }
            {
                let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                if state.generation > seen {
                    let shared = state.sender.as_ref().and_then(Sender::share);
                    if let Some(sender) = shared.or_else(|| state.sender.take()) {
                        return Some((state.generation, sender));
                    }
                }
            }
            changed.await;
        }
    }

    /// Marks that a slot's request leaves now.
    pub(crate) fn departs(&self, slot: usize, now: Instant) {
        let ms = now.saturating_duration_since(self.epoch).as_millis() as u64;
        self.in_flight[slot].store(ms + 1, Ordering::Relaxed);
    }

    /// Marks that a slot's request has an answer, or never will.
    pub(crate) fn arrived(&self, slot: usize) {
        self.in_flight[slot].store(0, Ordering::Relaxed);
    }

    /// Marks that a slot will send no more. The last one ends the link: hyper closes a connection that nobody can send
    /// on, and it is not to be opened again.
    pub(crate) fn slot_ends(&self) {
        if self.slots_left.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.close();
        }
    }

    /// Ends the link: slots that wait for a connection give up, requests in flight fail.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.changed.notify_waiters();
    }

    pub(crate) fn reconnects(&self) -> u64 {
        self.opened.load(Ordering::Relaxed).saturating_sub(1)
    }

    fn oldest_in_flight(&self, now: Instant) -> Duration {
        let oldest = self.in_flight.iter().map(|ms| ms.load(Ordering::Relaxed)).filter(|ms| *ms > 0).min();
        oldest.map_or(Duration::ZERO, |ms| now.saturating_duration_since(self.epoch + Duration::from_millis(ms - 1)))
    }

    /// Keeps the link connected until it is closed. A request that waits longer than `timeout` costs the connection:
    /// its outcome, and that of all others in flight there, stays unknown.
    pub(crate) async fn keep(&self, target: SharedTarget, protocol: Protocol, timeout: Duration, seed: u64) {
        let mut random = Random::new(seed);
        let mut backoff = BACKOFF_MIN;
        while !self.closed.load(Ordering::Acquire) {
            let address = target.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let Ok(connection) = transport::connect(&address, protocol).await else {
                // Half to all of the backoff, so that connections of one run do not come back in step.
                self.pause(backoff.mul_f32(0.5 + 0.5 * random.unit())).await;
                backoff = (backoff * 2).min(BACKOFF_MAX);
                continue;
            };
            backoff = BACKOFF_MIN;
            self.opened.fetch_add(1, Ordering::Relaxed);
            // A task of its own, so that the hot path wakes only what it needs.
            let mut driver = tokio::spawn(connection.driver);
            {
                let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                state.generation += 1;
                state.sender = Some(connection.sender);
            }
            self.changed.notify_waiters();
            while tokio::time::timeout(WATCH_STEP, &mut driver).await.is_err() {
                if self.closed.load(Ordering::Acquire) || self.oldest_in_flight(Instant::now()) > timeout {
                    connection.hangup.hang_up();
                    driver.abort();
                    let _ = driver.await;
                    break;
                }
            }
            self.state.lock().unwrap_or_else(PoisonError::into_inner).sender = None;
        }
    }

    async fn pause(&self, duration: Duration) {
        let changed = self.changed.notified();
        if !self.closed.load(Ordering::Acquire) {
            let _ = tokio::time::timeout(duration, changed).await;
        }
    }
}
