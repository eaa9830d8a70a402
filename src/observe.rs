//! What operators see of the running parts: the readings of `/metrics` and the reasons of `/readyz`.
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use prometheus_client::registry::Unit;
use tokio::sync::watch;

use crate::actors::deployment::{Deployments, Tallies};
use crate::actors::directory::DeviceDirectory;
use crate::analytics::export::Exports;
use crate::analytics::{AnalystPool, AnswerRoom};
use crate::artifacts::TransferCounters;
use crate::engine::EngineMonitor;
use crate::events::Events;
use crate::fleet::FleetQueries;
use crate::http::command_service::CommandCounters;
use crate::metrics::{Metrics, Reading, Value};
use crate::store::Store;
use crate::telemetry::journal::Journal;
use crate::telemetry::rollup::{RollupHandle, RollupStatus, TableStatus};
use crate::telemetry::writer::WriterHandle;

/// Share of the journal's capacity above which the server asks for no new traffic: it still takes what comes, but a
/// balancer that has another server should prefer that one.
const JOURNAL_NEARLY_FULL: f64 = 0.95;

/// Everything that is read when somebody asks.
pub struct Sources {
    pub directory: DeviceDirectory,
    pub journal: Journal,
    pub writer: WriterHandle,
    pub rollups: RollupHandle,
    pub store: Arc<dyn Store>,
    pub commands: Arc<CommandCounters>,
    pub events: Events,
    pub queries: FleetQueries,
    pub analysts: AnalystPool,
    pub transfers: Arc<TransferCounters>,
    pub room: AnswerRoom,
    pub exports: Exports,
    pub deployments: Deployments,
    pub engine: Option<EngineMonitor>,
}

pub fn metrics(sources: Sources) -> Metrics {
    Metrics::new(move || {
        let mut readings = devices(&sources);
        readings.extend(commands(&sources));
        readings.extend(events(&sources));
        readings.extend(journal(&sources));
        readings.extend(writer(&sources));
        readings.extend(rollups(&sources.rollups.status()));
        readings.extend(store(&sources));
        readings.extend(queries(&sources));
        readings.extend(analytics(&sources.analysts, &sources.room));
        readings.extend(transfers(&sources.transfers));
        readings.extend(exports(&sources.exports));
        readings.extend(deployments(&sources.deployments));
        if let Some(engine) = &sources.engine {
            readings.push(counter(
                "engine_restarts",
                "Starts of the embedded ClickHouse after a death",
                engine.restarts(),
            ));
        }
        readings
    })
}

/// Why the server would rather get no traffic; an empty list means that it is ready.
pub fn readiness(
    journal: &Journal,
    writer: &WriterHandle,
    stopping: watch::Receiver<bool>,
) -> Box<dyn Fn() -> Vec<String> + Send + Sync> {
    let (journal, writer) = (journal.clone(), writer.clone());
    Box::new(move || {
        let mut reasons = Vec::new();
        if *stopping.borrow() {
            reasons.push("the server is stopping".to_owned());
        }
        if !writer.status().is_running {
            reasons.push("the clickhouse writer has stopped; restart the server and report its log".to_owned());
        }
        if journal.is_read_only() {
            reasons.push("the journal is read-only since an fsync failed; check the disk, then restart".to_owned());
        }
        let stats = journal.metrics();
        if stats.bytes as f64 > stats.capacity_bytes as f64 * JOURNAL_NEARLY_FULL {
            let (bytes, capacity) = (stats.bytes, stats.capacity_bytes);
            reasons.push(format!("the journal holds {bytes} of {capacity} bytes; ClickHouse is not taking rows"));
        }
        reasons
    })
}

fn counter(name: &'static str, help: &'static str, value: u64) -> Reading {
    Reading { name, help, unit: None, value: Value::Counter(value) }
}

fn gauge(name: &'static str, help: &'static str, unit: Option<Unit>, value: f64) -> Reading {
    Reading { name, help, unit, value: Value::Gauge(value) }
}

fn devices(sources: &Sources) -> Vec<Reading> {
    let snapshot = sources.directory.snapshot();
    vec![
        gauge("devices_registered", "Devices in the registry", None, snapshot.registered as f64),
        gauge("device_actors", "Device actors alive", None, snapshot.awake as f64),
        gauge(
            "device_mailbox_depth",
            "Messages sent to device actors and not answered yet",
            None,
            snapshot.in_flight as f64,
        ),
        gauge("heartbeat_stretch", "Factor by which intervals are longer under load", None, snapshot.stretch),
        counter("device_actors_recreated", "Device actors made anew after a panic", snapshot.recreated),
    ]
}

