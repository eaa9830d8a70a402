//! A heartbeat as rows: one of `heartbeats`, and one of `processes` for each process that it reports.
//!
//! What a device may send is not what a table can hold, so this is where the two meet. And a row stands for itself: what
//! a report may leave out because the server knows it, the row has all the same, as it was then.
//!
//! | the device sends | the row holds |
//! |---|---|
//! | no `stats` at all | NULL for every reading, so that no average takes silence for 0 |
//! | a reading that is not a number or infinite | NULL; in `metrics`, the entry is left out |
//! | a negative or absurd finite reading | that number: the device's word, for the reader to judge |
//! | no `timestamp`, or one outside 1900 to 2299 | the time of receipt, or the nearer end of that range |
//! | a state that this version does not know | `UNKNOWN` |
//! | no `version` | the one it reported last, else the registered one |
//! | no total of memory or disk, or one below 0 | the registered one; 0 where there is none |
//! | nothing of its type | the registered one |
//! | a long message, process name or process version | its first [`MAX_TEXT_BYTES`] bytes, cut between characters |
//! | more metrics or processes than the limits, or a name beyond them | nothing: the heartbeat is refused by field |
use fleetd_proto::v1::{device_status, process_info, HeartbeatRequest, ProcessInfo, SystemStats};

use super::binary::{prefix, put_f64, put_i64, put_reading, put_string, put_u32, put_u64, put_varint};
use super::{append_section, InvalidField, Table, UnixMillis};

/// Custom metrics in one heartbeat. With names of [`MAX_METRIC_NAME_BYTES`] they take 4.7 KB of a row; a device with
/// more to say has more to measure than its health.
pub const MAX_METRICS: usize = 64;

/// Bytes of a custom metric's name. Names are dictionary-coded in ClickHouse, and every distinct one stays for a day.
pub const MAX_METRIC_NAME_BYTES: usize = 64;

/// Processes in one heartbeat: each is a row, so this bounds how many rows one request can cost.
pub const MAX_PROCESSES: usize = 256;

/// Bytes of `version` and of `status.boot_id`: they identify, so they are refused rather than cut.
pub const MAX_IDENTIFIER_BYTES: usize = 128;

/// Bytes kept of text for people. 256 processes with names and versions this long are 530 KB, a quarter of what a
/// section can hold each, and half a journal batch: a hostile client cannot make a record that the pipeline chokes on.
pub const MAX_TEXT_BYTES: usize = 1_024;

/// What the server knows of a device when its heartbeat comes; empty and 0 where it does not.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct KnownDevice<'a> {
    pub device_type: &'a str,
    /// Reported last, else registered.
    pub version: &'a str,
    pub memory_mb: u64,
    pub disk_gb: f64,
}

/// Appends the sections of `heartbeat` to `record`. On an error `record` is as it was.
///
/// `device_id` is the checked id, which may stand for the message's own; `received_at` is the server's clock. Takes no
/// allocation but the growth of `record`, which the caller reuses.
pub fn encode_heartbeat(
    device_id: &str,
    known: &KnownDevice<'_>,
    heartbeat: &HeartbeatRequest,
    received_at: UnixMillis,
    record: &mut Vec<u8>,
) -> Result<(), InvalidField> {
    check(heartbeat)?;
    let timestamp = heartbeat.timestamp.as_ref().map_or(received_at, millis);
    append_section(record, Table::Heartbeats, |row| {
        put_key(row, received_at, device_id, timestamp);
        put_heartbeat(row, known, heartbeat);
    });
    for process in &heartbeat.processes {
        append_section(record, Table::Processes, |row| {
            put_key(row, received_at, device_id, timestamp);
            put_process(row, process);
        });
    }
    Ok(())
}

