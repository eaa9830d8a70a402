//! Headers that lie, repeat, overflow or try to become something else.
use crate::support::client::Client;
use crate::support::wire::{http1, Ask, Http2};
use crate::support::ADMIN_KEY;
use crate::{Door, DEVICE};

const HEARTBEAT: &str = "DeviceService/Heartbeat";

#[test]
fn a_wrong_or_missing_content_type_is_an_unsupported_media_type() {
    let door = Door::shared();
    for client in [Client::Json1, Client::Json2, Client::ConnectJson1, Client::ConnectJson2] {
        for kind in [Some("text/plain"), Some("application/xml"), Some(""), Some("application/json2"), None] {
            let mut ask = door.heartbeat(client).without("content-type");
            if let Some(kind) = kind {
                ask = ask.header("content-type", kind);
            }
            let reply = door.unharmed("content type", || client.send(door.server.http(), &ask));
            assert_eq!(reply.status, 415, "{client:?} {kind:?}: {reply:?}");
            if client.is_plain() {
                assert_eq!(client.outcome(&reply).code, "INVALID_ARGUMENT", "{client:?} {kind:?}");
            }
        }
    }
}

#[test]
fn a_content_type_with_a_charset_or_in_capitals_is_taken() {
    let door = Door::shared();
    for client in [Client::Json1, Client::Json2, Client::ConnectJson1, Client::ConnectJson2] {
        for kind in ["application/json; charset=utf-8", "application/json;charset=UTF-8", "Application/JSON"] {
            let ask = door.heartbeat(client).set("content-type", kind);
            let outcome = door.outcome(client, &ask);
            assert_eq!(outcome.code, "OK", "{client:?} {kind}: {outcome:?}");
        }
    }
}

#[test]
fn a_timeout_that_is_none_does_not_keep_a_request_from_being_served() {
    let door = Door::shared();
    for client in Client::ALL {
        let (name, values) = if client.is_framed() {
            ("grpc-timeout", ["abc", "5", "-1S", "999999999S", "1X", "", "99999999H"])
        } else {
            ("connect-timeout-ms", ["abc", "-1", "1.5", "99999999999", "0x10", "", "9999999999"])
        };
        for value in values {
            let ask = door.heartbeat(client).header(name, value);
            let outcome = door.unharmed(name, || door.outcome(client, &ask));
            assert!(matches!(outcome.code.as_str(), "OK" | "INVALID_ARGUMENT"), "{client:?} {value:?}: {outcome:?}");
        }
    }
}

#[test]
fn a_fit_request_id_is_echoed_and_another_is_replaced() {
    let door = Door::shared();
    for client in Client::ALL {
        let ask = door.heartbeat(client);
        let id_for = |offered: &str| {
            let reply = client.send(door.server.http(), &ask.clone().header("x-request-id", offered));
            reply.header("x-request-id").expect("a request id").to_owned()
        };
        assert_eq!(id_for("abc-123"), "abc-123", "{client:?}");
        for unfit in ["", "a b", "x\ty", &"x".repeat(129), "a\u{fc}b"] {
            let made = id_for(unfit);
            assert_ne!(made, unfit, "{client:?}");
            assert!(made.len() == 16 && made.bytes().all(|byte| byte.is_ascii_hexdigit()), "{client:?}: {made:?}");
        }
    }
}

#[test]
fn no_request_id_can_add_a_header_or_a_field() {
    let door = Door::shared();
    // Written by hand: a client library would refuse to send it.
    let sent = "abc\r\n x-evil: 1";
    let ask = door.heartbeat(Client::Json1);
    let head = String::from_utf8(ask.head_on_http1(Some(ask.body.len()))).expect("text");
    let head = head.replace("\r\n\r\n", &format!("\r\nx-request-id: {sent}\r\n\r\n"));
    let mut connection = crate::support::wire::Http1::open(door.server.http());
    connection.send(&[head.as_bytes(), &ask.body].concat());
    if let Ok(reply) = connection.reply() {
        assert!(reply.header("x-evil").is_none(), "{reply:?}");
        assert!(reply.status == 400 || reply.header("x-request-id").is_some_and(|id| !id.contains(' ')), "{reply:?}");
    }
    let quoting = r#"","code":"OK"#;
    let refused = Client::Json1.call(HEARTBEAT, None, b"{}").header("x-request-id", quoting);
    let reply = http1(door.server.http(), &refused);
    assert_eq!(reply.json()["details"]["request_id"], quoting, "quoted, not pasted");
    assert_eq!(reply.json()["code"], "UNAUTHENTICATED");
}

