//! What became of devices in the last day, for judgements of their health: how regularly they reported, how often they
//! booted, and what failed on them.
//!
//! Heartbeats are read by device and hour, from `device_1h` where it covers them and from the rows beyond, so ten
//! thousand devices that report every 30 s are a few hundred thousand rows instead of 29 million. What follows from
//! hours:
//!
//! * The silence between two heartbeats is seen where they are in different hours; within an hour it is not. One of an
//!   hour and more is always seen, to the millisecond.
//! * A device booted in an hour when its uptime at the hour's last heartbeat is shorter than the time since the heartbeats
//!   of the hours before. Several boots in one hour count once.
//!
//! While the server was away nobody could report: that time is neither a silence nor are heartbeats due in it. It is
//! known to the minute, from the server's samples of itself.
use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use super::device_set::{DeviceSet, StagedSet};
use super::pool::{AnalystPool, PoolError};
use super::silence;
use crate::actors::entry::DeviceEntry;
use crate::clock::UnixMillis;
use crate::error::ApiError;
use crate::health::History;
use crate::store::Store;
use crate::telemetry::metric::PLAUSIBLE;
use crate::telemetry::rollup::{Coverage, Rollup};
use crate::telemetry::writer::WriterHandle;

const MINUTE: i64 = 60_000;
const HOUR: i64 = 60 * MINUTE;
/// How far back is looked, from the begin of an hour.
const DAY: i64 = 24 * HOUR;

/// How long to wait for the last heartbeats to reach ClickHouse. What does not make it counts as missing.
const FLUSH_WITHIN: Duration = Duration::from_secs(2);

/// Heartbeats that must have been due before their share says something: with fewer, one that is lost is a warning.
const MIN_DUE: i64 = 20;

/// How much a device's uptime and its clock may disagree: uptimes are whole seconds, and clocks are set now and then.
const BOOT_SLACK: i64 = 5_000;

/// Absences of the server that are told to ClickHouse: a server that is away more often than that is not measured by
/// its devices.
const MAX_ABSENCES: usize = 200;

/// Devices whose commands are asked for at once: some 20 ms of a thread of the registry.
const COMMANDS_AT_ONCE: usize = 2_000;

/// Looks up histories. Cheap to clone.
#[derive(Clone)]
pub struct Histories {
    pub pool: AnalystPool,
    pub store: Arc<dyn Store>,
    pub coverage: Coverage,
    pub writer: WriterHandle,
}

/// A device in question.
pub struct Subject {
    pub entry: Arc<DeviceEntry>,
    pub registered_at: UnixMillis,
    /// How often it is to report.
    pub interval: Duration,
}

#[derive(Default, clickhouse::Row, serde::Deserialize)]
struct Heartbeats {
    device_id: String,
    heartbeats: i64,
    /// Milliseconds.
    gap: i64,
    reboot_hours: u32,
}

#[derive(clickhouse::Row, serde::Deserialize)]
struct FirstSeen {
    device_id: String,
    at: i64,
}

#[derive(clickhouse::Row, serde::Deserialize)]
struct FailedUpdates {
    device_id: String,
    attempts: u32,
}

#[derive(clickhouse::Row, serde::Deserialize)]
struct Sampled {
    minute: i64,
}

/// From one moment to a later one, in milliseconds.
type Absence = (i64, i64);

impl Histories {
    /// The history of each of `subjects`, in their order.
    ///
    /// # Errors
    /// Those of [`PoolError`] and of the registry.
    pub async fn of(&self, subjects: &[Subject]) -> Result<Vec<History>, ApiError> {
        let devices: Vec<_> = subjects.iter().map(|subject| Arc::clone(&subject.entry)).collect();
        let now = UnixMillis::now();
        let since = (now.as_millis() - DAY).div_euclid(HOUR) * HOUR;
        if let Err(error) = self.writer.flush(self.writer.status().written_seq, FLUSH_WITHIN).await {
            tracing::warn!(%error, "the latest heartbeats are not in clickhouse yet");
            // Said at once, not when the first statement has run out of time.
            if silence::is_silent(&self.pool).await {
                return Err(silence::error());
            }
        }
        let found = match self.found(devices, since, now.as_millis()).await {
            Ok(found) => found,
            Err(error) => return Err(silence::told(&self.pool, error).await),
        };
        let mut histories = found.histories(subjects);
        let since = UnixMillis::from_millis_clamped(since);
        for first in (0..subjects.len()).step_by(COMMANDS_AT_ONCE) {
            let chunk = subjects.iter().skip(first).take(COMMANDS_AT_ONCE);
            let failures = self.store.command_failures(chunk.map(|subject| subject.entry.id.clone()).collect(), since);
            for (history, failures) in histories.iter_mut().skip(first).zip(failures.await?) {
                (history.failed_commands, history.expired_commands) = (failures.failed, failures.expired);
            }
        }
        Ok(histories)
    }

