//! Every aggregation against plain loops.
use std::collections::BTreeMap;

use serde_json::{json, Value};

use super::naive::{agrees, Beat, Expected, Naive, Over, HOUR, MINUTE, SECOND};
use super::world::{id, labels, World, DEVICES};
use super::{answer, server, time, Server};

const AGGREGATIONS: [&str; 10] = ["AVG", "MIN", "MAX", "SUM", "COUNT", "P50", "P90", "P95", "P99", "LAST"];
const METRICS: [&str; 8] = [
    "cpu_usage",
    "memory_usage",
    "memory_used_mb",
    "queue.depth",
    "metrics.cpu_usage",
    "huge",
    "restart_count",
    "network_rx_bytes",
];

/// Compares an answer with what is expected of each metric: points, counts, summary.
fn compare(answered: &Value, aggregation: &str, group_by: &[&str], expected: &BTreeMap<&str, Expected>, what: &str) {
    let mut told = BTreeMap::<(&str, Vec<String>), &Vec<Value>>::new();
    for series in answered["series"].as_array().map_or(&[][..], Vec::as_slice) {
        let name = series["name"].as_str().expect("a name");
        let labels = series["labels"].as_object();
        assert_eq!(labels.map_or(0, serde_json::Map::len), group_by.len(), "{what}: {series}");
        let group = group_by.iter().map(|by| series["labels"][by].as_str().expect("a label").to_owned()).collect();
        let points = series["points"].as_array().expect("a series has points");
        assert!(told.insert((name, group), points).is_none(), "{what}: a series twice: {series}");
    }
    let (mut series_count, mut point_count) = (0, 0);
    for (metric, expected) in expected {
        for (group, intervals) in expected {
            let series = told.remove(&(*metric, group.clone()));
            let points = series.unwrap_or_else(|| panic!("{what}: no series of {metric} for {group:?}"));
            let begins: Vec<String> =
                points.iter().map(|point| point["timestamp"].as_str().expect("a time").to_owned()).collect();
            let due: Vec<String> = intervals.keys().map(|begin| time(*begin)).collect();
            assert_eq!(begins, due, "{what}: {metric} {group:?}");
            for (point, values) in points.iter().zip(intervals.values()) {
                let (value, count) = (number(&point["value"]), number(&point["count"]));
                assert_eq!(count, values.len() as f64, "{what}: {metric} {group:?} {point}");
                assert!(agrees(aggregation, values, value), "{what}: {metric} {group:?} {point} of {values:?}");
            }
            series_count += 1;
            point_count += points.len();
        }
        summary(&answered["summary"]["metrics"][metric], expected, &format!("{what}: summary of {metric}"));
    }
    assert!(told.is_empty(), "{what}: series that nobody expects: {:?}", told.keys());
    let summary = &answered["summary"];
    assert_eq!(number(&summary["seriesCount"]), f64::from(series_count), "{what}");
    assert_eq!(number(&summary["pointCount"]), point_count as f64, "{what}");
}

/// A number of JSON; protobuf leaves zeros out and writes 64 bits as texts.
fn number(value: &Value) -> f64 {
    match value {
        Value::Null => 0.0,
        Value::String(text) => text.parse().expect("a number"),
        other => other.as_f64().expect("a number"),
    }
}

fn summary(told: &Value, expected: &Expected, what: &str) {
    let all: Vec<f64> = expected.values().flat_map(BTreeMap::values).flatten().copied().collect();
    assert_eq!(number(&told["count"]), all.len() as f64, "{what}");
    if all.is_empty() {
        assert!(told.get("min").is_none() && told.get("avg").is_none(), "{what}: {told}");
        return;
    }
    for (name, aggregation) in [("min", "MIN"), ("max", "MAX"), ("avg", "AVG")] {
        assert!(agrees(aggregation, &all, number(&told[name])), "{what}: {name} {told}");
    }
    assert!(all.contains(&number(&told["last"])), "{what}: {told}");
}

