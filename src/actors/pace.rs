//! How often devices are told to report: their interval, spread so that a fleet which started together drifts apart,
//! and stretched while the server is behind, so that a fleet slows down before anything has to be refused.
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Longest stretch of an interval. A fleet that reports every 30 s then reports every 2 minutes, which quarters
/// its load; more would make operators blind just when they look.
pub const MAX_STRETCH: f64 = 4.0;

/// Share of the journal's capacity at which intervals begin to stretch, and at which they are longest. Below, a short
/// absence of ClickHouse (a restart, a merge) goes by unnoticed; above, the rest is kept for what is on its way.
pub const JOURNAL_SHARE: (f64, f64) = (0.5, 0.9);

/// Heartbeats between the door and their actors' answers at which intervals begin to stretch, and at which they are
/// longest. The actors answer some 500,000 a second, so the first is a delay of 20 ms, the second one of 130 ms.
const IN_FLIGHT: (f64, f64) = (10_000.0, MAX_IN_FLIGHT as f64);

/// Heartbeats that may be between the door and their actors' answers. Each holds its decoded message, about 1 KB, so
/// 64 MB in all; more are refused with a time to retry.
pub const MAX_IN_FLIGHT: usize = 65_536;

/// Spread of an interval either way.
const JITTER: f64 = 0.1;

/// What the stretch follows from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Load {
    /// Of the journal's capacity: 0 to 1.
    pub journal_share: f64,
    /// Heartbeats between the door and their actors' answers.
    pub in_flight: usize,
}

/// The factor for all intervals: 1 to [`MAX_STRETCH`], growing evenly between the bounds of the worse of the two.
pub fn stretch(load: Load) -> f64 {
    let share = |value: f64, (from, to): (f64, f64)| ((value - from) / (to - from)).clamp(0.0, 1.0);
    let worse = share(load.journal_share, JOURNAL_SHARE).max(share(load.in_flight as f64, IN_FLIGHT));
    1.0 + worse * (MAX_STRETCH - 1.0)
}

/// When a device with this interval should report next. `hash` spreads: of who it is and how often it reported.
pub fn next_heartbeat(interval: Duration, stretch: f64, hash: u64) -> Duration {
    // 1,001 steps from one end of the spread to the other.
    let jitter = (hash % 1_001) as f64 / 500.0 - 1.0;
    interval.mul_f64(stretch * (1.0 + JITTER * jitter))
}

/// The stretch as the actors read it with each heartbeat, in thousandths.
#[derive(Debug)]
pub struct Stretch(AtomicU32);

impl Default for Stretch {
    fn default() -> Self {
        Self(AtomicU32::new(1_000))
    }
}

impl Stretch {
    pub fn get(&self) -> f64 {
        f64::from(self.0.load(Ordering::Relaxed)) / 1_000.0
    }

    pub fn set(&self, stretch: f64) {
        self.0.store((stretch * 1_000.0) as u32, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_with_room_stretches_nothing_and_a_full_one_most() {
        for (journal_share, in_flight, expected) in [
            (0.0, 0, 1.0),
            (0.5, 10_000, 1.0),
            (0.7, 0, 2.5),
            (0.9, 0, 4.0),
            (1.0, 1_000_000, 4.0),
            (0.0, MAX_IN_FLIGHT, 4.0),
            (0.7, MAX_IN_FLIGHT, 4.0),
        ] {
            let found = stretch(Load { journal_share, in_flight });
            assert!((found - expected).abs() < 1e-9, "{journal_share} and {in_flight}: {found}");
        }
    }

    #[test]
    fn intervals_spread_evenly_within_a_tenth_either_way() {
        let interval = Duration::from_secs(30);
        let all: Vec<_> = (0..1_001).map(|hash| next_heartbeat(interval, 2.0, hash).as_secs_f64()).collect();
        let (least, most) = (all.iter().copied().fold(f64::MAX, f64::min), all.iter().copied().fold(0.0, f64::max));
        assert!((least - 54.0).abs() < 0.01 && (most - 66.0).abs() < 0.01, "{least} to {most}");
        let mean = all.iter().sum::<f64>() / all.len() as f64;
        assert!((mean - 60.0).abs() < 0.01, "{mean}");
    }
}
