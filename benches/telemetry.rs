//! What a heartbeat costs on its way into ClickHouse: to encode, to turn into columns, to store.
//!
//! `cargo bench --bench telemetry` prints nanoseconds a row for the pure parts; with `-- drain` it also fills a journal
//! and times the writer against the embedded engine, with the CPU of both. Plain timing of many rounds, the best of
//! which counts: on a busy machine the worst say how busy it is.
use std::hint::black_box;
use std::time::{Duration, Instant};

use fleetd::engine::{EngineOptions, EngineProcess};
use fleetd::telemetry::clickhouse::{ClickHouse, ClickHouseConfig};
use fleetd::telemetry::journal::{Journal, JournalOptions};
use fleetd::telemetry::row::{encode_heartbeat, native, KnownDevice, Sections, Table, UnixMillis};
use fleetd::telemetry::schema::{migrate, Retention};
use fleetd::telemetry::writer::{self, WriterOptions};
use fleetd_proto::v1::{device_status, DeviceStatus, HeartbeatRequest, SystemStats};

const ROWS: u64 = 50_000;
const ROUNDS: usize = 15;
const DRAINED: u64 = 2_000_000;

fn main() {
    let basic: Vec<_> = (0..ROWS).map(|n| heartbeat(n, false)).collect();
    let full: Vec<_> = (0..ROWS).map(|n| heartbeat(n, true)).collect();
    for (name, heartbeats) in [("basic", &basic), ("full", &full)] {
        println!("encode {name}: {:.0} ns a heartbeat", encode(heartbeats));
        println!("columns {name}: {:.0} ns a row", columns(heartbeats));
    }
    if std::env::args().any(|argument| argument == "drain") {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        for (name, heartbeats) in [("basic", &basic), ("full", &full), ("basic", &basic), ("full", &full)] {
            runtime.block_on(drain(name, heartbeats));
        }
    }
}

/// The API reference's example; or a device that reports all it can.
fn heartbeat(n: u64, is_full: bool) -> HeartbeatRequest {
    let spread = |range: u64| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20) % range;
    let mut stats = SystemStats {
        cpu_percent: spread(1_000) as f64 / 10.0,
        memory_used_mb: spread(4_096),
        disk_used_gb: spread(640) as f64 / 10.0,
        metrics: [("queue_depth".to_owned(), spread(100) as f64)].into_iter().collect(),
        ..Default::default()
    };
    if is_full {
        stats.memory_total_mb = 4_096;
        stats.disk_total_gb = 64.0;
        stats.load_average_1m = Some(spread(100) as f64 / 50.0);
        stats.load_average_5m = Some(spread(90) as f64 / 50.0);
        stats.load_average_15m = Some(spread(80) as f64 / 50.0);
        stats.temperature_celsius = Some(40.0 + spread(200) as f64 / 10.0);
        stats.network_rx_bytes = spread(1 << 40);
        stats.network_tx_bytes = spread(1 << 38);
        stats.disk_read_bytes = spread(1 << 39);
        stats.disk_write_bytes = spread(1 << 37);
        stats.signal_dbm = Some(-60);
        stats.metrics.insert("fan_rpm".to_owned(), spread(5_000) as f64);
    }
    HeartbeatRequest {
        device_id: format!("device-{:06}", n % ROWS),
        status: Some(DeviceStatus {
            state: device_status::State::Online as i32,
            uptime_seconds: 3_600 + n,
            last_boot: Some(fleetd_proto::Timestamp { seconds: 1_790_000_000, nanos: 0 }),
            boot_id: if is_full { "b0f3aa90-1b11-4a3c-9d4e-1f1b2c3d4e5f".into() } else { String::new() },
            ..Default::default()
        }),
        stats: Some(stats),
        version: "1.2.3".into(),
        ..Default::default()
    }
}

