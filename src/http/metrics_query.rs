//! AnalyticsService/GetMetrics: what a request may hold, and the form of the answer. `analytics` finds the answer.
use fleetd_proto::v1::{
    GetMetricsRequest, GetMetricsResponse, MetricPoint, MetricSeries, MetricStatistics, MetricSummary,
};
use fleetd_proto::{Duration, Timestamp};

use super::access::Call;
use super::analytics_service::{AnalyticsService, GET_METRICS};
use super::near_names::{self, LABEL_PREFIX};
use crate::analytics::metrics::{Answer, MetricsReader};
use crate::analytics::question::{
    least_interval, Asked, AskedSpan, GroupBy, Question, Subject, MAX_INTERVALS, ONLINE_COUNT,
};
use crate::analytics::{series, Span};
use crate::clock::UnixMillis;
use crate::error::{beginning, ApiError};
use crate::ids::DeviceId;
use crate::query::Filter;
use crate::telemetry::metric::{Aggregation, Metric};

/// Most metrics of a request; each is a statement of its own.
const MAX_METRICS: usize = 32;
/// Most dimensions of a series.
const MAX_GROUP_BY: usize = 4;
/// Most labels of a request, and the longest of each part: as many and as long as a device can have.
const MAX_LABELS: usize = 64;
const MAX_LABEL_KEY_BYTES: usize = 64;
const MAX_LABEL_BYTES: usize = 256;
/// Shortest interval in milliseconds.
const MIN_INTERVAL: i64 = 1_000;

/// Characters of a request's text that an error repeats.
const MAX_SHOWN: usize = 80;

impl AnalyticsService {
    /// Permission: `analytics:view`.
    pub async fn get_metrics(
        &self,
        call: &mut Call,
        request: GetMetricsRequest,
    ) -> Result<GetMetricsResponse, ApiError> {
        self.access.authorize(call, GET_METRICS).await?;
        let doubtful = doubtful_labels(&request);
        let question = question(request, UnixMillis::now())?;
        self.check_labels(doubtful).await?;
        let reader =
            MetricsReader { pool: &self.pool, queries: &self.queries, coverage: &self.coverage, online: &self.online };
        let mut held = self.room.hold();
        let answer = reader.read(&question, &mut held).await?;
        call.held = Some(held);
        Ok(told(&question, answer))
    }

    /// Refuses labels that are nearly called as something else and that no device has: the answer would be of nobody, or
    /// of everybody together, and look like one.
    async fn check_labels(&self, doubtful: Vec<Doubtful>) -> Result<(), ApiError> {
        for Doubtful { field, key, near } in doubtful {
            if !self.queries.has_label(key.clone()).await? {
                return Err(ApiError::invalid_argument(format!(
                    "{field} is {}, a label that no device has; give {near} if that is meant, or {LABEL_PREFIX}{} for the \
                     label all the same",
                    shown(&key),
                    beginning(&key, MAX_SHOWN)
                )));
            }
        }
        Ok(())
    }
}

/// A label that is nearly called as something else.
struct Doubtful {
    /// Where it stands.
    field: String,
    key: String,
    near: &'static str,
}

fn doubtful_labels(request: &GetMetricsRequest) -> Vec<Doubtful> {
    let keys = request.labels.keys().map(|key| ("a key of labels".to_owned(), key));
    let groups = request.group_by.iter().enumerate().map(|(at, key)| (format!("group_by[{at}]"), key));
    keys.chain(groups)
        .filter_map(|(field, key)| Some(Doubtful { field, near: near_names::dimension(key)?, key: key.clone() }))
        .collect()
}

