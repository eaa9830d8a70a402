//! One statement at a time to ClickHouse: builds a range of a table, compares it, says what is there.
use std::time::Duration;

use clickhouse::query::Query;
use uuid::Uuid;

use super::coverage::Rollup;
use super::plan::Range;
use super::sql;
use crate::telemetry::clickhouse::{ClickHouse, ClickHouseError};

/// For one statement. A range of [`MAX_RECORDS`](super::plan::MAX_RECORDS) takes some ten seconds of a busy core, an hour
/// of a million devices a few minutes.
pub const STATEMENT_TIMEOUT: Duration = Duration::from_secs(600);

/// What a statement may take: one thread, because ingest must keep its cores, and memory for the groups of a range. More
/// groups than that (devices may send what metrics they like) go to the disk in between: a range that was planned has to
/// be built.
///
/// Nothing is deduplicated: rows of a range that are there twice replace each other, and a deduplication log that is out
/// of date may drop an insert that it acknowledges (ClickHouse#121174).
const SETTINGS: [(&str, &str); 10] = [
    ("max_threads", "1"),
    ("max_insert_threads", "1"),
    ("max_memory_usage", "2000000000"),
    ("max_bytes_before_external_group_by", "500000000"),
    ("max_execution_time", "600"),
    ("async_insert", "0"),
    ("insert_deduplicate", "0"),
    // A device whose clock is a month behind writes to another partition than the others; none may be refused.
    ("max_partitions_per_insert_block", "0"),
    // A replica that is behind would leave rows out that the writer was told are there.
    ("select_sequential_consistency", "1"),
    // A key has one time, and a time one partition.
    ("do_not_merge_across_partitions_select_final", "1"),
];

/// Aggregates a device after the other as the table has them, where groups are as many as devices. That takes memory for
/// each part that is read, of a bound that says nothing of the states of a hundred aggregates: small blocks keep it low in
/// a range of a day or two. One of thirty days was measured to need 2 GB even so.
const IN_ORDER: [(&str, &str); 3] = [
    ("optimize_aggregation_in_order", "1"),
    ("aggregation_in_order_max_block_bytes", "1000000"),
    ("max_block_size", "8192"),
];

/// `MEMORY_LIMIT_EXCEEDED` of ClickHouse's `ErrorCodes.cpp`.
const MEMORY_LIMIT_EXCEEDED: u32 = 241;

/// How many heartbeats, and when the first and the last of them were received, in milliseconds since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clickhouse::Row, serde::Deserialize)]
pub struct Extent {
    pub heartbeats: u64,
    pub earliest: i64,
    pub latest: i64,
}

/// A range as a table has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clickhouse::Row, serde::Deserialize)]
pub struct Present {
    pub first: u64,
    pub last: u64,
    pub newest: u32,
}

/// How many groups of a range are not what they should be, and one of them in words.
#[derive(Clone, Debug, PartialEq, Eq, clickhouse::Row, serde::Deserialize)]
pub struct Difference {
    pub differing: u64,
    pub example: String,
}

#[derive(clickhouse::Row, serde::Deserialize)]
struct Seqs {
    first: u64,
    last: u64,
}

#[derive(clickhouse::Row, serde::Deserialize)]
struct First {
    seq: u64,
}

/// The statements about one journal.
pub struct Builder {
    clickhouse: ClickHouse,
    journal: Uuid,
}

impl Builder {
    pub fn new(clickhouse: ClickHouse, journal: Uuid) -> Self {
        Self { clickhouse: clickhouse.with_query_timeout(STATEMENT_TIMEOUT), journal }
    }

    pub fn clickhouse(&self) -> &ClickHouse {
        &self.clickhouse
    }

    pub fn journal(&self) -> Uuid {
        self.journal
    }

