//! Two small statistics that live in the head: how long devices take, and how many were done lately.
use serde::{Deserialize, Serialize};

/// How long devices took, in buckets that double: bucket `n` holds durations of `n` binary digits of milliseconds, so
/// that a median is off by at most a factor of the square root of 2.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Durations {
    /// Without the empty ones at its end. At most 65.
    buckets: Vec<u32>,
}

impl Durations {
    pub(super) fn add(&mut self, millis: u64) {
        let index = (u64::BITS - millis.leading_zeros()) as usize;
        if self.buckets.len() <= index {
            self.buckets.resize(index + 1, 0);
        }
        if let Some(bucket) = self.buckets.get_mut(index) {
            *bucket = bucket.saturating_add(1);
        }
    }

    /// The median in milliseconds; `None` before the first one.
    pub fn median(&self) -> Option<u64> {
        let total: u64 = self.buckets.iter().map(|count| u64::from(*count)).sum();
        let mut left = total.checked_sub(1)? / 2;
        for (digits, count) in self.buckets.iter().enumerate() {
            let count = u64::from(*count);
            if left < count {
                // Spread evenly within the bucket, which holds `low..2 * low`.
                let low = if digits == 0 { 0.0 } else { 2_f64.powi(i32::try_from(digits).unwrap_or(64) - 1) };
                return Some((low + low * (left as f64 + 0.5) / count as f64) as u64);
            }
            left -= count;
        }
        None
    }
}

/// Devices that were done in each of the last minutes of watched time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Pace {
    /// Minute of the last count.
    minute: u64,
    /// Counts by minute modulo its length.
    counts: [u32; PACE_MINUTES],
}

/// Over how many minutes the rate is taken; the minute that runs is the last one.
const PACE_MINUTES: usize = 10;

impl Pace {
    pub(super) fn add(&mut self, watched: u64) {
        let minute = watched / 60_000;
        let passed = minute.saturating_sub(self.minute);
        for past in 1..=passed.min(PACE_MINUTES as u64) {
            if let Some(count) = self.counts.get_mut(index_of(self.minute + past)) {
                *count = 0;
            }
        }
        self.minute = self.minute.max(minute);
        if let Some(count) = self.counts.get_mut(index_of(self.minute)) {
            *count = count.saturating_add(1);
        }
    }

    /// Devices done in the last ten minutes of watched time.
    pub fn recent(&self, watched: u64) -> u64 {
        let minute = watched / 60_000;
        (0..PACE_MINUTES as u64)
            .filter_map(|back| self.minute.checked_sub(back))
            .filter(|counted| counted + (PACE_MINUTES as u64) > minute)
            .filter_map(|counted| self.counts.get(index_of(counted)))
            .map(|count| u64::from(*count))
            .sum()
    }

    /// Devices done a minute, over the last ten minutes or since `started`, whichever is shorter (a minute at least).
    pub fn per_minute(&self, started: u64, watched: u64) -> f64 {
        let span = watched.saturating_sub(started).clamp(60_000, PACE_MINUTES as u64 * 60_000);
        self.recent(watched) as f64 * 60_000.0 / span as f64
    }
}

fn index_of(minute: u64) -> usize {
    usize::try_from(minute % PACE_MINUTES as u64).unwrap_or_default()
}
