//! Exports that break off: by the client, by a crash of server or engine, by a stop, by a disk that is full. None leaves a
//! file that can be downloaded, and each says what became of it.
use std::time::{Duration, Instant};

use serde_json::{json, Value};

use crate::support::clickhouse::{run, Engine};
use crate::support::client::Client;
use crate::support::disk::SmallDisk;
use crate::support::wire::{http1, http2, Ask, Reply};
use crate::support::{send_signal, wait_until, Server, ADMIN_KEY};
use crate::{artifacts, ask_for, download, export, insert_heartbeats, look, options, over, path_of, server, PATIENCE};

/// As many rows as take ClickHouse a second or more to write.
const MANY: u32 = 1_000_000;
const SOON: Duration = Duration::from_secs(20);

fn many(form: &str) -> Value {
    json!({
        "format": form, "data_type": "DEVICE_METRICS",
        "start_time": "2024-01-01T00:00:00Z", "end_time": "2025-01-01T00:00:00Z",
    })
}

fn with_many_rows(server: &Server) {
    insert_heartbeats(server, "2024-01-01 00:00:00", MANY);
}

fn get(server: &Server, name: &str) -> Reply {
    http1(server.http(), &Ask::get(format!("/exports/{name}")).header("x-api-key", ADMIN_KEY))
}

/// Begins the first export of a server, and stops the engine in the middle of it: it is under way for as long as wanted.
#[track_caller]
fn stop_within(server: &Server, form: &str) {
    let _gone = ask_for(server, &many(form));
    let engine = server.engine_pid().expect("an engine runs");
    let mut last = Value::Null;
    let is_under_way = wait_until(PATIENCE, || {
        let reply = crate::post(server, "GetExport", Some(ADMIN_KEY), &json!({ "export_id": "exp-001" }));
        if reply.status != 200 {
            return false;
        }
        last = reply.json();
        last["status"]["bytesWritten"].as_str().is_some_and(|bytes| bytes != "0")
    });
    assert!(is_under_way, "{last}");
    send_signal(engine, libc::SIGSTOP);
    let now = look(server, "exp-001");
    assert_eq!(now["status"]["state"], "RUNNING", "too fast for this test: {now}");
    assert!(now["status"]["progressPercent"].as_f64().is_some_and(|percent| percent < 100.0), "{now}");
    assert!(now["exportUrl"].as_str().is_none_or(str::is_empty), "{now}");
}

#[track_caller]
fn has_no_file(server: &Server, reason: &str) {
    let end = look(server, "exp-001");
    assert_eq!(end["status"]["state"], "FAILED", "{end}");
    assert!(end["status"]["message"].as_str().is_some_and(|message| message.contains(reason)), "{end}");
    assert!(end["exportUrl"].as_str().is_none_or(str::is_empty), "{end}");
    let reply = get(server, "exp-001.csv");
    assert_eq!(reply.status, 404, "{}", reply.text());
    assert!(reply.text().contains(reason), "{}", reply.text());
    let is_clean = wait_until(SOON, || artifacts(server).is_empty());
    assert!(is_clean, "left behind: {:?}", artifacts(server));
}

#[test]
fn an_export_goes_on_when_its_client_goes_away() {
    let server = server();
    with_many_rows(&server);
    drop(ask_for(&server, &many("CSV")));
    let begun = wait_until(SOON, || server.metrics().get("fleetd_exports_under_way") == 1.0);
    assert!(begun, "{}", server.log());
    // It is counted before the registry knows it; from then on, until it is whole, its URL says so.
    let known = wait_until(SOON, || {
        let reply = get(&server, "exp-001.csv");
        reply.status == 200 || reply.status == 404 && reply.text().contains("still being written")
    });
    assert!(known, "{}", get(&server, "exp-001.csv").text());
    let end = over(&server, "exp-001");
    assert_eq!(end["status"]["state"], "SUCCEEDED", "{end}");
    assert_eq!(end["status"]["rowsWritten"], MANY.to_string());
    let url = end["exportUrl"].as_str().expect("a URL");
    let head = http2(server.http(), &Ask { method: "HEAD", ..Ask::get(path_of(&server, url)) });
    assert_eq!(head.header("content-length"), end["sizeBytes"].as_str());
    assert_eq!(artifacts(&server).len(), 1);
}

