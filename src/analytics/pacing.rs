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

/// The longest pause. It holds up the next statement of the same question too, which must not give up for it: who waits for a
/// turn waits for longer than this and a statement of usual length.
pub(super) const MAX_PAUSE: Duration = Duration::from_secs(5);

/// Time between two looks at the threads. A look reads a small file for each, some 0.1 ms; less time shows only chance.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// What was seen longer ago says nothing about a question that begins now.
const FORGET_AFTER: Duration = Duration::from_secs(1);

/// A pause is made when threads waited for so much of the time in which they wanted a processor, while the question worked. On
/// two cores with heartbeats at their limit it is a half (docs/performance.md).
const SCARCE: f64 = 0.25;

/// A pause ends early when they waited for less than this. It is far below [`SCARCE`], since no question works then: heartbeats
/// at their limit wait less, and would still lose what the next question takes.
const EASED: f64 = 0.1;

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
        let id: u32 = task.file_name().to_str()?.parse().ok()?;
        // SAFETY: it takes numbers and touches no memory. Threads that answer lists have a lower priority: that they wait is
        // as it should be, and not for questions' sake.
        if unsafe { libc::getpriority(libc::PRIO_PROCESS, id) } > 0 {
            return None;
        }
        // A thread may have ended since the folder was read.
        let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        Some((id, Times::parse(&text)?))
    };
    tasks.filter_map(|task| times(task.ok()?)).collect()
}

/// For which part of the time in which they wanted a processor the threads waited for one, between two looks: 0 to 1.
fn shortage(before: &Threads, after: &Threads, between: Duration) -> f64 {
    let (mut ran, mut waited) = (0, 0);
    for (id, now) in after {
        let then = before.get(id).copied().unwrap_or_default();
        // The id of a thread that ended may be another's, which has less.
        ran += now.ran.saturating_sub(then.ran);
        waited += now.waited.saturating_sub(then.waited);
    }
    let wanted = (ran + waited) as f64;
    if wanted < NOTICEABLE * between.as_nanos() as f64 || wanted == 0.0 {
        return 0.0;
    }
    waited as f64 / wanted
}

/// How long at most a turn stays taken after its work.
fn longest_pause(worked: Duration) -> Duration {
    worked.saturating_mul(PAUSE_FACTOR).min(MAX_PAUSE)
}

struct Seen {
    at: Instant,
    threads: Threads,
    shortage: f64,
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
        let seen = Seen { at: Instant::now(), threads: threads(), shortage: 0.0 };
        Self { seen: Some(Arc::new(Mutex::new(seen))) }
    }

    /// Says that work begins, so that what is seen at its end is of its time.
    pub fn begin(&self) {
        let Some(seen) = &self.seen else { return };
        let mut seen = seen.lock();
        let is_old = seen.at.elapsed() > FORGET_AFTER;
        seen.look();
        if is_old {
            seen.shortage = 0.0;
        }
    }

    fn shortage(&self) -> f64 {
        let Some(seen) = &self.seen else { return 0.0 };
        let mut seen = seen.lock();
        seen.look();
        seen.shortage
    }

    /// Waits after work that took so long, if heartbeats were short of processors meanwhile, until they have had their part
    /// or are short of nothing.
    pub async fn pause(&self, worked: Duration) {
        pause(worked, || self.shortage()).await;
    }
}

