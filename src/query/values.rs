//! From the text after `field:` to a [`Condition`]: what each kind of field can be asked, and how its values are
//! written.
use fleetd_proto::Timestamp;

use super::condition::{Comparison, Condition, Operator, Pattern, Shape, StateSet, TimePoint, STATES};
use super::error::{shown, suggestion, QueryError};
use super::field::{Field, Kind};
use super::version::is_version;
use crate::clock::UnixMillis;

const SECOND: i64 = 1_000;
const MINUTE: i64 = 60 * SECOND;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;
const WEEK: i64 = 7 * DAY;

/// One value as it was written.
pub(super) struct Value {
    /// Without quotes and stars.
    pub text: String,
    /// Whether a `*` stood before it, and after it.
    pub star: (bool, bool),
    /// Where it begins, in characters from 1.
    pub column: usize,
}

impl Value {
    /// `*` alone.
    fn is_any(&self) -> bool {
        self.text.is_empty() && self.star == (true, false)
    }

    fn error(&self, message: String) -> QueryError {
        QueryError { column: self.column, message }
    }

    fn pattern(self) -> Pattern {
        let shape = match self.star {
            (false, false) => Shape::Exact,
            (false, true) => Shape::Prefix,
            (true, false) => Shape::Suffix,
            (true, true) => Shape::Contains,
        };
        Pattern { text: self.text.into(), shape }
    }
}

/// `field:value,...`
pub(super) fn one_of(field: &Field, values: Vec<Value>) -> Result<Condition, QueryError> {
    if values.iter().any(Value::is_any) {
        return Ok(Condition::Exists);
    }
    match field.kind() {
        Kind::Text | Kind::Version | Kind::Note => {
            Ok(Condition::OneOf(values.into_iter().map(Value::pattern).collect()))
        }
        Kind::Number => {
            let values: Result<_, _> = values.iter().map(|value| number(field, value)).collect();
            values.map(Condition::NumberOneOf)
        }
        Kind::Time => {
            let spans: Result<_, _> = values.iter().map(|value| span(field, value)).collect();
            spans.map(Condition::TimeOneOf)
        }
        Kind::State => {
            let mut set = StateSet::default();
            for value in values {
                set = states(value)?.fold(set, |set, (_, state)| set.with(*state));
            }
            Ok(Condition::StateOneOf(set))
        }
    }
}

/// `field:>value`
pub(super) fn compared(field: &Field, operator: Operator, value: Value) -> Result<Condition, QueryError> {
    if value.star != (false, false) {
        return Err(value.error(format!("{} compares with a value as it is, without a *", operator.symbol())));
    }
    match field.kind() {
        Kind::Number => Ok(Condition::Number(Comparison { operator, value: number(field, &value)? })),
        Kind::Note => match finite(&value.text) {
            Some(number) => Ok(Condition::Number(Comparison { operator, value: number })),
            None => Err(value.error(format!("{field} compares by number only, and {} is none", shown(&value.text)))),
        },
        Kind::Time => Ok(Condition::Time(Comparison { operator, value: time_point(field, &value)? })),
        Kind::Version if is_version(&value.text) => {
            Ok(Condition::Version(Comparison { operator, value: value.text.into() }))
        }
        Kind::Version => {
            Err(value
                .error(format!("{field} compares with a version such as 1.2.0, and {} is none", shown(&value.text))))
        }
        Kind::Text | Kind::State => {
            let symbol = operator.symbol();
            Err(value.error(format!(
                "{field} has no order, so {symbol} says nothing; write {field}:value or {field}:prefix*"
            )))
        }
    }
}

fn finite(text: &str) -> Option<f64> {
    text.parse::<f64>().ok().filter(|number| number.is_finite())
}

fn number(field: &Field, value: &Value) -> Result<f64, QueryError> {
    match (finite(&value.text), value.star) {
        (Some(number), (false, false)) => Ok(number),
        _ => Err(value.error(format!("{field} is a number, such as 80 or 0.5, and {} is none", shown(&value.text)))),
    }
}

