//! kill -9 of the server and of the engine at random moments under load, with a pass of the builder each second: what
//! the tables say afterwards is what their heartbeats say.
use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fleetd_loadtest::{Extras, Fleet, FleetOptions, Load, Protocol, Target};

use crate::fixture::Random;
use crate::support::{clickhouse, sigkill_engine_if_there, wait_until, Options, Server, ADMIN_KEY};

const DEVICES: usize = 100;
/// Heartbeats a second: a range has hundreds of rows, and the machine has room for other tests.
const RATE: f64 = 1_500.0;
/// Longer than any start, and than a backlog of these tests takes.
const PATIENCE: Duration = Duration::from_secs(60);
/// Hours are built once in 60 passes of a second each, two seconds after the minute.
const HOURS_PATIENCE: Duration = Duration::from_secs(180);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    /// Its engine goes with it.
    Server,
    Engine,
}

#[test]
fn tables_equal_their_heartbeats_after_kills_of_server_and_engine_under_load() {
    let seed = match std::env::var("FLEETD_CHAOS_SEED") {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("FLEETD_CHAOS_SEED={text} is no number")),
        Err(_) => SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970").as_nanos() as u64,
    };
    println!("FLEETD_CHAOS_SEED={seed} repeats what is random here");
    let mut random = Random(seed);
    let options =
        Options::default().unlimited().env("FLEETD_JOURNAL_SEGMENT_MB", "1").env("FLEETD_ROLLUP_INTERVAL_SECONDS", "1");
    let mut server = Server::with(options);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let fleet_options = FleetOptions {
        target: target(server.http()),
        admin_key: Some(ADMIN_KEY.to_owned()),
        protocol: Protocol::Connect,
        devices: DEVICES,
        id_prefix: Some("rollup".to_owned()),
        keys: None,
    };
    let fleet = runtime.block_on(Fleet::register(&fleet_options, |_| ())).expect("the fleet is registered");
    let load = Load {
        protocol: Protocol::Connect,
        connections: 16,
        rate: Some(RATE),
        timeout: Duration::from_secs(10),
        extras: Extras { processes: 0, metrics: 2, all_readings: false },
        ..Load::default()
    };
    let run = fleet.start(&load).expect("the load starts");
    run.retarget(&target(server.http()));
    for number in 1..=kills() {
        let victim = if number % 6 == 0 || random.below(3) == 0 { Victim::Engine } else { Victim::Server };
        if number % 3 == 0 {
            println!("{number}: {victim:?} while a range is computed");
            await_statement(&server);
        } else {
            let after = Duration::from_millis(random.below(2_500));
            println!("{number}: {victim:?} after {after:?}");
            std::thread::sleep(after);
        }
        match victim {
            Victim::Engine => {
                if let Some(engine) = server.engine_pid() {
                    sigkill_engine_if_there(engine);
                    let gone = wait_until(PATIENCE, || server.engine_pid() != Some(engine));
                    assert!(gone, "the engine does not die\n{}", server.log());
                }
            }
            Victim::Server => {
                server.sigkill();
                server.restart();
                run.retarget(&target(server.http()));
            }
        }
    }
    let before = run.progress().acknowledged;
    let goes_on = wait_until(PATIENCE, || run.progress().acknowledged > before + 1_000);
    assert!(goes_on, "{:?}\n{}", run.progress(), server.log());
    let answers = wait_until(PATIENCE, || std::net::TcpStream::connect(server.clickhouse()).is_ok());
    assert!(answers, "the engine is not back\n{}", server.log());
    run.stop();
    let (_, report) = runtime.block_on(run.finish()).expect("the load ends");
    println!("{} heartbeats acknowledged", report.acked);

    await_covered(&server, "rollup_1m", PATIENCE);
    await_covered(&server, "device_latest", PATIENCE);
    assert_minutes(&server);
    let behind =
        "SELECT count() FROM (SELECT device_id, max(received_at) AS at FROM heartbeats GROUP BY device_id) AS raw \
         LEFT JOIN (SELECT device_id, received_at FROM device_latest FINAL) AS latest USING device_id \
         WHERE raw.at != latest.received_at";
    assert_eq!(number(&server, behind), 0, "devices whose latest is another");
    await_covered(&server, "rollup_1h", HOURS_PATIENCE);
    await_covered(&server, "device_1h", HOURS_PATIENCE);
    let heartbeats = number(&server, "SELECT count() FROM heartbeats");
    for sql in [
        "SELECT sum(count) FROM rollup_1m FINAL WHERE metric = 'heartbeats'",
        "SELECT sum(count) FROM rollup_1h FINAL WHERE metric = 'heartbeats'",
        "SELECT sum(heartbeats) FROM device_1h FINAL",
        "SELECT sum(cpu_usage.count) FROM device_1h FINAL",
    ] {
        assert_eq!(number(&server, sql), heartbeats, "{sql}\n{}", server.log());
    }
    let again = number(&server, "SELECT countIf(generation > 0) FROM rollup_1m");
    assert!(again > 0, "no attempt was killed");
    println!("{heartbeats} heartbeats are equal in every table; {again} rows of rollup_1m are of a second attempt");
    assert_eq!(server.metrics().get("fleetd_rollup_repairs_total"), 0.0, "{}", server.log());
}

