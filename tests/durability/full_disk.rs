//! The disk is full: heartbeats are refused with UNAVAILABLE, what was acknowledged is not lost, and work goes on by
//! itself when there is room again.
use std::time::{Duration, Instant};

use crate::rig::{load, machine, options, Rig};
use crate::support::clickhouse::Engine;
use crate::support::client::{proto, Client};
use crate::support::disk::SmallDisk;
use crate::support::{wait_until, ADMIN_KEY};

/// Heartbeats a second.
const RATE: f64 = 2_000.0;
/// Longer than any step here takes on a loaded machine; reaching it is a failure.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the disk stays full.
const FULL_FOR: Duration = Duration::from_secs(3);

/// Fills the disk again and again, so that what the journal gives back helps nobody, until `done`.
fn keep_full(disk: &mut SmallDisk, mut done: impl FnMut() -> bool) -> bool {
    let started = Instant::now();
    while started.elapsed() < PATIENCE {
        disk.fill();
        if done() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    false
}

fn unavailable(rig: &Rig) -> f64 {
    rig.server.metrics().get("fleetd_heartbeats_total{outcome=\"UNAVAILABLE\"}")
}

/// What a plain HTTP client is told about its heartbeat.
fn probe(rig: &Rig, key: &str) -> crate::support::wire::Reply {
    let ask = Client::Json1.call("DeviceService/Heartbeat", Some(key), br#"{"device_id":"probe"}"#);
    Client::Json1.send(rig.server.http(), &ask)
}

#[test]
fn a_full_disk_under_the_journal_refuses_heartbeats_and_loses_none() {
    let Some(mut disk) = SmallDisk::new(24) else { return };
    let _turn = machine();
    let folder = tempfile::tempdir().expect("a folder");
    let engine = Engine::start(folder.path());
    let mut rig = Rig::with_clickhouse(options().data_dir(disk.path()), engine.address());
    let key = rig.server.register("probe");
    rig.begin(&load(RATE));
    rig.await_acknowledged(4_000, PATIENCE);

    // Full: heartbeats are refused, in words that each kind of client understands.
    let mut refusal = None;
    assert!(
        keep_full(&mut disk, || {
            refusal = Some(probe(&rig, &key)).filter(|reply| reply.status != 200);
            refusal.is_some()
        }),
        "the disk is full and no heartbeat is refused\n{}",
        rig.server.log()
    );
    let refusal = refusal.expect("a refusal");
    assert_eq!((refusal.status, Client::Json1.outcome(&refusal).code.as_str()), (503, "UNAVAILABLE"), "{refusal:?}");
    let retry_after = refusal.header("retry-after").and_then(|seconds| seconds.parse::<u64>().ok());
    assert!(retry_after.is_some_and(|seconds| (1..=60).contains(&seconds)), "{refusal:?}");
    let since = Instant::now();
    assert!(keep_full(&mut disk, || since.elapsed() > FULL_FOR && unavailable(&rig) > 1_000.0), "{}", rig.server.log());
    let outcome = Client::Grpc2.outcome(&Client::Grpc2.send(
        rig.server.http(),
        &Client::Grpc2.call("DeviceService/Heartbeat", Some(&key), &proto::heartbeat("probe")),
    ));
    assert!(["UNAVAILABLE", "OK"].contains(&outcome.code.as_str()), "{outcome:?}");
    assert!(rig.server.metrics().get("fleetd_journal_write_errors_total") > 0.0);

    // Room: everything goes on, and nobody had to do anything.
    disk.empty();
    rig.await_acknowledged(4_000, PATIENCE);
    let report = rig.end();
    assert_eq!(report.rejected.keys().copied().collect::<Vec<_>>(), ["UNAVAILABLE"], "{report:?}");
    // The probe's own heartbeats are not the fleet's.
    rig.statement("ALTER TABLE heartbeats DELETE WHERE device_id = 'probe' SETTINGS mutations_sync = 2");
    let verdict = rig.verify("after the disk was full");
    assert_eq!(verdict.unknown_present, 0, "heartbeats that were refused are there: {verdict:?}");
    rig.await_trimmed("after the disk was full");
}

#[test]
fn a_server_that_is_killed_on_a_full_disk_starts_there_again_and_drains_its_journal() {
    let Some(mut disk) = SmallDisk::new(24) else { return };
    let _turn = machine();
    let folder = tempfile::tempdir().expect("a folder");
    let mut engine = Engine::start(folder.path());
    let mut rig = Rig::with_clickhouse(options().data_dir(disk.path()), engine.address());
    // Without ClickHouse the journal fills the disk by itself.
    engine.sigkill();
    rig.begin(&load(RATE * 4.0));
    assert!(wait_until(PATIENCE, || unavailable(&rig) > 1_000.0), "the disk does not fill\n{}", rig.server.log());
    disk.fill();
    rig.server.sigkill();
    // The fleet tries on: what it is told now must be true as well.
    rig.restart();
    assert!(wait_until(PATIENCE, || unavailable(&rig) > 1_000.0), "a full disk takes heartbeats\n{}", rig.server.log());
    engine.restart();
    // The journal gives its room back as ClickHouse takes the rows. The ballast stays.
    rig.await_acknowledged(4_000, PATIENCE);
    rig.end();
    rig.verify("after a restart on a full disk");
    rig.await_trimmed("after a restart on a full disk");
}

#[test]
fn a_full_disk_under_journal_and_clickhouse_loses_nothing() {
    let Some(mut disk) = SmallDisk::new(96) else { return };
    let _turn = machine();
    let mut rig = Rig::start(options().data_dir(disk.path()));
    rig.begin(&load(RATE));
    rig.await_acknowledged(4_000, PATIENCE);
    let since = Instant::now();
    let was_full = keep_full(&mut disk, || since.elapsed() > FULL_FOR && unavailable(&rig) > 1_000.0);
    assert!(was_full, "the disk is full and no heartbeat is refused\n{}", rig.server.log());
    disk.empty();
    rig.await_acknowledged(4_000, PATIENCE);

    // Once more, and this time the engine dies of it, or is at work when it dies.
    let since = Instant::now();
    assert!(keep_full(&mut disk, || since.elapsed() > FULL_FOR), "the disk stays full");
    rig.server.sigkill_engine();
    disk.empty();
    rig.await_acknowledged(4_000, PATIENCE);
    rig.end();
    rig.verify("after the disk was full twice");
    rig.await_trimmed("after the disk was full twice");
    let registered = rig.server.register("after-it");
    assert!(!registered.is_empty() && ADMIN_KEY != registered);
}
