//! The tables of a cluster, as far as one server can be one: an engine that is its own only shard.
//!
//! What it lacks is `ON CLUSTER` (nothing here carries out distributed DDL), so that is parsed and then left out, and the
//! activity of replicas, so that `Replicated` tables are made and the rows go to plain ones.
use std::path::Path;

use fleetd::engine::EngineProcess;
use fleetd::telemetry::clickhouse::{ClickHouse, Cluster};
use fleetd::telemetry::row::Table;
use fleetd::telemetry::schema::cluster::{bookkeeping, statements};
use fleetd::telemetry::schema::{migrate, Retention, MIGRATIONS};
use fleetd::telemetry::writer::WriterOptions;
use tokio::sync::OnceCell;

use crate::fixture::{config, database_name, open_journal, shared_engine, start_engine, Fixture, Stored, SOON};

const DOCUMENT: &str = include_str!("../../docs/clickhouse.md");

/// Merged by ClickHouse into the configuration that the engine writes. The port is nobody's: a replica is this server
/// when its port is that of this server, which then asks itself without a connection.
const CLUSTER: &str = "<clickhouse>
    <tcp_port>9000</tcp_port>
    <macros><shard>01</shard><replica>r1</replica></macros>
    <remote_servers><fleet><shard>
        <internal_replication>true</internal_replication>
        <replica><host>127.0.0.1</host><port>9000</port></replica>
    </shard></fleet></remote_servers>
    <zookeeper><implementation>testkeeper</implementation></zookeeper>
    <access_control_improvements>
        <on_cluster_queries_require_cluster_grant>true</on_cluster_queries_require_cluster_grant>
        <select_from_system_db_requires_grant>true</select_from_system_db_requires_grant>
    </access_control_improvements>
</clickhouse>";

/// The databases that the documented grants are for, here.
const DATABASES: [&str; 4] = ["fleetd", "cluster_made", "cluster_written", "cluster_refused"];

fn fleet() -> Cluster {
    Cluster::named("fleet").expect("a name")
}

/// The statements of the document's `sql` blocks that begin with `GRANT`.
fn documented_grants() -> Vec<String> {
    let blocks = DOCUMENT.split("```sql\n").skip(1).filter_map(|rest| rest.split("```").next());
    let grants = blocks.flat_map(str::lines).filter(|line| line.starts_with("GRANT "));
    grants.map(|line| line.strip_suffix(" TO fleetd;").expect("to the user").to_owned()).collect()
}

async fn start(dir: &Path, grants: &[String]) -> EngineProcess {
    let folder = |name: &str| {
        let folder = dir.join(name);
        std::fs::create_dir_all(&folder).expect("a folder");
        folder
    };
    std::fs::write(folder("engine.d").join("cluster.xml"), CLUSTER).expect("written");
    let grants: String = grants.iter().map(|grant| format!("<query>{grant}</query>")).collect();
    let users =
        format!("<clickhouse><users><default><grants replace=\"1\">{grants}</grants></default></users></clickhouse>");
    std::fs::write(folder("engine-users.d").join("grants.xml"), users).expect("written");
    start_engine(dir).await
}

/// One engine for this file, which ends with the test process.
async fn engine() -> &'static EngineProcess {
    static ENGINE: OnceCell<(EngineProcess, tempfile::TempDir)> = OnceCell::const_new();
    let start = || async {
        let dir = tempfile::tempdir().expect("a folder");
        let mut grants: Vec<String> = documented_grants()
            .into_iter()
            .flat_map(|grant| DATABASES.map(|database| grant.replace("fleetd.*", &format!("{database}.*"))))
            .collect();
        grants.dedup();
        // A server asks for it only where its configuration says so; the embedded one does.
        for engine in [
            "MergeTree",
            "ReplacingMergeTree",
            "AggregatingMergeTree",
            "ReplicatedMergeTree",
            "ReplicatedReplacingMergeTree",
            "ReplicatedAggregatingMergeTree",
        ] {
            grants.push(format!("GRANT TABLE ENGINE ON {engine}"));
        }
        grants.push("GRANT TABLE ENGINE ON Distributed".to_owned());
        (start(dir.path(), &grants).await, dir)
    };
    &ENGINE.get_or_init(start).await.0
}

