//! A real engine, a database of its own, heartbeats that a test makes up, and what they amount to by plain arithmetic.
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::Duration;

use fleetd::engine::{EngineOptions, EngineProcess};
use fleetd::telemetry::clickhouse::{ClickHouse, ClickHouseConfig};
use fleetd::telemetry::journal::JournalId;
use fleetd::telemetry::rollup::{self, Coverage, Parts, Positions, Rollup, RollupHandle, RollupOptions};
use fleetd::telemetry::schema::{migrate, Retention};
use parking_lot::Mutex;
use tokio::sync::OnceCell;
use uuid::Uuid;

pub const MINUTE: i64 = 60_000;
pub const HOUR: i64 = 60 * MINUTE;
pub const DAY: i64 = 24 * HOUR;

/// Long enough for a slow machine, short enough to notice a hang.
pub const SOON: Duration = Duration::from_secs(60);

pub async fn start_engine(data_dir: &Path) -> EngineProcess {
    let options = EngineOptions::new(env!("CARGO_BIN_EXE_fleetd"), data_dir);
    EngineProcess::start(options).await.expect("the engine starts")
}

/// The engine that tests share which do not kill it; it ends with the test process.
pub async fn shared_engine() -> &'static EngineProcess {
    static ENGINE: OnceCell<(EngineProcess, tempfile::TempDir)> = OnceCell::const_new();
    let start = || async {
        let dir = tempfile::tempdir().expect("a folder");
        (start_engine(dir.path()).await, dir)
    };
    &ENGINE.get_or_init(start).await.0
}

/// A heartbeat as its row.
#[derive(Clone, Debug)]
pub struct Beat {
    pub journal: Uuid,
    pub seq: u64,
    pub received_at: i64,
    pub timestamp: i64,
    pub device: u64,
    pub device_type: &'static str,
    pub version: &'static str,
    pub cpu: Option<f64>,
    pub memory_used: Option<u64>,
    pub memory_total: u64,
    pub temperature: Option<f64>,
    pub uptime: u64,
    pub metrics: Vec<(String, f64)>,
}

impl Beat {
    fn is_plausible(&self) -> bool {
        self.timestamp >= self.received_at - 31 * DAY && self.timestamp <= self.received_at + DAY
    }

    /// What it measures, by the names of the computed tables; those that the tests compare.
    fn values(&self) -> Vec<(String, f64)> {
        let share = self.memory_used.filter(|_| self.memory_total > 0);
        let known = [
            ("cpu_usage", self.cpu),
            ("swap_used_mb", self.memory_used.map(|_| 0.0)),
            ("memory_used_mb", self.memory_used.map(|used| used as f64)),
            ("memory_usage", share.map(|used| 100.0 * used as f64 / self.memory_total as f64)),
            ("temperature_celsius", self.temperature),
            ("uptime_seconds", Some(self.uptime as f64).filter(|uptime| *uptime > 0.0)),
            ("heartbeats", Some(1.0)),
        ];
        let known = known.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
        known.chain(self.metrics.iter().map(|(name, value)| (format!("metrics.{name}"), *value))).collect()
    }

    /// As a line of JSONEachRow.
    fn line(&self) -> String {
        let metrics: serde_json::Map<_, _> =
            self.metrics.iter().map(|(name, value)| (name.clone(), (*value).into())).collect();
        serde_json::json!({
            "journal_id": self.journal.to_string(), "seq": self.seq, "row_index": 0,
            "received_at": time(self.received_at), "timestamp": time(self.timestamp),
            "device_id": device_id(self.device), "device_type": self.device_type, "version": self.version,
            "state": "ONLINE", "uptime_seconds": self.uptime, "cpu_percent": self.cpu,
            "memory_used_mb": self.memory_used, "memory_total_mb": self.memory_total,
            "temperature_celsius": self.temperature, "metrics": metrics,
        })
        .to_string()
    }
}

pub fn device_id(device: u64) -> String {
    format!("device-{device}")
}

