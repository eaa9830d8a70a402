//! The text of a question to ClickHouse: made of constants of this crate, with a parameter for every value.
//!
//! Each piece of a [`Plan`] becomes a subquery that gives the same columns, for each group and interval the parts of every
//! aggregation; the parts of all pieces are then merged. So an answer is the same whichever tables it comes from.
use clickhouse::query::Query;

use super::device_set::StagedSet;
use super::pool::AnalystPool;
use super::source::{Piece, Plan, Rows};
use super::span::Span;
use crate::clock::UnixMillis;
use crate::telemetry::metric::{Aggregation, Metric, AHEAD_MS, BEHIND_MS, CUSTOM_PREFIX, PLAUSIBLE, SKETCH, SKETCHED};
use crate::telemetry::rollup::Rollup;

/// Orders values by their time and, at the same one, by their place in the journal, as one number: a tuple would be
/// compared column by column, at three times the price. 0 is the first moment that a time can be stored at.
macro_rules! order {
    ($at:literal, $seq:literal) => {
        concat!(
            "bitOr(bitShiftLeft(toUInt128(toUnixTimestamp64Milli(",
            $at,
            ") + 2208988800000), 64), toUInt128(",
            $seq,
            "))"
        )
    };
}
pub(super) const ORDER: &str = order!("timestamp", "seq");
const COMPUTED_ORDER: &str = order!("last_at", "last_seq");
/// Of a gauge of `device_1h`, which has a `last_at` of its own beside those of its gauges.
const GAUGE_ORDER: &str = order!("gauge_at", "gauge_seq");

/// By what the values of a statement are grouped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keys {
    pub device_type: bool,
    pub version: bool,
    pub device_id: bool,
    /// The groups of the device set.
    pub set_groups: bool,
}

impl Keys {
    /// The columns, in the order of [`Row`].
    const COLUMNS: [(&'static str, &'static str); 4] =
        [("device_type", "''"), ("version", "''"), ("device_id", "''"), ("group_id", "toUInt32(0)")];

    fn used(self) -> [bool; 4] {
        [self.device_type, self.version, self.device_id, self.set_groups]
    }

    /// `device_type, version, bucket`: the last is always there.
    pub(super) fn list(self) -> String {
        let used = Self::COLUMNS.iter().zip(self.used()).filter(|(_, used)| *used).map(|((name, _), _)| *name);
        used.chain(["bucket"]).collect::<Vec<_>>().join(", ")
    }
}

/// What the values of a question must be of, beside the device set.
#[derive(Clone, Debug, Default)]
pub struct Kind {
    pub device_type: Option<String>,
    pub version: Option<String>,
}

impl Kind {
    pub(super) fn condition(&self) -> &'static str {
        match (&self.device_type, &self.version) {
            (None, None) => "1",
            (Some(_), None) => "device_type = {device_type:String}",
            (None, Some(_)) => "version = {version:String}",
            (Some(_), Some(_)) => "device_type = {device_type:String} AND version = {version:String}",
        }
    }

    pub fn is_any(&self) -> bool {
        self.device_type.is_none() && self.version.is_none()
    }
}

/// A metric over time, as ClickHouse is asked for it.
pub struct Inquiry<'a> {
    pub metric: &'a Metric,
    pub aggregation: Aggregation,
    pub span: Span,
    pub kind: &'a Kind,
    pub set: &'a StagedSet,
    pub keys: Keys,
}

/// The parts of all aggregations of one group in one interval.
#[derive(Debug, clickhouse::Row, serde::Deserialize)]
pub struct Row {
    pub device_type: String,
    pub version: String,
    pub device_id: String,
    pub group_id: u32,
    pub bucket: u32,
    pub count: u64,
    pub sum: f64,
    pub min: f64,
    pub max: f64,
    pub last: f64,
    /// Milliseconds since 1970.
    pub last_at: i64,
    /// 0 where none was asked for.
    pub quantile: f64,
}

/// A statement and its values.
#[derive(Clone, Debug, PartialEq)]
pub struct Statement {
    pub sql: String,
    pub values: Vec<(String, Value)>,
}

