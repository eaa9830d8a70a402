//! A server with all that the dashboards show: heartbeats and processes that came over the wire, the events of devices
//! and of a deployment, samples of the server's own metrics, and rollups of the heartbeats.
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::json;

use crate::plugin::{Range, Variables};
use crate::support::client::Client;
use crate::support::wire::{http1, Ask};
use crate::support::{clickhouse, Options, Server, ADMIN_KEY};

pub const DATABASE: &str = "fleetd";

/// Rows that the test writes itself have a journal of its own, which no server asks for.
const JOURNAL: &str = "toUUID('00000000-0000-4000-8000-000000000005')";

const DEPLOYMENT: &str = "deploy-1";

/// Type, version, devices.
pub const FLEET: [(&str, &str, usize); 3] = [("gateway", "1.0.0", 2), ("gateway", "2.0.0", 2), ("sensor", "1.0.0", 2)];

/// Heartbeats of each device, one in 20 s until now.
pub const HEARTBEATS: u64 = 30;
const APART: Duration = Duration::from_secs(20);

const PATIENCE: Duration = Duration::from_secs(60);

/// The metrics of the rollups: name, and its value in a row.
const ROLLED_UP: [(&str, &str); 5] = [
    ("heartbeats", "toFloat64(1)"),
    ("cpu_usage", "cpu_percent"),
    ("memory_usage", "100 * memory_used_mb / memory_total_mb"),
    ("disk_usage", "100 * disk_used_gb / disk_total_gb"),
    ("temperature_celsius", "temperature_celsius"),
];

pub struct Filled {
    pub server: Server,
    pub variables: Variables,
    /// What `/metrics` showed: names as they are printed, with their labels.
    pub samples: Vec<(String, f64)>,
}

impl Filled {
    pub fn new() -> Self {
        let server = Server::with(Options::default().unlimited());
        let devices = send_heartbeats(&server);
        let mut filled = Self { server, variables: Variables::default(), samples: Vec::new() };
        filled.wait_for("heartbeats", devices.len() as u64 * HEARTBEATS);
        filled.wait_for("processes", devices.len() as u64 * HEARTBEATS * 2);
        // Other events of a device may come before the one that says that it is there.
        filled.wait_for("device_events WHERE kind = 'status_change'", devices.len() as u64);
        filled.change_presence();
        filled.deploy(&devices);
        filled.roll_up();
        filled.sample();
        for (name, value) in [
            ("device_type", "$__all"),
            ("version", "$__all"),
            ("device_id", devices[0].as_str()),
            ("deployment_id", DEPLOYMENT),
            ("metric", "cpu_usage"),
        ] {
            filled.variables.set(name, value);
        }
        filled
    }

    /// The last hours, in about a hundred intervals.
    pub fn hours(&self, hours: i64) -> Range {
        // A second more, for what came in this one.
        let to = i64::try_from(now_ms()).expect("a time of this age") + 1_000;
        Range { from: to - hours * 3_600_000, to, interval_seconds: hours * 36 }
    }

    /// The one number that `sql` gives.
    pub fn number(&self, sql: &str) -> u64 {
        clickhouse::number(self.server.clickhouse(), DATABASE, sql)
    }

    fn run(&self, sql: &str) {
        clickhouse::run(self.server.clickhouse(), DATABASE, sql);
    }

    fn wait_for(&self, table: &str, rows: u64) {
        let sql = format!("SELECT least(count(), {rows}) FROM {table}");
        clickhouse::wait_for(self.server.clickhouse(), DATABASE, &sql, rows, PATIENCE);
    }

    /// Devices that go and come again, beside what the server itself saw of them.
    fn change_presence(&self) {
        self.run(&format!(
            "INSERT INTO device_events (journal_id, seq, row_index, received_at, device_id, timestamp, kind, from_state, to_state, detail) \
             SELECT {JOURNAL}, number, 0, at, 'dev-0', at, 'status_change', \
                 ['ONLINE', 'LATE', 'OFFLINE'][1 + number % 3], ['LATE', 'OFFLINE', 'ONLINE'][1 + number % 3], '' \
             FROM (SELECT number, now64(3) - toIntervalSecond(600 - number * 60) AS at FROM numbers(6))"
        ));
    }

