//! Questions to the telemetry, as analysts ask them: over real sockets, of the real program, compared with what plain loops
//! over the same heartbeats give.
#[path = "../support/mod.rs"]
mod support;

mod health;
mod injection;
mod limits;
mod live;
mod metrics;
mod naive;
mod names;
mod online;
mod reference;
mod rollups;
mod slow;
mod world;

use serde_json::Value;
use support::client::Client;
use support::wire::{http1, Reply};
use support::{Options, Server, ADMIN_KEY};

pub fn server() -> Server {
    Server::with(Options::default().unlimited())
}

/// Calls an RPC as `curl` would.
pub fn post(server: &Server, rpc: &str, key: Option<&str>, message: &str) -> Reply {
    http1(server.http(), &Client::Json1.call(rpc, key, message.as_bytes()))
}

/// Asks for metrics as the admin: the answer, or the code and the message.
pub fn ask(server: &Server, question: &Value) -> Result<Value, (String, String)> {
    let reply = post(server, "AnalyticsService/GetMetrics", Some(ADMIN_KEY), &question.to_string());
    let answer = reply.json();
    if reply.status == 200 {
        return Ok(answer);
    }
    let text = |name: &str| answer[name].as_str().unwrap_or_default().to_owned();
    Err((text("code"), text("message")))
}

/// As [`ask`], for what must be answered.
pub fn answer(server: &Server, question: &Value) -> Value {
    ask(server, question).unwrap_or_else(|error| panic!("{question}: {error:?}\n{}", server.log()))
}

/// As [`ask`], for what must not be.
pub fn refused(server: &Server, question: &Value) -> (String, String) {
    match ask(server, question) {
        Ok(answer) => panic!("{question} is answered: {answer}"),
        Err(error) => error,
    }
}

/// A moment as JSON has it.
pub fn time(millis: i64) -> String {
    fleetd_proto::Timestamp::from_unix_millis(millis).to_string()
}
