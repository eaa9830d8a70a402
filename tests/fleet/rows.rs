//! Rows in ClickHouse that stand for themselves: what a report leaves out because the server knows it, and the server's
//! own numbers.
use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{json, Value};

use super::support::clickhouse::{number, run};
use super::support::wire::{http1, Ask};
use super::support::{wait_until, Options, Server};
use super::{call, ok};

/// A sample comes every 15 s; an overloaded machine gets a minute.
const SAMPLED_WITHIN: Duration = Duration::from_secs(60);

fn register(server: &Server) -> String {
    let message = json!({
        "device_id": "cam-001",
        "device_type": "camera",
        "version": "1.2.0",
        "system_info": { "memory_mb": 2048, "disk_gb": 32.5 },
    });
    ok(server, "RegisterDevice", &message)["apiKey"].as_str().expect("a key").to_owned()
}

fn report(server: &Server, key: &str, mut message: Value) {
    message["device_id"] = json!("cam-001");
    let reply = call(server, "Heartbeat", key, &message);
    assert_eq!(reply.status, 200, "{}", reply.text());
}

#[test]
fn a_report_that_leaves_out_what_the_server_knows_is_a_row_that_has_it() {
    let mut server = Server::with(Options::default().unlimited());
    let key = register(&server);
    let short = json!({ "stats": { "cpu_percent": 5.0, "memory_used_mb": 512 } });
    report(&server, &key, short.clone());
    report(&server, &key, json!({}));
    let whole = json!({ "version": "2.0.0", "stats": { "memory_total_mb": 4096, "disk_total_gb": 64.0 } });
    report(&server, &key, whole);
    report(&server, &key, short.clone());
    ok(&server, "UpdateDevice", &json!({ "device_id": "cam-001", "device": { "type": "doorbell" } }));
    report(&server, &key, short.clone());
    // What the device reported last is forgotten with the process, what it registered is not.
    assert_eq!(server.sigterm(), Some(0));
    server.restart();
    report(&server, &key, short);

    let rows = "SELECT device_type, version, memory_total_mb, disk_total_gb FROM heartbeats ORDER BY seq";
    let expected = [
        "camera\t1.2.0\t2048\t32.5",
        "camera\t1.2.0\t2048\t32.5",
        "camera\t2.0.0\t4096\t64",
        "camera\t2.0.0\t2048\t32.5",
        "doorbell\t2.0.0\t2048\t32.5",
        "doorbell\t1.2.0\t2048\t32.5",
    ];
    let mut found = String::new();
    let has_come = wait_until(Duration::from_secs(30), || {
        found = run(server.clickhouse(), "fleetd", rows);
        found == expected.join("\n")
    });
    assert!(has_come, "{found}");
}

#[test]
fn what_metrics_shows_comes_to_clickhouse_too() {
    let server = Server::start();
    let key = register(&server);
    report(&server, &key, json!({}));
    let acked = "SELECT count() FROM server_metrics \
        WHERE name = 'fleetd_heartbeats_total{outcome=\"acked\"}' AND value = 1 AND timestamp = received_at";
    assert!(wait_until(SAMPLED_WITHIN, || number(server.clickhouse(), "fleetd", acked) > 0), "{}", server.log());

    let shown = http1(server.http(), &Ask::get("/metrics")).text();
    let series = shown.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.rsplit_once(' '));
    let shown: BTreeSet<String> = series.map(|(name, _)| name.to_owned()).collect();
    let sampled = run(server.clickhouse(), "fleetd", "SELECT DISTINCT name FROM server_metrics FORMAT TSVRaw");
    let sampled: BTreeSet<String> = sampled.lines().map(str::to_owned).collect();
    assert_eq!(sampled, shown);
}
