//! ClickHouse answers and takes nothing, for reasons that have nothing to do with the rows: its disk is full, an
//! operator's expression fails. However long that lasts, no row is blamed for it.
use std::time::{Duration, Instant};

use crate::rig::{load, options, waiting_room, Rig};
use crate::support::wait_until;

/// Longer than the writer believes in an error that it does not know (some half a minute for a batch).
const GRUDGE: Duration = Duration::from_secs(45);

/// One heartbeat in five seconds: batches of one row, which cannot be halved to find a culprit.
const RATE: f64 = 0.2;

#[test]
fn rows_are_not_set_aside_for_an_error_that_is_clickhouses_own() {
    let _turn = waiting_room();
    let mut rig = Rig::start(options());
    // A column of an operator's whose expression fails: with a code that says nothing about whose fault it is.
    let broken = "ALTER TABLE heartbeats ADD COLUMN broken UInt8 MATERIALIZED throwIf(1, 'not today')";
    rig.statement(broken);
    rig.begin(&load(RATE));
    let since = Instant::now();
    assert!(
        wait_until(GRUDGE, || rig.server.metrics().get("fleetd_writer_retries_total") > 3.0),
        "{}",
        rig.server.log()
    );
    while since.elapsed() < GRUDGE {
        let set_aside = rig.server.metrics().get("fleetd_writer_rows_set_aside_total");
        assert_eq!(set_aside, 0.0, "after {:?}\n{}", since.elapsed(), rig.server.log());
        std::thread::sleep(Duration::from_secs(1));
    }
    rig.statement("ALTER TABLE heartbeats DROP COLUMN broken");
    rig.end();
    rig.verify("clickhouse failed for a while");
}
