//! The bucket: a Generic Cell Rate Algorithm in one `AtomicU64`.
//!
//! ITU-T I.371, "virtual scheduling": a bucket remembers only its theoretical arrival time (TAT), the moment at
//! which it will be full again if nothing more comes. A call moves the TAT forward by one emission interval
//! (period ÷ rate) and conforms if that leaves it within the burst of now. (Brandur Leach, "Rate Limiting, Cells,
//! and GCRA", 2015, tells the same with figures.) Unlike a token bucket it needs one word and no timer; unlike a
//! fixed window it does not let twice the rate through around the window's edge.
//!
//! What it promises, over any span of time t: never more than `rate × t + burst` calls.
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::decision::Decision;

/// How many calls, in what time: `count` at once, and one more every `period ÷ count`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    burst: u32,
    /// Nanoseconds from one call to the next at the full rate; at least 1.
    interval: u64,
    /// Nanoseconds to fill an empty bucket: `interval × burst`.
    capacity: u64,
}

impl RateLimit {
    /// `count` calls a second, as many at once; `None` (no limit) for 0.
    pub fn per_second(count: u32) -> Option<Self> {
        Self::new(count, Duration::from_secs(1), count)
    }

    /// `count` calls a minute, as many at once; `None` (no limit) for 0.
    pub fn per_minute(count: u32) -> Option<Self> {
        Self::new(count, Duration::from_secs(60), count)
    }

    /// `count` calls a `period` in the long run, `burst` (at least 1) at once; `None` (no limit) for a count of 0.
    pub fn new(count: u32, period: Duration, burst: u32) -> Option<Self> {
        let burst = burst.max(1);
        let period = u64::try_from(period.as_nanos()).unwrap_or(u64::MAX);
        let interval = period.checked_div(u64::from(count))?.max(1);
        Some(Self { burst, interval, capacity: interval.saturating_mul(u64::from(burst)) })
    }

    /// The most calls that may come at once; what `X-RateLimit-Limit` prints.
    pub const fn burst(&self) -> u32 {
        self.burst
    }
}

/// How far behind another's a thread's `now` may be before it is taken for a clock that went back: a thread that was
/// suspended between reading the clock and reaching the bucket must not refill it.
const LATE_THREAD: u64 = 1_000_000_000;

/// One bucket, full when new. Eight bytes, shared by reference between threads, never blocking.
#[derive(Debug, Default)]
pub struct Gcra {
    /// The theoretical arrival time, in nanoseconds of the clock that is handed to [`Gcra::check`].
    full_at: AtomicU64,
}

impl Gcra {
    /// Takes one call out of the bucket if there is one. `now`: nanoseconds of one monotonic clock.
    ///
    /// A `now` that goes back (it should not), or a limit that was lowered, costs the caller at most one empty
    /// bucket of waiting; a leap forward finds the bucket full, as any other pause does.
    pub fn check(&self, limit: &RateLimit, now: u64) -> Decision {
        // Relaxed is enough: the bucket guards no other memory, only its own count.
        let mut seen = self.full_at.load(Ordering::Relaxed);
        loop {
            let full_at = Self::clamp(seen, limit, now);
            let taken = full_at.saturating_add(limit.interval);
            let backlog = taken - now;
            if backlog > limit.capacity {
                if seen > full_at.saturating_add(LATE_THREAD) {
                    // Losing this race is fine: whoever won has written a value of this clock and limit.
                    let _ = self.full_at.compare_exchange(seen, full_at, Ordering::Relaxed, Ordering::Relaxed);
                }
                return Decision::refused(limit.burst, full_at - now, backlog - limit.capacity);
            }
            match self.full_at.compare_exchange_weak(seen, taken, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => {
                    let remaining = (limit.capacity - backlog) / limit.interval;
                    return Decision::allowed(limit.burst, remaining, backlog);
                }
                Err(current) => seen = current,
            }
        }
    }

    /// What [`Gcra::check`] would find, without taking anything.
    pub fn peek(&self, limit: &RateLimit, now: u64) -> Decision {
        let backlog = Self::clamp(self.full_at.load(Ordering::Relaxed), limit, now) - now;
        let remaining = (limit.capacity - backlog) / limit.interval;
        Decision::allowed(limit.burst, remaining, backlog)
    }

    /// Whether nothing is lost by forgetting this bucket: a new one would be as full.
    pub fn is_full(&self, now: u64) -> bool {
        self.full_at.load(Ordering::Relaxed) <= now
    }

