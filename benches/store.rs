//! What the registry costs: registrations from many callers and in bulk, the load of a start, reads and memory; and
//! the same of a deployment.
//!
//! `cargo bench --bench store` works at a million devices; `cargo bench --bench store -- 100000` at fewer, and
//! `cargo bench --bench store -- deployments` leaves out all but the deployment. The
//! directory is a fresh one below the target folder (not /tmp, which may be memory): an fsync has to cost what it
//! costs.
use std::cell::Cell;
use std::future::Future;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::Instant;

use fleetd::auth::rate_limit::{Gcra, RateLimit};
use fleetd::auth::{credential, ApiKey, KeyHash, KeyKind};
use fleetd::ids::DeviceId;
use fleetd::store::{
    sqlite, DeploymentChange, DeploymentDevice, DeploymentDeviceQuery, Device, LastSeen, NewDeployment, Store,
    UnixMillis,
};

fn main() {
    let devices = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(1_000_000);
    let directory = tempfile::Builder::new().prefix("bench-store-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    if !std::env::args().any(|argument| argument == "deployments") {
        registry(&runtime, directory.path(), devices);
        keys_and_limits();
    }
    deployments(&runtime, directory.path(), devices);
}

fn registry(runtime: &tokio::runtime::Runtime, directory: &Path, devices: usize) {
    let store = sqlite::open(directory).unwrap();
    for callers in [1, 64, 512] {
        let count = if callers == 1 { 2_000 } else { 50_000.min(devices) };
        runtime.block_on(register_one_by_one(&store, callers, count));
    }
    runtime.block_on(register_in_bulk(&store, devices));
    drop(store);
    println!("file                            {:>9.0} MB", file_size(directory) / 1e6);

    let start = Instant::now();
    let store = sqlite::open(directory).unwrap();
    println!("open                            {:>9.1} ms", start.elapsed().as_secs_f64() * 1e3);
    load(&store);
    runtime.block_on(read(&store, devices));
    runtime.block_on(touch(&store, devices));
    println!("resident memory at the end      {:>9.0} MB", resident_bytes() / 1e6);
}

fn deployments(runtime: &tokio::runtime::Runtime, directory: &Path, devices: usize) {
    let store = sqlite::open(directory).unwrap();
    let before = file_size(directory);
    let id = runtime.block_on(keep_deployment(&store, devices));
    drop(store);
    let grown = file_size(directory) - before;
    println!("deployment, in the file         {:>9.0} MB   {:.0} bytes a device", grown / 1e6, grown / devices as f64);

    let store = sqlite::open(directory).unwrap();
    let start = Instant::now();
    let mut bytes = 0;
    let count = store.for_each_deployment_device(&id, &mut |device| bytes += device.record.len()).unwrap();
    assert_eq!((count, bytes), (devices as u64, 32 * devices));
    println!("for_each_deployment_device      {:>9.2} s", start.elapsed().as_secs_f64());

    let mut place = 0;
    for (savers, together, seconds) in [(1, 1, 5.0), (1, 50, 5.0), (16, 1, 5.0), (16, 50, 5.0)] {
        runtime.block_on(save(&store, &id, devices, (savers, together), seconds, &mut place));
    }
    let start = Instant::now();
    let large = 100_000.min(devices - place);
    let changed = (place..place + large).map(|place| member(place, devices, 9)).collect();
    runtime.block_on(store.save_deployment(change(&id, changed))).unwrap();
    println!("save, {large:>6} devices at once     {:>9.2} s", start.elapsed().as_secs_f64());
    runtime.block_on(read_deployment(&store, &id, devices));
}

/// A device of a deployment; places and ids are in different orders, as waves make them.
fn member(place: usize, devices: usize, state: i32) -> DeploymentDevice {
    DeploymentDevice {
        place: place as u32,
        device_id: DeviceId::parse(&format!("bulk-{:07}", place * 7_919 % devices)).unwrap(),
        state,
        record: vec![7; 32].into(),
        from_version: "1.0.0".to_owned(),
        message: String::new(),
        offered_at: None,
        updated_at: UnixMillis::now(),
    }
}

