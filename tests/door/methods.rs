//! Every method of the contract, read from its own table: nobody gets in without a key, a device's key opens only
//! what devices may do, and what this version does not serve says so. A new RPC without a rule fails here.
use fleetd::auth::{self, DeviceAccess};
use fleetd_proto::{Method, MethodKind, METHODS};

use crate::support::client::{frame, Client};
use crate::support::wire::Ask;
use crate::support::ADMIN_KEY;
use crate::{Door, DEVICE};

/// Unary methods are asked by every kind of client, streaming ones by those that can.
fn clients(method: &Method) -> Vec<Client> {
    let streams = method.kind != MethodKind::Unary;
    let bidirectional = method.kind == MethodKind::BidiStreaming;
    let fits = |client: &Client| !streams || (client.is_framed() && (!bidirectional || client.is_http2()));
    Client::ALL.into_iter().filter(fits).collect()
}

fn rpc(method: &Method) -> &'static str {
    method.path.trim_start_matches('/').strip_prefix("fleetd.v1.").expect("a method of fleetd.v1")
}

/// A message that names the device, in a form that every request with a `device_id` in field 1 reads.
fn ask(client: Client, method: &Method, key: Option<&str>) -> Ask {
    let names_device = matches!(auth::rule(method.path).map(|rule| rule.devices), Some(DeviceAccess::Own))
        && method.kind == MethodKind::Unary
        && !method.path.contains("Batch");
    // Events go on for as long as the client stays, so they are asked for with a filter that is refused.
    let ends_at_once = method.path.ends_with("/StreamEvents");
    let message = match (names_device, client.is_json()) {
        (false, false) if ends_at_once => crate::support::client::proto::bytes(1, b"(("),
        (true, true) => format!(r#"{{"device_id":"{DEVICE}"}}"#).into_bytes(),
        (true, false) => crate::support::client::proto::bytes(1, DEVICE.as_bytes()),
        (false, true) => b"{}".to_vec(),
        (false, false) => Vec::new(),
    };
    let body = if client.is_framed() { frame(0, &message) } else { message };
    client.call_with_body(rpc(method), key, body)
}

/// Whether the answer is the one for an RPC that this version does not serve.
fn says_not_served(code: &str, message: &str) -> bool {
    code == "UNIMPLEMENTED" && message.contains("does not serve it yet")
}

#[test]
fn every_method_has_a_permission_rule() {
    assert!(METHODS.len() >= 13, "the contract has {} methods", METHODS.len());
    let without: Vec<_> = METHODS.iter().filter(|method| auth::rule(method.path).is_none()).map(rpc).collect();
    assert!(without.is_empty(), "methods that nobody may call: {without:?}");
    for method in METHODS {
        let permission = auth::rule(method.path).map(|rule| rule.permission.as_str());
        assert_eq!(permission, Some(method.permission), "{}: the contract's comment names another", method.path);
    }
}

#[test]
fn no_method_is_served_without_a_key() {
    let door = Door::shared();
    for method in METHODS {
        for client in clients(method) {
            for key in [None, Some("not-a-key-of-this-server")] {
                let outcome = door.outcome(client, &ask(client, method, key));
                let refused = outcome.code == "UNAUTHENTICATED" || says_not_served(&outcome.code, &outcome.message);
                assert!(refused, "{} as {client:?} with {key:?}: {outcome:?}", method.path);
            }
        }
    }
}

#[test]
fn a_devices_key_opens_what_devices_may_do_and_nothing_else() {
    let door = Door::shared();
    for method in METHODS {
        let rule = auth::rule(method.path).expect("checked by another test");
        for client in clients(method) {
            let outcome = door.outcome(client, &ask(client, method, Some(&door.key)));
            if says_not_served(&outcome.code, &outcome.message) {
                continue;
            }
            let denied = outcome.code == "PERMISSION_DENIED";
            assert_eq!(denied, rule.devices == DeviceAccess::Never, "{} as {client:?}: {outcome:?}", method.path);
            if denied {
                assert!(outcome.message.contains(rule.permission.as_str()), "{}: {outcome:?}", method.path);
            }
        }
    }
}

#[test]
fn the_admins_key_opens_every_method_that_is_served() {
    let door = Door::shared();
    for method in METHODS {
        for client in clients(method) {
            let outcome = door.outcome(client, &ask(client, method, Some(ADMIN_KEY)));
            // An empty message may be refused for what it lacks, but not for who sent it, nor by accident.
            let fits = matches!(outcome.code.as_str(), "OK" | "INVALID_ARGUMENT" | "NOT_FOUND")
                || says_not_served(&outcome.code, &outcome.message);
            assert!(fits, "{} as {client:?}: {outcome:?}", method.path);
        }
    }
}

#[test]
fn every_read_is_served_by_get_and_nothing_else_is() {
    let door = Door::shared();
    for method in METHODS.iter().filter(|method| method.kind == MethodKind::Unary) {
        for query in ["", "?connect=v1&encoding=json&message=%7B%7D"] {
            let ask = Ask::get(format!("/fleetd.v1.{}{query}", rpc(method))).header("x-api-key", ADMIN_KEY);
            let reply = crate::support::wire::http1(door.server.http(), &ask);
            assert_eq!(reply.status == 405, !method.no_side_effects, "GET {}{query}: {reply:?}", method.path);
        }
    }
}
