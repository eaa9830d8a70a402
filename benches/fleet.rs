//! The fleet index at a million devices: what a list takes, what a device weighs, and what heartbeats lose while lists
//! run. Prints the figures of docs/performance.md.
//!
//! ```text
//! cargo bench --bench fleet                 # 1,000,000 devices
//! FLEETD_BENCH_DEVICES=100000 cargo bench --bench fleet
//! ```
//!
//! In one process, through the code that the server runs: heartbeats through the directory, the actors and the journal
//! on two arbiters; lists through `FleetQueries`. `cargo bench --bench million` asks the same of the whole server.
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix_rt::{Arbiter, System};
use fleetd::actors::directory::DeviceDirectory;
use fleetd::actors::entry::DeviceEntry;
use fleetd::auth::KeyHash;
use fleetd::clock::UnixMillis;
use fleetd::events::Events;
use fleetd::fleet::FleetQueries;
use fleetd::ids::DeviceId;
use fleetd::query::{Filter, OrderBy};
use fleetd::store::Device;
use fleetd::telemetry::journal::{Journal, JournalOptions, SyncMode};
use fleetd_proto::v1::{DeviceStatus, HeartbeatRequest, SystemInfo, SystemStats};
use prost::Message as _;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const PAGE: usize = 100;
/// Lists of each case that are timed.
const LISTS: usize = 200;
/// Long enough that no device goes late while this runs.
const INTERVAL: Duration = Duration::from_secs(86_400);
/// Workers, as the server has them on two cores, and heartbeats under way on each.
const ARBITERS: usize = 2;
const LANES: usize = 64;
/// Length of one round of heartbeats, and rounds of each kind.
const ROUND: Duration = Duration::from_secs(3);
const ROUNDS: usize = 4;
/// A busy console: lists a second of the rounds that are paced.
const LISTS_A_SECOND: u64 = 10;

/// Filter and order of the lists that have a target, then of dearer ones.
const CASES: [(&str, &str); 5] = [
    ("", ""),
    ("status:online", ""),
    ("cpu_usage:>80 AND memory_usage:>90", ""),
    ("", "last_seen DESC"),
    ("status:online", "cpu_usage DESC, memory_usage DESC"),
];
const DEARER: [(&str, &str); 10] = [
    ("", "registered_at DESC"),
    ("", "id DESC"),
    ("type:gateway", "name"),
    ("", "version DESC"),
    ("labels.ring:3", ""),
    ("metadata.location:berlin", "last_seen DESC"),
    ("name:*99*", ""),
    ("id:*99*", ""),
    ("metrics.queue_depth:>50", ""),
    ("temperature_celsius:>40", "temperature_celsius DESC"),
];

fn main() {
    let devices = std::env::var("FLEETD_BENCH_DEVICES").map_or(1_000_000, |n| n.parse().expect("a number of devices"));
    System::new().block_on(async move {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let options = JournalOptions {
            sync: SyncMode::Never,
            // Nobody reads it here, so it must hold all heartbeats of the run.
            capacity_bytes: 32 << 30,
            ..JournalOptions::new(folder.path())
        };
        let (journal, _) = Journal::open(options).expect("a new journal");
        let directory = DeviceDirectory::new(journal.clone(), Events::new(journal), INTERVAL);
        let bench = Bench::fill(directory, devices);
        bench.first_heartbeats().await;
        bench.lists().await;
        bench.both().await;
    });
}

struct Bench {
    directory: DeviceDirectory,
    queries: FleetQueries,
    entries: Arc<Vec<Arc<DeviceEntry>>>,
    arbiters: Vec<Arbiter>,
}

impl Bench {
    fn fill(directory: DeviceDirectory, devices: usize) -> Self {
        let (before, started) = (resident(), Instant::now());
        for number in 0..devices {
            let device = device(number);
            let entry = DeviceEntry::new(device.id.clone(), device.key_hash, (&device).into());
            directory.admit(entry, &(&device).into());
        }
        let took = started.elapsed().as_secs_f64();
        println!("{devices} devices admitted and indexed in {took:.2} s");
        println!("a registered device (entry and row)   {:6.0} bytes", per_device(before, devices));
        let find = |number| directory.find(&device_id(number)).expect("just admitted");
        let entries = Arc::new((0..devices).map(find).collect());
        let queries = FleetQueries::start(directory.fleet().clone()).expect("threads");
        Self { directory, queries, entries, arbiters: (0..ARBITERS).map(|_| Arbiter::new()).collect() }
    }

