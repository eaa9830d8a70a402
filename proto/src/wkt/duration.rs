//! `google.protobuf.Duration`: a span of time, in JSON seconds with an `s`, such as `3600s` or `1.500s`.

use std::fmt;
use std::str::FromStr;

use serde::de::{Deserialize, Deserializer, Unexpected, Visitor};
use serde::ser::{Error as _, Serialize, Serializer};

use super::{parse_fraction, write_fraction};

/// 10,000 years, the longest span that protobuf allows.
const MAX_SECONDS: i64 = 315_576_000_000;

/// A span of time, to the nanosecond. What comes off the wire can hold anything: see [`Duration::is_valid`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct Duration {
    /// Whole seconds.
    #[prost(int64, tag = "1")]
    pub seconds: i64,
    /// Nanoseconds beside them, of the same sign: -999,999,999 to 999,999,999.
    #[prost(int32, tag = "2")]
    pub nanos: i32,
}

/// A text, or a value, that is no span of protobuf's, or none that `std` can hold because it is negative.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a duration in seconds such as 3600s or 1.5s")]
pub struct InvalidDuration;

impl Duration {
    /// Whether it is at most 10,000 years either way, and its two parts have the same sign.
    pub fn is_valid(&self) -> bool {
        (-MAX_SECONDS..=MAX_SECONDS).contains(&self.seconds)
            && (-999_999_999..=999_999_999).contains(&self.nanos)
            && (self.seconds == 0 || self.nanos == 0 || (self.seconds < 0) == (self.nanos < 0))
    }
}

/// A span of more than 10,000 years becomes 10,000 years.
impl From<std::time::Duration> for Duration {
    fn from(span: std::time::Duration) -> Self {
        match i64::try_from(span.as_secs()) {
            Ok(seconds) if seconds < MAX_SECONDS => Self { seconds, nanos: span.subsec_nanos() as i32 },
            _ => Self { seconds: MAX_SECONDS, nanos: 0 },
        }
    }
}

impl TryFrom<Duration> for std::time::Duration {
    type Error = InvalidDuration;

    fn try_from(span: Duration) -> Result<Self, InvalidDuration> {
        if !span.is_valid() || span.seconds < 0 || span.nanos < 0 {
            return Err(InvalidDuration);
        }
        Ok(Self::new(span.seconds.unsigned_abs(), span.nanos.unsigned_abs()))
    }
}

impl FromStr for Duration {
    type Err = InvalidDuration;

    fn from_str(text: &str) -> Result<Self, InvalidDuration> {
        let parse = || {
            let text = text.strip_suffix('s')?;
            let (sign, text) = text.strip_prefix('-').map_or((1, text), |rest| (-1, rest));
            let (whole, nanos) = match text.split_once('.') {
                Some((whole, fraction)) => (whole, parse_fraction(fraction)?),
                None => (text, 0),
            };
            // `parse` alone would take a sign.
            if !whole.bytes().all(|digit| digit.is_ascii_digit()) {
                return None;
            }
            let seconds = whole.parse::<i64>().ok()?;
            Some(Self { seconds: sign * seconds, nanos: sign as i32 * nanos }).filter(Self::is_valid)
        };
        parse().ok_or(InvalidDuration)
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.is_valid() {
            return write!(f, "{} s and {} ns", self.seconds, self.nanos);
        }
        if self.seconds < 0 || self.nanos < 0 {
            f.write_str("-")?;
        }
        write!(f, "{}", self.seconds.unsigned_abs())?;
        write_fraction(f, self.nanos.unsigned_abs())?;
        f.write_str("s")
    }
}

impl Serialize for Duration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if !self.is_valid() {
            return Err(S::Error::custom(format_args!("{self} is more than 10,000 years, or has two signs")));
        }
        serializer.collect_str(self)
    }
}

struct DurationVisitor;

impl Visitor<'_> for DurationVisitor {
    type Value = Duration;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a duration in seconds such as \"3600s\"")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Duration, E> {
        text.parse().map_err(|InvalidDuration| E::invalid_value(Unexpected::Str(text), &self))
    }
}

impl<'de> Deserialize<'de> for Duration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(DurationVisitor)
    }
}