/// As ClickHouse reads a DateTime64(3).
fn time(millis: i64) -> String {
    let at = jiff::Timestamp::from_millisecond(millis).expect("a time of this millennium");
    at.strftime("%Y-%m-%d %H:%M:%S%.3f").to_string()
}

/// Where the values of a group are: metric, type, version, begin of the minute or hour in milliseconds.
pub type Key = (String, String, String, i64);

/// What a group amounts to.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    pub count: u64,
    pub sum: f64,
    pub min: f64,
    pub max: f64,
    pub last: f64,
    /// 50, 90, 95, 99 per cent.
    pub quantiles: Vec<f64>,
}

#[derive(clickhouse::Row, serde::Deserialize)]
struct Found {
    metric: String,
    device_type: String,
    version: String,
    time: i64,
    count: u64,
    sum: f64,
    min: f64,
    max: f64,
    last: f64,
    quantiles: Vec<f64>,
}

#[derive(clickhouse::Row, serde::Deserialize)]
struct Number {
    number: u64,
}

pub struct Fixture {
    pub clickhouse: ClickHouse,
    pub beats: Vec<Beat>,
    pub random: Random,
    pub now: i64,
}

impl Fixture {
    pub async fn new() -> Self {
        Self::on(&shared_engine().await.url()).await
    }

    pub async fn on(url: &str) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let database = format!("test_{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let config = ClickHouseConfig { database, ..ClickHouseConfig::new(url) };
        let clickhouse = ClickHouse::new(&config);
        migrate(&clickhouse, &Retention::default()).await.expect("migrates");
        let now = fleetd::clock::UnixMillis::now().as_millis();
        Self { clickhouse, beats: Vec::new(), random: Random(7), now }
    }

    /// Makes up heartbeats of a journal, numbered on from `first`: of three types and two versions over two hours, some
    /// held back, some by clocks that were not set, some without stats, with ties, negative and large numbers.
    pub fn make_up(&mut self, journal: Uuid, first: u64, count: u64) -> Vec<Beat> {
        let now = self.now;
        let random = &mut self.random;
        let beat = |at: u64| {
            let received_at = now - 2 * HOUR + (at * 7_200_000 / count.max(1)) as i64;
            let timestamp = match random.below(50) {
                0 => received_at - random.below(30 * 86_400_000) as i64,
                1 => received_at - 31 * DAY - 1,
                2 => received_at + DAY + 1,
                3 => received_at + DAY,
                4 => 0,
                // Many of one millisecond.
                5..=20 => received_at - received_at % 10_000,
                _ => received_at - random.below(40_000) as i64,
            };
            let has_stats = random.below(10) > 0;
            let number = random.below(10_000) as f64;
            let mut metrics = Vec::new();
            if random.below(3) == 0 {
                metrics.push(("queue_depth".to_owned(), number - 5_000.0));
            }
            if random.below(100) == 0 {
                metrics.push(("huge".to_owned(), [1e300, -1e18, 1e-300, 0.0][random.below(4) as usize]));
            }
            Beat {
                journal,
                seq: first + at,
                received_at,
                timestamp,
                device: random.below(40),
                device_type: ["", "gateway", "sensor"][random.below(3) as usize],
                version: ["1.0", "1.1"][random.below(2) as usize],
                cpu: has_stats.then_some(number / 100.0),
                memory_used: has_stats.then_some(random.below(4_096)),
                memory_total: [0, 4_096][random.below(2) as usize],
                temperature: (random.below(4) == 0).then(|| random.below(800) as f64 / 10.0 - 20.0),
                uptime: random.below(3) * number as u64,
                metrics,
            }
        };
        (0..count).map(beat).collect()
    }

    /// As [`Self::make_up`], and stores them.
    pub async fn add(&mut self, journal: Uuid, first: u64, count: u64) {
        let beats = self.make_up(journal, first, count);
        self.store(&beats).await;
    }

    pub async fn store(&mut self, beats: &[Beat]) {
        self.beats.extend_from_slice(beats);
        self.insert(beats).await;
    }

