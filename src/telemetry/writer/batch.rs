//! A batch: the rows of one range of the journal, by table, ready to become inserts. Pure.
use super::plan::Selection;
use crate::telemetry::journal::{JournalId, Seq};
use crate::telemetry::row::binary::{put_u64, put_uuid};
use crate::telemetry::row::{native, Column, MalformedRecord, Section, Sections, Table};

/// Rows of a full batch. Each insert makes a part, and parts of 50,000 rows are merged so often that a row costs ClickHouse
/// three times the CPU that it costs in parts of 200,000 (3.6 and 1.3 s a million rows). Only a load of more than this a
/// second, or a backlog, fills batches: below it a batch goes every second, whatever it holds.
pub const MAX_BATCH_ROWS: usize = 200_000;

/// Bytes of a full batch, whichever comes first. Bounds memory: two batches are on their way at most, each with its rows
/// and the block made of them. An insert stays one block in ClickHouse (whose limits are a million rows or 256 MiB),
/// which is stored whole or not at all within a day's partition.
pub const MAX_BATCH_BYTES: usize = 48 << 20;

/// What the writer puts in front of each row: `journal_id`, `seq`, `row_index`.
const PREFIX_COLUMNS: usize = 3;
const PREFIX_BYTES: usize = 16 + 8 + 2;

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
    bytes: Vec<u8>,
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

    /// The selected rows as one block of ClickHouse's Native format.
    pub fn block(&self, selection: &Selection) -> Vec<u8> {
        let block = match selection {
            Selection::All => native::block(self.table, (0..self.len() as u32).map(|at| self.row(at))),
            Selection::Some(positions) => native::block(self.table, positions.iter().map(|&at| self.row(at))),
        };
        block.expect("rows that do not read as rows of their table were left out when the batch was built")
    }

    /// When the row at this position was received, in milliseconds: it comes first after the prefix.
    pub fn received_at(&self, at: u32) -> i64 {
        let row = &self.row(at)[PREFIX_BYTES..];
        i64::from_le_bytes(std::array::from_fn(|byte| row[byte]))
    }

    /// The row at this position, in RowBinary with its prefix.
    pub fn row(&self, at: u32) -> &[u8] {
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

/// A row whose bytes do not read as its table's columns; see [`native::missing_columns`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    pub table: Table,
    pub key: RowKey,
    /// With its prefix.
    pub row: Vec<u8>,
}

/// What is sent as one: decided once, with its range, and the same range whenever it is sent again.
#[derive(Clone, Debug)]
pub struct Batch {
    pub range: SeqRange,
    /// Only tables that have rows.
    pub tables: Vec<TableRows>,
    pub malformed: Vec<Malformed>,
    pub unreadable: Vec<Unreadable>,
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
    unreadable: Vec<Unreadable>,
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
            unreadable: Vec::new(),
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
            let (table, slot) = (section.table, section.table.index());
            let key = RowKey { seq, row_index: row_indexes[slot] };
            row_indexes[slot] = key.row_index.wrapping_add(1);
            let Some(missing) = native::missing_columns(table, PREFIX_COLUMNS, section.row) else {
                let mut row = Vec::with_capacity(PREFIX_BYTES + section.row.len());
                put_row(&mut row, self.journal, key, section.row);
                self.unreadable.push(Unreadable { table, key, row });
                continue;
            };
            let forming = self.tables[slot].get_or_insert_with(Forming::new);
            self.bytes += forming.push(self.journal, key, &section, missing);
            self.rows += 1;
        }
    }

    /// The batch of all records so far, through `last`; `None` when there are none.
    pub fn finish(self) -> Option<Batch> {
        let range = SeqRange { first: self.first, last: self.last? };
        let tables = Table::ALL.into_iter().zip(self.tables);
        let tables = tables.filter_map(|(table, forming)| forming.map(|forming| forming.finish(table))).collect();
        let Self { malformed, unreadable, records, .. } = self;
        Some(Batch { range, tables, malformed, unreadable, records })
    }
}

impl Forming {
    fn new() -> Self {
        Self { keys: Vec::new(), ends: Vec::new(), bytes: Vec::new(), received: (i64::MAX, i64::MIN) }
    }