/// As most fleets have it: few types.
const KNOWN: KnownDevice<'_> = KnownDevice { device_type: "sensor", version: "1.2.3", memory_mb: 4_096, disk_gb: 64.0 };

/// The best round, in nanoseconds an item.
fn best(items: u64, mut round: impl FnMut()) -> f64 {
    let times = (0..ROUNDS).map(|_| {
        let started = Instant::now();
        round();
        started.elapsed()
    });
    times.min().unwrap_or_default().as_nanos() as f64 / items as f64
}

fn encode(heartbeats: &[HeartbeatRequest]) -> f64 {
    let now = UnixMillis::now();
    let mut record = Vec::new();
    best(ROWS, || {
        for heartbeat in heartbeats {
            record.clear();
            encode_heartbeat(&heartbeat.device_id, &KNOWN, heartbeat, now, &mut record).expect("valid");
            black_box(&record);
        }
    })
}

fn columns(heartbeats: &[HeartbeatRequest]) -> f64 {
    let mut rows: Vec<Vec<u8>> = Vec::new();
    for heartbeat in heartbeats {
        let mut record = Vec::new();
        encode_heartbeat(&heartbeat.device_id, &KNOWN, heartbeat, UnixMillis::now(), &mut record).expect("valid");
        let section = Sections::of(&record).next().expect("a row").expect("well formed");
        rows.push([&[0; 26], section.row].concat());
    }
    best(ROWS, || {
        black_box(native::block(Table::Heartbeats, rows.iter().map(Vec::as_slice)).expect("rows"));
    })
}

/// User and system time of a process so far.
fn cpu(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
    // utime and stime; Linux shows 100 ticks a second.
    Duration::from_millis((ticks(11) + ticks(12)) * 10)
}

async fn drain(name: &str, heartbeats: &[HeartbeatRequest]) {
    let dir = tempfile::tempdir().expect("a folder");
    let options = EngineOptions::new(env!("CARGO_BIN_EXE_fleetd"), dir.path().join("clickhouse"));
    let engine = EngineProcess::start(options).await.expect("the engine starts");
    let clickhouse = ClickHouse::new(&ClickHouseConfig::new(engine.url()));
    migrate(&clickhouse, &Retention::default()).await.expect("migrates");
    let (journal, _) = Journal::open(JournalOptions::new(dir.path().join("journal"))).expect("opens");
    let mut record = Vec::new();
    for round in 0..DRAINED / ROWS {
        let mut records = Vec::with_capacity(heartbeats.len());
        for heartbeat in heartbeats {
            record.clear();
            encode_heartbeat(&heartbeat.device_id, &KNOWN, heartbeat, UnixMillis::now(), &mut record).expect("valid");
            records.push(record.clone());
        }
        for part in records.chunks(5_000) {
            journal.append_many(part).expect("taken").committed().await.expect("written");
        }
        black_box(round);
    }
    let pids = (std::process::id(), engine.pid().expect("it runs"));
    let before = (cpu(pids.0), cpu(pids.1));
    let started = Instant::now();
    let writer = writer::start(journal.clone(), clickhouse, WriterOptions::new(dir.path())).expect("starts");
    writer.flush(journal.written_seq(), Duration::from_secs(600)).await.expect("drained");
    let wall = started.elapsed();
    let after = (cpu(pids.0), cpu(pids.1));
    let per_million = |time: Duration| time.as_secs_f64() * 1e6 / DRAINED as f64;
    let status = writer.status();
    println!(
        "drain {name}: {:.0} rows/s, CPU a million rows: writer {:.2} s, clickhouse {:.2} s; {} inserts of {:?} each",
        DRAINED as f64 / wall.as_secs_f64(),
        per_million(after.0 - before.0),
        per_million(after.1 - before.1),
        status.inserts,
        status.insert_time / status.inserts.max(1) as u32,
    );
    writer.shutdown(Duration::from_secs(60)).await.expect("stops");
    engine.shutdown().await;
}