    /// Keeps a TAT within what the limit can produce: not before now (a bucket never holds more than its burst),
    /// and not further ahead than an empty bucket (a clock that went back, or a limit that was lowered).
    fn clamp(full_at: u64, limit: &RateLimit, now: u64) -> u64 {
        full_at.clamp(now, now.saturating_add(limit.capacity))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn the_references_device_limit_is_ten_at_once_then_one_every_six_seconds() {
        let limit = RateLimit::per_minute(10).unwrap();
        let bucket = Gcra::default();
        for remaining in (0..10).rev() {
            let decision = bucket.check(&limit, 0);
            assert!(decision.is_allowed());
            assert_eq!(decision.quota.remaining, remaining);
        }
        let refused = bucket.check(&limit, 0);
        assert_eq!(refused.retry_after, Some(Duration::from_secs(6)));
        assert_eq!(
            refused.quota,
            super::super::Quota { limit: 10, remaining: 0, reset_after: Duration::from_secs(60) }
        );
        assert!(!bucket.check(&limit, 6 * SECOND - 1).is_allowed());
        assert!(bucket.check(&limit, 6 * SECOND).is_allowed());
        assert!(!bucket.check(&limit, 6 * SECOND).is_allowed());
    }

    #[test]
    fn a_limit_of_nothing_is_no_limit() {
        assert_eq!(RateLimit::per_second(0), None);
        assert_eq!(RateLimit::per_minute(0), None);
    }

    #[test]
    fn extreme_limits_and_clocks_do_not_overflow() {
        for limit in [
            RateLimit::new(u32::MAX, Duration::from_nanos(1), u32::MAX),
            RateLimit::new(1, Duration::MAX, u32::MAX),
            RateLimit::new(1, Duration::MAX, 0),
        ] {
            let limit = limit.unwrap();
            for now in [0, 1, u64::MAX / 2, u64::MAX - 1, u64::MAX] {
                let bucket = Gcra::default();
                bucket.check(&limit, now);
                bucket.check(&limit, now);
                bucket.peek(&limit, 0);
            }
        }
    }

    #[test]
    fn a_clock_that_goes_back_costs_at_most_one_full_bucket_of_waiting() {
        let limit = RateLimit::per_second(10).unwrap();
        let bucket = Gcra::default();
        assert!(bucket.check(&limit, 1_000_000 * SECOND).is_allowed());
        let refused = bucket.check(&limit, 0);
        assert!(refused.retry_after.unwrap() <= Duration::from_secs(1), "{refused:?}");
        assert!(bucket.check(&limit, SECOND).is_allowed());
    }

    #[test]
    fn a_thread_that_comes_late_with_an_old_time_refills_nothing() {
        let limit = RateLimit::per_second(10).unwrap();
        let bucket = Gcra::default();
        let now = 1_000 * SECOND;
        while bucket.check(&limit, now).is_allowed() {}
        assert!(!bucket.check(&limit, now - SECOND).is_allowed());
        assert!(!bucket.check(&limit, now).is_allowed());
    }

    #[test]
    fn a_lowered_limit_applies_to_buckets_that_an_earlier_limit_filled() {
        let bucket = Gcra::default();
        let slow = RateLimit::new(1, Duration::from_secs(3600), 10).unwrap();
        while bucket.check(&slow, 0).is_allowed() {}
        let fast = RateLimit::per_second(10).unwrap();
        assert!(bucket.check(&fast, 0).retry_after.unwrap() <= Duration::from_secs(1));
    }

    #[test]
    fn threads_that_share_a_bucket_get_exactly_its_burst() {
        let limit = RateLimit::new(1, Duration::from_secs(3600), 1_000).unwrap();
        let bucket = Gcra::default();
        let allowed = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        if bucket.check(&limit, 5).is_allowed() {
                            allowed.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        assert_eq!(allowed.into_inner(), 1_000);
    }

    /// Limits of every useful size, and calls at random distances from none to several periods.
    fn limits() -> impl Strategy<Value = RateLimit> {
        (1_u32..1_000, 1_u64..120 * SECOND, 1_u32..1_000)
            .prop_map(|(count, period, burst)| RateLimit::new(count, Duration::from_nanos(period), burst).unwrap())
    }

    proptest! {
        #[test]
        fn tokens_never_refill_past_burst(limit in limits(), pause in any::<u64>()) {
            let bucket = Gcra::default();
            let now = pause.min(u64::MAX / 2);
            let allowed = (0..=limit.burst()).filter(|_| bucket.check(&limit, now).is_allowed()).count();
            prop_assert_eq!(allowed, limit.burst() as usize);
        }

        #[test]
        fn no_span_of_time_lets_more_through_than_rate_and_burst(
            limit in limits(),
            gaps in proptest::collection::vec(0_u64..10 * SECOND, 1..300),
        ) {
            let bucket = Gcra::default();
            let mut now = 0;
            let mut times = Vec::new();
            for gap in gaps {
                now += gap;
                if bucket.check(&limit, now).is_allowed() {
                    times.push(now);
                }
            }
            for (first, &from) in times.iter().enumerate() {
                for (last, &to) in times.iter().enumerate().skip(first) {
                    let let_through = (last - first + 1) as u64;
                    let at_most = (to - from) / limit.interval + u64::from(limit.burst());
                    prop_assert!(let_through <= at_most, "{} of {} in {} ns", let_through, at_most, to - from);
                }
            }
        }

        #[test]
        fn waiting_as_told_is_enough_and_necessary(limit in limits(), start in 0_u64..1_000 * SECOND) {
            let bucket = Gcra::default();
            let refused = loop {
                let decision = bucket.check(&limit, start);
                if !decision.is_allowed() {
                    break decision;
                }
            };
            let wait = u64::try_from(refused.retry_after.unwrap().as_nanos()).unwrap();
            prop_assert!(!bucket.check(&limit, start + wait - 1).is_allowed());
            prop_assert!(bucket.check(&limit, start + wait).is_allowed());
        }

        #[test]
        fn remaining_says_how_many_more_calls_pass(limit in limits(), taken in 1_u32..500) {
            let bucket = Gcra::default();
            let mut last = bucket.check(&limit, 7);
            for _ in 1..taken.min(limit.burst()) {
                last = bucket.check(&limit, 7);
            }
            prop_assert_eq!(bucket.peek(&limit, 7).quota.remaining, last.quota.remaining);
            for _ in 0..last.quota.remaining {
                prop_assert!(bucket.check(&limit, 7).is_allowed());
            }
            prop_assert!(!bucket.check(&limit, 7).is_allowed());
            prop_assert!(bucket.is_full(7 + limit.capacity));
        }
    }
}
