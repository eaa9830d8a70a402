//! A question to the telemetry that was checked: which metrics, of whom, over which time, how aggregated.
use super::device_set::Choice;
use super::span::Span;
use crate::clock::UnixMillis;
use crate::ids::DeviceId;
use crate::query::{Field, Filter, TextField};
use crate::telemetry::metric::{Aggregation, Metric};

const SECOND: i64 = 1_000;
pub const MINUTE: i64 = 60 * SECOND;
pub const HOUR: i64 = 60 * MINUTE;
pub const DAY: i64 = 24 * HOUR;

/// The name of the one metric that is no measurement of a device.
pub const ONLINE_COUNT: &str = "device_online_count";

/// Most intervals of a question: a year by the hour.
pub const MAX_INTERVALS: usize = 10_000;

/// Most intervals where the question does not say: as many points as a chart has room for.
const CHOSEN_INTERVALS: i64 = 300;

/// How far back a question goes that does not say.
const DEFAULT_SPAN: i64 = HOUR;

/// From this length on, no interval is chosen that is shorter than a minute: devices report about as often, and rollups
/// hold minutes.
const MINUTES_FROM: i64 = 30 * MINUTE;

/// Lengths that people can read off a chart, in milliseconds. Beyond the last, whole multiples of it.
const ROUND: [i64; 13] = [
    SECOND,
    5 * SECOND,
    10 * SECOND,
    30 * SECOND,
    MINUTE,
    5 * MINUTE,
    15 * MINUTE,
    30 * MINUTE,
    HOUR,
    3 * HOUR,
    6 * HOUR,
    12 * HOUR,
    DAY,
];

/// A metric as it was asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Asked {
    /// The name that the answer repeats.
    pub name: String,
    pub of: Subject,
    /// For one of the fleet's own metrics that was not named as such: the server's metric that was meant, if the name
    /// is a typing error.
    pub near: Option<&'static str>,
}

/// What a metric is measured by.
#[derive(Clone, Debug, PartialEq)]
pub enum Subject {
    /// What devices report.
    Reported(Metric),
    /// How many devices are ONLINE.
    OnlineCount,
}

/// What tells the series of a metric apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupBy {
    /// At the time of the report.
    DeviceType,
    /// At the time of the report.
    Version,
    DeviceId,
    /// As it is now.
    Label(String),
}

/// A question, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    pub span: Span,
    pub metrics: Vec<Asked>,
    pub aggregation: Aggregation,
    /// At the time of the report.
    pub device_type: Option<String>,
    /// At the time of the report.
    pub version: Option<String>,
    pub device_id: Option<DeviceId>,
    /// As they are now.
    pub labels: Vec<(String, String)>,
    /// As devices are now.
    pub filter: Filter,
    /// Each with the name that the answer gives it.
    pub group_by: Vec<(String, GroupBy)>,
}

/// A span as it was asked for, in milliseconds; what is not set is chosen.
#[derive(Clone, Copy, Debug, Default)]
pub struct AskedSpan {
    pub start: Option<UnixMillis>,
    pub end: Option<UnixMillis>,
    pub interval: Option<i64>,
}

impl AskedSpan {
    /// Chooses what is not set. The span may be empty or have too many intervals: that is the caller's to refuse.
    pub fn complete(self, now: UnixMillis) -> Span {
        let end = self.end.unwrap_or(now);
        let asked = self.start.map_or(DEFAULT_SPAN, |start| end.as_millis() - start.as_millis());
        let interval = self.interval.unwrap_or_else(|| chosen_interval(asked));
        let start = self.start.unwrap_or_else(|| {
            let start = end.as_millis() - DEFAULT_SPAN;
            UnixMillis::from_millis_clamped(start - start.rem_euclid(interval))
        });
        Span { start, end, interval }
    }
}

/// The shortest round interval that cuts `length` into no more than [`CHOSEN_INTERVALS`].
fn chosen_interval(length: i64) -> i64 {
    let least = if length >= MINUTES_FROM { MINUTE } else { SECOND };
    let round = ROUND.into_iter().find(|round| *round >= least && round * CHOSEN_INTERVALS >= length);
    round.unwrap_or_else(|| ceil(ceil(length, CHOSEN_INTERVALS), DAY) * DAY)
}

