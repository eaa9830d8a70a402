//! ListDevices over the real door: the reference's filters, orders and pages, what survives a restart, and queries
//! that nobody should send.
use std::time::Duration;

use fleetd::clock::UnixMillis;
use serde_json::{json, Value};

use super::support::client::{proto, Client};
use super::support::{wait_until, Options, Server, ADMIN_KEY};
use super::{call, device, ok, refused, refused_at_once, send};

/// The request of the reference's ListDevices section, word for word.
const LIST: &str = include_str!("../reference/list_devices.json");

fn register(server: &Server, id: &str, device_type: &str, interval: &str) -> String {
    let message = json!({
        "device_id": id,
        "device_name": format!("The {id}"),
        "device_type": device_type,
        "version": "1.2.0",
        "system_info": { "os": "Linux", "arch": "arm64", "memory_mb": 1000 },
        "metadata": { "location": if id.ends_with('1') { "Building A" } else { "Building B" } },
        "labels": { "ring": "canary" },
        "heartbeat_interval": interval,
    });
    ok(server, "RegisterDevice", &message)["apiKey"].as_str().expect("a key").to_owned()
}

fn report(server: &Server, id: &str, key: &str, cpu: f64, memory_mb: u64) {
    let message = json!({
        "device_id": id,
        "status": { "state": "ONLINE", "uptime_seconds": 3600 },
        "stats": { "cpu_percent": cpu, "memory_used_mb": memory_mb, "metrics": { "queue_depth": cpu / 10.0 } },
    });
    let reply = call(server, "Heartbeat", key, &message);
    assert_eq!(reply.status, 200, "{}", reply.text());
}

fn ids(page: &Value) -> Vec<String> {
    let devices = page["devices"].as_array().cloned().unwrap_or_default();
    devices.iter().map(|device| device["id"].as_str().expect("an id").to_owned()).collect()
}

fn list(server: &Server, filter: &str, order_by: &str) -> Vec<String> {
    let page = ok(server, "ListDevices", &json!({ "filter": filter, "order_by": order_by, "page_size": 100 }));
    let ids = ids(&page);
    assert_eq!(page["totalCount"].as_u64().unwrap_or_default() as usize, ids.len(), "{filter}: {page}");
    ids
}

/// Two busy devices, a quiet one, one that went silent, and one that never spoke.
fn fleet() -> Server {
    let server = Server::with(Options::default().unlimited());
    let silent = register(&server, "gone-001", "gateway", "1s");
    report(&server, "gone-001", &silent, 5.0, 100);
    register(&server, "mute-001", "esp32", "3600s");
    for (id, device_type, cpu, memory_mb) in [
        ("rpi-001", "raspberry-pi", 95.0, 950),
        ("rpi-002", "raspberry-pi", 85.0, 100),
        ("esp-001", "esp32", 10.0, 500),
    ] {
        let key = register(&server, id, device_type, "3600s");
        report(&server, id, &key, cpu, memory_mb);
        // A millisecond of its own, so that last_seen tells them apart.
        let seen = UnixMillis::now();
        assert!(wait_until(Duration::from_secs(5), || UnixMillis::now() > seen));
    }
    let is_gone = || list(&server, "status:offline", "") == ["gone-001"];
    assert!(wait_until(Duration::from_secs(30), is_gone), "three missed heartbeats of a second each");
    server
}