    async fn found(&self, devices: Vec<Arc<DeviceEntry>>, since: i64, now: i64) -> Result<Found, PoolError> {
        let set = DeviceSet::of(devices).stage(&self.pool).await?;
        let absences = self.absences(since, now).await?;
        let heartbeats = self.heartbeats(&set, since, now, &absences).await?;
        let first_seen = self.first_seen(&set, since).await?;
        let failed_updates = self.failed_updates(&set, since).await?;
        Ok(Found { since, now, absences, heartbeats, first_seen, failed_updates })
    }

    /// When the server was away, in order.
    async fn absences(&self, since: i64, now: i64) -> Result<Vec<Absence>, PoolError> {
        let sql = "SELECT DISTINCT toInt64(toUnixTimestamp(toStartOfMinute(timestamp))) * 1000 AS minute \
                   FROM server_metrics WHERE received_at >= fromUnixTimestamp64Milli({since:Int64}) ORDER BY minute";
        let query = self.pool.query(sql).param("since", since);
        let sampled = self.pool.rows::<Sampled>("find when the server was away", query).await?;
        let minutes: Vec<i64> = sampled.into_iter().map(|sampled| sampled.minute).collect();
        Ok(absences_between(&minutes, since, now))
    }

    async fn heartbeats(
        &self,
        set: &StagedSet,
        since: i64,
        now: i64,
        absences: &[Absence],
    ) -> Result<Vec<Heartbeats>, PoolError> {
        let covered = self.coverage.of(Rollup::DeviceHours);
        let sql = heartbeats_sql(covered.len(), set.condition());
        let (away_from, away_to): (Vec<i64>, Vec<i64>) = absences.iter().copied().unzip();
        let mut query = set
            .bind(self.pool.query(&sql))
            .with_setting("do_not_merge_across_partitions_select_final", "1")
            .param("since", since)
            .param("until", (now.div_euclid(HOUR) + 1) * HOUR)
            .param("away_from", away_from)
            .param("away_to", away_to);
        for (at, (journal, through)) in covered.iter().enumerate() {
            query = query.param(&format!("journal_{at}"), journal.to_string()).param(&format!("through_{at}"), through);
        }
        self.pool.rows("read how regularly devices reported", query).await
    }

    /// When devices that are new reported for the first time.
    async fn first_seen(&self, set: &StagedSet, since: i64) -> Result<Vec<FirstSeen>, PoolError> {
        let sql = format!(
            "SELECT device_id, toUnixTimestamp64Milli(min(timestamp)) AS at FROM device_events \
             WHERE kind = 'status_change' AND from_state = 'UNKNOWN' \
             AND received_at >= fromUnixTimestamp64Milli({{since:Int64}}) AND {} GROUP BY device_id",
            set.condition()
        );
        let query = set.bind(self.pool.query(&sql)).param("since", since);
        self.pool.rows("find devices that are new", query).await
    }

    async fn failed_updates(&self, set: &StagedSet, since: i64) -> Result<Vec<FailedUpdates>, PoolError> {
        // An attempt that is tried again goes on to RETRY_WAIT, the last one stays where it failed.
        let sql = format!(
            "SELECT device_id, toUInt32(uniqExact(deployment_id, attempt)) AS attempts FROM deployment_events \
             WHERE kind = 'device' AND received_at >= fromUnixTimestamp64Milli({{since:Int64}}) AND to_state IN \
             ('FAILED', 'TIMED_OUT', 'VANISHED', 'REVERTED', 'RETRY_WAIT', 'ROLLBACK_FAILED') AND {} GROUP BY device_id",
            set.condition()
        );
        let query = set.bind(self.pool.query(&sql)).param("since", since);
        self.pool.rows("find updates that failed", query).await
    }
}

