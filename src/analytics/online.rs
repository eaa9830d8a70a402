//! How many devices were ONLINE over time (`device_online_count`).
//!
//! `device_events` has each change of presence that was told, and the fleet index has what was told last. So a device's
//! state at a moment is the one that its last event until then led to; before its first event in question, the one that
//! this came from; and without any event since then, the one that it has now. Counting backwards from now needs neither
//! a first event nor a complete table, and a restart of the server, which tells nothing, is no dip.
//!
//! A kill may leave less than was told before it: the registry learns of a change a moment after it is told. What the fleet
//! index says otherwise than the last event is so since the server's start, and counts from there.
//!
//! The number is sampled at the end of each of many steps of an interval, and aggregated over the samples.
use std::collections::BTreeMap;
use std::time::Duration;

use super::device_set::{DeviceSet, StagedSet};
use super::pool::{AnalystPool, PoolError};
use super::silence;
use super::span::{Bucket, Span};
use crate::actors::directory::DeviceDirectory;
use crate::clock::UnixMillis;
use crate::error::ApiError;
use crate::fleet::{FleetQueries, OnlineNow};
use crate::telemetry::writer::WriterHandle;

/// How long to wait for the last events to reach ClickHouse. What does not make it is missing in the answer: the devices
/// in question are taken to have been as they are now.
const FLUSH_WITHIN: Duration = Duration::from_secs(2);

/// Length of a step, at least: presence is looked at twice a second.
const MIN_STEP: i64 = 1_000;

/// Steps of an interval: as many as [`SAMPLES`] allows, between these. 60 tell a minute of absence in an hour.
const MIN_STEPS: i64 = 60;
const MAX_STEPS: i64 = 600;
const SAMPLES: i64 = 36_000;

/// Answers `device_online_count`. Cheap to clone.
#[derive(Clone)]
pub struct OnlineCounts {
    pool: AnalystPool,
    queries: FleetQueries,
    directory: DeviceDirectory,
    writer: WriterHandle,
    started_at: UnixMillis,
}

/// A device that has events since the start of the span.
#[derive(clickhouse::Row, serde::Deserialize)]
struct Told {
    device_id: String,
    group_id: u32,
    was_online: u8,
    is_online: u8,
    last_at: i64,
}

/// By how much the number of a group changed in a step.
#[derive(clickhouse::Row, serde::Deserialize)]
struct Change {
    group_id: u32,
    place: u32,
    change: i64,
}

#[derive(clickhouse::Row, serde::Deserialize)]
struct Known {
    since: i64,
    events: u64,
}

/// Event times are the server's, and the same in both columns; parts are pruned by this one.
const EVENTS: &str = "(SELECT device_id, timestamp, seq, from_state = 'ONLINE' AS was, to_state = 'ONLINE' AS is \
     FROM device_events WHERE kind IN ('status_change', 'deleted') \
     AND received_at >= fromUnixTimestamp64Milli({start:Int64}) \
     AND received_at <= fromUnixTimestamp64Milli({until:Int64}))";

impl OnlineCounts {
    /// To be made at the start of the server, when its devices are known.
    pub fn new(pool: AnalystPool, queries: FleetQueries, directory: DeviceDirectory, writer: WriterHandle) -> Self {
        Self { pool, queries, directory, writer, started_at: UnixMillis::now() }
    }