#[test]
fn a_server_that_is_killed_within_an_export_leaves_nothing() {
    let mut server = server();
    with_many_rows(&server);
    stop_within(&server, "CSV");
    server.sigkill();
    assert!(!artifacts(&server).is_empty(), "a crash has no time to clean up");
    // As from a crash between the file's name and the registry.
    let orphan = server.data_dir().join("artifacts/exports/exp-001");
    std::fs::create_dir_all(orphan.parent().expect("a folder")).expect("a folder");
    std::fs::write(&orphan, b"half").expect("an orphan");
    server.restart();
    has_no_file(&server, "the server ended while the export was written");
    // And the next one works.
    let answer = export(&server, &many("PARQUET"));
    assert_eq!(answer["exportId"], "exp-002");
    assert_eq!(over(&server, "exp-002")["status"]["rowsWritten"], MANY.to_string());
    assert_eq!(artifacts(&server).len(), 1);
    server.sigkill();
    server.restart();
    assert_eq!(artifacts(&server).len(), 1, "what is whole stays");
    assert_eq!(get(&server, "exp-002.parquet").status, 200);
}

#[test]
fn the_time_of_an_export_begins_when_it_does_and_not_while_it_waits() {
    let server = server();
    send_signal(server.engine_pid().expect("an engine runs"), libc::SIGSTOP);
    // Two are written at once, and stand still; the third waits.
    let _running = [ask_for(&server, &many("CSV")), ask_for(&server, &many("CSV"))];
    let begun = wait_until(SOON, || server.metrics().get("fleetd_exports_under_way") == 2.0);
    assert!(begun, "{}", server.log());
    let asked = export(&server, &many("CSV"));
    let (id, promised) = (asked["exportId"].as_str().expect("an id"), asked["expiresAt"].as_str().expect("a time"));
    assert_eq!(asked["status"]["state"], "RUNNING", "{asked}");
    // Both fail, and make room.
    server.sigkill_engine();
    let end = over(&server, id);
    let kept_until = end["expiresAt"].as_str().expect("a time");
    assert!(kept_until > promised, "it waited for seconds, so it is kept for seconds longer: {asked}, {end}");
}

#[test]
fn an_engine_that_is_killed_within_an_export_fails_it_and_no_other() {
    let server = server();
    with_many_rows(&server);
    for (number, form) in ["CSV", "PARQUET"].into_iter().enumerate() {
        if number == 0 {
            stop_within(&server, form);
            server.sigkill_engine();
            over(&server, "exp-001");
            has_no_file(&server, "ClickHouse");
        } else {
            // The engine is back, or on its way.
            let id = ask_until_begun(&server, form);
            assert_eq!(over(&server, &id)["status"]["state"], "SUCCEEDED");
        }
    }
}

/// ExportData, as often as it takes an engine to start.
fn ask_until_begun(server: &Server, form: &str) -> String {
    let mut id = String::new();
    let begun = wait_until(PATIENCE, || {
        let answer = export(server, &many(form));
        id = answer["exportId"].as_str().expect("an id").to_owned();
        answer["status"]["state"] != "FAILED"
    });
    assert!(begun, "{}", server.log());
    id
}

#[test]
fn a_stop_ends_an_export_in_time_and_says_so_also_when_clickhouse_hangs() {
    let mut server = server();
    with_many_rows(&server);
    // The engine is never told to go on: it cannot end by itself.
    stop_within(&server, "CSV");
    let asked = Instant::now();
    assert_eq!(server.sigterm(), Some(0));
    assert!(asked.elapsed() < Duration::from_secs(10), "{:?}\n{}", asked.elapsed(), server.log());
    server.restart();
    has_no_file(&server, "the server was stopped");
}