/// What ClickHouse said of the devices.
struct Found {
    since: i64,
    now: i64,
    absences: Vec<Absence>,
    heartbeats: Vec<Heartbeats>,
    first_seen: Vec<FirstSeen>,
    failed_updates: Vec<FailedUpdates>,
}

impl Found {
    /// The history of each of `subjects`, in their order; of commands nothing is known here.
    fn histories(self, subjects: &[Subject]) -> Vec<History> {
        let places: HashMap<&str, usize> =
            subjects.iter().enumerate().map(|(place, subject)| (subject.entry.id.as_str(), place)).collect();
        let place = |id: &str| places.get(id).copied();
        let mut due_since: Vec<i64> =
            subjects.iter().map(|subject| subject.registered_at.as_millis().max(self.since)).collect();
        for seen in &self.first_seen {
            if let Some(place) = place(&seen.device_id) {
                due_since[place] = due_since[place].max(seen.at);
            }
        }
        let mut came: Vec<Option<&Heartbeats>> = vec![None; subjects.len()];
        for heartbeats in &self.heartbeats {
            if let Some(place) = place(&heartbeats.device_id) {
                came[place] = Some(heartbeats);
            }
        }
        let each = subjects.iter().zip(due_since).zip(came);
        let mut histories: Vec<History> = each
            .map(|((subject, since), came)| history(came, due(since, self.now, subject.interval, &self.absences)))
            .collect();
        for failed in &self.failed_updates {
            if let Some(place) = place(&failed.device_id) {
                histories[place].failed_updates = failed.attempts;
            }
        }
        histories
    }
}

/// By device: its heartbeats, its longest silence, and in how many hours it booted. The text names as many journals as
/// `device_1h` covers; all values are parameters.
fn heartbeats_sql(journals: usize, among: &str) -> String {
    let mut covered = String::from("0");
    let mut rest = String::from("1");
    for at in 0..journals {
        // Writing to a String cannot fail.
        let _ = write!(covered, " OR (journal_id = {{journal_{at}:UUID}} AND through_seq <= {{through_{at}:UInt64}})");
        let _ = write!(rest, " AND (journal_id != {{journal_{at}:UUID}} OR seq > {{through_{at}:UInt64}})");
    }
    format!(
        "SELECT device_id, sum(beats) AS heartbeats, max(silence) AS gap, toUInt32(countIf(booted)) AS reboot_hours FROM (\
           SELECT device_id, beats, lagInFrame(last, 1, toInt64(0)) OVER \
             (PARTITION BY device_id ORDER BY hour ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS before, \
             arraySum((a, b) -> greatest(toInt64(0), least(b, first) - greatest(a, before)), \
               {{away_from:Array(Int64)}}, {{away_to:Array(Int64)}}) AS away, \
             if(before > 0, greatest(toInt64(0), first - before - away), toInt64(0)) AS silence, \
             up_at > 0 AND up + {BOOT_SLACK} < up_at - greatest(before, {{since:Int64}}) AS booted \
           FROM (\
             SELECT device_id, hour, sum(n) AS beats, min(earliest) AS first, max(latest) AS last, \
               argMax(uptime, known_at) AS up, max(known_at) AS up_at \
             FROM (\
               SELECT device_id, time AS hour, toInt64(heartbeats) AS n, toUnixTimestamp64Milli(first_at) AS earliest, \
                 toUnixTimestamp64Milli(last_at) AS latest, \
                 toInt64(1000 * uptime_seconds.last) AS uptime, \
                 if(uptime_seconds.count > 0, toUnixTimestamp64Milli(uptime_seconds.last_at), toInt64(0)) AS known_at \
               FROM device_1h FINAL WHERE time >= toDateTime(intDiv({{since:Int64}}, 1000), 'UTC') \
                 AND time < toDateTime(intDiv({{until:Int64}}, 1000), 'UTC') \
                 AND heartbeats > 0 AND ({covered}) AND {among} \
               UNION ALL \
               SELECT device_id, toStartOfHour(timestamp) AS hour, toInt64(count()) AS n, \
                 toUnixTimestamp64Milli(min(timestamp)) AS earliest, toUnixTimestamp64Milli(max(timestamp)) AS latest, \
                 toInt64(1000 * argMaxIf(uptime_seconds, timestamp, uptime_seconds > 0)) AS uptime, \
                 maxIf(toUnixTimestamp64Milli(timestamp), uptime_seconds > 0) AS known_at \
               FROM heartbeats WHERE {rest} AND {PLAUSIBLE} \
                 AND timestamp >= fromUnixTimestamp64Milli({{since:Int64}}) \
                 AND timestamp < fromUnixTimestamp64Milli({{until:Int64}}) \
                 AND received_at >= fromUnixTimestamp64Milli({{since:Int64}}) - INTERVAL 1 DAY AND {among} \
               GROUP BY device_id, hour\
             ) GROUP BY device_id, hour\
           )\
         ) GROUP BY device_id"
    )
}

