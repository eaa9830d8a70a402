//! What a row takes on disk: each table against the same table without its codecs, on a fleet whose values drift.
//!
//! `cargo bench --bench storage` makes a day of 2,000 devices (`FLEETD_BENCH_DEVICES`, `FLEETD_BENCH_HOURS`), a heartbeat
//! each half minute with two processes, sends the same rows to both schemas in the order in which a fleet reports, merges
//! each table into one part a day, and prints bytes a row by table and by column, with what the inserts and the merge cost
//! ClickHouse. It uses an embedded engine of its own, or the server at `FLEETD_BENCH_CLICKHOUSE_URL`, where the databases
//! `storage_coded` and `storage_plain` must not exist.
use std::path::PathBuf;
use std::time::Duration;

use fleetd::engine::{EngineOptions, EngineProcess};
use fleetd::telemetry::clickhouse::{ClickHouse, ClickHouseConfig};
use fleetd::telemetry::journal::JournalId;
use fleetd::telemetry::rollup;
use fleetd::telemetry::row::binary::{put_u64, put_uuid};
use fleetd::telemetry::row::{
    encode_heartbeat, native, DeploymentEvent, DeviceEvent, KnownDevice, Sections, ServerMetric, Table, UnixMillis,
};
use fleetd::telemetry::schema::MIGRATIONS;
use fleetd_loadtest::{Drift, Extras};
use fleetd_proto::v1::HeartbeatRequest;
use uuid::Uuid;

const HEARTBEAT_MS: i64 = 30_000;
const HOUR_MS: i64 = 3_600_000;

/// The journal that the rows are said to have come through.
const JOURNAL: Uuid = Uuid::from_u128(0x0197_5f1e_2c3d_7000_8a1b_2c3d_4e5f_6071);

/// Rows of an insert, as the writer sends at most.
const BLOCK_ROWS: usize = 200_000;

/// Bytes of an insert, as the writer sends at most.
const BLOCK_BYTES: usize = 48 << 20;

/// What each heartbeat carries beside the readings.
const EXTRAS: Extras = Extras { processes: 2, metrics: 3, all_readings: true };

/// Versions of the fleet: most are of the newest but one.
const VERSIONS: [&str; 10] =
    ["1.4.2", "1.4.2", "1.4.2", "1.4.2", "1.4.2", "1.4.2", "1.5.0", "1.5.0", "1.3.9", "1.4.2-rc.1"];

/// Readings of the server itself that are sampled.
const SERVER_METRICS: usize = 120;
const SAMPLED_EVERY_MS: i64 = 15_000;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let number = |name: &str, usual: usize| std::env::var(name).map_or(usual, |n| n.parse().expect("a number"));
    let (devices, hours) = (number("FLEETD_BENCH_DEVICES", 2_000), number("FLEETD_BENCH_HOURS", 24));
    let dir = tempfile::tempdir().expect("a folder");
    let (engine, url) = match std::env::var("FLEETD_BENCH_CLICKHOUSE_URL") {
        Ok(url) => (None, url),
        Err(_) => {
            let engine = start_engine(dir.path().join("clickhouse")).await;
            let url = engine.url();
            (Some(engine), url)
        }
    };
    let pid = engine.as_ref().and_then(EngineProcess::pid);
    let coded = Schema::made(&url, "storage_coded", str::to_owned, pid).await;
    let plain = Schema::made(&url, "storage_plain", without_codecs, pid).await;
    let mut schemas = [coded, plain];
    println!("{devices} devices, {hours} h, a heartbeat each {} s", HEARTBEAT_MS / 1_000);
    let committed = fill(&mut schemas, devices, hours as i64).await;
    for schema in &mut schemas {
        schema.compute(committed).await;
        schema.merge().await;
        println!(
            "{}: ClickHouse took {:.1} s of CPU to insert and {:.1} s to merge into one part a day",
            schema.clickhouse.database(),
            schema.inserting.as_secs_f64(),
            schema.merging.as_secs_f64()
        );
    }
    report(&schemas).await;
    if let Some(engine) = engine {
        engine.shutdown().await;
    }
}

