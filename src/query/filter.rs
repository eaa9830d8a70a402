//! Which devices: an expression over tests of fields, and its evaluation on one device.
use std::fmt;

use fleetd_proto::v1::device_status::State;
use fleetd_proto::Timestamp;

use super::condition::{Comparison, Condition, Pattern, Shape, TimePoint};
use super::error::QueryError;
use super::field::{Field, NumberField, TextField};
use super::parser::{self, is_value_character, write_word};
use crate::clock::UnixMillis;

/// A parsed filter. An empty one matches every device.
#[derive(Clone, Debug, PartialEq)]
pub struct Filter {
    root: Option<Expr>,
    /// What `-1h` counts from.
    now: UnixMillis,
}

/// What must hold of a device.
#[derive(Clone, Debug, PartialEq)]
pub enum Expr {
    Not(Box<Expr>),
    /// Two or more.
    And(Vec<Expr>),
    /// Two or more.
    Or(Vec<Expr>),
    Test(Test),
}

/// One field, and what it must be.
#[derive(Clone, Debug, PartialEq)]
pub struct Test {
    pub field: Field,
    pub condition: Condition,
}

/// A device as queries see it. Each function answers for the fields of its kind only.
pub trait Subject {
    /// Whether `test` holds for a text of the field; false when the device has none.
    fn any_text(&self, field: TextField, test: &mut dyn FnMut(&str) -> bool) -> bool;
    /// As [`Self::any_text`] for `metadata.KEY`.
    fn metadata(&self, key: &str) -> Option<&str>;
    fn label(&self, key: &str) -> Option<&str>;
    fn number(&self, field: NumberField) -> Option<f64>;
    /// `metrics.NAME`.
    fn metric(&self, name: &str) -> Option<f64>;
    fn last_seen(&self) -> Option<UnixMillis>;
    fn registered_at(&self) -> UnixMillis;
    fn state(&self) -> State;
}

impl Filter {
    /// Times such as `-1h` count from `now`.
    ///
    /// # Errors
    /// With the column, for what is no filter, names an unknown field, or asks a field what it cannot be asked.
    pub fn parse(text: &str, now: UnixMillis) -> Result<Self, QueryError> {
        Ok(Self { root: parser::filter(text)?, now })
    }

    pub fn matches_all() -> Self {
        Self { root: None, now: UnixMillis::EPOCH }
    }

    /// What also passes all of `tests`.
    #[must_use]
    pub fn and(self, tests: impl IntoIterator<Item = Test>) -> Self {
        let mut terms: Vec<Expr> = self.root.into_iter().chain(tests.into_iter().map(Expr::Test)).collect();
        let root = if terms.len() > 1 { Some(Expr::And(terms)) } else { terms.pop() };
        Self { root, now: self.now }
    }

    /// `None` matches every device.
    pub fn root(&self) -> Option<&Expr> {
        self.root.as_ref()
    }

    pub fn now(&self) -> UnixMillis {
        self.now
    }

    pub fn matches(&self, subject: &impl Subject) -> bool {
        self.root.as_ref().is_none_or(|root| holds(root, subject, self.now))
    }
}

impl Test {
    /// That the field's text is this one.
    pub fn is(field: Field, text: &str) -> Self {
        let pattern = Pattern { text: text.into(), shape: Shape::Exact };
        Self { field, condition: Condition::OneOf(vec![pattern]) }
    }
}

fn holds(expr: &Expr, subject: &impl Subject, now: UnixMillis) -> bool {
    match expr {
        Expr::Not(inner) => !holds(inner, subject, now),
        Expr::And(terms) => terms.iter().all(|term| holds(term, subject, now)),
        Expr::Or(terms) => terms.iter().any(|term| holds(term, subject, now)),
        Expr::Test(test) => test.holds(subject, now),
    }
}