    /// A deployment that updates the gateways that run 2.0.0, and fails on one of the others.
    fn deploy(&self, devices: &[String]) {
        let failed = &devices[0];
        let updated = &devices[2..4];
        let mut rows: Vec<(u64, &str, &str, &str, &str, &str)> = vec![
            (500, "", "order", "", "", r#"{"order":"Approve","by":"an operator","reason":"tested"}"#),
            (490, "", "deployment", "SCHEDULED", "RUNNING", ""),
            (480, "", "wave", "PENDING", "RUNNING", ""),
            (100, "", "wave", "RUNNING", "DONE", ""),
            (470, failed, "device", "QUEUED", "OFFERED", ""),
            (400, failed, "device", "OFFERED", "FAILED", "the disk is full"),
        ];
        for device in updated {
            rows.push((470, device, "device", "QUEUED", "OFFERED", ""));
            rows.push((300, device, "device", "OFFERED", "SUCCEEDED", ""));
        }
        let values: Vec<String> = rows
            .iter()
            .enumerate()
            .map(|(seq, (ago, device, kind, from, to, detail))| {
                let at = format!("now64(3) - {ago}");
                format!("({JOURNAL}, {seq}, 0, {at}, '{DEPLOYMENT}', {at}, '{device}', 'upd-1', '{kind}', '{from}', '{to}', 0, 1, '{detail}')")
            })
            .collect();
        let columns = "journal_id, seq, row_index, received_at, deployment_id, timestamp, device_id, update_id, kind, \
                       from_state, to_state, wave, attempt, detail";
        self.run(&format!("INSERT INTO deployment_events ({columns}) VALUES {}", values.join(", ")));
    }

    /// The rollups of all heartbeats, as `telemetry::rollup` computes them.
    fn roll_up(&self) {
        for (table, start) in [("rollup_1m", "toStartOfMinute"), ("rollup_1h", "toStartOfHour")] {
            let earliest = if table == "rollup_1m" { ("received_at, ", "min(received_at), ") } else { ("", "") };
            for (metric, value) in ROLLED_UP {
                self.run(&format!(
                    "INSERT INTO {table} (metric, device_type, version, time, journal_id, from_seq, through_seq, generation, {}count, sum, min, max, \
                         last, last_at, last_seq, sketch) \
                     SELECT '{metric}', device_type, version, toDateTime({start}(timestamp)) AS time, {JOURNAL}, 0, max(seq), 1, {}count(), sum(value), \
                         min(value), max(value), argMax(value, (timestamp, seq)), max(timestamp), max(seq), \
                         quantilesDDState(0.01, 0.5, 0.9, 0.95, 0.99)(value) \
                     FROM (SELECT *, toFloat64(assumeNotNull({value})) AS value FROM heartbeats) \
                     GROUP BY device_type, version, time",
                    earliest.0, earliest.1
                ));
            }
            self.run(&format!(
                "INSERT INTO rollup_progress (journal_id, rollup, through_seq, built_at) SELECT {JOURNAL}, '{table}', max(seq), now64(3) FROM heartbeats"
            ));
        }
        self.run(
            "INSERT INTO device_latest (device_id, received_at, journal_id, seq, timestamp, device_type, version, state, uptime_seconds, \
                 restart_count, cpu_usage, temperature_celsius) \
             SELECT device_id, received_at, journal_id, seq, timestamp, device_type, version, toString(state), uptime_seconds, restart_count, \
                 cpu_percent, temperature_celsius FROM heartbeats",
        );
    }

    /// Three samples of what `/metrics` shows, as the server keeps them itself, half a minute apart.
    fn sample(&mut self) {
        let reply = http1(self.server.http(), &Ask::get("/metrics"));
        let text = reply.text();
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        // The value is behind the last space: a label may have spaces in it.
        self.samples = lines
            .filter_map(|line| line.rsplit_once(' '))
            .filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?)))
            .collect();
        assert!(self.samples.len() > 40, "{text}");
        let quoted = |name: &str| name.replace('\\', "\\\\").replace('\'', "\\'");
        let mut values = Vec::new();
        for (step, ago) in [(0, 60), (1, 30), (2, 0)] {
            for (index, (name, value)) in self.samples.iter().enumerate() {
                let at = format!("now64(3) - {ago}");
                values.push(format!(
                    "({JOURNAL}, {step}, {index}, {at}, '{}', {at}, {})",
                    quoted(name),
                    value + f64::from(step)
                ));
            }
        }
        let columns = "journal_id, seq, row_index, received_at, name, timestamp, value";
        self.run(&format!("INSERT INTO server_metrics ({columns}) VALUES {}", values.join(", ")));
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time after 1970");
    u64::try_from(since.as_millis()).expect("a time of this age")
}

