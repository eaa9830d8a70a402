//! Heartbeats as plain values, and what must be answered about them: computed by loops over a list, with nothing that the
//! server does cleverly.
use std::collections::BTreeMap;

use serde_json::{json, Value};

pub const SECOND: i64 = 1_000;
pub const MINUTE: i64 = 60 * SECOND;
pub const HOUR: i64 = 60 * MINUTE;
pub const DAY: i64 = 24 * HOUR;

/// One row of `heartbeats`.
#[derive(Clone, Debug)]
pub struct Beat {
    pub journal: &'static str,
    pub seq: u64,
    pub device: String,
    pub device_type: String,
    pub version: String,
    /// Milliseconds.
    pub at: i64,
    pub received_at: i64,
    pub cpu: Option<f64>,
    pub memory_used: Option<u64>,
    pub memory_total: u64,
    pub restarts: u32,
    pub rx_bytes: u64,
    pub metrics: BTreeMap<String, f64>,
}

impl Beat {
    /// Whether its clock can be believed.
    pub fn is_plausible(&self) -> bool {
        self.at >= self.received_at - 31 * DAY && self.at <= self.received_at + DAY
    }

    /// What it says of a metric.
    pub fn value(&self, metric: &str) -> Option<f64> {
        match metric {
            "cpu_usage" => self.cpu,
            "memory_used_mb" => self.memory_used.map(|used| used as f64),
            "memory_usage" => {
                let used = self.memory_used? as f64;
                (self.memory_total > 0).then(|| 100.0 * used / self.memory_total as f64)
            }
            "restart_count" => Some(f64::from(self.restarts)),
            "network_rx_bytes" => (self.rx_bytes > 0).then_some(self.rx_bytes as f64),
            custom => self.metrics.get(custom.strip_prefix("metrics.").unwrap_or(custom)).copied(),
        }
    }

    pub fn row(&self) -> Value {
        let time = |millis: i64| format!("{}.{:03}", millis.div_euclid(1_000), millis.rem_euclid(1_000));
        json!({
            "journal_id": self.journal, "seq": self.seq, "received_at": time(self.received_at),
            "device_id": self.device, "timestamp": time(self.at), "state": "ONLINE", "uptime_seconds": 60,
            "device_type": self.device_type, "version": self.version, "cpu_percent": self.cpu,
            "memory_used_mb": self.memory_used, "memory_total_mb": self.memory_total,
            "restart_count": self.restarts, "network_rx_bytes": self.rx_bytes, "metrics": self.metrics,
        })
    }
}

/// An INSERT of all.
pub fn insert(beats: &[Beat]) -> String {
    let rows: Vec<String> = beats.iter().map(|beat| beat.row().to_string()).collect();
    format!(
        "INSERT INTO heartbeats (journal_id, seq, received_at, device_id, timestamp, state, uptime_seconds, device_type, \
         version, cpu_percent, memory_used_mb, memory_total_mb, restart_count, network_rx_bytes, metrics) \
         FORMAT JSONEachRow\n{}",
        rows.join("\n")
    )
}

/// A span of time in intervals, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Over {
    pub start: i64,
    pub end: i64,
    pub interval: i64,
}

/// Measurements of one group in one interval, by time and then number.
pub type Values = Vec<f64>;
/// By group, and by the begin of the interval.
pub type Expected = BTreeMap<Vec<String>, BTreeMap<i64, Values>>;

/// Whom a question is about, and how they are grouped.
pub struct Naive<'a> {
    pub beats: &'a [Beat],
    /// Whether a device is meant.
    pub device: &'a dyn Fn(&str) -> bool,
    /// Whether a heartbeat of a device that is meant is.
    pub kind: &'a dyn Fn(&Beat) -> bool,
    pub group: &'a dyn Fn(&Beat) -> Vec<String>,
}

