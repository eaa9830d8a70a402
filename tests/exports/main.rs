//! Exports on the real server: what is in the files, who may have them, and what is left when something breaks.
#[path = "../support/mod.rs"]
mod support;

mod content;
mod doors;
mod interrupted;
mod memory;

use std::time::Duration;

use serde_json::{json, Value};
pub use support::artifacts;
use support::client::Client;
use support::wire::{http1, Ask, Http1, Reply};
use support::{clickhouse, wait_until, Options, Server, ADMIN_KEY};

/// For an export of what a test inserts, on a machine that does ten other things.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Options of a server without rate limits that keeps old rows.
pub fn options() -> Options {
    Options::default().unlimited().env("FLEETD_RETENTION_DAYS", "0")
}

pub fn server() -> Server {
    Server::with(options())
}

/// Heartbeats of `rows` devices-and-minutes from `begin` on: ten devices, each a minute, with everything that a form could
/// stumble over.
pub fn insert_heartbeats(server: &Server, begin: &str, rows: u32) {
    let sql = format!(
        "INSERT INTO heartbeats (journal_id, seq, row_index, received_at, device_id, timestamp, state, uptime_seconds, \
         last_boot, restart_count, message, version, cpu_percent, memory_used_mb, memory_total_mb, disk_used_gb, \
         disk_total_gb, network_rx_bytes, signal_dbm, metrics, device_type) \
         SELECT toUUID('00000000-0000-4000-8000-000000000001'), number, 0, \
         toDateTime64('{begin}', 3, 'UTC') + INTERVAL intDiv(number, 10) * 60 + 1 SECOND, \
         'rpi-' || leftPad(toString(number % 10), 3, '0'), \
         toDateTime64('{begin}', 3, 'UTC') + INTERVAL intDiv(number, 10) * 60 SECOND, \
         if(number % 3 = 0, 'ONLINE', 'MAINTENANCE'), number, \
         if(number % 2 = 0, toDateTime64(0, 3, 'UTC'), toDateTime64('2023-12-31 12:00:00', 3, 'UTC')), number % 4, \
         multiIf(number % 5 = 0, 'a \"quoted\", text' || char(10) || 'of two lines', number % 5 = 1, 'größe\\\\', \
         number % 5 = 2, '\\\\N', ''), \
         if(number % 2 = 0, '1.0.0', '2.0.0'), if(number % 7 = 0, NULL, number % 3000 / 3), if(number % 4 = 0, NULL, number), \
         if(number % 6 = 0, 0, 4096), number / 8, 64, number * 1000000007, if(number % 2 = 0, NULL, -60), \
         if(number % 2 = 0, map(), map('queue.depth', toFloat64(number), 'b', 0.5)), 'raspberry-pi' \
         FROM numbers({rows}) SETTINGS max_partitions_per_insert_block = 0"
    );
    clickhouse::run(server.clickhouse(), "fleetd", &sql);
}

pub fn post(server: &Server, rpc: &str, key: Option<&str>, message: &Value) -> Reply {
    http1(server.http(), &call(rpc, key, message))
}

fn call(rpc: &str, key: Option<&str>, message: &Value) -> Ask {
    Client::Json1.call(&format!("AnalyticsService/{rpc}"), key, message.to_string().as_bytes())
}

/// ExportData; the answer.
#[track_caller]
pub fn export(server: &Server, message: &Value) -> Value {
    let reply = post(server, "ExportData", Some(ADMIN_KEY), message);
    assert_eq!(reply.status, 200, "{message}: {}\n{}", reply.text(), server.log());
    reply.json()
}

/// Asks for an export, and does not wait for the answer.
pub fn ask_for(server: &Server, message: &Value) -> Http1 {
    let mut connection = Http1::open(server.http());
    connection.send(&call("ExportData", Some(ADMIN_KEY), message).on_http1());
    connection
}

#[track_caller]
pub fn look(server: &Server, id: &str) -> Value {
    let reply = post(server, "GetExport", Some(ADMIN_KEY), &json!({ "export_id": id }));
    assert_eq!(reply.status, 200, "{id}: {}\n{}", reply.text(), server.log());
    reply.json()
}

/// Waits until an export is over; what GetExport says then.
#[track_caller]
pub fn over(server: &Server, id: &str) -> Value {
    let mut last = Value::Null;
    let is_over = wait_until(PATIENCE, || {
        last = look(server, id);
        last["status"]["state"] != "RUNNING"
    });
    assert!(is_over, "{id} is not over: {last}");
    last
}

/// Exports and downloads; the file.
#[track_caller]
pub fn exported(server: &Server, message: &Value) -> Vec<u8> {
    let answer = export(server, message);
    let id = answer["exportId"].as_str().expect("an id");
    let end = over(server, id);
    assert_eq!(end["status"]["state"], "SUCCEEDED", "{end}");
    let reply = download(server, answer["exportUrl"].as_str().expect("a URL"));
    assert_eq!(reply.status, 200, "{}", reply.text());
    // Protobuf's JSON leaves out what is 0.
    assert_eq!(end["sizeBytes"].as_str().unwrap_or("0"), reply.body.len().to_string(), "{end}");
    assert_eq!(end["status"]["progressPercent"], 100.0, "{end}");
    reply.body
}

/// Follows a URL of this server.
pub fn download(server: &Server, url: &str) -> Reply {
    http1(server.http(), &Ask::get(path_of(server, url)))
}

pub fn path_of(server: &Server, url: &str) -> String {
    let path = url.strip_prefix(&format!("http://{}", server.http()));
    path.unwrap_or_else(|| panic!("{url} is not of http://{}", server.http())).to_owned()
}
