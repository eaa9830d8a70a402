//! What the tables say is what plain arithmetic says of the same heartbeats.
use fleetd::telemetry::rollup::Rollup;
use uuid::Uuid;

use crate::fixture::{device_id, Fixture};

const JOURNAL: Uuid = Uuid::from_u128(1);

#[tokio::test]
async fn minutes_and_hours_equal_their_heartbeats_range_by_range() {
    let mut fixture = Fixture::new().await;
    let started = fixture.start(JOURNAL);
    let mut last = 0;
    // One alone, a few, many; each is a range of its own, and minutes are in several.
    for count in [1, 2, 700, 40, 1_500] {
        fixture.add(JOURNAL, last + 1, count).await;
        last += count;
        started.committed(last, 0);
        started.build().await;
        assert_eq!(Rollup::ALL.map(|rollup| started.covered(rollup)), [last; 4]);
        fixture.assert_exact(Rollup::Minutes, &started.coverage).await;
        fixture.assert_exact(Rollup::Hours, &started.coverage).await;
    }
    let ranges = fixture.number("SELECT uniqExact(from_seq, through_seq) FROM rollup_1m").await;
    assert_eq!(ranges, 5);
}

#[tokio::test]
async fn nothing_counts_before_the_writer_has_brought_it() {
    let mut fixture = Fixture::new().await;
    let started = fixture.start(JOURNAL);
    fixture.add(JOURNAL, 1, 500).await;
    started.committed(200, 0);
    started.build().await;
    assert_eq!(started.covered(Rollup::Minutes), 200);
    fixture.assert_exact(Rollup::Minutes, &started.coverage).await;
    started.build().await;
    assert_eq!(started.handle.status().of(Rollup::Minutes).ranges, 1, "nothing new, nothing built");
}

#[tokio::test]
async fn heartbeats_of_another_journal_are_built_by_their_own_server_and_read_by_all() {
    let mut fixture = Fixture::new().await;
    let (one, two) = (fixture.start(Uuid::from_u128(1)), fixture.start(Uuid::from_u128(2)));
    fixture.add(one.journal, 1, 300).await;
    fixture.add(two.journal, 1, 400).await;
    one.committed(300, 0);
    two.committed(350, 0);
    one.build().await;
    assert_eq!(one.coverage.of(Rollup::Minutes), [(one.journal, 300)]);
    two.build().await;
    one.build().await;
    assert_eq!(one.coverage.of(Rollup::Minutes), [(one.journal, 300), (two.journal, 350)]);
    for rollup in [Rollup::Minutes, Rollup::Hours] {
        fixture.assert_exact(rollup, &one.coverage).await;
        fixture.assert_exact(rollup, &two.coverage).await;
    }
}

#[tokio::test]
async fn an_hour_of_a_device_equals_its_heartbeats() {
    let mut fixture = Fixture::new().await;
    let started = fixture.start(JOURNAL);
    for (first, count) in [(1, 900), (901, 600)] {
        fixture.add(JOURNAL, first, count).await;
        started.committed(first + count - 1, 0);
        started.build().await;
    }
    // Merged by device and hour, so that it does not matter how heartbeats fell into ranges.
    let computed = "SELECT device_id, time, sum(heartbeats) AS beats, sum(cpu_usage.count) AS n, \
         round(sum(cpu_usage.sum), 6) AS total, minIf(cpu_usage.min, cpu_usage.count > 0) AS least, \
         maxIf(cpu_usage.max, cpu_usage.count > 0) AS most, \
         argMaxIf(cpu_usage.last, (cpu_usage.last_at, cpu_usage.last_seq), cpu_usage.count > 0) AS final, \
         sum(memory_usage.count) AS shares, round(sum(memory_usage.sum), 6) AS share, min(first_at) AS since, \
         max(last_at) AS until FROM device_1h FINAL GROUP BY device_id, time";
    let raw = "SELECT device_id, toStartOfHour(timestamp) AS time, count() AS beats, count(cpu_percent) AS n, \
         round(ifNull(sum(cpu_percent), 0), 6) AS total, ifNull(min(cpu_percent), 0) AS least, \
         ifNull(max(cpu_percent), 0) AS most, \
         ifNull(argMaxIf(cpu_percent, (timestamp, seq), cpu_percent IS NOT NULL), 0) AS final, \
         countIf(memory_total_mb > 0 AND memory_used_mb IS NOT NULL) AS shares, \
         round(ifNull(sumIf(100 * memory_used_mb / memory_total_mb, memory_total_mb > 0), 0), 6) AS share, \
         min(timestamp) AS since, max(timestamp) AS until FROM heartbeats \
         WHERE timestamp >= received_at - INTERVAL 31 DAY AND timestamp <= received_at + INTERVAL 1 DAY \
         GROUP BY device_id, toStartOfHour(timestamp)";
    assert!(fixture.number(&format!("SELECT count() FROM ({raw})")).await > 40);
    for (left, right) in [(computed, raw), (raw, computed)] {
        let differing = fixture.number(&format!("SELECT count() FROM (({left}) EXCEPT ({right}))")).await;
        assert_eq!(differing, 0, "{left}\nEXCEPT\n{right}");
    }
}

