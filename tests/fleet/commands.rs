//! Commands over the real door: every state outlives SIGKILL, and no crash makes a device do a thing twice unsaid.
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::{json, Value};

use super::support::{Options, Server, ADMIN_KEY};
use super::{call, ok, refused};

fn send(server: &Server, id: &str, ttl: &str) -> String {
    let sent = ok(server, "SendCommand", &json!({ "device_id": id, "type": "reboot", "ttl": ttl }));
    assert_eq!(sent["targetDeviceCount"], 1, "{sent}");
    sent["commandId"].as_str().expect("a commandId").to_owned()
}

/// Reports, and gives the commands of the reply: id and attempt.
fn report(server: &Server, id: &str, key: &str, results: Value) -> Vec<(String, u64)> {
    let reply = call(server, "Heartbeat", key, &json!({ "device_id": id, "command_results": results }));
    assert_eq!(reply.status, 200, "{}", reply.text());
    commands_in(&reply.json())
}

fn commands_in(reply: &Value) -> Vec<(String, u64)> {
    let commands = reply["commands"].as_array().cloned().unwrap_or_default();
    let one = |command: &Value| {
        let id = command["id"].as_str().expect("an id").to_owned();
        (id, command["attempt"].as_u64().expect("an attempt"))
    };
    commands.iter().map(one).collect()
}

/// State by command, of one device.
fn states(server: &Server, id: &str) -> BTreeMap<String, String> {
    let list = ok(server, "ListCommands", &json!({ "device_id": id, "page_size": 100 }));
    let one = |status: &Value| {
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        (text(&status["command"]["id"]), text(&status["state"]))
    };
    list["commands"].as_array().cloned().unwrap_or_default().iter().map(one).collect()
}

#[test]
fn commands_in_every_state_outlive_kill_9() {
    let mut server = Server::with(Options::default().unlimited());
    let key = server.register("rpi-001");
    let result =
        |id: &String, state: &str| json!([{ "command_id": id, "state": state, "output": "done", "exit_code": 0 }]);
    // Each command is brought to its state before the next is sent, so that the reply to a heartbeat holds one.
    let mut expected = BTreeMap::new();
    for state in ["SUCCEEDED", "FAILED", "ACKED", "DELIVERED", "EXPIRED", "CANCELED", "QUEUED"] {
        let ttl = if state == "EXPIRED" { "1s" } else { "3600s" };
        let id = send(&server, "rpi-001", ttl);
        match state {
            "SUCCEEDED" | "FAILED" | "ACKED" => {
                assert_eq!(report(&server, "rpi-001", &key, json!([])), [(id.clone(), 1)]);
                assert_eq!(report(&server, "rpi-001", &key, result(&id, state)), []);
            }
            "DELIVERED" => assert_eq!(report(&server, "rpi-001", &key, json!([])), [(id.clone(), 1)]),
            "EXPIRED" => {
                thread::sleep(Duration::from_millis(1_100));
                assert_eq!(report(&server, "rpi-001", &key, json!([])), [], "its time is over");
            }
            "CANCELED" => {
                let canceled = ok(&server, "CancelCommand", &json!({ "command_id": id }));
                assert_eq!(canceled["canceledCount"], 1, "{canceled}");
            }
            _ => {}
        }
        expected.insert(id, state.to_owned());
    }
    assert_eq!(states(&server, "rpi-001"), expected);
    server.sigkill();
    server.restart();
    assert_eq!(states(&server, "rpi-001"), expected);

    let of = |state: &str| expected.iter().find(|(_, known)| *known == state).map(|(id, _)| id.clone()).expect("sent");
    assert_eq!(report(&server, "rpi-001", &key, json!([])), [(of("QUEUED"), 1)], "what no device had is delivered");
    let (acked, delivered) = (of("ACKED"), of("DELIVERED"));
    let again = || report(&server, "rpi-001", &key, json!([]));
    let is_redelivered = super::support::wait_until(Duration::from_secs(20), || {
        let commands = again();
        assert!(commands.iter().all(|(_, attempt)| *attempt > 1), "a repeat says that it is one: {commands:?}");
        commands.iter().any(|(id, attempt)| *id == delivered && *attempt == 2)
    });
    assert!(is_redelivered, "what was delivered and not acknowledged comes again");
    report(&server, "rpi-001", &key, result(&acked, "SUCCEEDED"));
    assert_eq!(states(&server, "rpi-001")[&acked], "SUCCEEDED");
    // A late word changes nothing.
    report(&server, "rpi-001", &key, result(&acked, "FAILED"));
    let list = ok(&server, "ListCommands", &json!({ "command_id": acked }));
    assert_eq!(list["commands"][0]["state"], "SUCCEEDED");
    assert_eq!(list["commands"][0]["result"]["output"], "done");
    assert_eq!(list["commands"][0]["createdBy"], "admin");
}

