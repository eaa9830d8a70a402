//! A million devices: registered, then live. Prints the figures of docs/performance.md: how long the server takes to
//! start with them in its registry, what it weighs then, and what it weighs once each has sent a heartbeat.
//!
//! ```text
//! cargo bench --bench million                 # 1,000,000 devices
//! FLEETD_BENCH_DEVICES=100000 cargo bench --bench million
//! ```
//!
//! The registry is filled directly; everything after that is the real server, as a process of its own.
use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use fleetd::auth::{ApiKey, KeyKind};
use fleetd::ids::DeviceId;
use fleetd::store::{sqlite, Device, UnixMillis};
use fleetd_loadtest::{Client, Protocol, Target};
use fleetd_proto::v1::{DeviceStatus, HeartbeatRequest, ListDevicesRequest, SystemInfo, SystemStats};
use prost::Message as _;

const ADMIN_KEY: &str = "admin-key-of-the-benchmark";
/// Connections that send the first heartbeats; enough to keep two cores busy.
const CONNECTIONS: usize = 32;

fn main() {
    let devices = std::env::var("FLEETD_BENCH_DEVICES").map_or(1_000_000, |n| n.parse().expect("a number of devices"));
    let folder = tempfile::tempdir().expect("a temporary folder");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");

    let started = Instant::now();
    runtime.block_on(fill_registry(folder.path(), devices));
    println!("{devices} devices put into the registry in {:.1} s", started.elapsed().as_secs_f64());

    let started = Instant::now();
    let mut server = Server::start(folder.path());
    println!("start to ready                     {:8.2} s", started.elapsed().as_secs_f64());
    println!("resident, all registered           {:8.0} MiB", server.resident_mib());

    let started = Instant::now();
    runtime.block_on(heartbeat_each(&server.url, devices));
    let took = started.elapsed().as_secs_f64();
    println!("one heartbeat each                 {:8.1} s ({:.0}/s)", took, devices as f64 / took);
    println!("resident, all live                 {:8.0} MiB", server.resident_mib());
    runtime.block_on(lists(&server.url));
    server.stop();
}

fn device_id(number: usize) -> String {
    format!("device-{number:07}")
}

async fn fill_registry(data_dir: &Path, devices: usize) {
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

async fn heartbeat_each(url: &str, devices: usize) {
    let target = Target::parse(url).expect("the server's address");
    let lanes = (0..CONNECTIONS).map(|lane| {
        let mut client = Client::new(&target, Protocol::Connect, Some(ADMIN_KEY)).expect("a client");
        async move {
            for number in (lane..devices).step_by(CONNECTIONS) {
                let reply = client.heartbeat(&heartbeat(number)).await.expect("an answer");
                assert!(reply.message.acknowledged);
            }
        }
    });
    futures_util::future::join_all(lanes).await;
}

fn heartbeat(number: usize) -> HeartbeatRequest {
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

/// Lists through the front door: filter, order, and what a page of 100 takes.
async fn lists(url: &str) {
    const LISTS: usize = 100;
    let target = Target::parse(url).expect("the server's address");
    let mut client = Client::new(&target, Protocol::Connect, Some(ADMIN_KEY)).expect("a client");
    for (filter, order_by) in [
        ("", ""),
        ("status:online", ""),
        ("cpu_usage:>80 AND memory_usage:>90", ""),
        ("", "last_seen DESC"),
        ("status:online", "cpu_usage DESC, memory_usage DESC"),
    ] {
        let mut page_token = String::new();
        let mut times = Vec::with_capacity(LISTS);
        for _ in 0..LISTS {
            let (filter, order_by) = (filter.to_owned(), order_by.to_owned());
            let request = ListDevicesRequest { page_size: 100, page_token, filter, order_by };
            let asked = Instant::now();
            let page = client.list_devices(&request).await.expect("a page").message;
            times.push(asked.elapsed());
            page_token = page.next_page_token;
        }
        times.sort_unstable();
        let millis = |at: usize| times[at].as_secs_f64() * 1e3;
        println!("list {filter} | {order_by}: p50 {:.1} ms, p99 {:.1} ms", millis(LISTS / 2), millis(LISTS * 99 / 100));
    }
}

struct Server {
    process: Child,
    url: String,
}

impl Server {
    fn start(data_dir: &Path) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_fleetd"))
            .args(["serve", "--listen", "127.0.0.1:0", "--engine-listen", "127.0.0.1:0", "--data-dir"])
            .arg(data_dir)
            .env("FLEETD_ADMIN_KEY", ADMIN_KEY)
            .env("FLEETD_LOG", "warn")
            .stdout(Stdio::piped())
            .spawn()
            .expect("the server starts");
        let mut line = String::new();
        let stdout = process.stdout.take().expect("piped");
        BufReader::new(stdout).read_line(&mut line).expect("the ready line");
        let url = line.split("http=").nth(1).and_then(|rest| rest.split(' ').next()).expect("a ready line").to_owned();
        Self { process, url }
    }

    fn resident_mib(&self) -> f64 {
        // What the allocator holds back settles within a moment.
        std::thread::sleep(Duration::from_secs(2));
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).expect("a live process");
        let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a resident size");
        kib.trim().trim_end_matches(" kB").parse::<f64>().expect("a number") / 1024.0
    }

    fn stop(&mut self) {
        self.process.kill().expect("it ran");
        self.process.wait().expect("it ends");
    }
}
