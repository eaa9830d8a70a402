//! The audit: whatever differs from its heartbeats is found, and built again in place.
use std::time::Duration;

use fleetd::clock::UnixMillis;
use fleetd::telemetry::rollup::{AuditReport, AuditSpan, Rollup, RollupOptions};
use fleetd::telemetry::schema::Retention;
use uuid::Uuid;

use crate::fixture::{Fixture, Started, DAY, HOUR, SOON};

const JOURNAL: Uuid = Uuid::from_u128(1);

async fn audit(started: &Started, span: AuditSpan) -> AuditReport {
    tokio::time::timeout(SOON, started.handle.audit(span)).await.expect("in time").expect("audited")
}

const ALL: AuditSpan = AuditSpan::Seqs { first: 0, last: u64::MAX };

/// Three ranges of minutes in one of hours, which the writer has not counted yet.
async fn built() -> (Fixture, Started) {
    let mut fixture = Fixture::new().await;
    let started = fixture.start(JOURNAL);
    for first in [1, 301, 601] {
        fixture.add(JOURNAL, first, 300).await;
        started.committed(first + 299, 0);
        started.build().await;
    }
    (fixture, started)
}

async fn assert_whole(fixture: &Fixture, started: &Started) {
    for rollup in [Rollup::Minutes, Rollup::Hours] {
        fixture.assert_exact(rollup, &started.coverage).await;
    }
    let devices = fixture.number("SELECT sum(heartbeats) FROM device_1h FINAL").await;
    let hourly = fixture.number("SELECT sum(count) FROM rollup_1h FINAL WHERE metric = 'heartbeats'").await;
    assert_eq!(devices, hourly);
}

#[tokio::test]
async fn what_is_right_is_left_as_it_is() {
    let (fixture, started) = built().await;
    started.committed(900, 900);
    let report = audit(&started, ALL).await;
    assert_eq!((report.repaired, report.unrepaired, report.expired), (0, 0, 0), "{report:?}");
    assert!(report.compared >= 3 + 3 + 3, "{report:?}");
    for table in ["rollup_1m", "rollup_1h", "device_1h"] {
        assert_eq!(fixture.number(&format!("SELECT max(generation) FROM {table}")).await, 0, "{table}");
    }
}