    /// Brings every device to life.
    async fn first_heartbeats(&self) {
        let (before, started) = (resident(), Instant::now());
        let sent = self.heartbeats(|lane, turn, devices| {
            let number = lane + turn * ARBITERS * LANES;
            (number < devices).then_some(number)
        });
        let count = sent.await;
        let took = started.elapsed().as_secs_f64();
        println!("one heartbeat each in {took:.1} s ({:.0}/s)", count as f64 / took);
        println!("what a live one has beside (actor, report) {:6.0} bytes", per_device(before, count as usize));
    }

    async fn lists(&self) {
        println!(
            "\n{:<74} {:>9} {:>8} {:>8} {:>8}",
            "page of 100, alone (filter | order)", "matching", "p50 ms", "p99 ms", "max ms"
        );
        for (filter, order) in CASES.into_iter().chain(DEARER) {
            let mut times = Vec::with_capacity(LISTS);
            let mut matching = 0;
            for _ in 0..LISTS {
                let asked = Instant::now();
                matching = self.list(filter, order).await;
                times.push(asked.elapsed());
            }
            let [p50, p99, max] = quantiles(&mut times);
            println!("{:<74} {matching:>9} {p50:>8.1} {p99:>8.1} {max:>8.1}", format!("{filter} | {order}"));
        }
    }

    /// Heartbeats with and without lists beside them, in turns.
    async fn both(&self) {
        println!(
            "\n{:<40} {:>14} {:>10} {:>10} {:>10}",
            "heartbeats through the directory", "heartbeats/s", "lists/s", "p50 ms", "p99 ms"
        );
        let mut rates = BTreeMap::<_, Vec<f64>>::new();
        // The first turn warms up and does not count.
        for round in 0..=ROUNDS {
            for (name, pause) in [
                ("a: alone", None),
                ("b: lists, ten a second", Some(Duration::from_millis(1_000 / LISTS_A_SECOND))),
                ("c: lists, one after the other", Some(Duration::ZERO)),
            ] {
                let is_over = Arc::new(AtomicBool::new(false));
                let lister = async {
                    let (mut times, mut at) = (Vec::new(), 0);
                    while let (Some(pause), false) = (pause, is_over.load(Ordering::Relaxed)) {
                        let (filter, order) = CASES[at % CASES.len()];
                        let asked = Instant::now();
                        self.list(filter, order).await;
                        times.push(asked.elapsed());
                        at += 1;
                        tokio::time::sleep(pause.saturating_sub(asked.elapsed())).await;
                    }
                    times
                };
                let started = Instant::now();
                let heartbeats = async {
                    let devices = self.entries.len();
                    let count = self
                        .heartbeats(move |lane, turn, _| {
                            let number = (lane + turn * ARBITERS * LANES) % devices;
                            // Of the same arbiter, whose actors these are.
                            (started.elapsed() < ROUND).then_some(number)
                        })
                        .await;
                    is_over.store(true, Ordering::Relaxed);
                    count
                };
                let (count, mut times) = futures_util::future::join(heartbeats, lister).await;
                let (rate, lists) = (count as f64 / started.elapsed().as_secs_f64(), times.len());
                if round == 0 {
                    continue;
                }
                rates.entry(name).or_default().push(rate);
                let [p50, p99, _] = quantiles(&mut times);
                let lists = lists as f64 / started.elapsed().as_secs_f64();
                println!("{name:<40} {rate:>14.0} {lists:>10.1} {p50:>10.1} {p99:>10.1}");
            }
        }
        let mean = |name| rates[name].iter().sum::<f64>() / ROUNDS as f64;
        let alone = mean("a: alone");
        for name in ["b: lists, ten a second", "c: lists, one after the other"] {
            println!("{name}: {:.0} % of the heartbeats without", 100.0 * mean(name) / alone);
        }
    }

    async fn list(&self, filter: &str, order: &str) -> usize {
        let filter = Filter::parse(filter, UnixMillis::now()).expect("a valid filter");
        let order = OrderBy::parse(order).expect("a valid order");
        self.queries.page(filter, order, None, PAGE).await.expect("an answer").total
    }