async fn clickhouse(database: &str, cluster: Option<Cluster>) -> ClickHouse {
    let mut config = config(&engine().await.url(), database);
    config.cluster = cluster;
    ClickHouse::new(&config)
}

async fn execute(clickhouse: &ClickHouse, sql: &str) {
    clickhouse.execute("run a test's statement", clickhouse.query(sql)).await.unwrap_or_else(|error| {
        panic!("{sql}\n{error}: {:?}", std::error::Error::source(&error));
    });
}

#[derive(Debug, clickhouse::Row, serde::Deserialize)]
struct Made {
    name: String,
    engine: String,
}

async fn made(clickhouse: &ClickHouse) -> Vec<Made> {
    let query = clickhouse
        .query("SELECT name, engine FROM system.tables WHERE database = {database:String} ORDER BY name")
        .param("database", clickhouse.database());
    clickhouse.rows("list the tables", query).await.expect("lists")
}

fn for_cluster(database: &str) -> Vec<String> {
    let all = MIGRATIONS.iter().flat_map(|migration| migration.statements());
    all.flat_map(|statement| statements(&statement, &fleet(), database).expect("has a form for a cluster")).collect()
}

#[derive(clickhouse::Row, serde::Deserialize)]
struct Text {
    text: String,
}

#[tokio::test]
async fn clickhouse_reads_every_statement_for_a_cluster_as_one_on_that_cluster() {
    let clickhouse = clickhouse("fleetd", None).await;
    clickhouse.create_database().await.expect("created");
    let bookkeeping = bookkeeping("CREATE TABLE IF NOT EXISTS a (b UInt8) ENGINE = MergeTree ORDER BY b", &fleet());
    for statement in for_cluster("fleetd").into_iter().chain(bookkeeping) {
        let query = clickhouse.query("SELECT formatQuery({sql:String}) AS text").param("sql", &statement);
        let read = clickhouse.rows::<Text>("parse a statement", query).await.expect(&statement);
        assert!(read[0].text.contains(" ON CLUSTER fleet"), "{}", read[0].text);
    }
}

#[tokio::test]
async fn every_table_is_made_replicated_on_its_shard_and_distributed_over_all() {
    let clickhouse = clickhouse("cluster_made", None).await;
    clickhouse.create_database().await.expect("created");
    // Twice: a server that dies in the middle applies the whole file again.
    for statement in for_cluster("cluster_made").iter().chain(&for_cluster("cluster_made")) {
        // A replica that is not active takes no ALTER.
        if !statement.starts_with("ALTER TABLE ") || !statement.contains("_local ON CLUSTER") {
            execute(&clickhouse, &statement.replace(&fleet().clause(), "")).await;
        }
    }
    let made = made(&clickhouse).await;
    let tables = MIGRATIONS.iter().flat_map(|migration| migration.statements());
    let tables = tables.filter(|statement| statement.starts_with("CREATE TABLE")).count();
    let count = |with: &str| made.iter().filter(|table| table.engine.starts_with(with)).count();
    assert_eq!((count("Distributed"), count("Replicated"), made.len()), (tables, tables, 2 * tables), "{made:?}");
    for table in Table::ALL {
        assert!(made.iter().any(|one| one.name == table.name() && one.engine == "Distributed"), "{}", table.name());
    }
}

