//! When heartbeats are to be sent: at once (closed loop), or at fixed times whatever the server does (open loop).
//!
//! With a rate, heartbeat n is due at `start + n / rate`, and its latency is measured from then, not from when a
//! connection was free for it. A server that stalls for a second is so charged for every heartbeat that was due in that
//! second. (Gil Tene, "How NOT to Measure Latency", calls the error that this avoids coordinated omission.)
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// The shortest sleep of the pacing thread. It bounds how late a heartbeat is woken (and that lateness counts as
/// latency), and how often the thread wakes: 4,000 times a second, some 2 % of one core. tokio's own timer would be
/// late by up to a millisecond.
const PACE_STEP: Duration = Duration::from_micros(250);

/// How soon the pacing thread notices that the run was stopped.
const PACE_STEP_MAX: Duration = Duration::from_millis(20);

/// The right to send one heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket {
    /// When it should be sent; its latency counts from here.
    pub(crate) due: Instant,
}

/// What a look at the schedule found.
enum Draw {
    Ticket(Ticket),
    /// The next heartbeat is not due yet.
    Early,
    /// There will be no more.
    Over,
}

/// One thread's share of the run's schedule. Its slots draw tickets; nobody else does.
#[derive(Debug)]
pub(crate) struct Schedule {
    start: Instant,
    end: Option<Instant>,
    /// Time between two heartbeats; `None` is the closed loop.
    interval: Option<Duration>,
    issued: AtomicU64,
    stopped: AtomicBool,
    wake: Notify,
}

impl Schedule {
    /// `rate` is this thread's own share, in heartbeats a second.
    pub(crate) fn new(start: Instant, end: Option<Instant>, rate: Option<f64>) -> Self {
        Self {
            start,
            end,
            interval: rate.map(|rate| Duration::from_secs_f64(1.0 / rate)),
            issued: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
            wake: Notify::new(),
        }
    }

    /// Waits for the next heartbeat's turn; `None` once the run is over and all that was due has been drawn.
    pub(crate) async fn next(&self) -> Option<Ticket> {
        let Some(interval) = self.interval else {
            let due = Instant::now();
            let over = self.is_stopped() || self.end.is_some_and(|end| due >= end);
            return (!over).then_some(Ticket { due });
        };
        loop {
            match self.draw(interval) {
                Draw::Ticket(ticket) => return Some(ticket),
                Draw::Over => return None,
                Draw::Early => {}
            }
            // Registered before a second look, so that a wake between look and wait is not lost.
            let mut woken = std::pin::pin!(self.wake.notified());
            woken.as_mut().enable();
            match self.draw(interval) {
                Draw::Ticket(ticket) => return Some(ticket),
                Draw::Over => return None,
                Draw::Early => woken.await,
            }
        }
    }

    fn draw(&self, interval: Duration) -> Draw {
        loop {
            let n = self.issued.load(Ordering::Relaxed);
            let due = self.due_at(n, interval);
            if self.is_stopped() || self.end.is_some_and(|end| due >= end) {
                return Draw::Over;
            }
            if due > Instant::now() {
                return Draw::Early;
            }
            if self.issued.compare_exchange(n, n + 1, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                return Draw::Ticket(Ticket { due });
            }
        }
    }

    /// Takes what was due by now and nobody drew; the run gives them up.
    pub(crate) fn give_up_rest(&self) -> Vec<Ticket> {
        let Some(interval) = self.interval else { return Vec::new() };
        let until = self.end.map_or_else(Instant::now, |end| end.min(Instant::now()));
        let mut rest = Vec::new();
        loop {
            let due = self.due_at(self.issued.load(Ordering::Relaxed), interval);
            if due >= until {
                return rest;
            }
            self.issued.fetch_add(1, Ordering::Relaxed);
            rest.push(Ticket { due });
        }
    }

    /// Ends the run: nothing more is handed out, not even what was due.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
        self.wake.notify_waiters();
    }

    pub(crate) fn is_open_loop(&self) -> bool {
        self.interval.is_some()
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    fn due_at(&self, n: u64, interval: Duration) -> Instant {
        self.start + Duration::from_secs_f64(interval.as_secs_f64() * n as f64)
    }

    /// Starts the thread that wakes waiting slots when their time has come; the closed loop needs none.
    /// It ends with the schedule.
    pub(crate) fn start_pacing(self: &Arc<Self>) -> std::io::Result<()> {
        let Some(interval) = self.interval else { return Ok(()) };
        let schedule = Arc::clone(self);
        std::thread::Builder::new().name("pace".to_owned()).spawn(move || schedule.pace(interval))?;
        Ok(())
    }

    fn pace(&self, interval: Duration) {
        let mut woken = 0;
        loop {
            let now = Instant::now();
            if self.is_stopped() || self.end.is_some_and(|end| now >= end) {
                self.wake.notify_waiters();
                return;
            }
            let due = (now.saturating_duration_since(self.start).as_secs_f64() / interval.as_secs_f64()) as u64 + 1;
            // One wake for each that fell due. Slots that finish look at the clock themselves, so the backlog of a
            // stalled server needs no wakes, and a wake that finds nobody leaves at most one spurious look.
            for _ in woken.max(self.issued.load(Ordering::Relaxed))..due {
                self.wake.notify_one();
            }
            woken = due;
            let until_next = self.due_at(due, interval).saturating_duration_since(now);
            std::thread::sleep(until_next.clamp(PACE_STEP, PACE_STEP_MAX));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_open_loop_hands_out_each_due_time_once_and_then_ends() {
        let start = Instant::now();
        let schedule = Arc::new(Schedule::new(start, Some(start + Duration::from_millis(100)), Some(1000.0)));
        schedule.start_pacing().unwrap();
        let draw = |schedule: Arc<Schedule>| async move {
            let mut dues = Vec::new();
            while let Some(ticket) = schedule.next().await {
                assert!(ticket.due <= Instant::now(), "drawn before it was due");
                dues.push(ticket.due);
            }
            dues
        };
        let (one, two) = tokio::join!(tokio::spawn(draw(schedule.clone())), tokio::spawn(draw(schedule.clone())));
        let mut dues = [one.unwrap(), two.unwrap()].concat();
        dues.sort();
        let expected: Vec<_> = (0..100).map(|n| schedule.due_at(n, Duration::from_millis(1))).collect();
        assert_eq!(dues, expected);
    }

    #[tokio::test]
    async fn what_a_late_slot_draws_carries_the_time_at_which_it_was_due() {
        let start = Instant::now() - Duration::from_secs(2);
        let schedule = Schedule::new(start, Some(start + Duration::from_secs(1)), Some(10.0));
        assert_eq!(schedule.next().await, Some(Ticket { due: start }));
        assert_eq!(schedule.next().await, Some(Ticket { due: start + Duration::from_millis(100) }));
        assert_eq!(schedule.give_up_rest().len(), 8);
        assert_eq!(schedule.next().await, None);
    }

    #[tokio::test]
    async fn a_stop_ends_the_wait_of_a_slow_schedule() {
        let schedule = Arc::new(Schedule::new(Instant::now() + Duration::from_secs(3600), None, Some(1.0)));
        schedule.start_pacing().unwrap();
        let waiting = tokio::spawn({
            let schedule = schedule.clone();
            async move { schedule.next().await }
        });
        tokio::task::yield_now().await;
        schedule.stop();
        let ended = tokio::time::timeout(Duration::from_secs(5), waiting).await.expect("the wait goes on");
        assert_eq!(ended.unwrap(), None);
    }
}
