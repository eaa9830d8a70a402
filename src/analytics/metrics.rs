//! Answers GetMetrics: one statement for each metric, one after the other, each within the bounds of the pool.
use std::time::{Duration, Instant};

use super::device_set::{DeviceSet, StagedSet};
use super::online::OnlineCounts;
use super::pool::AnalystPool;
use super::question::{Asked, GroupBy, Question, Subject, HOUR};
use super::room::Held;
use super::series::{self, Series};
use super::silence;
use super::source::{Needs, Plan};
use super::span::Span;
use super::sql::{Inquiry, Keys, Kind, Row};
use crate::clock::UnixMillis;
use crate::error::{ApiError, ErrorCode};
use crate::fleet::FleetQueries;
use crate::telemetry::metric::{Aggregation, Metric, Nature, AHEAD_MS, CUSTOM_PREFIX};
use crate::telemetry::rollup::Coverage;

/// Most series of an answer, as the contract says: more lines than that are no chart.
pub const MAX_SERIES: usize = 1_000;

/// Most points of an answer: some 30 MB.
const MAX_POINTS: usize = 1_000_000;

/// What a point takes at most: in the rows of ClickHouse's answer made series, in the message and in its JSON, of which
/// two are there at a time.
const POINT_BYTES: usize = 256;

/// How long a question of many metrics may take; no further metric is begun after it.
const MAX_TIME: Duration = Duration::from_secs(60);

/// How long a question waits after a start for what the computed tables cover: one statement of the builder's.
const COVERAGE_WITHIN: Duration = Duration::from_secs(5);

/// When to try again where that was not enough.
const COVERAGE_RETRY_AFTER: Duration = Duration::from_secs(2);

/// Tables by how much is read together, the coarsest first.
const COARSEST_FIRST: [&str; 5] = ["rollup_1h", "device_1h", "rollup_1m", "heartbeats", ONLINE_SOURCE];

/// What `device_online_count` is counted from.
const ONLINE_SOURCE: &str = "device_events";

/// What the server knows, for questions.
#[derive(Clone, Copy)]
pub struct MetricsReader<'a> {
    pub pool: &'a AnalystPool,
    pub queries: &'a FleetQueries,
    pub coverage: &'a Coverage,
    pub online: &'a OnlineCounts,
}

/// The answer to a question.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// Of each metric, in the order in which they were asked for.
    pub metrics: Vec<Vec<Series>>,
    /// The coarsest table that was read.
    pub source: &'static str,
}

/// Devices of a question, found and staged once.
struct Devices {
    set: DeviceSet,
    staged: StagedSet,
}

