//! GetDeviceHealth, and the health in GetDevice: each rule is made to speak by a device that deserves it.
use std::time::{Duration, Instant};

use serde_json::{json, Value};

use super::support::clickhouse::run;
use super::support::client::Client;
use super::support::wire::Http1;
use super::support::{send_signal, wait_until, Options, Server, ADMIN_KEY};
use super::{post, time};
use fleetd::clock::UnixMillis;

const REFERENCE: &str = include_str!("../reference/get_device_health.json");
const GET_DEVICE: &str = include_str!("../reference/get_device.json");
const MINUTE: i64 = 60_000;
const HOUR: i64 = 60 * MINUTE;
const PATIENCE: Duration = Duration::from_secs(20);

fn device_service(server: &Server, rpc: &str, key: &str, message: &Value) -> Value {
    let reply = post(server, &format!("DeviceService/{rpc}"), Some(key), &message.to_string());
    assert_eq!(reply.status, 200, "{rpc} {message}: {}", reply.text());
    reply.json()
}

/// Registers a device; its key.
fn register(server: &Server, id: &str, more: Value) -> String {
    let mut message = json!({ "device_id": id, "device_type": "pump" });
    message.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    let registered = device_service(server, "RegisterDevice", ADMIN_KEY, &message);
    registered["apiKey"].as_str().expect("a key").to_owned()
}

fn heartbeat(server: &Server, id: &str, key: &str, more: Value) -> Value {
    let mut message = json!({ "device_id": id });
    message.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    device_service(server, "Heartbeat", key, &message)
}

fn stats(cpu_percent: f64) -> Value {
    json!({ "status": { "state": "ONLINE", "uptime_seconds": 90_000 }, "stats": { "cpu_percent": cpu_percent } })
}

fn ask(server: &Server, request: &Value) -> Result<Value, (String, String)> {
    let reply = post(server, "AnalyticsService/GetDeviceHealth", Some(ADMIN_KEY), &request.to_string());
    let answer = reply.json();
    if reply.status == 200 {
        return Ok(answer);
    }
    let text = |name: &str| answer[name].as_str().unwrap_or_default().to_owned();
    Err((text("code"), text("message")))
}

fn health(server: &Server, request: &Value) -> Value {
    ask(server, request).unwrap_or_else(|error| panic!("{request}: {error:?}\n{}", server.log()))
}

/// The verdict, the score and the codes of a device's health; a status that is not set is nothing in JSON.
fn verdict(health: &Value) -> (String, i64, Vec<String>) {
    let codes = health["reasons"].as_array().into_iter().flatten().map(|reason| reason["code"].as_str());
    (
        health["status"].as_str().unwrap_or("UNKNOWN").to_owned(),
        health["score"].as_i64().unwrap_or_default(),
        codes.map(|code| code.expect("a code").to_owned()).collect(),
    )
}

fn is(status: &str, score: i64, codes: &[&str]) -> (String, i64, Vec<String>) {
    (status.to_owned(), score, codes.iter().map(|code| (*code).to_owned()).collect())
}

#[test]
fn the_references_example_works_as_printed() {
    let server = super::server();
    let key = register(&server, "rpi-001", json!({ "device_type": "raspberry-pi" }));
    register(&server, "other", json!({ "device_type": "pump" }));
    heartbeat(&server, "rpi-001", &key, stats(25.5));
    let reply = post(&server, "AnalyticsService/GetDeviceHealth", Some(ADMIN_KEY), REFERENCE);
    assert_eq!(reply.status, 200, "{}\n{}", reply.text(), server.log());
    let answer = reply.json();
    assert_eq!(answer["deviceHealth"].as_object().map(|devices| devices.len()), Some(1), "{answer}");
    let told = &answer["deviceHealth"]["rpi-001"];
    assert_eq!(verdict(told), is("HEALTHY", 100, &[]), "{told}");
    assert!(told["deviceId"] == "rpi-001" && told["checkedAt"].is_string(), "{told}");
    assert_eq!(answer["summary"]["totalDevices"], 1);
    assert_eq!((&answer["summary"]["healthyDevices"], &answer["summary"]["averageScore"]), (&json!(1), &json!(100.0)));
}

