//! `google.protobuf.Timestamp`: a moment, in JSON an RFC 3339 text such as `2024-01-01T12:00:00Z`.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration as StdDuration, SystemTime, UNIX_EPOCH};

use serde::de::{Deserialize, Deserializer, Unexpected, Visitor};
use serde::ser::{Error as _, Serialize, Serializer};

use super::{parse_fraction, write_fraction};

const SECONDS_PER_DAY: i64 = 86_400;
/// 0001-01-01T00:00:00Z, the first moment that protobuf allows.
const MIN_SECONDS: i64 = -62_135_596_800;
/// 9999-12-31T23:59:59Z, the last second that protobuf allows.
const MAX_SECONDS: i64 = 253_402_300_799;

/// A moment in UTC, to the nanosecond. What comes off the wire can hold anything: see [`Timestamp::is_valid`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Message)]
pub struct Timestamp {
    /// Seconds since 1970-01-01T00:00:00Z; negative before.
    #[prost(int64, tag = "1")]
    pub seconds: i64,
    /// Nanoseconds after `seconds`: 0 to 999,999,999.
    #[prost(int32, tag = "2")]
    pub nanos: i32,
}

/// A text that is no moment of RFC 3339 in the years 1 to 9999.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an RFC 3339 time such as 2024-01-01T12:00:00Z")]
pub struct InvalidTimestamp;

impl Timestamp {
    /// Whether it lies in the years 1 to 9999 and its nanoseconds are below a second.
    pub fn is_valid(&self) -> bool {
        (MIN_SECONDS..=MAX_SECONDS).contains(&self.seconds) && (0..1_000_000_000).contains(&self.nanos)
    }

    /// The present moment by the system's clock.
    pub fn now() -> Self {
        SystemTime::now().into()
    }

    /// The moment this many milliseconds after (before, if negative) 1970-01-01T00:00:00Z.
    pub fn from_unix_millis(millis: i64) -> Self {
        Self { seconds: millis.div_euclid(1_000), nanos: millis.rem_euclid(1_000) as i32 * 1_000_000 }
    }

    /// Milliseconds since 1970-01-01T00:00:00Z, rounded down; `None` where it is not valid.
    pub fn unix_millis(&self) -> Option<i64> {
        self.is_valid().then(|| self.seconds * 1_000 + i64::from(self.nanos / 1_000_000))
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        match time.duration_since(UNIX_EPOCH) {
            Ok(after) => {
                Self { seconds: i64::try_from(after.as_secs()).unwrap_or(i64::MAX), nanos: after.subsec_nanos() as i32 }
            }
            Err(before) => {
                let before = before.duration();
                let seconds = i64::try_from(before.as_secs()).unwrap_or(i64::MAX);
                match before.subsec_nanos() {
                    0 => Self { seconds: -seconds, nanos: 0 },
                    nanos => Self { seconds: -seconds - 1, nanos: 1_000_000_000 - nanos as i32 },
                }
            }
        }
    }
}

/// Fails for a moment that is not valid, or that the system's clock cannot hold.
impl TryFrom<Timestamp> for SystemTime {
    type Error = InvalidTimestamp;

    fn try_from(moment: Timestamp) -> Result<Self, InvalidTimestamp> {
        if !moment.is_valid() {
            return Err(InvalidTimestamp);
        }
        let whole = StdDuration::from_secs(moment.seconds.unsigned_abs());
        let base = if moment.seconds < 0 { UNIX_EPOCH.checked_sub(whole) } else { UNIX_EPOCH.checked_add(whole) };
        base.and_then(|base| base.checked_add(StdDuration::from_nanos(moment.nanos.unsigned_abs().into())))
            .ok_or(InvalidTimestamp)
    }
}

/// Days from 1970-01-01 to a date of the Gregorian calendar (H. Hinnant, "chrono-compatible low-level date
/// algorithms", `days_from_civil`).
fn days_from_date(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

/// The date (year, month, day) so many days after 1970-01-01 (the same source, `civil_from_days`).
fn date_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

/// The number that the digits at `at` write; `None` where one of them is no digit.
fn digits(text: &[u8], at: std::ops::Range<usize>) -> Option<i64> {
    text.get(at)?.iter().try_fold(0, |number, byte| byte.is_ascii_digit().then(|| number * 10 + i64::from(byte - b'0')))
}

/// Reads what comes after the seconds: a fraction, if any, and `Z` or an offset. Answers nanoseconds and the offset
/// in seconds.
fn parse_tail(tail: &str) -> Option<(i32, i64)> {
    let zone_at = tail.find(['Z', '+', '-'])?;
    let (fraction, zone) = tail.split_at(zone_at);
    let nanos = match fraction.strip_prefix('.') {
        Some(digits) => parse_fraction(digits)?,
        None if fraction.is_empty() => 0,
        None => return None,
    };
    if zone == "Z" {
        return Some((nanos, 0));
    }
    let zone = zone.as_bytes();
    let (hours, minutes) = (digits(zone, 1..3)?, digits(zone, 4..6)?);
    if zone.len() != 6 || zone[3] != b':' || hours > 23 || minutes > 59 {
        return None;
    }
    let offset = hours * 3_600 + minutes * 60;
    Some((nanos, if zone[0] == b'-' { -offset } else { offset }))
}

impl FromStr for Timestamp {
    type Err = InvalidTimestamp;

    /// Takes RFC 3339 as protobuf JSON narrows it: `T` and `Z` upper-case, no leap second, any offset.
    fn from_str(text: &str) -> Result<Self, InvalidTimestamp> {
        let parse = || {
            let bytes = text.as_bytes();
            let separators = [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':')];
            if separators.iter().any(|&(at, separator)| bytes.get(at) != Some(&separator)) {
                return None;
            }
            let (year, month, day) = (digits(bytes, 0..4)?, digits(bytes, 5..7)?, digits(bytes, 8..10)?);
            let (hour, minute, second) = (digits(bytes, 11..13)?, digits(bytes, 14..16)?, digits(bytes, 17..19)?);
            let days = days_from_date(year, month, day);
            // A date that does not exist comes back as another one.
            if date_from_days(days) != (year, month, day) || hour > 23 || minute > 59 || second > 59 {
                return None;
            }
            let (nanos, offset) = parse_tail(text.get(19..)?)?;
            let seconds = days * SECONDS_PER_DAY + hour * 3_600 + minute * 60 + second - offset;
            Some(Self { seconds, nanos }).filter(Self::is_valid)
        };
        parse().ok_or(InvalidTimestamp)
    }
}

/// RFC 3339 in UTC; for a moment that is not valid, its two numbers.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.is_valid() {
            return write!(f, "{} s and {} ns since 1970", self.seconds, self.nanos);
        }
        let (year, month, day) = date_from_days(self.seconds.div_euclid(SECONDS_PER_DAY));
        let second = self.seconds.rem_euclid(SECONDS_PER_DAY);
        let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}")?;
        write_fraction(f, self.nanos.unsigned_abs())?;
        f.write_str("Z")
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if !self.is_valid() {
            return Err(S::Error::custom(format_args!("{self} is outside of the years 1 to 9999")));
        }
        serializer.collect_str(self)
    }
}

struct TimestampVisitor;

impl Visitor<'_> for TimestampVisitor {
    type Value = Timestamp;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an RFC 3339 time such as \"2024-01-01T12:00:00Z\"")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Timestamp, E> {
        text.parse().map_err(|InvalidTimestamp| E::invalid_value(Unexpected::Str(text), &self))
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(TimestampVisitor)
    }
}
