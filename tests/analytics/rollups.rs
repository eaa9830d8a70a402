//! The same question from the computed tables and from the rows has the same answer, however much is computed.
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use fleetd::analytics::question::{HOUR, MINUTE};
use fleetd::analytics::source::{Needs, Plan};
use fleetd::analytics::sql::{Inquiry, Keys, Kind, Row};
use fleetd::analytics::{AnalystPool, DeviceSet, Span, StagedSet};
use fleetd::clock::UnixMillis;
use fleetd::engine::{EngineOptions, EngineProcess};
use fleetd::ids::DeviceId;
use fleetd::telemetry::clickhouse::{ClickHouse, ClickHouseConfig};
use fleetd::telemetry::journal::JournalId;
use fleetd::telemetry::metric::{Aggregation, Metric};
use fleetd::telemetry::rollup::{self, Coverage, Positions, Rollup, RollupHandle, RollupOptions};
use fleetd::telemetry::schema::{migrate, Retention};

use super::naive::insert;
use super::world::{World, JOURNALS};

struct Fixture {
    _engine: EngineProcess,
    _dir: tempfile::TempDir,
    clickhouse: ClickHouse,
    pool: AnalystPool,
    world: World,
}

impl Fixture {
    async fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let options = EngineOptions {
            executable: PathBuf::from(env!("CARGO_BIN_EXE_fleetd")),
            library: None,
            data_dir: dir.path().to_path_buf(),
            listen: ([127, 0, 0, 1], 0).into(),
            memory_limit_bytes: None,
        };
        let engine = EngineProcess::start(options).await.expect("the engine starts");
        let clickhouse = ClickHouse::new(&ClickHouseConfig::new(engine.url()));
        migrate(&clickhouse, &Retention::default()).await.expect("the tables");
        let world = World::new();
        for beats in world.beats.chunks(2_000) {
            clickhouse.execute("insert", clickhouse.query(&insert(beats))).await.expect("inserted");
        }
        let pool = AnalystPool::new(clickhouse.clone());
        Self { _engine: engine, _dir: dir, clickhouse, pool, world }
    }

    /// A builder of a journal's tables that believes what it is told of how far the writer is.
    fn builder(&self, journal: &str, committed: &Arc<AtomicU64>, coverage: &Coverage) -> RollupHandle {
        let committed = Arc::clone(committed);
        let positions = move || Positions { committed: committed.load(Ordering::Relaxed), audited: 0 };
        let parts = rollup::Parts {
            journal: JournalId(journal.parse().expect("a UUID")),
            positions: Box::new(positions),
            clickhouse: self.clickhouse.clone(),
            coverage: coverage.clone(),
        };
        rollup::start(parts, RollupOptions { every: std::time::Duration::from_secs(3_600), ..RollupOptions::default() })
            .expect("a thread")
    }

    async fn rows(&self, inquiry: &Inquiry<'_>, plan: &Plan) -> Vec<Row> {
        let query = inquiry.set.bind(inquiry.gauge(plan).query(&self.pool));
        let mut rows = self.pool.rows::<Row>("read", query).await.expect("an answer");
        rows.sort_by(|a, b| key(a).cmp(&key(b)));
        rows
    }
}

fn key(row: &Row) -> (&str, &str, &str, u32) {
    (&row.device_type, &row.version, &row.device_id, row.bucket)
}

fn same(computed: &[Row], rows: &[Row], what: &str) {
    assert_eq!(computed.iter().map(key).collect::<Vec<_>>(), rows.iter().map(key).collect::<Vec<_>>(), "{what}");
    for (one, other) in computed.iter().zip(rows) {
        let close = |a: f64, b: f64| (a - b).abs() <= 1e-9 * b.abs().max(1.0);
        let is_same = one.count == other.count
            && close(one.sum, other.sum)
            && (one.min, one.max, one.last, one.last_at) == (other.min, other.max, other.last, other.last_at)
            && close(one.quantile, other.quantile);
        assert!(is_same, "{what}\n{one:?}\n{other:?}");
    }
}

