//! Callers that do not wait for their answer: what they asked for is done whole or not at all.
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{json, Value};

use super::support::client::Client;
use super::support::wire::http1;
use super::support::{wait_until, Options, Server, ADMIN_KEY};
use super::{call, heartbeat, ok};

/// Calls of each kind.
const CALLS: usize = 20;
const PATIENCE: Duration = Duration::from_secs(10);

/// Calls by the admin, who waits a millisecond.
fn cut_off(server: &Server, rpc: &str, message: &Value) {
    let message = message.to_string();
    let ask = Client::ConnectJson1.call(&format!("DeviceService/{rpc}"), Some(ADMIN_KEY), message.as_bytes());
    let reply = http1(server.http(), &ask.header("connect-timeout-ms", "1"));
    assert!([200, 504].contains(&reply.status), "{rpc}: {}", reply.text());
}

fn status(server: &Server, rpc: &str, message: &Value) -> u16 {
    call(server, rpc, ADMIN_KEY, message).status
}

/// Runs `calls` while large registrations keep the registry's writer busy for longer than a caller waits.
fn beside_large_registrations(server: &Server, name: &str, calls: impl FnOnce()) {
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0.. {
                let device = |n| json!({ "device_id": format!("{name}-{round}-{n}") });
                let devices: Vec<_> = (0..5_000).map(device).collect();
                ok(server, "BatchRegisterDevices", &json!({ "devices": devices }));
                if is_over.load(Ordering::Relaxed) {
                    return;
                }
            }
        });
        calls();
        is_over.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_call_whose_caller_is_gone_is_done_whole_or_not_at_all() {
    let server = Server::with(Options::default().unlimited());
    let id = |kind: &str, n: usize| format!("{kind}-{n:02}");
    let keys: Vec<_> = (0..CALLS).map(|n| server.register(&id("deleted", n))).collect();
    let commanded: Vec<_> = (0..CALLS).map(|n| server.register(&id("commanded", n))).collect();
    (0..CALLS).for_each(|n| drop(server.register(&id("renamed", n))));
    beside_large_registrations(&server, "other", || {
        for n in 0..CALLS {
            cut_off(&server, "RegisterDevice", &json!({ "device_id": id("registered", n) }));
            cut_off(&server, "DeleteDevice", &json!({ "device_id": id("deleted", n), "force": true }));
            cut_off(&server, "SendCommand", &json!({ "device_id": id("commanded", n), "type": "reboot" }));
            cut_off(&server, "UpdateDevice", &json!({ "device_id": id("renamed", n), "device": { "name": "New" } }));
        }
    });
    for n in 0..CALLS {
        // Who cannot be registered again is known.
        let registered = json!({ "device_id": id("registered", n) });
        let is_whole = wait_until(PATIENCE, || {
            status(&server, "RegisterDevice", &registered) == 200 || status(&server, "GetDevice", &registered) == 200
        });
        assert!(is_whole, "{registered} is taken, and unknown");

        let deleted = id("deleted", n);
        let is_whole = wait_until(PATIENCE, || {
            let is_gone = status(&server, "GetDevice", &json!({ "device_id": deleted })) == 404;
            is_gone == (heartbeat(&server, &deleted, &keys[n]).status == 401)
        });
        assert!(is_whole, "{deleted} is gone, and its key lives");

        let renamed = id("renamed", n);
        let is_whole = wait_until(PATIENCE, || {
            let list = ok(&server, "ListDevices", &json!({ "filter": format!("id:{renamed} AND name:New") }));
            let is_listed = !list["totalCount"].is_null();
            is_listed == (ok(&server, "GetDevice", &json!({ "device_id": renamed }))["device"]["name"] == "New")
        });
        assert!(is_whole, "{renamed} is named New, and lists do not know");

        let commanded_id = id("commanded", n);
        let mut delivered = 0;
        let is_whole = wait_until(PATIENCE, || {
            let reply = heartbeat(&server, &commanded_id, &commanded[n]).json();
            delivered += reply["commands"].as_array().map_or(0, Vec::len);
            let list = ok(&server, "ListCommands", &json!({ "device_id": commanded_id }));
            list["commands"].as_array().map_or(0, Vec::len) == delivered
        });
        assert!(is_whole, "{commanded_id} has a command that is not delivered");
    }
}
