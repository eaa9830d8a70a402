//! The outside of Parquet files: makes one of many ([`Joiner`]), and tells how many rows one has ([`rows`]).
//!
//! The embedded ClickHouse writes every piece of a streamed SELECT as a file of its own, and a whole result at once would be
//! as large in memory as on disk. Pure.
//!
//! A Parquet file is row groups and then a footer that says where they are
//! (<https://parquet.apache.org/docs/file-format/>). So the row groups of all pieces follow each other as they are, and one
//! footer at the end has the places of all of them, moved by what comes before. Page indexes hold places of their own; they
//! are optional, and the footer no longer points to them.
mod thrift;

use bytes::Bytes;

pub use self::thrift::Malformed;
use self::thrift::{Struct, StructWriter, Value, I64};

const MAGIC: &[u8; 4] = b"PAR1";

/// What ends a file: the length of the footer, and the magic.
pub const TAIL_BYTES: usize = 8;

/// As much of a footer as [`rows`] needs: the schema comes before, some 50 bytes a column.
pub const FOOTER_HEAD_BYTES: usize = 256 << 10;

/// Fields of `FileMetaData` and what it holds, by
/// <https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift>.
mod field {
    pub const FILE_SCHEMA: i16 = 2;
    pub const FILE_ROWS: i16 = 3;
    pub const FILE_ROW_GROUPS: i16 = 4;

    pub const GROUP_COLUMNS: i16 = 1;
    pub const GROUP_ROWS: i16 = 3;
    pub const GROUP_FILE_OFFSET: i16 = 5;
    pub const GROUP_ORDINAL: i16 = 7;

    pub const CHUNK_FILE_OFFSET: i16 = 2;
    pub const CHUNK_META: i16 = 3;
    /// Offset and length of the offset index, then of the column index.
    pub const CHUNK_INDEXES: [i16; 4] = [4, 5, 6, 7];

    pub const META_BYTES: i16 = 7;
    pub const META_DATA: i16 = 9;
    pub const META_DICTIONARY: i16 = 11;
    /// Of data, index and dictionary pages, and of the bloom filter.
    pub const META_OFFSETS: [i16; 4] = [META_DATA, 10, META_DICTIONARY, 14];
}

/// Joins files of one schema.
#[derive(Default)]
pub struct Joiner {
    /// Bytes of the joined file so far.
    written: u64,
    rows: i64,
    /// The first file's metadata without its row groups.
    head: Option<Struct>,
    /// All row groups, encoded.
    groups: Vec<u8>,
    group_count: usize,
    /// Columns of each row group.
    columns: Option<usize>,
}

impl Joiner {
    /// Takes the next file; what of it belongs into the joined one.
    ///
    /// # Errors
    /// It is no Parquet file, one of another schema, or one whose footer does not fit to its length and row groups.
    pub fn take(&mut self, file: &Bytes) -> Result<Bytes, Malformed> {
        let (body, mut metadata) = split(file)?;
        let Some(Value::List { values: groups, .. }) = metadata.take(field::FILE_ROW_GROUPS) else {
            return Err(Malformed("it has no row groups"));
        };
        let rows = metadata.int(field::FILE_ROWS).ok_or(Malformed("it does not say how many rows it has"))?;
        self.rows = self.rows.checked_add(rows).ok_or(Malformed("it has too many rows"))?;
        let mut rows_of_groups = 0_i64;
        let begin = match &self.head {
            None => 0,
            Some(head) if head.get(field::FILE_SCHEMA) == metadata.get(field::FILE_SCHEMA) => MAGIC.len(),
            Some(_) => return Err(Malformed("its columns differ from those before it")),
        };
        // Where the file's first byte would be.
        let moved = i64::try_from(self.written).map_err(|_| Malformed("it is too far from the start"))? - begin as i64;
        for group in groups {
            let Value::Struct(mut group) = group else { return Err(Malformed("a row group is no struct")) };
            let found = inspect(&group, body)?;
            if *self.columns.get_or_insert(found.columns) != found.columns {
                return Err(Malformed("a row group has another number of columns"));
            }
            rows_of_groups = rows_of_groups.saturating_add(found.rows);
            move_group(&mut group, moved)?;
            match i64::try_from(self.group_count).ok().filter(|ordinal| *ordinal <= i16::MAX.into()) {
                Some(ordinal) => set(&mut group, field::GROUP_ORDINAL, ordinal),
                // Optional, and of 16 bits.
                None => drop(group.take(field::GROUP_ORDINAL)),
            }
            group.write(&mut self.groups);
            self.group_count += 1;
        }
        if rows_of_groups != rows {
            return Err(Malformed("its row groups have other rows than it says"));
        }
        self.head.get_or_insert(metadata);
        let piece = file.slice(begin..body);
        self.written += piece.len() as u64;
        Ok(piece)
    }

