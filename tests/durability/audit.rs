//! ClickHouse acknowledged rows and lost them afterwards, as it can in a power loss: the journal still has what it has
//! not yet counted, and brings it back. Rows that are there twice are told.
use std::path::PathBuf;
use std::time::Duration;

use crate::rig::{are_forgotten, load, machine, options, segment_files, Rig};
use crate::support::wait_until;

/// Heartbeats a second.
const RATE: f64 = 2_000.0;
/// Longer than any step here takes on a loaded machine; reaching it is a failure.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server whose journal has one segment, of which every record is committed in ClickHouse and none is audited.
fn all_committed_none_audited() -> Rig {
    let mut rig = Rig::start(options().env("FLEETD_JOURNAL_SEGMENT_MB", "64"));
    rig.begin(&load(RATE));
    rig.await_acknowledged(6_000, PATIENCE);
    rig.end();
    let is_committed = wait_until(PATIENCE, || rig.server.metrics().get("fleetd_writer_lag_records") == 0.0);
    assert!(is_committed, "{}", rig.server.log());
    assert_eq!(rig.server.metrics().get("fleetd_writer_audits_total"), 0.0, "{}", rig.server.log());
    rig
}

/// The server is started anew, seals the segment, and counts it before it forgets it.
fn start_and_repair(rig: &mut Rig, story: &str, lost: u64) {
    let segments = segment_files(rig.server.data_dir());
    rig.restart();
    let repaired = || rig.server.metrics().get("fleetd_writer_rows_repaired_total");
    assert!(
        wait_until(PATIENCE, || repaired() == lost as f64),
        "{story}: {} of {lost}\n{}",
        repaired(),
        rig.server.log()
    );
    rig.verify(story);
    assert!(are_forgotten(&segments), "{story}: the segment stays\n{}", rig.server.log());
    rig.verify(story);
    assert_eq!(repaired(), lost as f64, "{story}");
}

#[test]
fn rows_that_are_deleted_before_they_were_audited_are_sent_again() {
    let _turn = machine();
    let mut rig = all_committed_none_audited();
    let lost = rig.number("SELECT count() FROM heartbeats WHERE seq % 3 = 0")
        + rig.number("SELECT count() FROM processes WHERE seq % 5 = 0");
    rig.statement("ALTER TABLE heartbeats DELETE WHERE seq % 3 = 0 SETTINGS mutations_sync = 2");
    rig.statement("ALTER TABLE processes DELETE WHERE seq % 5 = 0 SETTINGS mutations_sync = 2");
    assert!(lost > 0);
    // In order, so that the writer's own note says that all is committed: what it finds, it finds by counting.
    assert_eq!(rig.server.sigterm(), Some(0), "{}", rig.server.log());
    start_and_repair(&mut rig, "after rows were deleted", lost);
}

#[test]
fn a_part_that_a_power_loss_took_is_sent_again_though_clickhouse_knows_its_token() {
    let _turn = machine();
    let mut rig = all_committed_none_audited();
    let newest = |rig: &Rig, table: &str| {
        let sql = format!(
            "SELECT rows, path FROM system.parts WHERE database = 'fleetd' AND table = '{table}' AND active \
             ORDER BY modification_time DESC, max_block_number DESC LIMIT 1"
        );
        let row = crate::support::clickhouse::run(rig.clickhouse(), "fleetd", &sql);
        let (rows, path) = row.split_once('\t').expect("two columns");
        (rows.parse::<u64>().expect("a number"), PathBuf::from(path))
    };
    let (heartbeats, one) = newest(&rig, "heartbeats");
    let (processes, other) = newest(&rig, "processes");
    assert!(heartbeats > 0 && processes > 0);
    // Both die; then the folders of the newest parts are gone, as if they had never reached the disk. ClickHouse's log of
    // tokens is older and is still there, so it believes that it has these inserts.
    rig.server.sigkill();
    for part in [one, other] {
        std::fs::remove_dir_all(&part).unwrap_or_else(|error| panic!("{}: {error}", part.display()));
    }
    start_and_repair(&mut rig, "after parts were lost", heartbeats + processes);
}

#[test]
fn rows_that_are_there_twice_are_told_and_nothing_else_is_touched() {
    let _turn = machine();
    let mut rig = all_committed_none_audited();
    let rows = rig.number("SELECT count() FROM heartbeats");
    rig.statement("INSERT INTO heartbeats SELECT * FROM heartbeats WHERE seq % 100 = 0");
    let doubled = rig.number("SELECT count() FROM heartbeats") - rows;
    assert!(doubled > 0);
    rig.server.sigkill();
    rig.restart();
    let told = || rig.server.metrics().get("fleetd_writer_rows_doubled_total");
    assert!(wait_until(PATIENCE, || told() >= doubled as f64), "{} of {doubled}\n{}", told(), rig.server.log());
    assert_eq!(told(), doubled as f64, "{}", rig.server.log());
    assert_eq!(rig.number("SELECT count() FROM heartbeats"), rows + doubled);
    assert_eq!(rig.server.metrics().get("fleetd_writer_rows_repaired_total"), 0.0);
}