fn change(id: &str, devices: Vec<DeploymentDevice>) -> DeploymentChange {
    DeploymentChange {
        deployment_id: id.to_owned(),
        state: 3,
        head: vec![7; 1_000].into(),
        started_at: Some(UnixMillis::EPOCH),
        finished_at: None,
        devices,
        attempts: Vec::new(),
    }
}

/// Meanwhile a lone caller writes one setting after the other, and says how long the longest took.
async fn keep_deployment(store: &Arc<dyn Store>, count: usize) -> String {
    let before = store.stats().transactions;
    let deployment = NewDeployment {
        update_id: "update-001".to_owned(),
        request_id: String::new(),
        created_by: "admin".to_owned(),
        config: vec![7; 1_000].into(),
        device_filter: String::new(),
        created_at: UnixMillis::now(),
        state: 1,
        head: vec![7; 1_000].into(),
    };
    let devices = (0..count).map(|place| member(place, count, 1)).collect();
    let start = Instant::now();
    let mut create = store.create_deployment(deployment, devices);
    let (writes, longest) = (Cell::new(0), Cell::new(0.0_f64));
    let other = async {
        loop {
            let start = Instant::now();
            // Another value each time: one that stays the same costs no fsync.
            store.set_setting("n", vec![writes.get() as u8]).await.unwrap();
            writes.set(writes.get() + 1);
            longest.set(longest.get().max(start.elapsed().as_secs_f64()));
        }
    };
    let mut other = std::pin::pin!(other);
    let (record, _) = std::future::poll_fn(|context| {
        let created = create.as_mut().poll(context);
        let _: std::task::Poll<()> = other.as_mut().poll(context);
        created
    })
    .await
    .unwrap();
    println!(
        "create_deployment, {count:>7}      {:>9.2} s   {} transactions, {} other writes between, {:.0} ms the longest",
        start.elapsed().as_secs_f64(),
        store.stats().transactions - before,
        writes.get(),
        longest.get() * 1e3,
    );
    record.id
}

/// Each of `savers` saves a step of `together` devices after the other. Each device goes from state 1 to 9 by its own
/// step, as one that is updated does, while `max_parallel` others are on their way.
async fn save(
    store: &Arc<dyn Store>,
    id: &str,
    devices: usize,
    (savers, together): (usize, usize),
    seconds: f64,
    first: &mut usize,
) {
    const STATES: usize = 9;
    let before = store.stats().transactions;
    let next = AtomicUsize::new(0);
    let start = Instant::now();
    let (base, parallel) = (*first, 1_000.min(devices / 8).max(together));
    let work = (0..savers).map(|_| async {
        while start.elapsed().as_secs_f64() < seconds {
            let step = next.fetch_add(1, Ordering::Relaxed);
            let changed = (step * together..(step + 1) * together).map(|n| {
                let (batch, state) = (n / (parallel * STATES), n / parallel % STATES);
                member((base + batch * parallel + n % parallel) % devices, devices, state as i32 + 1)
            });
            store.save_deployment(change(id, changed.collect())).await.unwrap();
        }
    });
    futures_util::future::join_all(work).await;
    let seconds = start.elapsed().as_secs_f64();
    let saves = next.load(Ordering::Relaxed);
    *first = (base + (saves * together / (parallel * STATES) + 1) * parallel) % devices;
    println!(
        "save, {together:>2} devices, {savers:>2} at a time    {:>9.0} /s   {:.0} devices/s, {:.2} ms a transaction",
        saves as f64 / seconds,
        (saves * together) as f64 / seconds,
        seconds * 1e3 / (store.stats().transactions - before) as f64,
    );
}