    /// What ends the joined file; empty if no file was taken.
    ///
    /// # Errors
    /// The footer is longer than a footer can be.
    pub fn finish(self) -> Result<Bytes, Malformed> {
        let Some(head) = self.head else { return Ok(Bytes::new()) };
        let mut footer = Vec::with_capacity(self.groups.len() + 4096);
        let mut writer = StructWriter::new(&mut footer);
        // In the order of their ids, so that the compact form stays compact.
        for (id, kind, value) in head.0.iter().filter(|(id, ..)| *id < field::FILE_ROWS) {
            writer.field(*id, *kind, value);
        }
        writer.field(field::FILE_ROWS, I64, &Value::Int(self.rows));
        writer.structs(field::FILE_ROW_GROUPS, self.group_count, &self.groups);
        for (id, kind, value) in head.0.iter().filter(|(id, ..)| *id > field::FILE_ROW_GROUPS) {
            writer.field(*id, *kind, value);
        }
        writer.end();
        let length = u32::try_from(footer.len()).map_err(|_| Malformed("it would be longer than 4 GiB"))?;
        footer.extend_from_slice(&length.to_le_bytes());
        footer.extend_from_slice(MAGIC);
        Ok(footer.into())
    }
}

/// Where the row groups end, and the metadata.
fn split(file: &[u8]) -> Result<(usize, Struct), Malformed> {
    let tail =
        file.len().checked_sub(TAIL_BYTES).filter(|at| *at >= MAGIC.len()).ok_or(Malformed("it is too short"))?;
    let (rest, tail) = file.split_at(tail);
    if !rest.starts_with(MAGIC) {
        return Err(Malformed("it has no magic"));
    }
    let length = footer_length(tail)?;
    let body = rest.len().checked_sub(length).filter(|at| *at >= MAGIC.len()).ok_or(Malformed("it ends early"))?;
    Ok((body, thrift::read(&rest[body..])?))
}

/// Length of the footer, from the file's last [`TAIL_BYTES`].
///
/// # Errors
/// They do not end a Parquet file.
pub fn footer_length(tail: &[u8]) -> Result<usize, Malformed> {
    let length = tail.first_chunk::<4>().ok_or(Malformed("it is too short"))?;
    if !tail.ends_with(MAGIC) {
        return Err(Malformed("it has no magic"));
    }
    usize::try_from(u32::from_le_bytes(*length)).map_err(|_| Malformed("its footer is too long"))
}

/// How many rows a file has, from the beginning of its footer.
///
/// # Errors
/// It does not say so in its first [`FOOTER_HEAD_BYTES`].
pub fn rows(footer_head: &[u8]) -> Result<u64, Malformed> {
    let rows = thrift::read_through(footer_head, field::FILE_ROWS)?.int(field::FILE_ROWS);
    rows.and_then(|rows| u64::try_from(rows).ok()).ok_or(Malformed("it does not say how many rows it has"))
}

/// What a row group has.
struct Found {
    rows: i64,
    columns: usize,
}

