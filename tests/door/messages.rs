//! Messages that are not what they say: broken protobuf and JSON, wrong compression, wrong frames, too much of it.
use std::io::Write as _;

use flate2::write::GzEncoder;
use flate2::Compression;

use crate::support::client::{frame, proto, Client};
use crate::support::wire::Ask;
use crate::{Door, DEVICE};

const HEARTBEAT: &str = "DeviceService/Heartbeat";
const LIST: &str = "DeviceService/ListDevices";

/// Every client of `clients` that sends `message` as a heartbeat is told `code`.
fn refused(name: &str, clients: impl IntoIterator<Item = Client>, message: &[u8], code: &str) {
    let door = Door::shared();
    for client in clients {
        let ask = client.call(HEARTBEAT, Some(&door.key), message);
        let outcome = door.unharmed(name, || door.outcome(client, &ask));
        assert_eq!(outcome.code, code, "{name}: {client:?}: {outcome:?}");
        assert!(!outcome.message.is_empty(), "{name}: {client:?} is not told what is wrong");
    }
}

fn binary() -> impl Iterator<Item = Client> {
    Client::ALL.into_iter().filter(|client| !client.is_json())
}

fn json() -> impl Iterator<Item = Client> {
    Client::ALL.into_iter().filter(|client| client.is_json())
}

#[test]
fn a_heartbeat_is_taken_from_every_kind_of_client() {
    let door = Door::shared();
    for client in Client::ALL {
        let reply = client.send(door.server.http(), &door.heartbeat(client));
        assert_eq!(client.outcome(&reply).code, "OK", "{client:?}: {reply:?}");
        let message = client.message(&reply);
        if client.is_json() {
            let message: serde_json::Value = serde_json::from_slice(&message).expect("JSON");
            assert_eq!(message["acknowledged"], true, "{client:?}");
        } else {
            assert!(message.starts_with(&proto::integer(1, 1)), "{client:?}: acknowledged in {message:?}");
        }
    }
}

#[test]
fn protobuf_that_is_cut_or_garbage_is_an_invalid_argument() {
    let whole = proto::heartbeat(DEVICE);
    refused("cut in its last field", binary(), &whole[..whole.len() - 1], "INVALID_ARGUMENT");
    refused("cut in a tag", binary(), &[&whole[..], &[0x80]].concat(), "INVALID_ARGUMENT");
    refused("all bits set", binary(), &[0xff; 64], "INVALID_ARGUMENT");
    refused("a length of 4 GiB", binary(), &[0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f], "INVALID_ARGUMENT");
    refused("field number 0", binary(), &[0x02, 0x01, 0x00], "INVALID_ARGUMENT");
    refused("a string as a number", binary(), &proto::integer(1, 7), "INVALID_ARGUMENT");
    refused("10,000 groups deep", binary(), &[0x7b; 10_000], "INVALID_ARGUMENT");
}