#[test]
fn the_live_state_is_judged_by_rules_that_labels_can_change() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("fleetd.toml");
    let rules = "[health]\ncpu_percent = { warning = 80 }\n\n[[health.override]]\nlabel = \"site=freezer\"\n\
                 temperature_celsius = { warning = -10, critical = -5 }\n";
    std::fs::write(&file, rules).expect("the configuration is written");
    let options = Options::default().unlimited().flag("--config", file.to_str().expect("a path in UTF-8"));
    let server = Server::with(options);
    let short = json!({ "heartbeat_interval": "1s" });
    let keys = [
        ("gone", short.clone()),
        ("late", json!({ "heartbeat_interval": "6s" })),
        ("hot", json!({})),
        ("well", json!({})),
        ("thawing", json!({ "labels": { "site": "freezer" } })),
        ("warm", json!({ "labels": { "site": "office" } })),
        ("service", json!({})),
    ]
    .map(|(id, more)| (id, register(&server, id, more)));
    register(&server, "new", json!({}));
    let begun = Instant::now();
    for (id, key) in &keys {
        let cpu = if *id == "hot" { 99.5 } else { 20.0 };
        let mut message = stats(cpu);
        if id.starts_with('t') || id.starts_with('w') {
            message["stats"]["temperature_celsius"] = json!(-7.0);
        }
        if *id == "service" {
            message["status"]["state"] = json!("MAINTENANCE");
        }
        heartbeat(&server, id, key, message);
    }
    let of = |answer: &Value, id: &str| verdict(&answer["deviceHealth"][id]);
    let late = is("HEALTHY", 85, &["HEARTBEAT_LATE"]);
    let mut answer = Value::Null;
    // LATE from 9 s to 18 s after it reported.
    let is_late = wait_until(PATIENCE, || {
        answer = health(&server, &json!({}));
        of(&answer, "late") == late
    });
    assert!(is_late, "after {:?}: {answer}", begun.elapsed());
    assert_eq!(of(&answer, "gone"), is("UNHEALTHY", 40, &["OFFLINE"]));
    assert_eq!(of(&answer, "hot"), is("DEGRADED", 70, &["CPU_CRITICAL"]));
    for id in ["well", "warm", "service"] {
        assert_eq!(of(&answer, id), is("HEALTHY", 100, &[]), "{id}");
    }
    assert_eq!(of(&answer, "thawing"), is("HEALTHY", 85, &["TEMPERATURE_WARNING"]));
    assert_eq!(of(&answer, "new"), is("UNKNOWN", 0, &[]));
    let reason = &answer["deviceHealth"]["thawing"]["reasons"][0];
    assert_eq!(reason["message"], "temperature is -7.0 degrees Celsius, at or above -10 degrees Celsius");
    assert_eq!(
        (&reason["value"], &reason["threshold"], &reason["scoreImpact"]),
        (&json!(-7.0), &json!(-10.0), &json!(15))
    );
    let summary = &answer["summary"];
    let counts = ["totalDevices", "healthyDevices", "degradedDevices", "unhealthyDevices", "unknownDevices"];
    assert_eq!(counts.map(|name| summary[name].as_i64().unwrap_or_default()), [8, 5, 1, 1, 1], "{summary}");
    let mean = (40 + 85 + 70 + 100 + 100 + 85 + 100) as f64 / 7.0;
    assert!((summary["averageScore"].as_f64().expect("a mean") - mean).abs() < 1e-9, "{summary}");
    assert_eq!(
        summary["reasons"],
        json!({ "OFFLINE": 1, "HEARTBEAT_LATE": 1, "CPU_CRITICAL": 1, "TEMPERATURE_WARNING": 1 })
    );

    // The worst are told, and the unknown after the unhealthy; the summary is over all.
    for (wanted, ids) in [(1, vec!["gone"]), (2, vec!["gone", "new"]), (3, vec!["gone", "hot", "new"])] {
        let answer = health(&server, &json!({ "max_devices": wanted }));
        let told: Vec<_> = answer["deviceHealth"].as_object().expect("devices").keys().cloned().collect();
        assert_eq!(told, ids, "{answer}");
        assert_eq!(answer["summary"]["totalDevices"], 8);
    }

    // The devices are those of the ids and those that match.
    let told = |request: Value| {
        let answer = health(&server, &request);
        answer["deviceHealth"].as_object().map(|told| told.keys().cloned().collect::<Vec<_>>()).unwrap_or_default()
    };
    assert_eq!(told(json!({ "device_ids": ["well", "hot", "well"] })), ["hot", "well"]);
    assert_eq!(told(json!({ "device_filter": "labels.site:*" })), ["thawing", "warm"]);
    assert_eq!(
        told(json!({ "device_ids": ["well", "warm"], "device_filter": "labels.site:freezer" })),
        ["thawing", "warm", "well"]
    );
    assert!(told(json!({ "device_filter": "type:none" })).is_empty());
    assert!(told(json!({ "device_filter": "type:none", "check_type": "COMPREHENSIVE" })).is_empty());

    // GetDevice judges by the same rules.
    for id in ["thawing", "warm", "hot", "new"] {
        let got = device_service(&server, "GetDevice", ADMIN_KEY, &json!({ "device_id": id, "include_health": true }));
        assert_eq!(verdict(&got["health"]), of(&answer, id), "{got}");
    }
    let without = device_service(&server, "GetDevice", ADMIN_KEY, &json!({ "device_id": "hot" }));
    assert!(without["health"].is_null(), "{without}");
}