    /// Takes a row, which from here on has all columns: an earlier version wrote it without those that are `missing`. How
    /// many bytes it has.
    fn push(&mut self, journal: JournalId, key: RowKey, section: &Section<'_>, missing: &[Column]) -> usize {
        let start = self.bytes.len();
        put_row(&mut self.bytes, journal, key, section.row);
        native::put_defaults(&mut self.bytes, missing);
        self.keys.push(key);
        // A batch ends soon after MAX_BATCH_BYTES, and a record is far below 4 GiB.
        self.ends.push(self.bytes.len() as u32);
        let received_at = section.received_at;
        self.received = (self.received.0.min(received_at), self.received.1.max(received_at));
        self.bytes.len() - start
    }

    fn finish(self, table: Table) -> TableRows {
        let Self { keys, ends, bytes, received } = self;
        TableRows { table, keys, ends, bytes, received }
    }
}

fn put_row(out: &mut Vec<u8>, journal: JournalId, key: RowKey, row: &[u8]) {
    put_uuid(out, journal.0);
    put_u64(out, key.seq);
    out.extend_from_slice(&key.row_index.to_le_bytes());
    out.extend_from_slice(row);
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::telemetry::row::{append_section, encode_heartbeat, DeviceEvent, KnownDevice, UnixMillis};
    use fleetd_proto::v1::HeartbeatRequest;

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
    fn a_row_is_its_prefix_and_its_bytes_and_a_selection_holds_only_its_rows() {
        let batch = batch(&[(5, 1), (7, 3)]);
        let rows = &batch.tables[0];
        let third = rows.row(2);
        assert_eq!(third[16..24], 7u64.to_le_bytes());
        assert_eq!(third[24..26], 1u16.to_le_bytes());
        assert_eq!(rows.block(&Selection::Some(vec![0, 1, 2, 3])), rows.block(&Selection::All));
        // Columns first, then rows, as varints.
        let columns = Table::DeviceEvents.columns().len() as u8;
        assert_eq!(rows.block(&Selection::All)[..2], [columns, 4]);
        assert_eq!(rows.block(&Selection::Some(vec![2]))[..2], [columns, 1]);
    }

    #[test]
    fn a_row_that_its_table_cannot_hold_is_kept_apart_from_the_others() {
        let mut builder = BatchBuilder::new(JournalId(uuid::Uuid::nil()), 1);
        let mut mixed = record(1, 1);
        append_section(&mut mixed, Table::DeviceEvents, |row| row.extend_from_slice(&[0; 17]));
        mixed.extend(record(1, 1));
        builder.push(1, &mixed);
        let batch = builder.finish().expect("records");
        let keys: Vec<_> = batch.tables[0].keys().iter().map(|key| key.row_index).collect();
        assert_eq!((keys, batch.unreadable.len()), (vec![0, 2], 1));
        assert_eq!(batch.unreadable[0].key, RowKey { seq: 1, row_index: 1 });
        assert_eq!(batch.unreadable[0].row.len(), PREFIX_BYTES + 17);
    }

    #[test]
    fn a_row_of_an_earlier_version_gets_the_defaults_of_later_columns_wherever_it_lies() {
        let encoded = |device_type| {
            let mut record = Vec::new();
            let known = KnownDevice { device_type, ..KnownDevice::default() };
            encode_heartbeat("rpi-001", &known, &HeartbeatRequest::default(), UnixMillis::EPOCH, &mut record)
                .expect("valid");
            record
        };
        let (typed, untyped) = (encoded("camera"), encoded(""));
        let mut earlier = Vec::new();
        let section = Sections::of(&untyped).next().expect("a row").expect("well formed");
        append_section(&mut earlier, Table::Heartbeats, |row| {
            row.extend_from_slice(section.row.strip_suffix(&[0]).expect("no type"));
        });
        let mut builder = BatchBuilder::new(JournalId(uuid::Uuid::nil()), 1);
        [&typed, &earlier, &untyped].into_iter().zip(1..).for_each(|(record, seq)| builder.push(seq, record));
        let batch = builder.finish().expect("records");
        assert_eq!((batch.rows(), batch.unreadable.len()), (3, 0));
        let rows = &batch.tables[0];
        assert_eq!(rows.row(1)[PREFIX_BYTES..], rows.row(2)[PREFIX_BYTES..]);
        assert_eq!(batch.bytes(), (0..3).map(|at| rows.row(at).len()).sum::<usize>());
        assert_eq!(rows.block(&Selection::All)[..2], [Table::Heartbeats.columns().len() as u8, 3]);
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
        let records = MAX_BATCH_ROWS as u64 / 1_000;
        (1..records).for_each(|seq| builder.push(seq, &thousand));
        assert!(!builder.is_full());
        builder.push(records, &thousand);
        assert!(builder.is_full());
    }
}