    /// The number of devices that were ONLINE, for each group of `set`: by its number, over the intervals of `span`. A
    /// bucket is over the samples of its interval; where nothing is known (after now, before the first event that
    /// ClickHouse has) there is none. `quantile`, between 0 and 1, is exact.
    ///
    /// Of a set that is not [`DeviceSet::All`] the devices count that are in it now.
    ///
    /// # Errors
    /// Those of [`PoolError`] and [`crate::fleet::QueryFailure`].
    pub async fn over_time(
        &self,
        set: &DeviceSet,
        staged: &StagedSet,
        span: Span,
        quantile: Option<f64>,
    ) -> Result<Vec<(u32, Vec<Bucket>)>, ApiError> {
        // In this order: what was told before the look is in the journal after it.
        let online = self.queries.online_now().await?;
        let until = UnixMillis::now();
        self.flush().await;
        let (samples, told, changes) = match self.asked(staged, span, until).await {
            Ok(asked) => asked,
            Err(error) => return Err(silence::told(&self.pool, error).await),
        };
        let (set, directory, started_at) = (set.clone(), self.directory.clone(), self.started_at);
        let counted = move || {
            let mut series = Series::of(&set, &online, &directory);
            told.iter().for_each(|told| series.take(told, &online, &directory, &samples, started_at));
            changes.iter().for_each(|change| series.change(change.group_id, change.place, change.change));
            series.buckets(&samples, quantile)
        };
        Ok(self.queries.work(counted).await?)
    }

    async fn asked(
        &self,
        staged: &StagedSet,
        span: Span,
        until: UnixMillis,
    ) -> Result<(Samples, Vec<Told>, Vec<Change>), PoolError> {
        let samples = Samples::of(span, until, self.known_since().await?);
        if staged.is_empty() || samples.end <= span.start.as_millis() {
            return Ok((samples, Vec::new(), Vec::new()));
        }
        let told = self.told(staged, &samples, until).await?;
        let changes = self.changes(staged, &samples, until).await?;
        Ok((samples, told, changes))
    }

    async fn flush(&self) {
        let written = self.writer.status().written_seq;
        if let Err(error) = self.writer.flush(written, FLUSH_WITHIN).await {
            tracing::warn!(%error, "the latest changes of presence are not in clickhouse yet");
        }
    }

    /// From when on something is known: the first event that is left, or this start of the server.
    async fn known_since(&self) -> Result<i64, PoolError> {
        let sql = "SELECT toUnixTimestamp64Milli(min(received_at)) AS since, count() AS events FROM device_events";
        let known = self.pool.rows::<Known>("find the first event", self.pool.query(sql)).await?;
        let first = known.first().filter(|known| known.events > 0).map(|known| known.since);
        Ok(first.unwrap_or(i64::MAX).min(self.started_at.as_millis()))
    }

    async fn told(&self, staged: &StagedSet, samples: &Samples, until: UnixMillis) -> Result<Vec<Told>, PoolError> {
        let sql = format!(
            "SELECT device_id, group_id, argMin(was, (timestamp, seq)) AS was_online, \
             argMax(is, (timestamp, seq)) AS is_online, toUnixTimestamp64Milli(max(timestamp)) AS last_at \
             FROM {} GROUP BY device_id, group_id",
            staged.grouped(EVENTS)
        );
        let query = staged.bind(self.pool.query(&sql));
        let query = query.param("start", samples.span.start.as_millis()).param("until", until.as_millis());
        self.pool.rows("find the devices whose presence changed", query).await
    }

    async fn changes(
        &self,
        staged: &StagedSet,
        samples: &Samples,
        until: UnixMillis,
    ) -> Result<Vec<Change>, PoolError> {
        // A change is told from the state that the device's event before led to, so events that are missing in between
        // leave no trace in the sum.
        let sql = format!(
            "SELECT group_id, place, sum(delta) AS change FROM (\
             SELECT group_id, toUnixTimestamp64Milli(timestamp) - {{start:Int64}} AS offset, \
             toUInt32(intDiv(offset, {{interval:Int64}}) * {{steps:Int64}} \
             + intDiv(offset % {{interval:Int64}}, {{step:Int64}})) AS place, \
             toInt64(is) - toInt64(lagInFrame(is, 1, was) OVER (PARTITION BY device_id ORDER BY timestamp, seq \
             ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW)) AS delta \
             FROM {} WHERE timestamp < fromUnixTimestamp64Milli({{end:Int64}})) \
             WHERE delta != 0 GROUP BY group_id, place",
            staged.grouped(EVENTS)
        );
        let query = staged.bind(self.pool.query(&sql));
        let query = query
            .param("start", samples.span.start.as_millis())
            .param("until", until.as_millis())
            .param("end", samples.end)
            .param("interval", samples.span.interval)
            .param("steps", samples.steps)
            .param("step", samples.step);
        self.pool.rows("count changes of presence", query).await
    }
}