#[test]
fn the_references_get_device_tells_the_health() {
    let server = super::server();
    let key = register(&server, "rpi-001", json!({}));
    heartbeat(&server, "rpi-001", &key, json!({ "stats": { "cpu_percent": 90, "battery_percent": 5 } }));
    let reply = post(&server, "DeviceService/GetDevice", Some(ADMIN_KEY), GET_DEVICE);
    assert_eq!(reply.status, 200, "{}", reply.text());
    let health = &reply.json()["health"];
    assert_eq!(verdict(health), is("DEGRADED", 55, &["BATTERY_CRITICAL", "CPU_WARNING"]), "{health}");
    assert_eq!(health["deviceId"], "rpi-001");
}

#[test]
fn the_last_day_is_judged_too_when_that_is_asked_for() {
    let server = super::server();
    let comprehensive = json!({ "check_type": "COMPREHENSIVE" });
    let short = json!({ "heartbeat_interval": "1s" });
    let ids = ["steady", "irregular"];
    let keys = ids.map(|id| register(&server, id, short.clone()));
    let begun = Instant::now();

    // Every half hour of the last hours, booted anew in each hour, and silent for three of them.
    let key = register(&server, "rebooting", json!({}));
    let now = UnixMillis::now().as_millis();
    let hour = now - now.rem_euclid(HOUR);
    for (hours, uptime) in [(9, 60), (8, 60), (4, 60), (3, 60), (2, 60)] {
        for (minutes, more) in [(10, 0), (40, 1_800)] {
            let at = hour - hours * HOUR + minutes * MINUTE;
            let status = json!({ "state": "ONLINE", "uptime_seconds": uptime + more });
            heartbeat(&server, "rebooting", &key, json!({ "timestamp": time(at), "status": status }));
        }
    }

    // Silent while the server was away, but for 40 minutes: no sample of the server is from the two hours between.
    let key = register(&server, "bridged", json!({}));
    for at in [hour - 14 * HOUR - 20 * MINUTE, hour - 12 * HOUR + 20 * MINUTE] {
        heartbeat(&server, "bridged", &key, json!({ "timestamp": time(at) }));
    }
    let samples = format!(
        "INSERT INTO server_metrics (journal_id, seq, received_at, name, timestamp, value) \
         SELECT '00000000-0000-0000-0000-00000000000a', number, at, 'x', at, 0 FROM \
         (SELECT number, fromUnixTimestamp64Milli(toInt64({now} - number * {MINUTE})) AS at FROM numbers(1500)) \
         WHERE at < fromUnixTimestamp64Milli(toInt64({})) OR at >= fromUnixTimestamp64Milli(toInt64({}))",
        hour - 14 * HOUR,
        hour - 12 * HOUR,
    );
    run(server.clickhouse(), "fleetd", &samples);

    // A command that fails, and one that nobody takes.
    let key = register(&server, "failing", json!({}));
    let send = |ttl: &str| {
        let message = json!({ "device_id": "failing", "type": "reboot", "ttl": ttl });
        device_service(&server, "SendCommand", ADMIN_KEY, &message)["commandId"].as_str().expect("an id").to_owned()
    };
    let failed = send("3600s");
    let delivered = heartbeat(&server, "failing", &key, json!({}));
    assert_eq!(delivered["commands"].as_array().map(Vec::len), Some(1), "{delivered}");
    let results = json!([{ "command_id": failed, "state": "FAILED" }]);
    heartbeat(&server, "failing", &key, json!({ "command_results": results }));
    send("1s");

    // An update that failed twice, as the table has it.
    register(&server, "updating", json!({}));
    let key = register(&server, "updated", json!({}));
    heartbeat(&server, "updated", &key, json!({}));
    let update = |device: &str, attempt: u32, from: &str, to: &str| {
        format!("('00000000-0000-0000-0000-00000000000a', 1, now64(3), 'deploy-001', now64(3), '{device}', 'device', '{from}', '{to}', {attempt})")
    };
    let rows = [
        update("updated", 1, "INSTALLING", "RETRY_WAIT"),
        update("updated", 1, "RETRY_WAIT", "OFFERED"),
        update("updated", 2, "INSTALLING", "FAILED"),
        update("steady", 1, "CONFIRMING", "SUCCEEDED"),
    ];
    let insert =
        "INSERT INTO deployment_events (journal_id, seq, received_at, deployment_id, timestamp, device_id, kind, \
                  from_state, to_state, attempt) VALUES ";
    run(server.clickhouse(), "fleetd", &format!("{insert}{}", rows.join(", ")));

    // 25 heartbeats are due; one device sends them all, the other the first few and the last.
    while begun.elapsed() < Duration::from_secs(25) {
        heartbeat(&server, "steady", &keys[0], stats(20.0));
        if begun.elapsed() < Duration::from_secs(5) {
            heartbeat(&server, "irregular", &keys[1], stats(20.0));
        }
        std::thread::sleep(Duration::from_millis(700));
    }
    heartbeat(&server, "irregular", &keys[1], stats(20.0));
    let answer = health(&server, &comprehensive);
    let of = |id: &str| verdict(&answer["deviceHealth"][id]);
    assert_eq!(of("steady"), is("HEALTHY", 100, &[]), "{answer}");
    assert_eq!(of("irregular"), is("DEGRADED", 70, &["HEARTBEATS_CRITICAL"]), "{answer}");
    assert_eq!(of("rebooting"), is("DEGRADED", 70, &["HEARTBEAT_GAP_WARNING", "REBOOTS_WARNING"]), "{answer}");
    let reason = |place: usize| answer["deviceHealth"]["rebooting"]["reasons"][place]["message"].as_str();
    assert_eq!(reason(0), Some("the longest silence in the last day was 12600 s, at or above 3600 s"));
    assert_eq!(reason(1), Some("hours of the last day in which the device booted: 5, at or above 3"));
    assert_eq!(of("bridged"), is("HEALTHY", 100, &[]), "{answer}");
    assert_eq!(of("updated"), is("DEGRADED", 70, &["FAILED_UPDATES_CRITICAL"]), "{answer}");
    assert_eq!(of("updating"), is("UNKNOWN", 0, &[]), "{answer}");
    let expired = is("DEGRADED", 70, &["FAILED_COMMANDS_WARNING", "EXPIRED_COMMANDS_WARNING"]);
    let mut last = Value::Null;
    let is_expired = wait_until(PATIENCE, || {
        last = health(&server, &json!({ "device_ids": ["failing"], "check_type": "COMPREHENSIVE" }));
        verdict(&last["deviceHealth"]["failing"]) == expired
    });
    assert!(is_expired, "{last}");
    let reasons = answer["deviceHealth"]["irregular"]["reasons"][0].clone();
    let value = reasons["value"].as_f64().expect("a value");
    assert!((10.0..60.0).contains(&value) && reasons["threshold"] == 60.0, "{reasons}");
    // A check of the live state alone knows nothing of all that.
    let basic = health(&server, &json!({ "device_ids": ["rebooting", "failing", "updated"] }));
    assert_eq!(basic["summary"]["healthyDevices"], 3, "{basic}");
}

