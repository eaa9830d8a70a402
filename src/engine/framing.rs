//! Which output formats can be streamed, and how the pieces of one are put together.
//!
//! The library writes every piece of a streamed SELECT as a document of its own: with CSVWithNames each piece
//! begins with the names again, with JSON each piece is a whole object. Formats that are rows and nothing else join
//! up; of those with a head, the head of every piece but the first is cut off; Parquet files are joined by their
//! footers ([`crate::parquet`]); the others are not streamed.

/// How the pieces of a format join.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// Rows only.
    Rows,
    /// Rows after a head that every piece repeats.
    Headed(Head),
    /// Parquet files, which can be made one.
    Parquet,
    /// A document as a whole: to be produced in one piece.
    Document,
}

/// The shape of a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    /// So many lines; a line break inside double quotes ends no line.
    Lines(usize),
    /// RowBinary: the number of columns, then so many strings for each column.
    Strings(usize),
}

const ROWS: [&str; 20] = [
    "TabSeparated",
    "TSV",
    "TabSeparatedRaw",
    "TSVRaw",
    "Raw",
    "CSV",
    "TSKV",
    "LineAsString",
    "RawBLOB",
    "RowBinary",
    "Native",
    "MsgPack",
    "Protobuf",
    "BSONEachRow",
    "JSONEachRow",
    "JSONLines",
    "NDJSON",
    "JSONStringsEachRow",
    "JSONCompactEachRow",
    "JSONCompactStringsEachRow",
];

/// Formats that also come with a line of names, or with names and types.
const WITH_HEAD_LINES: [&str; 7] =
    ["TabSeparated", "TSV", "TabSeparatedRaw", "TSVRaw", "CSV", "JSONCompactEachRow", "JSONCompactStringsEachRow"];

impl Framing {
    /// ClickHouse takes format names in any case.
    pub fn of(format: &str) -> Self {
        let is_among = |names: &[&str], name: &str| names.iter().any(|one| one.eq_ignore_ascii_case(name));
        if format.eq_ignore_ascii_case("Parquet") {
            return Self::Parquet;
        }
        if is_among(&ROWS, format) {
            return Self::Rows;
        }
        for (suffix, parts) in [("WithNamesAndTypes", 2), ("WithNames", 1)] {
            let Some(at) = format.len().checked_sub(suffix.len()).filter(|at| format.is_char_boundary(*at)) else {
                continue;
            };
            let (base, end) = format.split_at(at);
            if end.eq_ignore_ascii_case(suffix) {
                if base.eq_ignore_ascii_case("RowBinary") {
                    return Self::Headed(Head::Strings(parts));
                }
                if is_among(&WITH_HEAD_LINES, base) {
                    return Self::Headed(Head::Lines(parts));
                }
            }
        }
        Self::Document
    }
}

impl Head {
    /// Length of the head that `piece` begins with, in bytes; `None` when it is not all there.
    pub fn length(self, piece: &[u8]) -> Option<usize> {
        match self {
            Self::Lines(count) => {
                let mut is_quoted = false;
                let ends = piece.iter().enumerate().filter(|(_, byte)| {
                    is_quoted ^= **byte == b'"';
                    **byte == b'\n' && !is_quoted
                });
                ends.map(|(at, _)| at + 1).nth(count - 1)
            }
            Self::Strings(per_column) => {
                let (columns, mut at) = leb128(piece)?;
                for _ in 0..columns.checked_mul(per_column)? {
                    let (length, bytes) = leb128(piece.get(at..)?)?;
                    at = at.checked_add(bytes)?.checked_add(length)?;
                }
                (at <= piece.len()).then_some(at)
            }
        }
    }
}

/// A length as RowBinary writes it, and the bytes it takes.
fn leb128(bytes: &[u8]) -> Option<(usize, usize)> {
    let mut value = 0_u64;
    for (index, byte) in bytes.iter().take(9).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return Some((usize::try_from(value).ok()?, index + 1));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_join_as_the_library_was_seen_to_write_them() {
        assert_eq!(Framing::of("jsoneachrow"), Framing::Rows);
        assert_eq!(Framing::of("CSVWithNames"), Framing::Headed(Head::Lines(1)));
        assert_eq!(Framing::of("TabSeparatedWithNamesAndTypes"), Framing::Headed(Head::Lines(2)));
        assert_eq!(Framing::of("RowBinaryWithNamesAndTypes"), Framing::Headed(Head::Strings(2)));
        assert_eq!(Framing::of("parquet"), Framing::Parquet);
        for whole in ["JSON", "JSONCompact", "XML", "Pretty", "ORC", "ArrowStream", "Values", "WithNames", "ü"] {
            assert_eq!(Framing::of(whole), Framing::Document, "{whole}");
        }
    }

    #[test]
    fn heads_are_measured() {
        assert_eq!(Head::Lines(1).length(b"\"a\nb\",\"c\"\n1,2\n"), Some(10));
        assert_eq!(Head::Lines(2).length(b"a\nUInt8\n1\n"), Some(8));
        assert_eq!(Head::Lines(2).length(b"a\nUInt8"), None);
        assert_eq!(Head::Strings(2).length(b"\x01\x01n\x06UInt64\x07"), Some(10));
        assert_eq!(Head::Strings(1).length(b"\x02\x01n\x05abc"), None);
        assert_eq!(Head::Strings(2).length(&[0xff; 20]), None);
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_measure_panic(bytes: Vec<u8>) {
            for head in [Head::Lines(1), Head::Lines(2), Head::Strings(1), Head::Strings(2)] {
                if let Some(length) = head.length(&bytes) {
                    assert!(length <= bytes.len());
                }
            }
        }
    }
}