#[tokio::test]
async fn computed_tables_and_rows_give_the_same_answer_however_much_is_computed() {
    let fixture = Fixture::new().await;
    let world = &fixture.world;
    let last_seq = world.beats.iter().map(|beat| beat.seq).max().expect("heartbeats");
    let [j, k] = JOURNALS.map(|journal| journal.parse().expect("a UUID"));
    let known = Coverage::default();
    let committed = Arc::new(AtomicU64::new(last_seq / 3));
    let builder = fixture.builder(JOURNALS[0], &committed, &known);
    builder.build().await.expect("built");
    committed.store(last_seq * 2 / 3, Ordering::Relaxed);
    builder.build().await.expect("built");
    let whole = Arc::new(AtomicU64::new(last_seq));
    let other = fixture.builder(JOURNALS[1], &whole, &known);
    other.build().await.expect("built");
    assert_eq!(known.of(Rollup::Hours).len(), 2, "{known:?}");

    // Nothing, one journal in part, hours behind minutes, everything that there is.
    let covering = |covered: &[(Rollup, uuid::Uuid, u64)]| {
        let coverage = Coverage::default();
        covered.iter().for_each(|(rollup, journal, through)| coverage.advance(*rollup, *journal, *through));
        coverage
    };
    let (third, two) = (last_seq / 3, last_seq * 2 / 3);
    let coverages = [
        covering(&[]),
        covering(&[(Rollup::Minutes, j, third)]),
        covering(&[(Rollup::Hours, j, third), (Rollup::Minutes, j, two), (Rollup::DeviceHours, j, third)]),
        covering(&[(Rollup::Hours, j, two), (Rollup::Minutes, k, last_seq), (Rollup::DeviceHours, k, last_seq)]),
        known,
    ];
    let start = world.start;
    let spans = [
        (start, start + 6 * HOUR, HOUR),
        (start - HOUR, start + 5 * HOUR + 17 * MINUTE + 17_017, HOUR),
        (start + HOUR, start + HOUR + 30 * MINUTE, HOUR),
        (start + 45 * MINUTE, start + 4 * HOUR, 15 * MINUTE),
        (start, start + 2 * HOUR, 90_000),
        (start + 1, start + 6 * HOUR, HOUR),
    ];
    let kinds = [
        Kind::default(),
        Kind { device_type: Some("camera".into()), version: None },
        Kind { device_type: Some("sensor".into()), version: Some("2.0".into()) },
    ];
    let by_kind = [Keys::default(), Keys { device_type: true, version: true, ..Keys::default() }];
    let all = StagedSet::all();
    let device = DeviceSet::One(DeviceId::parse("dev-03").expect("an id"));
    let one = device.stage(&fixture.pool).await.expect("staged");
    let by_device = Keys { device_id: true, ..Keys::default() };
    let mut sources = std::collections::BTreeSet::new();
    for name in
        ["cpu_usage", "memory_usage", "uptime", "queue.depth", "metrics.cpu_usage", "huge", "temperature_celsius"]
    {
        let metric = Metric::named(name).expect("a metric");
        for (aggregation, (start, end, interval)) in
            [Aggregation::Last, Aggregation::P90].into_iter().flat_map(|one| spans.map(|span| (one, span)))
        {
            let at = UnixMillis::from_millis_clamped;
            let span = Span { start: at(start), end: at(end), interval };
            let quantile = aggregation.quantile().is_some();
            let of_kinds = kinds.iter().flat_map(|kind| by_kind.map(|keys| (kind, &all, keys)));
            let of_devices =
                [(&kinds[0], &one, Keys::default()), (&kinds[0], &one, by_device), (&kinds[0], &all, by_device)];
            for (kind, set, keys) in of_kinds.chain(of_devices) {
                let needs = Needs {
                    devices: !set.is_all() || keys.device_id,
                    kinds: !kind.is_any() || keys.device_type || keys.version,
                    quantile,
                    custom: metric.parameter().is_some(),
                };
                let inquiry = Inquiry { metric: &metric, aggregation, span, kind, set, keys };
                let expected = fixture.rows(&inquiry, &Plan::of_rows(&span)).await;
                for (number, coverage) in coverages.iter().enumerate() {
                    let plan = Plan::of(needs, &span, coverage);
                    if plan.source() == "heartbeats" {
                        continue;
                    }
                    sources.insert(plan.source());
                    let computed = fixture.rows(&inquiry, &plan).await;
                    same(
                        &computed,
                        &expected,
                        &format!("{name} {aggregation:?} {span:?} {kind:?} {keys:?} coverage {number}"),
                    );
                }
            }
        }
    }
    assert_eq!(sources.into_iter().collect::<Vec<_>>(), ["device_1h", "rollup_1h", "rollup_1m"]);
    builder.abort();
    other.abort();
}