/// Looks whether a row group lies within the first `body` bytes of its file: what does not is damaged, and would point
/// to other bytes of the joined file.
fn inspect(group: &Struct, body: usize) -> Result<Found, Malformed> {
    let body = i64::try_from(body).unwrap_or(i64::MAX);
    let rows = group.int(field::GROUP_ROWS).filter(|rows| *rows >= 0);
    let rows = rows.ok_or(Malformed("a row group does not say how many rows it has"))?;
    let Some(Value::List { values: columns, .. }) = group.get(field::GROUP_COLUMNS) else {
        return Err(Malformed("a row group has no columns"));
    };
    for column in columns {
        let Value::Struct(chunk) = column else { return Err(Malformed("a column is no struct")) };
        let Some(Value::Struct(meta)) = chunk.get(field::CHUNK_META) else {
            return Err(Malformed("a column has no metadata"));
        };
        let is_within = |at: i64| (MAGIC.len() as i64..=body).contains(&at);
        let offset = |id| match meta.get(id) {
            None | Some(Value::Int(0)) => Ok(None),
            Some(Value::Int(at)) if is_within(*at) => Ok(Some(*at)),
            Some(_) => Err(Malformed("a column lies outside of its file")),
        };
        for id in field::META_OFFSETS {
            offset(id)?;
        }
        let data = offset(field::META_DATA)?.ok_or(Malformed("a column does not say where it is"))?;
        let begin = offset(field::META_DICTIONARY)?.map_or(data, |dictionary| dictionary.min(data));
        let bytes = meta.int(field::META_BYTES).filter(|bytes| *bytes >= 0);
        let end = bytes.and_then(|bytes| begin.checked_add(bytes));
        if !end.is_some_and(|end| is_within(end) && data <= end) {
            return Err(Malformed("a column ends outside of its file"));
        }
    }
    Ok(Found { rows, columns: columns.len() })
}

fn move_group(group: &mut Struct, moved: i64) -> Result<(), Malformed> {
    add(group, field::GROUP_FILE_OFFSET, moved);
    let Some(Value::List { values: columns, .. }) = group.get_mut(field::GROUP_COLUMNS) else {
        return Err(Malformed("a row group has no columns"));
    };
    for column in columns {
        let Value::Struct(chunk) = column else { return Err(Malformed("a column is no struct")) };
        add(chunk, field::CHUNK_FILE_OFFSET, moved);
        for index in field::CHUNK_INDEXES {
            chunk.take(index);
        }
        let Some(Value::Struct(meta)) = chunk.get_mut(field::CHUNK_META) else {
            return Err(Malformed("a column has no metadata"));
        };
        for offset in field::META_OFFSETS {
            add(meta, offset, moved);
        }
    }
    Ok(())
}

/// Moves an offset. 0 is where the magic is, so writers mean "none" by it.
fn add(fields: &mut Struct, id: i16, moved: i64) {
    if let Some(Value::Int(offset)) = fields.get_mut(id) {
        if *offset != 0 {
            *offset = offset.saturating_add(moved);
        }
    }
}

