//! Names that are nearly the server's: refused with what was meant, unless the fleet has something of that name.
use serde_json::json;

use super::naive::{insert, HOUR};
use super::world::{World, DEVICES};
use super::{answer, ask, post, refused, server, time, ADMIN_KEY};
use crate::support::clickhouse::run;
use fleetd::clock::UnixMillis;

#[test]
fn a_metric_that_is_nearly_the_servers_is_refused_until_a_device_reports_one() {
    let server = server();
    let now = UnixMillis::now().as_millis();
    let about = |name: &str| json!({ "metric_names": ["cpu_usage", name], "start_time": time(now - HOUR) });
    for (name, meant) in
        [("cpu_usge", "cpu_usage"), ("cpu_percent", "cpu_usage"), ("deviceOnlineCount", "device_online_count")]
    {
        let (code, message) = refused(&server, &about(name));
        assert_eq!(code, "INVALID_ARGUMENT", "{message}");
        for part in [&format!("{name:?}"), &format!("did you mean {meant}?"), &format!("give metrics.{name}")] {
            assert!(message.contains(part.as_str()), "{part}: {message}");
        }
    }
    // Another name is the fleet's own, which may be reported one day; so is one that says so.
    for name in ["queue.depth", "metrics.cpu_usge"] {
        assert_eq!(answer(&server, &about(name))["series"], json!(null), "{name}");
    }
    // One that a device did report is a metric like any other, also where the time that is asked for has none of it.
    let mut beat = World::new().beats.swap_remove(0);
    (beat.at, beat.received_at) = (now - 40 * HOUR, now - 40 * HOUR);
    beat.metrics = [("cpu_usge".to_owned(), 7.5)].into();
    run(server.clickhouse(), "fleetd", &insert(&[beat]));
    assert_eq!(answer(&server, &about("cpu_usge"))["series"], json!(null));
    let before = json!({ "metric_names": ["cpu_usge"], "start_time": time(now - 41 * HOUR), "interval": "3600s" });
    assert_eq!(answer(&server, &before)["series"][0]["points"][0]["value"], 7.5);
    refused(&server, &about("cpu_percent"));
}

#[test]
fn a_label_that_is_nearly_called_as_something_else_is_refused_until_a_device_has_one() {
    let server = server();
    let world = World::new();
    world.settle(&server);
    let base = || json!({ "metric_names": ["cpu_usage"], "start_time": time(world.start), "end_time": time(world.start + HOUR) });
    let filtered = |key: &str| {
        let mut question = base();
        question["labels"] = json!({ key: "camera" });
        question
    };
    let grouped = |key: &str| {
        let mut question = base();
        question["group_by"] = json!([key]);
        question
    };
    for (key, meant) in
        [("type", "device_type"), ("deviceType", "device_type"), ("device-type", "device_type"), ("ver", "version")]
    {
        for (question, place) in [(filtered(key), "a key of labels"), (grouped(key), "group_by[0]")] {
            let (code, message) = refused(&server, &question);
            assert_eq!(code, "INVALID_ARGUMENT", "{message}");
            let said = format!(
                "{place} is {key:?}, a label that no device has; give {meant} if that is meant, or labels.{key}"
            );
            assert!(message.contains(&said), "{message}");
        }
        assert_eq!(answer(&server, &filtered(&format!("labels.{key}")))["series"], json!(null), "{key}");
    }
    // Other labels that nobody has are as before: of nobody, and of everybody together.
    assert_eq!(answer(&server, &filtered("site"))["series"], json!(null));
    assert_eq!(answer(&server, &grouped("site"))["series"][0]["labels"], json!({ "site": "" }));
    let message = json!({ "device_id": "odd", "device_type": "sensor", "labels": { "type": "camera" } });
    let reply = post(&server, "DeviceService/RegisterDevice", Some(ADMIN_KEY), &message.to_string());
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert!(ask(&server, &filtered("type")).is_ok() && ask(&server, &grouped("type")).is_ok(), "{DEVICES} and one");
}

#[test]
fn times_of_which_nothing_can_be_kept_are_refused_and_not_bent() {
    let server = server();
    for (name, at) in [("start_time", "1899-12-31T23:59:59.999Z"), ("end_time", "2300-01-01T00:00:00Z")] {
        let mut question =
            json!({ "metric_names": ["cpu_usage"], "start_time": "2024-01-01T00:00:00Z", "interval": "864000s" });
        question[name] = json!(at);
        let (code, message) = refused(&server, &question);
        assert_eq!(code, "INVALID_ARGUMENT", "{message}");
        assert!(
            message.contains(&format!("{name} is {at}; nothing is kept of times before 1900 or after 2299")),
            "{message}"
        );
    }
    let ends = json!({ "metric_names": ["cpu_usage"], "start_time": "1900-01-01T00:00:00Z",
        "end_time": "2299-12-31T23:59:59Z", "interval": "31536000s" });
    assert_eq!(answer(&server, &ends)["series"], json!(null));
}
