//! What the benchmarks of the whole server share: a registry of devices as operators register them, and the real server
//! on top of it, as a process of its own.
#![allow(dead_code)]
use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use fleetd::auth::{ApiKey, KeyKind};
use fleetd::ids::DeviceId;
use fleetd::store::{sqlite, Device, UnixMillis};
use fleetd_proto::v1::{DeviceStatus, HeartbeatRequest, SystemInfo, SystemStats};
use prost::Message as _;

pub const ADMIN_KEY: &str = "admin-key-of-the-benchmark";

/// Filter and order of the lists that have a target.
pub const LISTS: [(&str, &str); 5] = [
    ("", ""),
    ("status:online", ""),
    ("cpu_usage:>80 AND memory_usage:>90", ""),
    ("", "last_seen DESC"),
    ("status:online", "cpu_usage DESC, memory_usage DESC"),
];

/// How many devices the benchmark is asked for.
pub fn devices() -> usize {
    std::env::var("FLEETD_BENCH_DEVICES").map_or(1_000_000, |n| n.parse().expect("a number of devices"))
}

pub fn device_id(number: usize) -> String {
    format!("device-{number:07}")
}

pub async fn fill_registry(data_dir: &Path, devices: usize) {
    const CHUNK: usize = 1_000;
    let store = sqlite::open(data_dir).expect("a new registry");
    for first in (0..devices).step_by(CHUNK) {
        let chunk = (first..devices.min(first + CHUNK)).map(device).collect();
        for outcome in store.register_many(chunk).await {
            outcome.expect("a new device");
        }
    }
}

/// A device as operators register them: typed, located, with its system described.
fn device(number: usize) -> Device {
    let key = ApiKey::generate(KeyKind::Device).expect("random bytes");
    let sites = ["berlin", "osaka", "lagos", "lima"];
    let system = SystemInfo {
        os: "Linux".into(),
        arch: "arm64".into(),
        cpu_cores: 4,
        memory_mb: 4_096,
        disk_gb: 32.0,
        hardware_model: "Raspberry Pi 4 Model B Rev 1.5".into(),
        ..SystemInfo::default()
    };
    Device {
        id: DeviceId::parse(&device_id(number)).expect("a valid id"),
        name: format!("Device {number}"),
        device_type: ["raspberry-pi", "esp32", "gateway"][number % 3].into(),
        version: "1.0.0".into(),
        metadata: BTreeMap::from([("location".into(), sites[number % 4].into())]),
        labels: BTreeMap::from([("ring".into(), (number % 10).to_string())]),
        system_info: system.encode_to_vec().into(),
        registered_at: UnixMillis::now(),
        last_seen: None,
        key_hash: key.hash(),
        revision: 1,
        maintenance: false,
        heartbeat_interval: None,
    }
}

pub fn heartbeat(number: usize) -> HeartbeatRequest {
    HeartbeatRequest {
        device_id: device_id(number),
        status: Some(DeviceStatus { state: 1, uptime_seconds: 3600, ..DeviceStatus::default() }),
        stats: Some(SystemStats {
            cpu_percent: (number % 100) as f64,
            memory_used_mb: (number % 4_096) as u64,
            disk_used_gb: 10.5,
            ..SystemStats::default()
        }),
        ..HeartbeatRequest::default()
    }
}

pub struct Server {
    process: Child,
    pub url: String,
    pub clickhouse_url: String,
}

impl Server {
    pub fn start(data_dir: &Path) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_fleetd"))
            .args(["serve", "--listen", "127.0.0.1:0", "--engine-listen", "127.0.0.1:0", "--data-dir"])
            .arg(data_dir)
            .env("FLEETD_ADMIN_KEY", ADMIN_KEY)
            .env("FLEETD_LOG", "warn")
            // No device of a benchmark is refused for its rate, or goes late while it runs.
            .envs(["ANONYMOUS", "AUTHENTICATED", "DEVICE"].map(|who| (format!("FLEETD_RATE_LIMIT_{who}"), "0")))
            .env("FLEETD_HEARTBEAT_INTERVAL_SECONDS", "3600")
            .stdout(Stdio::piped())
            .spawn()
            .expect("the server starts");
        let mut line = String::new();
        let stdout = process.stdout.take().expect("piped");
        BufReader::new(stdout).read_line(&mut line).expect("the ready line");
        let url = |name| {
            let value = line.split_ascii_whitespace().find_map(|word| word.strip_prefix(name));
            value.expect("an address in the ready line").to_owned()
        };
        Self { url: url("http="), clickhouse_url: url("clickhouse="), process }
    }

    pub fn resident_mib(&self) -> f64 {
        // What the allocator holds back settles within a moment.
        std::thread::sleep(Duration::from_secs(2));
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).expect("a live process");
        let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a resident size");
        kib.trim().trim_end_matches(" kB").parse::<f64>().expect("a number") / 1024.0
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Also when the benchmark panics. Its engine goes with it.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
