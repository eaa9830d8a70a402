//! Makes one Parquet file of many: the library writes every piece of a streamed SELECT as a file of its own, and a whole
//! result at once would be as large in memory as on disk.
//!
//! A Parquet file is row groups and then a footer that says where they are
//! (<https://parquet.apache.org/docs/file-format/>). So the row groups of all pieces follow each other as they are, and one
//! footer at the end has the places of all of them, moved by what comes before. Page indexes hold places of their own; they
//! are optional, and the footer no longer points to them.
mod thrift;

use bytes::Bytes;

use self::thrift::{Malformed, Struct, StructWriter, Value, I64};

const MAGIC: &[u8; 4] = b"PAR1";
/// The length of the footer, and the magic.
const TAIL_BYTES: usize = 8;

/// Fields of `FileMetaData` and what it holds, by
/// <https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift>.
mod field {
    pub const FILE_SCHEMA: i16 = 2;
    pub const FILE_ROWS: i16 = 3;
    pub const FILE_ROW_GROUPS: i16 = 4;

    pub const GROUP_COLUMNS: i16 = 1;
    pub const GROUP_FILE_OFFSET: i16 = 5;
    pub const GROUP_ORDINAL: i16 = 7;

    pub const CHUNK_FILE_OFFSET: i16 = 2;
    pub const CHUNK_META: i16 = 3;
    /// Offset and length of the offset index, then of the column index.
    pub const CHUNK_INDEXES: [i16; 4] = [4, 5, 6, 7];

    /// Of data, index and dictionary pages, and of the bloom filter.
    pub const META_OFFSETS: [i16; 4] = [9, 10, 11, 14];
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
}

impl Joiner {
    /// Takes the next file; what of it belongs into the joined one.
    ///
    /// # Errors
    /// It is no Parquet file, or one of another schema.
    pub fn take(&mut self, file: &Bytes) -> Result<Bytes, Malformed> {
        let (body, mut metadata) = split(file)?;
        let Some(Value::List { values: groups, .. }) = metadata.take(field::FILE_ROW_GROUPS) else {
            return Err(Malformed("it has no row groups"));
        };
        self.rows += metadata.int(field::FILE_ROWS).ok_or(Malformed("it does not say how many rows it has"))?;
        let begin = match &self.head {
            None => 0,
            Some(head) if head.get(field::FILE_SCHEMA) == metadata.get(field::FILE_SCHEMA) => MAGIC.len(),
            Some(_) => return Err(Malformed("its columns differ from those before it")),
        };
        // Where the file's first byte would be.
        let moved = i64::try_from(self.written).map_err(|_| Malformed("it is too far from the start"))? - begin as i64;
        for group in groups {
            let Value::Struct(mut group) = group else { return Err(Malformed("a row group is no struct")) };
            move_group(&mut group, moved)?;
            match i64::try_from(self.group_count).ok().filter(|ordinal| *ordinal <= i16::MAX.into()) {
                Some(ordinal) => set(&mut group, field::GROUP_ORDINAL, ordinal),
                // Optional, and of 16 bits.
                None => drop(group.take(field::GROUP_ORDINAL)),
            }
            group.write(&mut self.groups);
            self.group_count += 1;
        }
        self.head.get_or_insert(metadata);
        let piece = file.slice(begin..body);
        self.written += piece.len() as u64;
        Ok(piece)
    }

    /// What ends the joined file; empty if no file was taken.
    pub fn finish(self) -> Bytes {
        let Some(head) = self.head else { return Bytes::new() };
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
        // Four gigabytes of footer would be a hundred thousand million rows.
        let length = u32::try_from(footer.len()).unwrap_or(u32::MAX);
        footer.extend_from_slice(&length.to_le_bytes());
        footer.extend_from_slice(MAGIC);
        footer.into()
    }
}

/// Where the row groups end, and the metadata.
fn split(file: &[u8]) -> Result<(usize, Struct), Malformed> {
    let tail =
        file.len().checked_sub(TAIL_BYTES).filter(|at| *at >= MAGIC.len()).ok_or(Malformed("it is too short"))?;
    let (rest, tail) = file.split_at(tail);
    if !rest.starts_with(MAGIC) || !tail.ends_with(MAGIC) {
        return Err(Malformed("it has no magic"));
    }
    let length = footer_length(tail)?;
    let body = rest.len().checked_sub(length).filter(|at| *at >= MAGIC.len()).ok_or(Malformed("it ends early"))?;
    Ok((body, thrift::read(&rest[body..])?))
}

/// Length of the footer, from the file's last [`TAIL_BYTES`].
fn footer_length(tail: &[u8]) -> Result<usize, Malformed> {
    let length = tail.first_chunk::<4>().ok_or(Malformed("it is too short"))?;
    usize::try_from(u32::from_le_bytes(*length)).map_err(|_| Malformed("its footer is too long"))
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
            *offset += moved;
        }
    }
}

fn set(fields: &mut Struct, id: i16, to: i64) {
    if let Some(Value::Int(value)) = fields.get_mut(id) {
        *value = to;
    }
}
