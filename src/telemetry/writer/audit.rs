//! The audit: before the journal forgets a record, its rows are counted in ClickHouse once more.
//!
//! An acknowledged insert is not yet a stored one: ClickHouse's deduplication log is not fsynced (ClickHouse#111577),
//! and a stale one may drop an insert that it then acknowledges (ClickHouse#121174, #120904). So a segment of the journal
//! is only given up after one query a table has found each of its rows; rows that are missing are sent again, under a
//! token that ClickHouse cannot know.
use std::time::Duration;

use super::backoff::Backoff;
use super::batch::{RowKey, SeqRange, TableRows};
use super::deliver::Courier;
use super::plan::Selection;
use super::presence::{self, Counted, Span};
use super::source::{Source, READ_BYTES, READ_RECORDS};
use crate::telemetry::clickhouse::ClickHouseError;
use crate::telemetry::journal::{Journal, ReadError, Seq};
use crate::telemetry::row::{Sections, Table, UnixMillis};
use crate::telemetry::schema::Retention;

/// Rows this close to the end of their retention are not missed: ClickHouse may have dropped them already.
const EXPIRY_MARGIN: Duration = Duration::from_secs(3_600);

/// What a table must hold of the audited range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Expected {
    rows: u64,
    received: (i64, i64),
}

/// What an audit found; failures to ask are tried again until they succeed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AuditReport {
    pub rows: u64,
    pub repaired: u64,
    pub doubled: u64,
}

/// Audits one committed range of the journal.
pub struct Audit<'a> {
    pub courier: &'a Courier,
    pub journal: &'a Journal,
    pub retention: Retention,
}

#[derive(Debug, thiserror::Error)]
enum AuditError {
    #[error("cannot read the journal for the audit")]
    Journal(#[from] ReadError),
    #[error(transparent)]
    ClickHouse(#[from] ClickHouseError),
}

impl Audit<'_> {
    /// Returns when every row of the range is in ClickHouse, set aside or past its retention.
    pub async fn run(&self, range: SeqRange) -> AuditReport {
        let mut backoff = Backoff::default();
        let mut report = AuditReport::default();
        let mut generation = 1;
        loop {
            match self.round(range, generation, &mut report).await {
                Ok(true) => break,
                // Something was sent again: look once more, under another token if it was lost again.
                Ok(false) => generation += 1,
                Err(error) => self.courier.wait(&mut backoff, range, &error).await,
            }
        }
        let mut status = self.courier.status.lock();
        status.audits += 1;
        status.rows_repaired += report.repaired;
        status.rows_doubled += report.doubled;
        report
    }

    /// Whether nothing was missing.
    async fn round(&self, range: SeqRange, generation: u32, report: &mut AuditReport) -> Result<bool, AuditError> {
        let expected = self.expected(range).await?;
        report.rows = expected.iter().flatten().map(|table| table.rows).sum();
        let mut differing = Vec::new();
        for (table, expected) in Table::ALL.into_iter().zip(expected) {
            let Some(expected) = expected else { continue };
            let span = Span { table, range, received: expected.received };
            let counted = presence::count(&self.courier.clickhouse, self.courier.journal, span).await?;
            if counted != (Counted { rows: expected.rows, distinct: expected.rows }) {
                tracing::error!(
                    table = table.name(), %range, expected = expected.rows, rows = counted.rows,
                    distinct = counted.distinct, "audit found another number of rows than the journal holds"
                );
                differing.push(table);
            }
        }
        if differing.is_empty() {
            return Ok(true);
        }
        report.doubled = 0;
        let repaired = self.repair(range, &differing, generation, report).await?;
        report.repaired += repaired;
        Ok(repaired == 0)
    }

    /// Reads the journal and counts, without keeping a row.
    async fn expected(&self, range: SeqRange) -> Result<[Option<Expected>; Table::ALL.len()], AuditError> {
        let mut expected = [None; Table::ALL.len()];
        let mut reader = self.journal.reader(range.first);
        while let Some(batch) = reader.next_batch_through(range.last, READ_RECORDS, READ_BYTES)? {
            batch.iter().for_each(|(seq, record)| self.count_record(seq, record, &mut expected));
            // The batches on their way share this thread.
            tokio::task::yield_now().await;
        }
        Ok(expected)
    }

    fn count_record(&self, seq: Seq, record: &[u8], expected: &mut [Option<Expected>; Table::ALL.len()]) {
        if Sections::of(record).any(|section| section.is_err()) {
            return;
        }
        let mut row_indexes = [0u16; Table::ALL.len()];
        for section in Sections::of(record).map_while(Result::ok) {
            let slot = section.table.index();
            let key = RowKey { seq, row_index: row_indexes[slot] };
            row_indexes[slot] = row_indexes[slot].wrapping_add(1);
            let at = section.received_at;
            if at < self.expired_before(section.table) || self.courier.set_aside.contains(section.table, key) {
                continue;
            }
            let table = expected[slot].get_or_insert(Expected { rows: 0, received: (at, at) });
            table.rows += 1;
            table.received = (table.received.0.min(at), table.received.1.max(at));
        }
    }

    /// Rows received before this, in milliseconds, may be gone by their retention.
    fn expired_before(&self, table: Table) -> i64 {
        let Some(retention) = self.retention.of(table) else { return i64::MIN };
        let kept = retention.saturating_sub(EXPIRY_MARGIN).as_millis();
        UnixMillis::now().as_millis().saturating_sub(i64::try_from(kept).unwrap_or(i64::MAX))
    }

    /// Compares row by row, a batch at a time, and sends what is missing. How many rows that was.
    async fn repair(
        &self,
        range: SeqRange,
        tables: &[Table],
        generation: u32,
        report: &mut AuditReport,
    ) -> Result<u64, AuditError> {
        let mut repaired = 0;
        let mut source = Source::at(self.journal, range.first);
        while let Some(batch) = source.batch(range.last)? {
            for rows in batch.tables.iter().filter(|rows| tables.contains(&rows.table)) {
                let seen = self.courier.compare(batch.range, rows, &Selection::All).await?;
                report.doubled += seen.doubled;
                let Some(missing) = seen.missing.and_then(|missing| self.expected_of(rows, missing)) else { continue };
                let count = missing.len(rows.len());
                tracing::error!(
                    table = rows.table.name(), range = %batch.range, rows = count,
                    "acknowledged rows are missing in clickhouse and are sent again"
                );
                self.courier.deliver_rows(batch.range, rows, missing, generation, false).await;
                repaired += count as u64;
            }
        }
        Ok(repaired)
    }

    /// Leaves out what was set aside or is past its retention.
    fn expected_of(&self, rows: &TableRows, missing: Selection) -> Option<Selection> {
        let expired_before = self.expired_before(rows.table);
        let positions: Vec<u32> = (0..rows.len() as u32)
            .filter(|&at| match &missing {
                Selection::All => true,
                Selection::Some(positions) => positions.binary_search(&at).is_ok(),
            })
            .filter(|&at| !self.courier.set_aside.contains(rows.table, rows.keys()[at as usize]))
            .filter(|&at| rows.received_at(at) >= expired_before)
            .collect();
        (!positions.is_empty()).then_some(Selection::Some(positions))
    }
}
