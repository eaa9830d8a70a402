//! What the generated readers call for values that JSON writes in more than one way: `null`, numbers, bytes.

use std::fmt;
use std::marker::PhantomData;

use base64::alphabet;
use base64::engine::{DecodePaddingMode, Engine as _, GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, Unexpected, Visitor};

/// Reads the value of a field where `null` stands for the default, as protobuf JSON has it for every field.
pub(crate) trait NextValueOrDefault<'de>: MapAccess<'de> {
    fn next_value_or_default<T: Deserialize<'de> + Default>(&mut self) -> Result<T, Self::Error> {
        Ok(self.next_value::<Option<T>>()?.unwrap_or_default())
    }
}

impl<'de, M: MapAccess<'de>> NextValueOrDefault<'de> for M {}

/// A number, written as a JSON number or as a string.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct NumberDeserialize<T>(pub(crate) T);

/// A numeric type of protobuf; each constructor answers `None` for what the type cannot hold exactly.
pub(crate) trait Number: Sized {
    const EXPECTED: &'static str;
    fn from_u64(value: u64) -> Option<Self>;
    fn from_i64(value: i64) -> Option<Self>;
    fn from_f64(value: f64) -> Option<Self>;
    fn from_text(text: &str) -> Option<Self>;
}

macro_rules! integer {
    ($type:ty, $expected:literal) => {
        impl Number for $type {
            const EXPECTED: &'static str = $expected;

            fn from_u64(value: u64) -> Option<Self> {
                value.try_into().ok()
            }

            fn from_i64(value: i64) -> Option<Self> {
                value.try_into().ok()
            }

            /// Takes `1.0` and `1e3`, as protobuf JSON has it: a whole number however it is written.
            fn from_f64(value: f64) -> Option<Self> {
                // Every whole f64 below 2^63 is an i64 exactly; what lies above can only be a u64.
                const TWO_TO_63: f64 = 9_223_372_036_854_775_808.0;
                if value.fract() != 0.0 {
                    None
                } else if (-TWO_TO_63..TWO_TO_63).contains(&value) {
                    Self::from_i64(value as i64)
                } else if (TWO_TO_63..2.0 * TWO_TO_63).contains(&value) {
                    Self::from_u64(value as u64)
                } else {
                    None
                }
            }

            fn from_text(text: &str) -> Option<Self> {
                if !is_json_number(text) {
                    return None;
                }
                text.parse().ok().or_else(|| Self::from_f64(text.parse().ok()?))
            }
        }
    };
}

integer!(i32, "a whole number from -2147483648 to 2147483647");
integer!(u32, "a whole number from 0 to 4294967295");
integer!(i64, "a whole number from -9223372036854775808 to 9223372036854775807");
integer!(u64, "a whole number from 0 to 18446744073709551615");

impl Number for f64 {
    const EXPECTED: &'static str = "a number";

    fn from_u64(value: u64) -> Option<Self> {
        Some(value as f64)
    }

    fn from_i64(value: i64) -> Option<Self> {
        Some(value as f64)
    }

    fn from_f64(value: f64) -> Option<Self> {
        Some(value)
    }

    fn from_text(text: &str) -> Option<Self> {
        match text {
            "NaN" => Some(Self::NAN),
            "Infinity" => Some(Self::INFINITY),
            "-Infinity" => Some(Self::NEG_INFINITY),
            // Rust would take `inf`, `+1` and `1e999` as well; JSON does not.
            _ if is_json_number(text) => text.parse().ok().filter(|value: &Self| value.is_finite()),
            _ => None,
        }
    }
}

/// Whether `text` begins and goes on as a number of JSON does; the parser that follows checks the rest.
fn is_json_number(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    digits.starts_with(|first: char| first.is_ascii_digit())
        && digits.ends_with(|last: char| last.is_ascii_digit())
        && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'.' | b'e' | b'E' | b'+' | b'-'))
}

struct NumberVisitor<T>(PhantomData<T>);

impl<T: Number> Visitor<'_> for NumberVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::EXPECTED)
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<T, E> {
        T::from_u64(value).ok_or_else(|| E::invalid_value(Unexpected::Unsigned(value), &self))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<T, E> {
        T::from_i64(value).ok_or_else(|| E::invalid_value(Unexpected::Signed(value), &self))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<T, E> {
        T::from_f64(value).ok_or_else(|| E::invalid_value(Unexpected::Float(value), &self))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        T::from_text(text).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
    }
}

impl<'de, T: Number> Deserialize<'de> for NumberDeserialize<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NumberVisitor(PhantomData)).map(Self)
    }
}

/// Bytes, written in base64.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct BytesDeserialize<T>(pub(crate) T);

const ANY_PADDING: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
const STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, ANY_PADDING);
const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, ANY_PADDING);

struct Base64Visitor;

impl Visitor<'_> for Base64Visitor {
    type Value = Bytes;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("base64")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Bytes, E> {
        let alphabet = if text.contains(['-', '_']) { &URL_SAFE } else { &STANDARD };
        alphabet.decode(text).map(Bytes::from).map_err(|error| E::custom(format_args!("invalid base64: {error}")))
    }
}

impl<'de, T: From<Bytes>> Deserialize<'de> for BytesDeserialize<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Base64Visitor).map(|bytes| Self(bytes.into()))
    }
}

/// Bytes as the generated writers put them: base64 with `+`, `/` and padding.
pub(crate) fn encode_base64(bytes: impl AsRef<[u8]>) -> String {
    STANDARD.encode(bytes)
}
