//! The fleet as operators and devices meet it, over real sockets against the real program: editing, searching,
//! commanding, and knowing who is there.
#[path = "../support/mod.rs"]
mod support;

mod commands;
mod cut_off;
mod edit;
mod listing;
mod presence;
mod rows;
mod stream;

use std::time::{Duration, Instant};

use serde_json::{json, Value};
use support::client::Client;
use support::wire::{http1, Reply};
use support::{Server, ADMIN_KEY};

/// Calls an RPC of DeviceService as `curl` would.
fn call(server: &Server, rpc: &str, key: &str, message: &Value) -> Reply {
    send(server, rpc, key, &message.to_string())
}

/// As [`call`], with the message's text as it is.
fn send(server: &Server, rpc: &str, key: &str, message: &str) -> Reply {
    http1(server.http(), &Client::Json1.call(&format!("DeviceService/{rpc}"), Some(key), message.as_bytes()))
}

/// As [`call`] by the admin, for what must succeed.
fn ok(server: &Server, rpc: &str, message: &Value) -> Value {
    let reply = call(server, rpc, ADMIN_KEY, message);
    assert_eq!(reply.status, 200, "{rpc} {message}: {}", reply.text());
    reply.json()
}

/// As [`call`] by the admin, for what must fail: the code, and the message.
fn refused(server: &Server, rpc: &str, message: &Value) -> (String, String) {
    let reply = call(server, rpc, ADMIN_KEY, message);
    assert_ne!(reply.status, 200, "{rpc} {message}: {}", reply.text());
    let error = reply.json();
    (error["code"].as_str().unwrap_or_default().to_owned(), error["message"].as_str().unwrap_or_default().to_owned())
}

/// How soon: a client from hell costs the server next to nothing.
const AT_ONCE: Duration = Duration::from_millis(10);

/// As [`refused`], for a message that the server must not take long to refuse. The quickest of some tries counts, since
/// tests share their machine.
fn refused_at_once(server: &Server, rpc: &str, message: &Value) -> (String, String) {
    const TRIES: usize = 100;
    let text = message.to_string();
    let mut quickest = Duration::MAX;
    for _ in 0..TRIES {
        let asked = Instant::now();
        let reply = send(server, rpc, ADMIN_KEY, &text);
        quickest = quickest.min(asked.elapsed());
        assert_ne!(reply.status, 200, "{rpc}: {}", reply.text());
        if quickest < AT_ONCE {
            let error = reply.json();
            let text = |name: &str| error[name].as_str().unwrap_or_default().to_owned();
            return (text("code"), text("message"));
        }
    }
    panic!("{rpc} took {quickest:?} at best to refuse {:.100}", text);
}

fn heartbeat(server: &Server, id: &str, key: &str) -> Reply {
    call(server, "Heartbeat", key, &json!({ "device_id": id }))
}

fn device(server: &Server, id: &str) -> Value {
    ok(server, "GetDevice", &json!({ "device_id": id }))["device"].clone()
}