fn states(
    value: Value,
) -> Result<impl Iterator<Item = &'static (&'static str, fleetd_proto::v1::device_status::State)>, QueryError> {
    let column = value.column;
    // The reference writes states in upper case in messages and in lower case in queries.
    let pattern = Value { text: value.text.to_ascii_lowercase(), ..value }.pattern();
    if !STATES.iter().any(|(name, _)| pattern.matches(name)) {
        let near = suggestion(&pattern.text, STATES.iter().map(|(name, _)| *name));
        let names = "unknown, online, late, offline and maintenance";
        return Err(QueryError {
            column,
            message: format!("there is no status {}; there are {names}{near}", shown(&pattern.text)),
        });
    }
    Ok(STATES.iter().filter(move |(name, _)| pattern.matches(name)))
}

/// How times are written, for errors.
const TIME_FORMS: &str = "a day (2024-01-31), a time (2024-01-31T12:00:00Z) or a time from now (-15m, -1h, -7d)";

/// A day is its first moment (UTC): after it is `>` that moment, as in SQL.
fn time_point(field: &Field, value: &Value) -> Result<TimePoint, QueryError> {
    let parsed = match value.text.as_bytes().first() {
        Some(b'-' | b'+') => from_now(&value.text).map(TimePoint::FromNow),
        _ => moment(&value.text).map(|(at, _)| TimePoint::At(at)),
    };
    parsed.ok_or_else(|| value.error(format!("{field} is a time: {TIME_FORMS}; {} is none", shown(&value.text))))
}

/// The span that a value stands for: a day, or a second.
fn span(field: &Field, value: &Value) -> Result<(UnixMillis, UnixMillis), QueryError> {
    let (from, length) = moment(&value.text).filter(|_| value.star == (false, false)).ok_or_else(|| {
        let text = shown(&value.text);
        value.error(format!("{field} is a time: a day or a time, or one with > or <, and {text} is none of them"))
    })?;
    Ok((from, UnixMillis::from_millis_clamped(from.as_millis().saturating_add(length))))
}

/// A day or a time, and how long it is in milliseconds as it is written.
fn moment(text: &str) -> Option<(UnixMillis, i64)> {
    let (at, length) = match text.len() {
        // 2024-01-31
        10 => (format!("{text}T00:00:00Z").parse::<Timestamp>().ok()?, DAY),
        _ => (text.parse::<Timestamp>().ok()?, SECOND),
    };
    Some((UnixMillis::from_parts_clamped(at.seconds, at.nanos), length))
}

/// `-1h30m`: a sign, then numbers with units, in milliseconds.
fn from_now(text: &str) -> Option<i64> {
    let sign = if text.starts_with('-') { -1 } else { 1 };
    let mut rest = &text[1..];
    let mut total: i64 = 0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let count: i64 = rest[..digits].parse().ok()?;
        let letters = rest[digits..].bytes().take_while(u8::is_ascii_alphabetic).count();
        let unit = match &rest[digits..digits + letters] {
            "ms" => 1,
            "s" => SECOND,
            "m" => MINUTE,
            "h" => HOUR,
            "d" => DAY,
            "w" => WEEK,
            _ => return None,
        };
        total = total.checked_add(count.checked_mul(unit)?)?;
        rest = &rest[digits + letters..];
    }
    Some(sign * total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_from_now_add_up() {
        for (text, millis) in
            [("-1h", -HOUR), ("+90s", 90 * SECOND), ("-1h30m", -HOUR - 30 * MINUTE), ("-2w1d", -15 * DAY), ("-5ms", -5)]
        {
            assert_eq!(from_now(text), Some(millis), "{text}");
        }
        for text in ["-", "-h", "-1", "-1y", "-1h-", "-99999999999999999999d", "-9223372036854775807w", "-1é"] {
            assert_eq!(from_now(text), None, "{text}");
        }
    }

    #[test]
    fn a_day_lasts_a_day_and_a_time_a_second() {
        let (day, length) = moment("2024-01-01").expect("a day");
        assert_eq!((day.as_millis(), length), (1_704_067_200_000, DAY));
        let (time, length) = moment("2024-01-01T12:00:00+02:00").expect("a time");
        assert_eq!((time.as_millis(), length), (1_704_067_200_000 + 10 * HOUR, SECOND));
        for text in ["", "2024", "2024-13-01", "2024-02-30", "20240101xx", "noon", "2024-01-01 12:00"] {
            assert_eq!(moment(text), None, "{text}");
        }
    }
}
