//! UpdateDevice and DeleteDevice: masks, etags, and what a crash right after the answer leaves.
use std::thread;

use serde_json::json;

use super::support::{Options, Server, ADMIN_KEY};
use super::{call, device, heartbeat, ok, refused, refused_at_once, send};

/// The request of the reference's UpdateDevice section, and the one of its section on field masks (which names no
/// device), word for word.
const UPDATE: &str = include_str!("../reference/update_device.json");
const FIELD_MASK: &str = include_str!("../reference/field_mask.json");

#[test]
fn the_references_update_works_as_printed() {
    let server = Server::start();
    server.register("rpi-001");
    let reply = send(&server, "UpdateDevice", ADMIN_KEY, UPDATE);
    assert_eq!(reply.status, 200, "{}", reply.text());
    let updated = reply.json();
    assert_eq!(updated["device"]["name"], "Raspberry Pi Production");
    assert_eq!(updated["device"]["metadata"], json!({ "location": "datacenter-1" }));
    assert!(updated["updatedAt"].as_str().is_some_and(|at| at.ends_with('Z')), "{updated}");
    assert_eq!(device(&server, "rpi-001"), updated["device"]);
}

#[test]
fn the_references_field_mask_works_as_printed_and_changes_nothing_else() {
    let server = Server::start();
    server.register("rpi-001");
    ok(
        &server,
        "UpdateDevice",
        &json!({ "device_id": "rpi-001", "device": { "metadata": { "rack": "7", "location": "x" } } }),
    );
    let before = device(&server, "rpi-001");
    let mut message: serde_json::Value = serde_json::from_str(FIELD_MASK).expect("JSON");
    message["device_id"] = "rpi-001".into();
    ok(&server, "UpdateDevice", &message);
    let mut expected = before.clone();
    expected["name"] = "New Name".into();
    expected["metadata"] = json!({ "location": "Building A", "rack": "7" });
    expected["status"] = "MAINTENANCE".into();
    let mut after = device(&server, "rpi-001");
    assert_ne!(after["etag"], before["etag"]);
    after["etag"] = before["etag"].clone();
    assert_eq!(after, expected);
}

#[test]
fn maintenance_stands_over_heartbeats_and_restarts_until_it_is_left() {
    let mut server = Server::with(Options::default().unlimited());
    let key = server.register("rpi-001");
    let set = |server: &Server, status: &str| {
        ok(
            server,
            "UpdateDevice",
            &json!({ "device_id": "rpi-001", "update_mask": "status", "device": { "status": status } }),
        )
    };
    set(&server, "MAINTENANCE");
    assert_eq!(heartbeat(&server, "rpi-001", &key).status, 200);
    assert_eq!(device(&server, "rpi-001")["status"], "MAINTENANCE");
    server.sigkill();
    server.restart();
    assert_eq!(heartbeat(&server, "rpi-001", &key).status, 200);
    assert_eq!(device(&server, "rpi-001")["status"], "MAINTENANCE");
    set(&server, "ONLINE");
    assert_eq!(device(&server, "rpi-001")["status"], "ONLINE");
}

#[test]
fn a_mask_that_cannot_be_is_refused_with_the_path() {
    let server = Server::with(Options::default().unlimited());
    server.register("rpi-001");
    let with =
        |paths: serde_json::Value| json!({ "device_id": "rpi-001", "update_mask": { "paths": paths }, "device": {} });
    for (paths, part) in [
        (json!(["nmae"]), "did you mean name?"),
        (json!(["last_seen"]), "output only"),
        (json!(["id"]), "output only"),
        (json!(["etag"]), "output only"),
        (json!(["registered_at"]), "output only"),
        (json!(["status"]), "device.status is UNKNOWN"),
        (json!(["metadata."]), "key was expected"),
        (json!(vec!["name"; 10_000]), "10000 paths are too many"),
        (json!(["x".repeat(2_000_000)]), "at most 256 bytes"),
        // As many paths as a message has room for.
        (json!(vec![""; 600_000]), "more than 10000 paths"),
    ] {
        let (code, message) = refused_at_once(&server, "UpdateDevice", &with(paths));
        assert_eq!(code, "INVALID_ARGUMENT", "{message}");
        assert!(message.contains(part) && message.len() < 500, "{message}");
    }
    let text = json!({ "device_id": "rpi-001", "update_mask": "a,".repeat(1_000_000), "device": {} });
    let (code, message) = refused_at_once(&server, "UpdateDevice", &text);
    assert!(code == "INVALID_ARGUMENT" && message.contains("more than 10000 paths"), "{code}: {message}");
    let (code, message) = refused(&server, "UpdateDevice", &json!({ "device_id": "rpi-001" }));
    assert_eq!((code.as_str(), message.as_str()), ("INVALID_ARGUMENT", "device is not set; it holds the new values"));
}