async fn start_engine(data_dir: PathBuf) -> EngineProcess {
    EngineProcess::start(EngineOptions::new(env!("CARGO_BIN_EXE_fleetd"), data_dir)).await.expect("the engine starts")
}

/// User and system time of a process so far; nothing for a server that is somebody else's.
fn cpu(pid: Option<u32>) -> Duration {
    let Some(pid) = pid else { return Duration::ZERO };
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
    // utime and stime; Linux shows 100 ticks a second.
    Duration::from_millis((ticks(11) + ticks(12)) * 10)
}

/// The statement with ClickHouse's own choice for every column, which is LZ4.
fn without_codecs(statement: &str) -> String {
    let mut parts = statement.split(" CODEC(");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let mut depth = 1;
        let end = part.find(|c: char| {
            depth += i32::from(c == '(') - i32::from(c == ')');
            depth == 0
        });
        out.push_str(&part[end.expect("the codec's end") + 1..]);
    }
    out
}

/// A database with all tables.
struct Schema {
    clickhouse: ClickHouse,
    pid: Option<u32>,
    inserting: Duration,
    merging: Duration,
}

impl Schema {
    async fn made(url: &str, database: &str, change: impl Fn(&str) -> String, pid: Option<u32>) -> Self {
        let config = ClickHouseConfig {
            database: database.to_owned(),
            query_timeout: Duration::from_secs(3_600),
            insert_timeout: Duration::from_secs(600),
            ..ClickHouseConfig::new(url)
        };
        let clickhouse = ClickHouse::new(&config);
        let schema = Self { clickhouse, pid, inserting: Duration::ZERO, merging: Duration::ZERO };
        schema.clickhouse.create_database().await.expect("a database");
        let statements = MIGRATIONS.iter().flat_map(|migration| migration.statements());
        for statement in statements {
            // Columns are told apart in wide parts only.
            let wide = change(&statement).replace("min_bytes_for_wide_part = 134217728", "min_bytes_for_wide_part = 0");
            schema.execute(&wide).await;
        }
        schema
    }

    async fn execute(&self, sql: &str) {
        let done = self.clickhouse.execute("run a statement", self.clickhouse.query(sql)).await;
        done.unwrap_or_else(|error| panic!("{sql}\n{error}: {:?}", std::error::Error::source(&error)));
    }

    async fn insert(&mut self, table: Table, block: &[u8]) {
        let before = cpu(self.pid);
        let sql = format!("INSERT INTO {} ({}) FORMAT Native", table.name(), table.column_list());
        self.clickhouse.insert(&sql, bytes::Bytes::copy_from_slice(block)).await.expect("inserted");
        self.inserting += cpu(self.pid).saturating_sub(before);
    }

    /// Fills the tables that are computed from heartbeats, as the server does.
    async fn compute(&self, committed: u64) {
        let positions = rollup::Positions { committed, audited: 0 };
        let parts = rollup::Parts {
            journal: JournalId(JOURNAL),
            positions: Box::new(move || positions),
            clickhouse: self.clickhouse.clone(),
            coverage: rollup::Coverage::default(),
        };
        let builder = rollup::start(parts, rollup::RollupOptions::default()).expect("a thread for the builder");
        builder.build().await.expect("the computed tables");
        builder.shutdown(Duration::from_secs(10)).await;
    }

    async fn merge(&mut self) {
        let before = cpu(self.pid);
        let computed = rollup::Rollup::ALL.map(rollup::Rollup::table);
        for table in Table::ALL.map(Table::name).into_iter().chain(computed) {
            self.execute(&format!("OPTIMIZE TABLE {table} FINAL")).await;
        }
        self.merging = cpu(self.pid).saturating_sub(before);
    }
}

/// Rows that wait for their insert, by table.
struct Pending {
    rows: [Vec<Vec<u8>>; Table::ALL.len()],
    bytes: [usize; Table::ALL.len()],
    seq: u64,
}

