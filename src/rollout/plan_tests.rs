//! Plans: nobody twice, nobody lost, everybody's kind by its share, and the same by the same seed.
use std::collections::{BTreeMap, BTreeSet};

use fleetd_proto::v1::{wave_spec, Artifact, DeploymentConfig, MetricGate, RolloutPolicy, UpdateStrategy, WaveSpec};
use proptest::prelude::*;
// The plain name is taken by the shape of a rollout.
use proptest::strategy::Strategy as Drawn;

use super::policy_parse::Defaults;
use super::{combine, stable_hash, Plan, Policy, Target, Targets};
use fleetd_proto::v1::update_strategy::Type as Strategy;

const TYPES: [&str; 3] = ["pi", "esp32", "toaster"];
const VERSIONS: [&str; 3] = ["1.0.0", "1.1.0", "2.0.0"];
const TARGET_VERSION: &str = "2.0.0";

/// A device as a test describes it.
#[derive(Clone, Debug)]
struct Device {
    id: String,
    device_type: usize,
    version: usize,
    site: u8,
    is_online: bool,
    is_taken: bool,
    wave_matches: u64,
}

struct Fleet {
    devices: Vec<Device>,
    rows: Vec<Target>,
}

impl Fleet {
    fn of(devices: Vec<Device>) -> Self {
        let row = |device: &Device| Target {
            id_hash: stable_hash(&device.id),
            stratum: stratum(device),
            wave_matches: device.wave_matches,
            device_type: device.device_type as u32,
            arch: TYPES.len() as u32 + VERSIONS.len() as u32,
            version: (TYPES.len() + device.version) as u32,
            is_online: device.is_online,
            is_taken: device.is_taken,
        };
        Self { rows: devices.iter().map(row).collect(), devices }
    }

    fn ids(&self, members: &[u32]) -> Vec<&str> {
        members.iter().map(|member| self.id(*member as usize)).collect()
    }

    fn device(&self, member: &u32) -> &Device {
        &self.devices[*member as usize]
    }
}

fn stratum(device: &Device) -> u64 {
    combine(combine(stable_hash(TYPES[device.device_type]), stable_hash(VERSIONS[device.version])), device.site.into())
}

impl Targets for Fleet {
    fn rows(&self) -> &[Target] {
        &self.rows
    }

    fn text(&self, number: u32) -> &str {
        TYPES.iter().chain(&VERSIONS).chain(&["arm64"]).nth(number as usize).expect("a text")
    }

    fn id(&self, target: usize) -> &str {
        &self.devices[target].id
    }
}

/// Devices that nothing is special about.
fn plain(count: usize) -> Vec<Device> {
    let device = |n| Device {
        id: format!("device-{n:05}"),
        device_type: 0,
        version: 0,
        site: 0,
        is_online: true,
        is_taken: false,
        wave_matches: 0,
    };
    (0..count).map(device).collect()
}

fn artifacts() -> Vec<Artifact> {
    let for_type = |platform: &str| Artifact {
        platform: platform.into(),
        url: "https://updates.example.org/a".into(),
        checksum: format!("sha256:{}", "ab".repeat(32)),
        ..Artifact::default()
    };
    vec![for_type("pi"), for_type("esp32")]
}

fn policy(config: DeploymentConfig) -> Policy {
    let defaults = Defaults { heartbeat_interval: std::time::Duration::from_secs(30), seed: 42 };
    Policy::of(&UpdateStrategy::default(), &config, defaults).expect("a valid policy")
}

fn canary(percentage: f64, control: f64) -> Policy {
    policy(DeploymentConfig {
        strategy: Strategy::Canary as i32,
        canary_percentage: Some(percentage),
        policy: Some(RolloutPolicy { control_percentage: Some(control), ..RolloutPolicy::default() }),
        ..DeploymentConfig::default()
    })
}

fn plan(policy: &Policy, fleet: &Fleet) -> Plan {
    Plan::of(policy, TARGET_VERSION, &artifacts(), fleet)
}

fn sizes(plan: &Plan) -> Vec<(&str, usize)> {
    plan.waves.iter().map(|wave| (wave.name.as_str(), wave.members.len())).collect()
}

#[test]
fn each_shape_has_its_waves() {
    let fleet = Fleet::of(plain(100));
    let rolling = plan(&policy(DeploymentConfig::default()), &fleet);
    assert_eq!(sizes(&rolling), [("all", 100)]);
    let sampled = plan(&canary(10.0, 20.0), &fleet);
    assert_eq!((sizes(&sampled), sampled.control), (vec![("canary", 10), ("rest", 90)], 20));
    assert_eq!(sizes(&plan(&canary(100.0, 0.0), &fleet)), [("canary", 100)]);
    assert_eq!(sizes(&plan(&canary(0.1, 0.0), &fleet)), [("canary", 1), ("rest", 99)], "never empty");
    assert_eq!(plan(&canary(10.0, 0.0), &Fleet::of(vec![])).waves, []);
}

