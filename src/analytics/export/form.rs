//! The forms of files: what ClickHouse is told so that it writes them, and how rows are counted as they pass by.
//!
//! Pure.

/// In what form data is exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Csv,
    /// One object a line.
    Json,
    Parquet,
}

/// Rows of a block: what ClickHouse writes at once, and holds as often as an answer has pieces on their way. 16 thousand
/// rows of text are some 8 MB.
const TEXT_BLOCK_ROWS: &str = "16384";

/// For Parquet a block is a row group, and each has a kilobyte or two in the footer, which ClickHouse keeps until the end:
/// a hundred million rows are 800 of these. Compressed, one is a few megabytes.
const PARQUET_BLOCK_ROWS: &str = "131072";

/// What a block of Parquet may take in ClickHouse's memory, in bytes: with a hundred long-named metrics in each row, as many
/// rows as above would be near the limit of the statement, and there are some copies.
const PARQUET_BLOCK_BYTES: &str = "134217728";

impl Form {
    /// As the contract spells it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Csv => "CSV",
            Self::Json => "JSON",
            Self::Parquet => "PARQUET",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Csv, Self::Json, Self::Parquet].into_iter().find(|form| form.name() == name)
    }

    /// ClickHouse's name of it.
    pub const fn format(self) -> &'static str {
        match self {
            Self::Csv => "CSVWithNames",
            Self::Json => "JSONEachRow",
            Self::Parquet => "Parquet",
        }
    }

    /// What the name of a file ends with.
    pub const fn extension(self) -> &'static str {
        match self {
            Self::Csv => "csv",
            Self::Json => "jsonl",
            Self::Parquet => "parquet",
        }
    }

    /// Media types: RFC 7111 with RFC 4180, the one that `jsonlines.org` proposes, and the one that is registered for
    /// Parquet (<https://www.iana.org/assignments/media-types/application/vnd.apache.parquet>).
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Csv => "text/csv; charset=utf-8; header=present",
            Self::Json => "application/jsonl; charset=utf-8",
            Self::Parquet => "application/vnd.apache.parquet",
        }
    }

    /// How ClickHouse writes it.
    pub const fn settings(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Csv => &[
                ("max_block_size", TEXT_BLOCK_ROWS),
                ("date_time_output_format", "iso"),
                // Nothing is not the empty text, which is `""`.
                ("format_csv_null_representation", ""),
            ],
            Self::Json => &[
                ("max_block_size", TEXT_BLOCK_ROWS),
                ("date_time_output_format", "iso"),
                // Numbers are numbers. JavaScript alone rounds those beyond 2^53, which no counter here reaches soon.
                ("output_format_json_quote_64bit_integers", "0"),
                ("output_format_json_quote_denormals", "0"),
            ],
            Self::Parquet => &[
                ("max_block_size", PARQUET_BLOCK_ROWS),
                // By default a megabyte, by which a row group with long texts is a few thousand rows.
                ("preferred_block_size_bytes", PARQUET_BLOCK_BYTES),
                ("output_format_parquet_row_group_size", PARQUET_BLOCK_ROWS),
                // Every reader has it; the smaller codecs are missing here and there.
                ("output_format_parquet_compression_method", "snappy"),
                // Who reads an export reads all of it.
                ("output_format_parquet_write_bloom_filter", "0"),
                ("output_format_parquet_write_page_index", "0"),
                ("output_format_parquet_parallel_encoding", "0"),
            ],
        }
    }
}

/// Counts the rows of a file that passes by, and looks whether it can end where it does.
#[derive(Debug)]
pub struct RowCounter {
    form: Form,
    lines: u64,
    is_quoted: bool,
    last: u8,
}

impl RowCounter {
    pub const fn new(form: Form) -> Self {
        Self { form, lines: 0, is_quoted: false, last: 0 }
    }

    pub fn take(&mut self, piece: &[u8]) {
        let Some(last) = piece.last() else { return };
        self.last = *last;
        match self.form {
            // Line breaks inside of texts are escaped.
            Form::Json => self.lines += piece.iter().filter(|byte| **byte == b'\n').count() as u64,
            Form::Csv => {
                for byte in piece {
                    // A quote inside of quotes is doubled.
                    self.is_quoted ^= *byte == b'"';
                    self.lines += u64::from(*byte == b'\n' && !self.is_quoted);
                }
            }
            Form::Parquet => {}
        }
    }

    /// Rows so far; `None` where they do not show.
    pub fn rows(&self) -> Option<u64> {
        match self.form {
            // The first line has the names.
            Form::Csv => Some(self.lines.saturating_sub(1)),
            Form::Json => Some(self.lines),
            Form::Parquet => None,
        }
    }

    /// Whether a row ends here.
    pub fn is_whole(&self) -> bool {
        match self.form {
            Form::Csv => self.last == b'\n' && !self.is_quoted,
            Form::Json => self.lines == 0 && self.last == 0 || self.last == b'\n',
            Form::Parquet => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(form: Form, text: &[u8], piece: usize) -> RowCounter {
        let mut counter = RowCounter::new(form);
        text.chunks(piece).for_each(|piece| counter.take(piece));
        counter
    }

    #[test]
    fn rows_are_counted_however_the_file_is_cut() {
        let csv = b"\"a\",\"b\"\n\"x\n\"\"y\"\"\n\",1\n\"\",\n";
        let json = b"{\"a\":\"x\\n\"}\n{\"a\":\"\"}\n";
        for piece in 1..csv.len() + 1 {
            let (csv, json) = (counted(Form::Csv, csv, piece), counted(Form::Json, json, piece));
            assert_eq!((csv.rows(), csv.is_whole()), (Some(2), true), "{piece}");
            assert_eq!((json.rows(), json.is_whole()), (Some(2), true), "{piece}");
        }
    }

    #[test]
    fn a_file_that_ends_within_a_row_is_not_whole() {
        for text in ["\"a\"\n1", "\"a\"\n\"x\n", ""] {
            assert!(!counted(Form::Csv, text.as_bytes(), 3).is_whole(), "{text:?}");
        }
        assert!(counted(Form::Csv, b"\"a\"\n", 3).is_whole(), "no rows");
        assert!(counted(Form::Json, b"", 3).is_whole(), "no rows");
        assert!(!counted(Form::Json, b"{}\n{", 3).is_whole());
    }
}
