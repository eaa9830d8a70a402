//! What the writer decides, apart from doing it: when a batch is due, under which token it goes, and what of it is
//! still to be sent. Pure.
use std::time::{Duration, Instant};

use super::batch::{RowKey, SeqRange, MAX_BATCH_BYTES, MAX_BATCH_ROWS};
use crate::telemetry::journal::JournalId;
use crate::telemetry::row::Table;

/// At a small load, one insert a second: ClickHouse makes a part of each, and merges them in the background. Also the
/// longest that an acknowledged heartbeat waits to become visible while ClickHouse keeps up.
pub const BATCH_EVERY: Duration = Duration::from_secs(1);

/// After a pause, how long the first record waits for company: a fleet's heartbeats come in bursts.
pub const LINGER_AFTER_PAUSE: Duration = Duration::from_millis(20);

/// When records that wait since `waiting_since` shall be sent, if they are not a full batch before.
pub fn due(waiting_since: Instant, last_batch: Option<Instant>) -> Instant {
    let after_pause = waiting_since + LINGER_AFTER_PAUSE;
    last_batch.map_or(after_pause, |last| after_pause.max(last + BATCH_EVERY))
}

/// How many records make a full batch, if they are like those of a batch of `records` with `rows` rows in `bytes` bytes.
///
/// A record has as many rows as its device has processes, so a batch is full long before it has as many records as it
/// may have rows. Whoever waited for those would send one batch a second, and never catch up with a busy fleet.
pub fn records_of_full_batch(records: u64, rows: usize, bytes: usize) -> u64 {
    let per = |limit: usize, used: usize| (records as u128 * limit as u128).checked_div(used as u128);
    let fewest = per(MAX_BATCH_ROWS, rows).into_iter().chain(per(MAX_BATCH_BYTES, bytes)).min();
    fewest.unwrap_or(MAX_BATCH_ROWS as u128).clamp(1, MAX_BATCH_ROWS as u128) as u64
}

/// Which rows of a batch's table are meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection {
    All,
    /// Positions in the batch's rows, ascending.
    Some(Vec<u32>),
}

impl Selection {
    pub fn len(&self, all: usize) -> usize {
        match self {
            Self::All => all,
            Self::Some(positions) => positions.len(),
        }
    }

    fn positions(&self, all: usize) -> Vec<u32> {
        match self {
            Self::All => (0..all as u32).collect(),
            Self::Some(positions) => positions.clone(),
        }
    }

    /// The position of its first row. A selection is never empty.
    pub fn first(&self) -> u32 {
        match self {
            Self::All => 0,
            Self::Some(positions) => positions[0],
        }
    }

    /// The two halves of a selection of two or more, to find the row that ClickHouse will not have.
    pub fn halves(&self, all: usize) -> (Self, Self) {
        let mut front = self.positions(all);
        let back = front.split_off(front.len() / 2);
        (Self::Some(front), Self::Some(back))
    }
}

/// The `insert_deduplication_token` of an insert, which is its `log_comment` too.
///
/// It begins with [`batch_prefix`], so that every insert of a batch can be found while it runs. A whole batch has the
/// same token whenever it is sent. A part's token is derived from what is in it, and from how often ClickHouse has
/// acknowledged these very rows and yet did not have them: its deduplication log may then know the token of an insert
/// whose rows it lost, and would drop the same insert again (ClickHouse#121174).
pub fn token(
    journal: JournalId,
    range: SeqRange,
    table: Table,
    selection: &Selection,
    keys: &[RowKey],
    generation: u32,
) -> String {
    let batch = batch_prefix(journal, range, table);
    if generation == 0 && *selection == Selection::All {
        return batch;
    }
    let mut checksum = 0;
    for at in selection.positions(keys.len()) {
        let key = keys[at as usize];
        checksum = crc32c::crc32c_append(checksum, &key.seq.to_le_bytes());
        checksum = crc32c::crc32c_append(checksum, &key.row_index.to_le_bytes());
    }
    format!("{batch}:{}-{checksum:08x}-{generation}", selection.len(keys.len()))
}

/// What the tokens of a batch's inserts into `table` begin with: `<journal_id>:<first>-<last>:<table>`.
pub fn batch_prefix(journal: JournalId, range: SeqRange, table: Table) -> String {
    format!("{}:{range}:{}", journal.0, table.name())
}

/// What ClickHouse has of the rows that were asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Comparison {
    /// `None` when all is there.
    pub missing: Option<Selection>,
    /// Rows that are there more than once, each counted once.
    pub doubled: u64,
    /// One of them, for the log.
    pub doubled_example: Option<RowKey>,
}

