//! UpdateService over plain HTTP, as `curl` calls it: the API reference's examples word for word, and what is refused.
use serde_json::{json, Value};

use crate::support::client::Client;
use crate::support::wire::{http1, Reply};
use crate::support::{wait_until, Options, Server, ADMIN_KEY};

const CREATE: &str = include_str!("../reference/create_update.json");
const DEPLOY: &str = include_str!("../reference/deploy_update.json");
const STATUS: &str = include_str!("../reference/get_deployment_status.json");
const ROLLBACK: &str = include_str!("../reference/rollback_deployment.json");

fn call(server: &Server, rpc: &str, key: Option<&str>, message: &str) -> Reply {
    http1(server.http(), &Client::Json1.call(rpc, key, message.as_bytes()))
}

fn ok(server: &Server, rpc: &str, message: &str) -> Value {
    let reply = call(server, &format!("UpdateService/{rpc}"), Some(ADMIN_KEY), message);
    assert_eq!(reply.status, 200, "{rpc}: {}\n{}", reply.text(), server.log());
    reply.json()
}

/// A device that was heard, so that it is online; its key.
fn online(server: &Server, id: &str) -> String {
    let registration = json!({ "device_id": id, "device_type": "raspberry-pi", "version": "1.0.0" });
    let reply = call(server, "DeviceService/RegisterDevice", Some(ADMIN_KEY), &registration.to_string());
    assert_eq!(reply.status, 200, "{}", reply.text());
    let key = reply.json()["apiKey"].as_str().expect("a key").to_owned();
    heartbeat(server, id, &key, &json!({}));
    key
}

fn heartbeat(server: &Server, id: &str, key: &str, more: &Value) -> Value {
    let mut message = json!({ "device_id": id, "status": { "state": "ONLINE" }, "version": "1.0.0" });
    for (name, value) in more.as_object().expect("an object") {
        message[name] = value.clone();
    }
    let reply = call(server, "DeviceService/Heartbeat", Some(key), &message.to_string());
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.json()
}

/// Sends heartbeats until one is answered with an offer.
fn await_offer(server: &Server, id: &str, key: &str) -> Value {
    let mut offer = Value::Null;
    let came = wait_until(std::time::Duration::from_secs(60), || {
        offer = heartbeat(server, id, key, &json!({}))["pendingUpdate"].clone();
        !offer.is_null()
    });
    assert!(came, "{id} is offered nothing: {}\n{}", ok(server, "GetDeploymentStatus", STATUS), server.log());
    offer
}

#[test]
fn the_references_examples_work_as_printed_one_after_the_other() {
    let server = Server::with(Options::default().unlimited());
    let key = online(&server, "rpi-001");

    let created = ok(&server, "CreateUpdate", CREATE);
    assert_eq!(created["updateId"], "update-001", "the next example names it");
    assert_eq!(created["update"]["artifacts"][0]["sizeBytes"], "104857600", "64-bit integers are strings");
    assert!(created["createdAt"].as_str().is_some_and(|at| at.ends_with('Z')), "{created}");

    let plan: Value = serde_json::from_str(DEPLOY).expect("JSON");
    let planned = ok(&server, "PlanDeployment", &plan.to_string());
    assert_eq!(planned["targetDeviceCount"], 1);
    assert!(planned["warnings"].to_string().contains("checksum"), "an abbreviated one is told: {planned}");
    let mut hasty = plan.clone();
    hasty["config"]["policy"] = json!({ "accept_timeout": "10s" });
    let planned = ok(&server, "PlanDeployment", &hasty.to_string());
    assert!(planned["warnings"].to_string().contains("accept_timeout is 10"), "heartbeats are slower: {planned}");

    let deployed = ok(&server, "DeployUpdate", DEPLOY);
    assert_eq!(deployed["deploymentId"], "deploy-001", "the next example names it");
    assert_eq!(deployed["targetDeviceCount"], 1);

    let offer = await_offer(&server, "rpi-001", &key);
    assert_eq!((&offer["version"], &offer["attempt"]), (&json!("2.0.0"), &json!(1)));
    assert_eq!(offer["downloadUrl"], "https://updates.fleetd.io/firmware-2.0.0-rpi.tar.gz");

    let status = ok(&server, "GetDeploymentStatus", STATUS);
    assert_eq!((&status["status"]["state"], &status["status"]["totalDevices"]), (&json!("RUNNING"), &json!(1)));
    assert_eq!(status["deviceStatuses"][0]["deviceId"], "rpi-001");
    assert_eq!(status["deviceStatuses"][0]["state"], "OFFERED");
    assert_eq!(status["metrics"]["activeDevices"], 1);

    let back = ok(&server, "RollbackDeployment", ROLLBACK);
    assert_eq!(back["success"], true);
    assert!(back["rolledBackAt"].is_string(), "{back}");
}

