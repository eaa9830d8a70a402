//! What the registry costs: registrations from many callers and in bulk, the load of a start, reads and memory.
//!
//! `cargo bench --bench store` works at a million devices; `cargo bench --bench store -- 100000` at fewer. The
//! directory is a fresh one below the target folder (not /tmp, which may be memory): an fsync has to cost what it
//! costs.
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::Instant;

use fleetd::auth::rate_limit::{Gcra, RateLimit};
use fleetd::auth::{credential, ApiKey, KeyHash, KeyKind};
use fleetd::ids::DeviceId;
use fleetd::store::{sqlite, Device, LastSeen, Store, UnixMillis};

fn main() {
    let devices = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(1_000_000);
    let directory = tempfile::Builder::new().prefix("bench-store-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let store = sqlite::open(directory.path()).unwrap();

    for callers in [1, 64, 512] {
        let count = if callers == 1 { 2_000 } else { 50_000.min(devices) };
        runtime.block_on(register_one_by_one(&store, callers, count));
    }
    runtime.block_on(register_in_bulk(&store, devices));
    drop(store);
    println!("file                            {:>9.0} MB", file_size(directory.path()) / 1e6);

    let start = Instant::now();
    let store = sqlite::open(directory.path()).unwrap();
    println!("open                            {:>9.1} ms", start.elapsed().as_secs_f64() * 1e3);
    load(&store);
    runtime.block_on(read(&store, devices));
    runtime.block_on(touch(&store, devices));
    println!("resident memory at the end      {:>9.0} MB", resident_bytes() / 1e6);
    keys_and_limits();
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
