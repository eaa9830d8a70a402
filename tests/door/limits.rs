//! The reference's rate limits, as each kind of client meets them.
use std::time::{Duration, Instant};

use crate::support::client::{proto, Client};
use crate::support::wire::{Ask, Http1, Http2, Reply};
use crate::support::{Server, ADMIN_KEY};

const HEARTBEAT: &str = "DeviceService/Heartbeat";

/// A kept connection of either HTTP version.
enum Connection {
    Http1(Http1),
    Http2(Http2),
}

impl Connection {
    fn open(server: &Server, client: Client) -> Self {
        if client.is_http2() {
            Self::Http2(Http2::open(server.http()))
        } else {
            Self::Http1(Http1::open(server.http()))
        }
    }

    fn ask(&mut self, ask: &Ask) -> Reply {
        match self {
            Self::Http1(connection) => connection.ask(ask),
            Self::Http2(connection) => connection.ask(ask),
        }
    }
}

fn heartbeat(client: Client, device: &str, key: &str) -> Ask {
    let json = format!(r#"{{"device_id":"{device}"}}"#);
    let message = if client.is_json() { json.into_bytes() } else { proto::heartbeat(device) };
    client.call(HEARTBEAT, Some(key), &message)
}

fn number(reply: &Reply, name: &str) -> u64 {
    let value = reply.trailer(name).unwrap_or_else(|| panic!("no {name}: {reply:?}"));
    value.parse().unwrap_or_else(|_| panic!("{name}: {value:?} is no number"))
}

/// Sends heartbeats until one is refused; gives how many were served, the refusal, and how long all took.
fn until_refused(connection: &mut Connection, client: Client, ask: &Ask) -> (u64, Reply, Duration) {
    let started = Instant::now();
    for served in 0..100 {
        let reply = connection.ask(ask);
        let code = client.outcome(&reply).code;
        if code == "OK" {
            assert_eq!(number(&reply, "x-ratelimit-limit"), 10, "{client:?}: {reply:?}");
            assert!(number(&reply, "x-ratelimit-remaining") < 10, "{client:?}: {reply:?}");
        } else {
            assert_eq!(code, "RESOURCE_EXHAUSTED", "{client:?}: {reply:?}");
            return (served, reply, started.elapsed());
        }
    }
    panic!("{client:?}: 100 heartbeats in {:?} and none was refused", started.elapsed());
}

#[test]
fn the_eleventh_heartbeat_in_a_minute_is_refused_with_when_to_come_back() {
    let server = Server::start();
    for client in Client::ALL {
        let device = format!("limited-{client:?}");
        let key = server.register(&device);
        let ask = heartbeat(client, &device, &key);
        let mut connection = Connection::open(&server, client);
        let (served, refusal, took) = until_refused(&mut connection, client, &ask);
        // One more comes free every 6 s.
        let allowed = 10 + took.as_secs() / 6;
        assert!((10..=allowed).contains(&served), "{client:?}: {served} were served in {took:?}");
        if client.is_plain() || client.is_connect() {
            assert_eq!(refusal.status, 429, "{client:?}: {refusal:?}");
        }
        assert!((1..=6).contains(&number(&refusal, "retry-after")), "{client:?}: {refusal:?}");
        assert_eq!(number(&refusal, "x-ratelimit-limit"), 10, "{client:?}");
        assert_eq!(number(&refusal, "x-ratelimit-remaining"), 0, "{client:?}");
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
        let reset = number(&refusal, "x-ratelimit-reset");
        assert!((now..=now + 62).contains(&reset), "{client:?}: reset {reset}, now {now}");
    }
}

#[test]
fn a_device_at_its_limit_takes_nothing_from_others_nor_from_its_other_calls() {
    let server = Server::start();
    let (loud, quiet) = (server.register("loud"), server.register("quiet"));
    let client = Client::Json1;
    let mut connection = Connection::open(&server, client);
    let ask = heartbeat(client, "loud", &loud);
    let bypass = ask.clone().header("x-bypass-rate-limit", "true");
    until_refused(&mut connection, client, &ask);
    assert_eq!(client.outcome(&connection.ask(&bypass)).code, "RESOURCE_EXHAUSTED", "only the admin may bypass");
    assert_eq!(client.outcome(&connection.ask(&heartbeat(client, "quiet", &quiet))).code, "OK");
    let itself = client.call("DeviceService/GetDevice", Some(&loud), br#"{"device_id":"loud"}"#);
    assert_eq!(client.outcome(&connection.ask(&itself)).code, "OK", "reads have a bucket of their own");
}

#[test]
fn the_eleventh_anonymous_request_in_a_second_is_refused_and_devices_do_not_feel_it() {
    for client in Client::ALL {
        // The limit is the caller's address's, so each kind of client gets a server whose bucket is full.
        let server = Server::start();
        let key = server.register("known");
        let anonymous = client.call(HEARTBEAT, None, if client.is_json() { b"{}" } else { b"" });
        let mut connection = Connection::open(&server, client);
        let started = Instant::now();
        let mut codes = Vec::new();
        let refusal = loop {
            let reply = connection.ask(&anonymous);
            let code = client.outcome(&reply).code;
            codes.push(code.clone());
            assert!(codes.len() < 1_000, "{client:?}: never refused in {:?}", started.elapsed());
            if code == "RESOURCE_EXHAUSTED" {
                break reply;
            }
            assert_eq!(code, "UNAUTHENTICATED", "{client:?}: {reply:?}");
        };
        let allowed = 10 + started.elapsed().as_millis() as usize / 100;
        assert!((11..=allowed + 1).contains(&codes.len()), "{client:?}: {codes:?} in {:?}", started.elapsed());
        assert_eq!(number(&refusal, "retry-after"), 1, "{client:?}");
        assert_eq!(number(&refusal, "x-ratelimit-limit"), 10, "{client:?}");
        // A key that nobody knows is paid from the same bucket, so that guessing keys is slow.
        let guess = anonymous.clone().header("x-api-key", "a-guess-of-an-admin-key");
        let refused = (0..5).any(|_| client.outcome(&connection.ask(&guess)).code == "RESOURCE_EXHAUSTED");
        assert!(refused, "{client:?}: keys can be guessed without limit");
        assert_eq!(client.outcome(&connection.ask(&heartbeat(client, "known", &key))).code, "OK", "{client:?}");
    }
}

#[test]
fn garbage_without_a_key_is_limited_as_any_anonymous_request() {
    for client in Client::ALL {
        let server = Server::start();
        let mut connection = Connection::open(&server, client);
        let garbage = client.call(HEARTBEAT, None, &[0xff; 8]);
        let started = Instant::now();
        let refused = (0..1_000).position(|_| client.outcome(&connection.ask(&garbage)).code == "RESOURCE_EXHAUSTED");
        let allowed = 10 + started.elapsed().as_millis() as usize / 100;
        assert!(refused.is_some_and(|served| (10..=allowed).contains(&served)), "{client:?}: {refused:?}");
    }
}

#[test]
fn the_admin_has_no_limit() {
    let server = Server::start();
    let mut connection = Connection::open(&server, Client::Json1);
    for n in 0..300 {
        let outcome = Client::Json1.outcome(&connection.ask(&Client::Json1.call(
            "DeviceService/ListDevices",
            Some(ADMIN_KEY),
            b"{}",
        )));
        assert_eq!(outcome.code, "OK", "request {n}: {outcome:?}");
    }
}