/// Checks a request.
fn question(request: GetMetricsRequest, now: UnixMillis) -> Result<Question, ApiError> {
    let mut question = Question {
        metrics: metrics(&request.metric_names)?,
        aggregation: aggregation(&request.aggregation)?,
        span: span(&request, now)?,
        device_type: None,
        version: None,
        device_id: None,
        labels: Vec::new(),
        filter: Filter::parse(&request.device_filter, now)
            .map_err(|error| ApiError::invalid_argument(format!("device_filter: {error}")))?,
        group_by: group_by(request.group_by)?,
    };
    if request.labels.len() > MAX_LABELS {
        let message = format!("labels has {} entries; at most {MAX_LABELS} are taken", request.labels.len());
        return Err(ApiError::invalid_argument(message));
    }
    for (key, value) in request.labels {
        if value.len() > MAX_LABEL_BYTES {
            return Err(ApiError::invalid_argument(format!(
                "labels.{} has {} bytes; no device has a label of more than {MAX_LABEL_BYTES}",
                shown(&key),
                value.len()
            )));
        }
        match dimension("a key of labels", &key)? {
            GroupBy::DeviceType => question.device_type = Some(value),
            GroupBy::Version => question.version = Some(value),
            GroupBy::DeviceId => {
                let id = DeviceId::parse(&value);
                question.device_id =
                    Some(id.map_err(|error| ApiError::invalid_argument(format!("labels.device_id {error}")))?);
            }
            GroupBy::Label(key) => question.labels.push((key, value)),
        }
    }
    Ok(question)
}

/// A text of a request as an error repeats it: its beginning, with everything visible.
fn shown(text: &str) -> String {
    format!("{:?}", beginning(text, MAX_SHOWN))
}

fn metrics(names: &[String]) -> Result<Vec<Asked>, ApiError> {
    if names.is_empty() || names.len() > MAX_METRICS {
        let message = format!("metric_names has {} entries; give 1 to {MAX_METRICS}, such as cpu_usage", names.len());
        return Err(ApiError::invalid_argument(message));
    }
    let mut metrics = Vec::new();
    for (at, name) in names.iter().enumerate() {
        if names[..at].contains(name) {
            let message = format!("metric_names[{at}] is {}, which is there before; name each once", shown(name));
            return Err(ApiError::invalid_argument(message));
        }
        let of = match Metric::named(name) {
            _ if name == ONLINE_COUNT => Subject::OnlineCount,
            Ok(metric) => Subject::Reported(metric),
            Err(error) => return Err(ApiError::invalid_argument(format!("metric_names[{at}] {error}"))),
        };
        metrics.push(Asked { name: name.clone(), of, near: near_names::metric(name) });
    }
    Ok(metrics)
}

fn aggregation(name: &str) -> Result<Aggregation, ApiError> {
    Aggregation::named(name).ok_or_else(|| {
        let known = Aggregation::ALL.map(Aggregation::name).join(", ");
        ApiError::invalid_argument(format!("aggregation is {}; give one of {known}", shown(name)))
    })
}

fn span(request: &GetMetricsRequest, now: UnixMillis) -> Result<Span, ApiError> {
    let asked = AskedSpan {
        start: time("start_time", request.start_time)?,
        end: time("end_time", request.end_time)?,
        interval: request.interval.map(interval).transpose()?,
    };
    let span = asked.complete(now);
    let length = span.end.as_millis() - span.start.as_millis();
    let moment = |at: UnixMillis| Timestamp::from_unix_millis(at.as_millis());
    if length <= 0 {
        let (start, end) = (moment(span.start), moment(span.end));
        let now = if asked.end.is_some() { "" } else { ", that is now, since it is not set" };
        let message = format!("end_time is {end}{now}; it must be after start_time, which is {start}");
        return Err(ApiError::invalid_argument(message));
    }
    if span.len() > MAX_INTERVALS {
        return Err(ApiError::invalid_argument(format!(
            "interval is {}, which cuts {} from {} to {} into {} parts; at most {MAX_INTERVALS} are told: give {} or more, \
             or a shorter time",
            seconds(span.interval),
            seconds(length),
            moment(span.start),
            moment(span.end),
            span.len(),
            seconds(least_interval(length)),
        )));
    }
    Ok(span)
}