/// When the number is looked at.
#[derive(Clone, Copy, Debug)]
struct Samples {
    span: Span,
    /// Milliseconds from one sample to the next; the last step of an interval may be shorter.
    step: i64,
    /// Steps of a whole interval.
    steps: i64,
    /// Where the last step ends.
    end: i64,
    /// Samples until here tell nothing.
    known_since: i64,
}

impl Samples {
    fn of(span: Span, now: UnixMillis, known_since: i64) -> Self {
        let intervals = i64::try_from(span.len()).unwrap_or(i64::MAX).max(1);
        let wanted = (SAMPLES / intervals).clamp(MIN_STEPS, MAX_STEPS).min(span.interval / MIN_STEP).max(1);
        let step = ceil(span.interval, wanted);
        let steps = ceil(span.interval, step);
        Self { span, step, steps, end: span.end.min(now).as_millis(), known_since }
    }

    /// In which step a moment is, counted over all intervals; `None` outside of the span.
    fn place(&self, at: i64) -> Option<u32> {
        let offset = at - self.span.start.as_millis();
        let place =
            offset.div_euclid(self.span.interval) * self.steps + offset.rem_euclid(self.span.interval) / self.step;
        (offset >= 0 && at < self.end).then(|| u32::try_from(place).ok()).flatten()
    }

    /// The samples of an interval that tell something, each with its step and the time at which it is taken: the end of
    /// the step.
    fn of_interval(&self, interval: usize) -> impl ExactSizeIterator<Item = (u32, i64)> {
        let Self { step, known_since, .. } = *self;
        let begin = self.span.begin_of(interval).as_millis();
        let end = self.end.min(begin + self.span.interval);
        let first = i64::try_from(interval).unwrap_or(i64::MAX).saturating_mul(self.steps);
        let count = ceil((end - begin).max(0), step);
        let unknown = if known_since >= end { count } else { ((known_since - begin).max(0) / step).min(count) };
        // No more than `MAX_STEPS` for each of the intervals of a request.
        let (unknown, count) = (unknown as u32, count as u32);
        (unknown..count).map(move |at| (first as u32 + at, end.min(begin + (i64::from(at) + 1) * step)))
    }
}

fn ceil(length: i64, by: i64) -> i64 {
    length.div_euclid(by) + i64::from(length % by != 0)
}

/// The number of each group: before the span, and what it changes by.
#[derive(Debug, Default)]
struct Series {
    groups: BTreeMap<u32, Group>,
}

#[derive(Debug, Default)]
struct Group {
    before: i64,
    changes: BTreeMap<u32, i64>,
}

impl Series {
    /// As if nothing had ever changed.
    fn of(set: &DeviceSet, online: &OnlineNow, directory: &DeviceDirectory) -> Self {
        let mut series = Self::default();
        match set {
            DeviceSet::All => series.group(0).before = online.count() as i64,
            DeviceSet::One(id) => {
                let is_online = directory.find(id.as_str()).is_some_and(|entry| online.has(&entry));
                series.group(0).before = i64::from(is_online);
            }
            DeviceSet::Members(members) => {
                series.groups = (0..members.groups.len() as u32).map(|group| (group, Group::default())).collect();
                for (entry, group) in members.devices.iter().zip(&members.group_of) {
                    series.group(*group).before += i64::from(online.has(entry));
                }
            }
        }
        series
    }

    fn group(&mut self, group: u32) -> &mut Group {
        self.groups.entry(group).or_default()
    }