/// A question, and whom it is about.
struct Case<'a> {
    what: &'a str,
    /// What the question has beside time, metrics and aggregation.
    request: Value,
    device: &'a dyn Fn(&str) -> bool,
    kind: &'a dyn Fn(&Beat) -> bool,
    group_by: &'a [&'a str],
    group: &'a dyn Fn(&Beat) -> Vec<String>,
}

fn check(server: &Server, world: &World, case: &Case<'_>, over: Over, aggregations: &[&str]) {
    let naive = Naive { beats: &world.beats, device: case.device, kind: case.kind, group: case.group };
    let expected: BTreeMap<&str, Expected> =
        METRICS.into_iter().map(|metric| (metric, naive.expected(metric, over))).collect();
    for aggregation in aggregations {
        let mut question = case.request.clone();
        question["start_time"] = json!(time(over.start));
        question["end_time"] = json!(time(over.end));
        question["interval"] = json!(format!("{}.{:03}s", over.interval / 1_000, over.interval % 1_000));
        question["metric_names"] = json!(METRICS);
        question["aggregation"] = json!(aggregation);
        question["group_by"] = json!(case.group_by);
        let what = format!("{} {aggregation} {over:?}", case.what);
        compare(&answer(server, &question), aggregation, case.group_by, &expected, &what);
    }
}

fn everybody(_: &str) -> bool {
    true
}

fn any(_: &Beat) -> bool {
    true
}

fn together(_: &Beat) -> Vec<String> {
    Vec::new()
}

/// The number in the id.
fn number_of(device: &str) -> usize {
    device[4..].parse().expect("a number")
}

fn is_registered(device: &str) -> bool {
    number_of(device) < DEVICES
}

fn label(device: &str, key: &str) -> String {
    labels(number_of(device)).get(key).cloned().unwrap_or_default()
}

#[test]
fn every_aggregation_is_what_plain_loops_give_at_every_edge_of_time() {
    let (server, world) = (server(), World::new());
    world.settle(&server);
    let case =
        Case { what: "all", request: json!({}), device: &everybody, kind: &any, group_by: &[], group: &together };
    let start = world.start;
    let six_hours = Over { start, end: start + 6 * HOUR, interval: HOUR };
    check(&server, &world, &case, six_hours, &AGGREGATIONS);
    for over in [
        // Begins and ends that are no edges of anything.
        Over { start: start + 1, end: start + 6 * HOUR + 1, interval: HOUR },
        Over { start: start - 1, end: start + 6 * HOUR, interval: HOUR },
        Over { start: start + 123_456, end: start + 2 * HOUR + 17, interval: 90 * SECOND },
        // Time zones that are off by half an hour and by three quarters.
        Over { start: start + 30 * MINUTE, end: start + 5 * HOUR + 30 * MINUTE, interval: HOUR },
        Over { start: start + 45 * MINUTE, end: start + 5 * HOUR + 45 * MINUTE, interval: 3 * HOUR },
        // One interval, one that is longer than the span, and one that is a fraction of a second longer than one.
        Over { start, end: start + HOUR, interval: HOUR },
        Over { start, end: start + HOUR, interval: 24 * HOUR },
        Over { start, end: start + 20 * MINUTE, interval: 1_001 },
        // Nobody reported: before, in the silent hour, after.
        Over { start: start - 20 * HOUR, end: start - 10 * HOUR, interval: HOUR },
        Over { start: start + 3 * HOUR + 2, end: start + 4 * HOUR - 1, interval: MINUTE },
    ] {
        check(&server, &world, &case, over, &["AVG", "COUNT", "P90", "LAST"]);
    }
    // Far away, and all of time.
    let beyond = json!({ "metric_names": ["cpu_usage"], "start_time": "9000-01-01T00:00:00Z", "end_time": "9999-01-01T00:00:00Z" });
    assert_eq!(super::refused(&server, &beyond).0, "INVALID_ARGUMENT", "nothing is kept of such times");
    let ever = json!({ "metric_names": ["cpu_usage"], "start_time": "1900-01-01T00:00:00Z", "end_time": "2299-12-31T23:59:59Z",
        "aggregation": "COUNT" });
    let told = answer(&server, &ever);
    let all = world.beats.iter().filter(|beat| beat.is_plausible() && beat.cpu.is_some()).count();
    assert_eq!(number(&told["summary"]["metrics"]["cpu_usage"]["count"]), all as f64, "{told}");
}

