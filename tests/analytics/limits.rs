//! What is refused, with a sentence that says what to do: requests that are wrong, and questions that cost too much.
use std::time::Duration;

use serde_json::{json, Value};

use super::naive::HOUR;
use super::world::JOURNALS;
use super::{answer, refused, server, time, Server};
use crate::support::clickhouse::run;
use crate::support::client::Client;
use crate::support::wire::Http1;
use crate::support::{wait_until, ADMIN_KEY};
use fleetd::clock::UnixMillis;

/// So long a question that nobody competes with may take to begin, on a machine that compiles beside it.
const TURN_WITHIN: Duration = Duration::from_secs(20);

fn cpu(more: Value) -> Value {
    let mut question = json!({ "metric_names": ["cpu_usage"] });
    question.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    question
}

#[test]
fn what_is_wrong_is_named_with_its_value_and_what_to_do() {
    let server = server();
    let names: Vec<String> = (0..33).map(|number| format!("metric_{number}")).collect();
    let day = json!({ "start_time": "2024-01-01T00:00:00Z", "end_time": "2024-01-02T00:00:00Z" });
    let with = |more: Value| {
        let mut question = cpu(day.clone());
        question.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        question
    };
    for (question, sentence) in [
        (json!({}), "metric_names has 0 entries; give 1 to 32, such as cpu_usage"),
        (json!({ "metric_names": names }), "metric_names has 33 entries; give 1 to 32"),
        (json!({ "metric_names": ["cpu_usage", "uptime", "cpu_usage"] }), "metric_names[2] is \"cpu_usage\", which is there before"),
        (json!({ "metric_names": ["cpu usage"] }), "metric_names[0] is \"cpu usage\"; names of metrics are 1 to 64 of A-Z a-z 0-9 _ ."),
        (with(json!({ "aggregation": "MEDIAN" })), "aggregation is \"MEDIAN\"; give one of AVG, MIN, MAX, SUM, COUNT, P50"),
        (with(json!({ "interval": "0.5s" })), "interval is 0.500s; give 1s or more"),
        (with(json!({ "interval": "-60s" })), "interval is -60s; give 1s or more"),
        (with(json!({ "interval": "1.0005s" })), "interval is 1.000500s; give 1s or more, in whole milliseconds"),
        (with(json!({ "interval": "1s" })), "which cuts 86400s from 2024-01-01T00:00:00Z to 2024-01-02T00:00:00Z into 86400 parts; at most 10000 are told: give 9s or more"),
        (cpu(json!({ "start_time": "2024-01-02T00:00:00Z", "end_time": "2024-01-02T00:00:00Z" })), "end_time is 2024-01-02T00:00:00Z; it must be after start_time, which is 2024-01-02T00:00:00Z"),
        (cpu(json!({ "start_time": "2200-01-02T00:00:00Z" })), ", that is now, since it is not set; it must be after start_time, which is 2200-01-02T00:00:00Z"),
        (cpu(json!({ "device_filter": "type:" })), "device_filter: column "),
        (cpu(json!({ "labels": { "device_id": "no such/id" } })), "labels.device_id has ' ' at byte 2"),
        (cpu(json!({ "labels": { "": "x" } })), "a key of labels is \"\"; give device_type, device_id, version, or the name of a label"),
        (cpu(json!({ "labels": { "region": "x".repeat(257) } })), "labels.\"region\" has 257 bytes; no device has a label of more than 256"),
        (cpu(json!({ "group_by": ["a", "b", "c", "d", "e"] })), "group_by has 5 entries; at most 4 are taken"),
        (cpu(json!({ "group_by": ["version", "version"] })), "group_by[1] is \"version\", which is there before"),
        (cpu(json!({ "group_by": ["region", "labels.region"] })), "group_by[1] is \"labels.region\", which is there before"),
        (cpu(json!({ "group_by": ["x".repeat(65)] })), "group_by[0] is \"xxxx"),
    ] {
        let (code, message) = refused(&server, &question);
        assert_eq!(code, "INVALID_ARGUMENT", "{question}: {message}");
        assert!(message.contains(sentence), "{question}\n{message}");
    }
}

/// Heartbeats of the last hours, made by ClickHouse: of so many devices, each so often.
pub fn fill(server: &Server, devices: u64, times: u64) {
    let begin = UnixMillis::now().as_millis() - 5 * HOUR;
    let sql = format!(
        "INSERT INTO heartbeats (journal_id, seq, received_at, device_id, timestamp, state, device_type, cpu_percent) \
         SELECT '{}', number + 1, fromUnixTimestamp64Milli({begin} + intDiv(number, {devices}) * 1000, 'UTC') AS at, \
         concat('dev-', toString(number % {devices})), at, 'ONLINE', 'camera', number % 100 FROM numbers({})",
        JOURNALS[0],
        devices * times
    );
    run(server.clickhouse(), "fleetd", &sql);
}