fn set(fields: &mut Struct, id: i16, to: i64) {
    if let Some(Value::Int(value)) = fields.get_mut(id) {
        *value = to;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of one row group and one column, as far as this module looks into it.
    fn file(content: &[u8], rows: i64, schema: &str) -> Bytes {
        let int = |id, value| (id, I64, Value::Int(value));
        let offsets =
            [int(5, rows), int(7, content.len() as i64), int(9, 4), int(11, 0), int(14, 4 + content.len() as i64 - 1)];
        let chunk =
            vec![int(2, 0), (3, thrift::STRUCT, Value::Struct(Struct(offsets.to_vec()))), int(4, 77), int(5, 8)];
        let chunks = Value::List { kind: thrift::STRUCT, values: vec![Value::Struct(Struct(chunk))] };
        let group = Struct(vec![(1, thrift::LIST, chunks), int(3, rows), int(5, 4), (7, 4, Value::Int(0))]);
        let groups = Value::List { kind: thrift::STRUCT, values: vec![Value::Struct(group)] };
        let name = (6, 8, Value::Binary(b"writer".to_vec()));
        let schema = (2, 8, Value::Binary(schema.into()));
        let metadata = Struct(vec![(1, 5, Value::Int(2)), schema, int(3, rows), (4, thrift::LIST, groups), name]);
        let mut bytes = [MAGIC, content].concat();
        let begin = bytes.len();
        metadata.write(&mut bytes);
        let length = (bytes.len() - begin) as u32;
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(MAGIC);
        bytes.into()
    }

    fn joined(files: &[Bytes]) -> Vec<u8> {
        let mut joiner = Joiner::default();
        let mut whole = Vec::new();
        files.iter().for_each(|file| whole.extend_from_slice(&joiner.take(file).unwrap()));
        whole.extend_from_slice(&joiner.finish().unwrap());
        whole
    }

    /// Of each row group: ordinal, row count, and the bytes from the first page to the bloom filter.
    fn groups(file: &[u8]) -> Vec<(i64, i64, Vec<u8>)> {
        let (_, metadata) = split(file).unwrap();
        let Some(Value::List { values, .. }) = metadata.get(field::FILE_ROW_GROUPS) else { panic!("no groups") };
        let read = values.iter().map(|group| {
            let Value::Struct(group) = group else { panic!("no struct") };
            let Some(Value::List { values: chunks, .. }) = group.get(1) else { panic!("no columns") };
            let Value::Struct(chunk) = &chunks[0] else { panic!("no struct") };
            assert!(chunk.get(4).is_none() && chunk.get(5).is_none(), "the page index is dropped");
            let Some(Value::Struct(meta)) = chunk.get(3) else { panic!("no metadata") };
            assert_eq!(meta.int(11), Some(0), "no dictionary stays none");
            let (from, to) = (meta.int(9).unwrap() as usize, meta.int(14).unwrap() as usize);
            (group.int(7).unwrap(), group.int(3).unwrap(), file[from..=to].to_vec())
        });
        read.collect()
    }

    #[test]
    fn joined_files_have_the_row_groups_of_all_at_their_new_places() {
        let whole = joined(&[file(b"abc", 3, "s"), file(b"de", 2, "s"), file(b"f", 1, "s")]);
        let expected = [(0, 3, b"abc".to_vec()), (1, 2, b"de".to_vec()), (2, 1, b"f".to_vec())];
        assert_eq!(groups(&whole), expected);
        let length = footer_length(&whole[whole.len() - TAIL_BYTES..]).unwrap();
        let footer = &whole[whole.len() - TAIL_BYTES - length..];
        assert_eq!(rows(footer), Ok(6));
        assert_eq!(rows(&footer[..12]), Ok(6), "the beginning is enough");
        assert_eq!(&whole[..9], b"PAR1abcde");
    }

    #[test]
    fn one_file_stays_as_it_is_but_for_its_page_index() {
        assert_eq!(groups(&joined(&[file(b"abc", 3, "s")])), [(0, 3, b"abc".to_vec())]);
        assert_eq!(joined(&[]), b"");
    }

    #[test]
    fn what_does_not_belong_together_is_not_joined() {
        let mut joiner = Joiner::default();
        joiner.take(&file(b"abc", 3, "s")).unwrap();
        assert!(joiner.take(&file(b"abc", 3, "other")).is_err());
        let whole = file(b"abc", 3, "s");
        for end in 0..whole.len() {
            assert!(Joiner::default().take(&whole.slice(..end)).is_err(), "{end}");
        }
    }

    #[test]
    fn a_bit_that_flipped_in_a_footer_joins_nothing_that_points_elsewhere() {
        let (first, second) = (file(b"abc", 3, "s"), file(b"defg", 4, "s"));
        let footer = MAGIC.len() + 4;
        for at in footer..second.len() {
            for bit in 0..8 {
                let mut damaged = second.to_vec();
                damaged[at] ^= 1 << bit;
                let mut joiner = Joiner::default();
                let mut whole = joiner.take(&first).unwrap().to_vec();
                let Ok(piece) = joiner.take(&damaged.into()) else { continue };
                whole.extend_from_slice(&piece);
                whole.extend_from_slice(&joiner.finish().unwrap());
                let (body, metadata) = split(&whole).expect("a footer that reads");
                let Some(Value::List { values, .. }) = metadata.get(field::FILE_ROW_GROUPS) else { panic!("none") };
                let found = values.iter().map(|group| match group {
                    Value::Struct(group) => inspect(group, body).expect("a group within the file").rows,
                    _ => panic!("no struct"),
                });
                assert_eq!((found.sum::<i64>(), metadata.int(field::FILE_ROWS)), (7, Some(7)), "byte {at}, bit {bit}");
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_joiner_panic(bytes: Vec<u8>, length: u8) {
            let file = [MAGIC, &bytes[..], &u32::from(length).to_le_bytes(), MAGIC].concat();
            let _ = Joiner::default().take(&file.into());
            let _ = rows(&bytes);
        }
    }
}
