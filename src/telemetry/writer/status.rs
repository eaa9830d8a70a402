//! What the writer tells operators and tests about itself.
use std::time::Duration;

use crate::telemetry::journal::Seq;

/// A snapshot; counters are since the writer's start.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WriterStatus {
    /// False after a shutdown, and after a panic of the writer, which no other counter shows.
    pub is_running: bool,
    /// All through this seq is in ClickHouse or set aside.
    pub committed_seq: Seq,
    /// All through this seq was counted in ClickHouse after it was committed.
    pub audited_seq: Seq,
    /// The newest seq of the journal.
    pub written_seq: Seq,
    /// Records that wait, at most: seqs may have gaps.
    pub lag_records: u64,
    /// Age of the oldest row that is on its way; zero when none is.
    pub lag: Duration,
    pub batches: u64,
    /// Records of the journal in those batches.
    pub records: u64,
    pub rows: u64,
    pub bytes: u64,
    /// Inserts that were acknowledged; a batch takes one a table.
    pub inserts: u64,
    /// From the first byte to the acknowledgement, of all acknowledged inserts together, and of the last.
    pub insert_time: Duration,
    pub last_insert_time: Duration,
    /// Inserts and questions that failed and were tried again.
    pub retries: u64,
    /// Inserts of which it was not known whether they were stored, until ClickHouse was asked.
    pub unknown_outcomes: u64,
    /// Rows that ClickHouse would not have.
    pub rows_set_aside: u64,
    /// Records that did not read as rows.
    pub records_set_aside: u64,
    pub audits: u64,
    /// Rows that were acknowledged, found missing by an audit, and sent again.
    pub rows_repaired: u64,
    /// Rows that an audit found more than once. Should be 0 for ever.
    pub rows_doubled: u64,
    /// The last failure and its causes, kept after it was overcome.
    pub last_error: Option<String>,
}
