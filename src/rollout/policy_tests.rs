//! Policies: every documented default, every range, and the way there and back.
use std::time::Duration;

use fleetd_proto::v1::rollout_policy::{Joiners, OnBreach};
use fleetd_proto::v1::update_strategy::Type as Strategy;
use fleetd_proto::v1::{
    wave_spec, DeploymentConfig, MaintenanceWindow, MetricGate, RolloutPolicy, UpdateStrategy, WaveSpec,
};
use proptest::prelude::*;
// The plain name is taken by the shape of a rollout.
use proptest::strategy::Strategy as Drawn;

use super::policy_parse::Defaults;
use super::{InvalidPolicy, Policy, WaveSize};
use crate::clock::UnixMillis;

const DEFAULTS: Defaults = Defaults { heartbeat_interval: Duration::from_secs(30), seed: 7 };

fn parse(config: DeploymentConfig) -> Result<Policy, InvalidPolicy> {
    Policy::of(&UpdateStrategy::default(), &config, DEFAULTS)
}

fn with(policy: RolloutPolicy) -> Result<Policy, InvalidPolicy> {
    parse(DeploymentConfig { policy: Some(policy), ..DeploymentConfig::default() })
}

fn span(seconds: i64) -> Option<fleetd_proto::Duration> {
    Some(fleetd_proto::Duration { seconds, nanos: 0 })
}

fn gate(metric: &str) -> MetricGate {
    MetricGate { metric: metric.into(), max_value: Some(80.0), ..MetricGate::default() }
}

#[test]
fn what_nobody_set_has_the_documented_default() {
    let policy = parse(DeploymentConfig::default()).expect("valid");
    let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
    let expected = Policy {
        strategy: Strategy::Rolling,
        max_parallel: 10,
        max_failure_percentage: 5.0,
        canary_percentage: 10.0,
        validation_duration: minutes(60),
        auto_promote: false,
        waves: vec![],
        min_attempted: 10,
        accept_timeout: minutes(10),
        finish_timeout: minutes(60),
        confirm_duration: minutes(1),
        vanish_timeout: minutes(30),
        max_attempts: 1,
        retry_backoff: minutes(5),
        max_retry_backoff: minutes(6 * 60),
        joiners: Joiners::Include,
        on_breach: OnBreach::Pause,
        require_approval: false,
        windows: vec![],
        gates: vec![],
        control_percentage: 0.0,
        stratify_labels: vec![],
        start_spread: Duration::from_secs(30),
        deadline: None,
        offline_grace: minutes(7 * 24 * 60),
        seed: 7,
        start_at: None,
        supersede: false,
    };
    assert_eq!(policy, expected);
}

#[test]
fn a_deployment_overrides_its_update_field_by_field_and_the_policy_whole() {
    let update = UpdateStrategy {
        r#type: Strategy::Canary as i32,
        max_parallel: Some(50),
        max_failure_percentage: Some(2.5),
        auto_promote: Some(true),
        policy: Some(RolloutPolicy { max_attempts: Some(3), seed: 9, ..RolloutPolicy::default() }),
        ..UpdateStrategy::default()
    };
    let of = |config| Policy::of(&update, &config, DEFAULTS).expect("valid");
    let inherited = of(DeploymentConfig::default());
    assert_eq!((inherited.strategy, inherited.max_parallel), (Strategy::Canary, 50));
    assert_eq!((inherited.max_attempts, inherited.seed, inherited.auto_promote), (3, 9, true));
    let overridden = of(DeploymentConfig {
        strategy: Strategy::Rolling as i32,
        max_parallel: Some(7),
        auto_promote: Some(false),
        policy: Some(RolloutPolicy { min_attempted: Some(4), ..RolloutPolicy::default() }),
        ..DeploymentConfig::default()
    });
    assert_eq!((overridden.strategy, overridden.max_parallel), (Strategy::Rolling, 7));
    assert_eq!((overridden.max_failure_percentage, overridden.auto_promote), (2.5, false));
    assert_eq!((overridden.min_attempted, overridden.max_attempts, overridden.seed), (4, 1, 7));
}