#[test]
fn what_cannot_be_asked_is_refused_with_its_field() {
    let server = super::server();
    register(&server, "known", json!({}));
    let many: Vec<_> = (0..7).map(|n| format!("ghost-{n}")).chain(["known".to_owned()]).collect();
    for (request, code, part) in [
        (json!({ "device_ids": ["known", "ghost"] }), "NOT_FOUND", "device_ids: \"ghost\" of 2 not registered"),
        (json!({ "device_ids": many }), "NOT_FOUND", "\"ghost-4\" and 2 more of 8 not registered"),
        (json!({ "device_ids": ["x' OR 1=1"] }), "NOT_FOUND", "x' OR 1=1"),
        (json!({ "device_ids": vec!["known"; 10_001] }), "INVALID_ARGUMENT", "device_ids has 10001 entries; at most"),
        (json!({ "device_filter": "stauts:online" }), "INVALID_ARGUMENT", "device_filter: column 1"),
        (json!({ "max_devices": -1 }), "INVALID_ARGUMENT", "max_devices is -1; give 1 to 10000"),
        (json!({ "max_devices": 10_001 }), "INVALID_ARGUMENT", "max_devices is 10001"),
        (json!({ "check_type": 7 }), "INVALID_ARGUMENT", "check_type: invalid value: integer `7`"),
    ] {
        let (found, message) = ask(&server, &request).expect_err("refused");
        assert_eq!(found, code, "{message}");
        assert!(message.contains(part), "{message}");
    }
    let reply = post(&server, "AnalyticsService/GetDeviceHealth", None, "{}");
    assert_eq!(reply.status, 401, "{}", reply.text());
}

