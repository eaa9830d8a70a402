//! `rollup_progress`: how far the computed tables are, kept beside them.
use std::collections::BTreeMap;

use uuid::Uuid;

use super::coverage::{Coverage, Rollup};
use super::plan::Progress;
use crate::telemetry::clickhouse::{ClickHouse, ClickHouseError};

#[derive(clickhouse::Row, serde::Deserialize)]
struct Row {
    journal: String,
    name: String,
    through: u64,
    planned: u64,
    audited: u64,
    built_at: i64,
}

/// Reads the progress of all journals, and lets `coverage` know; gives that of `journal`.
pub async fn load(
    clickhouse: &ClickHouse,
    journal: Uuid,
    coverage: &Coverage,
) -> Result<BTreeMap<Rollup, Progress>, ClickHouseError> {
    let query = clickhouse.query(
        "SELECT toString(journal_id) AS journal, CAST(rollup AS String) AS name, max(through_seq) AS through, \
         max(planned_seq) AS planned, max(audited_seq) AS audited, toUnixTimestamp64Milli(max(built_at)) AS built_at \
         FROM rollup_progress GROUP BY journal_id, rollup SETTINGS select_sequential_consistency = 1",
    );
    let mut own: BTreeMap<_, _> = Rollup::ALL.into_iter().map(|rollup| (rollup, Progress::default())).collect();
    for row in clickhouse.rows::<Row>("read how far the computed tables are", query).await? {
        // A table of another version of this program.
        let Some(rollup) = Rollup::ALL.into_iter().find(|rollup| rollup.table() == row.name) else { continue };
        let Ok(of) = Uuid::parse_str(&row.journal) else { continue };
        coverage.advance(rollup, of, row.through);
        if of == journal {
            let Row { through, planned, audited, built_at, .. } = row;
            own.insert(rollup, Progress { through, planned, audited, built_at });
        }
    }
    coverage.set_loaded();
    Ok(own)
}

/// Returns once the progress is durable. Never deduplicated: saying it twice does no harm, and a deduplication log that
/// is out of date may drop what it should not.
pub async fn save(
    clickhouse: &ClickHouse,
    journal: Uuid,
    rollup: Rollup,
    progress: Progress,
) -> Result<(), ClickHouseError> {
    let query = clickhouse
        .query(
            "INSERT INTO rollup_progress (journal_id, rollup, through_seq, planned_seq, audited_seq, built_at) \
             SELECT {journal:UUID}, {rollup:String}, {through:UInt64}, {planned:UInt64}, {audited:UInt64}, \
             fromUnixTimestamp64Milli({built_at:Int64}, 'UTC')",
        )
        .with_setting("async_insert", "0")
        .with_setting("insert_deduplicate", "0")
        .param("journal", journal.to_string())
        .param("rollup", rollup.table())
        .param("through", progress.through)
        .param("planned", progress.planned)
        .param("audited", progress.audited)
        .param("built_at", progress.built_at);
    clickhouse.execute("record how far a computed table is", query).await
}
