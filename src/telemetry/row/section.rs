//! How rows lie in a record: table, length, bytes; and back.
use super::binary::read_varint;
use super::table::Table;

/// Bytes of a section's length field. A fixed width lets a row be encoded in place and its length be filled in
/// after; a varint padded with continuation bits still reads as the same number.
const LENGTH_BYTES: usize = 3;

/// The largest row: what a three-byte varint can say. The limits on fields keep real rows far below it.
pub const MAX_ROW_BYTES: usize = (1 << (7 * LENGTH_BYTES)) - 1;

/// `received_at`, an empty key, `timestamp`.
const MIN_ROW_BYTES: usize = 8 + 1 + 8;

/// Appends one section, whose row `encode` writes.
///
/// # Panics
/// If the row is longer than [`MAX_ROW_BYTES`], which the limits on fields rule out.
#[inline]
pub fn append_section(out: &mut Vec<u8>, table: Table, encode: impl FnOnce(&mut Vec<u8>)) {
    out.push(table as u8);
    let length_at = out.len();
    out.extend_from_slice(&[0; LENGTH_BYTES]);
    let row_at = out.len();
    encode(out);
    let length = out.len() - row_at;
    assert!(length <= MAX_ROW_BYTES, "a row of {length} bytes escaped the limits on its fields");
    out[length_at] = (length & 0x7f) as u8 | 0x80;
    out[length_at + 1] = (length >> 7 & 0x7f) as u8 | 0x80;
    out[length_at + 2] = (length >> 14) as u8;
}

/// A record that does not read as sections: written by another version, or damaged in a way its checksum missed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MalformedRecord {
    #[error("section at byte {at} names table {number}, which this version does not have")]
    UnknownTable { at: usize, number: u8 },
    #[error("section at byte {at} has no readable length")]
    Length { at: usize },
    #[error("section at byte {at} says {length} bytes, but {left} are left")]
    Short { at: usize, length: u64, left: usize },
    #[error("row at byte {at} is too short for received_at, key and timestamp")]
    Row { at: usize },
}

/// One row of a record, without its prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Section<'a> {
    pub table: Table,
    pub row: &'a [u8],
    pub received_at: i64,
    /// The string that the table is ordered by first.
    pub key: &'a [u8],
    pub timestamp: i64,
}

/// Iterates over a record's sections; after an error it ends.
pub struct Sections<'a> {
    record: &'a [u8],
    at: usize,
}

impl<'a> Sections<'a> {
    pub fn of(record: &'a [u8]) -> Self {
        Self { record, at: 0 }
    }

    fn read(&self) -> Result<(Section<'a>, usize), MalformedRecord> {
        let at = self.at;
        let number = self.record[at];
        let table = Table::from_number(number).ok_or(MalformedRecord::UnknownTable { at, number })?;
        let rest = &self.record[at + 1..];
        let (length, width) = read_varint(rest).ok_or(MalformedRecord::Length { at })?;
        let rest = &rest[width..];
        let short = MalformedRecord::Short { at, length, left: rest.len() };
        let row = usize::try_from(length).ok().and_then(|length| rest.get(..length)).ok_or(short)?;
        let row_at = at + 1 + width;
        let section = Self::peek(table, row).ok_or(MalformedRecord::Row { at: row_at })?;
        Ok((section, row_at + row.len()))
    }

    fn peek(table: Table, row: &'a [u8]) -> Option<Section<'a>> {
        if row.len() < MIN_ROW_BYTES {
            return None;
        }
        let received_at = i64::from_le_bytes(row[..8].try_into().ok()?);
        let (length, width) = read_varint(&row[8..])?;
        let key_at = 8 + width;
        let key_end = key_at.checked_add(usize::try_from(length).ok()?)?;
        let key = row.get(key_at..key_end)?;
        let timestamp = i64::from_le_bytes(row.get(key_end..key_end.checked_add(8)?)?.try_into().ok()?);
        Some(Section { table, row, received_at, key, timestamp })
    }
}

impl<'a> Iterator for Sections<'a> {
    type Item = Result<Section<'a>, MalformedRecord>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.record.len() {
            return None;
        }
        match self.read() {
            Ok((section, next)) => {
                self.at = next;
                Some(Ok(section))
            }
            Err(malformed) => {
                self.at = self.record.len();
                Some(Err(malformed))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::binary::{put_i64, put_string};
    use super::*;

    fn record(key: &str, tail: usize) -> Vec<u8> {
        let mut out = Vec::new();
        for table in [Table::Heartbeats, Table::Processes] {
            append_section(&mut out, table, |row| {
                put_i64(row, 5);
                put_string(row, key);
                put_i64(row, 7);
                row.resize(row.len() + tail, 0xaa);
            });
        }
        out
    }

    #[test]
    fn sections_read_back_at_every_width_of_the_length() {
        for tail in [0, 1, 100, 127, 128, 16_000, 16_384, 1_000_000] {
            let record = record("rpi-001", tail);
            let sections: Vec<_> = Sections::of(&record).collect::<Result<_, _>>().expect("well formed");
            assert_eq!(sections.len(), 2);
            assert_eq!(sections[1].table, Table::Processes);
            for section in sections {
                assert_eq!((section.received_at, section.key, section.timestamp), (5, &b"rpi-001"[..], 7));
                assert_eq!(section.row.len(), 8 + 8 + 8 + tail);
            }
        }
    }

    #[test]
    fn a_cut_or_flipped_record_never_panics_and_never_runs_past_its_end() {
        let whole = record("rpi-001", 40);
        for cut in 0..whole.len() {
            let read: Vec<_> = Sections::of(&whole[..cut]).collect();
            assert!(read.iter().filter(|section| section.is_ok()).count() < 2, "cut at {cut}");
        }
        for at in 0..whole.len() {
            for bit in 0..8 {
                let mut flipped = whole.clone();
                flipped[at] ^= 1 << bit;
                let bytes: usize = Sections::of(&flipped).filter_map(Result::ok).map(|section| section.row.len()).sum();
                assert!(bytes <= flipped.len());
            }
        }
    }

    #[test]
    fn a_table_of_another_version_is_named() {
        let mut record = record("a", 0);
        record[0] = 200;
        assert_eq!(Sections::of(&record).next(), Some(Err(MalformedRecord::UnknownTable { at: 0, number: 200 })));
    }
}