/// All that can refuse a heartbeat, before a byte is written.
fn check(heartbeat: &HeartbeatRequest) -> Result<(), InvalidField> {
    bounded("version", heartbeat.version.len(), MAX_IDENTIFIER_BYTES)?;
    if let Some(status) = &heartbeat.status {
        bounded("status.boot_id", status.boot_id.len(), MAX_IDENTIFIER_BYTES)?;
    }
    let processes = heartbeat.processes.len();
    if processes > MAX_PROCESSES {
        return Err(InvalidField::TooMany { field: "processes", count: processes, limit: MAX_PROCESSES });
    }
    let Some(stats) = &heartbeat.stats else { return Ok(()) };
    if stats.metrics.len() > MAX_METRICS {
        return Err(InvalidField::TooMany { field: "stats.metrics", count: stats.metrics.len(), limit: MAX_METRICS });
    }
    for name in stats.metrics.keys() {
        bounded("stats.metrics key", name.len(), MAX_METRIC_NAME_BYTES)?;
        if !is_metric_name(name) {
            return Err(InvalidField::MetricName { name: name.clone() });
        }
    }
    Ok(())
}

/// Whether a custom metric can have this name.
pub fn is_metric_name(name: &str) -> bool {
    let allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'.');
    (1..=MAX_METRIC_NAME_BYTES).contains(&name.len()) && name.bytes().all(allowed)
}

fn bounded(field: &'static str, bytes: usize, limit: usize) -> Result<(), InvalidField> {
    if bytes > limit {
        return Err(InvalidField::TooLong { field, bytes, limit });
    }
    Ok(())
}

fn millis(timestamp: &fleetd_proto::Timestamp) -> UnixMillis {
    UnixMillis::from_parts_clamped(timestamp.seconds, timestamp.nanos)
}

/// What every row begins with; see [`Section`](super::Section).
#[inline]
pub(super) fn put_key(row: &mut Vec<u8>, received_at: UnixMillis, key: &str, timestamp: UnixMillis) {
    put_i64(row, received_at.as_millis());
    put_string(row, key);
    put_i64(row, timestamp.as_millis());
}

fn put_heartbeat(row: &mut Vec<u8>, known: &KnownDevice<'_>, heartbeat: &HeartbeatRequest) {
    match &heartbeat.status {
        Some(status) => {
            let state = device_status::State::try_from(status.state).unwrap_or_default();
            row.push(state as u8);
            put_u64(row, status.uptime_seconds);
            put_i64(row, status.last_boot.as_ref().map_or(UnixMillis::EPOCH, millis).as_millis());
            put_string(row, &status.boot_id);
            put_u32(row, status.restart_count);
            put_string(row, prefix(&status.message, MAX_TEXT_BYTES));
        }
        None => {
            row.push(device_status::State::Unknown as u8);
            put_u64(row, 0);
            put_i64(row, UnixMillis::EPOCH.as_millis());
            put_string(row, "");
            put_u32(row, 0);
            put_string(row, "");
        }
    }
    let version = if heartbeat.version.is_empty() { known.version } else { &heartbeat.version };
    put_string(row, prefix(version, MAX_TEXT_BYTES));
    match &heartbeat.stats {
        Some(stats) => put_stats(row, known, stats),
        None => {
            // cpu_percent, memory_used_mb, disk_used_gb
            row.extend_from_slice(&[1; 3]);
            put_u64(row, known.memory_mb);
            put_f64(row, known.disk_gb);
            // the three load averages, temperature_celsius
            row.extend_from_slice(&[1; 4]);
            row.extend_from_slice(&[0; 5 * 8]);
            // battery_percent, signal_dbm; no metrics
            row.extend_from_slice(&[1, 1, 0]);
        }
    }
    put_string(row, prefix(known.device_type, MAX_TEXT_BYTES));
}

