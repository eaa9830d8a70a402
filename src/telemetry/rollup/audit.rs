//! The audit: ranges are computed once more and compared; those that differ are built again in place.
//!
//! The writer's own audit may find that ClickHouse lost rows that it had acknowledged, and send them again after their
//! range was built. So a range is compared once the writer has counted it. It is also how damage of any other kind is
//! found, whenever somebody asks.
use std::time::Duration;

use super::build::{Builder, Difference, Extent};
use super::coverage::Rollup;
use super::plan::{self, Range, MAX_RECORDS};
use crate::clock::UnixMillis;
use crate::telemetry::clickhouse::ClickHouseError;
use crate::telemetry::journal::Seq;
use crate::telemetry::schema::Retention;

/// Heartbeats this close to the end of their retention may be dropped already, or while they are compared.
const EXPIRY_MARGIN: Duration = Duration::from_secs(3_600);

/// What an audit found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AuditReport {
    /// Ranges that were compared, each table's for itself.
    pub compared: u64,
    /// Ranges that were left as they are: their heartbeats are dropped, or may be.
    pub expired: u64,
    /// Ranges that differed and are right now.
    pub repaired: u64,
    /// Ranges that still differed after they were built again: there is something here that the server does not know.
    pub unrepaired: u64,
}

impl AuditReport {
    pub(super) fn add(&mut self, other: Self) {
        self.compared += other.compared;
        self.expired += other.expired;
        self.repaired += other.repaired;
        self.unrepaired += other.unrepaired;
    }
}

/// A range to be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Subject {
    pub range: Range,
    /// The generation that the table has; `None` when it has no row of the range.
    pub newest: Option<u32>,
}

/// Compares and repairs ranges of one journal.
pub(super) struct Audit<'a> {
    pub builder: &'a Builder,
    pub retention: Retention,
}

impl Audit<'_> {
    /// Everything of a table within a range: what it has, and the numbers in between that it has nothing of, which may be
    /// rows that were lost. In order.
    pub async fn subjects(&self, rollup: Rollup, within: Range) -> Result<Vec<Subject>, ClickHouseError> {
        let present = match rollup {
            // Keeps no ranges: all of it is compared as what it lacks.
            Rollup::Latest => Vec::new(),
            _ => self.builder.ranges(rollup, within).await?,
        };
        let mut subjects = Vec::with_capacity(present.len());
        let mut end = 0;
        for row in &present {
            let range = Range { first: row.first, last: row.last };
            if row.first <= end {
                // No builder makes these, and no second attempt replaces them.
                tracing::error!(table = rollup.table(), %range, "ranges overlap; delete the rows that do not belong there");
                continue;
            }
            end = row.last;
            subjects.push(Subject { range, newest: Some(row.newest) });
        }
        let ranges: Vec<_> = subjects.iter().map(|subject| subject.range).collect();
        for gap in plan::gaps(within, &ranges) {
            // Most are numbers that no record has, and one question is enough for all of them.
            if self.builder.extent(gap).await?.heartbeats == 0 {
                continue;
            }
            // Hours are merged from whole ranges of minutes.
            let edges = match rollup {
                Rollup::Minutes => self.builder.ranges(Rollup::Hours, gap).await?,
                _ => Vec::new(),
            };
            let edges: Vec<_> = edges.iter().flat_map(|hours| [hours.first, hours.last.saturating_add(1)]).collect();
            let at_most = if rollup == Rollup::Hours { Seq::MAX } else { MAX_RECORDS };
            let pieces = plan::cut(gap, &edges, at_most);
            subjects.extend(pieces.into_iter().map(|range| Subject { range, newest: None }));
        }
        subjects.sort_by_key(|subject| subject.range);
        Ok(subjects)
    }

    /// Compares a range, and builds it again if it differs.
    pub async fn examine(&self, rollup: Rollup, subject: Subject) -> Result<AuditReport, ClickHouseError> {
        let Subject { range, newest } = subject;
        let there = self.builder.extent(range).await?;
        let remembered = self.builder.remembered_extent(range).await?;
        if self.is_expired(there) || self.is_expired(remembered) || there.heartbeats == 0 {
            if there.heartbeats == 0 && remembered.heartbeats > 0 && !self.is_expired(remembered) {
                let table = rollup.table();
                tracing::warn!(table, %range, "no heartbeat of the range is left, what was computed of them stays");
            }
            return Ok(AuditReport { expired: 1, ..AuditReport::default() });
        }
        let mut report = AuditReport { compared: 1, ..AuditReport::default() };
        let Some(difference) = self.builder.compare(rollup, range, there).await? else { return Ok(report) };
        log(rollup, range, &difference, "differs from its heartbeats and is built again");
        let generation = newest.map_or(0, |newest| newest.saturating_add(1));
        self.builder.build(rollup, range, generation).await?;
        if rollup != Rollup::Latest {
            self.builder.bury(rollup, range, generation).await?;
        }
        match self.builder.compare(rollup, range, there).await? {
            None => report.repaired = 1,
            Some(difference) => {
                log(rollup, range, &difference, "still differs after it was built again");
                report.unrepaired = 1;
            }
        }
        Ok(report)
    }

    fn is_expired(&self, extent: Extent) -> bool {
        let Some(retention) = self.retention.heartbeats else { return false };
        let kept = i64::try_from(retention.saturating_sub(EXPIRY_MARGIN).as_millis()).unwrap_or(i64::MAX);
        extent.heartbeats > 0 && extent.earliest < UnixMillis::now().as_millis().saturating_sub(kept)
    }
}

fn log(rollup: Rollup, range: Range, difference: &Difference, what: &'static str) {
    let Difference { differing, example } = difference;
    tracing::error!(table = rollup.table(), %range, groups = differing, example, "a range of a computed table {what}");
}