/// A cluster's tables without replication, filled by a writer that takes them for a cluster.
async fn fixture() -> Fixture {
    let clickhouse = clickhouse("cluster_written", Some(fleet())).await;
    execute(&self::clickhouse("default", None).await, "CREATE DATABASE IF NOT EXISTS cluster_written").await;
    for statement in for_cluster("cluster_written") {
        let plain = plain(&statement.replace(&fleet().clause(), ""));
        execute(&clickhouse, &plain).await;
    }
    let dir = tempfile::tempdir().expect("a folder");
    let mut options = WriterOptions::new(dir.path());
    options.audit_every = SOON;
    let journal = open_journal(dir.path());
    let database = clickhouse.database().to_owned();
    Fixture { dir, clickhouse, database, journal, options, heartbeats: 0, processes: 0, last_seq: 0 }
}

/// The same statement for a table that is not replicated.
fn plain(statement: &str) -> String {
    let Some((before, engine)) = statement.split_once("ENGINE = Replicated") else { return statement.to_owned() };
    let (engine, arguments) = engine.split_once('(').expect("arguments");
    let (arguments, rest) = arguments.split_once(')').expect("the end of the arguments");
    let own = arguments.split(", ").nth(2).map_or(String::new(), |own| format!("({own})"));
    let rest = rest
        .replace("replicated_deduplication_window_seconds = 604800, ", "")
        .replace("replicated_", "non_replicated_");
    format!("{before}ENGINE = {engine}{own}{rest}")
}

#[tokio::test]
async fn rows_go_through_distributed_tables_once_and_what_is_lost_is_found_on_every_replica() {
    let mut fixture = fixture().await;
    fixture.append(300).await;
    let writer = fixture.start_writer();
    writer.flush(fixture.last_seq, SOON).await.expect("flushed");
    fixture.assert_exactly_once().await;
    let local = "SELECT count() AS rows, uniqExact(seq, row_index) AS distinct FROM heartbeats_local";
    let local = fixture.clickhouse.rows::<Stored>("count", fixture.clickhouse.query(local)).await.expect("counts");
    assert_eq!(local[0].rows, 300, "acknowledged means stored on the shard");

    fixture.execute("ALTER TABLE heartbeats_local DELETE WHERE seq % 10 = 3 SETTINGS mutations_sync = 2").await;
    assert_eq!(fixture.stored(Table::Heartbeats).await.rows, 270);
    writer.audit(fixture.last_seq, SOON).await.expect("audited");
    fixture.assert_exactly_once().await;
    assert_eq!(writer.status().rows_repaired, 30);
    writer.shutdown(SOON).await.expect("stops");
}

#[tokio::test]
async fn a_streamed_answer_has_the_settings_of_a_cluster_too() {
    let clickhouse = clickhouse("default", Some(fleet())).await;
    let sql = "SELECT getSetting('distributed_product_mode') FORMAT TabSeparated".to_owned();
    let mut answer = clickhouse.stream(sql, &[], &[]).await.expect("an answer");
    let piece = answer.next().await.expect("no exception").expect("a piece");
    assert_eq!(&piece[..], b"global\n");
}

#[tokio::test]
async fn a_database_of_one_kind_is_refused_as_the_other() {
    let single = ClickHouse::new(&config(&shared_engine().await.url(), &database_name()));
    migrate(&single, &Retention::default()).await.expect("migrates");
    let mut as_cluster = config(&shared_engine().await.url(), single.database());
    as_cluster.cluster = Some(fleet());
    let refused = migrate(&ClickHouse::new(&as_cluster), &Retention::default()).await.expect_err("a single server's");
    assert!(refused.to_string().contains("made for a single server"), "{refused}");

    let spread = clickhouse("cluster_refused", None).await;
    spread.create_database().await.expect("created");
    for statement in for_cluster("cluster_refused") {
        execute(&spread, &plain(&statement.replace(&fleet().clause(), ""))).await;
    }
    let refused = migrate(&spread, &Retention::default()).await.expect_err("a cluster's");
    assert!(refused.to_string().contains("made for a cluster") && refused.to_string().contains("clickhouse_cluster"));
}