impl Naive<'_> {
    pub fn expected(&self, metric: &str, over: Over) -> Expected {
        match metric {
            "restart_count" | "network_rx_bytes" => self.increases(metric, over),
            _ => self.gauge(metric, over),
        }
    }

    fn gauge(&self, metric: &str, over: Over) -> Expected {
        let mut beats: Vec<&Beat> = self
            .beats
            .iter()
            .filter(|beat| beat.is_plausible() && (over.start..over.end).contains(&beat.at))
            .filter(|beat| (self.device)(&beat.device) && (self.kind)(beat))
            .collect();
        beats.sort_by_key(|beat| (beat.at, beat.seq));
        let mut expected = Expected::new();
        for beat in beats {
            let Some(value) = beat.value(metric) else { continue };
            let begin = over.start + (beat.at - over.start) / over.interval * over.interval;
            expected.entry((self.group)(beat)).or_default().entry(begin).or_default().push(value);
        }
        expected
    }

    /// One value for each device, group and interval, by the time of its last reading.
    fn increases(&self, metric: &str, over: Over) -> Expected {
        let from = over.start - over.interval.clamp(HOUR, DAY);
        let mut devices = BTreeMap::<&str, Vec<&Beat>>::new();
        for beat in self.beats {
            if beat.is_plausible() && (from..over.end).contains(&beat.at) && (self.device)(&beat.device) {
                devices.entry(&beat.device).or_default().push(beat);
            }
        }
        let mut increases = BTreeMap::<(Vec<String>, i64, &str), (f64, (i64, u64))>::new();
        for (device, mut beats) in devices {
            beats.sort_by_key(|beat| (beat.at, beat.seq));
            let mut before = None;
            for beat in beats {
                let Some(now) = beat.value(metric) else { continue };
                let increase = before.map(|before| if now >= before { now - before } else { now });
                before = Some(now);
                let Some(increase) = increase.filter(|_| beat.at >= over.start && (self.kind)(beat)) else { continue };
                let begin = over.start + (beat.at - over.start) / over.interval * over.interval;
                let sum = increases.entry(((self.group)(beat), begin, device)).or_insert((0.0, (0, 0)));
                *sum = (sum.0 + increase, (beat.at, beat.seq));
            }
        }
        let mut sums: Vec<_> = increases.into_iter().collect();
        sums.sort_by_key(|(_, (_, order))| *order);
        let mut expected = Expected::new();
        for ((group, begin, _), (sum, _)) in sums {
            expected.entry(group).or_default().entry(begin).or_default().push(sum);
        }
        expected
    }
}

/// Whether `told` is what `aggregation` makes of `values`. Sums are added in any order. A quantile is within a per cent of
/// the values of that rank; what is further from 0 than 1e15 counts as that.
pub fn agrees(aggregation: &str, values: &[f64], told: f64) -> bool {
    let close = |expected: f64| (told - expected).abs() <= 1e-9 * expected.abs().max(1.0);
    let sum: f64 = values.iter().sum();
    match aggregation {
        "AVG" => close(sum / values.len() as f64),
        "MIN" => close(values.iter().copied().fold(f64::INFINITY, f64::min)),
        "MAX" => close(values.iter().copied().fold(f64::NEG_INFINITY, f64::max)),
        "SUM" => close(sum),
        "COUNT" => told == values.len() as f64,
        "LAST" => values.last().is_some_and(|last| close(*last)),
        quantile => {
            let level: f64 = quantile[1..].parse::<f64>().expect("P and a number") / 100.0;
            let mut sorted: Vec<f64> = values.iter().map(|value| value.clamp(-1e15, 1e15)).collect();
            sorted.sort_by(f64::total_cmp);
            let rank = level * (sorted.len() - 1) as f64;
            let (low, high) = (sorted[rank.floor() as usize], sorted[rank.ceil() as usize]);
            let slack = |value: f64| value.abs() * 0.0101 + 1e-9;
            (low - slack(low)..=high + slack(high)).contains(&told)
        }
    }
}

/// Numbers that look random and are the same each time.
pub struct Random(pub u64);

impl Random {
    /// From 0 up to `below`.
    pub fn below(&mut self, below: u64) -> u64 {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % below
    }

    pub fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }
}
