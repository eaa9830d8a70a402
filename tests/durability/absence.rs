//! ClickHouse is taken away for half a minute under load: heartbeats are acknowledged as if nothing had happened, the
//! backlog is on the disk and not in memory, and it is brought in when ClickHouse is back.
use std::time::{Duration, Instant};

use fleetd::telemetry::writer::MAX_BATCH_BYTES;
use fleetd_loadtest::{Extras, Load};

use crate::rig::{load, options, waiting_room, Rig, CATCH_UP};
use crate::support::clickhouse::Engine;
use crate::support::wire::{http1, Ask};
use crate::support::{send_signal, wait_until};

/// How long ClickHouse is away.
const ABSENCE: Duration = Duration::from_secs(30);

/// Longer than the writer waits for an insert (30 s), so that it gives up one whose outcome it then has to ask for.
const FREEZE: Duration = Duration::from_secs(33);

/// How long a start may take that waits for ClickHouse in vain: far less than a time-out of a query.
const STARTS_WITHIN: Duration = Duration::from_secs(10);

/// What the command line promises.
const STOPS_WITHIN: Duration = Duration::from_secs(10);

/// Heartbeats a second.
const RATE: f64 = 6_000.0;

/// What the server may grow by while it holds a backlog of more than that: two batches on their way, each as rows and as
/// the block made of them, and some for the reads of an audit and for what an allocator keeps.
const GROWTH_ALLOWED: u64 = 2 * 2 * MAX_BATCH_BYTES as u64 + (96 << 20);

/// The journal has to grow by this much, or the bound above would say nothing.
const BACKLOG_AT_LEAST: f64 = (GROWTH_ALLOWED + (16 << 20)) as f64;

/// Heartbeats with many processes and metrics, some 2 KB each: a large backlog from few requests.
fn heavy_load() -> Load {
    Load { extras: Extras { processes: 8, metrics: 64, all_readings: false }, ..load(RATE) }
}

#[test]
fn heartbeats_go_on_while_clickhouse_is_dead_for_half_a_minute() {
    let _turn = waiting_room();
    let folder = tempfile::tempdir().expect("a folder");
    let mut engine = Engine::start(folder.path());
    let mut rig = Rig::with_clickhouse(options(), engine.address());
    let grown = without_clickhouse(&mut rig, ABSENCE, || engine.sigkill());
    engine.restart();
    back_again(&mut rig, "clickhouse was dead", grown);
}

#[test]
fn heartbeats_go_on_while_clickhouse_accepts_connections_and_does_not_answer() {
    let _turn = waiting_room();
    let mut rig = Rig::start(options());
    let engine = rig.server.engine_pid().expect("an engine");
    let grown = without_clickhouse(&mut rig, FREEZE, || send_signal(engine, libc::SIGSTOP));
    send_signal(engine, libc::SIGCONT);
    back_again(&mut rig, "clickhouse hung", grown);
}

#[test]
fn a_journal_at_its_limit_refuses_heartbeats_until_clickhouse_is_back() {
    let _turn = waiting_room();
    let folder = tempfile::tempdir().expect("a folder");
    let mut engine = Engine::start(folder.path());
    let mut rig = Rig::with_clickhouse(options().flag("--journal-capacity-mb", "4"), engine.address());
    engine.sigkill();
    rig.begin(&load(1_000.0));
    let refused = || rig.server.metrics().get("fleetd_journal_full_rejections_total");
    assert!(wait_until(CATCH_UP, || refused() > 500.0), "the journal is not full\n{}", rig.server.log());
    let ready = http1(rig.server.http(), &Ask::get("/readyz"));
    assert!(ready.status == 503 && ready.text().contains("the journal holds"), "{ready:?}");
    assert_eq!(http1(rig.server.http(), &Ask::get("/healthz")).status, 200);
    let size = rig.server.metrics().get("fleetd_journal_size_bytes");
    assert!(size <= (4 << 20) as f64, "the journal holds {size} bytes");
    engine.restart();
    rig.await_acknowledged(3_000, CATCH_UP);
    let report = rig.end();
    assert_eq!(report.rejected.keys().copied().collect::<Vec<_>>(), ["UNAVAILABLE"], "{report:?}");
    let verdict = rig.verify("after the journal was full");
    assert_eq!(verdict.unknown_present, 0, "heartbeats that were refused are there: {verdict:?}");
    assert_eq!(http1(rig.server.http(), &Ask::get("/readyz")).status, 200);
}