/// Registers the fleet and sends its heartbeats in batches; the ids of the devices.
fn send_heartbeats(server: &Server) -> Vec<String> {
    let call = |rpc: &str, message: &serde_json::Value| {
        let ask = Client::Json1.call(&format!("DeviceService/{rpc}"), Some(ADMIN_KEY), message.to_string().as_bytes());
        let reply = http1(server.http(), &ask);
        assert_eq!(reply.status, 200, "{rpc}: {}\n{}", reply.text(), server.log());
        reply.json()
    };
    let devices: Vec<(String, &str, &str)> = FLEET
        .iter()
        .flat_map(|(kind, version, count)| std::iter::repeat_n((*kind, *version), *count))
        .enumerate()
        .map(|(number, (kind, version))| (format!("dev-{number}"), kind, version))
        .collect();
    for (id, kind, version) in &devices {
        call("RegisterDevice", &json!({ "device_id": id, "device_type": kind, "version": version }));
    }
    let start = now_ms() - HEARTBEATS * u64::try_from(APART.as_millis()).expect("a short time");
    for number in 0..HEARTBEATS {
        let at = start + number * u64::try_from(APART.as_millis()).expect("a short time");
        let timestamp = rfc3339(at);
        let heartbeats: Vec<_> = devices
            .iter()
            .map(|(id, _, version)| {
                json!({
                    "device_id": id, "version": version, "timestamp": timestamp,
                    "status": { "state": "ONLINE", "uptime_seconds": 1_000 + number * 20, "restart_count": number / 10 },
                    "stats": {
                        "cpu_percent": 20.0 + number as f64, "memory_used_mb": 512, "memory_total_mb": 1_024,
                        "disk_used_gb": 8.0, "disk_total_gb": 32.0, "load_average_1m": 0.5, "load_average_5m": 0.4,
                        "load_average_15m": 0.3, "temperature_celsius": 40.0 + number as f64,
                        "network_rx_bytes": 1_000 * (number + 1), "network_tx_bytes": 500 * (number + 1),
                        "disk_read_bytes": 100 * (number + 1), "disk_write_bytes": 50 * (number + 1),
                        "swap_used_mb": 3, "battery_percent": 80.0, "signal_dbm": -60,
                        "metrics": { "queue.depth": number as f64, "doors": 2.0 },
                    },
                    "processes": [
                        { "pid": 1, "name": "init", "state": "RUNNING", "cpu_percent": 1.0, "memory_used_mb": 8 },
                        { "pid": 7, "name": "app", "state": "SLEEPING", "cpu_percent": 9.0, "memory_used_mb": 99, "exit_code": 0 },
                    ],
                })
            })
            .collect();
        call("BatchHeartbeat", &json!({ "heartbeats": heartbeats }));
    }
    devices.into_iter().map(|(id, _, _)| id).collect()
}

/// `2026-01-02T03:04:05.678Z`.
fn rfc3339(ms: u64) -> String {
    let (seconds, millis) = (ms / 1_000, ms % 1_000);
    let time = libc::time_t::try_from(seconds).expect("a time of this age");
    // SAFETY: a zeroed tm is valid, and gmtime_r only writes to it.
    let tm = unsafe {
        let mut tm: libc::tm = std::mem::zeroed();
        libc::gmtime_r(&time, &mut tm);
        tm
    };
    let (year, month) = (tm.tm_year + 1900, tm.tm_mon + 1);
    format!("{year:04}-{month:02}-{:02}T{:02}:{:02}:{:02}.{millis:03}Z", tm.tm_mday, tm.tm_hour, tm.tm_min, tm.tm_sec)
}
