//! Who is there, and who is told: over restarts and stalls of the server too.
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::{json, Value};

use super::support::client::frame;
use super::support::{clickhouse, wait_until, Options, Server, ADMIN_KEY};
use super::{device, heartbeat, ok};

const PATIENCE: Duration = Duration::from_secs(15);

fn server() -> Server {
    Server::with(Options::default().unlimited().env("FLEETD_HEARTBEAT_INTERVAL_SECONDS", "1"))
}

fn status(server: &Server, id: &str) -> String {
    device(server, id)["status"].as_str().unwrap_or("UNKNOWN").to_owned()
}

fn wait_for_status(server: &Server, id: &str, expected: &str) {
    let is_there = wait_until(PATIENCE, || status(server, id) == expected);
    assert!(is_there, "{id} is {}, not {expected}", status(server, id));
}

/// The changes of a device that ClickHouse has, oldest first.
fn changes(server: &Server, id: &str) -> String {
    let sql = format!(
        "SELECT arrayStringConcat(groupArray(concat(from_state, '>', to_state)), ' ') FROM \
         (SELECT * FROM device_events WHERE device_id = '{id}' AND kind = 'status_change' ORDER BY seq)"
    );
    clickhouse::run(server.clickhouse(), "fleetd", &sql).trim().to_owned()
}

fn wait_for_changes(server: &Server, id: &str, expected: &str) {
    let is_there = wait_until(PATIENCE, || changes(server, id) == expected);
    assert!(is_there, "{id} has {}, not {expected}", changes(server, id));
}

/// An open stream of events in Connect's JSON.
struct Stream(BufReader<TcpStream>);