/// Where between `since` and `now` no minute was sampled. Without any sample nothing is known, and nothing is said.
fn absences_between(minutes: &[i64], since: i64, now: i64) -> Vec<Absence> {
    if minutes.is_empty() {
        return Vec::new();
    }
    let begins = std::iter::once(since).chain(minutes.iter().map(|minute| minute + MINUTE));
    // A server that has just come has not sampled yet, and is here.
    let ends = minutes.iter().copied().chain([now - MINUTE]);
    let gaps = begins.zip(ends).filter(|(from, to)| *to - *from >= MINUTE);
    gaps.take(MAX_ABSENCES).collect()
}

/// How many heartbeats were due since a moment; the one that is next is not.
fn due(since: i64, now: i64, interval: Duration, absences: &[Absence]) -> i64 {
    let away: i64 = absences.iter().map(|(from, to)| (now.min(*to) - since.max(*from)).max(0)).sum();
    let interval = i64::try_from(interval.as_millis()).unwrap_or(i64::MAX).max(1);
    (now - since - away).max(0) / interval - 1
}

fn history(came: Option<&Heartbeats>, due: i64) -> History {
    let heartbeats = came.map_or(0, |came| came.heartbeats);
    History {
        heartbeat_percent: (due >= MIN_DUE).then(|| (100.0 * heartbeats as f64 / due as f64).min(100.0)),
        heartbeat_gap_seconds: came.map(|came| came.gap as f64 / 1_000.0),
        reboot_hours: came.map_or(0, |came| came.reboot_hours),
        ..History::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heartbeats_are_due_once_an_interval_while_the_server_is_there() {
        let interval = Duration::from_secs(30);
        assert_eq!(due(0, HOUR, interval, &[]), 119);
        assert_eq!(due(0, HOUR, interval, &[(10 * MINUTE, 20 * MINUTE), (55 * MINUTE, 2 * HOUR)]), 89);
        assert_eq!(due(HOUR, HOUR, interval, &[]), -1);
        let of = |heartbeats, due| {
            let came = Heartbeats { heartbeats, ..Heartbeats::default() };
            history(Some(&came), due).heartbeat_percent
        };
        assert_eq!(of(60, 120), Some(50.0));
        assert_eq!(of(130, 120), Some(100.0));
        assert_eq!(of(1, 19), None, "too few to tell");
        assert_eq!(history(None, 120).heartbeat_percent, Some(0.0));
    }

    #[test]
    fn the_server_was_away_where_it_did_not_sample_for_a_minute_and_more() {
        let minutes = [10, 11, 15, 16].map(|minute| minute * MINUTE);
        assert_eq!(
            absences_between(&minutes, 10 * MINUTE, 17 * MINUTE + 5_000),
            [(12 * MINUTE, 15 * MINUTE)],
            "the minute that is under way may have no sample yet"
        );
        assert_eq!(absences_between(&minutes, 8 * MINUTE, 18 * MINUTE)[0], (8 * MINUTE, 10 * MINUTE));
        assert_eq!(absences_between(&[], 0, HOUR), []);
        // It came back just now.
        let back = absences_between(&minutes, 10 * MINUTE, 60 * MINUTE);
        assert_eq!(back.last(), Some(&(17 * MINUTE, 59 * MINUTE)));
    }

    #[test]
    fn the_text_holds_a_place_for_each_journal_and_no_value() {
        let sql = heartbeats_sql(2, "1");
        assert!(sql.contains("{journal_1:UUID} AND through_seq <= {through_1:UInt64}"), "{sql}");
        assert!(sql.contains("journal_id != {journal_0:UUID} OR seq > {through_0:UInt64}"), "{sql}");
    }
}