#[test]
fn kill_9_at_any_moment_loses_no_command_and_repeats_none_unsaid() {
    let mut server = Server::with(Options::default().unlimited());
    let key = server.register("rpi-001");
    let mut sent = Vec::new();
    let mut got: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for round in 0..6 {
        let stop = AtomicBool::new(false);
        let (sends, receipts) = thread::scope(|scope| {
            let (server, key, stop) = (&server, &key, &stop);
            let sender = scope.spawn(move || {
                let mut sent = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let message = json!({ "device_id": "rpi-001", "type": "x" }).to_string();
                    // A call that the kill cuts off may or may not have queued its command.
                    let Some(reply) = try_call(server, "SendCommand", ADMIN_KEY, &message) else { break };
                    if let Some(id) = reply["commandId"].as_str() {
                        sent.push(id.to_owned());
                    }
                    thread::sleep(Duration::from_millis(5));
                }
                sent
            });
            let device = scope.spawn(move || {
                let mut got = Vec::new();
                let mut results = json!([]);
                while !stop.load(Ordering::Relaxed) {
                    let message = json!({ "device_id": "rpi-001", "command_results": results }).to_string();
                    let Some(reply) = try_call(server, "Heartbeat", key, &message) else { break };
                    let commands = commands_in(&reply);
                    results =
                        commands.iter().map(|(id, _)| json!({ "command_id": id, "state": "SUCCEEDED" })).collect();
                    got.extend(commands);
                }
                got
            });
            thread::sleep(Duration::from_millis(150 + 130 * round));
            server.signal(libc::SIGKILL);
            stop.store(true, Ordering::Relaxed);
            (sender.join().expect("the sender"), device.join().expect("the device"))
        });
        sent.extend(sends);
        for (id, attempt) in receipts {
            got.entry(id).or_default().push(attempt);
        }
        server.sigkill();
        server.restart();
    }
    assert!(sent.len() > 50, "only {} commands were sent", sent.len());
    let all_over = super::support::wait_until(Duration::from_secs(40), || {
        let commands = report(&server, "rpi-001", &key, json!([]));
        let results = commands.iter().map(|(id, _)| json!({ "command_id": id, "state": "SUCCEEDED" })).collect();
        for (id, attempt) in commands {
            got.entry(id).or_default().push(attempt);
        }
        report(&server, "rpi-001", &key, results);
        let open =
            |state: &str| ok(&server, "ListCommands", &json!({ "state": state }))["totalCount"].as_u64().unwrap_or(0);
        open("QUEUED") + open("DELIVERED") == 0
    });
    assert!(all_over, "commands stay open");
    for id in &sent {
        assert!(got.contains_key(id), "command {id} was answered and never delivered");
    }
    for (id, attempts) in &got {
        assert!(attempts.windows(2).all(|pair| pair[0] < pair[1]), "command {id} came with attempts {attempts:?}");
    }
}

/// `None` when the server went away.
fn try_call(server: &Server, rpc: &str, key: &str, message: &str) -> Option<Value> {
    let ask =
        super::support::client::Client::Json1.call(&format!("DeviceService/{rpc}"), Some(key), message.as_bytes());
    let address = server.http();
    let reply = std::panic::catch_unwind(|| super::support::wire::http1(address, &ask)).ok()?;
    (reply.status == 200).then(|| reply.json())
}

#[test]
fn a_repeated_request_id_queues_nothing_also_at_once_and_after_a_restart() {
    let mut server = Server::with(Options::default().unlimited());
    server.register("rpi-001");
    let message = json!({ "device_id": "rpi-001", "type": "reboot", "request_id": "deploy-7" });
    let all: Vec<Value> = thread::scope(|scope| {
        let calls: Vec<_> = (0..8).map(|_| scope.spawn(|| ok(&server, "SendCommand", &message))).collect();
        calls.into_iter().map(|call| call.join().expect("an answer")).collect()
    });
    server.sigkill();
    server.restart();
    let again = ok(&server, "SendCommand", &message);
    assert!(all.iter().all(|sent| *sent == again), "{all:?} and {again}");
    assert_eq!(states(&server, "rpi-001").len(), 1);
}

