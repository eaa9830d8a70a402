//! The API reference's own examples, as `tests/reference/*.json` holds them word for word, sent as `curl` would.
use crate::support::client::Client;
use crate::support::wire::{http1, http2, Ask, Reply};
use crate::support::{Options, Server, ADMIN_KEY};

const REGISTER: &str = include_str!("../reference/register_device.json");
const HEARTBEAT: &str = include_str!("../reference/heartbeat.json");
const GET: &str = include_str!("../reference/get_device.json");
const LIST: &str = include_str!("../reference/list_devices.json");
const UPDATE: &str = include_str!("../reference/update_device.json");

fn post(server: &Server, rpc: &str, key: &str, message: &str) -> Reply {
    http1(server.http(), &Client::Json1.call(&format!("DeviceService/{rpc}"), Some(key), message.as_bytes()))
}

#[test]
fn the_references_device_registers_reports_and_is_read_back() {
    let server = Server::start();
    let registered = post(&server, "RegisterDevice", ADMIN_KEY, REGISTER);
    assert_eq!(registered.status, 200, "{}", registered.text());
    assert_eq!(registered.header("content-type"), Some("application/json"));
    let registered = registered.json();
    assert_eq!(registered["deviceId"], "rpi-001");
    assert!(registered["registeredAt"].as_str().is_some_and(|moment| moment.ends_with('Z')), "{registered}");
    let key = registered["apiKey"].as_str().expect("an apiKey");

    let heartbeat = post(&server, "Heartbeat", key, HEARTBEAT);
    assert_eq!(heartbeat.status, 200, "{}", heartbeat.text());
    assert_eq!(heartbeat.json()["acknowledged"], true);
    let next = heartbeat.json()["nextHeartbeat"].as_str().map(str::to_owned).expect("a nextHeartbeat");
    let seconds: f64 = next.trim_end_matches('s').parse().expect("a duration in seconds");
    assert!((27.0..=33.0).contains(&seconds), "30 s with a tenth of jitter, not {next}");

    for key in [key, ADMIN_KEY] {
        let got = post(&server, "GetDevice", key, r#"{"device_id":"rpi-001","include_metrics":true}"#);
        assert_eq!(got.status, 200, "{}", got.text());
        let got = got.json();
        let device = &got["device"];
        assert_eq!(device["id"], "rpi-001");
        assert_eq!(device["name"], "Raspberry Pi 001");
        assert_eq!(device["type"], "raspberry-pi");
        assert_eq!(device["version"], "1.0.0");
        assert_eq!(device["status"], "ONLINE");
        assert_eq!(device["systemInfo"]["memoryMb"], "4096", "64-bit integers are strings in protobuf JSON");
        assert_eq!(device["systemInfo"]["cpuCores"], 4);
        assert!(device["lastSeen"].is_string(), "{device}");
        assert_eq!(got["metrics"]["stats"]["cpuPercent"], 25.5);
        assert_eq!(got["metrics"]["stats"]["memoryUsedMb"], "1024");
    }
}

#[test]
fn a_second_registration_of_an_id_is_a_conflict_in_the_references_envelope() {
    let server = Server::start();
    assert_eq!(post(&server, "RegisterDevice", ADMIN_KEY, REGISTER).status, 200);
    let again = post(&server, "RegisterDevice", ADMIN_KEY, REGISTER);
    assert_eq!(again.status, 409, "{}", again.text());
    let again = again.json();
    assert_eq!(again["code"], "ALREADY_EXISTS");
    assert!(again["message"].as_str().is_some_and(|message| message.contains("rpi-001")), "{again}");
    assert!(again["details"]["request_id"].as_str().is_some_and(|id| !id.is_empty()), "{again}");
    assert_eq!(
        again.as_object().map(serde_json::Map::len),
        Some(3),
        "code, message, details and nothing else: {again}"
    );
}

#[test]
fn the_references_curl_lines_work_as_printed() {
    let server = Server::start();
    assert_eq!(post(&server, "RegisterDevice", ADMIN_KEY, REGISTER).status, 200);
    let bare = Ask::get("/fleetd.v1.DeviceService/ListDevices");
    let bearer = bare.clone().header("authorization", format!("Bearer {ADMIN_KEY}"));
    let api_key = bare.clone().header("x-api-key", ADMIN_KEY);
    for (version, send) in [("1.1", http1 as fn(_, &_) -> _), ("2", http2)] {
        for ask in [&bearer, &api_key] {
            let reply: Reply = send(server.http(), ask);
            assert_eq!(reply.status, 200, "HTTP/{version}: {reply:?}");
            assert_eq!(reply.json()["devices"][0]["id"], "rpi-001", "HTTP/{version}");
            assert_eq!(reply.json()["totalCount"], 1, "HTTP/{version}");
        }
        let refused: Reply = send(server.http(), &bare);
        assert_eq!(refused.status, 401, "HTTP/{version}: {refused:?}");
        assert_eq!(refused.json()["code"], "UNAUTHENTICATED");
    }
}

/// Examples that this version does not serve whole are answered UNIMPLEMENTED with the name of what is missing,
/// never with an accident and never as if they had been carried out.
#[test]
fn an_example_is_served_or_says_what_is_missing() {
    let server = Server::start();
    assert_eq!(post(&server, "RegisterDevice", ADMIN_KEY, REGISTER).status, 200);
    for (rpc, message) in [("GetDevice", GET), ("ListDevices", LIST), ("UpdateDevice", UPDATE)] {
        let reply = post(&server, rpc, ADMIN_KEY, message);
        if reply.status == 200 {
            continue;
        }
        assert_eq!((reply.status, reply.json()["code"].as_str()), (501, Some("UNIMPLEMENTED")), "{rpc}: {reply:?}");
        assert!(reply.text().contains("this version of fleetd"), "{rpc}: {reply:?}");
    }
}

#[test]
fn pages_of_a_list_hold_each_device_once() {
    let server = Server::with(Options::default().unlimited());
    for n in 0..45 {
        server.register(&format!("page-{n:02}"));
    }
    let (mut seen, mut token) = (Vec::new(), String::new());
    loop {
        let message = serde_json::json!({ "page_size": 20, "page_token": token }).to_string();
        let page = post(&server, "ListDevices", ADMIN_KEY, &message).json();
        assert_eq!(page["totalCount"], 45);
        let devices = page["devices"].as_array().expect("devices");
        seen.extend(devices.iter().map(|device| device["id"].as_str().expect("an id").to_owned()));
        match page["nextPageToken"].as_str() {
            Some(next) if !next.is_empty() => token = next.to_owned(),
            _ => break,
        }
        assert!(seen.len() <= 45, "the pages do not end");
    }
    assert_eq!(seen, (0..45).map(|n| format!("page-{n:02}")).collect::<Vec<_>>());
}
