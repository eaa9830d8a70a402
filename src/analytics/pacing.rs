//! How questions give way to heartbeats where processors are scarce.
//!
//! The embedded ClickHouse shares the machine with the server. A question that works without a pause takes a share of the
//! processors from heartbeats for as long as it works, and nothing stops the next one from beginning at once. So after its
//! work a turn stays taken for a while, *if* the server's own threads waited for a processor meanwhile: then ClickHouse works
//! on questions for a third of the time at most. Where there are processors enough, nobody waits for anything.
//!
//! Linux counts for each thread how long it ran and how long it was ready to run and waited (`schedstat`). That tells what is
//! asked here and nothing else: it holds in containers, whatever the others on the machine do. Where it cannot be read, no
//! pause is made, and the number of questions at once is all that bounds them.
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// A turn stays taken for so many times what its work took. One thread that works all the time takes a fifth to a quarter of
/// two cores from heartbeats (docs/performance.md); a third of that leaves room to the 80 % that they are promised.
const PAUSE_FACTOR: u32 = 2;

/// The longest pause. Who waits for a turn gives up after half of it, so more would not make anybody ask less.
const MAX_PAUSE: Duration = Duration::from_secs(20);

/// Time between two looks at the threads. A look reads a small file for each, some 0.1 ms; less time shows only chance.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// What was seen longer ago says nothing about a question that begins now.
const FORGET_AFTER: Duration = Duration::from_secs(1);

/// Processors are scarce when threads waited for so much of the time in which they wanted one. Two cores with heartbeats at
/// their limit show 0.4 without a question and 0.5 with one (docs/performance.md).
const SCARCE: f64 = 0.2;

/// Threads that want less of a processor than this, all together, are not short of any: what they wait is chance.
const NOTICEABLE: f64 = 0.1;

/// Nanoseconds since a thread began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Times {
    ran: u64,
    waited: u64,
}

impl Times {
    /// Of the text of a thread's `schedstat`: time on a processor, time waiting for one, and how often it got one.
    fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split_ascii_whitespace().map(str::parse);
        match (numbers.next(), numbers.next()) {
            (Some(Ok(ran)), Some(Ok(waited))) => Some(Self { ran, waited }),
            _ => None,
        }
    }
}

/// Threads of this process by their ids.
type Threads = HashMap<u32, Times>;

/// Nothing where there is no such count.
fn threads() -> Threads {
    let Ok(tasks) = std::fs::read_dir("/proc/self/task") else { return Threads::new() };
    let times = |task: std::fs::DirEntry| {
        let id = task.file_name().to_str()?.parse().ok()?;
        // A thread may have ended since the folder was read.
        let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        Some((id, Times::parse(&text)?))
    };
    tasks.filter_map(|task| times(task.ok()?)).collect()
}

/// Whether the threads were short of processors between two looks.
fn are_short(before: &Threads, after: &Threads, between: Duration) -> bool {
    let (mut ran, mut waited) = (0, 0);
    for (id, now) in after {
        let then = before.get(id).copied().unwrap_or_default();
        // The id of a thread that ended may be another's, which has less.
        ran += now.ran.saturating_sub(then.ran);
        waited += now.waited.saturating_sub(then.waited);
    }
    let wanted = (ran + waited) as f64;
    wanted >= NOTICEABLE * between.as_nanos() as f64 && waited as f64 >= SCARCE * wanted
}

/// How long at most a turn stays taken after its work.
fn longest_pause(worked: Duration) -> Duration {
    worked.saturating_mul(PAUSE_FACTOR).min(MAX_PAUSE)
}

struct Seen {
    at: Instant,
    threads: Threads,
    is_scarce: bool,
}

/// Tells whether this server is short of processors, and waits while it is. Cheap to clone.
#[derive(Clone, Default)]
pub struct Pacer {
    /// `None`: ClickHouse has processors of its own, and nobody has to wait for it.
    seen: Option<Arc<Mutex<Seen>>>,
}

impl Pacer {
    /// For a ClickHouse that shares this server's processors.
    pub fn of_shared_processors() -> Self {
        let seen = Seen { at: Instant::now(), threads: threads(), is_scarce: false };
        Self { seen: Some(Arc::new(Mutex::new(seen))) }
    }

    /// Says that work begins, so that what is seen at its end is of its time.
    pub fn begin(&self) {
        let Some(seen) = &self.seen else { return };
        let mut seen = seen.lock();
        let is_old = seen.at.elapsed() > FORGET_AFTER;
        seen.look();
        if is_old {
            seen.is_scarce = false;
        }
    }

    fn is_scarce(&self) -> bool {
        let Some(seen) = &self.seen else { return false };
        let mut seen = seen.lock();
        seen.look();
        seen.is_scarce
    }