impl Test {
    pub fn holds(&self, subject: &impl Subject, now: UnixMillis) -> bool {
        let condition = &self.condition;
        match &self.field {
            Field::Status => condition.holds_for_state(subject.state()),
            Field::LastSeen => subject.last_seen().is_some_and(|at| condition.holds_for_time(at, now)),
            Field::RegisteredAt => condition.holds_for_time(subject.registered_at(), now),
            Field::Text(field) => subject.any_text(*field, &mut |text| condition.holds_for_text(text)),
            Field::Number(field) => subject.number(*field).is_some_and(|value| condition.holds_for_number(value)),
            Field::Metric(name) => subject.metric(name).is_some_and(|value| condition.holds_for_number(value)),
            Field::Metadata(key) => subject.metadata(key).is_some_and(|text| condition.holds_for_text(text)),
            Field::Label(key) => subject.label(key).is_some_and(|text| condition.holds_for_text(text)),
        }
    }
}

impl fmt::Display for Filter {
    /// The one text of all that mean the same to the parser; parses to an equal filter.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.root.as_ref().map_or(Ok(()), |root| root.fmt(f))
    }
}

impl fmt::Display for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (terms, operator) = match self {
            Self::Test(test) => return test.fmt(f),
            Self::Not(inner) => {
                f.write_str("NOT ")?;
                return inner.fmt_inside(f);
            }
            Self::And(terms) => (terms, " AND "),
            Self::Or(terms) => (terms, " OR "),
        };
        for (at, term) in terms.iter().enumerate() {
            if at > 0 {
                f.write_str(operator)?;
            }
            term.fmt_inside(f)?;
        }
        Ok(())
    }
}

impl Expr {
    fn fmt_inside(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::And(_) | Self::Or(_) => write!(f, "({self})"),
            Self::Not(_) | Self::Test(_) => write!(f, "{self}"),
        }
    }
}

impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.field, self.condition)
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exists => f.write_str("*"),
            Self::OneOf(patterns) => list(f, patterns, |f, pattern| pattern.fmt(f)),
            Self::NumberOneOf(values) => list(f, values, |f, value| write!(f, "{value}")),
            // Spans come from values of a day or a second, and are written as the shortest that gives them back.
            Self::TimeOneOf(spans) => list(f, spans, |f, (from, until)| match until.as_millis() - from.as_millis() {
                0..=1_000 => time(f, *from),
                _ => write!(f, "{}", time_text(*from).get(..10).unwrap_or_default()),
            }),
            Self::StateOneOf(states) => list(f, &states.names().collect::<Vec<_>>(), |f, name| f.write_str(name)),
            Self::Version(Comparison { operator, value }) => {
                f.write_str(operator.symbol())?;
                write_word(f, value, is_value_character)
            }
            Self::Number(Comparison { operator, value }) => write!(f, "{}{value}", operator.symbol()),
            Self::Time(Comparison { operator, value }) => {
                f.write_str(operator.symbol())?;
                match value {
                    TimePoint::At(at) => time(f, *at),
                    TimePoint::FromNow(millis) => write!(f, "{millis:+}ms"),
                }
            }
        }
    }
}

fn list<T>(
    f: &mut fmt::Formatter<'_>,
    items: &[T],
    write: impl Fn(&mut fmt::Formatter<'_>, &T) -> fmt::Result,
) -> fmt::Result {
    for (at, item) in items.iter().enumerate() {
        if at > 0 {
            f.write_str(",")?;
        }
        write(f, item)?;
    }
    Ok(())
}

fn time_text(at: UnixMillis) -> String {
    Timestamp::from_unix_millis(at.as_millis()).to_string()
}

fn time(f: &mut fmt::Formatter<'_>, at: UnixMillis) -> fmt::Result {
    f.write_str(&time_text(at))
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if matches!(self.shape, Shape::Suffix | Shape::Contains) {
            f.write_str("*")?;
        }
        write_word(f, &self.text, is_value_character)?;
        if matches!(self.shape, Shape::Prefix | Shape::Contains) {
            f.write_str("*")?;
        }
        Ok(())
    }
}
