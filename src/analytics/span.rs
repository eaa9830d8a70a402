//! A span of time cut into intervals, and what is known of one of them.
use crate::clock::UnixMillis;

/// From `start` (included) to `end` (not), in intervals that begin at `start`; the last may be shorter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub start: UnixMillis,
    /// After `start`.
    pub end: UnixMillis,
    /// Milliseconds, 1 or more.
    pub interval: i64,
}

impl Span {
    /// How many intervals there are.
    pub fn len(&self) -> usize {
        let length = self.end.as_millis() - self.start.as_millis();
        usize::try_from(length.div_euclid(self.interval) + i64::from(length % self.interval != 0)).unwrap_or(0)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// When an interval begins.
    pub fn begin_of(&self, interval: usize) -> UnixMillis {
        let offset = i64::try_from(interval).unwrap_or(i64::MAX).saturating_mul(self.interval);
        UnixMillis::from_millis_clamped(self.start.as_millis().saturating_add(offset))
    }
}

/// The measurements of one group in one interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bucket {
    /// Which interval of the [`Span`], counted from 0.
    pub interval: usize,
    /// How many there are; never 0.
    pub count: u64,
    pub sum: f64,
    pub min: f64,
    pub max: f64,
    /// The last one by time.
    pub last: f64,
    /// Its time.
    pub last_at: UnixMillis,
    /// The quantile that was asked for, if one was.
    pub quantile: Option<f64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_interval_may_be_shorter() {
        let at = UnixMillis::from_millis_clamped;
        let span = |end| Span { start: at(1_000), end: at(end), interval: 500 };
        assert_eq!([1_001, 1_500, 1_501, 2_000].map(|end| span(end).len()), [1, 1, 2, 2]);
        assert_eq!(span(2_000).begin_of(1), at(1_500));
    }
}