#[tokio::test]
async fn damage_of_any_kind_is_found_and_mended_in_place() {
    let (fixture, started) = built().await;
    started.committed(900, 900);
    let bogus =
        "INSERT INTO rollup_1m (metric, device_type, version, time, journal_id, from_seq, through_seq, generation, \
         received_at, count, sum, min, max, last, last_at, last_seq, sketch) SELECT";
    for (damage, least) in [
        // A group, a range, everything.
        (
            "ALTER TABLE rollup_1m DELETE WHERE from_seq = 301 AND metric = 'cpu_usage' AND version = '1.0'".to_owned(),
            1,
        ),
        ("ALTER TABLE rollup_1m DELETE WHERE from_seq = 301".into(), 1),
        ("ALTER TABLE rollup_1m DELETE WHERE 1".into(), 1),
        ("ALTER TABLE rollup_1h DELETE WHERE metric = 'heartbeats'".into(), 1),
        ("ALTER TABLE rollup_1h DELETE WHERE 1".into(), 1),
        ("ALTER TABLE device_1h DELETE WHERE device_id = 'device-7'".into(), 1),
        ("ALTER TABLE device_1h DELETE WHERE 1".into(), 1),
        ("ALTER TABLE device_latest DELETE WHERE device_id = 'device-7'".into(), 1),
        // Each number alone.
        ("ALTER TABLE rollup_1m UPDATE count = count + 1 WHERE from_seq = 601 AND metric = 'heartbeats'".into(), 1),
        ("ALTER TABLE rollup_1m UPDATE sum = sum * 1.0001 WHERE metric = 'cpu_usage' AND from_seq = 1".into(), 1),
        ("ALTER TABLE rollup_1m UPDATE last = last + 1 WHERE metric = 'uptime_seconds' AND from_seq = 1".into(), 1),
        ("ALTER TABLE rollup_1m UPDATE last_seq = last_seq - 1 WHERE metric = 'cpu_usage' AND from_seq = 1".into(), 1),
        ("ALTER TABLE rollup_1h UPDATE max = max + 1 WHERE metric = 'metrics.queue_depth'".into(), 1),
        ("ALTER TABLE device_1h UPDATE heartbeats = heartbeats + 1 WHERE device_id = 'device-3'".into(), 1),
        // A group that no heartbeat has, which cannot be replaced by one that is right.
        (
            format!(
                "{bogus} 'metrics.bogus', device_type, version, time, journal_id, from_seq, through_seq, generation, \
                 received_at, count, sum, min, max, last, last_at, last_seq, sketch FROM rollup_1m FINAL \
                 WHERE metric = 'cpu_usage' AND from_seq = 301 AND count > 0"
            ),
            1,
        ),
        // Sketches of other values.
        (
            format!(
                "{bogus} metric, device_type, version, time, journal_id, from_seq, through_seq, generation + 1, \
                 received_at, count, sum, min, max, last, last_at, last_seq, \
                 arrayReduce('quantilesDDState(0.01, 0.5, 0.9, 0.95, 0.99)', [toFloat64(1e6)]) FROM rollup_1m FINAL \
                 WHERE metric = 'cpu_usage' AND from_seq = 601 AND count > 0"
            ),
            1,
        ),
    ] {
        let sql = if damage.starts_with("ALTER") { format!("{damage} SETTINGS mutations_sync = 2") } else { damage };
        fixture.execute(&sql).await;
        let report = audit(&started, ALL).await;
        assert!(report.repaired >= least && report.unrepaired == 0, "{sql}: {report:?}");
        println!("mended: {sql}");
        assert_whole(&fixture, &started).await;
        let again = audit(&started, ALL).await;
        assert_eq!((again.repaired, again.unrepaired), (0, 0), "{sql}: {again:?}");
    }
    assert_eq!(fixture.number("SELECT uniqExact(device_id) FROM device_latest").await, 40);
    // A part of an hour is asked for, and another part of it is lost: its hour must not be merged from what is left.
    fixture.execute("ALTER TABLE rollup_1m DELETE WHERE from_seq > 1 SETTINGS mutations_sync = 2").await;
    fixture.execute("ALTER TABLE rollup_1h DELETE WHERE from_seq > 301 SETTINGS mutations_sync = 2").await;
    for span in [AuditSpan::Seqs { first: 310, last: 320 }, AuditSpan::Seqs { first: 700, last: 700 }, ALL] {
        let report = audit(&started, span).await;
        assert_eq!(report.unrepaired, 0, "{report:?}");
    }
    assert_whole(&fixture, &started).await;
    let status = started.handle.status();
    assert!(status.of(Rollup::Minutes).repairs > 5 && status.of(Rollup::DeviceHours).repairs >= 3, "{status:?}");
}

