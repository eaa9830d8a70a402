//! The telemetry tables: brought up to date at each start by numbered migrations, and aged by the configured retention.
pub mod cluster;
mod plan;

use std::borrow::Cow;
use std::time::Duration;

use cluster::Arrangement;
pub use plan::{pending, Applied, Migration, RefusedSchema};

use super::clickhouse::cluster::local;
use super::clickhouse::{ClickHouse, ClickHouseError};
use super::row::Table;

/// All migrations, oldest first. Never edit one that was released: add another.
pub const MIGRATIONS: [Migration; 2] = [
    Migration { version: 1, name: "telemetry", sql: include_str!("0001_telemetry.sql") },
    Migration { version: 2, name: "analytics", sql: include_str!("0002_analytics.sql") },
];

/// Holds what was applied. The token of each insert makes a version that two servers apply at once one row.
const BOOKKEEPING: &str = "CREATE TABLE IF NOT EXISTS schema_migrations \
     (version UInt32, name String, checksum String, applied_at DateTime64(3, 'UTC') DEFAULT now64(3)) \
     ENGINE = MergeTree ORDER BY version \
     SETTINGS non_replicated_deduplication_window = 10000, fsync_after_insert = 1, fsync_part_directory = 1";

/// How long rows are kept, by table; `None` keeps them for ever. Counted from `received_at`, to the second; a row goes
/// with the last of its day, so up to a day later. Rows of rollups count from their own time, and go with the last of
/// their month.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    pub heartbeats: Option<Duration>,
    pub processes: Option<Duration>,
    pub device_events: Option<Duration>,
    pub deployment_events: Option<Duration>,
    pub server_metrics: Option<Duration>,
    pub rollup_1m: Option<Duration>,
    /// And of `device_1h`.
    pub rollup_1h: Option<Duration>,
}

impl Default for Retention {
    /// A month of heartbeats and of the server's own metrics, a week of processes, a year of events, three months of
    /// minutes, two years of hours.
    fn default() -> Self {
        const DAY: Duration = Duration::from_secs(86_400);
        Self {
            heartbeats: Some(30 * DAY),
            processes: Some(7 * DAY),
            device_events: Some(365 * DAY),
            deployment_events: Some(365 * DAY),
            server_metrics: Some(30 * DAY),
            rollup_1m: Some(90 * DAY),
            rollup_1h: Some(730 * DAY),
        }
    }
}

impl Retention {
    pub const fn of(&self, table: Table) -> Option<Duration> {
        match table {
            Table::Heartbeats => self.heartbeats,
            Table::Processes => self.processes,
            Table::DeviceEvents => self.device_events,
            Table::DeploymentEvents => self.deployment_events,
            Table::ServerMetrics => self.server_metrics,
        }
    }

    /// Every table that ages: its name, the time its rows count from, how long they are kept.
    fn tables(&self) -> impl Iterator<Item = (&'static str, &'static str, Option<Duration>)> + '_ {
        let rows = Table::ALL.into_iter().map(|table| (table.name(), "toDateTime(received_at)", self.of(table)));
        rows.chain([
            ("rollup_1m", "time", self.rollup_1m),
            ("rollup_1h", "time", self.rollup_1h),
            ("device_1h", "time", self.rollup_1h),
        ])
    }
}