#[test]
fn every_list_of_the_reference_means_what_it_says() {
    let server = fleet();
    let reply = send(&server, "ListDevices", ADMIN_KEY, LIST);
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(ids(&reply.json()), ["esp-001", "rpi-002", "rpi-001"], "online, the latest first");

    let all = ["esp-001", "gone-001", "mute-001", "rpi-001", "rpi-002"];
    for (filter, order_by, expected) in [
        ("", "", &all[..]),
        ("status:online", "", &["esp-001", "rpi-001", "rpi-002"]),
        ("type:raspberry-pi,esp32", "", &["esp-001", "mute-001", "rpi-001", "rpi-002"]),
        ("last_seen:>2024-01-01", "", &["esp-001", "gone-001", "rpi-001", "rpi-002"]),
        ("cpu_usage:>80 AND memory_usage:>90", "", &["rpi-001"]),
        ("NOT status:offline", "", &["esp-001", "mute-001", "rpi-001", "rpi-002"]),
        ("name:The*", "name ASC", &all),
        ("name:*001", "", &["esp-001", "gone-001", "mute-001", "rpi-001"]),
        ("name:*rpi*", "", &["rpi-001", "rpi-002"]),
        ("status:unknown OR cpu_usage:<20", "", &["esp-001", "gone-001", "mute-001"]),
        ("cpu_usage:*", "cpu_usage DESC, memory_usage DESC", &["rpi-001", "rpi-002", "esp-001", "gone-001"]),
        ("", "cpu_usage DESC, memory_usage DESC", &["rpi-001", "rpi-002", "esp-001", "gone-001", "mute-001"]),
        // Beyond the reference.
        ("metrics.queue_depth:>8 AND labels.ring:canary", "", &["rpi-001", "rpi-002"]),
        (
            "metadata.location:\"Building A\" AND system_info.arch:arm64",
            "id DESC",
            &["rpi-001", "mute-001", "gone-001", "esp-001"],
        ),
        ("last_seen:<-1h OR registered_at:<-1h", "", &[]),
        ("version:>=1.2 AND uptime_seconds:>60", "type, name DESC", &["esp-001", "gone-001", "rpi-002", "rpi-001"]),
    ] {
        assert_eq!(list(&server, filter, order_by), expected, "{filter:?} by {order_by:?}");
    }
}

#[test]
fn a_list_shows_a_device_as_a_single_read_does_after_every_kind_of_change() {
    let mut server = Server::with(Options::default().unlimited());
    let key = register(&server, "rpi-001", "raspberry-pi", "3600s");
    let agree = |server: &Server, filter: &str| {
        let page = ok(server, "ListDevices", &json!({ "filter": filter }));
        assert_eq!(page["devices"], json!([device(server, "rpi-001")]), "{filter}");
    };
    agree(&server, "status:unknown AND version:1.2.0");
    report(&server, "rpi-001", &key, 50.0, 500);
    agree(&server, "status:online AND memory_usage:50");
    let metrics = ok(&server, "GetDevice", &json!({ "device_id": "rpi-001", "include_metrics": true }));
    assert_eq!(metrics["metrics"]["memoryPercent"], 50.0, "of the size that it registered with: {metrics}");
    assert_eq!(call(&server, "Heartbeat", &key, &json!({ "device_id": "rpi-001", "version": "2.0.0" })).status, 200);
    agree(&server, "version:2.0.0");
    let change = json!({
        "device_id": "rpi-001",
        "update_mask": "name,labels,metadata.location,status",
        "device": { "name": "New", "labels": { "ring": "stable" }, "metadata": { "location": "X" }, "status": "MAINTENANCE" },
    });
    ok(&server, "UpdateDevice", &change);
    agree(&server, "name:New AND labels.ring:stable AND metadata.location:X AND status:maintenance");
    assert_eq!(list(&server, "labels.ring:canary OR name:The*", ""), [""; 0]);

    server.sigkill();
    server.restart();
    agree(&server, "name:New AND labels.ring:stable AND metadata.location:X AND status:maintenance");
    ok(&server, "DeleteDevice", &json!({ "device_id": "rpi-001", "force": true }));
    assert_eq!(list(&server, "", ""), [""; 0]);
    register(&server, "rpi-001", "raspberry-pi", "3600s");
    agree(&server, "status:unknown AND labels.ring:canary");
}

#[test]
fn a_page_token_is_good_for_its_query_alone_also_after_kill_9_and_beside_changes() {
    let mut server = Server::with(Options::default().unlimited());
    for n in 0..25 {
        register(&server, &format!("page-{n:02}"), ["a", "b"][n % 2], "3600s");
    }
    let ask = |server: &Server, token: &str| {
        ok(
            server,
            "ListDevices",
            &json!({ "filter": "type:a", "order_by": "name DESC", "page_size": 5, "page_token": token }),
        )
    };
    let first = ask(&server, "");
    let token = first["nextPageToken"].as_str().expect("a token").to_owned();
    assert_eq!(first["totalCount"], 13);

    for (filter, order_by) in [("type:b", "name DESC"), ("type:a", "name"), ("", "")] {
        let message = json!({ "filter": filter, "order_by": order_by, "page_token": token });
        let (code, told) = refused(&server, "ListDevices", &message);
        assert_eq!(code, "INVALID_ARGUMENT");
        assert!(told.contains("another filter or order"), "{told}");
    }
    let mut forged = token.clone().into_bytes();
    forged[20] = if forged[20] == b'A' { b'B' } else { b'A' };
    let forged = String::from_utf8(forged).expect("ASCII");
    let message = json!({ "filter": "type:a", "order_by": "name DESC", "page_token": forged });
    assert_eq!(refused(&server, "ListDevices", &message).0, "INVALID_ARGUMENT");

    // Around what is still to come, devices go, come and change.
    ok(&server, "DeleteDevice", &json!({ "device_id": "page-24", "force": true }));
    register(&server, "page-99", "a", "3600s");
    ok(&server, "UpdateDevice", &json!({ "device_id": "page-23", "device": { "labels": { "ring": "x" } } }));
    server.sigkill();
    server.restart();
    let second = ask(&server, &token);
    let third = ask(&server, second["nextPageToken"].as_str().expect("a token"));
    let expected: Vec<_> = (0..25).rev().filter(|n| n % 2 == 0).map(|n| format!("page-{n:02}")).collect();
    assert_eq!([ids(&first), ids(&second), ids(&third)].concat(), expected);
    assert!(third.get("nextPageToken").is_none_or(|token| token == ""), "{third}");
}