#[tokio::test]
async fn the_latest_of_a_device_is_what_was_received_last_whatever_its_clock_says() {
    let mut fixture = Fixture::new().await;
    let started = fixture.start(JOURNAL);
    let mut last = 0;
    for count in [300, 1, 200] {
        fixture.add(JOURNAL, last + 1, count).await;
        last += count;
        started.committed(last, 0);
        started.build().await;
    }
    // A row too late to be the latest: a device reports through two servers whose clocks differ.
    let mut late = fixture.make_up(JOURNAL, last + 1, 1);
    late[0].received_at -= 1;
    let (device, latest) = (late[0].device, late[0].received_at);
    fixture.store(&late).await;
    started.committed(last + 1, 0);
    started.build().await;
    let is_latest = fixture.beats.iter().filter(|beat| beat.device == device && beat.received_at > latest).count();
    assert!(is_latest > 0);

    for device in 0..40 {
        let of = fixture.beats.iter().filter(|beat| beat.device == device);
        let Some(wanted) = of.max_by_key(|beat| (beat.received_at, beat.seq)) else { continue };
        let id = device_id(device);
        let found = |column: &str| format!("SELECT {column} FROM device_latest FINAL WHERE device_id = '{id}'");
        assert_eq!(fixture.number(&found("toUnixTimestamp64Milli(received_at)")).await, wanted.received_at as u64);
        assert_eq!(fixture.number(&found("uptime_seconds")).await, wanted.uptime);
        let cpu = fixture.number(&found("ifNull(round(cpu_usage * 1000), 7)")).await;
        assert_eq!(cpu, wanted.cpu.map_or(7, |cpu| (cpu * 1_000.0).round() as u64));
        assert_eq!(fixture.number(&found(&format!("device_type = '{}'", wanted.device_type))).await, 1);
    }
}

#[tokio::test]
async fn a_reading_that_is_no_number_is_no_measurement() {
    let mut fixture = Fixture::new().await;
    let started = fixture.start(JOURNAL);
    fixture.add(JOURNAL, 1, 10).await;
    // A row that came by another way than the server, which takes none of these.
    fixture
        .execute(
            "INSERT INTO heartbeats (journal_id, seq, received_at, timestamp, device_id, version, cpu_percent, metrics) \
             SELECT toUUID('00000000-0000-0000-0000-000000000001'), 11 + number, now64(3), now64(3), 'odd', '1.0', \
             [nan, inf, -inf][1 + number], map('odd', [nan, inf, -inf][1 + number]) FROM numbers(3)",
        )
        .await;
    started.committed(13, 0);
    started.build().await;
    let of_odd = "SELECT count() FROM rollup_1m FINAL WHERE NOT isFinite(sum) OR metric = 'metrics.odd'";
    assert_eq!(fixture.number(of_odd).await, 0);
    let heartbeats = "SELECT sum(count) FROM rollup_1m FINAL WHERE metric = 'heartbeats' AND time > now() - 300";
    assert!(fixture.number(heartbeats).await >= 3);
}
