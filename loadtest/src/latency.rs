//! What a thread measured: latencies in a histogram, outcomes in counters, merged when the run ends.
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::code::Code;

/// The longest latency that is told apart, in µs: ten minutes. Longer ones count as this.
const MAX_LATENCY_MICROS: u64 = 600_000_000;

/// Three significant digits: a reported 4.32 ms is between 4.315 and 4.325.
const SIGNIFICANT_DIGITS: u8 = 3;

/// Latencies and outcomes since the warm-up ended.
#[derive(Clone, Debug)]
pub(crate) struct Tally {
    latencies: Histogram<u64>,
    pub(crate) sent: u64,
    pub(crate) acknowledged: u64,
    pub(crate) rejected: [u64; Code::COUNT],
    /// Answers that say neither yes nor no: a body that does not decode, or `acknowledged: false`.
    pub(crate) malformed: u64,
    /// Connections that broke, or were given up, with a heartbeat on its way.
    pub(crate) broken: u64,
    /// Heartbeats that the schedule wanted and the run could not send before it ended.
    pub(crate) unsent: u64,
}

impl Tally {
    pub(crate) fn new() -> Self {
        // Invariant: both are constants within the histogram's limits.
        let latencies = Histogram::new_with_bounds(1, MAX_LATENCY_MICROS, SIGNIFICANT_DIGITS)
            .expect("constant bounds of a histogram are valid");
        Self { latencies, sent: 0, acknowledged: 0, rejected: [0; Code::COUNT], malformed: 0, broken: 0, unsent: 0 }
    }

    /// Counts one latency, from the moment at which the heartbeat should have been sent.
    pub(crate) fn record(&mut self, latency: Duration) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        self.latencies.saturating_record(micros.max(1));
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        // Cannot fail: both histograms have the same bounds.
        let _ = self.latencies.add(&other.latencies);
        self.sent += other.sent;
        self.acknowledged += other.acknowledged;
        for (mine, theirs) in self.rejected.iter_mut().zip(other.rejected) {
            *mine += theirs;
        }
        self.malformed += other.malformed;
        self.broken += other.broken;
        self.unsent += other.unsent;
    }

    /// The latency below which this share (0 to 1) of all was, in ms; 0 when there was none.
    pub(crate) fn quantile_ms(&self, share: f64) -> f64 {
        self.latencies.value_at_quantile(share) as f64 / 1000.0
    }

    pub(crate) fn max_ms(&self) -> f64 {
        self.latencies.max() as f64 / 1000.0
    }
}