#[test]
fn a_query_from_hell_is_refused_at_once_with_its_reason() {
    let server = Server::with(Options::default().unlimited());
    server.register("rpi-001");
    let nested = format!("{}status:online{}", "(".repeat(10_000), ")".repeat(10_000));
    // As long as a message may be.
    let long = format!("id:{}", "x".repeat(2_000_000));
    let many = format!("id:{}", vec!["x"; 5_000].join(","));
    let keys = vec!["name"; 100].join(",");
    for (message, part) in [
        (json!({ "filter": nested }), "filter: column 1: "),
        (json!({ "filter": long }), "at most 16384 are read"),
        (json!({ "filter": many }), "filter: column "),
        (json!({ "filter": "cpu_usage:>" }), "filter: column "),
        (json!({ "filter": "cpu_usgae:>80" }), "did you mean cpu_usage?"),
        (json!({ "filter": "cpu_usage:>high" }), "filter: column "),
        (json!({ "order_by": keys }), "order_by: column "),
        (json!({ "order_by": "name SIDEWAYS" }), "order_by: column 6: "),
        (json!({ "page_token": "A".repeat(2_000_000) }), "page_token is not one that this server made"),
        (json!({ "page_token": "\u{0}é" }), "page_token is not one that this server made"),
        (json!({ "page_size": -5 }), "page_size is -5"),
    ] {
        let (code, told) = refused_at_once(&server, "ListDevices", &message);
        assert_eq!(code, "INVALID_ARGUMENT", "{told}");
        assert!(told.contains(part) && told.len() < 500, "{told}");
    }
    // 10 MB are more than any message may have.
    for field in ["filter", "order_by", "page_token"] {
        let (code, _) = refused_at_once(&server, "ListDevices", &json!({ field: "x".repeat(10 << 20) }));
        assert_eq!(code, "RESOURCE_EXHAUSTED", "{field}");
    }
    for client in Client::ALL.into_iter().filter(|client| !client.is_json()) {
        for field in [2, 3, 4] {
            let ask = client.call("DeviceService/ListDevices", Some(ADMIN_KEY), &proto::bytes(field, b"\xff\xfe\xc0"));
            let outcome = client.outcome(&client.send(server.http(), &ask));
            assert_eq!(outcome.code, "INVALID_ARGUMENT", "{client:?} field {field}: {outcome:?}");
        }
    }
    assert_eq!(list(&server, "", ""), ["rpi-001"]);
}

#[test]
fn a_command_goes_to_the_devices_that_its_filter_matches() {
    let server = fleet();
    let sent = ok(
        &server,
        "SendCommand",
        &json!({ "device_filter": "type:raspberry-pi AND cpu_usage:>90", "type": "reboot" }),
    );
    assert_eq!(sent["targetDeviceCount"], 1, "{sent}");
    for (id, waiting) in [("rpi-001", 1), ("rpi-002", 0)] {
        let page = ok(&server, "ListCommands", &json!({ "device_id": id }));
        assert_eq!(page["commands"].as_array().map_or(0, Vec::len), waiting, "{id}: {page}");
    }
    let (code, told) = refused(&server, "SendCommand", &json!({ "device_filter": "type", "type": "reboot" }));
    assert_eq!(code, "INVALID_ARGUMENT");
    assert!(told.starts_with("device_filter: column 5: "), "{told}");
    let queries = server.metrics().get("fleetd_fleet_queries_total");
    assert!(queries >= 2.0, "{queries}");
}