    /// Inserts all rows of the range, as `generation`. Where it fails, some of them may be there.
    pub async fn build(&self, rollup: Rollup, range: Range, generation: u32) -> Result<(), ClickHouseError> {
        let extent = match rollup {
            Rollup::Hours => Extent::default(),
            _ => self.extent(range).await?,
        };
        if extent.heartbeats == 0 && rollup != Rollup::Hours {
            return Ok(());
        }
        let name = format!("rollup:{}:{}:{range}:{generation}", self.journal, rollup.table());
        let statement = |settings: &[(&'static str, &'static str)]| {
            let query = self
                .query(&sql::build(rollup), range, extent)
                .param("generation", generation)
                .with_setting("log_comment", name.clone());
            settings.iter().fold(query, |query, (name, value)| query.with_setting(*name, *value))
        };
        let operation = "build a range of a computed table";
        if rollup != Rollup::DeviceHours {
            return self.clickhouse.execute(operation, statement(&[])).await;
        }
        match self.clickhouse.execute(operation, statement(&IN_ORDER)).await {
            // By a table in memory, which goes to the disk where it grows too large.
            Err(error) if error.code == Some(MEMORY_LIMIT_EXCEEDED) => {
                self.clickhouse.execute(operation, statement(&[])).await
            }
            outcome => outcome,
        }
    }

    /// After a range was built again as `generation`: marks what it had before and has no more.
    pub async fn bury(&self, rollup: Rollup, range: Range, generation: u32) -> Result<(), ClickHouseError> {
        let query = self.query(&sql::bury(rollup), range, Extent::default()).param("generation", generation);
        self.clickhouse.execute("replace rows of a computed table that have no heartbeats any more", query).await
    }

    pub async fn compare(
        &self,
        rollup: Rollup,
        range: Range,
        extent: Extent,
    ) -> Result<Option<Difference>, ClickHouseError> {
        let query = self.query(&sql::compare(rollup), range, extent);
        let rows = self.clickhouse.rows::<Difference>("compare a range of a computed table", query).await?;
        Ok(rows.into_iter().next().filter(|difference| difference.differing > 0))
    }

    /// Of the heartbeats in ClickHouse.
    pub async fn extent(&self, range: Range) -> Result<Extent, ClickHouseError> {
        self.one("look for heartbeats of a range", sql::extent(), range).await
    }

    /// Of the heartbeats that `rollup_1m` was made of, as far as its rows tell.
    pub async fn remembered_extent(&self, range: Range) -> Result<Extent, ClickHouseError> {
        self.one("look how old a range of rollup_1m is", sql::earliest_received(), range).await
    }

    async fn one(&self, operation: &'static str, sql: &str, range: Range) -> Result<Extent, ClickHouseError> {
        let rows = self.clickhouse.rows::<Extent>(operation, self.query(sql, range, Extent::default())).await?;
        Ok(rows.first().copied().unwrap_or_default())
    }

    /// The ranges of a table that lie within another, wholly or in part, in order.
    pub async fn ranges(&self, rollup: Rollup, within: Range) -> Result<Vec<Present>, ClickHouseError> {
        let query = self.query(&sql::ranges(rollup), within, Extent::default());
        self.clickhouse.rows("list ranges of a computed table", query).await
    }

    /// The least number that has a heartbeat.
    pub async fn first_seq(&self) -> Result<Option<u64>, ClickHouseError> {
        let query = self.query(sql::first_seq(), Range { first: 0, last: 0 }, Extent::default());
        let rows = self.clickhouse.rows::<First>("look for the first heartbeat of the journal", query).await?;
        Ok(rows.first().map(|row| row.seq).filter(|seq| *seq > 0))
    }

    /// The numbers whose heartbeats were measured within a span of time, in milliseconds, ends included.
    pub async fn seqs_of_time(&self, from: i64, until: i64) -> Result<Option<Range>, ClickHouseError> {
        let span = Extent { heartbeats: 0, earliest: from, latest: until };
        let query = self.query(&sql::seqs_of_time(), Range { first: 0, last: 0 }, span);
        let rows = self.clickhouse.rows::<Seqs>("look for the heartbeats of a span", query).await?;
        Ok(rows.first().map(|row| Range { first: row.first, last: row.last }).filter(|range| range.last > 0))
    }

    fn query(&self, sql: &str, range: Range, extent: Extent) -> Query {
        let query = self
            .clickhouse
            .query(sql)
            .param("journal", self.journal.to_string())
            .param("first", range.first)
            .param("last", range.last)
            .param("from", extent.earliest)
            .param("until", extent.latest);
        SETTINGS.iter().fold(query, |query, (name, value)| query.with_setting(*name, *value))
    }
}
