//! The API reference's own example, word for word, sent as `curl` would.
use serde_json::json;

use super::naive::{insert, Beat, HOUR};
use super::world::JOURNALS;
use super::{post, time, ADMIN_KEY};
use crate::support::clickhouse::run;
use crate::support::{Options, Server};

const GET_METRICS: &str = include_str!("../reference/get_metrics.json");

/// 2024-01-01T00:00:00Z
const NEW_YEAR: i64 = 1_704_067_200_000;

#[test]
fn the_references_question_is_answered_as_printed() {
    // Its day is long gone, so rows are kept for ever.
    let server = Server::with(Options::default().env("FLEETD_RETENTION_DAYS", "0"));
    let mut beats = Vec::new();
    for (seq, (hour, cpu)) in
        [(0, 10.0), (0, 30.0), (1, 50.0), (23, 70.0), (24, 99.0), (-1, 99.0)].into_iter().enumerate()
    {
        let at = NEW_YEAR + hour * HOUR + 1_000 + seq as i64;
        beats.push(Beat {
            journal: JOURNALS[0],
            seq: seq as u64 + 1,
            device: "rpi-001".into(),
            device_type: "raspberry-pi".into(),
            version: "1.0.0".into(),
            at,
            received_at: at,
            cpu: Some(cpu),
            memory_used: Some(1_024),
            memory_total: 4_096,
            restarts: 0,
            rx_bytes: 0,
            metrics: [].into(),
        });
    }
    run(server.clickhouse(), "fleetd", &insert(&beats));

    let reply = post(&server, "AnalyticsService/GetMetrics", Some(ADMIN_KEY), GET_METRICS);
    assert_eq!(reply.status, 200, "{}\n{}", reply.text(), server.log());
    let answer = reply.json();
    let point = |hour: i64, value: f64, count: &str| json!({ "timestamp": time(NEW_YEAR + hour * HOUR), "value": value, "count": count });
    let series = answer["series"].as_array().expect("series");
    assert_eq!(series.len(), 2, "nobody was online before there was a fleet: {answer}");
    assert_eq!(series[0]["name"], "cpu_usage");
    assert_eq!(series[0]["points"], json!([point(0, 20.0, "2"), point(1, 50.0, "1"), point(23, 70.0, "1")]));
    assert_eq!(series[1]["name"], "memory_usage");
    assert_eq!(series[1]["points"], json!([point(0, 25.0, "2"), point(1, 25.0, "1"), point(23, 25.0, "1")]));
    let summary = &answer["summary"];
    assert_eq!(summary["interval"], "3600s");
    assert_eq!((&summary["seriesCount"], &summary["pointCount"]), (&json!(2), &json!("6")));
    let cpu = &summary["metrics"]["cpu_usage"];
    assert_eq!(cpu, &json!({ "count": "4", "min": 10.0, "max": 70.0, "avg": 40.0, "last": 70.0 }));
    assert!(summary["metrics"]["device_online_count"].is_object(), "{answer}");
    // The rows are of a journal that this server has no part of, whether or not its own is in a rollup by now.
    assert!(["heartbeats", "rollup_1h"].contains(&summary["source"].as_str().expect("a source")), "{answer}");

    let device = server.register("rpi-002");
    for (key, code) in [(None, 401), (Some(device.as_str()), 403)] {
        assert_eq!(
            post(&server, "AnalyticsService/GetMetrics", key, GET_METRICS).status,
            code,
            "analytics:view is needed"
        );
    }
}
