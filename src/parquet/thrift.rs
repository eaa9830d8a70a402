//! Thrift's compact protocol, as much of it as the footer of a Parquet file uses: read into a tree, written back.
//!
//! <https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md>

/// How deep values may be nested. A footer needs eight levels; a broken one shall not overflow the stack.
const MAX_DEPTH: usize = 32;

mod kind {
    pub const TRUE: u8 = 1;
    pub const FALSE: u8 = 2;
    pub const BYTE: u8 = 3;
    pub const I16: u8 = 4;
    pub const I32: u8 = 5;
    pub const I64: u8 = 6;
    pub const DOUBLE: u8 = 7;
    pub const BINARY: u8 = 8;
    pub const LIST: u8 = 9;
    pub const SET: u8 = 10;
    pub const STRUCT: u8 = 12;
}

/// The bytes are not what they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a Parquet footer does not read: {0}")]
pub struct Malformed(pub &'static str);

#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Bool(bool),
    Byte(u8),
    /// Of 16, 32 or 64 bits, by the kind beside it.
    Int(i64),
    Double([u8; 8]),
    Binary(Vec<u8>),
    List {
        kind: u8,
        values: Vec<Value>,
    },
    Struct(Struct),
}

/// Fields in the order in which they came: id, kind, value.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Struct(pub Vec<(i16, u8, Value)>);

impl Struct {
    pub fn get(&self, id: i16) -> Option<&Value> {
        self.0.iter().find(|(present, ..)| *present == id).map(|(.., value)| value)
    }

    pub fn take(&mut self, id: i16) -> Option<Value> {
        let at = self.0.iter().position(|(present, ..)| *present == id)?;
        Some(self.0.remove(at).2)
    }

    pub fn get_mut(&mut self, id: i16) -> Option<&mut Value> {
        self.0.iter_mut().find(|(present, ..)| *present == id).map(|(.., value)| value)
    }

    pub fn int(&self, id: i16) -> Option<i64> {
        match self.get(id) {
            Some(Value::Int(value)) => Some(*value),
            _ => None,
        }
    }

    pub fn write(&self, to: &mut Vec<u8>) {
        let mut last = 0;
        for (id, kind, value) in &self.0 {
            let kind = match value {
                Value::Bool(true) => kind::TRUE,
                Value::Bool(false) => kind::FALSE,
                _ => *kind,
            };
            write_field(to, &mut last, *id, kind);
            if !matches!(value, Value::Bool(_)) {
                value.write(to);
            }
        }
        to.push(0);
    }
}

impl Value {
    fn write(&self, to: &mut Vec<u8>) {
        match self {
            Self::Bool(value) => to.push(if *value { kind::TRUE } else { kind::FALSE }),
            Self::Byte(value) => to.push(*value),
            Self::Int(value) => write_int(to, *value),
            Self::Double(bytes) => to.extend_from_slice(bytes),
            Self::Binary(bytes) => {
                write_varint(to, bytes.len() as u64);
                to.extend_from_slice(bytes);
            }
            Self::List { kind, values } => {
                write_list_head(to, values.len(), *kind);
                values.iter().for_each(|value| value.write(to));
            }
            Self::Struct(fields) => fields.write(to),
        }
    }
}

/// The head of a field that is written by hand; `last` is the id of the field before it.
fn write_field(to: &mut Vec<u8>, last: &mut i16, id: i16, kind: u8) {
    let step = i32::from(id) - i32::from(*last);
    if (1..=15).contains(&step) {
        to.push((step as u8) << 4 | kind);
    } else {
        to.push(kind);
        write_int(to, id.into());
    }
    *last = id;
}

pub fn write_list_head(to: &mut Vec<u8>, length: usize, kind: u8) {
    if length < 15 {
        to.push((length as u8) << 4 | kind);
    } else {
        to.push(0xf0 | kind);
        write_varint(to, length as u64);
    }
}

fn write_int(to: &mut Vec<u8>, value: i64) {
    write_varint(to, (value << 1 ^ value >> 63) as u64);
}

fn write_varint(to: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        to.push(value as u8 | 0x80);
        value >>= 7;
    }
    to.push(value as u8);
}

/// Reads a struct that fills `bytes`.
pub fn read(bytes: &[u8]) -> Result<Struct, Malformed> {
    let mut reader = Reader { rest: bytes };
    let whole = reader.fields(0, i16::MAX)?;
    if reader.rest.is_empty() {
        Ok(whole)
    } else {
        Err(Malformed("something follows its end"))
    }
}