#[test]
fn more_series_or_points_than_anybody_reads_are_refused_with_their_number() {
    let server = server();
    fill(&server, 1_001, 3);
    let (code, message) = refused(
        &server,
        &cpu(json!({ "start_time": time(UnixMillis::now().as_millis() - 6 * HOUR), "group_by": ["device_id"] })),
    );
    assert_eq!(code, "RESOURCE_EXHAUSTED", "{message}");
    assert!(
        message.contains("the answer has 1001 series or more, 1001 of them of cpu_usage; at most 1000 are told"),
        "{message}"
    );
    assert!(message.contains("group_by"), "{message}");
    // A thousand are told.
    let one_less = json!({ "metric_names": ["cpu_usage"], "group_by": ["device_id"],
        "start_time": time(UnixMillis::now().as_millis() - 6 * HOUR), "labels": { "device_type": "camera" } });
    run(
        server.clickhouse(),
        "fleetd",
        "ALTER TABLE heartbeats DELETE WHERE device_id = 'dev-7' SETTINGS mutations_sync = 1",
    );
    assert_eq!(answer(&server, &one_less)["summary"]["seriesCount"], 1_000);
    // All metrics together have no more.
    let mut two = one_less;
    two["metric_names"] = json!(["cpu_usage", "uptime_seconds", "metrics.none", "second"]);
    assert_eq!(answer(&server, &two)["summary"]["seriesCount"], 1_000);
    run(server.clickhouse(), "fleetd", "ALTER TABLE heartbeats UPDATE metrics = map('second', 1.) WHERE device_id = 'dev-8' SETTINGS mutations_sync = 1");
    let (code, message) = refused(&server, &two);
    assert_eq!(
        (code.as_str(), message.contains("1001 series or more, 1 of them of second")),
        ("RESOURCE_EXHAUSTED", true),
        "{message}"
    );
}

#[test]
fn an_answer_of_more_than_a_million_points_is_refused_before_it_is_made() {
    let server = server();
    fill(&server, 200, 7_000);
    let begin = UnixMillis::now().as_millis() - 5 * HOUR - 60_000;
    let question = cpu(json!({ "start_time": time(begin), "end_time": time(begin + 10_000_000), "interval": "1s",
        "group_by": ["device_id"] }));
    let (code, message) = refused(&server, &question);
    assert_eq!(code, "RESOURCE_EXHAUSTED", "{message}");
    assert!(message.contains("more than a million rows; ask for a shorter time, fewer groups"), "{message}");
}

#[test]
fn of_a_question_whose_client_hung_up_no_further_metric_is_read() {
    let server = server();
    fill(&server, 100, 7_000);
    let begin = time(UnixMillis::now().as_millis() - 6 * HOUR);
    let names = |names: &[&str]| json!({ "metric_names": names, "start_time": begin, "aggregation": "P99" });
    let many = [
        "cpu_usage",
        "memory_usage",
        "disk_usage",
        "battery_percent",
        "memory_used_mb",
        "swap_used_mb",
        "disk_used_gb",
        "load_average_1m",
        "load_average_5m",
        "load_average_15m",
        "temperature_celsius",
        "signal_dbm",
        "uptime_seconds",
        "metrics.a",
        "metrics.b",
        "metrics.c",
        "metrics.d",
        "metrics.e",
        "metrics.f",
        "metrics.g",
    ];
    let read = || server.metrics().get("fleetd_analytics_questions_total") as usize;
    let ask = Client::Json1.call("AnalyticsService/GetMetrics", Some(ADMIN_KEY), names(&many).to_string().as_bytes());
    for hangs_up in [false, true] {
        let before = read();
        let mut connection = Http1::open(server.http());
        connection.send(&ask.on_http1());
        if hangs_up {
            assert!(wait_until(TURN_WITHIN, || read() > before), "it has begun");
            drop(connection);
        } else {
            assert_eq!(connection.reply().expect("an answer").status, 200);
            assert_eq!(read(), before + many.len(), "who stays is told all");
            continue;
        }
        // Turns go round: were there another metric to read, it would have one between any two of these.
        let asked = many.len();
        for _ in 0..asked {
            answer(&server, &names(&["cpu_usage"]));
        }
        let further = read() - before - asked;
        assert!(further < many.len() / 2, "{further} of {} metrics were read", many.len());
    }
}