fn exports(exports: &Exports) -> Vec<Reading> {
    let counters = exports.counters();
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let bytes = count(&counters.bytes);
    vec![
        gauge("exports_under_way", "Exports that are written or wait", None, exports.under_way() as f64),
        counter("exports_succeeded", "Exports whose file is whole", count(&counters.succeeded)),
        counter("exports_failed", "Exports that failed", count(&counters.failed)),
        counter("exports_refused", "Exports refused because too many waited", count(&counters.refused)),
        Reading { unit: Some(Unit::Bytes), ..counter("exported", "Bytes of files that were exported", bytes) },
    ]
}

fn transfers(transfers: &TransferCounters) -> Vec<Reading> {
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let bytes = |name, help, counter| Reading { unit: Some(Unit::Bytes), ..self::counter(name, help, count(counter)) };
    vec![
        counter("uploads", "Files uploaded, repeats included", count(&transfers.uploads)),
        counter("uploads_failed", "Uploads that broke off or were refused", count(&transfers.uploads_failed)),
        bytes("uploaded", "Bytes of files that were taken in", &transfers.uploaded_bytes),
        counter("downloads", "Downloads begun, each range one", count(&transfers.downloads)),
        counter("downloads_refused", "Downloads refused as too many", count(&transfers.downloads_refused)),
        bytes("downloaded", "Bytes of files that were given out", &transfers.downloaded_bytes),
    ]
}

fn commands(sources: &Sources) -> Vec<Reading> {
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let commands = &sources.commands;
    vec![
        counter("commands_queued", "Commands queued, counted for each device", count(&commands.queued)),
        counter("commands_refused", "Commands refused because the device had too many", count(&commands.refused)),
        counter("commands_delivered", "Deliveries of commands, repeats included", count(&commands.delivered)),
        counter(
            "commands_deliveries_put_off",
            "Heartbeats answered without commands",
            count(&commands.deliveries_put_off),
        ),
        counter("commands_expired", "Commands whose time had run out at a heartbeat", count(&commands.expired)),
        counter("commands_canceled", "Commands taken back", count(&commands.canceled)),
        counter(
            "command_results_applied",
            "Results of devices that changed something",
            count(&commands.results_applied),
        ),
        counter(
            "command_results_ignored",
            "Results that came late or of unknown commands",
            count(&commands.results_ignored),
        ),
    ]
}

fn events(sources: &Sources) -> Vec<Reading> {
    let stats = sources.events.stats();
    vec![
        counter("events_told", "Events of devices, heartbeats left out", stats.told),
        counter("events_unkept", "Events that the journal did not take, tried again where it can be", stats.unkept),
        gauge("event_subscribers", "Open streams of events", None, stats.subscribers as f64),
    ]
}

fn journal(sources: &Sources) -> Vec<Reading> {
    let stats = sources.journal.metrics();
    vec![
        gauge("journal_size", "Journal on disk", Some(Unit::Bytes), stats.bytes as f64),
        gauge("journal_capacity", "Most that the journal may hold", Some(Unit::Bytes), stats.capacity_bytes as f64),
        gauge("journal_segments", "Files of the journal", None, stats.segments as f64),
        counter("journal_records", "Records written", stats.records),
        counter("journal_commits", "Groups written, each with one write", stats.commit_records.count),
        counter("journal_syncs", "Fsync rounds", stats.sync_micros.count),
        counter("journal_sync_errors", "Fsyncs that failed", stats.sync_errors),
        counter("journal_write_errors", "Groups that could not be written", stats.write_errors),
        counter("journal_full_rejections", "Records refused because the journal was full", stats.full_rejections),
        counter("journal_busy_rejections", "Records refused because the disk was behind", stats.busy_rejections),
        counter("journal_quarantined_records", "Damaged records set aside", stats.quarantined_records),
        counter("journal_torn_bytes", "Bytes of unfinished writes cut off at the start", stats.torn_bytes),
        counter("journal_quarantined_stretches", "Damaged stretches found", stats.quarantined_stretches),
    ]
}

fn writer(sources: &Sources) -> Vec<Reading> {
    let status = sources.writer.status();
    vec![
        gauge(
            "writer_lag_records",
            "Records in the journal and not yet in ClickHouse",
            None,
            status.lag_records as f64,
        ),
        gauge("writer_lag", "Age of the oldest of them", Some(Unit::Seconds), status.lag.as_secs_f64()),
        counter("writer_batches", "Batches that ClickHouse acknowledged", status.batches),
        counter("writer_rows", "Rows in them", status.rows),
        counter("writer_inserts", "Inserts sent, repeated ones included", status.inserts),
        gauge(
            "writer_insert_latency",
            "Time of the last insert",
            Some(Unit::Seconds),
            status.last_insert_time.as_secs_f64(),
        ),
        gauge(
            "writer_insert_time",
            "Time of all inserts together",
            Some(Unit::Seconds),
            status.insert_time.as_secs_f64(),
        ),
        counter("writer_retries", "Inserts tried again", status.retries),
        counter("writer_unknown_outcomes", "Inserts whose outcome had to be asked for", status.unknown_outcomes),
        counter("writer_rows_set_aside", "Rows that ClickHouse refused for what they are", status.rows_set_aside),
        counter("writer_audits", "Journal segments counted in ClickHouse before they were deleted", status.audits),
        counter("writer_rows_repaired", "Rows that an audit found missing, and sent again", status.rows_repaired),
        counter("writer_rows_doubled", "Rows that an audit found more than once", status.rows_doubled),
    ]
}