    /// Waits after work that took so long, until heartbeats have had their part or are short of nothing.
    pub async fn pause(&self, worked: Duration) {
        let (begun, longest) = (Instant::now(), longest_pause(worked));
        while self.is_scarce() {
            let left = longest.saturating_sub(begun.elapsed());
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left.min(LOOK_EVERY)).await;
        }
    }
}

impl Seen {
    /// Looks again, unless it has just been done.
    fn look(&mut self) {
        let between = self.at.elapsed();
        if between < LOOK_EVERY {
            return;
        }
        let threads = threads();
        self.is_scarce = are_short(&self.threads, &threads, between);
        (self.at, self.threads) = (Instant::now(), threads);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Threads that ran and waited for so many milliseconds.
    fn of(times: &[(u32, u64, u64)]) -> Threads {
        let nanos = |ms: u64| ms * 1_000_000;
        times.iter().map(|(id, ran, waited)| (*id, Times { ran: nanos(*ran), waited: nanos(*waited) })).collect()
    }

    #[test]
    fn threads_are_short_when_they_wait_for_a_part_of_the_time_they_want() {
        let before = of(&[(1, 5_000, 9_000), (2, 70, 10)]);
        let after = |ran: u64, waited: u64| of(&[(1, 5_000 + ran, 9_000 + waited), (2, 70 + ran, 10 + waited)]);
        assert!(!are_short(&before, &after(900, 100), SECOND), "two cores for two threads");
        assert!(are_short(&before, &after(600, 400), SECOND));
        assert!(are_short(&before, &after(0, 1_000), SECOND), "starved is not idle");
    }

    #[test]
    fn threads_that_want_next_to_nothing_are_short_of_nothing() {
        let before = of(&[(1, 100, 100)]);
        assert!(!are_short(&before, &of(&[(1, 110, 130)]), SECOND), "3 of 4, of a 25th of a processor");
        assert!(are_short(&before, &of(&[(1, 110, 130)]), SECOND / 5), "the same in less time is more");
    }

    #[test]
    fn threads_that_come_and_go_take_nothing_back() {
        let before = of(&[(1, 1_000, 0), (2, 90_000, 90_000)]);
        assert!(are_short(&before, &of(&[(1, 1_200, 100)]), SECOND), "the one that ended does not count");
        assert!(
            are_short(&before, &of(&[(1, 1_200, 0), (3, 300, 300)]), SECOND),
            "the new one does, from its beginning"
        );
        assert!(!are_short(&before, &of(&[(1, 1_900, 0), (2, 10, 10)]), SECOND), "nor does one that got its id");
    }

    #[test]
    fn without_counts_nothing_is_scarce() {
        assert!(!are_short(&Threads::new(), &Threads::new(), SECOND));
        assert_eq!(Times::parse("12 34 5\n"), Some(Times { ran: 12, waited: 34 }));
        for text in ["", "12", "12 x 5", "-1 0 0"] {
            assert_eq!(Times::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_pause_grows_with_the_work_up_to_its_bound() {
        assert_eq!(longest_pause(Duration::from_millis(7)), Duration::from_millis(7) * PAUSE_FACTOR);
        assert_eq!(longest_pause(30 * SECOND), MAX_PAUSE);
        assert_eq!(longest_pause(Duration::MAX), MAX_PAUSE);
    }

    /// A pacer whose last look was just now, so that it does not look again before the end of a short pause.
    fn that_saw(is_scarce: bool) -> Pacer {
        let seen = Seen { at: Instant::now(), threads: threads(), is_scarce };
        Pacer { seen: Some(Arc::new(Mutex::new(seen))) }
    }

    #[tokio::test]
    async fn only_who_worked_while_processors_were_scarce_pauses() {
        let worked = LOOK_EVERY / 8;
        let paused = async |pacer: Pacer| {
            let begun = Instant::now();
            pacer.pause(worked).await;
            begun.elapsed()
        };
        assert!(paused(that_saw(true)).await >= longest_pause(worked));
        for pacer in [that_saw(false), Pacer::default()] {
            assert!(paused(pacer).await < longest_pause(worked));
        }
    }

    #[test]
    fn what_was_seen_long_ago_does_not_count_for_work_that_begins() {
        let Some(at) = Instant::now().checked_sub(FORGET_AFTER * 2) else { return };
        let starved = threads().into_keys().map(|id| (id, Times::default())).collect();
        let seen = Seen { at, threads: starved, is_scarce: true };
        let pacer = Pacer { seen: Some(Arc::new(Mutex::new(seen))) };
        pacer.begin();
        assert!(!pacer.is_scarce());
    }
}