#[tokio::test]
async fn rows_that_the_writer_sends_again_reach_every_table_once_it_has_counted_them() {
    let mut fixture = Fixture::new().await;
    let started = fixture.start(JOURNAL);
    let beats = fixture.make_up(JOURNAL, 1, 600);
    // ClickHouse acknowledged all and lost some: in the middle of a range, at its ends, and a whole one.
    let lost = |seq: u64| seq.is_multiple_of(7) || seq == 1 || (200..=400).contains(&seq);
    let (missing, there): (Vec<_>, Vec<_>) = beats.into_iter().partition(|beat| lost(beat.seq));
    fixture.store(&there).await;
    for committed in [199, 400, 600] {
        started.committed(committed, 0);
        started.build().await;
    }
    fixture.assert_exact(Rollup::Minutes, &started.coverage).await;

    fixture.store(&missing).await;
    started.committed(600, 199);
    started.build().await;
    let status = started.handle.status();
    let minutes = status.of(Rollup::Minutes);
    assert_eq!((minutes.audited_seq, minutes.repairs), (199, 1), "only what was counted: {status:?}");
    started.committed(600, 600);
    started.build().await;
    let status = started.handle.status();
    assert_eq!(status.of(Rollup::Minutes).repairs, 3, "{status:?}");
    assert_eq!(Rollup::ALL[..3].iter().map(|one| status.of(*one).audited_seq).collect::<Vec<_>>(), [600; 3]);
    assert_whole(&fixture, &started).await;
    let latest = fixture.number("SELECT max(toUnixTimestamp64Milli(received_at)) FROM device_latest").await;
    assert_eq!(Some(latest as i64), fixture.beats.iter().map(|beat| beat.received_at).max());

    // Once audited, a range is not read again, neither by this builder nor by the next.
    started.build().await;
    assert_eq!(started.handle.status().of(Rollup::Minutes).audits, status.of(Rollup::Minutes).audits);
    started.handle.abort();
    let next = fixture.start(JOURNAL);
    next.committed(600, 600);
    next.build().await;
    assert_eq!(next.handle.status().of(Rollup::Minutes).audits, 0);
}

#[tokio::test]
async fn a_range_whose_heartbeats_may_be_dropped_by_now_is_never_built_again() {
    let mut fixture = Fixture::new().await;
    let retention = Retention { heartbeats: Some(Duration::from_secs(5 * 86_400)), ..Retention::default() };
    let options = RollupOptions { every: SOON * 60, retention };
    let started = fixture.start_with(JOURNAL, options);
    let mut beats = fixture.make_up(JOURNAL, 1, 900);
    for beat in &mut beats {
        // A range of the fifth day, one over its end, and one that is young.
        let age = match beat.seq {
            1..=300 => 6 * DAY,
            301..=450 => 5 * DAY,
            451..=600 => 4 * DAY,
            _ => 0,
        };
        beat.received_at -= age;
        beat.timestamp -= age;
    }
    fixture.store(&beats).await;
    for committed in [300, 600, 900] {
        started.committed(committed, 0);
        started.build().await;
    }
    // As the retention does it: a part at a time.
    fixture.execute("ALTER TABLE heartbeats DELETE WHERE seq <= 450 SETTINGS mutations_sync = 2").await;
    started.committed(900, 900);
    for span in [ALL, AuditSpan::Seqs { first: 350, last: 360 }] {
        let report = audit(&started, span).await;
        assert_eq!((report.repaired, report.unrepaired), (0, 0), "{report:?}");
        assert!(report.expired >= 1, "{report:?}");
    }
    started.build().await;
    let status = started.handle.status();
    assert_eq!((status.of(Rollup::Minutes).repairs, status.of(Rollup::Minutes).audited_seq), (0, 900), "{status:?}");
    fixture.assert_exact(Rollup::Minutes, &started.coverage).await;
    fixture.assert_exact(Rollup::Hours, &started.coverage).await;
}

#[tokio::test]
async fn a_span_of_time_is_audited_by_the_ranges_that_have_it() {
    let (fixture, started) = built().await;
    started.committed(900, 900);
    fixture.execute("ALTER TABLE rollup_1m DELETE WHERE 1 SETTINGS mutations_sync = 2").await;
    let at = UnixMillis::from_millis_clamped;
    let nothing = audit(&started, AuditSpan::Time { from: at(0), until: at(1_000) }).await;
    assert_eq!(nothing, AuditReport::default());
    let report =
        audit(&started, AuditSpan::Time { from: at(fixture.now - 40 * DAY), until: at(fixture.now + HOUR) }).await;
    assert!(report.repaired > 0 && report.unrepaired == 0, "{report:?}");
    let of_time = "SELECT count() FROM rollup_1m FINAL WHERE metric = 'heartbeats'";
    assert!(fixture.number(of_time).await > 0);
}
