//! What `/metrics` shows.
//!
//! The heartbeat path touches only plain atomic counters, one for each outcome, made in advance; everything else is
//! read from its owner (directory, journal, writer) when somebody asks.
use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

use crate::error::ErrorCode;

/// Cheap, cloneable handle.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    heartbeats: Arc<HeartbeatOutcomes>,
    samples_kept: Counter,
    samples_skipped: Counter,
}

/// A counter for each way a heartbeat can end.
struct HeartbeatOutcomes {
    acked: Counter,
    refused: [Counter; ErrorCode::ALL.len()],
}

/// A value read when somebody asks for the metrics.
pub struct Reading {
    pub name: &'static str,
    pub help: &'static str,
    pub unit: Option<Unit>,
    pub value: Value,
}

/// Counters only grow while the process lives; gauges go both ways.
pub enum Value {
    Counter(u64),
    Gauge(f64),
    /// One for each value of a label.
    Counters(&'static str, Vec<(&'static str, u64)>),
    Gauges(&'static str, Vec<(&'static str, f64)>),
}

type Source = Box<dyn Fn() -> Vec<Reading> + Send + Sync>;

impl Metrics {
    /// `source` is asked at each scrape; it must not block.
    pub fn new(source: impl Fn() -> Vec<Reading> + Send + Sync + 'static) -> Self {
        let mut registry = Registry::with_prefix("fleetd");
        let outcomes = Family::<[(&'static str, &'static str); 1], Counter>::default();
        registry.register("heartbeats", "Heartbeats by outcome: acked, or the error's code", outcomes.clone());
        let counter = |outcome| outcomes.get_or_create(&[("outcome", outcome)]).clone();
        let heartbeats =
            HeartbeatOutcomes { acked: counter("acked"), refused: ErrorCode::ALL.map(|code| counter(code.name())) };
        let (samples_kept, samples_skipped) = (Counter::default(), Counter::default());
        registry.register("metric_samples", "Samples of these metrics that ClickHouse gets", samples_kept.clone());
        registry.register(
            "metric_samples_skipped",
            "Samples that were left out because the journal filled up or did not take them",
            samples_skipped.clone(),
        );
        registry.register_collector(Box::new(Readings(Box::new(source))));
        Self { registry: Arc::new(registry), heartbeats: Arc::new(heartbeats), samples_kept, samples_skipped }
    }

    /// Counts a sample of these metrics, a record of the journal if it is kept.
    pub fn count_sample(&self, is_kept: bool) {
        if is_kept { &self.samples_kept } else { &self.samples_skipped }.inc();
    }

    pub fn count_heartbeat(&self, refused: Option<ErrorCode>) {
        match refused {
            None => self.heartbeats.acked.inc(),
            // `ALL` lists the variants in the order of their declaration.
            Some(code) => self.heartbeats.refused[code as usize].inc(),
        };
    }

    /// The text that Prometheus scrapes (OpenMetrics 1.0).
    pub fn render(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry);
        text
    }
}

struct Readings(Source);

impl fmt::Debug for Readings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Readings")
    }
}

impl Collector for Readings {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for reading in (self.0)() {
            match &reading.value {
                Value::Counter(value) => put(&mut encoder, &reading, &ConstCounter::new(*value))?,
                Value::Gauge(value) => put(&mut encoder, &reading, &ConstGauge::new(*value))?,
                Value::Counters(label, all) => put_all(&mut encoder, &reading, label, all, ConstCounter::new)?,
                Value::Gauges(label, all) => put_all(&mut encoder, &reading, label, all, ConstGauge::new)?,
            }
        }
        Ok(())
    }
}

fn put(encoder: &mut DescriptorEncoder<'_>, reading: &Reading, metric: &impl EncodeMetric) -> fmt::Result {
    let one = encoder.encode_descriptor(reading.name, reading.help, reading.unit.as_ref(), metric.metric_type())?;
    metric.encode(one)
}

fn put_all<T: Copy, M: EncodeMetric>(
    encoder: &mut DescriptorEncoder<'_>,
    reading: &Reading,
    label: &'static str,
    all: &[(&'static str, T)],
    metric: impl Fn(T) -> M,
) -> fmt::Result {
    let Some((_, first)) = all.first() else { return Ok(()) };
    let kind = metric(*first).metric_type();
    let mut family = encoder.encode_descriptor(reading.name, reading.help, reading.unit.as_ref(), kind)?;
    for (value, number) in all {
        metric(*number).encode(family.encode_family(&[(label, *value)])?)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_its_own_counter() {
        for (place, code) in ErrorCode::ALL.into_iter().enumerate() {
            assert_eq!(place, code as usize, "{}", code.name());
        }
    }

    #[test]
    fn a_scrape_shows_outcomes_and_readings() {
        let reading = |name| Reading { name, help: "Of the test", unit: None, value: Value::Counter(0) };
        let metrics = Metrics::new(move || {
            vec![
                Reading { name: "journal_size", help: "On disk", unit: Some(Unit::Bytes), value: Value::Gauge(17.0) },
                Reading { name: "batches", help: "Sent", unit: None, value: Value::Counter(3) },
                Reading { value: Value::Gauges("colour", vec![("red", 1.0), ("blue", 0.0)]), ..reading("fish") },
                Reading { value: Value::Counters("size", vec![("small", 2)]), ..reading("birds") },
                Reading { value: Value::Gauges("colour", vec![]), ..reading("nothing") },
            ]
        });
        metrics.count_heartbeat(None);
        metrics.count_heartbeat(Some(ErrorCode::Unavailable));
        let text = metrics.render();
        for line in [
            "fleetd_heartbeats_total{outcome=\"acked\"} 1",
            "fleetd_heartbeats_total{outcome=\"UNAVAILABLE\"} 1",
            "fleetd_heartbeats_total{outcome=\"INTERNAL\"} 0",
            "fleetd_journal_size_bytes 17.0",
            "fleetd_batches_total 3",
            "fleetd_fish{colour=\"red\"} 1.0",
            "fleetd_fish{colour=\"blue\"} 0.0",
            "fleetd_birds_total{size=\"small\"} 2",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }
}