    /// A device whose events are counted: it starts as its first one says.
    fn take(
        &mut self,
        told: &Told,
        online: &OnlineNow,
        directory: &DeviceDirectory,
        samples: &Samples,
        started_at: UnixMillis,
    ) {
        let is_now = i64::from(directory.find(&told.device_id).is_some_and(|entry| online.has(&entry)));
        self.group(told.group_id).before += i64::from(told.was_online) - is_now;
        let missed = is_now - i64::from(told.is_online);
        if missed != 0 && told.last_at < started_at.as_millis() {
            if let Some(place) = samples.place(started_at.as_millis()) {
                self.change(told.group_id, place, missed);
            }
        }
    }

    fn change(&mut self, group: u32, place: u32, change: i64) {
        *self.group(group).changes.entry(place).or_default() += change;
    }

    fn buckets(self, samples: &Samples, quantile: Option<f64>) -> Vec<(u32, Vec<Bucket>)> {
        self.groups.into_iter().map(|(number, group)| (number, group.buckets(samples, quantile))).collect()
    }
}

impl Group {
    fn buckets(self, samples: &Samples, quantile: Option<f64>) -> Vec<Bucket> {
        let mut level = self.before;
        let mut changes = self.changes.into_iter().peekable();
        let mut buckets = Vec::new();
        for interval in 0..samples.span.len() {
            let mut of_interval = samples.of_interval(interval).peekable();
            let mut runs = Runs::default();
            while let Some((place, at)) = of_interval.next() {
                while let Some((_, change)) = changes.next_if(|(of, _)| *of <= place) {
                    level += change;
                }
                // Nothing changes until the next change, which spares most samples a look.
                let next = changes.peek().map_or(u32::MAX, |(of, _)| *of);
                let mut run = Run { level: level.max(0) as f64, samples: 1, last_at: at };
                while let Some((_, at)) = of_interval.next_if(|(place, _)| *place < next) {
                    (run.samples, run.last_at) = (run.samples + 1, at);
                }
                runs.0.push(run);
            }
            buckets.extend(runs.bucket(interval, quantile));
        }
        buckets
    }
}

/// Samples in a row that are the same. A level is 0 or more also where events did not reach ClickHouse.
#[derive(Clone, Copy, Debug)]
struct Run {
    level: f64,
    samples: u64,
    last_at: i64,
}

/// The samples of one interval, in the order of time.
#[derive(Debug, Default)]
struct Runs(Vec<Run>);

impl Runs {
    /// `None` without any.
    fn bucket(mut self, interval: usize, quantile: Option<f64>) -> Option<Bucket> {
        let last = *self.0.last()?;
        self.0.sort_unstable_by(|a, b| a.level.total_cmp(&b.level));
        let count = self.0.iter().map(|run| run.samples).sum();
        Some(Bucket {
            interval,
            count,
            sum: self.0.iter().map(|run| run.level * run.samples as f64).sum(),
            min: self.0.first()?.level,
            max: self.0.last()?.level,
            last: last.level,
            last_at: UnixMillis::from_millis_clamped(last.last_at),
            quantile: quantile.and_then(|quantile| self.nearest_rank(quantile, count)),
        })
    }