    /// Sends heartbeats on all lanes of all arbiters; `next` names the device of a lane's turn, until it names none.
    /// How many were acknowledged.
    async fn heartbeats(&self, next: impl Fn(usize, usize, usize) -> Option<usize> + Clone + Send + 'static) -> u64 {
        let acknowledged = Arc::new(AtomicU64::new(0));
        let mut lanes = Vec::new();
        for lane in 0..ARBITERS * LANES {
            let (directory, entries) = (self.directory.clone(), Arc::clone(&self.entries));
            let (acknowledged, next) = (Arc::clone(&acknowledged), next.clone());
            let (done, is_done) = tokio::sync::oneshot::channel();
            self.arbiters[lane % ARBITERS].spawn(async move {
                let mut turn = 0;
                while let Some(number) = next(lane, turn, entries.len()) {
                    let heartbeat = heartbeat(number, turn);
                    let taken =
                        directory.heartbeat(&entries[number], heartbeat, UnixMillis::now()).await.expect("taken");
                    taken.ticket.committed().await.expect("committed");
                    acknowledged.fetch_add(1, Ordering::Relaxed);
                    turn += 1;
                }
                let _ = done.send(());
            });
            lanes.push(is_done);
        }
        futures_util::future::join_all(lanes).await;
        acknowledged.load(Ordering::Relaxed)
    }
}

fn device_id(number: usize) -> String {
    format!("device-{number:07}")
}

/// A device as operators register them.
fn device(number: usize) -> Device {
    let id = device_id(number);
    let system = SystemInfo {
        os: "Linux".into(),
        arch: ["arm64", "x86_64"][number % 2].into(),
        cpu_cores: 4,
        memory_mb: 4_096,
        disk_gb: 32.0,
        hardware_model: ["Raspberry Pi 4 Model B Rev 1.5", "Raspberry Pi 5"][number % 2].into(),
        ..SystemInfo::default()
    };
    Device {
        name: format!("Device {number}"),
        device_type: ["raspberry-pi", "esp32", "gateway"][number % 3].into(),
        version: format!("1.{}.0", number % 5),
        metadata: [("location".to_owned(), ["berlin", "osaka", "lagos", "lima"][number % 4].to_owned())].into(),
        labels: [("ring".to_owned(), (number % 10).to_string())].into(),
        system_info: system.encode_to_vec().into(),
        registered_at: UnixMillis::from_millis_clamped(1_700_000_000_000 + number as i64),
        last_seen: None,
        key_hash: KeyHash::of(&id),
        revision: 1,
        maintenance: false,
        heartbeat_interval: None,
        id: DeviceId::parse(&id).expect("a valid id"),
    }
}

fn heartbeat(number: usize, turn: usize) -> HeartbeatRequest {
    // A different load each time, spread evenly.
    let spread = |salt: usize| ((number + turn) * salt % 1_000) as f64 / 10.0;
    HeartbeatRequest {
        device_id: device_id(number),
        status: Some(DeviceStatus { state: 1, uptime_seconds: 3_600 + turn as u64, ..DeviceStatus::default() }),
        stats: Some(SystemStats {
            cpu_percent: spread(7_919),
            memory_used_mb: (spread(104_729) * 40.0) as u64,
            disk_used_gb: 10.5,
            temperature_celsius: Some(spread(31)),
            metrics: [("queue_depth".to_owned(), spread(17))].into(),
            ..SystemStats::default()
        }),
        ..HeartbeatRequest::default()
    }
}

/// The median, the 99th percentile and the most, in milliseconds.
fn quantiles(times: &mut [Duration]) -> [f64; 3] {
    times.sort_unstable();
    [0.5, 0.99, 1.0].map(|share| {
        let at = ((times.len() as f64 * share) as usize).min(times.len().saturating_sub(1));
        times.get(at).map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
    })
}

fn resident() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("this process's status");
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a resident size");
    kib.trim().trim_end_matches(" kB").parse::<f64>().expect("a number") * 1024.0
}

fn per_device(before: f64, devices: usize) -> f64 {
    (resident() - before) / devices.max(1) as f64
}
