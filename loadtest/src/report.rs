//! The one line that a run ends with.
use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use crate::code::Code;
use crate::latency::Tally;
use crate::run::Load;
use crate::verify::Verdict;
use crate::wire::Protocol;

/// What a run measured, after its warm-up. Field names are the JSON line's.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub protocol: Protocol,
    pub devices: usize,
    pub connections: usize,
    pub streams: usize,
    pub threads: usize,
    /// Heartbeats a second that were asked for; `null` for the closed loop.
    pub rate: Option<f64>,
    /// From the end of the warm-up to the last answer.
    pub duration_seconds: f64,
    pub sent: u64,
    pub acked: u64,
    /// Refusals by code.
    pub rejected: BTreeMap<&'static str, u64>,
    /// Heartbeats that got no answer, because their connection broke or was given up.
    pub errors: u64,
    /// Answers that break the protocol or say `acknowledged: false`.
    pub malformed: u64,
    /// Heartbeats that were due by the rate and could not be sent before the run ended.
    pub unsent: u64,
    /// Connections that were opened again.
    pub reconnects: u64,
    pub heartbeats_per_second: f64,
    /// With a rate, from when a heartbeat was due; else from when its connection was free for it.
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub p99_9_ms: f64,
    pub max_ms: f64,
    /// Whether the run ended early because its ledger was full.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub ledger_full: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verified: Option<Verdict>,
}

impl Report {
    pub(crate) fn new(
        load: &Load,
        devices: usize,
        tally: &Tally,
        elapsed: Duration,
        reconnects: u64,
        ledger_full: bool,
    ) -> Self {
        let rejected = tally.rejected.iter().enumerate().filter(|(_, count)| **count > 0);
        let seconds = elapsed.as_secs_f64();
        Self {
            protocol: load.protocol,
            devices,
            connections: load.connections,
            streams: load.streams,
            threads: load.threads,
            rate: load.rate,
            duration_seconds: rounded(seconds),
            sent: tally.sent,
            acked: tally.acknowledged,
            rejected: rejected.map(|(index, count)| (Code::from_index(index).name(), *count)).collect(),
            errors: tally.broken,
            malformed: tally.malformed,
            unsent: tally.unsent,
            reconnects,
            heartbeats_per_second: if seconds > 0.0 { (tally.acknowledged as f64 / seconds).round() } else { 0.0 },
            p50_ms: tally.quantile_ms(0.5),
            p99_ms: tally.quantile_ms(0.99),
            p99_9_ms: tally.quantile_ms(0.999),
            max_ms: tally.max_ms(),
            ledger_full,
            verified: None,
        }
    }

    /// Whether nothing was lost: what `--verify` found, or, where it did not look, that each heartbeat was answered.
    /// Refusals are answers.
    pub fn is_clean(&self) -> bool {
        let unaccounted = match &self.verified {
            Some(verdict) => !verdict.is_clean(),
            None => self.errors > 0,
        };
        self.acked > 0 && self.malformed == 0 && self.unsent == 0 && !unaccounted
    }
}

fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}