/// What a parameter is bound to.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Text(String),
    Number(i64),
    Count(u64),
}

impl Statement {
    fn new() -> Self {
        Self { sql: String::new(), values: Vec::new() }
    }

    pub(super) fn bind(&mut self, name: impl Into<String>, value: Value) {
        self.values.push((name.into(), value));
    }

    /// With the pool's limits; the devices are still to be bound, by [`StagedSet::bind`].
    pub fn query(&self, pool: &AnalystPool) -> Query {
        let query = pool
            .query(&self.sql)
            // A row of a computed table and what replaces it have the same time, and so the same partition.
            .with_setting("do_not_merge_across_partitions_select_final", "1")
            // Heartbeats lie in the order in which counters are read: there is nothing to be sorted in memory.
            .with_setting("optimize_read_in_window_order", "1");
        self.values.iter().fold(query, |query, (name, value)| match value {
            Value::Text(text) => query.param(name, text),
            Value::Number(number) => query.param(name, number),
            Value::Count(count) => query.param(name, count),
        })
    }
}

impl Inquiry<'_> {
    /// The statement for a gauge, from the tables of `plan`.
    pub fn gauge(&self, plan: &Plan) -> Statement {
        let mut statement = self.begun();
        let pieces = plan.pieces.iter().enumerate();
        let parts: Vec<String> = pieces.map(|(at, piece)| self.piece(at, piece, &mut statement)).collect();
        statement.sql = self.merged(&parts.join(" UNION ALL "));
        statement
    }

    /// The values that every statement may name.
    pub(super) fn begun(&self) -> Statement {
        let mut statement = Statement::new();
        statement.bind("start", Value::Number(self.span.start.as_millis()));
        statement.bind("interval", Value::Number(self.span.interval));
        if let Some(name) = self.metric.parameter() {
            statement.bind("metric", Value::Text(name.to_owned()));
        }
        let kind = [("device_type", &self.kind.device_type), ("version", &self.kind.version)];
        for (name, text) in kind.into_iter().filter_map(|(name, text)| Some((name, text.as_ref()?))) {
            statement.bind(name, Value::Text(text.clone()));
        }
        statement
    }

    fn piece(&self, at: usize, piece: &Piece, statement: &mut Statement) -> String {
        match &piece.rows {
            Rows::Heartbeats | Rows::Rest(_) => self.of_heartbeats(at, piece, statement),
            Rows::Computed(Rollup::DeviceHours, _) => self.of_device_hours(at, piece, statement),
            Rows::Computed(rollup, _) => self.of_rollup(at, *rollup, piece, statement),
        }
    }

    /// `UNION`ed parts into rows of [`Row`].
    pub(super) fn merged(&self, parts: &str) -> String {
        let keys = Keys::COLUMNS.iter().zip(self.keys.used());
        let keys: Vec<String> = keys
            .map(|((name, none), used)| match (used, *name) {
                (false, _) => format!("{none} AS {name}"),
                (true, "group_id") => "group_id".to_owned(),
                // A LowCardinality says nothing to who reads the answer.
                (true, _) => format!("toString({name}) AS {name}"),
            })
            .collect();
        let quantile = match self.aggregation.quantile() {
            Some((_, place)) => format!("toFloat64(quantilesDDMerge{SKETCH}(sketch)[{place}])"),
            None => "toFloat64(0)".to_owned(),
        };
        format!(
            "SELECT {}, bucket, toUInt64(sum(n)) AS count, sum(total) AS sum, min(least) AS min, max(greatest) AS max, \
             argMax(latest, latest_order) AS last, \
             toInt64(bitShiftRight(max(latest_order), 64)) - 2208988800000 AS last_at, {quantile} AS quantile \
             FROM ({parts}) GROUP BY {}",
            keys.join(", "),
            self.keys.list(),
        )
    }

    /// The parts of values that rows have one by one, in the column `value`, with its `order`.
    pub(super) fn parts_of_values(&self, order: &str, rows: &str) -> String {
        let sketch = match self.aggregation.quantile() {
            Some(_) => format!(", quantilesDDState{SKETCH}({SKETCHED}) AS sketch"),
            None => String::new(),
        };
        let keys = self.keys.list();
        format!(
            "SELECT {keys}, count() AS n, sum(value) AS total, min(value) AS least, max(value) AS greatest, \
             argMax(value, {order}) AS latest, max({order}) AS latest_order{sketch} FROM ({rows}) GROUP BY {keys}"
        )
    }

    /// Plausible readings of the metric, as `reading`, of the devices that are meant, where `rows` holds too: from the time
    /// `from` to `to`, in the partitions where such can be. Every condition is where the table is read, so that its indexes
    /// see it.
    pub(super) fn readings(&self, at: usize, (from, to): (i64, i64), rows: &str, statement: &mut Statement) -> String {
        for (name, value) in [("from", from), ("to", to), ("since", from - AHEAD_MS), ("until", to + BEHIND_MS)] {
            let value = UnixMillis::from_millis_clamped(value).as_millis();
            statement.bind(format!("{name}{at}"), Value::Number(value));
        }
        let time = |name: &str| format!("fromUnixTimestamp64Milli({{{name}{at}:Int64}}, 'UTC')");
        format!(
            "SELECT device_id, device_type, version, timestamp, journal_id, seq, assumeNotNull(reported) AS reading FROM (\
             SELECT device_id, device_type, version, timestamp, journal_id, seq, \
             CAST({} AS Nullable(Float64)) AS reported FROM heartbeats \
             WHERE timestamp >= {} AND timestamp < {} AND received_at >= {} AND received_at <= {} AND {PLAUSIBLE} AND {} \
             AND {rows}) WHERE reported IS NOT NULL AND isFinite(reported)",
            self.metric.value(),
            time("from"),
            time("to"),
            time("since"),
            time("until"),
            self.set.condition(),
        )
    }

    fn of_heartbeats(&self, at: usize, piece: &Piece, statement: &mut Statement) -> String {
        let rest = match &piece.rows {
            Rows::Rest(rest) => not_covered(at, rest, statement),
            Rows::Heartbeats | Rows::Computed(..) => "1".to_owned(),
        };
        let rows = format!("{} AND ({rest})", self.kind.condition());
        let readings = self.readings(at, (piece.from, piece.to), &rows, statement);
        let rows = self.in_groups(&format!("({readings})"));
        let values = format!(
            "SELECT *, reading AS value, \
             toUInt32(intDiv(toUnixTimestamp64Milli(timestamp) - {{start:Int64}}, {{interval:Int64}})) AS bucket FROM {rows}"
        );
        self.parts_of_values(ORDER, &values)
    }

    /// `source` with the number of the device's group, where there are groups.
    pub(super) fn in_groups(&self, source: &str) -> String {
        if self.keys.set_groups {
            return self.set.grouped(source);
        }
        source.to_owned()
    }

    fn of_rollup(&self, at: usize, rollup: Rollup, piece: &Piece, statement: &mut Statement) -> String {
        let covered = self.window(at, piece, statement);
        statement.bind(format!("name{at}"), Value::Text(self.name_in_rollups()));
        let sketch = match self.aggregation.quantile() {
            Some(_) => format!(", quantilesDDMergeState{SKETCH}(part.sketch) AS sketch"),
            None => String::new(),
        };
        let keys = self.keys.list();
        format!(
            "SELECT {keys}, sum(part.count) AS n, sum(part.sum) AS total, min(part.min) AS least, \
             max(part.max) AS greatest, argMax(part.last, part_order) AS latest, max(part_order) AS latest_order{sketch} \
             FROM (SELECT *, {COMPUTED_ORDER} AS part_order, {BUCKET_OF_WINDOW} AS bucket \
             FROM {} FINAL WHERE metric = {{name{at}:String}} AND {} AND {covered} AND count > 0) AS part GROUP BY {keys}",
            rollup.table(),
            self.kind.condition(),
        )
    }

    /// `metrics.NAME` for one of the fleet's own.
    fn name_in_rollups(&self) -> String {
        match self.metric {
            Metric::Known(known) => known.column().to_owned(),
            Metric::Custom(name) => format!("{CUSTOM_PREFIX}{name}"),
        }
    }

    fn of_device_hours(&self, at: usize, piece: &Piece, statement: &mut Statement) -> String {
        let covered = self.window(at, piece, statement);
        let column = match self.metric {
            Metric::Known(known) => known.column(),
            // A plan never reads these from here; no device has reported a metric of no name.
            Metric::Custom(_) => "cpu_usage",
        };
        let rows = format!(
            "(SELECT device_id, {BUCKET_OF_WINDOW} AS bucket, {column}.count AS part_count, {column}.sum AS part_sum, \
             {column}.min AS part_min, {column}.max AS part_max, {column}.last AS part_last, \
             {column}.last_at AS gauge_at, {column}.last_seq AS gauge_seq, {GAUGE_ORDER} AS part_order \
             FROM device_1h FINAL WHERE {covered} AND {} AND {column}.count > 0)",
            self.set.condition()
        );
        let keys = self.keys.list();
        format!(
            "SELECT {keys}, sum(part_count) AS n, sum(part_sum) AS total, min(part_min) AS least, \
             max(part_max) AS greatest, argMax(part_last, part_order) AS latest, max(part_order) AS latest_order \
             FROM {} GROUP BY {keys}",
            self.in_groups(&rows)
        )
    }

    /// Rows of a computed table in the time of a piece, and of the ranges that it may read.
    fn window(&self, at: usize, piece: &Piece, statement: &mut Statement) -> String {
        // Windows are kept in whole seconds of 32 bits: what is before 1970 or after 2106 has none.
        let seconds = |millis: i64| millis.div_euclid(1_000).clamp(0, u32::MAX.into()).unsigned_abs();
        statement.bind(format!("from{at}"), Value::Count(seconds(piece.from)));
        statement.bind(format!("to{at}"), Value::Count(seconds(piece.to)));
        let Rows::Computed(_, ranges) = &piece.rows else { return "0".to_owned() };
        let mut terms = Vec::new();
        for (place, range) in ranges.iter().enumerate() {
            statement.bind(format!("journal{at}_{place}"), Value::Text(range.journal.to_string()));
            statement.bind(format!("begin{at}_{place}"), Value::Count(range.from_seq));
            statement.bind(format!("through{at}_{place}"), Value::Count(range.through_seq));
            terms.push(format!(
                "(journal_id = {{journal{at}_{place}:UUID}} AND from_seq >= {{begin{at}_{place}:UInt64}} \
                 AND through_seq <= {{through{at}_{place}:UInt64}})"
            ));
        }
        format!(
            "time >= toDateTime({{from{at}:UInt32}}, 'UTC') AND time < toDateTime({{to{at}:UInt32}}, 'UTC') AND ({})",
            terms.join(" OR ")
        )
    }
}

