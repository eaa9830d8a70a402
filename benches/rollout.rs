//! What a decision costs: loading a deployment of a million devices, events a second at a thousand and at a million
//! devices (which must be about equal), and the memory of a device. Prints the figures of docs/performance.md.
//!
//! ```text
//! cargo bench --bench rollout
//! ```
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use fleetd::clock::UnixMillis;
use fleetd::rollout::{
    DeviceState, Event, Head, InitialDevice, InitialWave, Now, Place, Policy, Reachability, Record, Rollout, Runs,
    Standing,
};
use fleetd_proto::v1::rollout_policy::{Joiners, OnBreach};
use fleetd_proto::v1::update_progress::State as Said;
use fleetd_proto::v1::update_strategy::Type as Strategy;

/// Counts the bytes that are held.
struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);

// SAFETY: passes everything on to the system's allocator, and only counts.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        HELD.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: as promised by the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as promised by the caller.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const MILLION: usize = 1_000_000;
/// Events of each measurement.
const EVENTS: usize = 1_000_000;
/// Places that are asked for at once, as the coordinator does.
const LIMIT: usize = 1_024;

fn main() {
    let before = HELD.load(Ordering::Relaxed);
    let start = Instant::now();
    let rollout = deployment(MILLION);
    println!("new, {MILLION} devices: {:?}", start.elapsed());
    let held = HELD.load(Ordering::Relaxed) - before;
    println!("memory: {:.1} bytes a device", held as f64 / MILLION as f64);

    let head = rollout.head().encode();
    let records: Vec<_> = (0..MILLION as Place).map(|place| rollout.record(place).encode()).collect();
    let start = Instant::now();
    let decoded: Vec<Record> = records.iter().map(|record| Record::decode(record).expect("a record")).collect();
    let decoding = start.elapsed();
    let start = Instant::now();
    let loaded = Rollout::load(policy(), Head::decode(&head).expect("a head"), decoded);
    println!("load, {MILLION} devices: {:?}, and {decoding:?} to decode the records", start.elapsed());
    println!("head: {} bytes", head.len());
    drop((rollout, loaded, records));

    for devices in [1_000, MILLION] {
        // Small ones are over soon: as many of them as it takes.
        let (mut events, mut spent, mut saves) = (0, Duration::ZERO, Saves::default());
        while events < EVENTS {
            let (more, took) = run(devices, EVENTS - events, &mut saves);
            events += more;
            spent += took;
        }
        println!(
            "{devices} devices: {:.0} events a second, {:.0} ns each; encoding a head takes {:?}",
            events as f64 / spent.as_secs_f64(),
            spent.as_nanos() as f64 / events as f64,
            saves.spent / saves.count.max(1),
        );
    }
}

#[derive(Default)]
struct Saves {
    count: u32,
    spent: Duration,
}

/// Updates devices of a new deployment until it is over, or so many events were applied: how many, and how long `apply`
/// and `wanted` took.
fn run(devices: usize, events: usize, saves: &mut Saves) -> (usize, Duration) {
    let mut rollout = deployment(devices);
    let mut now = Now { watched: 0, wall: UnixMillis::from_unix_seconds(1_800_000_000) };
    let mut count = 0;
    let start = Instant::now();
    let mut saving = Duration::ZERO;
    while count < events && !rollout.is_final() {
        now.watched += 1_000;
        let mut apply = |rollout: &mut Rollout, event| {
            count += 1;
            let _ = rollout.apply(event, now);
        };
        apply(&mut rollout, Event::Tick);
        for place in rollout.wanted(now, LIMIT) {
            let record = rollout.record(place);
            // A quarter is offline; the others show the version once they said that they have it.
            let is_online = place % 4 != 0;
            let runs = if record.state() == DeviceState::Confirming { Runs::Target } else { Runs::Before };
            let reachability = if is_online { Reachability::Online } else { Reachability::Offline };
            let silent_for = Some(0);
            let standing = Standing { reachability, silent_for, runs, is_window_open: true, is_taken: false };
            apply(&mut rollout, Event::Standing { place, standing });
        }
        for place in rollout.active_places() {
            let record = rollout.record(place);
            let state = match record.state() {
                DeviceState::Offered => Said::Accepted,
                DeviceState::Accepted => Said::Downloading,
                DeviceState::Downloading => Said::Installing,
                DeviceState::Installing if place % 100 == 1 => Said::Failed,
                DeviceState::Installing => Said::Succeeded,
                _ => continue,
            };
            apply(&mut rollout, Event::Report { place, attempt: record.attempt(), state });
        }
        let _ = rollout.take_effects();
        let saved = Instant::now();
        let _ = rollout.head().encode();
        saves.count += 1;
        saving += saved.elapsed();
    }
    saves.spent += saving;
    (count, start.elapsed() - saving)
}

fn deployment(devices: usize) -> Rollout {
    let waves = ["canary", "early", "rest"];
    let wave =
        |name: &&str| InitialWave { name: (*name).into(), soak: Duration::ZERO, gates: Vec::new(), auto_promote: true };
    let place = |place: usize| {
        let wave = u16::from(place >= devices / 100) + u16::from(place >= devices / 10);
        InitialDevice { wave, state: DeviceState::Queued }
    };
    let now = Now { watched: 0, wall: UnixMillis::from_unix_seconds(1_800_000_000) };
    Rollout::new(policy(), waves.iter().map(wave).collect(), (0..devices).map(place).collect(), now)
}

fn policy() -> Policy {
    Policy {
        strategy: Strategy::Waves,
        max_parallel: 200,
        max_failure_percentage: 100.0,
        canary_percentage: 1.0,
        validation_duration: Duration::ZERO,
        auto_promote: true,
        waves: Vec::new(),
        min_attempted: 10,
        accept_timeout: Duration::from_secs(600),
        finish_timeout: Duration::from_secs(3_600),
        confirm_duration: Duration::ZERO,
        vanish_timeout: Duration::from_secs(1_800),
        max_attempts: 2,
        retry_backoff: Duration::from_secs(30),
        max_retry_backoff: Duration::from_secs(60),
        joiners: Joiners::Include,
        on_breach: OnBreach::Pause,
        require_approval: false,
        windows: Vec::new(),
        gates: Vec::new(),
        control_percentage: 0.0,
        stratify_labels: Vec::new(),
        start_spread: Duration::ZERO,
        deadline: None,
        offline_grace: Duration::ZERO,
        seed: 1,
        start_at: None,
        supersede: false,
    }
}