fn time(field: &str, given: Option<Timestamp>) -> Result<Option<UnixMillis>, ApiError> {
    let Some(given) = given else { return Ok(None) };
    if !given.is_valid() {
        let message = format!("{field} is {given}; give a time of the years 1 to 9999, such as 2024-01-01T00:00:00Z");
        return Err(ApiError::invalid_argument(message));
    }
    let kept = UnixMillis::from_parts_clamped(given.seconds, given.nanos);
    // The answer repeats the times: what it is about is what was asked for, or there is none.
    if kept.as_millis().div_euclid(1_000) != given.seconds {
        let message = format!(
            "{field} is {given}; nothing is kept of times before 1900 or after 2299: give a time of these years, such as \
             2024-01-01T00:00:00Z"
        );
        return Err(ApiError::invalid_argument(message));
    }
    Ok(Some(kept))
}

/// In milliseconds.
fn interval(given: Duration) -> Result<i64, ApiError> {
    let is_whole = given.is_valid() && given.nanos % 1_000_000 == 0;
    let millis = given.seconds.saturating_mul(1_000).saturating_add(i64::from(given.nanos / 1_000_000));
    if !is_whole || millis < MIN_INTERVAL {
        let message = format!("interval is {given}; give 1s or more, in whole milliseconds, or leave it out");
        return Err(ApiError::invalid_argument(message));
    }
    Ok(millis)
}

fn seconds(millis: i64) -> Duration {
    Duration { seconds: millis / 1_000, nanos: (millis % 1_000) as i32 * 1_000_000 }
}

fn group_by(names: Vec<String>) -> Result<Vec<(String, GroupBy)>, ApiError> {
    if names.len() > MAX_GROUP_BY {
        let message = format!("group_by has {} entries; at most {MAX_GROUP_BY} are taken", names.len());
        return Err(ApiError::invalid_argument(message));
    }
    let mut groups = Vec::<(String, GroupBy)>::new();
    for (at, name) in names.into_iter().enumerate() {
        let by = dimension(&format!("group_by[{at}]"), &name)?;
        if groups.iter().any(|(_, known)| *known == by) {
            let message = format!("group_by[{at}] is {}, which is there before; name each once", shown(&name));
            return Err(ApiError::invalid_argument(message));
        }
        groups.push((name, by));
    }
    Ok(groups)
}

fn dimension(field: &str, name: &str) -> Result<GroupBy, ApiError> {
    let label = name.strip_prefix(LABEL_PREFIX).unwrap_or(name);
    if label.is_empty() || label.len() > MAX_LABEL_KEY_BYTES {
        return Err(ApiError::invalid_argument(format!(
            "{field} is {}; give device_type, device_id, version, or the name of a label, which has 1 to \
             {MAX_LABEL_KEY_BYTES} bytes",
            shown(name)
        )));
    }
    Ok(match name {
        "device_type" => GroupBy::DeviceType,
        "version" => GroupBy::Version,
        "device_id" => GroupBy::DeviceId,
        _ => GroupBy::Label(label.to_owned()),
    })
}

/// The answer as the contract has it.
fn told(question: &Question, answer: Answer) -> GetMetricsResponse {
    let mut response = GetMetricsResponse::default();
    let mut summary = MetricSummary {
        interval: Some(seconds(question.span.interval)),
        source: answer.source.to_owned(),
        ..MetricSummary::default()
    };
    for (asked, all) in question.metrics.iter().zip(answer.metrics) {
        let statistics = series::statistics(&all);
        summary.metrics.insert(
            asked.name.clone(),
            MetricStatistics {
                count: statistics.count as i64,
                min: statistics.min,
                max: statistics.max,
                avg: statistics.avg,
                last: statistics.last,
            },
        );
        for one in all {
            let points: Vec<MetricPoint> = one
                .buckets
                .iter()
                .filter_map(|bucket| {
                    Some(MetricPoint {
                        timestamp: Some(Timestamp::from_unix_millis(
                            question.span.begin_of(bucket.interval).as_millis(),
                        )),
                        value: series::value_of(question.aggregation, bucket)?,
                        count: bucket.count as i64,
                    })
                })
                .collect();
            summary.point_count += points.len() as i64;
            let names = question.group_by.iter().map(|(name, _)| name.clone());
            response.series.push(MetricSeries {
                name: asked.name.clone(),
                labels: names.zip(one.group).collect(),
                points,
            });
        }
    }
    // No more than the contract's thousand.
    summary.series_count = response.series.len() as i32;
    response.summary = Some(summary);
    response
}
