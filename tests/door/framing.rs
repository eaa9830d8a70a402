//! HTTP/1.1 on the byte level: requests that two readers could read differently, and the odd ones that are right.
use std::time::{Duration, Instant};

use crate::support::client::Client;
use crate::support::wire::{Ask, Http1, Reply};
use crate::Door;

/// Sends `bytes` on a connection of its own; the answer, or `None` when the server just closes.
fn raw(door: &Door, bytes: &[u8]) -> Option<Reply> {
    let mut connection = Http1::open(door.server.http());
    connection.send(bytes);
    connection.reply().ok()
}

/// A request for the health of the server, with these header lines and this body.
fn post_with(headers: &str, body: &str) -> Vec<u8> {
    let path = "/fleetd.v1.DeviceService/ListDevices";
    format!("POST {path} HTTP/1.1\r\nhost: fleetd\r\ncontent-type: application/json\r\n{headers}\r\n{body}")
        .into_bytes()
}

/// The connection must not stay open after a request whose end is in doubt: what follows would be read as a request.
fn refused_and_closed(door: &Door, name: &str, bytes: &[u8]) {
    door.unharmed(name, || {
        let mut connection = Http1::open(door.server.http());
        connection.send(bytes);
        let first = connection.reply();
        if let Ok(reply) = &first {
            assert!((400..500).contains(&reply.status), "{name}: {reply:?}");
        }
        if let Ok(second) = connection.reply() {
            panic!("{name}: after {first:?} the rest was taken for a request: {second:?}");
        }
    });
}

#[test]
fn a_request_with_two_lengths_is_refused_and_the_connection_closed() {
    let door = Door::shared();
    let smuggled = "GET /healthz HTTP/1.1\r\nhost: fleetd\r\n\r\n";
    for (name, headers, body) in [
        ("length and chunked", "content-length: 5\r\ntransfer-encoding: chunked\r\n", format!("0\r\n\r\n{smuggled}")),
        ("chunked and length", "transfer-encoding: chunked\r\ncontent-length: 5\r\n", format!("0\r\n\r\n{smuggled}")),
        ("two lengths", "content-length: 2\r\ncontent-length: 40\r\n", format!("{{}}{smuggled}")),
        ("a list of lengths", "content-length: 2, 40\r\n", format!("{{}}{smuggled}")),
        ("a length with a sign", "content-length: +2\r\n", format!("{{}}{smuggled}")),
        ("a negative length", "content-length: -2\r\n", smuggled.to_owned()),
        ("a length in hexadecimal", "content-length: 0x2\r\n", format!("{{}}{smuggled}")),
        ("a length past 2^64", "content-length: 18446744073709551618\r\n", format!("{{}}{smuggled}")),
        ("chunked twice", "transfer-encoding: chunked, chunked\r\n", format!("0\r\n\r\n{smuggled}")),
        ("chunked in disguise", "transfer-encoding: xchunked\r\n", format!("0\r\n\r\n{smuggled}")),
        ("chunked not last", "transfer-encoding: chunked, gzip\r\n", format!("0\r\n\r\n{smuggled}")),
        ("a space before the colon", "transfer-encoding : chunked\r\n", format!("0\r\n\r\n{smuggled}")),
        ("a folded header", "transfer-encoding:\r\n chunked\r\n", format!("0\r\n\r\n{smuggled}")),
        ("a chunk size that is none", "transfer-encoding: chunked\r\n", format!("zz\r\n\r\n{smuggled}")),
        (
            "a chunk size past 2^64",
            "transfer-encoding: chunked\r\n",
            format!("fffffffffffffffff\r\n{{}}\r\n0\r\n\r\n{smuggled}"),
        ),
    ] {
        refused_and_closed(&door, name, &post_with(headers, &body));
    }
}

#[test]
fn null_bytes_and_bare_control_characters_are_refused() {
    let door = Door::shared();
    for (name, bytes) in [
        ("null bytes alone", &[0u8; 64][..]),
        ("in the path", b"GET /heal\0thz HTTP/1.1\r\nhost: fleetd\r\n\r\n"),
        ("in a header's name", b"GET /healthz HTTP/1.1\r\nho\0st: fleetd\r\n\r\n"),
        ("in a header's value", b"GET /healthz HTTP/1.1\r\nhost: fle\0etd\r\n\r\n"),
        ("a bare CR in a value", b"GET /healthz HTTP/1.1\r\nhost: fleetd\r\nx-request-id: a\rx-evil: 1\r\n\r\n"),
        ("no version", b"GET /healthz\r\n\r\n"),
        ("an unknown version", b"GET /healthz HTTP/9.9\r\nhost: fleetd\r\n\r\n"),
        ("a TLS hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\x00\x00\x00\x00\x00\x00\x00\x00\r\n\r\n"),
        ("an almost HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\nxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"),
    ] {
        let reply = door.unharmed(name, || raw(&door, bytes));
        if let Some(reply) = reply {
            assert!((400..600).contains(&reply.status) && reply.status != 500, "{name}: {reply:?}");
        }
    }
}

#[test]
fn an_oversized_head_is_refused_without_reading_on() {
    let door = Door::shared();
    let long = "x".repeat(1 << 20);
    let many = (0..5_000).map(|n| format!("x-{n}: y\r\n")).collect::<String>();
    for (name, head) in [
        ("one long header", format!("GET /healthz HTTP/1.1\r\nhost: fleetd\r\nx-long: {long}\r\n\r\n")),
        ("5,000 headers", format!("GET /healthz HTTP/1.1\r\nhost: fleetd\r\n{many}\r\n")),
        ("a long path", format!("GET /{long} HTTP/1.1\r\nhost: fleetd\r\n\r\n")),
        ("a long method", format!("{long} / HTTP/1.1\r\nhost: fleetd\r\n\r\n")),
    ] {
        let reply = door.unharmed(name, || raw(&door, head.as_bytes()));
        if let Some(reply) = reply {
            assert!((400..500).contains(&reply.status), "{name}: {reply:?}");
        }
    }
}

