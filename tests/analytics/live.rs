//! What devices report now is answered soon after, and who is online is counted.
use std::time::Duration;

use fleetd::clock::UnixMillis;
use serde_json::{json, Value};

use super::naive::{HOUR, MINUTE};
use super::{answer, post, server, time, Server, ADMIN_KEY};
use crate::support::wait_until;

fn register(server: &Server, id: &str, device_type: &str, version: &str) -> String {
    let message = json!({ "device_id": id, "device_type": device_type, "version": version,
        "system_info": { "memory_mb": 2_000 } });
    let reply = post(server, "DeviceService/RegisterDevice", Some(ADMIN_KEY), &message.to_string());
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.json()["apiKey"].as_str().expect("a key").to_owned()
}

fn heartbeat(server: &Server, key: &str, message: &Value) {
    let reply = post(server, "DeviceService/Heartbeat", Some(key), &message.to_string());
    assert_eq!(reply.status, 200, "{}", reply.text());
}

#[test]
fn what_devices_report_is_answered_with_what_the_server_knows_of_them() {
    let server = server();
    let now = UnixMillis::now().as_millis();
    let start = now - now.rem_euclid(MINUTE) - 30 * MINUTE;
    for (number, version) in ["1.0", "1.0", "2.0"].into_iter().enumerate() {
        let id = format!("cam-{number}");
        let key = register(&server, &id, "camera", version);
        for minute in 0..20_i64 {
            // The report leaves the type, the version and the total out: the registry has them.
            let stats = json!({ "cpu_percent": 10 * number + minute as usize, "memory_used_mb": 500,
                "metrics": { "queue.depth": number } });
            let at = time(start + minute * MINUTE + 500);
            heartbeat(&server, &key, &json!({ "device_id": id, "timestamp": at, "stats": stats }));
        }
        // What no processor can say is none of its measurements: it would be the mean of all.
        for cpu_percent in [1.7e308, -5.0] {
            let at = time(start + 5 * MINUTE + 700);
            let stats = json!({ "cpu_percent": cpu_percent });
            heartbeat(&server, &key, &json!({ "device_id": id, "timestamp": at, "stats": stats }));
        }
    }
    let question = json!({
        "metric_names": ["cpu_usage", "memory_usage", "queue.depth"], "aggregation": "MAX", "interval": "600s",
        "start_time": time(start), "end_time": time(start + 20 * MINUTE), "group_by": ["version"],
        "labels": { "device_type": "camera" },
    });
    let is_told = || answer(&server, &question)["summary"]["metrics"]["cpu_usage"]["count"] == "60";
    assert!(wait_until(Duration::from_secs(60), is_told), "{}", answer(&server, &question));
    let told = answer(&server, &question);
    let values = |name: &str| -> Vec<(String, Vec<f64>)> {
        let series = told["series"].as_array().expect("series").iter().filter(|series| series["name"] == name);
        let points = |series: &Value| {
            let points = series["points"].as_array().expect("points");
            points.iter().map(|point| point["value"].as_f64().unwrap_or(0.0)).collect()
        };
        series
            .map(|series| (series["labels"]["version"].as_str().expect("a version").to_owned(), points(series)))
            .collect()
    };
    assert_eq!(values("cpu_usage"), [("1.0".into(), vec![19.0, 29.0]), ("2.0".into(), vec![29.0, 39.0])]);
    assert_eq!(values("memory_usage"), [("1.0".into(), vec![25.0, 25.0]), ("2.0".into(), vec![25.0, 25.0])]);
    assert_eq!(values("queue.depth"), [("1.0".into(), vec![1.0, 1.0]), ("2.0".into(), vec![2.0, 2.0])]);

    // Everything that may be left out.
    let least = answer(&server, &json!({ "metric_names": ["cpu_usage"] }));
    assert_eq!(least["summary"]["interval"], "60s");
    assert_eq!(least["summary"]["metrics"]["cpu_usage"]["count"], "60", "{least}");
    let questions = server.metrics();
    assert!(questions.get("fleetd_analytics_questions_total") >= 4.0, "{questions:?}");
}

#[test]
fn devices_that_are_online_are_counted_by_what_they_are_now() {
    let server = server();
    for (id, device_type) in [("a-1", "camera"), ("a-2", "camera"), ("b-1", "sensor")] {
        let key = register(&server, id, device_type, "1");
        heartbeat(&server, &key, &json!({ "device_id": id, "status": { "state": "ONLINE" } }));
    }
    let now = UnixMillis::now().as_millis();
    let question = |group_by: Value, labels: Value| {
        json!({ "metric_names": ["device_online_count", "cpu_usage"], "aggregation": "LAST", "interval": "3600s",
            "start_time": time(now - now.rem_euclid(HOUR)), "end_time": time(now + 2 * HOUR), "group_by": group_by, "labels": labels })
    };
    let last = |told: &Value| -> Vec<(String, f64)> {
        let series = told["series"].as_array().map_or(&[][..], Vec::as_slice);
        let online = series.iter().filter(|series| series["name"] == "device_online_count");
        online
            .map(|series| {
                let labels = series["labels"].as_object();
                let group: Vec<&str> =
                    labels.into_iter().flat_map(|all| all.values()).filter_map(Value::as_str).collect();
                let points = series["points"].as_array().expect("points");
                (group.join("/"), points.last().expect("a point")["value"].as_f64().unwrap_or(0.0))
            })
            .collect()
    };
    let mut told = Value::Null;
    let all = || {
        told = answer(&server, &question(json!([]), json!({})));
        last(&told) == [(String::new(), 3.0)]
    };
    assert!(wait_until(Duration::from_secs(30), all), "{told}");
    let by_type = answer(&server, &question(json!(["device_type"]), json!({})));
    assert_eq!(last(&by_type), [("camera".to_owned(), 2.0), ("sensor".to_owned(), 1.0)], "{by_type}");
    let cameras = answer(&server, &question(json!([]), json!({ "device_type": "camera" })));
    assert_eq!(last(&cameras), [(String::new(), 2.0)], "{cameras}");
    let one = answer(&server, &question(json!(["device_id"]), json!({ "device_id": "a-1" })));
    assert_eq!(last(&one), [("a-1".to_owned(), 1.0)], "{one}");
    for told in [by_type, cameras, one] {
        let points = told["series"][0]["points"].as_array().expect("points").len();
        assert_eq!(points, 1, "the hours to come have no point: {told}");
    }
}