impl Pending {
    /// Puts the writer's prefix before each row of a record.
    fn take(&mut self, record: &[u8]) {
        self.seq += 1;
        let mut indexes = [0_u16; Table::ALL.len()];
        for section in Sections::of(record) {
            let section = section.expect("well formed");
            let slot = section.table.index();
            let mut row = Vec::with_capacity(26 + section.row.len());
            put_uuid(&mut row, JOURNAL);
            put_u64(&mut row, self.seq);
            row.extend_from_slice(&indexes[slot].to_le_bytes());
            row.extend_from_slice(section.row);
            indexes[slot] += 1;
            self.bytes[slot] += row.len();
            self.rows[slot].push(row);
        }
    }

    async fn send(&mut self, schemas: &mut [Schema; 2], is_last: bool) {
        for table in Table::ALL {
            let slot = table.index();
            let is_full = self.rows[slot].len() >= BLOCK_ROWS || self.bytes[slot] >= BLOCK_BYTES;
            if self.rows[slot].is_empty() || !(is_full || is_last) {
                continue;
            }
            let block = native::block(table, self.rows[slot].iter().map(Vec::as_slice)).expect("rows of the table");
            for schema in schemas.iter_mut() {
                schema.insert(table, &block).await;
            }
            self.rows[slot].clear();
            self.bytes[slot] = 0;
        }
    }
}

/// The number of the last record.
async fn fill(schemas: &mut [Schema; 2], devices: usize, hours: i64) -> u64 {
    let end = UnixMillis::now().as_millis();
    let start = end - hours * HOUR_MS;
    let mut fleet: Vec<Drift> = (0..devices).map(|number| Drift::new(1, number, start)).collect();
    let ids: Vec<String> = (0..devices).map(|number| format!("{}-{number:06}", fleet[number].device_type())).collect();
    let mut pending = Pending { rows: Default::default(), bytes: Default::default(), seq: 0 };
    let (mut message, mut record) = (HeartbeatRequest::default(), Vec::new());
    for round in 0..hours * HOUR_MS / HEARTBEAT_MS {
        for (number, drift) in fleet.iter_mut().enumerate() {
            // Each at its own moment of the interval, with some jitter, and on its way for 20 to 220 ms.
            let whim = (round as u64 ^ (number as u64) << 20).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
            let offset = number as i64 * HEARTBEAT_MS / devices as i64 + (whim % 1_000) as i64;
            let sent = start + round * HEARTBEAT_MS + offset;
            let received = UnixMillis::from_millis_clamped(sent + 20 + (whim >> 10) as i64 % 200);
            drift.report(sent, &mut message, EXTRAS);
            let (memory_mb, disk_gb) = drift.capacity();
            let known = KnownDevice {
                device_type: drift.device_type(),
                version: VERSIONS[number % VERSIONS.len()],
                memory_mb,
                disk_gb,
            };
            record.clear();
            encode_heartbeat(&ids[number], &known, &message, received, &mut record).expect("a valid heartbeat");
            pending.take(&record);
            // One device in a hundred comes and goes each hour.
            if (whim >> 3).is_multiple_of(12_000) {
                events(&mut pending, &ids[number], received);
            }
        }
        let now = start + round * HEARTBEAT_MS;
        for at in [now, now + SAMPLED_EVERY_MS] {
            record.clear();
            sample(&mut record, round, at);
            pending.take(&record);
        }
        pending.send(schemas, false).await;
    }
    for (number, id) in ids.iter().enumerate() {
        deployment(&mut pending, id, start + HOUR_MS / 2 + number as i64 * 700);
    }
    pending.send(schemas, true).await;
    pending.seq
}

/// A device goes late, and is back a minute later.
fn events(pending: &mut Pending, device_id: &str, at: UnixMillis) {
    for (from_state, to_state, after) in [("ONLINE", "LATE", 0), ("LATE", "ONLINE", 61_250)] {
        let at = UnixMillis::from_millis_clamped(at.as_millis() + after);
        let mut record = Vec::new();
        let event = DeviceEvent {
            received_at: at,
            device_id,
            timestamp: at,
            kind: "status_change",
            from_state,
            to_state,
            detail: "",
        };
        event.encode(&mut record);
        pending.take(&record);
    }
}