/// The shortest interval, in whole seconds, that cuts `length` into no more than [`MAX_INTERVALS`].
pub fn least_interval(length: i64) -> i64 {
    ceil(ceil(length, MAX_INTERVALS as i64), SECOND) * SECOND
}

fn ceil(length: i64, by: i64) -> i64 {
    length.div_euclid(by) + i64::from(length.rem_euclid(by) != 0)
}

impl Question {
    /// Whose reports it is about, beside [`Self::device_type`] and [`Self::version`], which are in the reports.
    pub fn reporters(&self) -> Choice {
        Choice {
            device_id: self.device_id.clone(),
            tests: self.label_tests(),
            filter: self.filter.clone(),
            group_by: self.group_by.iter().filter_map(|(_, by)| by.label()).collect(),
        }
    }

    /// Whose presence it is about. There is no report to say a type and a version, so they are as they are now.
    pub fn present(&self) -> Choice {
        let text = |field, value: &Option<String>| value.clone().map(|value| (Field::Text(field), value));
        let kind = text(TextField::Type, &self.device_type).into_iter().chain(text(TextField::Version, &self.version));
        Choice {
            device_id: self.device_id.clone(),
            tests: kind.chain(self.label_tests()).collect(),
            filter: self.filter.clone(),
            group_by: self.group_by.iter().map(|(_, by)| by.field()).collect(),
        }
    }

    fn label_tests(&self) -> Vec<(Field, String)> {
        self.labels.iter().map(|(key, value)| (Field::Label(key.as_str().into()), value.clone())).collect()
    }

    pub fn groups_by(&self, wanted: &GroupBy) -> bool {
        self.group_by.iter().any(|(_, by)| by == wanted)
    }
}

impl GroupBy {
    /// The field of the fleet index that holds it now.
    pub fn field(&self) -> Field {
        match self {
            Self::DeviceType => Field::Text(TextField::Type),
            Self::Version => Field::Text(TextField::Version),
            Self::DeviceId => Field::Text(TextField::Id),
            Self::Label(key) => Field::Label(key.as_str().into()),
        }
    }

    /// The same, for a label.
    fn label(&self) -> Option<Field> {
        matches!(self, Self::Label(_)).then(|| self.field())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: i64) -> UnixMillis {
        UnixMillis::from_millis_clamped(millis)
    }

    #[test]
    fn a_chosen_interval_is_round_and_gives_no_more_points_than_a_chart_shows() {
        for (length, interval) in [
            (1, SECOND),
            (5 * MINUTE, SECOND),
            (5 * MINUTE + 1, 5 * SECOND),
            (HOUR, MINUTE),
            (5 * HOUR, MINUTE),
            (5 * HOUR + 1, 5 * MINUTE),
            (DAY, 5 * MINUTE),
            (7 * DAY, HOUR),
            (30 * DAY, 3 * HOUR),
            (365 * DAY, 2 * DAY),
        ] {
            let chosen = chosen_interval(length);
            assert_eq!(chosen, interval, "{length}");
            assert!(ceil(length, chosen) <= CHOSEN_INTERVALS, "{length}");
        }
    }

    #[test]
    fn what_is_not_asked_is_the_last_hour_from_a_whole_interval_on() {
        let now = at(1_000 * HOUR + 34 * MINUTE + 56_789);
        let span = AskedSpan::default().complete(now);
        assert_eq!(span, Span { start: at(999 * HOUR + 34 * MINUTE), end: now, interval: MINUTE });
        let by_the_hour = AskedSpan { interval: Some(HOUR), ..AskedSpan::default() }.complete(now);
        assert_eq!(by_the_hour.start, at(999 * HOUR));
        let given = AskedSpan { start: Some(at(17)), end: Some(at(90_017)), interval: None }.complete(now);
        assert_eq!(given, Span { start: at(17), end: at(90_017), interval: SECOND });
    }

    #[test]
    fn the_least_interval_is_just_allowed() {
        for length in [1, 9_999, 10_000 * SECOND, 10_000 * SECOND + 1, 30 * DAY, 400 * 365 * DAY] {
            let least = least_interval(length);
            assert!(ceil(length, least) <= MAX_INTERVALS as i64, "{length}");
            assert!(least == SECOND || ceil(length, least - SECOND) > MAX_INTERVALS as i64, "{length}");
        }
    }
}