#[test]
fn text_that_is_not_utf8_is_an_invalid_argument() {
    refused("protobuf", binary(), &proto::bytes(1, &[0xff, 0xfe]), "INVALID_ARGUMENT");
    refused("an overlong /", binary(), &proto::bytes(1, &[0xc0, 0xaf]), "INVALID_ARGUMENT");
    refused("JSON", json(), b"{\"device_id\":\"\xff\xfe\"}", "INVALID_ARGUMENT");
    refused("half a surrogate pair", json(), br#"{"device_id":"\ud800"}"#, "INVALID_ARGUMENT");
}

#[test]
fn json_that_is_broken_or_of_the_wrong_type_is_an_invalid_argument() {
    for (name, text) in [
        ("no JSON at all", "heartbeat"),
        ("an array", "[]"),
        ("null", "null"),
        ("cut", r#"{"device_id":"door-001""#),
        ("more after its end", r#"{"device_id":"door-001"}}"#),
        ("two values", r#"{"device_id":"door-001"}{"device_id":"door-001"}"#),
        ("a number as text", r#"{"device_id":1}"#),
        ("one field twice", r#"{"device_id":"door-001","device_id":"door-002"}"#),
        ("both names of one field", r#"{"device_id":"door-001","deviceId":"door-002"}"#),
        ("a number out of range", r#"{"device_id":"door-001","stats":{"cpu_percent":1e999}}"#),
        ("an unknown state", r#"{"device_id":"door-001","status":{"state":"DANCING"}}"#),
        ("a time that is none", r#"{"device_id":"door-001","timestamp":"yesterday"}"#),
        ("a time past the calendar", r#"{"device_id":"door-001","timestamp":"99999-01-01T00:00:00Z"}"#),
        ("negative bytes", r#"{"device_id":"door-001","stats":{"memory_used_mb":-1}}"#),
    ] {
        refused(name, json(), text.as_bytes(), "INVALID_ARGUMENT");
    }
}

#[test]
fn json_nested_ten_thousand_deep_ends_in_an_answer() {
    let (open, close) = ("[".repeat(10_000), "]".repeat(10_000));
    let objects = r#"{"a":"#.repeat(10_000);
    refused("in a known field", json(), format!(r#"{{"status":{open}{close}}}"#).as_bytes(), "INVALID_ARGUMENT");
    refused("never closed", json(), format!(r#"{{"unknown":{open}"#).as_bytes(), "INVALID_ARGUMENT");
    refused("objects, never closed", json(), objects.as_bytes(), "INVALID_ARGUMENT");
    // Fields that the server does not know are skipped, however deep; or refused, but not fatal.
    let door = Door::shared();
    let unknown = format!(r#"{{"device_id":"{DEVICE}","unknown":{open}{close}}}"#);
    for client in json() {
        let ask = client.call(HEARTBEAT, Some(&door.key), unknown.as_bytes());
        let outcome = door.unharmed("in an unknown field", || door.outcome(client, &ask));
        assert!(matches!(outcome.code.as_str(), "OK" | "INVALID_ARGUMENT"), "{client:?}: {outcome:?}");
    }
}

/// Errors go into logs and, over gRPC, into a header: they must not be as long as the sender likes.
#[test]
fn an_error_stays_short_whatever_was_sent() {
    let door = Door::shared();
    let long = "x".repeat(1 << 20);
    let texts = [
        ("an id", format!(r#"{{"device_id":"{long}"}}"#)),
        ("an enum's name", format!(r#"{{"device_id":"{DEVICE}","status":{{"state":"{long}"}}}}"#)),
        ("a time", format!(r#"{{"device_id":"{DEVICE}","timestamp":"{long}"}}"#)),
        ("a number", format!(r#"{{"device_id":"{DEVICE}","stats":{{"cpu_percent":"{long}"}}}}"#)),
        ("a name of a metric", format!(r#"{{"device_id":"{DEVICE}","stats":{{"metrics":{{"{long}":1}}}}}}"#)),
        ("a wrong value under a long name", format!(r#"{{"stats":{{"metrics":{{"{long}":true}}}}}}"#)),
        ("a version", format!(r#"{{"device_id":"{DEVICE}","version":"{long}"}}"#)),
    ];
    for (name, text) in texts {
        for client in json() {
            let ask = client.call(HEARTBEAT, Some(&door.key), text.as_bytes());
            let outcome = door.unharmed(name, || door.outcome(client, &ask));
            assert_eq!(outcome.code, "INVALID_ARGUMENT", "{name}: {client:?}: {:.300}", outcome.message);
            assert!(outcome.message.len() <= 1024, "{name}: {client:?}: an error of {} bytes", outcome.message.len());
        }
    }
    let metric = [proto::bytes(1, long.as_bytes()), proto::double(2, 1.0)].concat();
    let stats = proto::bytes(3, &proto::bytes(6, &metric));
    let message = [proto::bytes(1, DEVICE.as_bytes()), stats].concat();
    for client in binary() {
        let ask = client.call(HEARTBEAT, Some(&door.key), &message);
        let outcome = door.unharmed("a name of a metric", || door.outcome(client, &ask));
        assert_eq!(outcome.code, "INVALID_ARGUMENT", "{client:?}: {:.300}", outcome.message);
        assert!(outcome.message.len() <= 1024, "{client:?}: an error of {} bytes", outcome.message.len());
    }
}

#[test]
fn numbers_that_no_device_measures_do_no_harm() {
    let door = Door::shared();
    let odd = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, f64::MAX, -0.0, f64::from_bits(1)];
    for client in binary() {
        for value in odd {
            let stats = [proto::double(1, value), proto::integer(2, u64::MAX), proto::double(3, value)].concat();
            let moment = [proto::integer(1, i64::MIN as u64), proto::integer(2, i32::MIN as u32 as u64)].concat();
            let status = [proto::integer(1, u64::MAX), proto::integer(2, u64::MAX), proto::bytes(3, &moment)].concat();
            let message = [
                proto::bytes(1, DEVICE.as_bytes()),
                proto::bytes(2, &status),
                proto::bytes(3, &stats),
                proto::bytes(8, &moment),
            ]
            .concat();
            let outcome = door.outcome(client, &client.call(HEARTBEAT, Some(&door.key), &message));
            assert!(matches!(outcome.code.as_str(), "OK" | "INVALID_ARGUMENT"), "{client:?} {value}: {outcome:?}");
        }
        // What was taken must be readable again.
        let ask = Client::Json1.call("DeviceService/GetDevice", Some(&door.key), get_with_metrics().as_bytes());
        let outcome = door.unharmed("odd numbers", || door.outcome(Client::Json1, &ask));
        assert_eq!(outcome.code, "OK", "{client:?}: {outcome:?}");
    }
}

fn get_with_metrics() -> String {
    format!(r#"{{"device_id":"{DEVICE}","include_metrics":true}}"#)
}

#[test]
fn an_empty_message_is_told_which_field_it_lacks() {
    let door = Door::shared();
    for client in Client::ALL {
        let outcome = door.outcome(client, &client.call(HEARTBEAT, Some(&door.key), b""));
        assert_eq!(outcome.code, "INVALID_ARGUMENT", "{client:?}: {outcome:?}");
        assert!(outcome.message.contains("device_id is empty"), "{client:?}: {outcome:?}");
    }
}

#[test]
fn pages_of_impossible_size_are_clamped_or_refused() {
    let door = Door::shared();
    let admin = Some(crate::support::ADMIN_KEY);
    for (message, code) in [
        (r#"{"page_size":2147483647}"#, "OK"),
        (r#"{"page_size":-1}"#, "INVALID_ARGUMENT"),
        (r#"{"page_size":-2147483648}"#, "INVALID_ARGUMENT"),
        (r#"{"page_size":2147483648}"#, "INVALID_ARGUMENT"),
        (r#"{"page_size":1e300}"#, "INVALID_ARGUMENT"),
        (r#"{"page_token":"v1.2e2e2f"}"#, "INVALID_ARGUMENT"),
        (r#"{"page_token":"' OR 1=1 --"}"#, "INVALID_ARGUMENT"),
    ] {
        for client in json() {
            let outcome = door.outcome(client, &client.call(LIST, admin, message.as_bytes()));
            assert_eq!(outcome.code, code, "{client:?} {message}: {outcome:?}");
        }
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).expect("in memory");
    encoder.finish().expect("in memory")
}

fn compressed(door: &Door, client: Client, encoding: &str, message: &[u8]) -> Ask {
    let body = if client.is_framed() { frame(1, message) } else { message.to_vec() };
    client.call_with_body(HEARTBEAT, Some(&door.key), body).header(client.encoding_header(), encoding)
}

#[test]
fn a_compressed_heartbeat_is_taken() {
    let door = Door::shared();
    for client in binary() {
        let ask = compressed(&door, client, "gzip", &gzip(&proto::heartbeat(DEVICE)));
        assert_eq!(door.outcome(client, &ask).code, "OK", "{client:?}");
    }
}

#[test]
fn compression_that_the_server_does_not_know_is_unimplemented() {
    let door = Door::shared();
    for client in binary() {
        let ask = compressed(&door, client, "br", &proto::heartbeat(DEVICE));
        let outcome = door.unharmed("br", || door.outcome(client, &ask));
        assert_eq!(outcome.code, "UNIMPLEMENTED", "{client:?}: {outcome:?}");
        assert!(outcome.message.contains("br"), "{client:?} is told which: {outcome:?}");
    }
}

#[test]
fn gzip_that_is_corrupt_is_an_invalid_argument() {
    let door = Door::shared();
    let good = gzip(&proto::heartbeat(DEVICE));
    let mut flipped = good.clone();
    let last = flipped.len() - 6;
    flipped[last] ^= 1;
    for (name, bytes) in [("no gzip", &b"not gzip at all"[..]), ("cut", &good[..good.len() - 9]), ("flipped", &flipped)]
    {
        for client in binary() {
            let outcome = door.unharmed(name, || door.outcome(client, &compressed(&door, client, "gzip", bytes)));
            assert_eq!(outcome.code, "INVALID_ARGUMENT", "{name}: {client:?}: {outcome:?}");
        }
    }
}

#[test]
fn a_gzip_bomb_is_not_unpacked() {
    let door = Door::shared();
    let bomb = gzip(&vec![0; 10 << 20]);
    assert!(bomb.len() < 64 << 10);
    for client in binary() {
        let outcome = door.unharmed("a bomb", || door.outcome(client, &compressed(&door, client, "gzip", &bomb)));
        assert_eq!(outcome.code, "RESOURCE_EXHAUSTED", "{client:?}: {outcome:?}");
        if client.is_plain() {
            assert_eq!(outcome.http_status, 413, "{client:?}: not 429, after which clients try again: {outcome:?}");
        }
    }
}

#[test]
fn a_body_above_the_limit_is_refused_by_its_size() {
    let door = Door::shared();
    let name = vec![b'x'; 3 << 20];
    for client in Client::ALL {
        let json = format!(r#"{{"device_id":"{}"}}"#, String::from_utf8_lossy(&name));
        let message = if client.is_json() { json.into_bytes() } else { proto::bytes(1, &name) };
        let ask = client.call(HEARTBEAT, Some(&door.key), &message);
        let outcome = door.unharmed("3 MiB", || door.outcome(client, &ask));
        assert_eq!(outcome.code, "RESOURCE_EXHAUSTED", "{client:?}: {outcome:?}");
        if client.is_plain() {
            assert_eq!(outcome.http_status, 413, "{client:?}: not 429, after which clients try again: {outcome:?}");
        }
    }
}

#[test]
fn a_grpc_frame_that_lies_about_itself_is_refused() {
    let door = Door::shared();
    let message = proto::heartbeat(DEVICE);
    let mut longer = frame(0, &message);
    longer[4] += 1;
    let mut endless = frame(0, &message);
    endless[1..5].copy_from_slice(&[0xff; 4]);
    let two = [frame(0, &message), frame(0, &message)].concat();
    for (name, body, codes) in [
        ("more than there is", longer, &["INVALID_ARGUMENT"][..]),
        ("4 GiB", endless, &["RESOURCE_EXHAUSTED", "INVALID_ARGUMENT"]),
        ("two messages", two, &["UNIMPLEMENTED", "INVALID_ARGUMENT"]),
        ("no message", Vec::new(), &["UNIMPLEMENTED", "INVALID_ARGUMENT"]),
        ("half a frame header", vec![0, 0], &["INVALID_ARGUMENT"]),
        // Bits that gRPC has not given a meaning may be refused or ignored.
        ("flags that do not exist", frame(0x7e, &message), &["OK", "INVALID_ARGUMENT", "INTERNAL"]),
        ("compressed, with no encoding named", frame(1, &message), &["INVALID_ARGUMENT", "INTERNAL"]),
    ] {
        for client in Client::ALL.into_iter().filter(|client| client.is_framed()) {
            let ask = client.call_with_body(HEARTBEAT, Some(&door.key), body.clone());
            let outcome = door.unharmed(name, || door.outcome(client, &ask));
            assert!(codes.contains(&outcome.code.as_str()), "{name}: {client:?}: {outcome:?}");
        }
    }
}