impl Stream {
    fn open(server: &Server, request: &Value) -> Self {
        let body = frame(0, request.to_string().as_bytes());
        let mut stream = TcpStream::connect(server.http()).expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let head = format!(
            "POST /fleetd.v1.DeviceService/StreamEvents HTTP/1.1\r\nHost: x\r\nContent-Type: application/connect+json\r\n\
             Connect-Protocol-Version: 1\r\nAuthorization: Bearer {ADMIN_KEY}\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(&[head.as_bytes(), &body].concat()).expect("the request is sent");
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        while line != "\r\n" {
            line.clear();
            reader.read_line(&mut line).expect("a head");
            assert!(!line.starts_with("HTTP") || line.contains(" 200 "), "{line}");
        }
        Self(reader)
    }

    /// The next message. A frame comes in one chunk, or in several.
    fn next(&mut self) -> Value {
        let mut bytes = Vec::new();
        loop {
            let mut size = String::new();
            self.0.read_line(&mut size).expect("a chunk");
            let size = usize::from_str_radix(size.trim(), 16).expect("a chunk's size");
            let mut chunk = vec![0; size + 2];
            self.0.read_exact(&mut chunk).expect("a chunk");
            bytes.extend_from_slice(&chunk[..size]);
            if bytes.len() >= 5 {
                let length = u32::from_be_bytes([bytes[1], bytes[2], bytes[3], bytes[4]]) as usize;
                if bytes.len() >= 5 + length {
                    return serde_json::from_slice(&bytes[5..5 + length]).expect("JSON");
                }
            }
        }
    }
}

#[test]
fn a_device_fades_and_returns_and_each_change_is_told_and_kept_once() {
    let server = server();
    let mut events = Stream::open(&server, &json!({ "events": ["status_change"], "device_filter": "id:rpi-*" }));
    let key = server.register("rpi-001");
    server.register("other");
    assert_eq!(status(&server, "rpi-001"), "UNKNOWN");
    assert_eq!(heartbeat(&server, "rpi-001", &key).status, 200);
    assert_eq!(status(&server, "rpi-001"), "ONLINE");
    wait_for_status(&server, "rpi-001", "LATE");
    wait_for_status(&server, "rpi-001", "OFFLINE");
    let list = ok(&server, "ListDevices", &json!({ "filter": "status:offline" }));
    assert_eq!((&list["totalCount"], &list["devices"][0]["id"]), (&json!(1), &json!("rpi-001")));
    wait_for_changes(&server, "rpi-001", "UNKNOWN>ONLINE ONLINE>LATE LATE>OFFLINE");
    assert_eq!(server.metrics().get("fleetd_device_actors"), 0.0, "the actor of a device that is gone sleeps");
    assert_eq!(heartbeat(&server, "rpi-001", &key).status, 200);
    assert_eq!(status(&server, "rpi-001"), "ONLINE");
    for (number, (from, to)) in
        [("UNKNOWN", "ONLINE"), ("ONLINE", "LATE"), ("LATE", "OFFLINE"), ("OFFLINE", "ONLINE")].into_iter().enumerate()
    {
        let event = events.next();
        let change = &event["statusChange"];
        let told = (change["from"].as_str().unwrap_or("UNKNOWN"), change["to"].as_str().unwrap_or("UNKNOWN"));
        assert_eq!((told, &event["deviceId"]), ((from, to), &json!("rpi-001")), "{event}");
        assert_eq!(event["sequence"], (number + 1).to_string());
    }
}

#[test]
fn a_restart_announces_nobody_and_who_was_gone_stays_gone() {
    let mut server = server();
    let (gone, there) = (server.register("gone"), server.register("there"));
    server.register("never");
    assert_eq!(heartbeat(&server, "gone", &gone).status, 200);
    wait_for_changes(&server, "gone", "UNKNOWN>ONLINE ONLINE>LATE LATE>OFFLINE");
    // Slow enough that it is not late before the restart is over.
    ok(&server, "UpdateDevice", &json!({ "device_id": "there", "device": { "heartbeat_interval": "3s" } }));
    assert_eq!(heartbeat(&server, "there", &there).status, 200);
    wait_for_changes(&server, "there", "UNKNOWN>ONLINE");
    // The registry is told after the event.
    std::thread::sleep(Duration::from_millis(1_000));
    server.sigkill();
    server.restart();
    assert_eq!(status(&server, "gone"), "OFFLINE");
    assert_eq!(status(&server, "there"), "UNKNOWN", "it has its intervals to report");
    assert!(device(&server, "gone")["lastSeen"].is_string(), "{}", device(&server, "gone"));
    assert_eq!(heartbeat(&server, "there", &there).status, 200);
    assert_eq!(status(&server, "there"), "ONLINE");
    wait_for_changes(&server, "there", "UNKNOWN>ONLINE ONLINE>LATE LATE>OFFLINE");
    assert_eq!(changes(&server, "gone"), "UNKNOWN>ONLINE ONLINE>LATE LATE>OFFLINE");
    assert_eq!(changes(&server, "never"), "");
}

#[test]
fn a_server_that_was_stopped_for_a_while_blames_no_device_and_brings_none_back() {
    let server = server();
    let (key, gone) = (server.register("rpi-001"), server.register("gone"));
    assert_eq!(heartbeat(&server, "gone", &gone).status, 200);
    let fading = "UNKNOWN>ONLINE ONLINE>LATE LATE>OFFLINE";
    wait_for_changes(&server, "gone", fading);
    // Slow enough that the device itself is not late before the stop.
    ok(&server, "UpdateDevice", &json!({ "device_id": "rpi-001", "device": { "heartbeat_interval": "3s" } }));
    assert_eq!(heartbeat(&server, "rpi-001", &key).status, 200);
    wait_for_changes(&server, "rpi-001", "UNKNOWN>ONLINE");
    server.signal(libc::SIGSTOP);
    // Longer than the three intervals after which a silent device is OFFLINE.
    std::thread::sleep(Duration::from_secs(12));
    server.signal(libc::SIGCONT);
    assert_eq!((status(&server, "rpi-001").as_str(), status(&server, "gone").as_str()), ("ONLINE", "OFFLINE"));
    assert_eq!(heartbeat(&server, "rpi-001", &key).status, 200);
    wait_for_changes(&server, "rpi-001", fading);
    assert_eq!(changes(&server, "gone"), fading);
}

#[test]
fn a_device_that_was_never_seen_is_not_seen_by_being_taken_out_of_service() {
    let mut server = server();
    server.register("rpi-001");
    let set = |server: &Server, status: &str| {
        let change = json!({ "device_id": "rpi-001", "update_mask": "status", "device": { "status": status } });
        ok(server, "UpdateDevice", &change)
    };
    set(&server, "MAINTENANCE");
    wait_for_changes(&server, "rpi-001", "UNKNOWN>MAINTENANCE");
    // The registry is told after the event.
    std::thread::sleep(Duration::from_millis(1_000));
    assert!(device(&server, "rpi-001")["lastSeen"].is_null(), "{}", device(&server, "rpi-001"));
    server.sigkill();
    server.restart();
    set(&server, "ONLINE");
    assert_eq!(status(&server, "rpi-001"), "UNKNOWN");
    assert!(device(&server, "rpi-001")["lastSeen"].is_null(), "{}", device(&server, "rpi-001"));
}

#[test]
fn what_is_done_to_devices_is_told_to_who_asked_for_it() {
    let server = Server::with(Options::default().unlimited());
    let mut all = Stream::open(&server, &json!({}));
    let mut heartbeats = Stream::open(&server, &json!({ "events": ["heartbeat"], "device_filter": "type:pump" }));
    ok(&server, "RegisterDevice", &json!({ "device_id": "a", "device_type": "valve" }));
    let pump = ok(&server, "RegisterDevice", &json!({ "device_id": "b", "device_type": "pump" }));
    ok(&server, "UpdateDevice", &json!({ "device_id": "a", "device": { "name": "Valve" } }));
    ok(&server, "DeleteDevice", &json!({ "device_id": "a" }));
    let told: Vec<_> =
        (0..4).map(|_| all.next()).map(|event| (event["event"].clone(), event["deviceId"].clone())).collect();
    let expected = [("registered", "a"), ("registered", "b"), ("updated", "a"), ("deleted", "a")];
    assert_eq!(told, expected.map(|(event, id)| (json!(event), json!(id))));
    let message = json!({ "device_id": "b", "stats": { "cpu_percent": 7.5 } });
    let reply = super::call(&server, "Heartbeat", pump["apiKey"].as_str().expect("a key"), &message);
    assert_eq!(reply.status, 200, "{}", reply.text());
    let event = heartbeats.next();
    assert_eq!((&event["deviceId"], &event["heartbeat"]["stats"]["cpuPercent"]), (&json!("b"), &json!(7.5)), "{event}");
    drop(all);
    let is_gone = wait_until(PATIENCE, || {
        ok(&server, "RegisterDevice", &json!({ "device_id": format!("c{}", number()) }));
        server.metrics().get("fleetd_event_subscribers") == 1.0
    });
    assert!(is_gone, "a reader that went away is still counted");
}

/// A number that was not drawn before in this process.
fn number() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

#[test]
fn a_stream_of_events_that_cannot_be_is_refused_with_its_field() {
    let server = Server::with(Options::default().unlimited());
    for (request, part) in [
        (json!({ "events": ["heartbeats"] }), "heartbeats"),
        (json!({ "device_filter": "stauts:online" }), "device_filter: column 1"),
    ] {
        let mut stream = Stream::open(&server, &request);
        let end = stream.next();
        assert_eq!(end["error"]["code"], "invalid_argument", "{end}");
        assert!(end["error"]["message"].as_str().is_some_and(|message| message.contains(part)), "{end}");
    }
}
