//! Brings a batch into ClickHouse, once, whatever answers: the one place that sends telemetry inserts.
//!
//! An insert ends in one of four ways. Stored: done. Refused for now: again, later. Refused for good: halved until the
//! rows at fault are alone, which are set aside. Unknown: no insert of the batch may be running any more, then
//! ClickHouse says which rows it has, and the others are sent.
//!
//! No row is set aside on ClickHouse's word alone: a disk that is full, a column that was altered or a constraint that
//! fails refuse every row of a fleet. A row is at fault when ClickHouse takes others of its table and not this one.
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

use super::backoff::Backoff;
use super::batch::{Batch, RowKey, SeqRange, TableRows};
use super::plan::{batch_prefix, compare, token, Comparison, Selection};
use super::presence::{self, Span};
use super::set_aside::SetAside;
use super::status::WriterStatus;
use crate::telemetry::clickhouse::{ClickHouse, ClickHouseError, ErrorClass};
use crate::telemetry::journal::JournalId;
use crate::telemetry::row::Table;

/// How often one insert may be answered with an error of no known class before its rows are suspected: with the
/// backoff's longest wait that is most of a minute in which the fault may pass.
const UNKNOWN_ANSWERS_BEFORE_REJECTION: u32 = 12;

/// How often a single row is refused before it is set aside: once could be a request that was damaged on its way.
const REJECTIONS_BEFORE_SET_ASIDE: u32 = 2;

/// Why a row was set aside that was never sent.
const UNREADABLE: &str = "its bytes do not read as the columns of its table";

/// What delivery needs; shared by the batches on their way and the audit.
pub struct Courier {
    pub clickhouse: ClickHouse,
    pub journal: JournalId,
    pub set_aside: SetAside,
    pub status: Arc<Mutex<WriterStatus>>,
    /// Inserts that ClickHouse acknowledged, by table.
    pub accepted: [AtomicU64; Table::ALL.len()],
}

/// Rows that ClickHouse refused for good, as it said: more than one, or one that was refused more than once.
struct Refused {
    rows: Selection,
    error: ClickHouseError,
}

/// Rows that travel together.
struct Piece {
    rows: Selection,
    /// How often these rows were acknowledged and then missing; see [`token`].
    generation: u32,
    /// Whether they may be there already.
    is_suspect: bool,
    rejections: u32,
    /// Answers with an error of no known class.
    unknown_answers: u32,
}

impl Piece {
    fn new(rows: Selection, generation: u32, is_suspect: bool) -> Self {
        Self { rows, generation, is_suspect, rejections: 0, unknown_answers: 0 }
    }
}

impl Courier {
    /// Returns when every row is in ClickHouse or set aside. Dropped earlier, it may leave an insert running.
    pub async fn deliver(&self, batch: &Batch, is_suspect: bool) {
        for malformed in &batch.malformed {
            self.set_aside_until_done(|set_aside| set_aside.keep_record(malformed)).await;
            self.status.lock().records_set_aside += 1;
            tracing::error!(seq = malformed.seq, why = %malformed.why, "record does not read as rows and is set aside");
        }
        for unreadable in &batch.unreadable {
            self.give_up(unreadable.table, unreadable.key, &unreadable.row, UNREADABLE).await;
        }
        for rows in &batch.tables {
            self.deliver_rows(batch.range, rows, Selection::All, 0, is_suspect).await;
        }
        let mut status = self.status.lock();
        status.batches += 1;
        status.records += batch.records;
        status.rows += batch.rows() as u64;
        status.bytes += batch.bytes() as u64;
    }

    /// Delivers a selection of a table's rows.
    pub async fn deliver_rows(
        &self,
        range: SeqRange,
        rows: &TableRows,
        selection: Selection,
        generation: u32,
        is_suspect: bool,
    ) {
        let mut pieces = vec![Piece::new(selection, generation, is_suspect)];
        // Refused alone, while ClickHouse took nothing else of the table: not yet their fault.
        let mut doubtful: Vec<u32> = Vec::new();
        let mut accepted_before_refusal = None;
        let mut backoff = Backoff::default();
        loop {
            let takes_others = accepted_before_refusal.is_some_and(|before| self.accepted(rows.table) > before);
            if !doubtful.is_empty() && (takes_others || pieces.is_empty()) {
                doubtful.sort_unstable();
                let rows = Selection::Some(std::mem::take(&mut doubtful));
                pieces.push(Piece::new(rows, generation, true));
            }
            let Some(piece) = pieces.pop() else { return };
            let Some(refused) = self.deliver_piece(range, rows, piece).await else { continue };
            let accepted = self.accepted(rows.table);
            let before = *accepted_before_refusal.get_or_insert(accepted);
            if refused.rows.len(rows.len()) > 1 {
                let (front, back) = refused.rows.halves(rows.len());
                pieces.extend([back, front].map(|rows| Piece::new(rows, generation, true)));
                continue;
            }
            let at = refused.rows.first();
            if accepted > before {
                self.give_up(rows.table, rows.keys()[at as usize], rows.row(at), &chain(&refused.error)).await;
            } else {
                doubtful.push(at);
                self.wait(&mut backoff, range, &refused.error).await;
            }
        }
    }

    fn accepted(&self, table: Table) -> u64 {
        self.accepted[table.index()].load(Ordering::Relaxed)
    }