#[test]
fn defaults_that_follow_from_others_stay_within_their_ranges() {
    let rare = Defaults { heartbeat_interval: Duration::from_secs(86_400), ..DEFAULTS };
    let policy = Policy::of(&UpdateStrategy::default(), &DeploymentConfig::default(), rare).expect("valid");
    assert!(policy.confirm_duration < policy.finish_timeout, "{policy:?}");
    let slow = with(RolloutPolicy { retry_backoff: span(12 * 3_600), ..RolloutPolicy::default() }).expect("valid");
    assert_eq!(slow.max_retry_backoff, slow.retry_backoff);
    let gated = with(RolloutPolicy { gates: vec![gate("cpu_usage")], ..RolloutPolicy::default() }).expect("valid");
    assert_eq!(gated.control_percentage, 10.0);
    assert_eq!((gated.gates[0].aggregation.as_str(), gated.gates[0].min_devices), ("AVG", Some(3)));
    assert_ne!(
        Policy::of(&UpdateStrategy::default(), &DeploymentConfig::default(), Defaults { seed: 0, ..rare })
            .expect("valid")
            .seed,
        0
    );
}

#[test]
fn a_value_out_of_its_range_is_named_with_the_range() {
    let config = DeploymentConfig::default;
    let cases: Vec<(DeploymentConfig, &str)> = vec![
        (
            DeploymentConfig { strategy: 99, ..config() },
            "config.strategy is 99, which stands for nothing; give ROLLING, CANARY or WAVES",
        ),
        (DeploymentConfig { max_parallel: Some(0), ..config() }, "config.max_parallel is 0; give 1 to 100000"),
        (
            DeploymentConfig { max_parallel: Some(100_001), ..config() },
            "config.max_parallel is 100001; give 1 to 100000",
        ),
        (
            DeploymentConfig { max_failure_percentage: Some(100.5), ..config() },
            "config.max_failure_percentage is 100.5; give 0 to 100 per cent",
        ),
        (
            DeploymentConfig { max_failure_percentage: Some(f64::NAN), ..config() },
            "config.max_failure_percentage is NaN; give 0 to 100 per cent",
        ),
        (
            DeploymentConfig { canary_percentage: Some(0.0), ..config() },
            "config.canary_percentage is 0; give more than 0 and at most 100 per cent",
        ),
        (
            DeploymentConfig { canary_percentage: Some(-1.0), ..config() },
            "config.canary_percentage is -1; give more than 0 and at most 100 per cent",
        ),
        (
            DeploymentConfig { validation_duration: span(-1), ..config() },
            "config.validation_duration is -1s; give 0s to 2592000s",
        ),
        (
            DeploymentConfig { validation_duration: span(2_592_001), ..config() },
            "config.validation_duration is 2592001s; give 0s to 2592000s",
        ),
        (
            DeploymentConfig { start_at: Some(fleetd_proto::Timestamp { seconds: 0, nanos: -1 }), ..config() },
            "config.start_at is 0 s and -1 ns, which is no time",
        ),
        (
            DeploymentConfig { waves: vec![WaveSpec::default()], ..config() },
            "config.waves has 1 entries, and the strategy is ROLLING; waves are for WAVES",
        ),
        (
            DeploymentConfig { strategy: Strategy::Waves as i32, ..config() },
            "config.waves has 0 entries; a deployment in WAVES has 1 to 50",
        ),
    ];
    for (config, expected) in cases {
        assert_eq!(parse(config).expect_err(expected).to_string(), expected);
    }
}