#[test]
fn waves_take_what_matches_and_leave_the_rest_and_the_held_back_for_the_last() {
    let mut devices = plain(100);
    devices.iter_mut().take(30).for_each(|device| device.wave_matches = 0b10);
    let fleet = Fleet::of(devices);
    let wave = |name: &str, size, filter: &str| WaveSpec {
        name: name.into(),
        size: Some(size),
        device_filter: filter.into(),
        ..WaveSpec::default()
    };
    let config = |waves, control| DeploymentConfig {
        strategy: Strategy::Waves as i32,
        waves,
        policy: Some(RolloutPolicy { control_percentage: Some(control), ..RolloutPolicy::default() }),
        ..DeploymentConfig::default()
    };
    let lab = || wave("lab", wave_spec::Size::DeviceCount(20), "labels.site:lab");
    let early = || wave("early", wave_spec::Size::Percentage(5.0), "");
    let planned = plan(&policy(config(vec![early(), lab()], 0.0)), &fleet);
    assert_eq!(sizes(&planned), [("early", 5), ("lab", 20), ("rest", 75)]);
    assert!(planned.waves[1].members.iter().all(|member| *member < 30), "only those that match");
    let everything = wave("everything", wave_spec::Size::Percentage(100.0), "");
    let planned = plan(&policy(config(vec![early(), everything], 10.0)), &fleet);
    assert_eq!(sizes(&planned), [("early", 5), ("everything", 85), ("held back", 10)]);
    assert_eq!(planned.control, 10);
    let nobody = wave("nobody", wave_spec::Size::DeviceCount(5), "id:x");
    let planned = plan(&policy(config(vec![nobody, early()], 0.0)), &fleet);
    assert_eq!(sizes(&planned), [("early", 5), ("rest", 95)]);
    assert!(planned.warnings.iter().any(|warning| warning.contains("\"nobody\" (waves[0]) is skipped")), "{planned:?}");
}

#[test]
fn who_needs_or_can_do_nothing_is_left_out_with_the_reason() {
    let mut devices = plain(10);
    devices[0].version = 2;
    devices[1].device_type = 2;
    devices[2].is_taken = true;
    (devices[3].version, devices[3].device_type, devices[3].is_taken) = (2, 2, true);
    let fleet = Fleet::of(devices);
    let policy = policy(DeploymentConfig::default());
    let planned = plan(&policy, &fleet);
    let excluded: BTreeMap<_, BTreeSet<_>> =
        planned.excluded.iter().map(|one| (one.reason.code(), fleet.ids(&one.members).into_iter().collect())).collect();
    assert_eq!(excluded["ALREADY_INSTALLED"], BTreeSet::from(["device-00000", "device-00003"]));
    assert_eq!(excluded["INCOMPATIBLE"], BTreeSet::from(["device-00001"]));
    assert_eq!(excluded["IN_OTHER_DEPLOYMENT"], BTreeSet::from(["device-00002"]));
    assert_eq!(planned.target_count(), 6);
}

#[test]
fn the_answer_names_a_few_devices_and_counts_all() {
    let mut devices = plain(60);
    devices.iter_mut().take(20).for_each(|device| device.is_online = false);
    devices.iter_mut().skip(50).for_each(|device| device.device_type = 1);
    let fleet = Fleet::of(devices);
    let policy = canary(10.0, 0.0);
    let answer = plan(&policy, &fleet).to_response(&policy, &fleet);
    assert_eq!(answer.target_device_count, 60);
    let rest = &answer.waves[1];
    assert_eq!((rest.index, rest.name.as_str(), rest.device_count), (1, "rest", 54));
    assert_eq!(answer.waves.iter().map(|wave| wave.offline_device_count).sum::<i32>(), 20);
    assert_eq!(rest.sample_device_ids.len(), 10);
    assert_eq!(answer.waves[0].device_types, BTreeMap::from([("pi".to_owned(), 5), ("esp32".to_owned(), 1)]));
    assert_eq!(answer.config, Some(policy.to_config()));
}