#[test]
fn the_key_is_taken_from_either_header_and_never_from_two_that_differ() {
    let door = Door::shared();
    let unknown = "fdk_0000000000000000000000000000000000000000000";
    for client in Client::ALL {
        let bare = door.heartbeat(client).without("authorization");
        let bearer = format!("Bearer {}", door.key);
        for (name, ask, code) in [
            ("X-API-Key", bare.clone().header("x-api-key", &door.key), "OK"),
            ("bearer", bare.clone().header("authorization", format!("bearer {}", door.key)), "OK"),
            ("both, alike", bare.clone().header("authorization", &bearer).header("x-api-key", &door.key), "OK"),
            (
                "both, differing",
                bare.clone().header("authorization", &bearer).header("x-api-key", ADMIN_KEY),
                "UNAUTHENTICATED",
            ),
            (
                "twice",
                bare.clone().header("authorization", &bearer).header("authorization", &bearer),
                "UNAUTHENTICATED",
            ),
            ("none", bare.clone(), "UNAUTHENTICATED"),
            ("Basic", bare.clone().header("authorization", "Basic dXNlcjpwYXNz"), "UNAUTHENTICATED"),
            ("empty", bare.clone().header("authorization", ""), "UNAUTHENTICATED"),
            ("no scheme", bare.clone().header("authorization", &door.key), "UNAUTHENTICATED"),
            ("unknown", bare.clone().header("x-api-key", unknown), "UNAUTHENTICATED"),
            ("long", bare.clone().header("x-api-key", "k".repeat(4_000)), "UNAUTHENTICATED"),
            ("not ASCII", bare.clone().header("x-api-key", "schl\u{fc}ssel"), "UNAUTHENTICATED"),
            ("its start", bare.header("x-api-key", &door.key[..20]), "UNAUTHENTICATED"),
        ] {
            let outcome = door.outcome(client, &ask);
            assert_eq!(outcome.code, code, "{client:?} {name}: {outcome:?}");
            assert!(!outcome.message.contains(&door.key), "{client:?} {name}: a key is repeated: {outcome:?}");
        }
    }
    assert!(!door.server.log().contains(&door.key), "a key is in the log");
}

#[test]
fn another_devices_key_is_refused_with_the_permission_that_it_lacks() {
    let door = Door::shared();
    let device = format!("other-{}", std::process::id());
    let key = door.server.register(&device);
    for client in Client::ALL {
        let ask = door.heartbeat(client).set("authorization", format!("Bearer {key}"));
        let reply = client.send(door.server.http(), &ask);
        let outcome = client.outcome(&reply);
        assert_eq!(outcome.code, "PERMISSION_DENIED", "{client:?}: {outcome:?}");
        assert!(outcome.message.contains("device:heartbeat"), "{client:?}: {outcome:?}");
        if client.is_plain() {
            assert_eq!(outcome.http_status, 403);
            let details = &reply.json()["details"];
            assert_eq!(details["permission"], "device:heartbeat", "{client:?}: {reply:?}");
            assert_eq!(details["user_id"], format!("device:{device}"), "{client:?}: {reply:?}");
        }
    }
    let unknown = Client::Json1.call(HEARTBEAT, Some(&key), br#"{"device_id":"never-registered"}"#);
    let outcome = door.outcome(Client::Json1, &unknown);
    assert_eq!(outcome.code, "PERMISSION_DENIED", "which devices exist is not for other devices to know: {outcome:?}");
}

#[test]
fn headers_above_the_http2_limit_are_refused_and_the_connection_lives_on() {
    let door = Door::shared();
    door.unharmed("64 KiB of headers", || {
        let mut connection = Http2::open(door.server.http());
        let large = door.heartbeat(Client::Grpc2).header("x-large", "x".repeat(64 * 1024));
        if let Ok(reply) = connection.try_ask(&large) {
            assert_eq!(reply.status, 431, "{reply:?}");
            assert_eq!(Client::Grpc2.outcome(&connection.ask(&door.heartbeat(Client::Grpc2))).code, "OK");
        }
    });
}

#[test]
fn grpc_over_http_1_1_is_told_to_use_http_2() {
    let door = Door::shared();
    let reply = http1(door.server.http(), &door.heartbeat(Client::Grpc2));
    assert_eq!(reply.status, 505, "{reply:?}");
    assert!(reply.text().contains("HTTP/2"), "{reply:?}");
}

#[test]
fn a_get_of_an_rpc_with_side_effects_does_nothing() {
    let door = Door::shared();
    let message = format!("%7B%22device_id%22%3A%22{DEVICE}%22%7D");
    for query in [format!("?connect=v1&encoding=json&message={message}"), format!("?encoding=json&message={message}")] {
        let ask =
            Ask::get(format!("/fleetd.v1.{HEARTBEAT}{query}")).header("authorization", format!("Bearer {}", door.key));
        let reply = http1(door.server.http(), &ask);
        assert_eq!(reply.status, 405, "{reply:?}");
    }
}
