//! A batch: the rows of one range of the journal, as the bytes of one insert a table. Pure.
use bytes::Bytes;

use crate::telemetry::journal::{JournalId, Seq};
use crate::telemetry::row::binary::{put_u64, put_uuid};
use crate::telemetry::row::{MalformedRecord, Sections, Table};

/// Rows of a full batch. ClickHouse writes one part an insert and wants inserts of tens of thousands of rows, no more
/// than about one a second and table when the load is small; at 500,000 rows/s this is ten inserts a second.
pub const MAX_BATCH_ROWS: usize = 50_000;

/// Bytes of a full batch, whichever comes first: bounds memory, and keeps an insert one block in ClickHouse, which is
/// stored whole or not at all within a day's partition.
pub const MAX_BATCH_BYTES: usize = 16 << 20;

/// What the writer puts in front of each row: `journal_id`, `seq`, `row_index`.
pub const PREFIX_BYTES: usize = 16 + 8 + 2;

/// An inclusive range of the journal. Ranges of successive batches touch, whatever gaps the records leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SeqRange {
    pub first: Seq,
    pub last: Seq,
}

impl std::fmt::Display for SeqRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// Names a row within its table and journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowKey {
    pub seq: Seq,
    pub row_index: u16,
}

/// The rows of one table, in ascending order of their keys, each with its prefix, end to end.
#[derive(Clone, Debug)]
pub struct TableRows {
    pub table: Table,
    keys: Vec<RowKey>,
    /// `ends[i]` is where row `i` ends in `bytes`.
    ends: Vec<u32>,
    bytes: Bytes,
    /// Least and greatest `received_at`, in milliseconds: bounds the partitions and parts that a question has to read.
    pub received: (i64, i64),
}

impl TableRows {
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    pub fn keys(&self) -> &[RowKey] {
        &self.keys
    }

    /// The whole insert; costs no copy.
    pub fn all_bytes(&self) -> Bytes {
        self.bytes.clone()
    }

    /// The rows at these positions, copied together.
    pub fn bytes_of(&self, positions: &[u32]) -> Bytes {
        let mut bytes = Vec::with_capacity(positions.iter().map(|&at| self.row(at).len()).sum());
        positions.iter().for_each(|&at| bytes.extend_from_slice(self.row(at)));
        bytes.into()
    }

    /// When the row at this position was received, in milliseconds: it comes first after the prefix.
    pub fn received_at(&self, at: u32) -> i64 {
        let row = &self.row(at)[PREFIX_BYTES..];
        i64::from_le_bytes(std::array::from_fn(|byte| row[byte]))
    }

    fn row(&self, at: u32) -> &[u8] {
        let at = at as usize;
        let start = if at == 0 { 0 } else { self.ends[at - 1] as usize };
        &self.bytes[start..self.ends[at] as usize]
    }
}

/// A record of the journal whose bytes do not read as rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed {
    pub seq: Seq,
    pub why: MalformedRecord,
    pub record: Vec<u8>,
}

/// What is sent as one: decided once, with its range, and the same range whenever it is sent again.
#[derive(Clone, Debug)]
pub struct Batch {
    pub range: SeqRange,
    /// Only tables that have rows.
    pub tables: Vec<TableRows>,
    pub malformed: Vec<Malformed>,
    pub records: u64,
}

impl Batch {
    pub fn rows(&self) -> usize {
        self.tables.iter().map(TableRows::len).sum()
    }

    pub fn bytes(&self) -> usize {
        self.tables.iter().map(|rows| rows.bytes.len()).sum()
    }

    /// When its oldest row was received, in milliseconds since 1970.
    pub fn oldest_received_at(&self) -> Option<i64> {
        self.tables.iter().map(|rows| rows.received.0).min()
    }
}

/// Takes records in the order of the journal and gives the batch.
pub struct BatchBuilder {
    journal: JournalId,
    first: Seq,
    last: Option<Seq>,
    tables: [Option<Forming>; Table::ALL.len()],
    malformed: Vec<Malformed>,
    records: u64,
    rows: usize,
    bytes: usize,
}

struct Forming {
    keys: Vec<RowKey>,
    ends: Vec<u32>,
    bytes: Vec<u8>,
    received: (i64, i64),
}

impl BatchBuilder {
    /// A batch that begins at `first`, where the one before it ended.
    pub fn new(journal: JournalId, first: Seq) -> Self {
        Self {
            journal,
            first,
            last: None,
            tables: [const { None }; Table::ALL.len()],
            malformed: Vec::new(),
            records: 0,
            rows: 0,
            bytes: 0,
        }
    }

    pub fn is_full(&self) -> bool {
        self.rows >= MAX_BATCH_ROWS || self.bytes >= MAX_BATCH_BYTES
    }

