//! The few RowBinary encodings that the rows need (<https://clickhouse.com/docs/interfaces/formats/RowBinary>).
//!
//! All numbers are little-endian. Everything appends to a buffer that the caller reuses, so a field costs no allocation.

/// Unsigned LEB128, the length prefix of strings, arrays and maps.
#[inline]
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value as u8) | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Reads what [`put_varint`] writes; the value and how many bytes it took. Padded forms are valid.
#[inline]
pub fn read_varint(bytes: &[u8]) -> Option<(u64, usize)> {
    let mut value = 0u64;
    for (at, &byte) in bytes.iter().take(10).enumerate() {
        value |= u64::from(byte & 0x7f).checked_shl(7 * at as u32)?;
        if byte < 0x80 {
            return Some((value, at + 1));
        }
    }
    None
}

#[inline]
pub fn put_string(out: &mut Vec<u8>, text: &str) {
    put_varint(out, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

#[inline]
pub fn put_i64(out: &mut Vec<u8>, value: i64) {
    out.extend_from_slice(&value.to_le_bytes());
}

#[inline]
pub fn put_u64(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_le_bytes());
}

#[inline]
pub fn put_u32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_le_bytes());
}

#[inline]
pub fn put_f64(out: &mut Vec<u8>, value: f64) {
    out.extend_from_slice(&value.to_le_bytes());
}

/// `Nullable(Float64)`: a reading that is absent, not a number or infinite is NULL, so that averages skip it.
#[inline]
pub fn put_reading(out: &mut Vec<u8>, reading: Option<f64>) {
    match reading.filter(|value| value.is_finite()) {
        Some(value) => {
            out.push(0);
            put_f64(out, value);
        }
        None => out.push(1),
    }
}

/// A UUID is two UInt64, the high half first.
#[inline]
pub fn put_uuid(out: &mut Vec<u8>, id: uuid::Uuid) {
    let (high, low) = id.as_u64_pair();
    put_u64(out, high);
    put_u64(out, low);
}

/// The longest prefix of `text` that has at most `limit` bytes and ends between characters.
#[inline]
pub fn prefix(text: &str, limit: usize) -> &str {
    if text.len() <= limit {
        return text;
    }
    let mut end = limit;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_varint_reads_back_at_every_width() {
        for shift in 0..64 {
            for value in [1u64 << shift, (1u64 << shift) - 1, (1u64 << shift) | 1] {
                let mut out = Vec::new();
                put_varint(&mut out, value);
                out.push(0xff);
                assert_eq!(read_varint(&out), Some((value, out.len() - 1)));
            }
        }
    }

    #[test]
    fn a_varint_without_an_end_is_refused() {
        assert_eq!(read_varint(&[]), None);
        assert_eq!(read_varint(&[0x80; 9]), None);
        assert_eq!(read_varint(&[0xff; 32]), None);
    }

    #[test]
    fn text_is_cut_between_characters() {
        assert_eq!(prefix("äöü", 3), "ä");
        assert_eq!(prefix("äöü", 4), "äö");
        assert_eq!(prefix("abc", 3), "abc");
        assert_eq!(prefix("🦀", 3), "");
    }

    #[test]
    fn what_is_no_reading_is_null() {
        for value in [None, Some(f64::NAN), Some(f64::INFINITY), Some(f64::NEG_INFINITY)] {
            let mut out = Vec::new();
            put_reading(&mut out, value);
            assert_eq!(out, [1], "{value:?}");
        }
        let mut out = Vec::new();
        put_reading(&mut out, Some(-0.5));
        assert_eq!(out[0], 0);
        assert_eq!(out[1..], (-0.5f64).to_le_bytes());
    }
}
