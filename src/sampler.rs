//! The server's own numbers as rows of `server_metrics`: what `/metrics` says, every 15 s, so that who reads ClickHouse
//! sees the health of the server beside that of the fleet, without a second source.
//!
//! They go through the journal, as everything that ClickHouse holds, but never in a heartbeat's place: from the share of
//! the journal at which devices are asked to slow down, nothing is sampled. What is lost then is a point of a curve.
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{interval_at, Instant, MissedTickBehavior};

use crate::actors::pace;
use crate::clock::{self, UnixMillis};
use crate::metrics::Metrics;
use crate::telemetry::journal::Journal;
use crate::telemetry::row::ServerMetric;

/// Pause between two samples: what Prometheus's own examples scrape at.
const EVERY: Duration = Duration::from_secs(15);

/// Rows of one sample. `/metrics` has some 180 lines, which are two megabytes a day in ClickHouse at most; a family whose
/// labels got out of hand must not become a load of its own.
const MAX_ROWS: usize = 256;

/// Samples until the server stops.
pub fn start(metrics: Metrics, journal: Journal, mut stopping: watch::Receiver<bool>) {
    actix_rt::spawn(async move {
        // Servers that were started together do not sample together.
        let mut ticks = interval_at(Instant::now() + clock::random_part(EVERY), EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            tokio::select! {
                _ = ticks.tick() => metrics.count_sample(sample(&metrics, &journal).await),
                // An error says that the server is gone already.
                _ = stopping.wait_for(|is_stopping| *is_stopping) => return,
            }
        }
    });
}

/// Takes a sample; whether it is in the journal.
async fn sample(metrics: &Metrics, journal: &Journal) -> bool {
    let stats = journal.metrics();
    if stats.bytes as f64 > stats.capacity_bytes as f64 * pace::JOURNAL_SHARE.0 {
        tracing::debug!(bytes = stats.bytes, "the journal fills up, the server's own metrics are not sampled");
        return false;
    }
    let mut record = Vec::new();
    let left_out = encode(&metrics.render(), UnixMillis::now(), &mut record);
    if left_out > 0 {
        tracing::warn!(left_out, limit = MAX_ROWS, "more metrics than a sample holds, the last are left out");
    }
    let kept = match journal.append(&record) {
        Ok(ticket) => ticket.committed().await.map(drop).map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    if let Err(error) = &kept {
        tracing::debug!(error, "a sample of the server's own metrics is not kept");
    }
    kept.is_ok()
}

/// Appends a row for each of the first [`MAX_ROWS`] readings in `text`; how many more there were.
fn encode(text: &str, at: UnixMillis, record: &mut Vec<u8>) -> usize {
    let mut readings = text.lines().filter_map(reading);
    for (name, value) in readings.by_ref().take(MAX_ROWS) {
        ServerMetric { received_at: at, name, timestamp: at, value }.encode(record);
    }
    readings.count()
}

/// Name with labels, and value, of a line of OpenMetrics text. `None` for comments, for the buckets of histograms, of
/// which their count and sum are kept, for the time a counter was made, and for what is no number.
fn reading(line: &str) -> Option<(&str, f64)> {
    if line.starts_with('#') {
        return None;
    }
    let (name, value) = line.rsplit_once(' ')?;
    let family = name.split('{').next().unwrap_or_default();
    if family.ends_with("_bucket") || family.ends_with("_created") {
        return None;
    }
    let value = value.parse::<f64>().ok()?;
    value.is_finite().then_some((name, value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{Reading, Value};
    use crate::telemetry::journal::JournalOptions;
    use crate::telemetry::row::{Sections, Table};
    use prometheus_client::metrics::histogram::Histogram;
    use prometheus_client::registry::Registry;

    fn names(record: &[u8]) -> Vec<String> {
        let rows = Sections::of(record).map(|section| section.expect("well formed"));
        rows.map(|row| {
            assert_eq!((row.table, row.received_at, row.timestamp), (Table::ServerMetrics, 7, 7));
            String::from_utf8(row.key.to_vec()).expect("a name")
        })
        .collect()
    }

    fn metrics() -> Metrics {
        Metrics::new(|| {
            let reading = |name, value| Reading { name, help: "Of the test", unit: None, value };
            vec![
                reading("up", Value::Gauge(-0.5)),
                reading("lost", Value::Gauge(f64::NAN)),
                reading("n", Value::Counter(3)),
            ]
        })
    }

    #[test]
    fn what_metrics_shows_is_sampled_by_name_and_label() {
        let metrics = metrics();
        metrics.count_heartbeat(None);
        let mut record = Vec::new();
        assert_eq!(encode(&metrics.render(), UnixMillis::from_millis_clamped(7), &mut record), 0);
        let names = names(&record);
        for name in ["fleetd_heartbeats_total{outcome=\"acked\"}", "fleetd_up", "fleetd_n_total"] {
            assert!(names.iter().any(|found| found == name), "{name} is not in {names:?}");
        }
        assert!(!names.iter().any(|found| found.contains("lost") || found.contains('#')), "{names:?}");
        assert_eq!(reading("fleetd_up -0.5"), Some(("fleetd_up", -0.5)));
    }

    #[test]
    fn of_a_histogram_its_count_and_sum_are_sampled() {
        let mut registry = Registry::default();
        let histogram = Histogram::new([0.1, 1.0, 10.0]);
        registry.register("took", "Time", histogram.clone());
        [0.5, 2.5].into_iter().for_each(|value| histogram.observe(value));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("a text");
        let readings: Vec<_> = text.lines().filter_map(reading).collect();
        assert_eq!(readings, [("took_sum", 3.0), ("took_count", 2.0)], "{text}");
    }

    #[test]
    fn a_sample_is_bounded_whatever_metrics_shows() {
        let text: String = (0..MAX_ROWS + 5).map(|n| format!("m{{n=\"{n}\"}} {n}\n")).collect();
        let mut record = Vec::new();
        assert_eq!(encode(&text, UnixMillis::from_millis_clamped(7), &mut record), 5);
        assert_eq!(names(&record).len(), MAX_ROWS);
    }

    #[tokio::test]
    async fn a_journal_that_fills_up_is_left_to_heartbeats() {
        let dir = tempfile::tempdir().expect("a folder");
        let options = JournalOptions {
            segment_bytes: 4_096,
            capacity_bytes: 40_960,
            ..JournalOptions::new(dir.path().join("journal"))
        };
        let (journal, _) = Journal::open(options).expect("opens");
        assert!(sample(&metrics(), &journal).await);
        assert_eq!(journal.written_seq(), 1, "a sample is one record");
        while journal.bytes() <= 20_480 {
            journal.append(&[0; 1_000]).expect("room").committed().await.expect("written");
        }
        let before = journal.written_seq();
        assert!(!sample(&metrics(), &journal).await);
        assert_eq!(journal.written_seq(), before);
    }
}