async fn read_deployment(store: &Arc<dyn Store>, id: &str, devices: usize) {
    let time = |name: &'static str, times: usize, start: Instant| {
        println!("{name:<32}{:>9.1} µs", start.elapsed().as_secs_f64() * 1e6 / times as f64);
    };
    for (name, states) in [("deployment_devices, page of 100", vec![]), ("  of them in three states", vec![1, 5, 9])] {
        let mut query = DeploymentDeviceQuery { deployment_id: id.to_owned(), states, after: None, limit: 100 };
        let start = Instant::now();
        for _ in 0..200 {
            let page = store.deployment_devices(query.clone()).await.unwrap();
            query.after = page.items.last().map(|device| device.device_id.to_string());
        }
        time(name, 200, start);
    }
    let start = Instant::now();
    for n in 0..10_000 {
        let device = DeviceId::parse(&format!("bulk-{:07}", n * 7_919 % devices)).unwrap();
        assert!(store.deployment_device(id, &device).await.unwrap().is_some());
    }
    time("deployment_device", 10_000, start);
    let start = Instant::now();
    for n in 0..10_000 {
        let device = DeviceId::parse(&format!("bulk-{:07}", n * 7_919 % devices)).unwrap();
        assert!(store.last_deployment_of(&device).await.unwrap().is_some());
    }
    time("last_deployment_of", 10_000, start);
    let stranger = DeviceId::parse("stranger").unwrap();
    let start = Instant::now();
    for _ in 0..1_000 {
        assert!(store.last_deployment_of(&stranger).await.unwrap().is_none());
    }
    time("last_deployment_of a stranger", 1_000, start);
}

fn device(name: &str) -> Device {
    let map = |pairs: &[(&str, &str)]| pairs.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())).collect();
    Device {
        id: DeviceId::parse(name).unwrap(),
        name: format!("Raspberry Pi {name}"),
        device_type: "raspberry-pi".to_owned(),
        version: "1.0.0".to_owned(),
        metadata: map(&[("location", "datacenter-1"), ("rack", "r17"), ("owner", "team-sensors")]),
        labels: map(&[("ring", "stable")]),
        system_info: vec![7; 48].into(),
        registered_at: UnixMillis::now(),
        last_seen: None,
        key_hash: KeyHash::of(name),
        revision: 1,
        maintenance: false,
        heartbeat_interval: None,
    }
}

/// Each of `callers` registers one device after another, as clients of the RPC do.
async fn register_one_by_one(store: &Arc<dyn Store>, callers: usize, count: usize) {
    let before = store.stats();
    let next = AtomicUsize::new(0);
    let start = Instant::now();
    let work = (0..callers).map(|_| async {
        loop {
            let n = next.fetch_add(1, Ordering::Relaxed);
            if n >= count {
                return;
            }
            store.register(device(&format!("single-{callers}-{n}"))).await.unwrap();
        }
    });
    futures_util::future::join_all(work).await;
    let seconds = start.elapsed().as_secs_f64();
    let transactions = store.stats().transactions - before.transactions;
    println!(
        "register, {callers:>3} callers           {:>9.0} /s   {transactions} transactions of {:.1} writes, {:.2} ms each",
        count as f64 / seconds,
        count as f64 / transactions as f64,
        seconds * 1e3 / transactions as f64,
    );
}

async fn register_in_bulk(store: &Arc<dyn Store>, count: usize) {
    let before = store.stats();
    let start = Instant::now();
    for first in (0..count).step_by(10_000) {
        let batch = (first..count.min(first + 10_000)).map(|n| device(&format!("bulk-{n:07}"))).collect();
        for result in store.register_many(batch).await {
            result.unwrap();
        }
    }
    let transactions = store.stats().transactions - before.transactions;
    println!(
        "register_many, {count:>7} devices  {:>9.0} /s   {transactions} transactions",
        count as f64 / start.elapsed().as_secs_f64()
    );
}

