//! Many heartbeats in one call and over one stream: each with its own result, in order, none lost.
use serde_json::{json, Value};

use super::support::client::frame;
use super::support::wire::{http1, http2, Ask, Reply};
use super::support::{clickhouse, Options, Server, ADMIN_KEY};
use super::{call, device, ok, refused};
use std::time::Duration;

/// Waits until ClickHouse has so many heartbeats, no more and no fewer.
fn wait_for_rows(server: &Server, rows: u64) {
    clickhouse::wait_for(
        server.clickhouse(),
        "fleetd",
        "SELECT count() FROM heartbeats",
        rows,
        Duration::from_secs(10),
    );
}

/// A call of StreamHeartbeats with all its messages, in Connect's JSON.
fn stream(server: &Server, key: &str, messages: &[Value], send: fn(std::net::SocketAddr, &Ask) -> Reply) -> Vec<Value> {
    let body: Vec<u8> = messages.iter().flat_map(|message| frame(0, message.to_string().as_bytes())).collect();
    let ask = Ask::post("/fleetd.v1.DeviceService/StreamHeartbeats", body)
        .header("content-type", "application/connect+json")
        .header("connect-protocol-version", "1")
        .header("authorization", format!("Bearer {key}"));
    let reply = send(server.http(), &ask);
    assert_eq!(reply.status, 200, "{reply:?}");
    let (mut frames, mut rest) = (Vec::new(), &reply.body[..]);
    while rest.len() >= 5 {
        let length = u32::from_be_bytes([rest[1], rest[2], rest[3], rest[4]]) as usize;
        frames.push(serde_json::from_slice(&rest[5..5 + length]).expect("JSON in each frame"));
        rest = &rest[5 + length..];
    }
    frames
}

#[test]
fn each_heartbeat_of_a_batch_has_its_own_result_in_order() {
    let server = Server::with(Options::default().env("FLEETD_RATE_LIMIT_ANONYMOUS", "0"));
    for id in ["a", "b"] {
        server.register(id);
    }
    let heartbeats = json!([
        { "device_id": "a", "stats": { "cpu_percent": 1.0 } },
        { "device_id": "nobody" },
        { "device_id": "b/b" },
        { "device_id": "b", "stats": { "cpu_percent": 2.0 }, "command_results": [{ "state": "QUEUED" }] },
        { "device_id": "b" },
        // The same device again: in order, so that the last one stays.
        { "device_id": "a", "stats": { "cpu_percent": 3.0 } },
        { "device_id": "a", "stats": { "cpu_percent": 4.0 } },
    ]);
    let answer = ok(&server, "BatchHeartbeat", &json!({ "heartbeats": heartbeats }));
    let codes: Vec<_> = answer["results"].as_array().expect("results").iter().map(outcome).collect();
    assert_eq!(codes, ["ok", "NOT_FOUND", "INVALID_ARGUMENT", "INVALID_ARGUMENT", "ok", "ok", "ok"]);
    assert_eq!(answer["acknowledgedCount"], 4);
    let metrics = ok(&server, "GetDevice", &json!({ "device_id": "a", "include_metrics": true }))["metrics"].clone();
    assert_eq!((metrics["stats"]["cpuPercent"].as_f64(), &metrics["heartbeatCount"]), (Some(4.0), &json!("3")));
    wait_for_rows(&server, 4);
}

fn outcome(result: &Value) -> String {
    match result["error"]["code"].as_str() {
        Some(code) => code.to_owned(),
        None => {
            assert_eq!(result["response"]["acknowledged"], true, "{result}");
            assert!(result["response"]["nextHeartbeat"].is_string(), "{result}");
            "ok".to_owned()
        }
    }
}

#[test]
fn a_batch_is_bounded_and_a_device_speaks_for_itself_alone() {
    let server = Server::with(Options::default().unlimited());
    let key = server.register("a");
    server.register("b");
    for (size, part) in [(0, "heartbeats is empty"), (10_001, "10001 entries; at most 10000")] {
        let (code, message) =
            refused(&server, "BatchHeartbeat", &json!({ "heartbeats": vec![json!({ "device_id": "a" }); size] }));
        assert!(code == "INVALID_ARGUMENT" && message.contains(part), "{code}: {message}");
    }
    let both = json!({ "heartbeats": [{ "device_id": "a" }, { "device_id": "b" }] });
    let reply = call(&server, "BatchHeartbeat", &key, &both);
    assert_eq!(reply.status, 200, "{}", reply.text());
    let codes: Vec<_> = reply.json()["results"].as_array().expect("results").iter().map(outcome).collect();
    assert_eq!(codes, ["ok", "PERMISSION_DENIED"]);
    let reply = call(&server, "BatchHeartbeat", "fdk_nonsense", &both);
    assert_eq!(reply.status, 401, "{}", reply.text());
    assert!(device(&server, "b")["lastSeen"].is_null());
}

#[test]
fn the_limit_of_a_device_holds_in_a_batch_too() {
    let server = Server::with(Options::default().env("FLEETD_RATE_LIMIT_ANONYMOUS", "0"));
    let key = server.register("a");
    let batch = json!({ "heartbeats": vec![json!({ "device_id": "a" }); 15] });
    let reply = call(&server, "BatchHeartbeat", &key, &batch);
    let results = reply.json()["results"].as_array().cloned().expect("results");
    let codes: Vec<_> = results.iter().map(outcome).collect();
    assert_eq!(codes[..10], ["ok"; 10]);
    assert_eq!(codes[10..], ["RESOURCE_EXHAUSTED"; 5]);
    assert!(results[14]["error"]["retryAfter"].is_string(), "{}", results[14]);
}

#[test]
fn a_stream_answers_each_message_in_order_over_both_versions_of_http() {
    let server = Server::with(Options::default().unlimited());
    for n in 0..50 {
        server.register(&format!("d{n}"));
    }
    for send in [http1 as fn(_, &_) -> _, http2] {
        let message = |sequence: usize| {
            let heartbeats: Vec<_> = (0..50).map(|n| json!({ "device_id": format!("d{n}") })).collect();
            json!({ "sequence": sequence.to_string(), "heartbeats": heartbeats })
        };
        let messages: Vec<_> = (1..=20).map(message).collect();
        let frames = stream(&server, ADMIN_KEY, &messages, send);
        assert_eq!(frames.len(), 21, "an answer each, and the end");
        for (place, answer) in frames[..20].iter().enumerate() {
            assert_eq!(answer["sequence"], (place + 1).to_string());
            assert_eq!(answer["acknowledgedCount"], 50);
        }
        assert!(frames[20]["error"].is_null(), "{}", frames[20]);
    }
    wait_for_rows(&server, 2_000);
}

#[test]
fn a_stream_that_cannot_go_on_ends_with_an_error_after_its_answers() {
    let server = Server::with(Options::default().unlimited());
    let key = server.register("a");
    let good = json!({ "sequence": "1", "heartbeats": [{ "device_id": "a" }] });
    for (bad, key, code) in [
        (json!({ "sequence": "2" }), key.as_str(), "invalid_argument"),
        (json!({ "nonsense": 2 }), key.as_str(), "invalid_argument"),
    ] {
        let frames = stream(&server, key, &[good.clone(), bad, good.clone()], http2);
        assert_eq!(frames.len(), 2, "{frames:?}");
        assert_eq!(frames[0]["acknowledgedCount"], 1);
        assert_eq!(frames[1]["error"]["code"], code, "{frames:?}");
    }
    let frames = stream(&server, "fdk_nonsense", &[good], http2);
    assert_eq!(frames[0]["error"]["code"], "unauthenticated", "{frames:?}");
}
