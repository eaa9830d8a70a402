//! The questions that settle doubt: is an insert of this batch still running, and which of its rows are there?
use std::time::Duration;

use super::batch::{RowKey, SeqRange};
use crate::telemetry::clickhouse::cluster::local;
use crate::telemetry::clickhouse::{ClickHouse, ClickHouseError};
use crate::telemetry::journal::JournalId;
use crate::telemetry::row::Table;

/// How often a running insert is looked for.
const POLL_EVERY: Duration = Duration::from_millis(100);

/// How many times, then the caller's backoff goes on. ClickHouse ends an insert by itself at the insert time-out.
const POLLS: u32 = 50;

/// Where rows are looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub table: Table,
    pub range: SeqRange,
    /// Least and greatest `received_at`, in milliseconds, so that only the parts of that time are read.
    pub received: (i64, i64),
}

/// How many rows a span holds, and how many different ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clickhouse::Row, serde::Deserialize)]
pub struct Counted {
    pub rows: u64,
    pub distinct: u64,
}

#[derive(clickhouse::Row, serde::Deserialize)]
struct FoundRow {
    seq: u64,
    row_index: u16,
    copies: u64,
}

#[derive(clickhouse::Row, serde::Deserialize)]
struct Running {
    inserts: u64,
}

const WHERE: &str = "WHERE journal_id = {journal:UUID} AND seq BETWEEN {first:UInt64} AND {last:UInt64} \
     AND received_at BETWEEN fromUnixTimestamp64Milli({from:Int64}, 'UTC') AND fromUnixTimestamp64Milli({to:Int64}, 'UTC')";

/// Counts rows and different rows: the audit's one query a table and segment.
///
/// Seqs stay below 2^48 (at a million a second that lasts nine years), so a row's name fits one number.
pub async fn count(clickhouse: &ClickHouse, journal: JournalId, span: Span) -> Result<Counted, ClickHouseError> {
    let sql = format!(
        "SELECT count() AS rows, uniqExact(bitOr(bitShiftLeft(seq, 16), toUInt64(row_index))) AS distinct FROM {} {WHERE}",
        span.table.name()
    );
    let counted =
        clickhouse.rows::<Counted>("count rows of the journal", bound(clickhouse, &sql, journal, span)).await?;
    Ok(counted.first().copied().unwrap_or(Counted { rows: 0, distinct: 0 }))
}

/// The name of each row that is there, with how often it is. For spans of about a batch.
pub async fn list(
    clickhouse: &ClickHouse,
    journal: JournalId,
    span: Span,
) -> Result<Vec<(RowKey, u64)>, ClickHouseError> {
    let table = span.table.name();
    let sql = match clickhouse.cluster() {
        None => format!("SELECT seq, row_index, count() AS copies FROM {table} {WHERE} GROUP BY seq, row_index"),
        // A replica that lags would tell of rows that are not there, and they would be sent twice: each is asked.
        Some(cluster) => format!(
            "SELECT seq, row_index, max(copies) AS copies FROM \
             (SELECT seq, row_index, hostName() AS host, tcpPort() AS port, count() AS copies FROM {} {WHERE} \
             GROUP BY seq, row_index, host, port) GROUP BY seq, row_index",
            cluster.all_replicas(clickhouse.database(), &local(table))
        ),
    };
    let found = clickhouse.rows::<FoundRow>("list rows of the journal", bound(clickhouse, &sql, journal, span)).await?;
    Ok(found.iter().map(|row| (RowKey { seq: row.seq, row_index: row.row_index }, row.copies)).collect())
}

fn bound(clickhouse: &ClickHouse, sql: &str, journal: JournalId, span: Span) -> clickhouse::query::Query {
    clickhouse
        .query(sql)
        .param("journal", journal.0.to_string())
        .param("first", span.range.first)
        .param("last", span.range.last)
        .param("from", span.received.0)
        .param("to", span.received.1)
        // On a cluster the answer must not come from a replica that lags behind an acknowledged insert.
        .with_setting("select_sequential_consistency", "1")
}

/// Waits, up to a bound, until ClickHouse runs no insert whose token begins with `prefix`. Whether none runs.
///
/// Only then is the answer of [`list`] final: an insert whose client has gone may yet commit.
pub async fn wait_until_idle(clickhouse: &ClickHouse, prefix: &str) -> Result<bool, ClickHouseError> {
    // On a cluster each shard has an insert of its own, which may go on when that into the Distributed table is over.
    let processes = clickhouse
        .cluster()
        .map_or_else(|| "system.processes".to_owned(), |cluster| cluster.all_replicas("system", "processes"));
    let sql = format!(
        "SELECT count() AS inserts FROM {processes} \
         WHERE query_kind = 'Insert' AND startsWith(Settings['log_comment'], {{prefix:String}})"
    );
    for _ in 0..POLLS {
        let query = clickhouse.query(&sql).param("prefix", prefix);
        let running = clickhouse.rows::<Running>("look for running inserts", query).await?;
        if running.iter().all(|row| row.inserts == 0) {
            return Ok(true);
        }
        tokio::time::sleep(POLL_EVERY).await;
    }
    Ok(false)
}