fn put_stats(row: &mut Vec<u8>, known: &KnownDevice<'_>, stats: &SystemStats) {
    put_reading(row, Some(stats.cpu_percent));
    row.push(0);
    put_u64(row, stats.memory_used_mb);
    put_reading(row, Some(stats.disk_used_gb));
    put_u64(row, if stats.memory_total_mb > 0 { stats.memory_total_mb } else { known.memory_mb });
    let is_told = stats.disk_total_gb.is_finite() && stats.disk_total_gb > 0.0;
    put_f64(row, if is_told { stats.disk_total_gb } else { known.disk_gb });
    for reading in [stats.load_average_1m, stats.load_average_5m, stats.load_average_15m, stats.temperature_celsius] {
        put_reading(row, reading);
    }
    for counter in [
        stats.network_rx_bytes,
        stats.network_tx_bytes,
        stats.disk_read_bytes,
        stats.disk_write_bytes,
        stats.swap_used_mb,
    ] {
        put_u64(row, counter);
    }
    put_reading(row, stats.battery_percent);
    match stats.signal_dbm {
        Some(dbm) => {
            row.push(0);
            row.extend_from_slice(&dbm.to_le_bytes());
        }
        None => row.push(1),
    }
    let finite = || stats.metrics.iter().filter(|(_, value)| value.is_finite());
    put_varint(row, finite().count() as u64);
    for (name, value) in finite() {
        put_string(row, name);
        put_f64(row, *value);
    }
}