#[test]
fn a_bound_out_of_its_range_is_named_with_the_range() {
    let policy = RolloutPolicy::default;
    let cases: Vec<(RolloutPolicy, &str)> = vec![
        (RolloutPolicy { min_attempted: Some(0), ..policy() }, "min_attempted is 0; give 1 or more"),
        (RolloutPolicy { accept_timeout: span(9), ..policy() }, "accept_timeout is 9s; give 10s to 604800s"),
        (RolloutPolicy { finish_timeout: span(59), ..policy() }, "finish_timeout is 59s; give 60s to 604800s"),
        (
            RolloutPolicy { confirm_duration: span(3_600), ..policy() },
            "confirm_duration is 3600s, and finish_timeout is 3600s: no device could be done in time; give less",
        ),
        (RolloutPolicy { vanish_timeout: span(604_801), ..policy() }, "vanish_timeout is 604801s; give 60s to 604800s"),
        (RolloutPolicy { max_attempts: Some(11), ..policy() }, "max_attempts is 11; give 1 to 10"),
        (RolloutPolicy { retry_backoff: span(0), ..policy() }, "retry_backoff is 0s; give 1s to 604800s"),
        (
            RolloutPolicy { retry_backoff: span(60), max_retry_backoff: span(59), ..policy() },
            "max_retry_backoff is 59s; give 60s to 604800s",
        ),
        (RolloutPolicy { joiners: 5, ..policy() }, "joiners is 5, which stands for nothing; give INCLUDE or IGNORE"),
        (
            RolloutPolicy { on_breach: -1, ..policy() },
            "on_breach is -1, which stands for nothing; give PAUSE or ROLL_BACK",
        ),
        (
            RolloutPolicy { control_percentage: Some(50.5), ..policy() },
            "control_percentage is 50.5; give 0 to 50 per cent",
        ),
        (
            RolloutPolicy { stratify_labels: vec![String::new()], ..policy() },
            "stratify_labels[0] has 0 bytes; the name of a label has 1 to 64",
        ),
        (
            RolloutPolicy { stratify_labels: vec!["a".into(); 9], ..policy() },
            "stratify_labels has 9 entries; at most 8 are allowed",
        ),
        (RolloutPolicy { start_spread: span(86_401), ..policy() }, "start_spread is 86401s; give 0s to 86400s"),
        (RolloutPolicy { deadline: span(1), ..policy() }, "deadline is 1s; give 60s to 31536000s"),
        (
            RolloutPolicy { offline_grace: span(7_776_001), ..policy() },
            "offline_grace is 7776001s; give 0s to 7776000s",
        ),
        (
            RolloutPolicy {
                windows: vec![MaintenanceWindow { start: "24:00".into(), ..Default::default() }],
                ..policy()
            },
            "windows[0].start is \"24:00\"; give HH:MM, 00:00 to 23:59",
        ),
    ];
    for (policy, expected) in cases {
        let refused = with(policy).expect_err(expected).to_string();
        assert_eq!(refused, format!("config.policy.{expected}"));
    }
    let update = UpdateStrategy { max_parallel: Some(-3), ..UpdateStrategy::default() };
    let refused = Policy::of(&update, &DeploymentConfig::default(), DEFAULTS).expect_err("out of range");
    assert_eq!(refused.to_string(), "strategy.max_parallel is -3; give 1 to 100000");
}

#[test]
fn a_gate_needs_a_metric_an_aggregation_that_compares_and_a_bound() {
    for (gate, expected) in [
        (
            MetricGate { max_value: None, ..gate("cpu_usage") },
            " has no bound; give max_value, min_value or max_increase_percentage",
        ),
        (gate(""), ".metric is \"\"; names of metrics are 1 to 64 of A-Z a-z 0-9 _ ."),
        (gate("a'b"), ".metric is \"a'b\"; names of metrics are 1 to 64 of A-Z a-z 0-9 _ ."),
        (
            MetricGate { aggregation: "SUM".into(), ..gate("a") },
            ".aggregation is \"SUM\"; gates know AVG, MIN, MAX, P50, P90, P95 and P99",
        ),
        (MetricGate { max_value: Some(f64::INFINITY), ..gate("a") }, ".max_value is inf; give a finite number"),
        (
            MetricGate { max_increase_percentage: Some(-1.0), ..gate("a") },
            ".max_increase_percentage is -1; give 0 or more",
        ),
        (
            MetricGate { min_value: Some(81.0), ..gate("a") },
            ".min_value is 81, above max_value, which is 80: no value could pass",
        ),
        (MetricGate { min_devices: Some(0), ..gate("a") }, ".min_devices is 0; give 1 or more"),
    ] {
        let refused = with(RolloutPolicy { gates: vec![gate], ..RolloutPolicy::default() }).expect_err(expected);
        assert_eq!(refused.to_string(), format!("config.policy.gates[0]{expected}"));
    }
    let alone = RolloutPolicy {
        gates: vec![MetricGate { max_increase_percentage: Some(10.0), ..gate("cpu_usage") }],
        control_percentage: Some(0.0),
        ..RolloutPolicy::default()
    };
    assert!(with(alone).expect_err("nothing to compare with").to_string().contains("compares with devices"));
}

