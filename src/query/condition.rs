//! What one test asks of one value: the leaves of a filter, whose meaning the naive evaluation and the fleet index
//! share.
use std::cmp::Ordering;

use fleetd_proto::v1::device_status::State;

use super::version::compare_versions;
use crate::clock::UnixMillis;

/// One test of a field's value. A device that lacks the field fails every test of it.
#[derive(Clone, Debug, PartialEq)]
pub enum Condition {
    /// `field:*`: there is a value.
    Exists,
    /// One of these texts; of a note also for its text.
    OneOf(Vec<Pattern>),
    /// In the order of versions.
    Version(Comparison<Box<str>>),
    /// A note that is no number fails.
    Number(Comparison<f64>),
    NumberOneOf(Vec<f64>),
    Time(Comparison<TimePoint>),
    /// In one of these spans, the end exclusive.
    TimeOneOf(Vec<(UnixMillis, UnixMillis)>),
    StateOneOf(StateSet),
}

/// `operator value`, such as `> 80`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Comparison<T> {
    pub operator: Operator,
    pub value: T,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    Greater,
    GreaterOrEqual,
    Less,
    LessOrEqual,
}

impl Operator {
    /// Whether a value that stands so to the operand passes.
    pub fn holds(self, ordering: Ordering) -> bool {
        match self {
            Self::Greater => ordering.is_gt(),
            Self::GreaterOrEqual => ordering.is_ge(),
            Self::Less => ordering.is_lt(),
            Self::LessOrEqual => ordering.is_le(),
        }
    }

    pub fn symbol(self) -> &'static str {
        match self {
            Self::Greater => ">",
            Self::GreaterOrEqual => ">=",
            Self::Less => "<",
            Self::LessOrEqual => "<=",
        }
    }
}

/// A text, or a part of one. Upper and lower case differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    pub text: Box<str>,
    pub shape: Shape,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    Exact,
    Prefix,
    Suffix,
    Contains,
}

impl Pattern {
    pub fn matches(&self, value: &str) -> bool {
        match self.shape {
            Shape::Exact => value == &*self.text,
            Shape::Prefix => value.starts_with(&*self.text),
            Shape::Suffix => value.ends_with(&*self.text),
            Shape::Contains => value.contains(&*self.text),
        }
    }
}

/// A moment, or one that moves with the time of the query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimePoint {
    At(UnixMillis),
    /// Milliseconds from now: `-1h` is -3,600,000.
    FromNow(i64),
}

impl TimePoint {
    pub fn at(self, now: UnixMillis) -> UnixMillis {
        match self {
            Self::At(at) => at,
            Self::FromNow(offset) => UnixMillis::from_millis_clamped(now.as_millis().saturating_add(offset)),
        }
    }
}

/// A set of presence states.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StateSet(u8);

/// All states with the names that queries use.
pub(super) const STATES: [(&str, State); 5] = [
    ("unknown", State::Unknown),
    ("online", State::Online),
    ("late", State::Late),
    ("offline", State::Offline),
    ("maintenance", State::Maintenance),
];

impl StateSet {
    pub fn with(self, state: State) -> Self {
        Self(self.0 | 1 << state as u8)
    }

    pub fn contains(self, state: State) -> bool {
        self.0 & 1 << state as u8 != 0
    }

    pub(super) fn names(self) -> impl Iterator<Item = &'static str> {
        STATES.into_iter().filter(move |(_, state)| self.contains(*state)).map(|(name, _)| name)
    }
}

impl Condition {
    /// For the value of a text, a version or a note.
    pub fn holds_for_text(&self, value: &str) -> bool {
        match self {
            Self::Exists => true,
            Self::OneOf(patterns) => patterns.iter().any(|pattern| pattern.matches(value)),
            Self::Version(Comparison { operator, value: than }) => operator.holds(compare_versions(value, than)),
            Self::Number(_) | Self::NumberOneOf(_) => {
                // A note: only what reads as a finite number has a place in the order of numbers.
                let number = value.trim().parse::<f64>().ok().filter(|number| number.is_finite());
                number.is_some_and(|number| self.holds_for_number(number))
            }
            Self::Time(_) | Self::TimeOneOf(_) | Self::StateOneOf(_) => false,
        }
    }

    pub fn holds_for_number(&self, value: f64) -> bool {
        match self {
            Self::Exists => true,
            Self::Number(Comparison { operator, value: than }) => {
                value.partial_cmp(than).is_some_and(|ordering| operator.holds(ordering))
            }
            Self::NumberOneOf(values) => values.contains(&value),
            _ => false,
        }
    }

    /// `now` is the time of the query.
    pub fn holds_for_time(&self, value: UnixMillis, now: UnixMillis) -> bool {
        match self {
            Self::Exists => true,
            Self::Time(Comparison { operator, value: than }) => operator.holds(value.cmp(&than.at(now))),
            Self::TimeOneOf(spans) => spans.iter().any(|(from, until)| (*from..*until).contains(&value)),
            _ => false,
        }
    }

    pub fn holds_for_state(&self, value: State) -> bool {
        match self {
            Self::Exists => true,
            Self::StateOneOf(states) => states.contains(value),
            _ => false,
        }
    }
}