const BUCKET_OF_WINDOW: &str =
    "toUInt32(intDiv(toInt64(toUnixTimestamp(time)) * 1000 - {start:Int64}, {interval:Int64}))";

/// That no computed table has a row of `heartbeats`: in the form that the index `row_range` understands.
fn not_covered(at: usize, rest: &[(uuid::Uuid, u64)], statement: &mut Statement) -> String {
    let mut others = Vec::new();
    let mut terms = Vec::new();
    for (place, (journal, from)) in rest.iter().enumerate() {
        statement.bind(format!("journal{at}_{place}"), Value::Text(journal.to_string()));
        statement.bind(format!("begin{at}_{place}"), Value::Count(*from));
        terms.push(format!("(journal_id = {{journal{at}_{place}:UUID}} AND seq >= {{begin{at}_{place}:UInt64}})"));
        others.push(format!("journal_id != {{journal{at}_{place}:UUID}}"));
    }
    terms.push(format!("({})", others.join(" AND ")));
    terms.join(" OR ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analytics::question::HOUR;
    use crate::analytics::source::{Covered, Needs};
    use crate::telemetry::rollup::Coverage;
    use uuid::Uuid;

    const HOSTILE: &str = "x'; DROP TABLE heartbeats; -- {start:Int64}";

    /// Every statement for a question with these values.
    fn statements(custom: &str, text: &str, journal: Uuid, start: i64) -> Vec<Statement> {
        let coverage = Coverage::default();
        for rollup in Rollup::ALL {
            coverage.advance(rollup, journal, 10);
        }
        let at = UnixMillis::from_millis_clamped;
        let span = Span { start: at(start), end: at(start + 3 * HOUR + 61_000), interval: HOUR };
        let metrics = ["cpu_usage", "restart_count"].map(|name| Metric::named(name).expect("a metric"));
        let metrics = metrics.into_iter().chain([Metric::Custom(custom.to_owned())]);
        let kind = Kind { device_type: Some(text.to_owned()), version: Some(text.to_owned()) };
        let mut statements = Vec::new();
        for metric in metrics {
            for aggregation in [Aggregation::Avg, Aggregation::P99] {
                for (kind, devices) in [(&kind, false), (&Kind::default(), true)] {
                    let keys = Keys { device_type: !devices, version: !devices, device_id: devices, set_groups: false };
                    let set = &StagedSet::all();
                    let inquiry = Inquiry { metric: &metric, aggregation, span, kind, set, keys };
                    let custom = metric.parameter().is_some();
                    let quantile = aggregation.quantile().is_some();
                    let plan = Plan::of(Needs { devices, kinds: !devices, quantile, custom }, &span, &coverage);
                    statements.extend([inquiry.gauge(&plan), inquiry.counter()]);
                }
            }
        }
        statements
    }

    #[test]
    fn the_text_of_a_statement_is_the_same_whatever_it_is_about() {
        let plain = statements("queue.depth", "camera", Uuid::from_u128(1), 0);
        let hostile = statements(HOSTILE, HOSTILE, Uuid::from_u128(u128::MAX), 1_000 * HOUR);
        assert_eq!(plain.len(), hostile.len());
        for (plain, hostile) in plain.iter().zip(&hostile) {
            assert_eq!(plain.sql, hostile.sql);
            assert!(!hostile.sql.contains("DROP"), "{}", hostile.sql);
            let names =
                |statement: &Statement| statement.values.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
            assert_eq!(names(plain), names(hostile));
        }
    }

    #[test]
    fn every_parameter_of_a_statement_is_bound_and_every_value_is_used() {
        for statement in statements("queue.depth", "camera", Uuid::from_u128(1), 0) {
            let named = statement.sql.split('{').skip(1).filter_map(|rest| rest.split_once(':'));
            let named: std::collections::BTreeSet<&str> = named.map(|(name, _)| name).collect();
            let bound: std::collections::BTreeSet<&str> =
                statement.values.iter().map(|(name, _)| name.as_str()).collect();
            assert_eq!(named, bound, "{}", statement.sql);
        }
    }

    #[test]
    fn times_beyond_the_range_of_a_window_are_clamped() {
        let set = StagedSet::all();
        let metric = Metric::named("cpu_usage").expect("a metric");
        let span = Span { start: UnixMillis::MIN, end: UnixMillis::MAX, interval: HOUR };
        let keys = Keys::default();
        let kind = Kind::default();
        let inquiry = Inquiry { metric: &metric, aggregation: Aggregation::Avg, span, kind: &kind, set: &set, keys };
        let (from, to) = (UnixMillis::MIN.as_millis(), UnixMillis::MAX.as_millis());
        let ranges = vec![Covered { journal: Uuid::nil(), from_seq: 0, through_seq: 1 }];
        let piece = Piece { from, to, rows: Rows::Computed(Rollup::Hours, ranges) };
        let values = inquiry.gauge(&Plan { pieces: vec![piece] }).values;
        assert!(values.contains(&("from0".into(), Value::Count(0))), "{values:?}");
        assert!(values.contains(&("to0".into(), Value::Count(u64::from(u32::MAX)))), "{values:?}");
    }
}