#[test]
fn a_wave_needs_a_size_and_a_filter_that_parses() {
    let waves = |wave: WaveSpec| {
        parse(DeploymentConfig { strategy: Strategy::Waves as i32, waves: vec![wave], ..DeploymentConfig::default() })
    };
    let sized = || WaveSpec { size: Some(wave_spec::Size::DeviceCount(5)), ..WaveSpec::default() };
    let refused = waves(WaveSpec { name: "early".into(), device_filter: "labels.ring:".into(), ..sized() });
    let refused = refused.expect_err("an unfinished filter").to_string();
    assert!(
        refused.starts_with("config.waves[0].device_filter cannot be understood (wave \"early\"): column"),
        "{refused}"
    );
    for (wave, expected) in [
        (
            WaveSpec::default(),
            "config.waves[0] has no size; give device_count, or percentage (100 takes all that match)",
        ),
        (
            WaveSpec { size: Some(wave_spec::Size::DeviceCount(0)), ..sized() },
            "config.waves[0].device_count is 0; give 1 or more",
        ),
        (
            WaveSpec { size: Some(wave_spec::Size::Percentage(0.0)), ..sized() },
            "config.waves[0].percentage is 0; give more than 0 and at most 100 per cent",
        ),
        (WaveSpec { name: "x".repeat(65), ..sized() }, "config.waves[0].name has 65 bytes; at most 64 are allowed"),
        (
            WaveSpec { soak_duration: span(2_592_001), ..sized() },
            "config.waves[0].soak_duration is 2592001s; give 0s to 2592000s",
        ),
    ] {
        assert_eq!(waves(wave).expect_err(expected).to_string(), expected);
    }
    let policy = waves(WaveSpec { auto_promote: Some(true), ..sized() }).expect("valid");
    assert_eq!(policy.waves[0].name, "wave 1");
    assert_eq!((policy.waves[0].size, policy.waves[0].auto_promote), (WaveSize::Devices(5), true));
}