#[test]
fn what_cannot_be_a_command_is_refused_with_its_field() {
    let server = Server::with(Options::default().unlimited());
    let key = server.register("rpi-001");
    let long = |bytes: usize| "x".repeat(bytes);
    for (message, code, part) in [
        (json!({ "type": "x" }), "INVALID_ARGUMENT", "neither device_id nor device_filter"),
        (json!({ "device_id": "rpi-001", "device_filter": "id:*", "type": "x" }), "INVALID_ARGUMENT", "both set"),
        (json!({ "device_id": "rpi-002", "type": "x" }), "NOT_FOUND", "rpi-002"),
        (json!({ "device_id": "rpi-001" }), "INVALID_ARGUMENT", "type is empty"),
        (json!({ "device_id": "rpi-001", "type": long(65) }), "INVALID_ARGUMENT", "type has 65 bytes"),
        (json!({ "device_id": "rpi-001", "type": "x", "ttl": "0.5s" }), "INVALID_ARGUMENT", "ttl is"),
        (json!({ "device_id": "rpi-001", "type": "x", "ttl": "2592001s" }), "INVALID_ARGUMENT", "ttl is"),
        (json!({ "device_id": "rpi-001", "type": "x", "timeout": "-1s" }), "INVALID_ARGUMENT", "timeout is"),
        (
            json!({ "device_id": "rpi-001", "type": "x", "parameters": { "a": long(4097) } }),
            "INVALID_ARGUMENT",
            "parameters.a has 4097",
        ),
        (
            json!({ "device_id": "rpi-001", "type": "x", "payload": long(4 * 65_540 / 3 / 4 * 4) }),
            "INVALID_ARGUMENT",
            "payload has",
        ),
        (
            json!({ "device_id": "rpi-001", "type": "x", "request_id": long(129) }),
            "INVALID_ARGUMENT",
            "request_id has 129",
        ),
    ] {
        let (found, text) = refused(&server, "SendCommand", &message);
        assert!(found == code && text.contains(part), "{message}: {found}: {text}");
    }
    for (results, part) in [
        (json!([{ "command_id": "x", "state": "QUEUED" }]), "command_results[0].state is QUEUED"),
        (json!([{ "command_id": "x" }]), "command_results[0].state is STATE_UNSPECIFIED"),
        (json!(vec![json!({ "command_id": "x", "state": "ACKED" }); 257]), "command_results has 257 entries"),
    ] {
        let reply = call(&server, "Heartbeat", &key, &json!({ "device_id": "rpi-001", "command_results": results }));
        assert!(reply.status == 400 && reply.text().contains(part), "{}", reply.text());
    }
    // Of a command that is nobody's: counted, and no reason for a device to try again for ever.
    assert_eq!(report(&server, "rpi-001", &key, json!([{ "command_id": "x", "state": "ACKED" }])), []);
    assert_eq!(server.metrics().get("fleetd_command_results_ignored_total"), 1.0);
    let reply = call(&server, "SendCommand", &key, &json!({ "device_id": "rpi-001", "type": "x" }));
    assert_eq!(reply.status, 403, "a device commands nobody");
    assert_eq!(refused(&server, "CancelCommand", &json!({ "command_id": "x" })).0, "NOT_FOUND");
}

#[test]
fn a_list_of_commands_is_paged_newest_first() {
    let server = Server::with(Options::default().unlimited());
    server.register("a");
    server.register("b");
    let mut sent: Vec<String> = (0..25).map(|n| send(&server, if n % 2 == 0 { "a" } else { "b" }, "60s")).collect();
    sent.reverse();
    let (mut seen, mut token) = (Vec::new(), String::new());
    loop {
        let page = ok(&server, "ListCommands", &json!({ "page_size": 10, "page_token": token }));
        assert_eq!(page["totalCount"], 25);
        let ids = page["commands"].as_array().expect("commands").iter();
        seen.extend(ids.map(|status| status["command"]["id"].as_str().expect("an id").to_owned()));
        match page["nextPageToken"].as_str() {
            Some(next) if !next.is_empty() => token = next.to_owned(),
            _ => break,
        }
    }
    assert_eq!(seen, sent);
    let first = ok(&server, "ListCommands", &json!({ "page_size": 10 }))["nextPageToken"].clone();
    let (code, message) = refused(&server, "ListCommands", &json!({ "device_id": "a", "page_token": first }));
    assert!(code == "INVALID_ARGUMENT" && message.contains("another filter"), "{code}: {message}");
}