    /// Sorted by level.
    fn nearest_rank(&self, quantile: f64, count: u64) -> Option<f64> {
        let rank = ((quantile * count as f64).ceil() as u64).clamp(1, count);
        let mut seen = 0;
        let reached = self.0.iter().find(|run| {
            seen += run.samples;
            seen >= rank
        });
        reached.map(|run| run.level)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000;

    fn span(start: i64, end: i64, interval: i64) -> Span {
        let at = UnixMillis::from_millis_clamped;
        Span { start: at(start), end: at(end), interval }
    }

    #[test]
    fn an_interval_has_60_samples_and_more_where_there_are_few_intervals_but_none_closer_than_a_second() {
        let now = UnixMillis::MAX;
        for (intervals, interval, steps) in [
            (24, 3_600 * SECOND, 600),
            (100, 3_600 * SECOND, 360),
            (10_000, 3_600 * SECOND, 60),
            (24, 60 * SECOND, 60),
            (24, 10 * SECOND, 10),
            (24, 1_500, 1),
        ] {
            let samples = Samples::of(span(0, intervals * interval, interval), now, -1);
            assert_eq!(samples.steps, steps, "{intervals} of {interval} ms");
        }
    }

    #[test]
    fn samples_are_taken_at_the_ends_of_steps_and_neither_before_something_is_known_nor_after_now() {
        let span = span(0, 25 * SECOND, 10 * SECOND);
        let times = |samples: Samples, interval| samples.of_interval(interval).map(|(_, at)| at).collect::<Vec<_>>();
        let all = Samples::of(span, UnixMillis::MAX, -1);
        assert_eq!(times(all, 1), (11..=20).map(|second| second * SECOND).collect::<Vec<_>>());
        assert_eq!(times(all, 2), (21..=25).map(|second| second * SECOND).collect::<Vec<_>>());
        let some = Samples::of(span, UnixMillis::from_millis_clamped(12_500), 8_000);
        assert_eq!((times(some, 0), times(some, 1)), (vec![9_000, 10_000], vec![11_000, 12_000, 12_500]));
        assert!(times(some, 2).is_empty());
        let places: Vec<_> = all.of_interval(1).map(|(place, _)| place).collect();
        assert_eq!(places, (10..20).collect::<Vec<_>>());
        assert_eq!(
            [0, 999, 1_000, 10_000, 24_999, 25_000, -1].map(|at| all.place(at)),
            [Some(0), Some(0), Some(1), Some(10), Some(24), None, None]
        );
    }

    /// Against the plainest computation: the level at each sample, one by one.
    #[test]
    fn buckets_are_what_the_samples_say() {
        let span = span(0, 95 * SECOND, 10 * SECOND);
        let samples = Samples::of(span, UnixMillis::from_millis_clamped(91_500), 5_200);
        // Two in the interval in which nothing is known yet, one long after, one back and forth within a step.
        let at = [(3_000, 2), (5_100, 1), (42_000, -2), (42_900, 1), (70_500, 5), (70_600, -5), (91_200, 3)];
        let mut group = Group { before: 10, changes: BTreeMap::new() };
        for (at, change) in at {
            *group.changes.entry(samples.place(at).expect("inside")).or_default() += change;
        }
        let buckets = group.buckets(&samples, Some(0.5));
        let mut expected = Vec::new();
        for interval in 0..10 {
            let mut values = Vec::new();
            for second in 1..=10 {
                let taken = (interval * 10 + second) * SECOND;
                let taken = if taken > 91_500 && taken < 92_500 { 91_500 } else { taken };
                if taken > 5_200 && taken <= 91_500 {
                    let level = 10 + at.iter().filter(|(at, _)| *at < taken).map(|(_, change)| change).sum::<i64>();
                    values.push((taken, level as f64));
                }
            }
            let (last_at, last) = *values.last().expect("something is known of each");
            let mut sorted: Vec<_> = values.iter().map(|(_, level)| *level).collect();
            sorted.sort_unstable_by(f64::total_cmp);
            expected.push(Bucket {
                interval: interval as usize,
                count: sorted.len() as u64,
                sum: sorted.iter().sum(),
                min: sorted[0],
                max: sorted[sorted.len() - 1],
                last,
                last_at: UnixMillis::from_millis_clamped(last_at),
                quantile: Some(sorted[sorted.len().div_ceil(2) - 1]),
            });
        }
        assert_eq!(buckets, expected);
        assert_eq!((buckets[0].count, buckets[9].count), (5, 2));
    }

    #[test]
    fn where_nothing_is_known_there_is_no_bucket() {
        let samples = Samples::of(span(0, 30 * SECOND, 10 * SECOND), UnixMillis::from_millis_clamped(20_000), 10_000);
        let buckets = Group { before: 3, changes: BTreeMap::new() }.buckets(&samples, None);
        assert_eq!(buckets.iter().map(|bucket| (bucket.interval, bucket.count)).collect::<Vec<_>>(), [(1, 10)]);
    }
}