#[test]
fn a_server_starts_and_stops_in_time_while_clickhouse_hangs() {
    let _turn = waiting_room();
    let folder = tempfile::tempdir().expect("a folder");
    let engine = Engine::start(folder.path());
    engine.signal(libc::SIGSTOP);
    let began = Instant::now();
    let mut rig = Rig::with_clickhouse(options(), engine.address());
    assert!(began.elapsed() < STARTS_WITHIN, "ready after {:?}\n{}", began.elapsed(), rig.server.log());
    rig.begin(&load(1_000.0));
    rig.await_acknowledged(2_000, CATCH_UP);
    // Told to stop before it is ready, and after.
    rig.server.sigkill();
    rig.begin_restart();
    std::thread::sleep(Duration::from_millis(500));
    let asked = Instant::now();
    assert_eq!(rig.server.sigterm(), Some(0), "{}", rig.server.log());
    assert!(asked.elapsed() < STOPS_WITHIN, "stopped after {:?}\n{}", asked.elapsed(), rig.server.log());
    rig.restart();
    rig.await_acknowledged(2_000, CATCH_UP);
    let asked = Instant::now();
    assert_eq!(rig.server.sigterm(), Some(0), "{}", rig.server.log());
    assert!(asked.elapsed() < STOPS_WITHIN, "stopped after {:?}\n{}", asked.elapsed(), rig.server.log());
    rig.restart();
    engine.signal(libc::SIGCONT);
    rig.await_acknowledged(2_000, CATCH_UP);
    // Only now are the tables made, and before that there is nothing to be asked.
    let is_back = wait_until(CATCH_UP, || rig.server.metrics().get("fleetd_writer_batches_total") >= 1.0);
    assert!(is_back, "no batches\n{}", rig.server.log());
    rig.end();
    rig.verify("after starts while clickhouse hung");
}

/// Takes ClickHouse away under load; gives the most that the server grew by meanwhile, in bytes.
fn without_clickhouse(rig: &mut Rig, absence: Duration, take_away: impl FnOnce()) -> u64 {
    rig.begin(&heavy_load());
    // Warm: each device has its actor, and batches go in.
    let is_warm = wait_until(CATCH_UP, || rig.server.metrics().get("fleetd_writer_batches_total") >= 3.0);
    assert!(is_warm, "no batches\n{}", rig.server.log());
    let before = rig.server.resident_bytes();
    take_away();
    let gone = Instant::now();
    let mut most = before;
    let mut acknowledged = rig.progress().acknowledged;
    while gone.elapsed() < absence {
        // Every second brings nearly a second's heartbeats: the fleet does not notice.
        std::thread::sleep(Duration::from_secs(1));
        let now = rig.progress().acknowledged;
        let came = now - acknowledged;
        assert!(came as f64 > RATE / 4.0, "{came} heartbeats in the second {:?}\n{}", gone.elapsed(), rig.server.log());
        acknowledged = now;
        most = most.max(rig.server.resident_bytes());
    }
    let backlog = rig.server.metrics().get("fleetd_journal_size_bytes");
    println!("the journal holds {} MiB", backlog / 1048576.0);
    assert!(backlog > BACKLOG_AT_LEAST, "the journal holds {} MiB only", backlog / 1048576.0);
    most - before
}

/// After ClickHouse is back: everything comes in while the load goes on, and nothing was refused at any time.
fn back_again(rig: &mut Rig, story: &str, mut grown: u64) {
    let before = rig.server.resident_bytes();
    let back = Instant::now();
    // The load goes on, so a second's heartbeats are always on their way.
    let caught_up = wait_until(CATCH_UP, || {
        grown = grown.max(rig.server.resident_bytes().saturating_sub(before));
        rig.server.metrics().get("fleetd_writer_lag_records") < 3.0 * RATE
    });
    assert!(caught_up, "{story}: not caught up after {CATCH_UP:?}\n{}", rig.server.log());
    let took = back.elapsed();
    let report = rig.end();
    assert!(report.rejected.is_empty() && report.errors == 0, "{story}: heartbeats were refused: {report:?}");
    let verdict = rig.verify(story);
    rig.await_trimmed(story);
    println!("{story}: grew by {} MiB, caught up in {took:?}, {report:?}, {verdict:?}", grown >> 20);
    assert!(grown < GROWTH_ALLOWED, "{story}: the server grew by {} MiB", grown >> 20);
}