/// Of all computed tables together, but how far each is.
fn rollups(status: &RollupStatus) -> Vec<Reading> {
    let sum = |of: fn(&TableStatus) -> u64| status.tables.iter().map(of).sum();
    let [minutes, hours, device_hours, latest] = status.tables.map(|table| table.lag_seqs as f64);
    let lag = |name, help, lag| gauge(name, help, None, lag);
    vec![
        lag("rollup_1m_lag_seqs", "Numbers of the journal in ClickHouse that rollup_1m does not cover yet", minutes),
        lag("rollup_1h_lag_seqs", "The same of rollup_1h, which is built about hourly", hours),
        lag("device_1h_lag_seqs", "The same of device_1h, which is built about hourly", device_hours),
        lag("device_latest_lag_seqs", "The same of device_latest", latest),
        counter(
            "rollup_ranges",
            "Ranges of the journal that were computed, each table's for itself",
            sum(|t| t.ranges),
        ),
        counter("rollup_audits", "Ranges that were compared with their heartbeats", sum(|t| t.audits)),
        counter("rollup_repairs", "Ranges that differed from them and were computed again", sum(|t| t.repairs)),
        counter("rollup_failures", "Attempts to compute or compare a range that failed", sum(|t| t.failures)),
    ]
}

fn store(sources: &Sources) -> Vec<Reading> {
    let stats = sources.store.stats();
    vec![
        counter("registry_transactions", "Transactions of the registry", stats.transactions),
        counter("registry_writes", "Writes in them", stats.writes),
        gauge("registry_writes_queued", "Writes that wait", None, stats.writes_queued as f64),
        counter("registry_writes_failed", "Writes that failed", stats.writes_failed),
        counter("registry_overloaded", "Requests refused because too many waited", stats.overloaded),
    ]
}

fn queries(sources: &Sources) -> Vec<Reading> {
    let stats = sources.queries.stats();
    vec![
        counter("fleet_queries", "Lists and selections of devices that were answered", stats.answered),
        counter("fleet_queries_refused", "Those refused because too many waited", stats.refused),
        counter("fleet_queries_stopped", "Those stopped because they cost too much", stats.stopped),
        gauge("fleet_queries_waiting", "Those that wait for a thread", None, stats.waiting as f64),
        gauge(
            "fleet_query_time",
            "Time that queries worked, all together",
            Some(Unit::Seconds),
            stats.work_micros as f64 / 1e6,
        ),
    ]
}

fn deployments(deployments: &Deployments) -> Vec<Reading> {
    let Tallies { open, devices, ended } = deployments.tallies();
    let by_state = |name, help, value| Reading { name, help, unit: None, value };
    vec![
        by_state("deployments", "Deployments that are not over, by state", Value::Gauges("state", open)),
        by_state("deployment_devices", "Devices in them, by their state there", Value::Gauges("state", devices)),
        by_state(
            "deployments_ended",
            "Deployments that ended since the start, by the state they ended in",
            Value::Counters("state", ended),
        ),
    ]
}

fn analytics(analysts: &AnalystPool, room: &AnswerRoom) -> Vec<Reading> {
    let stats = analysts.stats();
    vec![
        counter("analytics_questions", "Questions to the telemetry that were answered", stats.answered),
        counter("analytics_questions_refused", "Those refused because others were running", stats.refused),
        counter("analytics_questions_stopped", "Those stopped because they cost too much", stats.stopped),
        counter("analytics_questions_failed", "Those that ClickHouse did not answer", stats.failed),
        gauge(
            "analytics_answers_held",
            "Large answers that are being made, or that clients have not taken in yet",
            Some(Unit::Bytes),
            room.held_bytes() as f64,
        ),
        counter("analytics_answers_refused", "Answers for which those left no room", room.refused()),
        gauge(
            "analytics_question_time",
            "Time that ClickHouse worked on questions, all together",
            Some(Unit::Seconds),
            stats.work_micros as f64 / 1e6,
        ),
    ]
}