    pub async fn insert(&self, beats: &[Beat]) {
        let mut lines = String::new();
        for beat in beats {
            writeln!(lines, "{}", beat.line()).expect("a string");
        }
        let sql =
            "INSERT INTO heartbeats (journal_id, seq, row_index, received_at, timestamp, device_id, device_type, \
                   version, state, uptime_seconds, cpu_percent, memory_used_mb, memory_total_mb, temperature_celsius, \
                   metrics) SETTINGS insert_deduplicate = 0 FORMAT JSONEachRow";
        self.clickhouse.insert(sql, lines.into()).await.expect("stored");
    }

    pub fn start(&self, journal: Uuid) -> Started {
        self.start_with(journal, RollupOptions { every: Duration::from_secs(3_600), ..RollupOptions::default() })
    }

    pub fn start_with(&self, journal: Uuid, options: RollupOptions) -> Started {
        let positions = Arc::new(Mutex::new(Positions::default()));
        let coverage = Coverage::default();
        let asked = Arc::clone(&positions);
        let parts = Parts {
            journal: JournalId(journal),
            positions: Box::new(move || *asked.lock()),
            clickhouse: self.clickhouse.clone(),
            coverage: coverage.clone(),
        };
        let handle = rollup::start(parts, options).expect("a thread");
        Started { journal, positions, coverage, handle }
    }

    pub async fn execute(&self, sql: &str) {
        self.clickhouse.execute("run a test's statement", self.clickhouse.query(sql)).await.expect(sql);
    }

    pub async fn number(&self, sql: &str) -> u64 {
        let sql = format!("SELECT toUInt64(ifNull(({sql}), 0)) AS number");
        let rows = self.clickhouse.rows::<Number>("count", self.clickhouse.query(&sql)).await.expect(&sql);
        rows.first().expect("a row").number
    }

    /// What a reader finds in `rollup_1m` or `rollup_1h` of what `coverage` says is covered.
    pub async fn found(&self, rollup: Rollup, coverage: &Coverage) -> BTreeMap<Key, Group> {
        let covered: Vec<_> = coverage
            .of(rollup)
            .iter()
            .map(|(journal, through)| format!("(journal_id = toUUID('{journal}') AND through_seq <= {through})"))
            .collect();
        if covered.is_empty() {
            return BTreeMap::new();
        }
        let sql = format!(
            "SELECT CAST(metric AS String) AS metric, CAST(device_type AS String) AS device_type, \
             CAST(version AS String) AS version, toInt64(toUnixTimestamp(at)) * 1000 AS time, sum(n) AS count, \
             sum(total) AS sum, min(least) AS min, max(most) AS max, argMax(final, (final_at, final_seq)) AS last, \
             quantilesDDMerge(0.01, 0.5, 0.9, 0.95, 0.99)(part) AS quantiles FROM (\
             SELECT metric, device_type, version, time AS at, count AS n, sum AS total, min AS least, max AS most, \
             last AS final, last_at AS final_at, last_seq AS final_seq, sketch AS part FROM {} FINAL WHERE {}) \
             GROUP BY metric, device_type, version, at HAVING count > 0",
            rollup.table(),
            covered.join(" OR ")
        );
        let rows = self.clickhouse.rows::<Found>("read a computed table", self.clickhouse.query(&sql)).await;
        let rows = rows.unwrap_or_else(|error| panic!("{error}: {:?}; {sql}", std::error::Error::source(&error)));
        let group = |row: Found| {
            let Found { metric, device_type, version, time, count, sum, min, max, last, quantiles } = row;
            ((metric, device_type, version, time), Group { count, sum, min, max, last, quantiles })
        };
        rows.into_iter().map(group).collect()
    }

