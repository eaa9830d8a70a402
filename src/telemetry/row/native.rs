//! Rows turned into columns: one block of ClickHouse's Native format from many RowBinary rows. Pure.
//!
//! ClickHouse takes a columnar block with a quarter to a third less CPU than the same rows as RowBinary (the figures are
//! in `docs/decisions/0006-columns-and-large-batches.md`); turning them costs the writer a fraction of what it saves. The layout is that of
//! <https://clickhouse.com/docs/interfaces/formats/Native> at protocol revision 0, as HTTP speaks it:
//!
//! ```text
//! columns: varint | rows: varint | for each column: name, type, the values of all rows
//! Nullable       one byte a row (1 is NULL), then a value a row
//! LowCardinality version u64 | index type and flags u64 | keys u64 | the keys | rows u64 | an index a row
//! Map            (version of its keys) | where each row ends u64 | all keys | all values
//! ```
use std::collections::HashMap;

use super::binary::{put_string, put_u64, put_varint, read_varint};
use super::column::{Column, ColumnType};
use super::table::Table;

/// Version 1 of LowCardinality's serialization: keys that come along with each block.
const DICTIONARY_VERSION: u64 = 1;
/// Indices are UInt32 (type 2), the block brings its own keys (bit 9) and replaces those before (bit 10).
const DICTIONARY_FLAGS: u64 = 2 | 1 << 9 | 1 << 10;

/// Stands where a NULL has no value; no nullable column is wider.
const NOTHING: [u8; 8] = [0; 8];

/// The columns that `row` ends before, of which it has the defaults: none of a row of this version, some of
/// [`Table::trailing`] for a row of an earlier one. `None` for what is not exactly one row of `table`; `row` lacks the
/// first `skipped` columns. Never reads past its end.
pub fn missing_columns(table: Table, skipped: usize, row: &[u8]) -> Option<&'static [Column]> {
    let columns = table.columns();
    let required = columns.len() - table.trailing();
    let mut rest = row;
    for (at, column) in columns.iter().enumerate().skip(skipped) {
        if rest.is_empty() && at >= required {
            return Some(&columns[at..]);
        }
        rest = value(column.of, rest)?.1;
    }
    rest.is_empty().then_some(&[])
}

/// Appends the defaults of columns to a row that ends before them.
pub fn put_defaults(row: &mut Vec<u8>, missing: &[Column]) {
    missing.iter().for_each(|column| column.of.put_default(row));
}

/// One block of all `rows`, each a row of `table` with all columns. `None` when one of them is not.
pub fn block<'a>(table: Table, rows: impl ExactSizeIterator<Item = &'a [u8]>) -> Option<Vec<u8>> {
    let count = rows.len();
    let mut columns: Vec<_> = table.columns().iter().map(|column| Values::new(column.of, count)).collect();
    let mut row_bytes = 0;
    for row in rows {
        let mut rest = row;
        for column in &mut columns {
            rest = column.push(rest)?;
        }
        if !rest.is_empty() {
            return None;
        }
        row_bytes += row.len();
    }
    let mut out = Vec::with_capacity(row_bytes + row_bytes / 8 + 4096);
    put_varint(&mut out, columns.len() as u64);
    put_varint(&mut out, count as u64);
    for (Column { name, of }, values) in table.columns().iter().zip(columns) {
        put_string(&mut out, name);
        put_string(&mut out, of.name());
        values.append_to(&mut out);
    }
    Some(out)
}

/// The first value of `bytes`, and what follows it. A text's length prefix is part of it.
#[inline]
fn value(of: ColumnType, bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let length = match of {
        ColumnType::Fixed { width, .. } => width,
        ColumnType::Nullable { width, .. } => match bytes.first()? {
            0 => 1 + width,
            _ => 1,
        },
        ColumnType::Text | ColumnType::Dictionary => text(bytes)?.0,
        ColumnType::Metrics => {
            let (entries, mut at) = read_varint(bytes)?;
            for _ in 0..entries {
                at += text(bytes.get(at..)?)?.0 + 8;
            }
            at
        }
    };
    bytes.split_at_checked(length)
}

/// How long the text with its prefix is, and where it begins.
#[inline]
fn text(bytes: &[u8]) -> Option<(usize, usize)> {
    let (length, width) = read_varint(bytes)?;
    let end = width.checked_add(usize::try_from(length).ok()?)?;
    (end <= bytes.len()).then_some((end, width))
}