#[test]
fn an_operator_is_warned_of_what_looks_wrong() {
    let warned = |policy: &Policy, fleet: &Fleet, artifacts: &[Artifact], says: &str| {
        let warnings = Plan::of(policy, TARGET_VERSION, artifacts, fleet).warnings;
        assert!(warnings.iter().any(|warning| warning.contains(says)), "{says}: {warnings:?}");
    };
    let fleet = Fleet::of(plain(100));
    let mut offline = plain(100);
    offline.iter_mut().take(34).for_each(|device| device.is_online = false);
    warned(&canary(10.0, 0.0), &Fleet::of(offline), &artifacts(), "34 of 100 targets (34 %) are offline");
    let abbreviated = Artifact { checksum: "sha256:abc123...".into(), ..artifacts()[0].clone() };
    warned(&canary(10.0, 0.0), &fleet, &[abbreviated], "devices cannot verify");
    warned(&canary(1.0, 0.0), &fleet, &artifacts(), "is a single device");
    let hasty = Policy { auto_promote: true, ..canary(10.0, 0.0) };
    warned(&hasty, &fleet, &artifacts(), "goes on by itself and has no gates");
    let wide = Policy { max_parallel: 100, ..canary(10.0, 0.0) };
    warned(&wide, &fleet, &artifacts(), "max_parallel is 100 and there are 100 targets");
    let gate = MetricGate {
        metric: "cpu_usage".into(),
        max_increase_percentage: Some(10.0),
        min_devices: Some(20),
        ..MetricGate::default()
    };
    let gated = Policy { gates: vec![gate.clone()], ..canary(10.0, 30.0) };
    warned(&gated, &fleet, &artifacts(), "needs 20 devices and the wave \"canary\" has 10");
    let gated = Policy { gates: vec![gate.clone()], ..canary(30.0, 10.0) };
    warned(&gated, &fleet, &artifacts(), "needs 20; 10 are held back");
    let rolling = Policy { gates: vec![gate], ..policy(DeploymentConfig::default()) };
    warned(&rolling, &fleet, &artifacts(), "a ROLLING deployment measures none");
    let mut misfits = plain(10);
    misfits.iter_mut().take(8).for_each(|device| device.device_type = 2);
    warned(&canary(50.0, 0.0), &Fleet::of(misfits), &artifacts(), "no artifact fits 8 of 10");
    let seldom = canary(10.0, 0.0).timing_warnings(std::time::Duration::from_secs(3_600));
    assert_eq!(seldom.len(), 3, "{seldom:?}");
    let often = canary(10.0, 0.0).timing_warnings(std::time::Duration::from_secs(30));
    assert_eq!(often, Vec::<String>::new());
}

#[test]
fn a_sound_plan_warns_of_nothing() {
    assert_eq!(plan(&canary(10.0, 10.0), &Fleet::of(plain(100))).warnings, Vec::<String>::new());
}

#[test]
fn a_canary_of_one_is_online_if_any_device_is() {
    // Each device is a stratum of its own, and one is online.
    let mut devices = plain(50);
    for (device, site) in devices.iter_mut().zip(0..) {
        (device.site, device.is_online) = (site, site == 37);
    }
    let fleet = Fleet::of(devices);
    for seed in 1..20 {
        let planned = plan(&Policy { seed, ..canary(1.0, 0.0) }, &fleet);
        assert_eq!(fleet.ids(&planned.waves[0].members), ["device-00037"]);
    }
}

#[test]
fn another_seed_chooses_others() {
    let fleet = Fleet::of(plain(1_000));
    let chosen = |seed| plan(&Policy { seed, ..canary(10.0, 0.0) }, &fleet).waves[0].members.clone();
    let (one, other): (BTreeSet<_>, BTreeSet<_>) = (chosen(1).into_iter().collect(), chosen(2).into_iter().collect());
    // Of 100 of 1,000, chance has some 10 in common.
    assert!(one.intersection(&other).count() < 30);
}

prop_compose! {
    fn some_fleet()(
        devices in prop::collection::vec(
            (0..3_usize, prop::sample::select(vec![0_usize, 0, 0, 1, 1, 2]), 0..3_u8, any::<bool>(), 0..10, 0..16_u64), 0..300),
    ) -> Vec<Device> {
        devices.into_iter().enumerate().map(|(n, (device_type, version, site, is_online, taken, wave_matches))| Device {
            id: format!("d{n}"), device_type, version, site, is_online, is_taken: taken == 0, wave_matches,
        }).collect()
    }
}

fn some_policy() -> impl Drawn<Value = Policy> {
    let wave = (any::<bool>(), 1..60_i32, any::<bool>()).prop_map(|(is_counted, size, is_filtered)| WaveSpec {
        size: Some(match is_counted {
            true => wave_spec::Size::DeviceCount(size),
            false => wave_spec::Size::Percentage(f64::from(size)),
        }),
        device_filter: if is_filtered { "labels.ring:1".into() } else { String::new() },
        ..WaveSpec::default()
    });
    let waves = prop::collection::vec(wave, 1..4);
    (1..=3, waves, 0.1..100.0_f64, 0.0..50.0_f64, 1..u64::MAX).prop_map(|(strategy, waves, share, control, seed)| {
        policy(DeploymentConfig {
            strategy,
            waves: if strategy == Strategy::Waves as i32 { waves } else { vec![] },
            canary_percentage: Some(share),
            policy: Some(RolloutPolicy { control_percentage: Some(control), seed, ..RolloutPolicy::default() }),
            ..DeploymentConfig::default()
        })
    })
}

