//! A server that stops, is killed, or loses its engine comes back with what it knew, under the same keys.
mod support;

use std::time::Duration;

use support::client::Client;
use support::{wait_until, Options, Server};

const ENGINE_BACK_WITHIN: Duration = Duration::from_secs(20);

fn heartbeat_is_taken(server: &Server, key: &str) -> bool {
    let client = Client::Json1;
    let ask = client.call("DeviceService/Heartbeat", Some(key), br#"{"device_id":"rpi-001"}"#);
    client.outcome(&client.send(server.http(), &ask)).code == "OK"
}

#[test]
fn a_device_keeps_its_key_over_a_kill_and_a_stop() {
    let mut server = Server::with(Options::default().unlimited());
    let key = server.register("rpi-001");
    assert!(heartbeat_is_taken(&server, &key));
    server.sigkill();
    server.restart();
    assert!(heartbeat_is_taken(&server, &key), "after kill -9; the log:\n{}", server.log());
    assert_eq!(server.sigterm(), Some(0), "exit status after SIGTERM; the log:\n{}", server.log());
    server.restart();
    assert!(heartbeat_is_taken(&server, &key), "after a stop; the log:\n{}", server.log());
}

#[test]
fn heartbeats_are_taken_while_the_engine_is_gone_and_it_comes_back() {
    let server = Server::with(Options::default().unlimited());
    let key = server.register("rpi-001");
    let killed = server.sigkill_engine();
    for _ in 0..50 {
        assert!(heartbeat_is_taken(&server, &key), "the log:\n{}", server.log());
    }
    let is_back = wait_until(ENGINE_BACK_WITHIN, || server.engine_pid().is_some_and(|engine| engine != killed));
    assert!(is_back, "no new engine; the log:\n{}", server.log());
}

#[test]
fn a_killed_server_leaves_no_engine_behind() {
    let mut server = Server::start();
    let engine = server.engine_pid().expect("an engine");
    server.sigkill();
    let is_gone = wait_until(Duration::from_secs(10), || !std::path::Path::new(&format!("/proc/{engine}")).exists());
    assert!(is_gone, "process {engine} still runs");
}