/// Reads the fields of a struct up to the one with this id, and nothing behind it.
pub fn read_through(bytes: &[u8], last: i16) -> Result<Struct, Malformed> {
    Reader { rest: bytes }.fields(0, last)
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn bytes(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (bytes, rest) = self.rest.split_at_checked(length).ok_or(Malformed("it ends early"))?;
        self.rest = rest;
        Ok(bytes)
    }

    fn byte(&mut self) -> Result<u8, Malformed> {
        Ok(self.bytes(1)?[0])
    }

    fn varint(&mut self) -> Result<u64, Malformed> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Malformed("a number is too long"))
    }

    fn int(&mut self) -> Result<i64, Malformed> {
        let value = self.varint()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    fn length(&mut self) -> Result<usize, Malformed> {
        // Each element takes a byte at least, so a length beyond the rest is a lie that shall not allocate.
        usize::try_from(self.varint()?)
            .ok()
            .filter(|length| *length <= self.rest.len())
            .ok_or(Malformed("it ends early"))
    }

    /// Through the field with the id `through`, or to the end.
    fn fields(&mut self, depth: usize, through: i16) -> Result<Struct, Malformed> {
        if depth > MAX_DEPTH {
            return Err(Malformed("it is nested too deep"));
        }
        let (mut fields, mut last) = (Vec::new(), 0_i16);
        loop {
            let head = self.byte()?;
            let kind = head & 0x0f;
            if kind == 0 {
                return Ok(Struct(fields));
            }
            let id = match head >> 4 {
                0 => i16::try_from(self.int()?).map_err(|_| Malformed("a field's number is too large"))?,
                step => last.checked_add(i16::from(step)).ok_or(Malformed("a field's number is too large"))?,
            };
            last = id;
            let value = match kind {
                kind::TRUE => Value::Bool(true),
                kind::FALSE => Value::Bool(false),
                _ => self.value(kind, depth + 1)?,
            };
            fields.push((id, kind, value));
            if id == through {
                return Ok(Struct(fields));
            }
        }
    }

    fn value(&mut self, kind: u8, depth: usize) -> Result<Value, Malformed> {
        Ok(match kind {
            kind::TRUE | kind::FALSE => Value::Bool(self.byte()? == kind::TRUE),
            kind::BYTE => Value::Byte(self.byte()?),
            kind::I16 | kind::I32 | kind::I64 => Value::Int(self.int()?),
            kind::DOUBLE => Value::Double(self.bytes(8)?.try_into().map_err(|_| Malformed("it ends early"))?),
            kind::BINARY => {
                let length = self.length()?;
                Value::Binary(self.bytes(length)?.to_vec())
            }
            kind::LIST | kind::SET => {
                let head = self.byte()?;
                let length = match head >> 4 {
                    15 => self.length()?,
                    short => usize::from(short),
                };
                let kind = head & 0x0f;
                if depth > MAX_DEPTH {
                    return Err(Malformed("it is nested too deep"));
                }
                let values = (0..length).map(|_| self.value(kind, depth + 1)).collect::<Result<_, _>>()?;
                Value::List { kind, values }
            }
            kind::STRUCT => Value::Struct(self.fields(depth + 1, i16::MAX)?),
            _ => return Err(Malformed("a kind of value that footers do not have")),
        })
    }
}

pub use kind::{I64, LIST, STRUCT};

/// Writes a struct field by field, for one whose parts are written already.
pub struct StructWriter<'a> {
    to: &'a mut Vec<u8>,
    last: i16,
}

impl<'a> StructWriter<'a> {
    pub fn new(to: &'a mut Vec<u8>) -> Self {
        Self { to, last: 0 }
    }

    pub fn field(&mut self, id: i16, kind: u8, value: &Value) {
        write_field(self.to, &mut self.last, id, kind);
        value.write(self.to);
    }

    /// A list of structs that are `encoded` one after the other.
    pub fn structs(&mut self, id: i16, count: usize, encoded: &[u8]) {
        write_field(self.to, &mut self.last, id, LIST);
        write_list_head(self.to, count, STRUCT);
        self.to.extend_from_slice(encoded);
    }

    pub fn end(self) {
        self.to.push(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_the_same() {
        let inner = Struct(vec![(1, kind::FALSE, Value::Bool(false)), (40, I64, Value::Int(i64::MIN))]);
        let whole = Struct(vec![
            (1, kind::I32, Value::Int(-1)),
            (2, kind::BINARY, Value::Binary(b"PAR1".to_vec())),
            (3, kind::LIST, Value::List { kind: STRUCT, values: vec![Value::Struct(inner); 20] }),
            (4, kind::TRUE, Value::Bool(true)),
            (300, kind::DOUBLE, Value::Double([1; 8])),
            (301, kind::BYTE, Value::Byte(7)),
        ]);
        let mut bytes = Vec::new();
        whole.write(&mut bytes);
        assert_eq!(read(&bytes), Ok(whole));
        for end in 0..bytes.len() {
            assert!(read(&bytes[..end]).is_err(), "{end}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes: Vec<u8>) {
            let _ = read(&bytes);
        }
    }
}