/// What a device goes through in a deployment.
fn deployment(pending: &mut Pending, device_id: &str, at: i64) {
    let states = ["PENDING", "OFFERED", "DOWNLOADING", "INSTALLING", "SOAKING", "COMPLETED"];
    for (pair, step) in states.windows(2).zip(0_i64..) {
        let at = UnixMillis::from_millis_clamped(at + step * 40_000);
        let mut record = Vec::new();
        let event = DeploymentEvent {
            received_at: at,
            deployment_id: "deploy-001",
            timestamp: at,
            device_id,
            update_id: "update-001",
            kind: "device",
            from_state: pair[0],
            to_state: pair[1],
            wave: 1 + (step as u32) / 3,
            attempt: 1,
            detail: "",
        };
        event.encode(&mut record);
        pending.take(&record);
    }
}

/// Half are counters that grow, a quarter stands still, a quarter wanders.
fn sample(record: &mut Vec<u8>, round: i64, at: i64) {
    let at = UnixMillis::from_millis_clamped(at);
    for metric in 0..SERVER_METRICS {
        let value = match metric % 4 {
            0 | 1 => (round * (metric as i64 * 37 + 2_000)) as f64,
            2 => metric as f64,
            _ => ((round * 7 + metric as i64) % 97) as f64 / 10.0,
        };
        let name =
            format!("fleetd_reading_{:02}_total{{outcome=\"{}\"}}", metric / 2, ["acked", "refused"][metric % 2]);
        ServerMetric { received_at: at, name: &name, timestamp: at, value }.encode(record);
    }
}

#[derive(clickhouse::Row, serde::Deserialize)]
struct Size {
    table: String,
    rows: u64,
    bytes: u64,
}

#[derive(clickhouse::Row, serde::Deserialize)]
struct ColumnSize {
    name: String,
    codec: String,
    bytes: u64,
}

async fn report(schemas: &[Schema; 2]) {
    let sizes = |schema: &Schema| {
        let query = schema.clickhouse.query(
            "SELECT table, sum(parts.rows) AS rows, sum(data_compressed_bytes) AS bytes FROM system.parts \
             WHERE database = {database:String} AND active AND parts.rows > 0 GROUP BY table ORDER BY bytes DESC",
        );
        let clickhouse = schema.clickhouse.clone();
        async move { clickhouse.rows::<Size>("sizes", query.param("database", clickhouse.database())).await.expect("sizes") }
    };
    let (coded, plain) = (sizes(&schemas[0]).await, sizes(&schemas[1]).await);
    println!("\n| table | rows | bytes a row | without codecs | |\n|---|---|---|---|---|");
    let each = |bytes: u64, rows: u64| bytes as f64 / rows.max(1) as f64;
    for table in coded.iter().filter(|size| size.table != "schema_migrations") {
        let bare = plain.iter().find(|other| other.table == table.table).expect("the same tables");
        assert_eq!(table.rows, bare.rows, "{}", table.table);
        let (with, without) = (each(table.bytes, table.rows), each(bare.bytes, bare.rows));
        println!("| `{}` | {} | {with:.1} | {without:.1} | {:.0} % |", table.table, table.rows, 100.0 * with / without);
    }
    for table in coded.iter().filter(|size| size.table != "schema_migrations") {
        println!("\n`{}`, bytes a row:\n\n| column | codec | coded | plain | |\n|---|---|---|---|---|", table.table);
        let (coded, plain) = (columns(&schemas[0], &table.table).await, columns(&schemas[1], &table.table).await);
        for (column, bare) in coded.iter().zip(&plain) {
            let (with, without) = (each(column.bytes, table.rows), each(bare.bytes, table.rows));
            let worse = if with > without * 1.02 { "worse" } else { "" };
            println!("| {} | {} | {with:.3} | {without:.3} | {worse} |", column.name, column.codec);
        }
    }
}

async fn columns(schema: &Schema, table: &str) -> Vec<ColumnSize> {
    let query = schema
        .clickhouse
        .query(
            "SELECT name, compression_codec AS codec, data_compressed_bytes AS bytes FROM system.columns \
             WHERE database = {database:String} AND table = {table:String} ORDER BY position",
        )
        .param("database", schema.clickhouse.database())
        .param("table", table);
    schema.clickhouse.rows::<ColumnSize>("sizes of columns", query).await.expect("sizes")
}
