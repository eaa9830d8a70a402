//! The same question from the computed tables and from the rows has the same answer, however much is computed.
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use fleetd::actors::entry::DeviceEntry;
use fleetd::analytics::question::{HOUR, MINUTE};
use fleetd::analytics::source::{Needs, Plan};
use fleetd::analytics::sql::{Inquiry, Keys, Kind, Row};
use fleetd::analytics::{AnalystPool, Choice, DeviceSet, Span, StagedSet};
use fleetd::auth::KeyHash;
use fleetd::clock::UnixMillis;
use fleetd::engine::{EngineOptions, EngineProcess};
use fleetd::error::{ApiError, ErrorCode};
use fleetd::fleet::{FleetIndex, FleetQueries};
use fleetd::ids::DeviceId;
use fleetd::query::{Field, Filter};
use fleetd::store::Device;
use fleetd::telemetry::clickhouse::{ClickHouse, ClickHouseConfig};
use fleetd::telemetry::journal::JournalId;
use fleetd::telemetry::metric::{Aggregation, Metric};
use fleetd::telemetry::rollup::{self, Coverage, Positions, Rollup, RollupHandle, RollupOptions};
use fleetd::telemetry::schema::{migrate, Retention};

use super::naive::insert;
use super::world::{device_type, id, labels, World, DEVICES, JOURNALS};

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
        let options = EngineOptions::new(env!("CARGO_BIN_EXE_fleetd"), dir.path());
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

fn key(row: &Row) -> (&str, &str, &str, u32, u32) {
    (&row.device_type, &row.version, &row.device_id, row.group_id, row.bucket)
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

/// All registered devices, grouped by a label.
async fn regions() -> DeviceSet {
    let index = FleetIndex::new(std::time::Duration::from_secs(60));
    for number in 0..DEVICES {
        let device = Device {
            id: DeviceId::parse(&id(number)).expect("an id"),
            name: id(number),
            device_type: device_type(number).into(),
            version: String::new(),
            metadata: [].into(),
            labels: labels(number),
            system_info: Default::default(),
            registered_at: UnixMillis::EPOCH,
            last_seen: None,
            key_hash: KeyHash::of("key"),
            revision: 1,
            maintenance: false,
            heartbeat_interval: None,
        };
        index.insert(DeviceEntry::new(device.id.clone(), device.key_hash, (&device).into()), &(&device).into());
    }
    let queries = FleetQueries::start(index).expect("threads");
    let choice = Choice { group_by: vec![Field::Label("region".into())], ..Choice::matching(Filter::matches_all()) };
    let set = DeviceSet::resolve(&queries, choice).await.expect("devices");
    match &set {
        DeviceSet::Members(members) => assert_eq!((members.devices.len(), members.groups.len()), (DEVICES, 3)),
        DeviceSet::All | DeviceSet::One(_) => panic!("a group by a label needs the index"),
    }
    set
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
    let regions = regions().await.stage(&fixture.pool).await.expect("staged");
    let by_region = Keys { set_groups: true, ..Keys::default() };
    let mut sources = std::collections::BTreeSet::new();
    let names =
        ["cpu_usage", "queue.depth", "memory_usage", "uptime", "metrics.cpu_usage", "huge", "temperature_celsius"];
    for (place, name) in names.into_iter().enumerate() {
        let metric = Metric::named(name).expect("a metric");
        // Two of them at all edges, the others where tables meet.
        let (spans, both) = if place < 2 { (&spans[..], 2) } else { (&spans[..2], 1) };
        for (aggregation, (start, end, interval)) in [Aggregation::P90, Aggregation::Last]
            .into_iter()
            .take(both)
            .flat_map(|one| spans.iter().map(move |span| (one, *span)))
        {
            let at = UnixMillis::from_millis_clamped;
            let span = Span { start: at(start), end: at(end), interval };
            let quantile = aggregation.quantile().is_some();
            let of_kinds = kinds.iter().zip(by_kind.into_iter().cycle()).map(|(kind, keys)| (kind, &all, keys));
            let sets = [(&one, Keys::default()), (&one, by_device), (&all, by_device), (&regions, by_region)];
            let of_devices = sets.map(|(set, keys)| (&kinds[0], set, keys));
            for (kind, set, keys) in of_kinds.chain(of_devices) {
                let needs = Needs {
                    devices: !set.is_all() || keys.device_id,
                    kinds: !kind.is_any() || keys.device_type || keys.version,
                    quantile,
                    custom: metric.parameter().is_some(),
                };
                let inquiry = Inquiry { metric: &metric, aggregation, span, kind, set, keys };
                let plans: Vec<_> = coverages.iter().map(|coverage| Plan::of(needs, &span, coverage)).collect();
                if plans.iter().all(|plan| plan.source() == "heartbeats") {
                    continue;
                }
                let expected = fixture.rows(&inquiry, &Plan::of_rows(&span)).await;
                for (number, plan) in plans.iter().enumerate().filter(|(_, plan)| plan.source() != "heartbeats") {
                    sources.insert(plan.source());
                    let computed = fixture.rows(&inquiry, plan).await;
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

#[derive(Debug, clickhouse::Row, serde::Deserialize)]
struct One {
    _number: u64,
}

#[tokio::test]
async fn a_question_that_reaches_a_limit_is_told_which_and_what_to_do() {
    let fixture = Fixture::new().await;
    for (sql, setting, value, sentence) in [
        ("SELECT seq FROM heartbeats", "max_rows_to_read", "10", "more than 2 billion rows; ask for a shorter time"),
        (
            "SELECT number + sleepEachRow(1) FROM numbers(9)",
            "max_execution_time",
            "1",
            "longer than 30 s; ask for a shorter",
        ),
        (
            "SELECT sum(number) FROM numbers(9000000) GROUP BY number",
            "max_memory_usage",
            "9000000",
            "more than 1 GB of memory",
        ),
        ("SELECT seq FROM heartbeats", "max_result_rows", "10", "more than a million rows; ask for a shorter time"),
    ] {
        let query = fixture.pool.query(sql).with_setting(setting, value).with_setting("max_block_size", "1");
        let error = ApiError::from(fixture.pool.rows::<One>("ask", query).await.expect_err("too costly"));
        assert_eq!(error.code, ErrorCode::ResourceExhausted, "{sql}: {error:?}");
        assert!(error.message.contains(sentence), "{sql}: {error}");
    }
    for sql in
        ["INSERT INTO heartbeats (seq) VALUES (1)", "DROP TABLE heartbeats", "SELECT no_such_column FROM heartbeats"]
    {
        let error =
            ApiError::from(fixture.pool.rows::<One>("ask", fixture.pool.query(sql)).await.expect_err("refused"));
        assert_eq!(error.code, ErrorCode::Internal, "{sql}: {error:?}");
    }
    // As many as may run at once, and one more that gives up.
    let mut turns = Vec::new();
    for _ in 0..fixture.pool.at_once() {
        turns.push(fixture.pool.turn().await.expect("a turn"));
    }
    let waiting = fixture.pool.rows::<One>("ask", fixture.pool.query("SELECT 1"));
    let error = ApiError::from(waiting.await.expect_err("nobody makes room"));
    assert_eq!(error.code, ErrorCode::Unavailable, "{error:?}");
    assert!(error.retry_after.is_some() && error.message.contains("try again in a moment"), "{error}");
    drop(turns);
    let stats = fixture.pool.stats();
    assert_eq!((stats.stopped, stats.failed, stats.refused), (4, 3, 1), "{stats:?}");
}