#[test]
fn a_deployment_may_choose_another_shape_than_an_update_with_waves() {
    let spec = WaveSpec { size: Some(wave_spec::Size::Percentage(5.0)), ..WaveSpec::default() };
    let update = UpdateStrategy { r#type: Strategy::Waves as i32, waves: vec![spec], ..UpdateStrategy::default() };
    let rolling = DeploymentConfig { strategy: Strategy::Rolling as i32, ..DeploymentConfig::default() };
    assert_eq!(Policy::of(&update, &rolling, DEFAULTS).expect("valid").waves, []);
    assert_eq!(Policy::of(&update, &DeploymentConfig::default(), DEFAULTS).expect("valid").waves.len(), 1);
}

#[test]
fn a_start_is_kept_to_the_millisecond() {
    let start_at = Some(fleetd_proto::Timestamp { seconds: 1_700_000_000, nanos: 123_456_789 });
    let policy = parse(DeploymentConfig { start_at, ..DeploymentConfig::default() }).expect("valid");
    assert_eq!(policy.start_at, Some(UnixMillis::from_millis_clamped(1_700_000_000_123)));
}

fn some_span(least: i64, most: i64) -> impl Drawn<Value = Option<fleetd_proto::Duration>> {
    prop::option::of((least..=most, 0..1_000_000_000_i32).prop_map(move |(seconds, nanos)| fleetd_proto::Duration {
        seconds,
        nanos: if seconds == most { 0 } else { nanos },
    }))
}

fn some_gates() -> impl Drawn<Value = Vec<MetricGate>> {
    let gate =
        (0..3_usize, 0..4_usize, prop::option::of(-1e6..1e6), prop::option::of(0.0..500.0), prop::option::of(1..50));
    let gate = gate.prop_map(|(metric, aggregation, max_value, max_increase_percentage, min_devices)| MetricGate {
        metric: ["cpu_usage", "restart_count", "queue.depth"][metric].into(),
        aggregation: ["", "max", "P95", "AVG"][aggregation].into(),
        min_value: Some(-1e7),
        max_value,
        max_increase_percentage,
        min_devices,
    });
    prop::collection::vec(gate, 0..3)
}

prop_compose! {
    fn some_policy()(
        counts in prop::option::of((1..10_000, 1..=10)),
        accept in some_span(10, 604_800), finish in some_span(3_601, 604_800), confirm in some_span(0, 3_600),
        vanish in some_span(60, 604_800), backoff in some_span(1, 3_600), max_backoff in some_span(3_601, 604_800),
        choices in (0..=2, 0..=2, any::<bool>(), any::<u64>()),
        gates in some_gates(),
        control in prop::option::of(0.5..=50.0),
        spread in some_span(0, 86_400), deadline in some_span(60, 31_536_000), grace in some_span(0, 7_776_000),
        windows in prop::collection::vec((1..=7, 0..24, 60_i64..604_800), 0..3),
    ) -> RolloutPolicy {
        RolloutPolicy {
            min_attempted: counts.map(|(attempted, _)| attempted),
            accept_timeout: accept, finish_timeout: finish.or(span(7_200)), confirm_duration: confirm,
            vanish_timeout: vanish,
            max_attempts: counts.map(|(_, attempts)| attempts),
            retry_backoff: backoff, max_retry_backoff: max_backoff,
            joiners: choices.0, on_breach: choices.1, require_approval: choices.2, seed: choices.3,
            windows: windows.into_iter().map(|(day, hour, seconds)| MaintenanceWindow {
                days: vec![day], start: format!("{hour:02}:30"), duration: span(seconds),
                time_zone: ["", "device", "Europe/Zurich", "-03:30"][seconds as usize % 4].into(),
            }).collect(),
            gates, control_percentage: control, stratify_labels: vec!["site".into()],
            start_spread: spread, deadline, offline_grace: grace,
        }
    }
}

prop_compose! {
    fn some_config()(
        strategy in 0..=3, max_parallel in prop::option::of(1..=100_000),
        percentages in prop::option::of((0.0..=100.0, 0.001..=100.0)),
        validation in some_span(0, 2_592_000), auto_promote in any::<Option<bool>>(),
        waves in prop::collection::vec((any::<bool>(), 1..1_000, some_span(0, 2_592_000), some_gates(), any::<Option<bool>>()), 1..5),
        policy in prop::option::of(some_policy()),
        start_at in prop::option::of(0..4_000_000_000_i64), supersede in any::<bool>(),
    ) -> DeploymentConfig {
        let is_in_waves = strategy == Strategy::Waves as i32;
        DeploymentConfig {
            strategy, max_parallel,
            max_failure_percentage: percentages.map(|(failures, _)| failures),
            canary_percentage: percentages.map(|(_, canary)| canary),
            validation_duration: validation, auto_promote, policy,
            waves: waves.into_iter().filter(|_| is_in_waves).map(|(counted, size, soak_duration, gates, auto_promote)| WaveSpec {
                name: if counted { String::new() } else { "früh".into() },
                size: Some(if counted { wave_spec::Size::DeviceCount(size) } else { wave_spec::Size::Percentage(f64::from(size) / 10.0) }),
                device_filter: if counted { String::new() } else { "type:pi AND labels.ring:1".into() },
                soak_duration, gates, auto_promote,
            }).collect(),
            start_at: start_at.map(|seconds| fleetd_proto::Timestamp { seconds, nanos: 5_999_999 }),
            supersede,
        }
    }
}

proptest! {
    #[test]
    fn a_policy_survives_being_written_and_read_whatever_the_update_says(
        config in some_config(), other in some_config(), seed in any::<u64>(),
    ) {
        let policy = parse(config).expect("only valid values were drawn");
        let written = policy.to_config();
        let update = UpdateStrategy {
            r#type: other.strategy,
            max_parallel: other.max_parallel,
            auto_promote: other.auto_promote,
            waves: other.waves,
            policy: other.policy,
            ..UpdateStrategy::default()
        };
        let elsewhere = Defaults { heartbeat_interval: Duration::from_secs(5), seed };
        let read = Policy::of(&update, &written, elsewhere).expect("what was written is valid");
        prop_assert_eq!(&read, &policy);
        prop_assert_eq!(read.to_config(), written);
    }
}
