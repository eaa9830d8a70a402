//! In which order: keys with directions, and the values of one device that they compare.
use std::cmp::Ordering;
use std::fmt;

use fleetd_proto::v1::device_status::State;

use super::error::QueryError;
use super::field::{Field, Kind};
use super::filter::Subject;
use super::parser;
use super::version::compare_versions;
use crate::clock::UnixMillis;

/// A parsed `order_by`. Devices that are equal in all keys follow each other by id, so every order is total.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OrderBy {
    keys: Vec<SortKey>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct SortKey {
    pub field: Field,
    pub direction: Direction,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Ascending,
    Descending,
}

/// What one device has in one key; its text may be borrowed from where it lies.
#[derive(Clone, Debug, PartialEq)]
pub enum SortValue<T = String> {
    /// The device lacks the field; it comes last in either direction.
    Missing,
    Text(T),
    Version(T),
    Number(f64),
    Time(UnixMillis),
    /// By the number of the state: UNKNOWN, ONLINE, LATE, OFFLINE, MAINTENANCE.
    State(State),
}

impl OrderBy {
    /// An empty text is the order by id.
    ///
    /// # Errors
    /// With the column, for what is no order, names an unknown field, or the same twice.
    pub fn parse(text: &str) -> Result<Self, QueryError> {
        Ok(Self { keys: parser::order(text)? })
    }

    pub fn keys(&self) -> &[SortKey] {
        &self.keys
    }

    /// The values of `subject` in the keys, in their order.
    pub fn values(&self, subject: &impl Subject) -> Vec<SortValue> {
        self.keys.iter().map(|key| SortValue::of(&key.field, subject)).collect()
    }

    /// Orders two devices by their values in the keys, then by their ids.
    pub fn compare(&self, a: (&[SortValue], &str), b: (&[SortValue], &str)) -> Ordering {
        let by_keys = self.keys.iter().zip(a.0.iter().zip(b.0)).map(|(key, (a, b))| key.compare(a, b));
        by_keys.fold(Ordering::Equal, Ordering::then).then_with(|| a.1.cmp(b.1))
    }
}

impl SortKey {
    pub fn compare<A: AsRef<str>, B: AsRef<str>>(&self, a: &SortValue<A>, b: &SortValue<B>) -> Ordering {
        match (a, b) {
            (SortValue::Missing, SortValue::Missing) => Ordering::Equal,
            (SortValue::Missing, _) => Ordering::Greater,
            (_, SortValue::Missing) => Ordering::Less,
            _ => match self.direction {
                Direction::Ascending => a.compare(b),
                Direction::Descending => b.compare(a),
            },
        }
    }
}

impl SortValue {
    pub fn of(field: &Field, subject: &impl Subject) -> Self {
        let text = |text: Option<&str>| text.map_or(Self::Missing, |text| Self::Text(text.to_owned()));
        let number = |number: Option<f64>| number.map_or(Self::Missing, Self::Number);
        match field {
            Field::Status => Self::State(subject.state()),
            Field::LastSeen => subject.last_seen().map_or(Self::Missing, Self::Time),
            Field::RegisteredAt => Self::Time(subject.registered_at()),
            Field::Text(name) => {
                // Of several texts (addresses) the first.
                let mut first = None;
                subject.any_text(*name, &mut |text| {
                    first = Some(text.to_owned());
                    true
                });
                match (first, field.kind()) {
                    (None, _) => Self::Missing,
                    (Some(text), Kind::Version) => Self::Version(text),
                    (Some(text), _) => Self::Text(text),
                }
            }
            Field::Number(name) => number(subject.number(*name)),
            Field::Metric(name) => number(subject.metric(name)),
            Field::Metadata(key) => text(subject.metadata(key)),
            Field::Label(key) => text(subject.label(key)),
        }
    }
}

impl<A: AsRef<str>> SortValue<A> {
    /// Of two values of one field, both there.
    fn compare<B: AsRef<str>>(&self, other: &SortValue<B>) -> Ordering {
        match (self, other) {
            (Self::Text(a), SortValue::Text(b)) => a.as_ref().cmp(b.as_ref()),
            (Self::Version(a), SortValue::Version(b)) => {
                let (a, b) = (a.as_ref(), b.as_ref());
                // Versions that count as equal (1.0 and 1.0.0) still need an order.
                compare_versions(a, b).then_with(|| a.cmp(b))
            }
            (Self::Number(a), SortValue::Number(b)) => a.total_cmp(b),
            (Self::Time(a), SortValue::Time(b)) => a.cmp(b),
            (Self::State(a), SortValue::State(b)) => (*a as i32).cmp(&(*b as i32)),
            // A token is bound to its order, so values of two kinds never meet; any fixed answer keeps sorting sound.
            _ => self.rank().cmp(&other.rank()),
        }
    }

    fn rank(&self) -> u8 {
        match self {
            Self::Text(_) => 0,
            Self::Version(_) => 1,
            Self::Number(_) => 2,
            Self::Time(_) => 3,
            Self::State(_) => 4,
            Self::Missing => 5,
        }
    }
}

impl fmt::Display for OrderBy {
    /// The one text of all that mean the same; parses to an equal order.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, SortKey { field, direction }) in self.keys.iter().enumerate() {
            let separator = if at > 0 { ", " } else { "" };
            let direction = if *direction == Direction::Descending { " DESC" } else { "" };
            write!(f, "{separator}{field}{direction}")?;
        }
        Ok(())
    }
}
