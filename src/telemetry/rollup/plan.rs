//! Which range is built next, and when hours are due. Pure.
use std::time::Duration;

use crate::telemetry::journal::Seq;

/// Numbers of a range at most. At 33,000 heartbeats a second (a million devices, one each 30 s) a minute has 2 million;
/// what waits longer is built in ranges of this size, each some seconds of one thread.
pub const MAX_RECORDS: u64 = 4_000_000;

/// The same of `device_1h`, whose rows are as many as devices and hours in a range, so that a range is long: an hour of a
/// hundred thousand devices, one heartbeat each 30 s, and a little more. Not longer, because of what is kept for each group:
/// a range of 100 million heartbeats, 30 days of ten thousand devices, was measured to need more than 2 GB.
pub const MAX_DEVICE_RECORDS: u64 = 16_000_000;

/// Hours are built once this many ranges of minutes wait, if not before: an hour of them.
pub const MAX_WAITING_RANGES: u32 = 60;

/// An inclusive range of a journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Range {
    pub first: Seq,
    pub last: Seq,
}

impl std::fmt::Display for Range {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// How far a table is; see `rollup_progress`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    pub through: Seq,
    pub planned: Seq,
    pub audited: Seq,
    /// When `through` was moved last, in milliseconds since 1970.
    pub built_at: i64,
}

/// The range to build now, where heartbeats are ready through `ready`.
///
/// A range that was planned is built as it was planned, because an attempt may have left some of its rows behind: until
/// all of it is ready (a restarted writer may be behind where its predecessor was), nothing is built.
pub fn next(progress: Progress, ready: Seq, at_most: u64) -> Option<Range> {
    let first = progress.through + 1;
    let last = if progress.planned > progress.through {
        progress.planned
    } else {
        ready.min(progress.through.saturating_add(at_most))
    };
    (first <= last && last <= ready).then_some(Range { first, last })
}

/// Whether the hour (or whatever `every` is) that `built_at` is in is over. A little later than that, so that what was
/// measured in its last seconds is in the same range: a range that spans two hours costs a row more for each device.
pub fn is_due(built_at: i64, now: i64, every: Duration) -> bool {
    let every = i64::try_from(every.as_millis()).unwrap_or(i64::MAX).max(1);
    let period = |at: i64| at.saturating_sub(every / 30).div_euclid(every);
    period(now) > period(built_at)
}

/// What no range of `present` has, between two numbers. `present` is in order.
pub fn gaps(within: Range, present: &[Range]) -> Vec<Range> {
    let mut gaps = Vec::new();
    let mut next = within.first;
    for range in present {
        if range.first > next {
            gaps.push(Range { first: next, last: range.first - 1 });
        }
        next = next.max(range.last.saturating_add(1));
    }
    if next <= within.last {
        gaps.push(Range { first: next, last: within.last });
    }
    gaps
}

/// A range in pieces: none is longer than `at_most`, and none lies across the first number of an `edge`.
pub fn cut(range: Range, edges: &[Seq], at_most: u64) -> Vec<Range> {
    let mut pieces = Vec::new();
    let mut first = range.first;
    while first <= range.last {
        let edge = edges.iter().filter(|edge| **edge > first).min().map_or(range.last, |edge| edge - 1);
        let last = range.last.min(edge).min(first.saturating_add(at_most - 1));
        pieces.push(Range { first, last });
        first = last + 1;
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: Seq, last: Seq) -> Range {
        Range { first, last }
    }

    #[test]
    fn a_range_begins_where_the_last_ended_and_has_a_limit() {
        let progress = Progress { through: 10, planned: 10, ..Progress::default() };
        assert_eq!(next(progress, 10, 100), None);
        assert_eq!(next(progress, 9, 100), None);
        assert_eq!(next(progress, 50, 100), Some(range(11, 50)));
        assert_eq!(next(progress, 500, 100), Some(range(11, 110)));
        assert_eq!(next(Progress::default(), 3, 100), Some(range(1, 3)));
    }

    #[test]
    fn a_planned_range_is_built_as_it_was_planned_once_all_of_it_is_there() {
        let progress = Progress { through: 10, planned: 60, ..Progress::default() };
        assert_eq!(next(progress, 59, 100), None);
        assert_eq!(next(progress, 60, 100), Some(range(11, 60)));
        assert_eq!(next(progress, 1_000, 10), Some(range(11, 60)));
    }

    #[test]
    fn hours_are_due_once_an_hour_a_little_after_it_ended() {
        const HOUR: Duration = Duration::from_secs(3_600);
        let minutes = |minutes: i64| minutes * 60_000;
        assert!(!is_due(minutes(5), minutes(59), HOUR));
        assert!(!is_due(minutes(5), minutes(61), HOUR));
        assert!(is_due(minutes(5), minutes(62), HOUR));
        assert!(!is_due(minutes(62), minutes(121), HOUR));
        assert!(is_due(0, minutes(62), HOUR), "never built");
        assert!(!is_due(minutes(62), minutes(5), HOUR), "a clock that was set back");
    }

    #[test]
    fn pieces_are_no_longer_than_the_limit_and_end_before_an_edge() {
        assert_eq!(cut(range(1, 10), &[], 100), [range(1, 10)]);
        assert_eq!(cut(range(1, 10), &[], 4), [range(1, 4), range(5, 8), range(9, 10)]);
        assert_eq!(cut(range(1, 10), &[8, 1, 4, 30], 100), [range(1, 3), range(4, 7), range(8, 10)]);
        assert_eq!(cut(range(1, 10), &[10], 6), [range(1, 6), range(7, 9), range(10, 10)]);
    }

    #[test]
    fn what_no_range_has_is_a_gap() {
        assert_eq!(gaps(range(1, 10), &[]), [range(1, 10)]);
        assert_eq!(gaps(range(1, 10), &[range(1, 10)]), []);
        assert_eq!(gaps(range(5, 10), &[range(1, 6), range(9, 20)]), [range(7, 8)]);
        assert_eq!(gaps(range(1, 10), &[range(3, 4), range(5, 6)]), [range(1, 2), range(7, 10)]);
        assert_eq!(gaps(range(1, 10), &[range(1, 8), range(2, 3)]), [range(9, 10)]);
        assert_eq!(gaps(range(1, 10), &[range(5, Seq::MAX)]), [range(1, 4)]);
    }
}
