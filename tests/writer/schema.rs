//! The tables are brought up to date once, whatever interrupts that, and never by the wrong program.
use std::time::Duration;

use fleetd::telemetry::clickhouse::ClickHouse;
use fleetd::telemetry::schema::{migrate, Migration, Retention, MIGRATIONS};

use crate::fixture::{config, database_name, shared_engine};

#[derive(Debug, PartialEq, Eq, clickhouse::Row, serde::Deserialize)]
struct Text {
    text: String,
}

async fn fresh() -> ClickHouse {
    ClickHouse::new(&config(&shared_engine().await.url(), &database_name()))
}

async fn texts(clickhouse: &ClickHouse, sql: &str) -> Vec<String> {
    let query = clickhouse.query(sql).param("database", clickhouse.database());
    clickhouse.rows::<Text>("read", query).await.expect(sql).into_iter().map(|row| row.text).collect()
}

const TABLES: &str =
    "SELECT create_table_query AS text FROM system.tables WHERE database = {database:String} ORDER BY name";
const RECORDED: &str = "SELECT toString(version) AS text FROM schema_migrations ORDER BY version";

fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[tokio::test]
async fn migrating_twice_changes_nothing_the_second_time() {
    let clickhouse = fresh().await;
    migrate(&clickhouse, &Retention::default()).await.expect("migrates");
    let first = (texts(&clickhouse, TABLES).await, texts(&clickhouse, RECORDED).await);
    assert_eq!(first.0.len(), 12, "{:?}", first.0);
    migrate(&clickhouse, &Retention::default()).await.expect("migrates again");
    assert_eq!((texts(&clickhouse, TABLES).await, texts(&clickhouse, RECORDED).await), first);
}

#[tokio::test]
async fn a_migration_that_was_cut_short_is_finished_by_the_next_start() {
    let whole = fresh().await;
    migrate(&whole, &Retention::default()).await.expect("migrates");
    let expected: Vec<_> = texts(&whole, TABLES).await;
    let statements: Vec<_> = MIGRATIONS.iter().flat_map(Migration::statements).collect();
    for done in 0..=statements.len() {
        let clickhouse = fresh().await;
        clickhouse.create_database().await.expect("created");
        for statement in &statements[..done] {
            clickhouse.execute("cut short", clickhouse.query(statement)).await.expect("applies");
        }
        migrate(&clickhouse, &Retention::default()).await.expect("finishes");
        let found: Vec<_> = texts(&clickhouse, TABLES).await;
        let found: Vec<_> = found.iter().map(|text| text.replace(clickhouse.database(), whole.database())).collect();
        assert_eq!(found, expected, "after {done} statements");
    }
}

#[tokio::test]
async fn a_database_of_a_newer_program_is_refused_with_both_versions() {
    let clickhouse = fresh().await;
    migrate(&clickhouse, &Retention::default()).await.expect("migrates");
    let insert = "INSERT INTO schema_migrations (version, name, checksum) VALUES (99, 'future', 'x')";
    clickhouse.execute("pretend", clickhouse.query(insert)).await.expect("inserted");
    let refused = migrate(&clickhouse, &Retention::default()).await.expect_err("newer");
    let refused = chain(&refused);
    assert!(refused.contains("version 99") && refused.contains("run the newer fleetd"), "{refused}");
}

#[tokio::test]
async fn an_altered_migration_is_refused_by_name() {
    let clickhouse = fresh().await;
    migrate(&clickhouse, &Retention::default()).await.expect("migrates");
    let insert = "INSERT INTO schema_migrations (version, name, checksum) VALUES (1, 'telemetry', 'x')";
    clickhouse.execute("pretend", clickhouse.query(insert)).await.expect("inserted");
    let refused = migrate(&clickhouse, &Retention::default()).await.expect_err("altered");
    let refused = chain(&refused);
    assert!(refused.contains("migration 1 (telemetry)") && refused.contains("altered"), "{refused}");
}

#[tokio::test]
async fn retention_is_altered_when_it_differs_and_only_then() {
    let clickhouse = fresh().await;
    let ttl = "SELECT extract(engine_full, 'TTL (.*?) SETTINGS') AS text FROM system.tables \
        WHERE database = {database:String} AND name IN ('heartbeats', 'rollup_1m') ORDER BY name";
    let changed = "SELECT toString(metadata_modification_time) AS text FROM system.tables \
        WHERE database = {database:String} ORDER BY name";
    let with = |kept| Retention { heartbeats: kept, rollup_1m: kept, ..Retention::default() };
    let expected =
        |seconds: u32| ["toDateTime(received_at)", "time"].map(|at| format!("{at} + toIntervalSecond({seconds})"));
    migrate(&clickhouse, &with(Some(Duration::from_secs(3600)))).await.expect("migrates");
    assert_eq!(texts(&clickhouse, ttl).await, expected(3600));

    let before = texts(&clickhouse, changed).await;
    // The time has a resolution of a second: an ALTER now would show.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    migrate(&clickhouse, &with(Some(Duration::from_secs(3600)))).await.expect("migrates");
    assert_eq!(texts(&clickhouse, changed).await, before);

    migrate(&clickhouse, &with(Some(Duration::from_secs(7200)))).await.expect("migrates");
    assert_eq!(texts(&clickhouse, ttl).await, expected(7200));
    migrate(&clickhouse, &with(None)).await.expect("migrates");
    assert_eq!(texts(&clickhouse, ttl).await, ["", ""]);
    migrate(&clickhouse, &with(None)).await.expect("migrates");
}
