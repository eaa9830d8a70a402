//! SIGTERM under load, and a second server on the same data directory.
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::rig::{load, machine, options, Rig};
use crate::support::Server;

/// What the command line promises.
const STOPS_WITHIN: Duration = Duration::from_secs(10);
/// Heartbeats a second.
const RATE: f64 = 4_000.0;
/// Longer than any step here takes on a loaded machine; reaching it is a failure.
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn a_stop_under_load_loses_nothing_and_leaves_nothing_to_recover() {
    let _turn = machine();
    let mut rig = Rig::start(options());
    rig.begin(&load(RATE));
    for stop in 1..=4 {
        rig.await_acknowledged(3_000, PATIENCE);
        let asked = Instant::now();
        assert_eq!(rig.server.sigterm(), Some(0), "stop {stop}\n{}", rig.server.log());
        let took = asked.elapsed();
        assert!(took < STOPS_WITHIN, "stop {stop} took {took:?}\n{}", rig.server.log());
        rig.restart();
        // What the journal's recovery says of the run before: complete, closed, nothing cut, nothing damaged.
        let log = rig.server.log();
        let recovery = log.lines().rev().find(|line| line.contains("recovery=Recovery")).expect("a line on recovery");
        for nothing in ["scanned_segments: 0", "torn_bytes: 0", "quarantined_records: 0", "quarantined_bytes: 0"] {
            assert!(recovery.contains(nothing), "stop {stop}: not {nothing}: {recovery}");
        }
        println!("stop {stop} took {took:?}");
    }
    rig.await_acknowledged(1_000, PATIENCE);
    let report = rig.end();
    let verdict = rig.verify("after four stops");
    // A request may cross with the end of a connection that was idle, and then nobody reads it. One that was read is
    // answered before its connection ends.
    assert_eq!(verdict.unknown_present, 0, "heartbeats that were taken got no answer: {verdict:?} {report:?}");
    assert_eq!(rig.server.sigterm(), Some(0), "{}", rig.server.log());
}

#[test]
fn a_stop_while_clickhouse_hangs_is_in_time_and_the_next_start_delivers() {
    let _turn = machine();
    let mut rig = Rig::start(options());
    rig.begin(&load(RATE));
    rig.await_acknowledged(3_000, PATIENCE);
    crate::support::send_signal(rig.server.engine_pid().expect("an engine"), libc::SIGSTOP);
    rig.await_acknowledged(3_000, PATIENCE);
    let asked = Instant::now();
    assert_eq!(rig.server.sigterm(), Some(0), "{}", rig.server.log());
    assert!(asked.elapsed() < STOPS_WITHIN, "the stop took {:?}\n{}", asked.elapsed(), rig.server.log());
    rig.restart();
    rig.await_acknowledged(1_000, PATIENCE);
    rig.end();
    rig.verify("after a stop while clickhouse hung");
}

#[test]
fn a_second_server_on_the_same_data_directory_is_told_who_holds_it() {
    let server = Server::start();
    let second = Command::new(env!("CARGO_BIN_EXE_fleetd"))
        .args(["serve", "--listen", "127.0.0.1:0", "--engine-listen", "127.0.0.1:0", "--data-dir"])
        .arg(server.data_dir())
        .stdin(Stdio::null())
        .output()
        .expect("fleetd starts");
    let error = String::from_utf8_lossy(&second.stderr);
    assert_eq!(second.status.code(), Some(1), "{error}");
    let held = format!("{} is held by fleetd, process {}", server.data_dir().display(), server.pid());
    assert!(error.contains(&held) && error.contains("--data-dir"), "{error}");
    assert!(second.stdout.is_empty(), "{:?}", second.stdout);
    // The first does not even notice.
    server.register("still-there");
}
