//! Nothing that a request says becomes a part of a statement: hostile texts in every place of a question are refused, or
//! are plain values that match what has just that value, and the tables are as before.
use serde_json::{json, Value};

use super::naive::{insert, Beat, HOUR};
use super::world::JOURNALS;
use super::{ask, post, server, time, Server, ADMIN_KEY};
use crate::support::clickhouse::run;
use fleetd::clock::UnixMillis;

/// What has broken other servers: quotes, comments, statements, templates, formats, paths, NULs, Unicode.
const HOSTILE: [&str; 36] = [
    "' OR '1'='1",
    "' OR 1=1 --",
    "'; DROP TABLE heartbeats; --",
    "\"; DROP TABLE heartbeats; --",
    "`; DROP TABLE heartbeats; --",
    "x') UNION ALL SELECT * FROM system.users --",
    "cpu_usage) FROM heartbeats; TRUNCATE TABLE heartbeats --",
    "cpu_percent AS value, (SELECT password FROM system.users)",
    "{metric:String}",
    "{x:Identifier}",
    "{start:Int64}",
    "{device_set:UUID}",
    "\\",
    "\\'",
    "\\x27 OR 1=1",
    "\\0",
    "\u{0}",
    "a\u{0}b",
    "\n; DROP TABLE heartbeats",
    "\r\nX-Injected: 1",
    "\t\\N",
    "\\N",
    "NULL",
    "/* comment */",
    "-- comment",
    "# comment",
    "%27%20OR%201%3D1",
    "&query=DROP%20TABLE%20heartbeats",
    "&readonly=0&max_execution_time=0",
    "?param_device=x",
    "FORMAT TSV SETTINGS readonly=0",
    "..\\../..//etc/passwd",
    "url('http://127.0.0.1/','TSV','a String')",
    "ʼ OR ʼ1ʼ=ʼ1",
    "\u{202e}' OR 1=1",
    "🦀'\"`\\;--",
];

/// Places of a question where a text can be, each with the text in it.
fn places(text: &str) -> Vec<Value> {
    let now = UnixMillis::now().as_millis();
    let base = |more: Value| {
        let mut question =
            json!({ "metric_names": ["cpu_usage"], "start_time": time(now - 5 * HOUR), "end_time": time(now) });
        question.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        question
    };
    let quoted = text.replace('\\', "\\\\").replace('"', "\\\"");
    vec![
        base(json!({ "metric_names": [text] })),
        base(json!({ "metric_names": [format!("metrics.{text}")] })),
        base(json!({ "aggregation": text })),
        base(json!({ "labels": { "region": text } })),
        base(json!({ "labels": { text: "eu" } })),
        base(json!({ "labels": { format!("labels.{text}"): text } })),
        base(json!({ "labels": { "device_id": text } })),
        base(json!({ "labels": { "device_type": text } })),
        base(json!({ "labels": { "version": text } })),
        base(json!({ "device_filter": text })),
        base(json!({ "device_filter": format!("type:\"{quoted}\"") })),
        base(json!({ "device_filter": format!("labels.\"{quoted}\":\"{quoted}\"") })),
        base(json!({ "device_filter": format!("id:{text}") })),
        base(json!({ "group_by": [text] })),
        base(json!({ "group_by": ["device_id", format!("labels.{text}")] })),
        base(json!({ "metric_names": ["device_online_count"], "labels": { "device_type": text } })),
        base(json!({ "metric_names": ["device_online_count"], "group_by": [text] })),
        base(json!({ "metric_names": ["restart_count"], "labels": { "version": text, text: text } })),
    ]
}

/// What the tables hold, in words.
fn state(server: &Server) -> String {
    let at = server.clickhouse();
    let tables =
        run(at, "fleetd", "SELECT name, create_table_query FROM system.tables WHERE database = 'fleetd' ORDER BY name");
    let rows = run(at, "fleetd", "SELECT count(), sum(cityHash64(*)) FROM heartbeats");
    let databases = run(at, "fleetd", "SELECT name FROM system.databases ORDER BY name");
    format!("{tables}\n{rows}\n{databases}")
}

#[test]
fn hostile_texts_are_refused_or_are_plain_values_wherever_they_stand() {
    let server = server();
    // Devices that are what the texts say: the only ones that an answer may be about. A label takes any text.
    let now = UnixMillis::now().as_millis();
    let mut beats = Vec::new();
    for (number, text) in HOSTILE.into_iter().enumerate() {
        let id = format!("dev-{number:02}");
        let message = json!({ "device_id": id, "device_type": "plain", "labels": { "region": text, text: "eu" } });
        let reply = post(&server, "DeviceService/RegisterDevice", Some(ADMIN_KEY), &message.to_string());
        let message = json!({ "device_id": id, "device_type": "plain", "labels": { "region": text } });
        if reply.status != 200 {
            let reply = post(&server, "DeviceService/RegisterDevice", Some(ADMIN_KEY), &message.to_string());
            assert_eq!(reply.status, 200, "{text:?}: {}", reply.text());
        }
        let at = now - HOUR + number as i64;
        beats.push(Beat {
            journal: JOURNALS[0],
            seq: number as u64 + 1,
            device: id,
            device_type: text.to_owned(),
            version: text.to_owned(),
            at,
            received_at: at,
            cpu: Some(number as f64),
            memory_used: None,
            memory_total: 0,
            restarts: 1,
            rx_bytes: 0,
            metrics: [].into(),
        });
    }
    run(server.clickhouse(), "fleetd", &insert(&beats));
    let before = state(&server);

    let (mut answered, mut refused) = (0, 0);
    for (number, text) in HOSTILE.into_iter().enumerate() {
        for question in places(text) {
            match ask(&server, &question) {
                Ok(_) => answered += 1,
                Err((code, message)) => {
                    assert_eq!(code, "INVALID_ARGUMENT", "{question}: {message}");
                    refused += 1;
                }
            }
        }
        // As a value it finds what has it, and nothing else.
        for labels in [json!({ "region": text }), json!({ "device_type": text }), json!({ "version": text })] {
            let question = json!({ "metric_names": ["cpu_usage"], "aggregation": "LAST", "labels": labels,
                "start_time": time(now - 5 * HOUR), "interval": "86400s", "group_by": ["device_id", "version"] });
            let told = ask(&server, &question).unwrap_or_else(|error| panic!("{question}: {error:?}"));
            let series = told["series"].as_array().map_or(&[][..], Vec::as_slice);
            assert_eq!(series.len(), 1, "{question}: {told}");
            assert_eq!(
                series[0]["labels"],
                json!({ "device_id": format!("dev-{number:02}"), "version": text }),
                "{question}"
            );
        }
    }
    assert!(answered > 100 && refused > 100, "{answered} answered, {refused} refused");
    assert_eq!(state(&server), before);
}