#[test]
fn devices_are_chosen_and_grouped_in_every_form() {
    let (server, world) = (server(), World::new());
    world.settle(&server);
    let over = Over { start: world.start, end: world.start + 6 * HOUR, interval: 30 * MINUTE };
    let aggregations = ["AVG", "P95", "LAST"];
    let (one, gone) = (id(3), id(DEVICES));
    let cases = [
        Case {
            what: "one device",
            request: json!({ "labels": { "device_id": one } }),
            device: &|device| device == "dev-03",
            kind: &any,
            group_by: &[],
            group: &together,
        },
        Case {
            what: "one that is registered no more",
            request: json!({ "labels": { "device_id": gone } }),
            device: &|device| device == "dev-12",
            kind: &any,
            group_by: &["device_id"],
            group: &|beat| vec![beat.device.clone()],
        },
        Case {
            what: "one that never was",
            request: json!({ "labels": { "device_id": "nobody" } }),
            device: &|_| false,
            kind: &any,
            group_by: &[],
            group: &together,
        },
        Case {
            what: "a type and a version, as they were",
            request: json!({ "labels": { "device_type": "camera", "version": "1.0" } }),
            device: &everybody,
            kind: &|beat| beat.device_type == "camera" && beat.version == "1.0",
            group_by: &[],
            group: &together,
        },
        Case {
            what: "by type and version",
            request: json!({}),
            device: &everybody,
            kind: &any,
            group_by: &["version", "device_type"],
            group: &|beat| vec![beat.version.clone(), beat.device_type.clone()],
        },
        Case {
            what: "by device",
            request: json!({ "labels": { "version": "2.0" } }),
            device: &everybody,
            kind: &|beat| beat.version == "2.0",
            group_by: &["device_id"],
            group: &|beat| vec![beat.device.clone()],
        },
        Case {
            what: "a label",
            request: json!({ "labels": { "region": "eu", "labels.ring": "1" } }),
            device: &|device| is_registered(device) && label(device, "region") == "eu" && label(device, "ring") == "1",
            kind: &any,
            group_by: &[],
            group: &together,
        },
        Case {
            what: "a label that nobody has",
            request: json!({ "labels": { "region": "mars" } }),
            device: &|_| false,
            kind: &any,
            group_by: &["region"],
            group: &together,
        },
        Case {
            what: "by labels and more",
            request: json!({ "device_filter": "NOT id:dev-07" }),
            device: &|device| is_registered(device) && device != "dev-07",
            kind: &any,
            group_by: &["region", "version", "labels.ring"],
            group: &|beat| vec![label(&beat.device, "region"), beat.version.clone(), label(&beat.device, "ring")],
        },
        Case {
            what: "a filter of one",
            request: json!({ "device_filter": "id:dev-02" }),
            device: &|device| device == "dev-02",
            kind: &any,
            group_by: &["region"],
            group: &|beat| vec![label(&beat.device, "region")],
        },
        Case {
            what: "a filter, a label and an id",
            request: json!({ "device_filter": "type:camera OR type:sensor", "labels": { "ring": "0", "device_id": "dev-06" } }),
            device: &|device| device == "dev-06",
            kind: &any,
            group_by: &["device_type"],
            group: &|beat| vec![beat.device_type.clone()],
        },
    ];
    for case in &cases {
        check(&server, &world, case, over, &aggregations);
    }
}