impl MetricsReader<'_> {
    /// Reads all metrics of a question. `held` grows with the answer.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED for what costs too much or has too many series, UNAVAILABLE when ClickHouse or the threads of
    /// queries are busy or away, when other answers leave no room, and after a start until it is known what the computed
    /// tables cover.
    pub async fn read(&self, question: &Question, held: &mut Held) -> Result<Answer, ApiError> {
        let begun = Instant::now();
        let (mut reporters, mut present) = (None, None);
        let (mut metrics, mut sources) = (Vec::new(), Vec::new());
        let (mut series_count, mut points) = (0, 0);
        for asked in &question.metrics {
            if begun.elapsed() > MAX_TIME {
                return Err(too_slow(asked, metrics.len(), question.metrics.len()));
            }
            let series = match &asked.of {
                Subject::Reported(metric) => {
                    if !self.coverage.is_loaded(COVERAGE_WITHIN).await {
                        return Err(not_loaded());
                    }
                    let devices = match reporters.take() {
                        Some(devices) => devices,
                        None => self.devices(question.reporters()).await?,
                    };
                    let (series, source) = self.reported(question, metric, &devices).await?;
                    sources.push(source);
                    reporters = Some(devices);
                    series
                }
                Subject::OnlineCount => {
                    let devices = match present.take() {
                        Some(devices) => devices,
                        None => self.devices(question.present()).await?,
                    };
                    sources.push(ONLINE_SOURCE);
                    let series = self.online_count(question, &devices).await?;
                    present = Some(devices);
                    series
                }
            };
            if let (Subject::Reported(metric), Some(near), true) = (&asked.of, asked.near, series.is_empty()) {
                if !self.may_have_been_reported(metric).await {
                    return Err(unknown(asked, near));
                }
            }
            series_count += series.len();
            points += series.iter().map(|one| one.buckets.len()).sum::<usize>();
            check_size(asked, &series, series_count, points)?;
            held.resize(points * POINT_BYTES)?;
            metrics.push(series);
        }
        let source = COARSEST_FIRST.into_iter().find(|table| sources.contains(table)).unwrap_or_default();
        Ok(Answer { metrics, source })
    }

    /// Whether any device ever reported a metric, as far back as anything is kept; also where that cannot be found out now:
    /// the answer to the question is right all the same.
    async fn may_have_been_reported(&self, metric: &Metric) -> bool {
        let now = UnixMillis::now().as_millis();
        let end = (now + AHEAD_MS).div_euclid(HOUR) * HOUR + HOUR;
        let span = Span { start: UnixMillis::EPOCH, end: UnixMillis::from_millis_clamped(end), interval: end };
        let needs = Needs { devices: false, kinds: false, quantile: false, custom: true };
        let inquiry = Inquiry {
            metric,
            aggregation: Aggregation::Count,
            span,
            kind: &Kind::default(),
            set: &StagedSet::all(),
            keys: Keys::default(),
        };
        let statement = inquiry.gauge(&Plan::of(needs, &span, self.coverage));
        let found = self.pool.rows::<Row>("look whether a metric was ever reported", statement.query(self.pool)).await;
        !found.is_ok_and(|rows| rows.is_empty())
    }

    async fn devices(&self, choice: super::device_set::Choice) -> Result<Devices, ApiError> {
        let set = DeviceSet::resolve(self.queries, choice).await?;
        match set.stage(self.pool).await {
            Ok(staged) => Ok(Devices { set, staged }),
            Err(error) => Err(silence::told(self.pool, error).await),
        }
    }

    async fn reported(
        &self,
        question: &Question,
        metric: &Metric,
        devices: &Devices,
    ) -> Result<(Vec<Series>, &'static str), ApiError> {
        let keys = Keys {
            device_type: question.groups_by(&GroupBy::DeviceType),
            version: question.groups_by(&GroupBy::Version),
            device_id: question.groups_by(&GroupBy::DeviceId),
            set_groups: question.group_by.iter().any(|(_, by)| matches!(by, GroupBy::Label(_))),
        };
        let kind = Kind { device_type: question.device_type.clone(), version: question.version.clone() };
        let inquiry = Inquiry {
            metric,
            aggregation: question.aggregation,
            span: question.span,
            kind: &kind,
            set: &devices.staged,
            keys,
        };
        let (statement, source) = match metric.nature() {
            Nature::Gauge => {
                let needs = Needs {
                    devices: !devices.staged.is_all() || keys.device_id,
                    kinds: !kind.is_any() || keys.device_type || keys.version,
                    quantile: question.aggregation.quantile().is_some(),
                    custom: metric.parameter().is_some(),
                };
                let plan = Plan::of(needs, &question.span, self.coverage);
                (inquiry.gauge(&plan), plan.source())
            }
            Nature::Counter => (inquiry.counter(), Plan::of_rows(&question.span).source()),
        };
        if devices.staged.is_empty() {
            return Ok((Vec::new(), source));
        }
        let query = devices.staged.bind(statement.query(self.pool));
        let rows = match self.pool.rows::<Row>("read a metric", query).await {
            Ok(rows) => rows,
            Err(error) => return Err(silence::told(self.pool, error).await),
        };
        let groups = match &devices.set {
            DeviceSet::Members(members) => members.groups.as_slice(),
            DeviceSet::All | DeviceSet::One(_) => &[],
        };
        Ok((series::of_rows(rows, &question.group_by, groups), source))
    }

    async fn online_count(&self, question: &Question, devices: &Devices) -> Result<Vec<Series>, ApiError> {
        let quantile = question.aggregation.quantile().map(|(quantile, _)| quantile);
        let counted = self.online.over_time(&devices.set, &devices.staged, question.span, quantile).await?;
        let group = |number: u32| match &devices.set {
            DeviceSet::Members(members) => members.groups.get(number as usize).cloned().unwrap_or_default(),
            DeviceSet::All | DeviceSet::One(_) => Vec::new(),
        };
        let series = counted.into_iter().filter(|(_, buckets)| !buckets.is_empty());
        let mut series: Vec<Series> = series
            .map(|(number, buckets)| Series { group: group(number).into_iter().map(String::from).collect(), buckets })
            .collect();
        series.sort_by(|one, other| one.group.cmp(&other.group));
        Ok(series)
    }
}

fn not_loaded() -> ApiError {
    let message =
        "the server has just started and does not know yet which heartbeats its computed tables have; try again \
                   in a moment";
    ApiError::unavailable(message, COVERAGE_RETRY_AFTER)
}

fn unknown(asked: &Asked, near: &str) -> ApiError {
    let name = &asked.name;
    let message = format!(
        "metric_names has {name:?}, which is no metric of the server's, and no device has reported one of its own by that \
         name; give {CUSTOM_PREFIX}{name} to ask for it all the same; did you mean {near}?"
    );
    ApiError::invalid_argument(message)
}

fn too_slow(asked: &Asked, done: usize, all: usize) -> ApiError {
    let message = format!(
        "the question took longer than {} s, with {done} of {all} metrics read, up to {}; ask for fewer metrics at once, a \
         shorter time, or an interval and a start_time of whole hours",
        MAX_TIME.as_secs(),
        asked.name
    );
    ApiError::new(ErrorCode::ResourceExhausted, message)
}

fn check_size(asked: &Asked, series: &[Series], series_count: usize, points: usize) -> Result<(), ApiError> {
    let refused = |message: String| Err(ApiError::new(ErrorCode::ResourceExhausted, message));
    if series_count > MAX_SERIES {
        return refused(format!(
            "the answer has {series_count} series or more, {} of them of {}; at most {MAX_SERIES} are told: name fewer \
             group_by or metric_names, or narrow the devices by labels or device_filter",
            series.len(),
            asked.name
        ));
    }
    if points > MAX_POINTS {
        return refused(format!(
            "the answer has {points} points or more; at most {MAX_POINTS} are told: ask for a longer interval, a shorter \
             time or fewer groups"
        ));
    }
    Ok(())
}
