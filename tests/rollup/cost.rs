//! What computed tables cost, by ranges and by materialized views: not a promise but a measurement, printed by
//! `cargo test --test rollup -- --ignored --nocapture cost`. See docs/decisions/0010.
use std::time::{Duration, Instant};

use fleetd::telemetry::metric::{gauges, sketched};
use uuid::Uuid;

use crate::fixture::{start_engine, Fixture};

const JOURNAL: Uuid = Uuid::from_u128(1);
/// As the writer's full batch.
const BATCH: u64 = 200_000;
const BATCHES: u64 = 25;
/// A pass of the builder comes after so many batches: a minute of a million devices.
const BATCHES_A_PASS: u64 = 5;

#[tokio::test]
#[ignore = "a measurement of minutes, for a machine that does nothing else"]
async fn cost_of_views_and_of_ranges() {
    for merges_are_held_off in [true, false] {
        measure(merges_are_held_off).await;
    }
}

/// With merges, it tells how much a pass reads that it does not need; without, what a statement costs by itself.
async fn measure(merges_are_held_off: bool) {
    let folder = tempfile::tempdir().expect("a folder");
    let engine = start_engine(folder.path()).await;
    let (plain, viewed) = (Fixture::on(&engine.url()).await, Fixture::on(&engine.url()).await);
    for view in views() {
        viewed.execute(&view).await;
    }
    let started = plain.start(JOURNAL);
    if merges_are_held_off {
        plain.execute("SYSTEM STOP MERGES").await;
    }
    let cpu = "SELECT sum(value) FROM system.events WHERE event = 'OSCPUVirtualTimeMicroseconds'";
    let mut times = [0; 3];
    let (mut worst_build, mut read) = (Duration::ZERO, 0);
    for batch in 0..BATCHES {
        for (place, fixture) in [&plain, &viewed].into_iter().enumerate() {
            fixture.execute("DROP TABLE IF EXISTS source").await;
            fixture.execute("CREATE TABLE source AS heartbeats ENGINE = Memory").await;
            fixture.execute(&rows(batch)).await;
            let before = plain.number(cpu).await;
            fixture
                .execute("INSERT INTO heartbeats SELECT * FROM source SETTINGS max_threads = 1, insert_deduplicate = 0")
                .await;
            times[place] += plain.number(cpu).await - before;
        }
        if (batch + 1).is_multiple_of(BATCHES_A_PASS) {
            started.committed((batch + 1) * BATCH, 0);
            let selected = "SELECT sum(value) FROM system.events WHERE event = 'SelectedRows'";
            let (rows_before, cpu_before) = (plain.number(selected).await, plain.number(cpu).await);
            let before = Instant::now();
            started.handle.build().await.expect("built");
            worst_build = worst_build.max(before.elapsed());
            times[2] += plain.number(cpu).await - cpu_before;
            read += plain.number(selected).await - rows_before;
        }
    }
    let total = (BATCHES * BATCH) as f64;
    let a_million = |micros: u64| micros as f64 / total;
    let [inserts, inserts_with_views, builds] = times.map(a_million);
    println!("{total} rows, merges held off: {merges_are_held_off}; seconds of CPU of the engine for a million rows:");
    println!(
        "inserts without views {inserts:.2}, with views {inserts_with_views:.2} ({:.1} times)",
        inserts_with_views / inserts
    );
    println!("passes of the builder {builds:.2}, the longest of {} rows {worst_build:.2?}", BATCH * BATCHES_A_PASS);
    println!("inserts and passes {:.2}", inserts + builds);
    println!("rows that passes read, for each row of heartbeats: {:.1}", read as f64 / total);
    for (name, fixture) in [("ranges", &plain), ("views", &viewed)] {
        for table in ["rollup_1m", "rollup_1h", "device_1h", "device_latest"] {
            println!("{name}: {table} has {} rows", fixture.number(&format!("SELECT count() FROM {table}")).await);
        }
    }
}

/// A batch of 33,000 devices that report every 6 s.
fn rows(batch: u64) -> String {
    format!(
        "INSERT INTO source (journal_id, seq, row_index, received_at, device_id, timestamp, state, uptime_seconds, \
         restart_count, version, device_type, cpu_percent, memory_used_mb, memory_total_mb, disk_used_gb, disk_total_gb, \
         load_average_1m, load_average_5m, load_average_15m, temperature_celsius, network_rx_bytes, signal_dbm, metrics) \
         SELECT toUUID('{JOURNAL}'), n + 1, 0, toDateTime64(toStartOfHour(now()) - 7200, 3, 'UTC') + toIntervalSecond(intDiv(n, 33000)), \
         'device-' || leftPad(toString(n % 33000), 6, '0'), toDateTime64(toStartOfHour(now()) - 7200, 3, 'UTC') \
         + toIntervalSecond(intDiv(n, 33000)) - toIntervalMillisecond(h % 2000), 'ONLINE', n, 1, \
         ['1.0', '1.1', '1.2'][1 + n % 3], ['gateway', 'sensor'][1 + n % 2], (h % 1000) / 10, h % 4096, 4096, \
         (h % 640) / 10, 64, (h % 100) / 50, (h % 90) / 50, (h % 80) / 50, 40 + (h % 200) / 10, n * 100, -60, \
         map('queue_depth', toFloat64(h % 100)) \
         FROM (SELECT number + {} AS n, cityHash64(n) AS h FROM numbers({BATCH}))",
        batch * BATCH
    )
}