async fn pause(worked: Duration, shortage: impl Fn() -> f64) {
    if shortage() < SCARCE {
        return;
    }
    let (begun, longest) = (Instant::now(), longest_pause(worked));
    loop {
        let left = longest.saturating_sub(begun.elapsed());
        tokio::time::sleep(left.min(LOOK_EVERY)).await;
        if begun.elapsed() >= longest || shortage() < EASED {
            return;
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
        self.shortage = shortage(&self.threads, &threads, between);
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
    fn threads_are_short_by_the_part_of_the_time_they_want_in_which_they_wait() {
        let before = of(&[(1, 5_000, 9_000), (2, 70, 10)]);
        let after = |ran: u64, waited: u64| of(&[(1, 5_000 + ran, 9_000 + waited), (2, 70 + ran, 10 + waited)]);
        for (ran, waited, expected) in [(900, 100, 0.1), (600, 400, 0.4), (1_000, 0, 0.0), (0, 1_000, 1.0)] {
            let found = shortage(&before, &after(ran, waited), SECOND);
            assert!((found - expected).abs() < 1e-9, "{ran} and {waited}: {found}");
        }
    }

    #[test]
    fn threads_that_want_next_to_nothing_are_short_of_nothing() {
        let (before, after) = (of(&[(1, 100, 100)]), of(&[(1, 110, 130)]));
        assert_eq!(shortage(&before, &after, SECOND), 0.0, "3 of 4, of a 25th of a processor");
        assert_eq!(shortage(&before, &after, SECOND / 5), 0.75, "the same in less time is more");
    }

    #[test]
    fn threads_that_come_and_go_take_nothing_back() {
        let before = of(&[(1, 1_000, 0), (2, 90_000, 90_000)]);
        let after = |times| shortage(&before, &of(times), SECOND);
        assert_eq!(after(&[(1, 1_300, 100)]), 0.25, "the one that ended does not count");
        assert_eq!(after(&[(1, 1_200, 0), (3, 300, 500)]), 0.5, "the new one does, from its beginning");
        assert_eq!(
            after(&[(1, 1_900, 0), (2, 10, 10)]),
            0.0,
            "one that got the id of another does not until it has more"
        );
    }

    #[test]
    fn without_counts_nothing_is_scarce() {
        assert_eq!(shortage(&Threads::new(), &Threads::new(), SECOND), 0.0);
        assert_eq!(shortage(&Threads::new(), &Threads::new(), Duration::ZERO), 0.0);
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

    /// Whether a pause after [`MAX_PAUSE`] of work, which would be as long, is over after so many looks: what each sees.
    async fn is_over_after(sees: &[f64]) -> bool {
        let looks = std::sync::atomic::AtomicUsize::new(0);
        let see = || sees.get(looks.fetch_add(1, std::sync::atomic::Ordering::Relaxed)).copied().unwrap_or(1.0);
        let within = LOOK_EVERY * (sees.len() as u32 + 5);
        tokio::time::timeout(within, pause(MAX_PAUSE, see)).await.is_ok()
    }

    #[tokio::test]
    async fn a_pause_begins_when_heartbeats_are_short_and_ends_early_when_they_are_short_of_nothing() {
        assert!(is_over_after(&[SCARCE - 0.01]).await, "none");
        assert!(!is_over_after(&[SCARCE, EASED]).await, "less, since no question works, and still short");
        assert!(is_over_after(&[SCARCE, SCARCE, EASED - 0.01]).await);
    }

    #[tokio::test]
    async fn a_pause_lasts_as_long_as_the_work_is_worth_and_no_longer() {
        let (worked, begun) = (LOOK_EVERY / 8, Instant::now());
        pause(worked, || 1.0).await;
        assert!(begun.elapsed() >= longest_pause(worked));
        let begun = Instant::now();
        Pacer::default().pause(MAX_PAUSE).await;
        assert!(begun.elapsed() < LOOK_EVERY, "ClickHouse has processors of its own");
    }

    #[test]
    fn what_was_seen_long_ago_does_not_count_for_work_that_begins() {
        let Some(at) = Instant::now().checked_sub(FORGET_AFTER * 2) else { return };
        let seen = Seen { at, threads: Threads::new(), shortage: 1.0 };
        let pacer = Pacer { seen: Some(Arc::new(Mutex::new(seen))) };
        pacer.begin();
        assert_eq!(pacer.seen.expect("a pacer that looks").lock().shortage, 0.0);
    }
}