/// Compares the rows of `selection` with what a query found: each key with how often it is there. `found` may hold
/// other keys and be in any order.
pub fn compare(keys: &[RowKey], selection: &Selection, found: &mut [(RowKey, u64)]) -> Comparison {
    found.sort_unstable();
    let doubles = || found.iter().filter(|(_, count)| *count > 1);
    let (doubled, doubled_example) = (doubles().count() as u64, doubles().next().map(|(key, _)| *key));
    let is_there = |at: u32| found.binary_search_by_key(&keys[at as usize], |(key, _)| *key).is_ok();
    let asked = selection.positions(keys.len());
    let missing: Vec<u32> = asked.iter().copied().filter(|&at| !is_there(at)).collect();
    let missing = match missing.len() {
        0 => None,
        all if all == asked.len() => Some(selection.clone()),
        _ => Some(Selection::Some(missing)),
    };
    Comparison { missing, doubled, doubled_example }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOBODY: JournalId = JournalId(uuid::Uuid::nil());
    const RANGE: SeqRange = SeqRange { first: 1, last: 4 };

    fn keys(seqs: &[u64]) -> Vec<RowKey> {
        seqs.iter().map(|&seq| RowKey { seq, row_index: 0 }).collect()
    }

    fn found(seqs: &[(u64, u64)]) -> Vec<(RowKey, u64)> {
        seqs.iter().map(|&(seq, count)| (RowKey { seq, row_index: 0 }, count)).collect()
    }

    fn missing(seqs: &[u64], there: &[(u64, u64)]) -> Option<Selection> {
        compare(&keys(seqs), &Selection::All, &mut found(there)).missing
    }

    #[test]
    fn only_what_is_missing_is_to_be_sent() {
        assert_eq!(missing(&[1, 2, 4], &[(4, 1), (1, 1), (2, 1), (9, 1)]), None);
        assert_eq!(missing(&[1, 2, 4], &[]), Some(Selection::All));
        assert_eq!(missing(&[1, 2, 4], &[(3, 1)]), Some(Selection::All));
        assert_eq!(missing(&[1, 2, 4], &[(2, 1)]), Some(Selection::Some(vec![0, 2])));
    }

    #[test]
    fn a_part_of_a_batch_asks_only_for_itself() {
        let part = Selection::Some(vec![1, 2]);
        let seen = compare(&keys(&[1, 2, 4]), &part, &mut found(&[(1, 1), (4, 1)]));
        assert_eq!(seen.missing, Some(Selection::Some(vec![1])));
        let seen = compare(&keys(&[1, 2, 4]), &part, &mut found(&[(1, 1)]));
        assert_eq!(seen.missing, Some(part));
    }

    #[test]
    fn doubled_rows_are_counted_once_each() {
        let seen = compare(&keys(&[1, 2]), &Selection::All, &mut found(&[(2, 3), (1, 2)]));
        assert_eq!((seen.missing, seen.doubled), (None, 2));
        assert_eq!(seen.doubled_example.map(|key| key.seq), Some(1));
    }

    #[test]
    fn a_whole_batch_keeps_its_token_and_a_part_has_its_own() {
        let keys = keys(&[1, 2, 3, 4]);
        let token =
            |selection: &Selection, generation| token(NOBODY, RANGE, Table::Heartbeats, selection, &keys, generation);
        let whole = token(&Selection::All, 0);
        assert_eq!(whole, "00000000-0000-0000-0000-000000000000:1-4:heartbeats");
        let (front, back) = Selection::All.halves(4);
        let mut all =
            vec![whole.clone(), token(&Selection::All, 1), token(&front, 0), token(&front, 1), token(&back, 0)];
        assert!(all.iter().all(|token| token.starts_with(&whole)));
        assert_eq!(token(&front, 0), token(&front.clone(), 0));
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 5);
    }

    #[test]
    fn halving_reaches_every_single_row() {
        let mut parts = vec![Selection::All];
        let mut singles = Vec::new();
        while let Some(part) = parts.pop() {
            if part.len(7) == 1 {
                singles.extend(part.positions(7));
            } else {
                let (front, back) = part.halves(7);
                parts.extend([front, back]);
            }
        }
        singles.sort_unstable();
        assert_eq!(singles, [0, 1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn a_batch_is_full_by_the_rows_and_bytes_of_its_records() {
        let rows = MAX_BATCH_ROWS as u64;
        assert_eq!(records_of_full_batch(10, 10, 1_000), rows);
        assert_eq!(records_of_full_batch(10, 100, 1_000), rows / 10);
        assert_eq!(records_of_full_batch(10, 10, MAX_BATCH_BYTES), 10);
        assert_eq!(records_of_full_batch(1, 2 * MAX_BATCH_ROWS, MAX_BATCH_BYTES), 1);
        assert_eq!(records_of_full_batch(10, 0, 0), rows);
    }

    #[test]
    fn batches_are_a_second_apart_and_the_first_after_a_pause_goes_at_once() {
        let now = Instant::now();
        assert_eq!(due(now, None), now + LINGER_AFTER_PAUSE);
        assert_eq!(due(now, Some(now - 2 * BATCH_EVERY)), now + LINGER_AFTER_PAUSE);
        assert_eq!(due(now, Some(now)), now + BATCH_EVERY);
    }
}