fn kills() -> u32 {
    let Ok(text) = std::env::var("FLEETD_CHAOS_KILLS") else { return 12 };
    text.parse().unwrap_or_else(|_| panic!("FLEETD_CHAOS_KILLS={text} is no number"))
}

fn target(address: SocketAddr) -> Target {
    Target::parse(&format!("http://{address}")).expect("an address")
}

fn number(server: &Server, sql: &str) -> u64 {
    clickhouse::number(server.clickhouse(), "fleetd", sql)
}

/// Waits until ClickHouse, which may not be back yet, computes a range of minutes.
fn await_statement(server: &Server) {
    let running = "SELECT count() FROM system.processes WHERE query_kind = 'Insert' AND query LIKE '%INTO rollup_1m%'";
    let is_computing =
        || clickhouse::try_run(server.clickhouse(), "fleetd", running).is_some_and(|running| running != "0");
    assert!(wait_until(PATIENCE, is_computing), "no range is computed\n{}", server.log());
}

/// Waits until the table has all heartbeats, as it says itself.
fn await_covered(server: &Server, table: &str, limit: Duration) {
    let behind = format!(
        "SELECT count() FROM heartbeats WHERE seq > \
         (SELECT max(through_seq) FROM rollup_progress WHERE rollup = '{table}')"
    );
    // First until the writer has brought everything.
    let mut left = 0;
    let is_there = wait_until(limit, || {
        let metrics = server.metrics();
        left = number(server, &behind);
        metrics.get("fleetd_writer_lag_records") == 0.0 && left == 0
    });
    assert!(is_there, "{table} lacks {left} heartbeats after {limit:?}\n{}", server.log());
}

/// Each metric by type, version and minute, in words of its own.
fn assert_minutes(server: &Server) {
    let group = "SELECT CAST(device_type AS String) AS type, CAST(version AS String) AS release, \
         toUnixTimestamp(toStartOfMinute(timestamp)) AS minute, count() AS n, round(sum(value), 3) AS total, \
         min(value) AS least, max(value) AS most, argMax(value, (timestamp, seq)) AS final, max(timestamp) AS final_at";
    let known = |name: &str, value: &str| {
        let raw = format!(
            "{group} FROM (SELECT *, toFloat64(assumeNotNull({value})) AS value FROM heartbeats WHERE ({value}) IS NOT NULL) \
             GROUP BY type, release, minute"
        );
        (name.to_owned(), raw)
    };
    let own =
        clickhouse::run(server.clickhouse(), "fleetd", "SELECT DISTINCT arrayJoin(mapKeys(metrics)) FROM heartbeats");
    let own = own.lines().map(|name| {
        let raw = format!(
            "{group} FROM (SELECT *, metrics['{name}'] AS value FROM heartbeats WHERE mapContains(metrics, '{name}')) \
             GROUP BY type, release, minute"
        );
        (format!("metrics.{name}"), raw)
    });
    let metrics: Vec<_> = [
        known("cpu_usage", "cpu_percent"),
        known("memory_used_mb", "memory_used_mb"),
        known("uptime_seconds", "nullIf(uptime_seconds, 0)"),
        known("heartbeats", "1"),
    ]
    .into_iter()
    .chain(own)
    .collect();
    assert!(metrics.len() >= 6, "the load reports metrics of its own: {metrics:?}");
    for (metric, raw) in metrics {
        let computed = format!(
            "SELECT CAST(device_type AS String) AS type, CAST(version AS String) AS release, toUnixTimestamp(time) AS minute, \
             sum(count) AS n, round(sum(sum), 3) AS total, min(min) AS least, max(max) AS most, \
             argMax(last, (last_at, last_seq)) AS final, max(last_at) AS final_at \
             FROM rollup_1m FINAL WHERE metric = '{metric}' GROUP BY type, release, minute"
        );
        assert!(number(server, &format!("SELECT count() FROM ({raw})")) > 0, "{metric}");
        for (left, right) in [(&computed, &raw), (&raw, &computed)] {
            let differing = number(server, &format!("SELECT count() FROM (({left}) EXCEPT ({right}))"));
            assert_eq!(differing, 0, "{metric}: {left}\nEXCEPT\n{right}\n{}", server.log());
        }
    }
}