fn load(store: &Arc<dyn Store>) {
    let start = Instant::now();
    let mut bytes = 0;
    let count = store.for_each_device(&mut |row| bytes += row.id.len()).unwrap();
    println!("for_each_device, {count:>7} rows   {:>9.2} s", start.elapsed().as_secs_f64());

    let before = resident_bytes();
    let start = Instant::now();
    let mut index = Vec::with_capacity(count as usize);
    store.for_each_device(&mut |row| index.push((DeviceId::parse(row.id).unwrap(), row.key_hash))).unwrap();
    println!(
        "  keeping ids and key hashes    {:>9.2} s   {:.0} MB for them ({} bytes of ids)",
        start.elapsed().as_secs_f64(),
        (resident_bytes() - before) / 1e6,
        bytes,
    );
    assert_eq!(index.len(), count as usize);
}

async fn read(store: &Arc<dyn Store>, devices: usize) {
    let time = |name: &'static str, times: usize, start: Instant| {
        println!("{name:<32}{:>9.1} µs", start.elapsed().as_secs_f64() * 1e6 / times as f64);
    };
    let start = Instant::now();
    for n in 0..10_000 {
        let id = DeviceId::parse(&format!("bulk-{:07}", n * 7_919 % devices)).unwrap();
        assert!(store.device(&id).await.unwrap().is_some());
    }
    time("device", 10_000, start);
    let start = Instant::now();
    for n in 0..10_000 {
        let key = KeyHash::of(&format!("bulk-{:07}", n * 7_919 % devices));
        assert!(store.device_of_key(&key).await.unwrap().is_some());
    }
    time("device_of_key", 10_000, start);
    let start = Instant::now();
    let mut after = None;
    for _ in 0..500 {
        let page = store.list(after.as_deref(), 100).await.unwrap();
        after = page.last().map(|device| device.id.to_string());
    }
    time("list, page of 100", 500, start);
    let start = Instant::now();
    for _ in 0..5 {
        store.count().await.unwrap();
    }
    time("count", 5, start);
}

async fn touch(store: &Arc<dyn Store>, devices: usize) {
    let seen = (0..devices)
        .map(|n| LastSeen {
            device: DeviceId::parse(&format!("bulk-{n:07}")).unwrap(),
            at: UnixMillis::now(),
            is_late: false,
            is_offline: true,
        })
        .collect();
    let start = Instant::now();
    store.touch(seen).await.unwrap();
    println!("touch                           {:>9.0} /s", devices as f64 / start.elapsed().as_secs_f64());
}

/// What every heartbeat pays before its actor sees it.
fn keys_and_limits() {
    const TIMES: u32 = 1_000_000;
    let key = ApiKey::generate(KeyKind::Device).unwrap();
    let header = format!("Bearer {}", key.expose());
    let expected = key.hash();
    let start = Instant::now();
    for _ in 0..TIMES {
        let header = std::hint::black_box(header.as_bytes());
        let credential = credential::from_headers([header], []).unwrap().unwrap();
        assert!(*credential.hash() == expected);
    }
    println!("header to compared hash         {:>9.0} ns", start.elapsed().as_nanos() as f64 / f64::from(TIMES));

    let limit = RateLimit::per_second(u32::MAX).unwrap();
    let bucket = Gcra::default();
    let start = Instant::now();
    for _ in 0..TIMES {
        assert!(std::hint::black_box(&bucket).check(&limit, fleetd::clock::monotonic_nanos()).is_allowed());
    }
    println!("rate limit, with the clock      {:>9.0} ns", start.elapsed().as_nanos() as f64 / f64::from(TIMES));
}

fn file_size(directory: &Path) -> f64 {
    std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum::<u64>() as f64
}

/// Resident memory of this process from `/proc`, or 0 where there is none.
fn resident_bytes() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0 kB");
    line.trim().trim_end_matches(" kB").parse::<f64>().unwrap_or(0.0) * 1024.0
}