#[test]
fn thresholds_that_cannot_be_stop_the_start_by_name_and_value() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("fleetd.toml");
    std::fs::write(&file, "[health]\ncpu_percent = { warning = 96 }\n").expect("the configuration is written");
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_fleetd"))
        .args(["serve", "--listen", "127.0.0.1:0", "--engine-listen", "127.0.0.1:0", "--config"])
        .arg(&file)
        .arg("--data-dir")
        .arg(folder.path().join("data"))
        .output()
        .expect("fleetd runs");
    assert!(!output.status.success());
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.contains("health.cpu_percent: warning = 96 comes after critical = 95"), "{told}");
}

#[test]
fn a_store_that_does_not_answer_is_blamed_and_not_the_others_who_ask() {
    let server = super::server();
    let key = register(&server, "rpi-001", json!({}));
    heartbeat(&server, "rpi-001", &key, stats(25.5));
    let is_there = wait_until(PATIENCE, || server.metrics().get("fleetd_writer_lag_records") == 0.0);
    assert!(is_there, "{}", server.log());
    let request = json!({ "device_ids": ["rpi-001"], "check_type": "COMPREHENSIVE" });
    send_signal(server.engine_pid().expect("an engine"), libc::SIGSTOP);
    // Fewer than three have all the turns there are, and wait for an answer; another is told that it gets none.
    let question = json!({ "metric_names": ["cpu_usage"] });
    let ask_on = |mut connection: Http1| {
        let message = question.to_string();
        let ask = Client::Json1.call("AnalyticsService/GetMetrics", Some(ADMIN_KEY), message.as_bytes());
        connection.send(&ask.on_http1());
        connection
    };
    let _others = [(); 3].map(|()| ask_on(Http1::open(server.http())));
    let is_taken = wait_until(PATIENCE, || server.metrics().get("fleetd_analytics_questions_refused_total") >= 1.0);
    assert!(is_taken, "{}", server.log());
    let (code, message) = ask(&server, &request).expect_err("nobody answers");
    assert_eq!(code, "UNAVAILABLE", "{message}");
    assert!(message.contains("the telemetry store does not answer"), "{message}");
    let (code, message) = super::refused(&server, &question);
    assert_eq!(code, "UNAVAILABLE", "{message}");
    assert!(message.contains("the telemetry store does not answer"), "{message}");
    // What is known without it is told.
    assert_eq!(health(&server, &json!({ "device_ids": ["rpi-001"] }))["summary"]["totalDevices"], 1);
}