#[test]
fn a_disk_that_is_full_fails_an_export_and_takes_heartbeats() {
    let Some(disk) = SmallDisk::new(64) else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let engine = Engine::start(folder.path());
    let options = options().env("FLEETD_JOURNAL_SEGMENT_MB", "1").data_dir(disk.path()).clickhouse(engine.address());
    let server = Server::with(options);
    let key = server.register("rpi-001");
    with_many_rows(&server);
    let answer = export(&server, &many("CSV"));
    let end = over(&server, "exp-001");
    assert_eq!(end["status"]["state"], "FAILED", "{end}");
    has_no_file(&server, "disk of the artifact store is full");
    // It had failed already when it was answered, or its URL opens nothing.
    if let Some(url) = answer["exportUrl"].as_str() {
        assert_eq!(download(&server, url).status, 404);
    }
    let heartbeat = Client::Json1.call("DeviceService/Heartbeat", Some(&key), br#"{"device_id":"rpi-001"}"#);
    assert_eq!(http1(server.http(), &heartbeat).status, 200);
    // What fits is taken.
    let small = json!({
        "data_type": "DEVICE_METRICS", "start_time": "2024-01-01T00:00:00Z", "end_time": "2024-01-01T01:00:00Z",
    });
    let answer = export(&server, &small);
    assert_eq!(over(&server, "exp-002")["status"]["state"], "SUCCEEDED", "{answer}");
}

#[test]
fn a_file_is_removed_when_its_time_is_over() {
    let server = Server::with(options().env("FLEETD_EXPORT_RETENTION_SECONDS", "4"));
    insert_heartbeats(&server, "2024-01-01 00:00:00", 10);
    let answer = export(&server, &many("CSV"));
    let url = answer["exportUrl"].as_str().expect("a URL").to_owned();
    assert_eq!(answer["status"]["state"], "SUCCEEDED", "{answer}");
    assert_eq!(artifacts(&server).len(), 1);
    let is_gone = wait_until(SOON, || artifacts(&server).is_empty());
    assert!(is_gone, "{:?}", artifacts(&server));
    let end = look(&server, "exp-001");
    assert_eq!(end["status"]["state"], "EXPIRED", "{end}");
    assert_eq!(end["status"]["rowsWritten"], "10");
    for reply in [download(&server, &url), get(&server, "exp-001.csv")] {
        assert_eq!(reply.status, 410, "{}", reply.text());
        assert!(reply.text().contains("ask for a new export"), "{}", reply.text());
    }
}

#[test]
fn a_clickhouse_that_is_away_fails_an_export_at_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut engine = Engine::start(folder.path());
    let server = Server::with(options().clickhouse(engine.address()));
    engine.sigkill();
    let answer = export(&server, &many("CSV"));
    let end = over(&server, answer["exportId"].as_str().expect("an id"));
    assert_eq!(end["status"]["state"], "FAILED", "{end}");
    has_no_file(&server, "ClickHouse does not answer");
    engine.restart();
    assert_eq!(
        over(&server, export(&server, &many("CSV"))["exportId"].as_str().expect("an id"))["status"]["state"],
        "SUCCEEDED"
    );
}

#[test]
fn devices_of_a_filter_are_those_that_match_when_the_writing_begins() {
    let server = server();
    server.register("rpi-001");
    with_many_rows(&server);
    stop_within(&server, "CSV");
    let engine = server.engine_pid().expect("an engine runs");
    let mut filtered = many("CSV");
    filtered["device_filter"] = json!("id:rpi-001 OR id:rpi-002");
    let mut asked = Vec::new();
    // The second takes the last place, so that the third waits.
    for (message, number) in [(&many("CSV"), 2.0), (&filtered, 3.0)] {
        asked.push(ask_for(&server, message));
        let is_in = wait_until(SOON, || server.metrics().get("fleetd_exports_under_way") == number);
        assert!(is_in, "{number}: {}", server.log());
    }
    server.register("rpi-002");
    send_signal(engine, libc::SIGCONT);
    let end = over(&server, "exp-003");
    assert_eq!(end["status"]["rowsWritten"], (2 * MANY / 10).to_string(), "{end}");
}

#[test]
fn too_many_exports_are_told_to_come_back() {
    let server = server();
    with_many_rows(&server);
    stop_within(&server, "CSV");
    let engine = server.engine_pid().expect("an engine runs");
    let mut waiting = Vec::new();
    for number in 2..=18 {
        waiting.push(ask_for(&server, &many("CSV")));
        let is_in = wait_until(SOON, || server.metrics().get("fleetd_exports_under_way") == f64::from(number));
        assert!(is_in, "{number}");
    }
    let reply = crate::post(&server, "ExportData", Some(ADMIN_KEY), &many("CSV"));
    assert_eq!(reply.status, 503, "{}", reply.text());
    assert_eq!(reply.header("retry-after"), Some("30"));
    assert!(reply.text().contains("16 wait"), "{}", reply.text());
    assert_eq!(server.metrics().get("fleetd_exports_refused_total"), 1.0);
    send_signal(engine, libc::SIGCONT);
    run(server.clickhouse(), "fleetd", "SELECT 1");
}