/// The tables as views would fill them: the same columns, computed of each insert.
fn views() -> [String; 5] {
    const NEWEST: &str = "bitOr(bitShiftLeft(toInt128(toUnixTimestamp64Milli(timestamp)), 64), toInt128(seq))";
    let columns: Vec<_> = gauges()
        .map(|known| {
            let (name, number) = (known.name, known.number());
            format!("assumeNotNull({number}) AS of_{name}, ifNull(isFinite({number}), 0) AS has_{name}")
        })
        .collect();
    let columns = columns.join(", ");
    let values = |name: &str| {
        format!(
            "countIf(has_{name}), sumIf(of_{name}, has_{name}), minIf(of_{name}, has_{name}), maxIf(of_{name}, has_{name}), \
             argMaxIf(of_{name}, newest, has_{name}), maxIf(newest, has_{name})"
        )
    };
    let by_time = |begin: &str, table: &str, view: &str| {
        let metrics: Vec<_> = gauges()
            .map(|known| {
                let sketched = sketched(&format!("of_{}", known.name));
                format!(
                    "tuple('{0}', {1}, quantilesDDStateIf(0.01, 0.5, 0.9, 0.95, 0.99)({sketched}, has_{0}))",
                    known.name,
                    values(known.name)
                )
            })
            .collect();
        format!(
            "CREATE MATERIALIZED VIEW {view} TO {table} AS SELECT one.1 AS metric, device_type, version, time, one.2 AS count, \
             one.3 AS sum, one.4 AS min, one.5 AS max, one.6 AS last, one.8 AS sketch FROM (SELECT device_type, version, time, \
             arrayJoin([{}]) AS one FROM (SELECT device_type, version, {begin}(timestamp) AS time, {NEWEST} AS newest, \
             {columns} FROM heartbeats) GROUP BY device_type, version, time) WHERE one.2 > 0",
            metrics.join(", ")
        )
    };
    let own = "CREATE MATERIALIZED VIEW own TO rollup_1m AS SELECT concat('metrics.', name) AS metric, device_type, version, time, \
         count() AS count, sum(value) AS sum, min(value) AS min, max(value) AS max, \
         quantilesDDState(0.01, 0.5, 0.9, 0.95, 0.99)(value) AS sketch FROM (SELECT device_type, version, \
         toStartOfMinute(timestamp) AS time, name, value FROM heartbeats \
         ARRAY JOIN mapKeys(metrics) AS name, mapValues(metrics) AS value) GROUP BY name, device_type, version, time";
    let by_device: Vec<_> = gauges()
        .map(|known| {
            let name = known.name;
            format!(
                "tuple(countIf(has_{name}), sumIf(of_{name}, has_{name}), minIf(of_{name}, has_{name}), \
                 maxIf(of_{name}, has_{name}), argMaxIf(of_{name}, newest, has_{name}), now64(3), maxIf(seq, has_{name})) AS {name}"
            )
        })
        .collect();
    let devices = format!(
        "CREATE MATERIALIZED VIEW devices TO device_1h AS SELECT device_id, toStartOfHour(timestamp) AS time, \
         toUInt32(count()) AS heartbeats, {} FROM (SELECT device_id, timestamp, seq, {NEWEST} AS newest, {columns} FROM heartbeats) \
         GROUP BY device_id, time",
        by_device.join(", ")
    );
    let latest: Vec<_> = gauges()
        .filter(|known| known.name != "uptime_seconds")
        .map(|known| format!("{} AS {}", known.number(), known.name))
        .collect();
    let latest = format!(
        "CREATE MATERIALIZED VIEW latest TO device_latest AS SELECT device_id, received_at, seq, timestamp, uptime_seconds, {} \
         FROM heartbeats",
        latest.join(", ")
    );
    [
        by_time("toStartOfMinute", "rollup_1m", "minutes"),
        by_time("toStartOfHour", "rollup_1h", "hours"),
        own.to_owned(),
        devices,
        latest,
    ]
}