#[test]
fn a_report_of_an_offer_that_was_taken_back_is_told_not_to_count() {
    let server = Server::with(Options::default().unlimited());
    let key = online(&server, "rpi-001");
    ok(&server, "CreateUpdate", CREATE);
    ok(&server, "DeployUpdate", DEPLOY);
    let offer = await_offer(&server, "rpi-001", &key);
    let paused = ok(&server, "PauseDeployment", r#"{"deployment_id":"deploy-001","reason":"second thoughts"}"#);
    assert_eq!((&paused["status"]["state"], &paused["status"]["reason"]), (&json!("PAUSED"), &json!("OPERATOR")));
    let accept = json!({ "deployment_id": "deploy-001", "update_id": "update-001", "attempt": offer["attempt"],
        "state": "ACCEPTED" });
    let reply = heartbeat(&server, "rpi-001", &key, &json!({ "update_progress": accept }));
    assert_eq!(reply["acknowledged"], true, "the heartbeat itself is good");
    assert_eq!(
        (&reply["updateReport"]["reasonCode"], &reply["pendingUpdate"]),
        (&json!("OFFER_REVOKED"), &Value::Null)
    );
    let mut report = accept;
    report["device_id"] = json!("rpi-001");
    let said = call(&server, "UpdateService/ReportUpdateStatus", Some(&key), &report.to_string());
    assert_eq!((said.status, &said.json()["reasonCode"]), (200, &json!("OFFER_REVOKED")));
    assert_eq!(said.json().get("accepted"), None, "false is left out, as protobuf JSON does");
    // Nor may it speak for another device.
    online(&server, "rpi-002");
    report["device_id"] = json!("rpi-002");
    let denied = call(&server, "UpdateService/ReportUpdateStatus", Some(&key), &report.to_string());
    assert_eq!(denied.status, 403, "{}", denied.text());
    // With the next offer the number is another.
    ok(&server, "ResumeDeployment", r#"{"deployment_id":"deploy-001"}"#);
    let again = await_offer(&server, "rpi-001", &key);
    assert!(again["attempt"].as_u64() > offer["attempt"].as_u64(), "{again}");
}

#[test]
fn metrics_show_deployments_and_their_devices_by_state_until_they_end() {
    let server = Server::with(Options::default().unlimited());
    let key = online(&server, "rpi-001");
    let shows = |name: &str, state: &str| server.metrics().get(&format!("fleetd_{name}{{state=\"{state}\"}}"));
    assert_eq!(
        (shows("deployments", "RUNNING"), shows("deployment_devices", "OFFERED")),
        (0.0, 0.0),
        "none is shown as 0"
    );
    ok(&server, "CreateUpdate", CREATE);
    ok(&server, "DeployUpdate", DEPLOY);
    await_offer(&server, "rpi-001", &key);
    assert_eq!((shows("deployments", "RUNNING"), shows("deployment_devices", "OFFERED")), (1.0, 1.0));
    ok(&server, "PauseDeployment", r#"{"deployment_id":"deploy-001","reason":"second thoughts"}"#);
    assert_eq!((shows("deployments", "RUNNING"), shows("deployments", "PAUSED")), (0.0, 1.0));
    assert_eq!(shows("deployments_ended_total", "CANCELLED"), 0.0);
    ok(&server, "CancelDeployment", r#"{"deployment_id":"deploy-001"}"#);
    let ended = wait_until(std::time::Duration::from_secs(20), || shows("deployments_ended_total", "CANCELLED") == 1.0);
    assert!(ended, "{}", server.log());
    let is_gone = wait_until(std::time::Duration::from_secs(20), || {
        shows("deployments", "PAUSED") + shows("deployments", "CANCELLED") + shows("deployment_devices", "QUEUED")
            == 0.0
    });
    assert!(is_gone, "what is over is no deployment that is open: {}", server.log());
}

#[test]
fn a_heartbeat_whose_progress_cannot_be_is_refused_whole() {
    let server = Server::with(Options::default().unlimited());
    let key = online(&server, "rpi-001");
    let message = json!({ "device_id": "rpi-001", "status": { "state": "ONLINE" }, "version": "9.9.9",
        "update_progress": { "deployment_id": "deploy-001", "attempt": 1, "message": "no state" } });
    let refused = call(&server, "DeviceService/Heartbeat", Some(&key), &message.to_string());
    assert_eq!((refused.status, &refused.json()["code"]), (400, &json!("INVALID_ARGUMENT")), "{}", refused.text());
    assert!(refused.text().contains("ACCEPTED"), "what it may be is told: {}", refused.text());
    let kept = call(&server, "DeviceService/GetDevice", Some(ADMIN_KEY), r#"{"device_id":"rpi-001"}"#).json();
    assert_eq!(kept["device"]["version"], "1.0.0", "nothing of it was taken: {kept}");
}

#[test]
fn a_device_that_works_on_an_update_is_not_taken_over_before_it_is_done() {
    let server = Server::with(Options::default().unlimited());
    let key = online(&server, "rpi-001");
    ok(&server, "CreateUpdate", CREATE);
    ok(&server, "CreateUpdate", &CREATE.replace("2.0.0", "3.0.0"));
    let deployed = ok(&server, "DeployUpdate", DEPLOY);
    assert!(deployed["startedAt"].is_string(), "it runs when it is answered: {deployed}");
    let offer = await_offer(&server, "rpi-001", &key);
    let report = |state: &str| {
        let progress = json!({ "deployment_id": "deploy-001", "attempt": offer["attempt"], "state": state });
        heartbeat(&server, "rpi-001", &key, &json!({ "update_progress": progress }))["updateReport"]["accepted"].clone()
    };
    assert_eq!(report("ACCEPTED"), true);
    let supersede = json!({ "update_id": "update-002", "device_filter": "id:*", "config": { "supersede": true } });
    let refused = call(&server, "UpdateService/DeployUpdate", Some(ADMIN_KEY), &supersede.to_string());
    assert_eq!(refused.status, 412, "{}", refused.text());
    assert!(refused.text().contains("IN_OTHER_DEPLOYMENT"), "{}", refused.text());
    let beat = heartbeat(&server, "rpi-001", &key, &json!({}));
    assert_eq!(beat["pendingUpdate"], Value::Null, "one update at a time");
    // It fails, and so is done.
    assert_eq!(report("FAILED"), true);
    let taken = ok(&server, "DeployUpdate", &supersede.to_string());
    assert_eq!(taken["targetDeviceCount"], 1);
    assert_eq!(await_offer(&server, "rpi-001", &key)["version"], "3.0.0");
}

#[test]
fn what_cannot_be_is_refused_by_name_and_changes_nothing() {
    let server = Server::with(Options::default().unlimited());
    online(&server, "rpi-001");
    ok(&server, "CreateUpdate", CREATE);
    let deploy = |more: Value| {
        let mut message = json!({ "update_id": "update-001", "device_filter": "id:*" });
        for (name, value) in more.as_object().expect("an object") {
            message[name] = value.clone();
        }
        message
    };
    let update = |artifact: Value| {
        let mut whole = json!({ "platform": "raspberry-pi", "url": "https://x.example/f", "size_bytes": 1,
            "checksum": format!("sha256:{}", "a".repeat(64)) });
        for (name, value) in artifact.as_object().expect("an object") {
            whole[name] = value.clone();
        }
        json!({ "name": "n", "version": "3.0.0", "artifacts": [whole] })
    };
    let unknown = r#"{"deployment_id":"deploy-404"}"#;
    let unknown: Value = serde_json::from_str(unknown).expect("JSON");
    for (rpc, message, status, code, told) in [
        ("DeployUpdate", json!({ "update_id": "update-404", "device_filter": "id:*" }), 404, "NOT_FOUND", "update-404"),
        ("DeployUpdate", json!({ "update_id": "update-001" }), 400, "INVALID_ARGUMENT", "id:*"),
        (
            "DeployUpdate",
            deploy(json!({ "device_filter": "type:toaster" })),
            412,
            "FAILED_PRECONDITION",
            "type:toaster",
        ),
        (
            "DeployUpdate",
            deploy(json!({ "device_filter": "typo:x" })),
            400,
            "INVALID_ARGUMENT",
            "device_filter: column 1",
        ),
        ("DeployUpdate", deploy(json!({ "device_ids": ["rpi-404"] })), 404, "NOT_FOUND", "rpi-404"),
        ("DeployUpdate", deploy(json!({ "device_ids": ["a/b"] })), 400, "INVALID_ARGUMENT", "device_ids[0]"),
        (
            "DeployUpdate",
            deploy(json!({ "config": { "strategy": "CANARY", "canary_percentage": 101 } })),
            400,
            "INVALID_ARGUMENT",
            "config.canary_percentage",
        ),
        (
            "DeployUpdate",
            deploy(json!({ "config": { "max_failure_percentage": -1 } })),
            400,
            "INVALID_ARGUMENT",
            "config.max_failure_percentage",
        ),
        ("DeployUpdate", deploy(json!({ "config": { "max_parallel": 0 } })), 400, "INVALID_ARGUMENT", "max_parallel"),
        ("CreateUpdate", update(json!({ "url": "ftp://x.example/f" })), 400, "INVALID_ARGUMENT", "artifacts[0].url"),
        ("CreateUpdate", update(json!({ "url": "http://x.example/f" })), 400, "INVALID_ARGUMENT", "artifacts[0].url"),
        ("CreateUpdate", update(json!({ "url": "file:///etc/passwd" })), 400, "INVALID_ARGUMENT", "artifacts[0].url"),
        ("CreateUpdate", update(json!({ "checksum": "md5:abc" })), 400, "INVALID_ARGUMENT", "artifacts[0].checksum"),
        (
            "CreateUpdate",
            json!({ "name": "n", "version": "3", "artifacts": [{ "binary_id": "bin-404" }] }),
            404,
            "NOT_FOUND",
            "bin-404",
        ),
        ("CreateUpdate", json!({ "name": "n", "version": "3.0.0" }), 400, "INVALID_ARGUMENT", "artifacts"),
        ("CreateUpdate", serde_json::from_str(CREATE).expect("JSON"), 409, "ALREADY_EXISTS", "update-001"),
        ("GetUpdate", json!({ "update_id": "update-404" }), 404, "NOT_FOUND", "update-404"),
        ("GetDeploymentStatus", unknown.clone(), 404, "NOT_FOUND", "deploy-404"),
        ("PromoteDeployment", unknown.clone(), 404, "NOT_FOUND", "deploy-404"),
        ("RollbackDeployment", unknown.clone(), 404, "NOT_FOUND", "deploy-404"),
        ("RetryFailed", unknown, 404, "NOT_FOUND", "deploy-404"),
        ("ExplainDevice", json!({ "device_id": "rpi-404" }), 404, "NOT_FOUND", "rpi-404"),
    ] {
        let reply = call(&server, &format!("UpdateService/{rpc}"), Some(ADMIN_KEY), &message.to_string());
        let text = reply.text();
        assert_eq!((reply.status, reply.json()["code"].as_str()), (status, Some(code)), "{rpc} {message}: {text}");
        assert!(reply.json()["message"].as_str().is_some_and(|said| said.contains(told)), "{rpc} {message}: {text}");
        let anonymous = call(&server, &format!("UpdateService/{rpc}"), None, &message.to_string());
        assert_eq!(anonymous.status, 401, "{rpc} without a key: {}", anonymous.text());
    }
    assert_eq!(ok(&server, "ListUpdates", "{}")["totalCount"], 1);
    assert_eq!(ok(&server, "ListDeployments", "{}").get("totalCount"), None);
    let free = ok(&server, "ExplainDevice", r#"{"device_id":"rpi-001"}"#);
    assert_eq!(free["reasonCode"], "NOT_TARGETED", "{free}");
}

#[test]
fn a_deployment_that_is_over_takes_no_orders_and_a_repeated_request_starts_nothing() {
    let server = Server::with(Options::default().unlimited());
    online(&server, "rpi-001");
    ok(&server, "CreateUpdate", CREATE);
    let mut deploy: Value = serde_json::from_str(DEPLOY).expect("JSON");
    deploy["request_id"] = json!("once");
    // A client that does not wait for its first call: none of them finds the device taken.
    let message = deploy.to_string();
    std::thread::scope(|scope| {
        let calls =
            (0..4).map(|_| scope.spawn(|| call(&server, "UpdateService/DeployUpdate", Some(ADMIN_KEY), &message)));
        for reply in calls.collect::<Vec<_>>() {
            let reply = reply.join().expect("an answer");
            assert!(matches!(reply.status, 200 | 503), "{}", reply.text());
        }
    });
    let first = ok(&server, "DeployUpdate", &message);
    assert_eq!(first["deploymentId"], "deploy-001");
    let again = ok(&server, "DeployUpdate", &deploy.to_string());
    assert_eq!(first["deploymentId"], again["deploymentId"]);
    // The device is taken, so another call finds nobody.
    deploy["request_id"] = json!("twice");
    let other = call(&server, "UpdateService/DeployUpdate", Some(ADMIN_KEY), &deploy.to_string());
    assert_eq!(other.status, 412, "{}", other.text());
    assert!(other.text().contains("IN_OTHER_DEPLOYMENT"), "{}", other.text());
    let taken = call(&server, "DeviceService/DeleteDevice", Some(ADMIN_KEY), r#"{"device_id":"rpi-001"}"#);
    assert_eq!(taken.status, 412, "{}", taken.text());
    assert!(taken.text().contains("deploy-001"), "{}", taken.text());

    let cancelled = ok(&server, "CancelDeployment", r#"{"deployment_id":"deploy-001","reason":"enough"}"#);
    assert_eq!(cancelled["status"]["state"], "CANCELLED");
    for (rpc, message) in [
        ("PromoteDeployment", r#"{"deployment_id":"deploy-001"}"#),
        ("ResumeDeployment", r#"{"deployment_id":"deploy-001"}"#),
        ("RetryFailed", r#"{"deployment_id":"deploy-001"}"#),
        ("ApproveDeployment", r#"{"deployment_id":"deploy-001"}"#),
    ] {
        let reply = call(&server, &format!("UpdateService/{rpc}"), Some(ADMIN_KEY), message);
        assert_eq!(reply.status, 412, "{rpc}: {}", reply.text());
        assert!(reply.text().contains("CANCELLED"), "{rpc}: {}", reply.text());
    }
    // A repeat of what brought it there changes nothing, and is no error.
    assert_eq!(ok(&server, "CancelDeployment", r#"{"deployment_id":"deploy-001"}"#)["status"]["state"], "CANCELLED");
    let deleted =
        call(&server, "DeviceService/DeleteDevice", Some(ADMIN_KEY), r#"{"device_id":"rpi-001","force":true}"#);
    assert_eq!(deleted.status, 200, "{}", deleted.text());
}

#[test]
fn an_approval_is_waited_for_and_a_denial_is_final() {
    let server = Server::with(Options::default().unlimited());
    online(&server, "rpi-001");
    ok(&server, "CreateUpdate", CREATE);
    let mut deploy: Value = serde_json::from_str(DEPLOY).expect("JSON");
    deploy["config"]["policy"] = json!({ "require_approval": true });
    let state = |id: &str| {
        let message = json!({ "deployment_id": id });
        ok(&server, "GetDeploymentStatus", &message.to_string())["status"]["state"].as_str().map(str::to_owned)
    };
    ok(&server, "DeployUpdate", &deploy.to_string());
    let waits =
        wait_until(std::time::Duration::from_secs(10), || state("deploy-001").as_deref() == Some("AWAITING_APPROVAL"));
    assert!(waits, "{:?}", state("deploy-001"));
    let denied =
        ok(&server, "ApproveDeployment", r#"{"deployment_id":"deploy-001","deny":true,"reason":"not on Friday"}"#);
    assert_eq!(denied["status"]["state"], "DENIED");
    let rollback =
        call(&server, "UpdateService/RollbackDeployment", Some(ADMIN_KEY), r#"{"deployment_id":"deploy-001"}"#);
    assert_eq!(rollback.status, 412, "{}", rollback.text());
    assert!(rollback.text().contains("DENIED"), "{}", rollback.text());
    // The device is free for another deployment.
    ok(&server, "DeployUpdate", &deploy.to_string());
    wait_until(std::time::Duration::from_secs(10), || state("deploy-002").as_deref() == Some("AWAITING_APPROVAL"));
    ok(&server, "ApproveDeployment", r#"{"deployment_id":"deploy-002"}"#);
    let runs = wait_until(std::time::Duration::from_secs(10), || state("deploy-002").as_deref() == Some("RUNNING"));
    assert!(runs, "{:?}", state("deploy-002"));
    let listed = ok(&server, "ListDeployments", r#"{"states":["DENIED"]}"#);
    assert_eq!((&listed["totalCount"], &listed["deployments"][0]["deploymentId"]), (&json!(1), &json!("deploy-001")));
}

#[test]
fn a_device_that_does_not_say_what_it_runs_after_a_restart_has_not_gone_back() {
    let mut server = Server::with(Options::default().unlimited());
    let key = online(&server, "rpi-001");
    // A second one, which never reports, keeps the deployment open.
    let registration = json!({ "device_id": "rpi-002", "device_type": "raspberry-pi", "version": "1.0.0" });
    call(&server, "DeviceService/RegisterDevice", Some(ADMIN_KEY), &registration.to_string());
    ok(&server, "CreateUpdate", CREATE);
    let deploy = json!({ "update_id": "update-001", "device_filter": "id:*",
        "config": { "policy": { "confirm_duration": "0.500s" } } });
    ok(&server, "DeployUpdate", &deploy.to_string());
    let offer = await_offer(&server, "rpi-001", &key);
    let done = json!({ "deployment_id": "deploy-001", "attempt": offer["attempt"], "state": "SUCCEEDED" });
    heartbeat(&server, "rpi-001", &key, &json!({ "version": "2.0.0", "update_progress": done }));
    let state = |server: &Server| {
        let device = ok(server, "ExplainDevice", r#"{"device_id":"rpi-001","deployment_id":"deploy-001"}"#);
        device["device"]["state"].as_str().unwrap_or_default().to_owned()
    };
    let within = std::time::Duration::from_secs(30);
    let succeeds = wait_until(within, || {
        heartbeat(&server, "rpi-001", &key, &json!({ "version": "2.0.0" }));
        state(&server) == "SUCCEEDED"
    });
    assert!(succeeds, "{}", state(&server));
    server.sigkill();
    server.restart();
    heartbeat(&server, "rpi-001", &key, &json!({ "version": "" }));
    // Rolled back by order, it is offered the way back: it is not taken to be there already.
    ok(&server, "RollbackDeployment", ROLLBACK);
    let mut back = Value::Null;
    let came = wait_until(within, || {
        back = heartbeat(&server, "rpi-001", &key, &json!({ "version": "" }))["pendingUpdate"].clone();
        !back.is_null()
    });
    assert!(came, "it is {}\n{}", state(&server), server.log());
    assert_eq!((&back["rollback"], &back["version"]), (&json!(true), &json!("1.0.0")));
    std::thread::sleep(std::time::Duration::from_secs(1));
    assert_eq!(state(&server), "ROLLING_BACK");
}
