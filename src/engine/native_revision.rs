//! Answers in Native for clients that name their protocol's revision (`client_protocol_version`).
//!
//! ClickHouse's server then writes what such a client has over TCP too: a head before each block, and for each column
//! whether it is serialized in a special way (`NativeWriter.cpp`). Go's client, and with it Grafana's plugin, reads
//! nothing else. The library knows no revision when it writes, so both are put in here.
use super::column_shape::Shape;
use super::exception::{code, Exception};

/// `DBMS_MIN_REVISION_WITH_CUSTOM_SERIALIZATION` of ClickHouse's `ProtocolDefines.h`.
const WITH_CUSTOM_SERIALIZATION: u64 = 54_454;

/// The head of a block (`BlockInfo.cpp`): field 1, no overflow row; field 2, bucket -1, which is none; the end.
const BLOCK_HEAD: [u8; 8] = [1, 0, 2, 0xff, 0xff, 0xff, 0xff, 0];

/// Values are serialized as their type says.
const NOT_CUSTOM: u8 = 0;

/// Puts heads into a stream of Native blocks. Blocks may be cut anywhere between two calls.
pub struct RevisionWriter {
    revision: u64,
    /// The beginning of a block whose end has not come yet.
    pending: Vec<u8>,
}

/// What keeps a block from being passed on.
enum Stop {
    /// It is not whole yet.
    Incomplete,
    Failed(Exception),
}

impl RevisionWriter {
    /// `None` for a client that names no revision: it gets blocks as they are.
    pub fn new(revision: u64) -> Option<Self> {
        (revision > 0).then(|| Self { revision, pending: Vec::new() })
    }

    /// Takes more of the library's output; gives the blocks that are whole now, as the client reads them.
    ///
    /// # Errors
    /// `NOT_IMPLEMENTED` for a column of a type whose length is not known here.
    pub fn write(&mut self, plain: &[u8]) -> Result<Vec<u8>, Exception> {
        self.pending.extend_from_slice(plain);
        let mut written = Vec::with_capacity(plain.len() + 64);
        let mut done = 0;
        while done < self.pending.len() {
            let whole = written.len();
            match block(&self.pending[done..], self.revision, &mut written) {
                Ok(length) => done += length,
                Err(Stop::Incomplete) => {
                    written.truncate(whole);
                    break;
                }
                Err(Stop::Failed(exception)) => return Err(exception),
            }
        }
        self.pending.drain(..done);
        Ok(written)
    }

    /// Whether the last block came to its end.
    pub fn is_whole(&self) -> bool {
        self.pending.is_empty()
    }
}

/// Copies one block with its head; its length without it.
fn block(bytes: &[u8], revision: u64, written: &mut Vec<u8>) -> Result<usize, Stop> {
    let mut cursor = Cursor::new(bytes);
    let columns = cursor.varint().ok_or(Stop::Incomplete)?;
    let rows = cursor.varint().and_then(|rows| usize::try_from(rows).ok()).ok_or(Stop::Incomplete)?;
    written.extend_from_slice(&BLOCK_HEAD);
    written.extend_from_slice(&bytes[..cursor.at]);
    for _ in 0..columns {
        let start = cursor.at;
        let name = cursor.text().ok_or(Stop::Incomplete)?;
        let type_name = cursor.text().ok_or(Stop::Incomplete)?;
        let type_name = String::from_utf8_lossy(type_name);
        let shape = Shape::of(&type_name).ok_or_else(|| {
            let name = String::from_utf8_lossy(name);
            let message = format!(
                "The column {name} has the type {type_name}, which the embedded engine cannot write in Native for a \
                 client that names a protocol version; convert it, such as with toString()"
            );
            Stop::Failed(Exception::new(code::NOT_IMPLEMENTED, "NOT_IMPLEMENTED", message))
        })?;
        written.extend_from_slice(&bytes[start..cursor.at]);
        if revision >= WITH_CUSTOM_SERIALIZATION {
            written.push(NOT_CUSTOM);
        }
        let values = cursor.at;
        // A block without rows has nothing after its names and types.
        if rows > 0 {
            shape.skip(&mut cursor, rows).ok_or(Stop::Incomplete)?;
        }
        written.extend_from_slice(&bytes[values..cursor.at]);
    }
    Ok(cursor.at)
}

/// Reads along bytes; every step is `None` when they end before it does.
pub struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    pub fn skip(&mut self, count: usize) -> Option<()> {
        self.take(count).map(drop)
    }

    pub fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }

    /// A string: its length, then its bytes.
    pub fn text(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.varint()?).ok()?;
        self.take(length)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let end = self.at.checked_add(count)?;
        let taken = self.bytes.get(self.at..end)?;
        self.at = end;
        Some(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two columns, two rows: UInt8 and String.
    const BLOCK: &[u8] = b"\x02\x02\x01n\x05UInt8\x07\x08\x01s\x06String\x01a\x02bc";

    #[test]
    fn a_block_gets_its_head_and_each_column_its_mark() {
        let mut writer = RevisionWriter::new(54_460).expect("a revision");
        let expected = [&BLOCK_HEAD[..], b"\x02\x02\x01n\x05UInt8\0\x07\x08\x01s\x06String\0\x01a\x02bc"].concat();
        assert_eq!(writer.write(BLOCK).expect("known types"), expected);
        assert!(writer.is_whole());
        let mut older = RevisionWriter::new(54_405).expect("a revision");
        assert_eq!(older.write(BLOCK).expect("known types"), [&BLOCK_HEAD[..], BLOCK].concat());
        assert!(RevisionWriter::new(0).is_none());
    }

    #[test]
    fn blocks_may_be_cut_anywhere() {
        let blocks = [BLOCK, b"\x01\0\x01e\x06String", BLOCK].concat();
        let mut whole = RevisionWriter::new(54_460).expect("a revision");
        let expected = whole.write(&blocks).expect("known types");
        for cut in 0..blocks.len() {
            let mut writer = RevisionWriter::new(54_460).expect("a revision");
            let mut written = writer.write(&blocks[..cut]).expect("known types");
            written.extend(writer.write(&blocks[cut..]).expect("known types"));
            assert!(written == expected && writer.is_whole(), "cut at {cut}");
        }
        assert!(!{
            whole.write(&BLOCK[..5]).expect("known types");
            whole.is_whole()
        });
    }

    #[test]
    fn a_column_of_an_unknown_length_is_refused_by_name() {
        let mut writer = RevisionWriter::new(54_460).expect("a revision");
        let error = writer.write(b"\x01\x01\x01j\x04JSON\0\0").expect_err("not known");
        assert_eq!(error.http_status(), 501);
        assert!(error.to_string().contains("column j has the type JSON"), "{error}");
    }
}