#[test]
fn a_chunked_body_above_the_limit_is_refused_while_it_comes() {
    let door = Door::shared();
    let client = Client::Json1;
    let ask = client.call_with_body("DeviceService/Heartbeat", Some(&door.key), Vec::new());
    let reply = door.unharmed("chunked, without end", || {
        let mut connection = Http1::open(door.server.http());
        connection.send(&ask.clone().header("transfer-encoding", "chunked").head_on_http1(None));
        let chunk = [&b"10000\r\n"[..], &[b' '; 0x10000], b"\r\n"].concat();
        // 64 MiB, unless the server has closed before.
        for _ in 0..1024 {
            if std::io::Write::write_all(&mut connection.stream, &chunk).is_err() {
                break;
            }
        }
        connection.reply()
    });
    if let Ok(reply) = reply {
        assert_eq!(reply.status, 413, "{reply:?}");
        assert_eq!(client.outcome(&reply).code, "RESOURCE_EXHAUSTED");
    }
}

#[test]
fn http_1_0_is_served_and_its_connection_closed() {
    let door = Door::shared();
    let mut connection = Http1::open(door.server.http());
    connection.send(b"GET /healthz HTTP/1.0\r\n\r\n");
    let reply = connection.reply().expect("an answer");
    assert_eq!((reply.status, reply.text().as_str()), (200, "ok\n"));
    assert!(connection.is_closed_by_server());
}

#[test]
fn pipelined_requests_are_answered_in_their_order() {
    let door = Door::shared();
    let mut connection = Http1::open(door.server.http());
    let mut bytes = Vec::new();
    for n in 0..50 {
        let ask = match n % 3 {
            0 => Ask::get("/healthz"),
            1 => door.heartbeat(Client::Json1),
            _ => Client::Json1.call("DeviceService/Heartbeat", Some(&door.key), b"not JSON"),
        };
        bytes.extend(ask.header("x-request-id", n.to_string()).on_http1());
    }
    door.unharmed("50 at once", || {
        connection.send(&bytes);
        for n in 0..50 {
            let reply = connection.reply().unwrap_or_else(|error| panic!("answer {n}: {error}"));
            assert_eq!(reply.header("x-request-id"), Some(n.to_string().as_str()), "{reply:?}");
            assert_eq!(reply.status, if n % 3 == 2 { 400 } else { 200 }, "{n}: {reply:?}");
        }
    });
}

#[test]
fn expect_100_continue_is_answered_before_the_body() {
    let door = Door::shared();
    let ask = door.heartbeat(Client::Json1);
    let mut connection = Http1::open(door.server.http());
    connection.send(&ask.clone().header("expect", "100-continue").head_on_http1(Some(ask.body.len())));
    assert_eq!(connection.reply().expect("an interim answer").status, 100);
    connection.send(&ask.body);
    let reply = connection.reply().expect("an answer");
    assert_eq!(reply.status, 200, "{reply:?}");
}

#[test]
fn an_unknown_path_is_not_found() {
    let door = Door::shared();
    for path in [
        "/nothing",
        "/fleetd.v1.DeviceService/Dance",
        "/fleetd.v2.DeviceService/Heartbeat",
        "/../etc/passwd",
        "/fleetd.v1.DeviceService/Heartbeat/",
        "//",
        "/%00",
        "/fleetd.v1.DeviceService%2FHeartbeat",
    ] {
        for client in Client::ALL {
            let mut ask = door.heartbeat(client);
            ask.target = path.to_owned();
            let outcome = door.outcome(client, &ask);
            let expected = if client.is_plain() { ("NOT_FOUND", 404) } else { ("UNIMPLEMENTED", outcome.http_status) };
            assert_eq!((outcome.code.as_str(), outcome.http_status), expected, "{client:?} {path}: {outcome:?}");
        }
    }
}

#[test]
fn a_method_that_the_path_does_not_take_is_refused_with_what_it_takes() {
    let door = Door::shared();
    for method in ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"] {
        for client in [Client::Json1, Client::Json2] {
            let mut ask = door.heartbeat(client);
            ask.method = method;
            if method == "GET" {
                ask.body.clear();
            }
            let reply = client.send(door.server.http(), &ask);
            assert_eq!(reply.status, 405, "{client:?} {method}: {reply:?}");
            assert!(
                reply.header("allow").is_some_and(|allow| allow.contains("POST")),
                "{client:?} {method}: {reply:?}"
            );
        }
    }
}

#[test]
fn a_keep_alive_connection_serves_on_after_an_error() {
    let door = Door::shared();
    let mut connection = Http1::open(door.server.http());
    for _ in 0..3 {
        let refused = connection.ask(&Client::Json1.call("DeviceService/Heartbeat", Some(&door.key), b"not JSON"));
        assert_eq!(refused.status, 400, "{refused:?}");
        let served = connection.ask(&door.heartbeat(Client::Json1));
        assert_eq!(served.status, 200, "{served:?}");
    }
}

#[test]
fn a_client_that_hangs_up_before_its_answer_harms_nobody() {
    let door = Door::shared();
    door.unharmed("500 hang-ups", || {
        let started = Instant::now();
        for n in 0..500 {
            let mut connection = Http1::open(door.server.http());
            let bytes = door.heartbeat(Client::Json1).on_http1();
            connection.send(&bytes[..bytes.len() - n % bytes.len()]);
        }
        assert!(started.elapsed() < Duration::from_secs(30), "the server stopped accepting");
    });
}