    /// Adds one record. A record that does not read as rows adds none of them: it is kept as it is, to be set aside.
    pub fn push(&mut self, seq: Seq, record: &[u8]) {
        self.last = Some(seq);
        self.records += 1;
        if let Some(why) = Sections::of(record).find_map(Result::err) {
            self.malformed.push(Malformed { seq, why, record: record.to_vec() });
            return;
        }
        let mut row_indexes = [0u16; Table::ALL.len()];
        for section in Sections::of(record).map_while(Result::ok) {
            let slot = section.table.index();
            let forming = self.tables[slot].get_or_insert_with(Forming::new);
            let row_index = row_indexes[slot];
            row_indexes[slot] = row_index.wrapping_add(1);
            forming.push(self.journal, RowKey { seq, row_index }, section.row, section.received_at);
            self.rows += 1;
            self.bytes += PREFIX_BYTES + section.row.len();
        }
    }

    /// The batch of all records so far, through `last`; `None` when there are none.
    pub fn finish(self) -> Option<Batch> {
        let range = SeqRange { first: self.first, last: self.last? };
        let tables = Table::ALL.into_iter().zip(self.tables);
        let tables = tables.filter_map(|(table, forming)| forming.map(|forming| forming.finish(table))).collect();
        Some(Batch { range, tables, malformed: self.malformed, records: self.records })
    }
}

impl Forming {
    fn new() -> Self {
        Self { keys: Vec::new(), ends: Vec::new(), bytes: Vec::new(), received: (i64::MAX, i64::MIN) }
    }

    fn push(&mut self, journal: JournalId, key: RowKey, row: &[u8], received_at: i64) {
        put_uuid(&mut self.bytes, journal.0);
        put_u64(&mut self.bytes, key.seq);
        self.bytes.extend_from_slice(&key.row_index.to_le_bytes());
        self.bytes.extend_from_slice(row);
        self.keys.push(key);
        // A batch ends soon after MAX_BATCH_BYTES, and a record is far below 4 GiB.
        self.ends.push(self.bytes.len() as u32);
        self.received = (self.received.0.min(received_at), self.received.1.max(received_at));
    }

    fn finish(self, table: Table) -> TableRows {
        let Self { keys, ends, bytes, received } = self;
        TableRows { table, keys, ends, bytes: bytes.into(), received }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::telemetry::row::{DeviceEvent, UnixMillis};

    /// A record of `rows` device events received at `received_at`.
    pub fn record(rows: usize, received_at: i64) -> Vec<u8> {
        let mut record = Vec::new();
        let at = UnixMillis::from_millis_clamped(received_at);
        for _ in 0..rows {
            DeviceEvent {
                received_at: at,
                device_id: "rpi-001",
                timestamp: at,
                kind: "test",
                from_state: "",
                to_state: "",
                detail: "",
            }
            .encode(&mut record);
        }
        record
    }

    pub fn batch(records: &[(Seq, usize)]) -> Batch {
        let mut builder = BatchBuilder::new(JournalId(uuid::Uuid::nil()), records[0].0);
        records.iter().for_each(|&(seq, rows)| builder.push(seq, &record(rows, seq as i64)));
        builder.finish().expect("records")
    }

    #[test]
    fn every_row_is_named_and_bounded() {
        let batch = batch(&[(5, 1), (7, 3), (20, 0)]);
        assert_eq!((batch.range, batch.records, batch.rows()), (SeqRange { first: 5, last: 20 }, 3, 4));
        let rows = &batch.tables[0];
        let keys: Vec<_> = rows.keys().iter().map(|key| (key.seq, key.row_index)).collect();
        assert_eq!(keys, [(5, 0), (7, 0), (7, 1), (7, 2)]);
        assert_eq!(rows.received, (5, 7));
        assert!(rows.keys().is_sorted());
    }

    #[test]
    fn a_selection_of_rows_is_the_bytes_of_those_rows() {
        let batch = batch(&[(5, 1), (7, 3)]);
        let rows = &batch.tables[0];
        assert_eq!(rows.bytes_of(&[0, 1, 2, 3]), rows.all_bytes());
        let third = rows.bytes_of(&[2]);
        assert_eq!(third[16..24], 7u64.to_le_bytes());
        assert_eq!(third[24..26], 1u16.to_le_bytes());
        assert_eq!(rows.bytes_of(&[]).len(), 0);
    }

    #[test]
    fn a_malformed_record_is_kept_whole_and_adds_no_row() {
        let mut builder = BatchBuilder::new(JournalId(uuid::Uuid::nil()), 1);
        let mut bad = record(2, 1);
        bad.push(99);
        builder.push(1, &bad);
        builder.push(2, &record(1, 2));
        let batch = builder.finish().expect("records");
        assert_eq!((batch.rows(), batch.malformed.len()), (1, 1));
        assert_eq!((batch.malformed[0].seq, &batch.malformed[0].record), (1, &bad));
    }

    #[test]
    fn a_batch_is_full_by_rows_or_by_bytes() {
        let mut builder = BatchBuilder::new(JournalId(uuid::Uuid::nil()), 1);
        let thousand = record(1_000, 1);
        (0..49).for_each(|seq| builder.push(seq, &thousand));
        assert!(!builder.is_full());
        builder.push(50, &thousand);
        assert!(builder.is_full());
    }
}
