//! The well-known types that the contract uses, with their protobuf JSON.
//!
//! They are our own because the JSON must be right at the door: a time in JSON ends in `Z` and lies in the years 1 to
//! 9999, no text however hostile overflows, and a field mask is read in both forms that the API reference and protobuf
//! write. On the wire they are the messages of `google.protobuf` to the bit.

mod duration;
mod field_mask;
mod timestamp;

pub use duration::Duration;
pub use field_mask::FieldMask;
pub use timestamp::Timestamp;

/// Reads the digits after a decimal point (1 to 9 of them) as nanoseconds.
fn parse_fraction(digits: &str) -> Option<i32> {
    if digits.is_empty() || digits.len() > 9 || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let scale = 10_i32.pow(9 - digits.len() as u32);
    digits.parse::<i32>().ok().map(|fraction| fraction * scale)
}

/// Writes nanoseconds (below a second) as protobuf JSON has it: nothing, or a point and 3, 6 or 9 digits.
fn write_fraction(f: &mut std::fmt::Formatter<'_>, nanos: u32) -> std::fmt::Result {
    if nanos == 0 {
        Ok(())
    } else if nanos.is_multiple_of(1_000_000) {
        write!(f, ".{:03}", nanos / 1_000_000)
    } else if nanos.is_multiple_of(1_000) {
        write!(f, ".{:06}", nanos / 1_000)
    } else {
        write!(f, ".{nanos:09}")
    }
}
