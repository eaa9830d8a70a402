//! How long to wait before trying again: longer each time, never in step with others.
use std::time::Duration;

use crate::clock;

/// The first wait: longer than a dropped connection takes to come back, too short to notice in a second's batch.
const FIRST: Duration = Duration::from_millis(50);

/// The longest wait: how stale the writer may be after ClickHouse has come back from a long absence.
const LONGEST: Duration = Duration::from_secs(5);

/// Doubles from 50 ms to 5 s; each wait is drawn from its upper half, so that servers that lost ClickHouse at the same
/// moment do not come back at the same moment.
#[derive(Debug, Default)]
pub struct Backoff {
    attempts: u32,
}

impl Backoff {
    /// Waits that were handed out since the start or the last reset.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    pub fn next(&mut self) -> Duration {
        let full = FIRST.saturating_mul(1 << self.attempts.min(16)).min(LONGEST);
        self.attempts += 1;
        let half = full / 2;
        half + clock::random_part(half)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_limit_and_stay_in_the_upper_half() {
        let mut backoff = Backoff::default();
        let mut full = FIRST;
        for _ in 0..40 {
            let wait = backoff.next();
            assert!(wait >= full / 2 && wait <= full, "{wait:?} of {full:?}");
            full = (full * 2).min(LONGEST);
        }
        assert_eq!(full, LONGEST);
    }
}