    /// What the heartbeats that are covered amount to, and that the table says the same.
    pub async fn assert_exact(&self, rollup: Rollup, coverage: &Coverage) {
        let found = self.found(rollup, coverage).await;
        let covered: BTreeMap<_, _> = coverage.of(rollup).into_iter().collect();
        let is_covered = |beat: &&Beat| covered.get(&beat.journal).is_some_and(|through| beat.seq <= *through);
        let beats = self.beats.iter().filter(is_covered);
        let interval = if rollup == Rollup::Hours { HOUR } else { MINUTE };
        let mut wanted: BTreeMap<Key, Vec<(i64, u64, f64)>> = BTreeMap::new();
        for beat in beats.filter(|beat| beat.is_plausible()) {
            for (name, value) in beat.values() {
                let begin = beat.timestamp - beat.timestamp.rem_euclid(interval);
                let key = (name, beat.device_type.to_owned(), beat.version.to_owned(), begin);
                wanted.entry(key).or_default().push((beat.timestamp, beat.seq, value));
            }
        }
        let keys = |of: BTreeSet<&Key>| of.into_iter().cloned().collect::<BTreeSet<Key>>();
        let (there, expected) = (keys(found.keys().collect()), keys(wanted.keys().collect()));
        assert_eq!(there.difference(&expected).next(), None, "{rollup:?}: a group without heartbeats");
        assert_eq!(expected.difference(&there).next(), None, "{rollup:?}: a group that is missing");
        for (key, mut readings) in wanted {
            assert_is(&found[&key], &mut readings, &format!("{rollup:?} {key:?}"));
        }
    }
}

/// Compares with plain arithmetic; sums may differ by their order, quantiles by the accuracy of a sketch.
fn assert_is(found: &Group, readings: &mut [(i64, u64, f64)], what: &str) {
    // Of heartbeats with one time and number there are none, so this is an order.
    readings.sort_by_key(|(timestamp, seq, _)| (*timestamp, *seq));
    let mut values: Vec<_> = readings.iter().map(|(_, _, value)| *value).collect();
    assert_eq!(found.count, values.len() as u64, "count of {what}");
    assert_eq!(Some(&found.last), values.last(), "last of {what}");
    let sum: f64 = values.iter().sum();
    let scale = values.iter().map(|value| value.abs()).sum::<f64>();
    assert!((found.sum - sum).abs() <= 1e-9 * scale, "sum of {what}: {} and {sum}", found.sum);
    values.sort_by(f64::total_cmp);
    assert_eq!((Some(&found.min), Some(&found.max)), (values.first(), values.last()), "least and most of {what}");
    for (level, quantile) in [0.5, 0.9, 0.95, 0.99].into_iter().zip(&found.quantiles) {
        let rank = level * (values.len() - 1) as f64;
        // Sketches tell apart what is between 1e-9 and 1e15.
        let clamp = |value: f64| if value.abs() < 1e-9 { 0.0 } else { value.clamp(-1e15, 1e15) };
        let near = [rank.floor() as usize, rank.ceil() as usize].map(|at| clamp(values[at]));
        let is_near = near.iter().any(|value| (quantile - value).abs() <= 0.0101 * value.abs() + 1e-12);
        assert!(is_near, "{level} of {what}: {quantile}, not {near:?} of {}", values.len());
    }
}

/// A builder, and how far its writer is.
pub struct Started {
    pub journal: Uuid,
    pub positions: Arc<Mutex<Positions>>,
    pub coverage: Coverage,
    pub handle: RollupHandle,
}

impl Started {
    /// As if the writer had brought everything through this number to ClickHouse, and counted it or not.
    pub fn committed(&self, through: u64, counted: u64) {
        *self.positions.lock() = Positions { committed: through, audited: counted };
    }

    pub async fn build(&self) {
        tokio::time::timeout(SOON, self.handle.build()).await.expect("in time").expect("built");
    }

    pub fn covered(&self, rollup: Rollup) -> u64 {
        let found = self.coverage.of(rollup).into_iter().find(|(journal, _)| *journal == self.journal);
        found.map_or(0, |(_, through)| through)
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        self.handle.abort();
    }
}

/// A small generator of pseudo-random numbers (splitmix64), so that a failing test names its seed.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }
}
