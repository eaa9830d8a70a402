//! A builder that died anywhere is followed by one that goes on, and nothing counts twice.
use std::time::Duration;

use fleetd::telemetry::rollup::{Rollup, RollupOptions};
use uuid::Uuid;

use crate::fixture::{Fixture, SOON};

const JOURNAL: Uuid = Uuid::from_u128(1);

#[tokio::test]
async fn a_builder_that_stopped_at_any_moment_is_followed_by_one_that_goes_on() {
    let mut fixture = Fixture::new().await;
    let mut last = 0;
    let mut aborted = 0;
    for round in 0..25 {
        fixture.add(JOURNAL, last + 1, 400).await;
        last += 400;
        let started = fixture.start(JOURNAL);
        // A restarted writer may be behind where its predecessor was.
        started.committed(if round % 3 == 0 { last } else { last - 300 }, 0);
        let millis = fixture.random.below(60);
        let built = tokio::time::timeout(Duration::from_millis(millis), started.handle.build()).await;
        aborted += u32::from(built.is_err());
        started.handle.abort();
    }
    assert!(aborted > 0, "no build was interrupted");
    let started = fixture.start(JOURNAL);
    started.committed(last, last);
    started.build().await;
    assert_eq!(started.covered(Rollup::Hours), last);
    for rollup in [Rollup::Minutes, Rollup::Hours] {
        fixture.assert_exact(rollup, &started.coverage).await;
    }
}

#[tokio::test]
async fn what_an_attempt_left_behind_is_replaced_by_the_next() {
    let mut fixture = Fixture::new().await;
    fixture.add(JOURNAL, 1, 600).await;
    let started = fixture.start(JOURNAL);
    started.committed(600, 0);
    started.build().await;
    started.handle.abort();
    // As if it had died before it could say that it was done: half of the rows are there, some wrong.
    for (table, key) in [("rollup_1m", "metric, time"), ("rollup_1h", "metric, time"), ("device_1h", "device_id, time")]
    {
        let half = format!("ALTER TABLE {table} DELETE WHERE cityHash64({key}) % 2 = 0 SETTINGS mutations_sync = 2");
        fixture.execute(&half).await;
    }
    fixture.execute("ALTER TABLE rollup_1m UPDATE count = count + 1 WHERE count > 1 SETTINGS mutations_sync = 2").await;
    fixture
        .execute("CREATE TABLE kept AS rollup_progress ENGINE = AggregatingMergeTree ORDER BY (journal_id, rollup)")
        .await;
    fixture
        .execute(
            "INSERT INTO kept SELECT journal_id, rollup, 0, planned_seq, 0, toDateTime64(0, 3) FROM rollup_progress",
        )
        .await;
    fixture.execute("EXCHANGE TABLES kept AND rollup_progress").await;

    let started = fixture.start(JOURNAL);
    // Not all of what was planned is there yet: nothing is built, for the range must be the same.
    started.committed(599, 0);
    started.build().await;
    assert_eq!(started.covered(Rollup::Minutes), 0);
    started.committed(600, 0);
    started.build().await;
    assert_eq!(started.covered(Rollup::Hours), 600);
    for rollup in [Rollup::Minutes, Rollup::Hours] {
        fixture.assert_exact(rollup, &started.coverage).await;
    }
    let devices = "SELECT sum(heartbeats) FROM device_1h FINAL";
    let hourly = "SELECT sum(count) FROM rollup_1h FINAL WHERE metric = 'heartbeats'";
    assert_eq!(fixture.number(devices).await, fixture.number(hourly).await);
}

#[tokio::test]
async fn tables_that_are_not_there_yet_are_waited_for() {
    let mut fixture = Fixture::new().await;
    fixture.add(JOURNAL, 1, 100).await;
    fixture.execute("RENAME TABLE rollup_1m TO mislaid").await;
    let options = RollupOptions { every: Duration::from_millis(20), ..RollupOptions::default() };
    let started = fixture.start_with(JOURNAL, options);
    started.committed(100, 0);
    let until = std::time::Instant::now() + SOON;
    let failures = |rollup| started.handle.status().of(rollup).failures;
    while failures(Rollup::Minutes) == 0 || started.covered(Rollup::Latest) < 100 {
        assert!(std::time::Instant::now() < until, "{:?}", started.handle.status());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(started.covered(Rollup::Minutes), 0, "questions still read heartbeats");
    fixture.execute("RENAME TABLE mislaid TO rollup_1m").await;
    while started.covered(Rollup::Minutes) < 100 {
        assert!(std::time::Instant::now() < until, "{:?}", started.handle.status());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    fixture.assert_exact(Rollup::Minutes, &started.coverage).await;
}

/// Its predecessor died when it had written down where minutes begin, and then a day of heartbeats was dropped.
#[tokio::test]
async fn hours_have_the_minutes_of_a_range_that_begins_before_the_first_heartbeat_that_is_left() {
    let mut fixture = Fixture::new().await;
    let first = 50_000_000_000;
    fixture.add(JOURNAL, first + 50, 50).await;
    fixture
        .execute(&format!(
            "INSERT INTO rollup_progress SELECT '{JOURNAL}', 'rollup_1m', {0}, {0}, 0, toDateTime64(0, 3)",
            first - 1
        ))
        .await;
    let started = fixture.start(JOURNAL);
    started.committed(first + 99, first + 99);
    started.build().await;
    assert_eq!(started.covered(Rollup::Hours), first + 99);
    for rollup in [Rollup::Minutes, Rollup::Hours] {
        fixture.assert_exact(rollup, &started.coverage).await;
    }
}

#[tokio::test]
async fn a_journal_that_is_older_than_the_tables_begins_where_its_heartbeats_do() {
    let mut fixture = Fixture::new().await;
    let first = 50_000_000_000;
    fixture.add(JOURNAL, first, 100).await;
    let started = fixture.start(JOURNAL);
    started.committed(first + 99, first + 99);
    started.build().await;
    assert_eq!(started.covered(Rollup::Hours), first + 99);
    let status = started.handle.status();
    assert_eq!(status.of(Rollup::Minutes).ranges, 1, "{status:?}");
    fixture.assert_exact(Rollup::Minutes, &started.coverage).await;
}