/// Why the schema is not up to date. The server does not start.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    #[error("cannot bring the telemetry tables up to date")]
    ClickHouse(#[from] ClickHouseError),
    #[error("migration {version} ({name}) failed at statement {statement}")]
    Migration {
        version: u32,
        name: &'static str,
        /// Counted from 1.
        statement: usize,
        #[source]
        source: ClickHouseError,
    },
    #[error(transparent)]
    Refused(#[from] RefusedSchema),
}

impl SchemaError {
    /// Whether ClickHouse did not answer at all, so that nothing is known to be wrong with the tables.
    pub fn is_no_answer(&self) -> bool {
        match self {
            Self::ClickHouse(source) | Self::Migration { source, .. } => source.code.is_none(),
            Self::Refused(_) => false,
        }
    }
}

/// Creates the database if need be, applies what is missing, and sets the retention where it differs.
pub async fn migrate(clickhouse: &ClickHouse, retention: &Retention) -> Result<(), SchemaError> {
    check_arrangement(clickhouse).await?;
    clickhouse.create_database().await?;
    let bookkeeping = match clickhouse.cluster().and_then(|cluster| cluster::bookkeeping(BOOKKEEPING, cluster)) {
        Some(replicated) => Cow::Owned(replicated),
        None => Cow::Borrowed(BOOKKEEPING),
    };
    clickhouse.execute("create the list of migrations", clickhouse.query(&bookkeeping)).await?;
    let applied: Vec<Applied> = clickhouse
        .rows("read the list of migrations", clickhouse.query("SELECT version, checksum FROM schema_migrations"))
        .await?;
    for migration in pending(&MIGRATIONS, &applied)? {
        apply(clickhouse, migration).await?;
    }
    for (table, counted_from, kept) in retention.tables() {
        apply_retention(clickhouse, table, counted_from, kept).await?;
    }
    Ok(())
}

async fn apply(clickhouse: &ClickHouse, migration: &Migration) -> Result<(), SchemaError> {
    let Migration { version, name, .. } = *migration;
    for (at, statement) in migration.statements().into_iter().enumerate() {
        let statements = match clickhouse.cluster() {
            Some(cluster) => {
                cluster::statements(&statement, cluster, clickhouse.database()).map_err(RefusedSchema::from)?
            }
            None => vec![statement],
        };
        for statement in statements {
            clickhouse
                .execute("apply a migration", clickhouse.query(&statement))
                .await
                .map_err(|source| SchemaError::Migration { version, name, statement: at + 1, source })?;
        }
    }
    let record = clickhouse
        .query(
            "INSERT INTO schema_migrations (version, name, checksum) \
             SELECT {version:UInt32}, {name:String}, {checksum:String}",
        )
        .with_setting("async_insert", "0")
        .with_setting("insert_deduplication_token", format!("migration:{version}"))
        .param("version", version)
        .param("name", name)
        .param("checksum", migration.checksum());
    clickhouse.execute("record a migration", record).await?;
    tracing::info!(version, name, database = clickhouse.database(), "schema migration applied");
    Ok(())
}

#[derive(clickhouse::Row, serde::Deserialize)]
struct Engine {
    engine: String,
}

/// Refuses a database that was made for a single server when a cluster is wanted, and the other way round: its list of
/// migrations would say that all is there.
async fn check_arrangement(clickhouse: &ClickHouse) -> Result<(), SchemaError> {
    let query = clickhouse
        .query_outside("SELECT engine FROM system.tables WHERE database = {database:String} AND name = {table:String}")
        .param("database", clickhouse.database())
        .param("table", Table::Heartbeats.name());
    let found: Vec<Engine> = clickhouse.rows("read how the tables are arranged", query).await?;
    let wanted = if clickhouse.cluster().is_some() { Arrangement::Cluster } else { Arrangement::Single };
    match found.first().map(|row| Arrangement::of_engine(&row.engine)) {
        Some(found) if found != wanted => Err(RefusedSchema::Arranged { found, wanted }.into()),
        _ => Ok(()),
    }
}

#[derive(clickhouse::Row, serde::Deserialize)]
struct Ttl {
    ttl: String,
}

/// Alters the table only when its TTL is another, because ClickHouse recomputes every part after an ALTER.
async fn apply_retention(
    clickhouse: &ClickHouse,
    table: &'static str,
    counted_from: &str,
    retention: Option<Duration>,
) -> Result<(), SchemaError> {
    // The table that holds the rows, and on which servers to alter it.
    let (name, on) = match clickhouse.cluster() {
        Some(cluster) => (Cow::Owned(local(table)), cluster.clause()),
        None => (Cow::Borrowed(table), String::new()),
    };
    let query = clickhouse
        .query(
            "SELECT extract(engine_full, 'TTL (.*?)(?: SETTINGS |$)') AS ttl \
             FROM system.tables WHERE database = {database:String} AND name = {table:String}",
        )
        .param("database", clickhouse.database())
        .param("table", name.as_ref());
    let found: Vec<Ttl> = clickhouse.rows("read a table's retention", query).await?;
    let found = found.first().map_or("", |row| row.ttl.as_str());
    // As ClickHouse prints it back, so that this is a comparison of texts.
    let expression = |kept: Duration| format!("{counted_from} + toIntervalSecond({})", kept.as_secs());
    let wanted = retention.map(expression).unwrap_or_default();
    if found == wanted {
        return Ok(());
    }
    let statement = match wanted.as_str() {
        "" => format!("ALTER TABLE {name}{on} REMOVE TTL"),
        expression => format!("ALTER TABLE {name}{on} MODIFY TTL {expression}"),
    };
    clickhouse.execute("set a table's retention", clickhouse.query(&statement)).await?;
    tracing::info!(table = name.as_ref(), was = found, now = wanted, "retention changed");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn migrations_are_numbered_from_1_without_a_gap() {
        for (at, migration) in MIGRATIONS.iter().enumerate() {
            assert_eq!(migration.version as usize, at + 1, "{}", migration.name);
        }
    }

    #[test]
    fn every_statement_can_be_applied_twice() {
        for migration in MIGRATIONS {
            assert!(!migration.statements().is_empty());
            for statement in migration.statements() {
                assert!(statement.contains(" IF NOT EXISTS ") || statement.contains(" IF EXISTS "), "{statement}");
            }
        }
    }

    #[test]
    fn every_table_has_the_columns_that_its_rows_are_written_with() {
        let sql = MIGRATIONS.iter().map(|migration| migration.sql).collect::<String>();
        for table in Table::ALL {
            let start = format!("CREATE TABLE IF NOT EXISTS {}\n(", table.name());
            let body = sql.split_once(&start).unwrap_or_else(|| panic!("{start}")).1;
            let body = body.split_once("\n)").expect("an end").0;
            let column = |line: &str| line.split(" CODEC(").next().unwrap_or_default().to_owned();
            let made = body.lines().map(|line| line.trim().trim_end_matches(','));
            let made = made.filter(|line| !line.is_empty() && !line.starts_with("INDEX")).map(column);
            let add = format!("ALTER TABLE {} ADD COLUMN IF NOT EXISTS ", table.name());
            let added = MIGRATIONS.iter().flat_map(Migration::statements);
            let added: Vec<_> = added.filter_map(|statement| statement.strip_prefix(&add).map(column)).collect();
            assert_eq!(added.len(), table.trailing(), "rows of an earlier version lack what was added: {added:?}");
            let made: Vec<_> = made.chain(added).collect();
            let written = table.columns().iter().map(|column| format!("{} {}", column.name, column.of.name()));
            let written: Vec<_> = written.collect();
            assert_eq!(made, written, "{}", table.name());
        }
    }
}