/// The values of one column so far.
enum Values<'a> {
    Fixed { width: usize, data: Vec<u8> },
    Nullable { width: usize, nulls: Vec<u8>, data: Vec<u8> },
    Text { data: Vec<u8> },
    Dictionary(Dictionary<'a>),
    Metrics { ends: Vec<u8>, count: u64, names: Dictionary<'a>, values: Vec<u8> },
}

impl<'a> Values<'a> {
    fn new(of: ColumnType, rows: usize) -> Self {
        match of {
            ColumnType::Fixed { width, .. } => Self::Fixed { width, data: Vec::with_capacity(rows * width) },
            ColumnType::Nullable { width, .. } => {
                Self::Nullable { width, nulls: Vec::with_capacity(rows), data: Vec::with_capacity(rows * width) }
            }
            ColumnType::Text => Self::Text { data: Vec::with_capacity(rows * 8) },
            ColumnType::Dictionary => Self::Dictionary(Dictionary::new(rows)),
            ColumnType::Metrics => Self::Metrics {
                ends: Vec::with_capacity(rows * 8),
                count: 0,
                names: Dictionary::new(rows),
                values: Vec::with_capacity(rows * 8),
            },
        }
    }

    /// Takes the first value of `row`, gives the rest.
    #[inline]
    fn push(&mut self, row: &'a [u8]) -> Option<&'a [u8]> {
        match self {
            Self::Fixed { width, data } => {
                let (value, rest) = row.split_at_checked(*width)?;
                put_fixed(data, value);
                Some(rest)
            }
            Self::Nullable { width, nulls, data } => {
                let (&is_null, rest) = row.split_first()?;
                nulls.push(u8::from(is_null != 0));
                if is_null != 0 {
                    put_fixed(data, &NOTHING[..*width]);
                    return Some(rest);
                }
                let (value, rest) = rest.split_at_checked(*width)?;
                put_fixed(data, value);
                Some(rest)
            }
            Self::Text { data } => {
                let (value, rest) = row.split_at_checked(text(row)?.0)?;
                data.extend_from_slice(value);
                Some(rest)
            }
            Self::Dictionary(dictionary) => {
                let (value, rest) = row.split_at_checked(text(row)?.0)?;
                dictionary.push(value);
                Some(rest)
            }
            Self::Metrics { ends, count, names, values } => {
                let (entries, width) = read_varint(row)?;
                let mut rest = row.get(width..)?;
                for _ in 0..entries {
                    let (name, after) = rest.split_at_checked(text(rest)?.0)?;
                    let (value, after) = after.split_at_checked(8)?;
                    names.push(name);
                    values.extend_from_slice(value);
                    rest = after;
                }
                *count += entries;
                put_u64(ends, *count);
                Some(rest)
            }
        }
    }

    /// The values of all rows, in the layout at the head of this file.
    fn append_to(self, out: &mut Vec<u8>) {
        match self {
            Self::Fixed { data, .. } | Self::Text { data } => out.extend_from_slice(&data),
            Self::Nullable { nulls, data, .. } => {
                out.extend_from_slice(&nulls);
                out.extend_from_slice(&data);
            }
            Self::Dictionary(dictionary) => {
                put_u64(out, DICTIONARY_VERSION);
                dictionary.append_to(out);
            }
            Self::Metrics { ends, names, values, .. } => {
                put_u64(out, DICTIONARY_VERSION);
                out.extend_from_slice(&ends);
                names.append_to(out);
                out.extend_from_slice(&values);
            }
        }
    }
}

/// Appends a value of a column of one width. Most are eight bytes, and then this is one store in place of a call.
#[inline]
fn put_fixed(data: &mut Vec<u8>, value: &[u8]) {
    match <[u8; 8]>::try_from(value) {
        Ok(word) => data.extend_from_slice(&word),
        Err(_) => data.extend_from_slice(value),
    }
}

/// Different texts, each with its length prefix, and which of them each value is.
struct Dictionary<'a> {
    keys: Vec<u8>,
    known: HashMap<&'a [u8], u32>,
    /// The last value: versions and kinds come in runs, and then cost no lookup.
    last: Option<(&'a [u8], u32)>,
    indices: Vec<u8>,
}

impl<'a> Dictionary<'a> {
    fn new(rows: usize) -> Self {
        Self { keys: Vec::new(), known: HashMap::new(), last: None, indices: Vec::with_capacity(rows * 4) }
    }

    #[inline]
    fn push(&mut self, value: &'a [u8]) {
        let index = match self.last {
            Some((last, index)) if last == value => index,
            _ => {
                let next = self.known.len() as u32;
                let keys = &mut self.keys;
                *self.known.entry(value).or_insert_with(|| {
                    keys.extend_from_slice(value);
                    next
                })
            }
        };
        self.last = Some((value, index));
        self.indices.extend_from_slice(&index.to_le_bytes());
    }

    /// Without a value there is nothing at all, not even flags.
    fn append_to(self, out: &mut Vec<u8>) {
        if self.indices.is_empty() {
            return;
        }
        put_u64(out, DICTIONARY_FLAGS);
        put_u64(out, self.known.len() as u64);
        out.extend_from_slice(&self.keys);
        put_u64(out, (self.indices.len() / 4) as u64);
        out.extend_from_slice(&self.indices);
    }
}

#[cfg(test)]
mod tests {
    use super::super::{encode_heartbeat, DeviceEvent, KnownDevice, Sections, UnixMillis};
    use super::*;
    use fleetd_proto::v1::{HeartbeatRequest, ProcessInfo, SystemStats};

    /// journal_id, seq, row_index.
    const PREFIX: [u8; 26] = [0; 26];

    fn rows() -> Vec<(Table, Vec<u8>)> {
        let mut record = Vec::new();
        let heartbeat = HeartbeatRequest {
            version: "1.2.3".into(),
            stats: Some(SystemStats {
                metrics: (0..5).map(|n| (format!("m{n}"), f64::from(n))).collect(),
                temperature_celsius: Some(40.0),
                ..Default::default()
            }),
            processes: vec![ProcessInfo { exit_code: Some(1), ..Default::default() }],
            ..Default::default()
        };
        let known = KnownDevice { device_type: "sensor", ..KnownDevice::default() };
        let nothing = HeartbeatRequest::default();
        encode_heartbeat("rpi-001", &known, &heartbeat, UnixMillis::EPOCH, &mut record).expect("valid");
        encode_heartbeat("rpi-002", &known, &nothing, UnixMillis::EPOCH, &mut record).expect("valid");
        DeviceEvent {
            received_at: UnixMillis::EPOCH,
            device_id: "rpi-001",
            timestamp: UnixMillis::EPOCH,
            kind: "a",
            from_state: "",
            to_state: "",
            detail: "d",
        }
        .encode(&mut record);
        let sections = Sections::of(&record).map(|section| section.expect("well formed"));
        sections.map(|section| (section.table, [&PREFIX, section.row].concat())).collect()
    }

    fn is_whole(table: Table, row: &[u8]) -> bool {
        missing_columns(table, 0, row) == Some(&[])
    }

    #[test]
    fn a_row_that_ends_before_trailing_columns_has_their_defaults_and_one_that_ends_elsewhere_is_no_row() {
        let rows: Vec<_> = rows().into_iter().filter(|(table, _)| *table == Table::Heartbeats).collect();
        // "sensor" with its length.
        for row in rows.iter().map(|(_, row)| &row[..row.len() - 7]) {
            let missing = missing_columns(Table::Heartbeats, 0, row).expect("a row of an earlier version");
            assert_eq!(missing.iter().map(|column| column.name).collect::<Vec<_>>(), ["device_type"]);
            let mut whole = row.to_vec();
            put_defaults(&mut whole, missing);
            assert_eq!(whole, [row, &[0]].concat());
            assert!(
                is_whole(Table::Heartbeats, &whole) && block(Table::Heartbeats, [&whole[..]].into_iter()).is_some()
            );
            for cut in 0..row.len() {
                assert_eq!(missing_columns(Table::Heartbeats, 0, &row[..cut]), None, "cut at {cut}");
            }
        }
    }

    #[test]
    fn the_default_of_every_type_is_one_value_of_it() {
        for column in Table::ALL.into_iter().flat_map(Table::columns) {
            let mut default = Vec::new();
            put_defaults(&mut default, std::slice::from_ref(column));
            assert_eq!(value(column.of, &default), Some((&default[..], &[][..])), "{}", column.name);
            assert!(default[1..].iter().all(|byte| *byte == 0), "{}", column.name);
        }
    }

    #[test]
    fn every_row_that_is_encoded_is_a_row_of_its_table() {
        for (table, row) in rows() {
            assert!(is_whole(table, &row), "{table:?}");
            assert_eq!(missing_columns(table, 3, &row[PREFIX.len()..]), Some(&[][..]), "{table:?}");
            assert!(block(table, [row.as_slice()].into_iter()).is_some());
        }
    }

    #[test]
    fn a_row_that_is_cut_or_longer_is_no_row_and_makes_no_block() {
        for (table, row) in rows() {
            for cut in 0..row.len() {
                assert!(!is_whole(table, &row[..cut]), "{table:?} cut at {cut}");
                assert_eq!(block(table, [&row[..cut]].into_iter()), None);
            }
            let longer = [&row[..], &[0]].concat();
            assert_eq!(missing_columns(table, 0, &longer), None);
            assert_eq!(block(table, [row.as_slice(), &longer].into_iter()), None);
        }
    }

    #[test]
    fn a_flipped_byte_never_panics_and_both_ways_of_reading_agree() {
        for (table, row) in rows() {
            for at in 0..row.len() {
                for bit in 0..8 {
                    let mut flipped = row.clone();
                    flipped[at] ^= 1 << bit;
                    let is_block = block(table, [flipped.as_slice()].into_iter()).is_some();
                    assert_eq!(is_block, is_whole(table, &flipped), "{table:?} byte {at} bit {bit}");
                }
            }
        }
    }

    #[test]
    fn a_dictionary_holds_each_text_once() {
        let mut dictionary = Dictionary::new(0);
        for text in [b"\x01a", b"\x01b", b"\x01a", b"\x01a", b"\x01b"] {
            dictionary.push(text);
        }
        let mut out = Vec::new();
        dictionary.append_to(&mut out);
        let words = |numbers: &[u64]| numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<_>>();
        let indices = [0u32, 1, 0, 0, 1].iter().flat_map(|index| index.to_le_bytes()).collect::<Vec<_>>();
        assert_eq!(out, [words(&[0x602, 2]), b"\x01a\x01b".to_vec(), words(&[5]), indices].concat());
    }
}