    /// `None` when they are there.
    async fn deliver_piece(&self, range: SeqRange, rows: &TableRows, mut piece: Piece) -> Option<Refused> {
        let mut backoff = Backoff::default();
        loop {
            if piece.is_suspect {
                match self.missing(range, rows, &piece.rows).await {
                    Ok(None) => return None,
                    Ok(Some(missing)) => {
                        piece.rows = missing;
                        piece.is_suspect = false;
                    }
                    Err(error) => {
                        self.wait(&mut backoff, range, &error).await;
                        continue;
                    }
                }
            }
            let Err(error) = self.send(range, rows, &piece).await else { return None };
            piece.unknown_answers += u32::from(error.code.is_some() && error.class == ErrorClass::UnknownOutcome);
            let is_given_up = piece.unknown_answers >= UNKNOWN_ANSWERS_BEFORE_REJECTION;
            match error.class {
                ErrorClass::Retryable => {}
                ErrorClass::UnknownOutcome if !is_given_up => {
                    piece.is_suspect = true;
                    self.status.lock().unknown_outcomes += 1;
                }
                ErrorClass::Rejected | ErrorClass::UnknownOutcome => {
                    piece.rejections += 1;
                    if piece.rows.len(rows.len()) > 1 || piece.rejections >= REJECTIONS_BEFORE_SET_ASIDE {
                        return Some(Refused { rows: piece.rows, error });
                    }
                    piece.is_suspect = true;
                }
            }
            self.wait(&mut backoff, range, &error).await;
        }
    }

    async fn send(&self, range: SeqRange, rows: &TableRows, piece: &Piece) -> Result<(), ClickHouseError> {
        let table = rows.table;
        let token = token(self.journal, range, table, &piece.rows, rows.keys(), piece.generation);
        // Tokens are made of hex, digits, '-', ':' and the table's name: nothing to escape.
        let sql = format!(
            "INSERT INTO {} ({}) SETTINGS insert_deduplication_token = '{token}', log_comment = '{token}' FORMAT Native",
            table.name(),
            table.column_list(),
        );
        let block = rows.block(&piece.rows);
        let started = Instant::now();
        self.clickhouse.insert(&sql, block.into()).await?;
        let took = started.elapsed();
        self.accepted[table.index()].fetch_add(1, Ordering::Relaxed);
        let mut status = self.status.lock();
        status.inserts += 1;
        status.insert_time += took;
        status.last_insert_time = took;
        Ok(())
    }

    /// Which of the selected rows ClickHouse lacks, once no insert of the batch runs any more.
    async fn missing(
        &self,
        range: SeqRange,
        rows: &TableRows,
        selection: &Selection,
    ) -> Result<Option<Selection>, Doubt> {
        let prefix = batch_prefix(self.journal, range, rows.table);
        if !presence::wait_until_idle(&self.clickhouse, &prefix).await? {
            return Err(Doubt::StillRunning);
        }
        let span = Span { table: rows.table, range, received: rows.received };
        if *selection == Selection::All {
            // Most often all is there or nothing is, and counting is cheaper than listing.
            let counted = presence::count(&self.clickhouse, self.journal, span).await?;
            let expected = rows.len() as u64;
            match (counted.rows, counted.distinct) {
                (0, _) => return Ok(Some(Selection::All)),
                (rows, distinct) if rows == expected && distinct == expected => return Ok(None),
                _ => {}
            }
        }
        Ok(self.compare(range, rows, selection).await?.missing)
    }

    /// Asks for every row's name, and reports rows that are there more than once.
    pub async fn compare(
        &self,
        range: SeqRange,
        rows: &TableRows,
        selection: &Selection,
    ) -> Result<Comparison, ClickHouseError> {
        let span = Span { table: rows.table, range, received: rows.received };
        let mut found = presence::list(&self.clickhouse, self.journal, span).await?;
        let seen = compare(rows.keys(), selection, &mut found);
        if let Some(example) = seen.doubled_example {
            tracing::error!(
                table = rows.table.name(),
                rows = seen.doubled,
                seq = example.seq,
                row_index = example.row_index,
                "rows are in clickhouse more than once"
            );
        }
        Ok(seen)
    }

    async fn give_up(&self, table: Table, key: RowKey, row: &[u8], why: &str) {
        tracing::error!(table = table.name(), seq = key.seq, row_index = key.row_index, why, "row is set aside");
        self.set_aside_until_done(|set_aside| set_aside.keep_row(table, key, row, why)).await;
        self.status.lock().rows_set_aside += 1;
    }

    /// A disk that is full must not lose the row: the batch waits.
    async fn set_aside_until_done(&self, keep: impl Fn(&SetAside) -> Result<(), super::set_aside::SetAsideError>) {
        let mut backoff = Backoff::default();
        while let Err(error) = keep(&self.set_aside) {
            tracing::error!(error = chain(&error), "cannot set aside, trying again");
            self.status.lock().last_error = Some(chain(&error));
            tokio::time::sleep(backoff.next()).await;
        }
    }

    pub async fn wait(&self, backoff: &mut Backoff, range: SeqRange, error: &(dyn std::error::Error + 'static)) {
        let wait = backoff.next();
        let error = chain(error);
        tracing::warn!(%range, error, attempt = backoff.attempts(), wait_ms = wait.as_millis() as u64, "trying again");
        {
            let mut status = self.status.lock();
            status.retries += 1;
            status.last_error = Some(error);
        }
        tokio::time::sleep(wait).await;
    }
}

/// Why it cannot be said yet what ClickHouse has.
#[derive(Debug, thiserror::Error)]
enum Doubt {
    #[error(transparent)]
    ClickHouse(#[from] ClickHouseError),
    #[error("an earlier insert of the batch is still running; waiting for it")]
    StillRunning,
}

/// An error and its causes in one line.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