#[test]
fn an_etag_lets_one_of_two_editors_win_and_without_one_both_land() {
    let server = Server::with(Options::default().unlimited());
    server.register("rpi-001");
    let etag = device(&server, "rpi-001")["etag"].clone();
    let rename = |name: &str| json!({ "device_id": "rpi-001", "device": { "name": name, "etag": etag } });
    ok(&server, "UpdateDevice", &rename("first"));
    let (code, message) = refused(&server, "UpdateDevice", &rename("second"));
    assert_eq!(code, "FAILED_PRECONDITION");
    assert!(message.contains("read it again"), "{message}");
    assert_eq!(device(&server, "rpi-001")["name"], "first");

    // A repeat of what is there changes nothing, not even the etag.
    let etag = device(&server, "rpi-001")["etag"].clone();
    ok(&server, "UpdateDevice", &json!({ "device_id": "rpi-001", "device": { "name": "first" } }));
    assert_eq!(device(&server, "rpi-001")["etag"], etag);

    thread::scope(|scope| {
        for editor in 0..8 {
            let server = &server;
            scope.spawn(move || {
                for round in 0..10 {
                    let path = format!("labels.editor-{editor}");
                    let labels = json!({ format!("editor-{editor}"): round.to_string() });
                    ok(
                        server,
                        "UpdateDevice",
                        &json!({ "device_id": "rpi-001", "update_mask": path, "device": { "labels": labels } }),
                    );
                }
            });
        }
    });
    let labels = device(&server, "rpi-001")["labels"].clone();
    for editor in 0..8 {
        assert_eq!(labels[format!("editor-{editor}")], "9", "{labels}");
    }
}

#[test]
fn what_was_answered_is_there_after_kill_9() {
    let mut server = Server::with(Options::default().unlimited());
    for round in 0..5 {
        let (kept, deleted) = (format!("kept-{round}"), format!("deleted-{round}"));
        server.register(&kept);
        let dead_key = server.register(&deleted);
        let message = json!({
            "device_id": kept,
            "device": { "name": "New", "labels": { "ring": "1" }, "heartbeat_interval": "5s", "system_info": { "os": "RTOS" } },
        });
        let updated = ok(&server, "UpdateDevice", &message)["device"].clone();
        assert_eq!(ok(&server, "DeleteDevice", &json!({ "device_id": deleted }))["success"], true);
        server.sigkill();
        server.restart();
        assert_eq!(device(&server, &kept), updated);
        assert_eq!(updated["heartbeatInterval"], "5s");
        assert_eq!(refused(&server, "GetDevice", &json!({ "device_id": deleted })).0, "NOT_FOUND");
        assert_eq!(heartbeat(&server, &deleted, &dead_key).status, 401);
    }
}

#[test]
fn an_online_device_is_deleted_only_by_force_and_its_key_dies_at_once() {
    let server = Server::with(Options::default().unlimited());
    let key = server.register("rpi-001");
    assert_eq!(heartbeat(&server, "rpi-001", &key).status, 200);
    let (code, message) = refused(&server, "DeleteDevice", &json!({ "device_id": "rpi-001", "force": false }));
    assert_eq!(code, "FAILED_PRECONDITION");
    assert!(message.contains("ONLINE") && message.contains("force"), "{message}");
    assert_eq!(heartbeat(&server, "rpi-001", &key).status, 200, "a refused deletion changes nothing");

    ok(&server, "DeleteDevice", &json!({ "device_id": "rpi-001", "force": true }));
    assert_eq!(heartbeat(&server, "rpi-001", &key).status, 401);
    assert_eq!(refused(&server, "DeleteDevice", &json!({ "device_id": "rpi-001" })).0, "NOT_FOUND");

    // The same id again is another device.
    let new_key = server.register("rpi-001");
    assert_ne!(new_key, key);
    assert_eq!(device(&server, "rpi-001")["status"], serde_json::Value::Null, "UNKNOWN is the default and left out");
    assert_eq!(heartbeat(&server, "rpi-001", &key).status, 401);
    assert_eq!(heartbeat(&server, "rpi-001", &new_key).status, 200);
}

#[test]
fn devices_that_come_and_go_under_fire_end_as_the_last_answer_said() {
    let server = Server::with(Options::default().unlimited());
    thread::scope(|scope| {
        for worker in 0..4 {
            let server = &server;
            scope.spawn(move || {
                let id = format!("churn-{worker}");
                for _ in 0..20 {
                    let key = server.register(&id);
                    thread::scope(|inner| {
                        inner.spawn(|| {
                            // 200 before, 404 while it is in the mailbox, 401 after: never a hang, never another.
                            for _ in 0..5 {
                                let status = heartbeat(server, &id, &key).status;
                                assert!([200, 401, 404].contains(&status), "{status}");
                            }
                        });
                        ok(server, "DeleteDevice", &json!({ "device_id": id, "force": true }));
                    });
                    assert_eq!(heartbeat(server, &id, &key).status, 401);
                }
                server.register(&id);
            });
        }
    });
    let list = ok(&server, "ListDevices", &json!({}));
    assert_eq!(list["totalCount"], 4, "{list}");
    assert!(
        super::support::wait_until(std::time::Duration::from_secs(5), || {
            server.metrics().get("fleetd_device_actors") == 0.0
        }),
        "actors of deleted devices stay"
    );
}

#[test]
fn only_an_operator_edits() {
    let server = Server::with(Options::default().unlimited());
    let key = server.register("rpi-001");
    for (rpc, message) in [
        ("UpdateDevice", json!({ "device_id": "rpi-001", "device": { "name": "mine" } })),
        ("DeleteDevice", json!({ "device_id": "rpi-001", "force": true })),
    ] {
        let reply = call(&server, rpc, &key, &message);
        assert_eq!(reply.status, 403, "{rpc}: {}", reply.text());
    }
}
