//! What a plan of a deployment costs over a million devices: the survey of the fleet index and the plan itself, on the
//! query threads and at their low priority, as DeployUpdate and PlanDeployment run them. Prints the figures of
//! docs/performance.md.
//!
//! ```text
//! cargo bench --bench plan                  # 1,000,000 devices
//! FLEETD_BENCH_DEVICES=100000 cargo bench --bench plan
//! ```
use std::sync::Arc;
use std::time::{Duration, Instant};

use fleetd::actors::entry::DeviceEntry;
use fleetd::auth::KeyHash;
use fleetd::clock::UnixMillis;
use fleetd::fleet::{FleetIndex, FleetQueries, SurveyRequest};
use fleetd::ids::DeviceId;
use fleetd::query::Filter;
use fleetd::rollout::{Defaults, Plan, Policy, Targets as _};
use fleetd::store::Device;
use fleetd_proto::v1::update_strategy::Type as Strategy;
use fleetd_proto::v1::{wave_spec, Artifact, DeploymentConfig, RolloutPolicy, SystemInfo, UpdateStrategy, WaveSpec};
use prost::Message as _;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ROUNDS: usize = 7;
const INTERVAL: Duration = Duration::from_secs(30);

fn main() {
    let devices = std::env::var("FLEETD_BENCH_DEVICES").ok().and_then(|text| text.parse().ok()).unwrap_or(1_000_000);
    let index = FleetIndex::new(INTERVAL);
    let entries: Vec<_> = (0..devices).map(|number| insert(&index, number)).collect();
    let queries = FleetQueries::start(index).expect("threads");
    println!(
        "{devices} devices; ms, the median of {ROUNDS}: processor time, and wall time with the wait for the thread\n"
    );
    println!("{:<44} {:>8} {:>8} {:>8} {:>8} {:>8}", "", "targets", "survey", "plan", "wall", "longest");
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    for (name, filter, named, config) in cases() {
        let named = if named { entries.iter().step_by(10).cloned().collect() } else { Vec::new() };
        runtime.block_on(time(&queries, name, filter, &named, &config));
    }
}

fn cases() -> Vec<(&'static str, &'static str, bool, DeploymentConfig)> {
    let config = |strategy: Strategy| DeploymentConfig { strategy: strategy as i32, ..DeploymentConfig::default() };
    let stratified = RolloutPolicy {
        control_percentage: Some(10.0),
        stratify_labels: vec!["ring".into(), "site".into()],
        ..RolloutPolicy::default()
    };
    let wave = |ring: usize| WaveSpec {
        size: Some(wave_spec::Size::Percentage(10.0)),
        device_filter: format!("labels.ring:{ring}"),
        ..WaveSpec::default()
    };
    let waves = |count: usize| DeploymentConfig { waves: (0..count).map(wave).collect(), ..config(Strategy::Waves) };
    vec![
        ("ROLLING, all", "id:*", false, config(Strategy::Rolling)),
        ("CANARY, all", "id:*", false, config(Strategy::Canary)),
        (
            "CANARY, all, 2 labels, held-back devices",
            "id:*",
            false,
            DeploymentConfig { policy: Some(stratified), ..config(Strategy::Canary) },
        ),
        ("CANARY, a third by type", "type:raspberry-pi", false, config(Strategy::Canary)),
        ("CANARY, a third by type and a tenth by id", "type:raspberry-pi", true, config(Strategy::Canary)),
        ("WAVES, 5 by label, all", "id:*", false, waves(5)),
        ("WAVES, 20 by label, all", "id:*", false, waves(20)),
    ]
}

async fn time(queries: &FleetQueries, name: &str, filter: &str, named: &[Arc<DeviceEntry>], config: &DeploymentConfig) {
    let defaults = Defaults { heartbeat_interval: INTERVAL, seed: 1 };
    let policy = Policy::of(&UpdateStrategy::default(), config, defaults).expect("a valid policy");
    let (mut surveys, mut plans, mut totals, mut targets) = (vec![], vec![], vec![], 0);
    let mut begun_at = None;
    for _ in 0..ROUNDS {
        let now = UnixMillis::now();
        let filter = Filter::parse(filter, now).expect("a valid filter");
        let request = SurveyRequest::of(&policy, Some(filter), named.to_vec(), now, DeviceEntry::is_forgotten);
        let request = request.expect("valid filters");
        let (asked, policy) = (Instant::now(), policy.clone());
        let answer = queries.survey(request, move |survey| {
            let surveyed = processor_time();
            let plan = Plan::of(&policy, "2.0.0", &artifacts(), &survey);
            assert_eq!(survey.rows().len(), plan.target_count());
            let count = plan.target_count();
            // Giving the memory back is part of the price.
            drop((survey, plan));
            (surveyed, processor_time(), count)
        });
        let (surveyed, dropped, count) = match answer.await {
            Ok(answer) => answer,
            Err(failure) => {
                println!("{name:<44} {failure}");
                // The thread worked for nothing.
                begun_at = None;
                continue;
            }
        };
        totals.push(asked.elapsed());
        // The first survey of the thread has the time of nothing before it.
        if let Some(begun_at) = begun_at {
            surveys.push(surveyed - begun_at);
        }
        plans.push(dropped - surveyed);
        begun_at = Some(dropped);
        targets = count;
    }
    let median = |times: &mut Vec<Duration>| {
        times.sort_unstable();
        times.get(times.len() / 2).map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
    };
    let (survey, plan, both) = (median(&mut surveys), median(&mut plans), median(&mut totals));
    let longest = totals.last().map_or(0.0, |time| time.as_secs_f64() * 1e3);
    println!("{name:<44} {targets:>8} {survey:>8.0} {plan:>8.0} {both:>8.0} {longest:>8.0}");
}

/// What this thread has worked.
fn processor_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the clock writes one timespec, which is there.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    assert_eq!(failed, 0, "every Linux and macOS has this clock");
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn artifacts() -> Vec<Artifact> {
    ["arm64", "x86_64"]
        .map(|arch| Artifact {
            arch: arch.into(),
            url: format!("https://updates.example.org/{arch}"),
            checksum: format!("sha256:{}", "ab".repeat(32)),
            ..Artifact::default()
        })
        .into()
}

fn insert(index: &FleetIndex, number: usize) -> Arc<DeviceEntry> {
    let id = format!("device-{number:07}");
    let system = SystemInfo { arch: ["arm64", "x86_64"][number % 2].into(), ..SystemInfo::default() };
    let record = Device {
        name: format!("Device {number}"),
        device_type: ["raspberry-pi", "esp32", "gateway"][number % 3].into(),
        version: format!("1.{}.0", number % 5),
        metadata: [("location".to_owned(), ["berlin", "osaka", "lagos", "lima"][number % 4].to_owned())].into(),
        labels: [("ring".to_owned(), (number % 10).to_string()), ("site".to_owned(), (number % 37).to_string())].into(),
        system_info: system.encode_to_vec().into(),
        registered_at: UnixMillis::EPOCH,
        last_seen: None,
        key_hash: KeyHash::of(&id),
        revision: 1,
        maintenance: false,
        heartbeat_interval: None,
        id: DeviceId::parse(&id).expect("a valid id"),
    };
    let entry = DeviceEntry::new(record.id.clone(), record.key_hash, (&record).into());
    index.insert(entry, &(&record).into())
}