fn put_process(row: &mut Vec<u8>, process: &ProcessInfo) {
    put_u32(row, process.pid);
    put_string(row, prefix(&process.name, MAX_TEXT_BYTES));
    row.push(process_info::State::try_from(process.state).unwrap_or_default() as u8);
    put_reading(row, Some(process.cpu_percent));
    put_u64(row, process.memory_used_mb);
    put_u64(row, process.uptime_seconds);
    put_u32(row, process.restart_count);
    put_string(row, prefix(&process.version, MAX_TEXT_BYTES));
    match process.exit_code {
        Some(code) => {
            row.push(0);
            row.extend_from_slice(&code.to_le_bytes());
        }
        None => row.push(1),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Sections;
    use super::*;
    use fleetd_proto::v1::DeviceStatus;

    const KNOWN: KnownDevice<'_> =
        KnownDevice { device_type: "camera", version: "known-version", memory_mb: 0x1122_3344, disk_gb: 55.5 };

    fn encode(heartbeat: &HeartbeatRequest) -> Result<Vec<u8>, InvalidField> {
        let mut record = Vec::new();
        encode_heartbeat("rpi-001", &KNOWN, heartbeat, UnixMillis::from_millis_clamped(1_000), &mut record)?;
        Ok(record)
    }

    fn timestamp_of(record: &[u8]) -> i64 {
        Sections::of(record).next().expect("a row").expect("well formed").timestamp
    }

    #[test]
    fn a_heartbeat_is_one_row_and_each_process_another() {
        let heartbeat = HeartbeatRequest { processes: vec![ProcessInfo::default(); 3], ..Default::default() };
        let record = encode(&heartbeat).expect("valid");
        let tables: Vec<_> = Sections::of(&record).map(|section| section.expect("well formed").table).collect();
        assert_eq!(tables, [Table::Heartbeats, Table::Processes, Table::Processes, Table::Processes]);
    }

    #[test]
    fn the_time_of_receipt_stands_in_for_a_missing_timestamp() {
        assert_eq!(timestamp_of(&encode(&HeartbeatRequest::default()).expect("valid")), 1_000);
    }

    #[test]
    fn timestamps_of_year_1_and_9999_are_clamped() {
        for (seconds, stored) in [(-62_135_596_800, UnixMillis::MIN), (253_402_300_799, UnixMillis::MAX)] {
            let timestamp = Some(fleetd_proto::Timestamp { seconds, nanos: 0 });
            let record = encode(&HeartbeatRequest { timestamp, ..Default::default() }).expect("valid");
            assert_eq!(timestamp_of(&record), stored.as_millis());
        }
    }

    #[test]
    fn what_is_over_a_limit_is_refused_by_its_field_and_leaves_the_record_as_it_was() {
        let stats = |metrics| Some(SystemStats { metrics, ..Default::default() });
        let many = (0..=MAX_METRICS).map(|n| (format!("m{n}"), 1.0)).collect();
        let long_name = [("m".repeat(MAX_METRIC_NAME_BYTES + 1), 1.0)].into_iter().collect();
        let odd_name = [("a b".to_owned(), 1.0)].into_iter().collect();
        let empty_name = [(String::new(), 1.0)].into_iter().collect();
        let megabyte = "v".repeat(1 << 20);
        let cases = [
            ("stats.metrics", HeartbeatRequest { stats: stats(many), ..Default::default() }),
            ("stats.metrics", HeartbeatRequest { stats: stats(long_name), ..Default::default() }),
            ("stats.metrics", HeartbeatRequest { stats: stats(odd_name), ..Default::default() }),
            ("stats.metrics", HeartbeatRequest { stats: stats(empty_name), ..Default::default() }),
            (
                "processes",
                HeartbeatRequest { processes: vec![ProcessInfo::default(); MAX_PROCESSES + 1], ..Default::default() },
            ),
            ("version", HeartbeatRequest { version: megabyte.clone(), ..Default::default() }),
            (
                "status.boot_id",
                HeartbeatRequest {
                    status: Some(DeviceStatus { boot_id: megabyte, ..Default::default() }),
                    ..Default::default()
                },
            ),
        ];
        for (field, heartbeat) in cases {
            let mut record = vec![7];
            let refused = encode_heartbeat("a", &KNOWN, &heartbeat, UnixMillis::EPOCH, &mut record).expect_err(field);
            assert!(refused.to_string().starts_with(field), "{refused}");
            assert_eq!(record, [7]);
        }
    }

    #[test]
    fn what_a_report_leaves_out_is_what_the_server_knows_and_what_it_tells_goes_first() {
        let stats = |memory_total_mb, disk_total_gb| {
            Some(SystemStats { memory_total_mb, disk_total_gb, ..SystemStats::default() })
        };
        let version = "told-version".to_owned();
        for (memory, disk, is_told) in [
            (0x5566_7788, 66.5, true),
            (0, 0.0, false),
            (0, -1.0, false),
            (0, f64::NAN, false),
            (0, f64::INFINITY, false),
        ] {
            let version = if is_told { version.clone() } else { String::new() };
            let heartbeat = HeartbeatRequest { version, stats: stats(memory, disk), ..HeartbeatRequest::default() };
            let record = encode(&heartbeat).expect("valid");
            let has = |bytes: &[u8]| record.windows(bytes.len()).any(|window| window == bytes);
            assert_eq!((has(b"told-version"), has(b"known-version")), (is_told, !is_told), "{memory} {disk}");
            assert_eq!(has(&0x1122_3344_u64.to_le_bytes()), !is_told, "{memory} {disk}");
            assert_eq!(has(&memory.to_le_bytes()), is_told || memory == 0, "{memory} {disk}");
            assert_eq!(has(&55.5_f64.to_le_bytes()), !is_told, "{memory} {disk}");
            assert!(record.ends_with(b"\x06camera"));
        }
        let silent = encode(&HeartbeatRequest::default()).expect("valid");
        assert!(silent.windows(8).any(|window| window == 0x1122_3344_u64.to_le_bytes()));
        assert!(silent.windows(8).any(|window| window == 55.5_f64.to_le_bytes()));
    }

    #[test]
    fn the_largest_heartbeat_that_is_let_in_fits_the_frame() {
        let text = "\u{1F980}".repeat(1 << 18);
        let heartbeat = HeartbeatRequest {
            version: "v".repeat(MAX_IDENTIFIER_BYTES),
            status: Some(DeviceStatus { message: text.clone(), state: i32::MIN, ..Default::default() }),
            stats: Some(SystemStats {
                metrics: (0..MAX_METRICS).map(|n| (format!("{n:0>MAX_METRIC_NAME_BYTES$}"), f64::MIN)).collect(),
                ..Default::default()
            }),
            processes: vec![
                ProcessInfo { name: text.clone(), version: text, state: 99, ..Default::default() };
                MAX_PROCESSES
            ],
            ..Default::default()
        };
        let record = encode(&heartbeat).expect("valid");
        let rows: Vec<_> = Sections::of(&record).collect::<Result<_, _>>().expect("well formed");
        assert_eq!(rows.len(), 1 + MAX_PROCESSES);
        assert!(record.len() < 600_000, "{} bytes", record.len());
    }
}