proptest! {
    #[test]
    fn every_target_is_in_one_wave_or_left_out_once(devices in some_fleet(), policy in some_policy()) {
        let fleet = Fleet::of(devices);
        let planned = plan(&policy, &fleet);
        let waves = planned.waves.iter().map(|wave| &wave.members);
        let mut seen: Vec<u32> = waves.chain(planned.excluded.iter().map(|one| &one.members)).flatten().copied().collect();
        seen.sort_unstable();
        prop_assert_eq!(seen, (0..fleet.devices.len() as u32).collect::<Vec<_>>());
        for wave in &planned.waves {
            prop_assert!(!wave.members.is_empty());
            let offline = wave.members.iter().filter(|member| !fleet.device(member).is_online).count();
            prop_assert_eq!(wave.offline, offline);
            prop_assert_eq!(wave.device_types.values().sum::<usize>(), wave.members.len());
            for device in wave.members.iter().map(|member| fleet.device(member)) {
                prop_assert!(device.version != 2 && device.device_type != 2 && !device.is_taken);
            }
        }
    }

    #[test]
    fn sizes_are_within_one_of_the_percentage(devices in some_fleet(), share in 0.1..100.0_f64, control in 0.0..50.0_f64) {
        let planned = plan(&canary(share, control), &Fleet::of(devices));
        let all = planned.target_count();
        if all > 0 {
            let size = planned.waves[0].members.len();
            prop_assert!(size >= 1 && (size as f64 - all as f64 * share / 100.0).abs() <= 1.0, "{size} of {all}");
            let wanted = (all as f64 * control / 100.0).min((all - size) as f64);
            prop_assert!((planned.control as f64 - wanted).abs() <= 1.0, "{} of {all}", planned.control);
            let last = planned.waves.last().map_or(0, |wave| wave.members.len());
            prop_assert!(planned.control <= last);
        }
    }

    #[test]
    fn every_kind_of_device_has_its_share_of_the_canary(devices in some_fleet(), share in 0.1..100.0_f64) {
        let fleet = Fleet::of(devices);
        let planned = plan(&canary(share, 0.0), &fleet);
        let count = |members: &mut dyn Iterator<Item = &u32>| {
            let mut counts = BTreeMap::<_, usize>::new();
            members.for_each(|member| *counts.entry(stratum(fleet.device(member))).or_default() += 1);
            counts
        };
        if planned.target_count() == 0 {
            return Ok(());
        }
        let sampled = count(&mut planned.waves[0].members.iter());
        let all = count(&mut planned.waves.iter().flat_map(|wave| &wave.members));
        for (stratum, devices) in all {
            let seats = sampled.get(&stratum).copied().unwrap_or_default();
            let exact = (planned.waves[0].members.len() * devices) as f64 / planned.target_count() as f64;
            prop_assert!(seats as f64 > exact - 1.0 && (seats as f64) < exact + 1.0, "{seats} for {exact}");
        }
    }

    #[test]
    fn a_canary_takes_no_offline_device_while_one_of_its_kind_is_online(devices in some_fleet(), share in 0.1..100.0_f64) {
        let fleet = Fleet::of(devices);
        let planned = plan(&canary(share, 0.0), &fleet);
        let Some((sample, rest)) = planned.waves.split_first() else { return Ok(()) };
        let online: Vec<bool> = sample.members.iter().map(|member| fleet.device(member).is_online).collect();
        prop_assert!(online.is_sorted_by(|a, b| a >= b), "online ones go first");
        let left_online: BTreeSet<_> = rest.iter().flat_map(|wave| &wave.members).map(|member| fleet.device(member))
            .filter(|device| device.is_online).map(stratum).collect();
        for device in sample.members.iter().map(|member| fleet.device(member)).filter(|device| !device.is_online) {
            prop_assert!(!left_online.contains(&stratum(device)));
        }
    }

    #[test]
    fn the_same_seed_plans_the_same_in_whatever_order_the_targets_come(
        devices in some_fleet().prop_flat_map(|devices| (Just(devices.clone()), Just(devices).prop_shuffle())),
        policy in some_policy(),
    ) {
        let told = |devices: Vec<Device>| {
            let fleet = Fleet::of(devices);
            let planned = plan(&policy, &fleet);
            let owned = |members: &[u32]| fleet.ids(members).into_iter().map(str::to_owned).collect::<Vec<_>>();
            let waves: Vec<_> = planned.waves.iter().map(|wave| (wave.name.clone(), owned(&wave.members))).collect();
            let excluded: Vec<_> = planned.excluded.iter().map(|one| (one.reason, owned(&one.members))).collect();
            (waves, excluded, planned.control, planned.warnings)
        };
        prop_assert_eq!(told(devices.0), told(devices.1));
    }
}
