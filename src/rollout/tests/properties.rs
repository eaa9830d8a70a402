//! Random policies, fleets, events, clocks, operators and crashes; the promises are checked after every step, in
//! `fleet`. At the end the world calms down, and the deployment must end, or wait for something that it names.
use proptest::prelude::*;

use super::fleet::{Device, Nature, Sim};
use super::*;
use fleetd_proto::v1::MaintenanceWindow;
use fleetd_proto::wkt;

#[derive(Clone, Debug)]
enum Step {
    Pass(u64),
    Look(usize),
    /// So many devices, from one on, report.
    Beat(usize, usize),
    Order(Order),
    Crash,
    Measured(Verdict),
    /// A report that may be late, doubled, or about anything.
    Stray(usize, u32, i32),
    Stand(usize, Standing),
    Online(usize, bool),
    Maintenance(usize, bool),
    Taken(usize, bool),
    Window(usize, bool),
    Revert(usize),
    Remove(usize),
    Supersede(usize),
    Join(Nature),
    WallJumps(i64),
}

fn natures() -> impl Strategy<Value = Nature> {
    prop_oneof![
        20 => Just(Nature::Good),
        2 => Just(Nature::FailsOnce),
        2 => Just(Nature::Fails),
        1 => Just(Nature::Brick),
        1 => Just(Nature::Slow),
        1 => Just(Nature::Liar),
        1 => Just(Nature::Rejects),
        1 => Just(Nature::Ignores),
        1 => Just(Nature::Mute),
        1 => Just(Nature::Stranger),
        2 => Just(Nature::Mumbles),
    ]
}

fn orders() -> impl Strategy<Value = Order> {
    prop_oneof![
        1 => Just(Order::Approve),
        1 => Just(Order::Pause),
        4 => any::<bool>().prop_map(|acknowledge_failures| Order::Resume { acknowledge_failures }),
        2 => proptest::option::of(0..4_usize).prop_map(|wave| Order::Promote { wave }),
        1 => any::<bool>().prop_map(|force| Order::RollBack { force }),
        1 => Just(Order::RetryFailed { places: None }),
        1 => Just(Order::RetryFailed { places: Some(vec![0, 3, 77]) }),
    ]
}

fn standings() -> impl Strategy<Value = Standing> {
    let reachability = prop_oneof![Just(Reachability::Online), Just(Reachability::Offline)];
    let runs = prop_oneof![Just(Runs::Before), Just(Runs::Target), Just(Runs::Other)];
    (reachability, proptest::option::of(0..40 * SECOND), runs, any::<bool>(), any::<bool>()).prop_map(
        |(reachability, silent_for, runs, is_window_open, is_taken)| Standing {
            reachability,
            silent_for,
            runs,
            is_window_open,
            is_taken,
        },
    )
}

fn steps() -> impl Strategy<Value = Step> {
    let place = 0..48_usize;
    prop_oneof![
        20 => (100..15 * SECOND).prop_map(Step::Pass),
        20 => (4..60_usize).prop_map(Step::Look),
        30 => (place.clone(), 1..40_usize).prop_map(|(from, count)| Step::Beat(from, count)),
        6 => orders().prop_map(Step::Order),
        4 => Just(Step::Crash),
        3 => prop_oneof![
            3 => Just(Verdict::Passed), 1 => Just(Verdict::Failed), 1 => Just(Verdict::Inconclusive)
        ].prop_map(Step::Measured),
        6 => (place.clone(), 0..3_u32, 0..16_i32).prop_map(|(at, back, said)| Step::Stray(at, back, said)),
        2 => (place.clone(), standings()).prop_map(|(at, standing)| Step::Stand(at, standing)),
        3 => (place.clone(), any::<bool>()).prop_map(|(at, is)| Step::Online(at, is)),
        1 => (place.clone(), any::<bool>()).prop_map(|(at, is)| Step::Maintenance(at, is)),
        1 => (place.clone(), any::<bool>()).prop_map(|(at, is)| Step::Taken(at, is)),
        1 => (place.clone(), any::<bool>()).prop_map(|(at, is)| Step::Window(at, is)),
        5 => place.clone().prop_map(Step::Revert),
        1 => place.clone().prop_map(Step::Remove),
        1 => place.prop_map(Step::Supersede),
        1 => natures().prop_map(Step::Join),
        2 => (-20 * 3_600 * 1_000..20 * 3_600 * 1_000_i64).prop_map(Step::WallJumps),
    ]
}

fn policies() -> impl Strategy<Value = Policy> {
    let sizes = (1..7_u32, prop_oneof![Just(0.0), Just(5.0), Just(25.0), Just(50.0), Just(100.0)], 1..7_u32);
    let spans = (5..20_u64, 30..90_u64, 0..6_u64, 10..40_u64);
    let retries = (1..4_u32, 1..8_u64);
    let ends = (prop_oneof![Just(0_u64), Just(60)], proptest::option::weighted(0.2, 60..400_u64), 0..2_u64);
    let flags = (proptest::bool::weighted(0.3), proptest::bool::weighted(0.2), 0..4_u8);
    (sizes, spans, retries, ends, flags).prop_map(|(sizes, spans, retries, ends, flags)| {
        let second = Duration::from_secs;
        let window = |time_zone: &str| MaintenanceWindow {
            start: "06:00".into(),
            duration: Some(wkt::Duration { seconds: 12 * 3_600, nanos: 0 }),
            time_zone: time_zone.into(),
            ..MaintenanceWindow::default()
        };
        Policy {
            max_parallel: sizes.0,
            max_failure_percentage: sizes.1,
            min_attempted: sizes.2,
            accept_timeout: second(spans.0),
            finish_timeout: second(spans.1),
            confirm_duration: second(spans.2),
            vanish_timeout: second(spans.3),
            max_attempts: retries.0,
            retry_backoff: second(retries.1),
            max_retry_backoff: second(10),
            offline_grace: second(ends.0),
            deadline: ends.1.map(second),
            start_spread: second(ends.2 * 10),
            on_breach: if flags.0 { OnBreach::RollBack } else { OnBreach::Pause },
            require_approval: flags.1,
            windows: match flags.2 {
                0 => vec![window("UTC")],
                1 => vec![window("device")],
                _ => Vec::new(),
            },
            ..policy()
        }
    })
}

type Plan = (Vec<InitialWave>, Vec<InitialDevice>, Vec<Device>);

fn plans() -> impl Strategy<Value = Plan> {
    let wave = (0..10_u64, proptest::bool::weighted(0.3), proptest::bool::weighted(0.7));
    let device = (any::<u16>(), natures(), proptest::bool::weighted(0.85), 0..20_u8);
    (proptest::collection::vec(wave, 1..4), proptest::collection::vec(device, 1..40)).prop_map(|(waves, devices)| {
        let count = waves.len() as u16;
        let waves = waves.into_iter().enumerate().map(|(number, (soak, has_gate, auto_promote))| InitialWave {
            name: format!("wave-{number}"),
            soak: Duration::from_secs(soak),
            gates: if has_gate { vec![gate()] } else { Vec::new() },
            auto_promote,
        });
        let plan = devices.iter().map(|(wave, _, _, chance)| InitialDevice {
            wave: wave % count,
            state: match chance {
                0 => DeviceState::AlreadyInstalled,
                1 => DeviceState::Incompatible,
                _ => DeviceState::Queued,
            },
        });
        let fleet = devices.iter().map(|(_, nature, is_online, _)| Device::new(*nature, *is_online));
        (waves.collect(), plan.collect(), fleet.collect())
    })
}

fn take(sim: &mut Sim, step: Step) {
    let count = sim.devices.len();
    let at = |index: usize| (index % count) as Place;
    match step {
        Step::Pass(millis) => sim.pass(millis),
        Step::Look(limit) => sim.look(limit),
        Step::Beat(from, some) => (0..some.min(count)).for_each(|next| sim.beat(at(from + next))),
        Step::Order(order) => {
            let _ = sim.apply_twice(Event::Order(order));
        }
        Step::Crash => sim.crash(),
        Step::Measured(verdict) => {
            sim.verdict = verdict;
            sim.answer_measure();
        }
        Step::Stray(index, back, said) => {
            let place = at(index);
            let attempt = (sim.rollout.record(place).attempt() + 1).saturating_sub(back);
            let Ok(said) = Said::try_from(said) else { return };
            let _ = sim.apply_twice(Event::Report { place, attempt, state: said });
        }
        Step::Stand(index, standing) => {
            let _ = sim.apply_twice(Event::Standing { place: at(index), standing });
        }
        Step::Online(index, is) => sim.devices[at(index) as usize].is_online = is,
        Step::Maintenance(index, is) => sim.devices[at(index) as usize].is_in_maintenance = is,
        Step::Taken(index, is) => sim.devices[at(index) as usize].is_taken = is,
        Step::Window(index, is) => sim.devices[at(index) as usize].is_window_open = is,
        Step::Revert(index) => sim.revert(at(index)),
        Step::Remove(index) => {
            let _ = sim.apply_twice(Event::Removed { place: at(index) });
        }
        Step::Supersede(index) => {
            let _ = sim.apply_twice(Event::Superseded { place: at(index) });
        }
        Step::Join(nature) => sim.join(Device::new(nature, true)),
        Step::WallJumps(by) => {
            sim.now.wall = UnixMillis::from_millis_clamped(sim.now.wall.as_millis() + by);
            let _ = sim.apply_twice(Event::Tick);
        }
    }
}

/// Time passes, devices report, and an operator does what the deployment's state asks for, until it is over.
fn calm_down(sim: &mut Sim) {
    for device in &mut sim.devices {
        device.is_in_maintenance = false;
        device.is_taken = false;
        device.is_window_open = true;
    }
    sim.verdict = Verdict::Passed;
    for _ in 0..1_500 {
        if sim.rollout.is_final() {
            return;
        }
        sim.pass(3 * SECOND);
        (0..sim.devices.len() as Place).for_each(|place| sim.beat(place));
        sim.look(200);
        sim.answer_measure();
        let head = sim.rollout.head();
        let waits = head.waves.get(head.current).is_some_and(|wave| wave.state == WaveState::AwaitingPromotion);
        let order = match (head.state, head.reason) {
            (DeploymentState::AwaitingApproval, _) => Some(Order::Approve),
            (DeploymentState::Paused, Reason::WindowClosed) => {
                sim.now.wall = UnixMillis::from_millis_clamped(sim.now.wall.as_millis() + 3_600 * 1_000);
                None
            }
            (DeploymentState::RollingBack, _) => Some(Order::RollBack { force: true }),
            (DeploymentState::Paused, _) => Some(Order::Resume { acknowledge_failures: true }),
            (DeploymentState::Running, _) if waits => Some(Order::Promote { wave: None }),
            _ => None,
        };
        if let Some(order) = order {
            sim.apply(Event::Order(order)).unwrap();
        }
    }
    let stuck: Vec<_> = (0..sim.devices.len() as Place)
        .map(|place| (place, sim.rollout.record(place), &sim.devices[place as usize]))
        .filter(|(_, record, _)| record.is_active())
        .collect();
    panic!("it never ends: {:?}\n{}\n{stuck:#?}", sim.rollout.head(), sim.rollout.message());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn deployments_keep_their_promises_whatever_happens(
        policy in policies(),
        (waves, plan, devices) in plans(),
        steps in proptest::collection::vec(steps(), 0..150),
    ) {
        let mut sim = Sim::new(policy, waves, plan, devices);
        sim.tick();
        for step in steps {
            take(&mut sim, step);
        }
        calm_down(&mut sim);
        let head = sim.rollout.head();
        prop_assert!(head.finished.is_some());
        prop_assert!(sim.rollout.active_places().is_empty());
        // A finished deployment is answered for from its head.
        prop_assert_eq!(&Head::decode(&head.encode()).unwrap(), head);
    }

    #[test]
    fn a_deployment_that_is_reloaded_at_every_step_does_the_same(
        policy in policies(),
        (waves, plan, devices) in plans(),
        steps in proptest::collection::vec(steps(), 0..60),
    ) {
        let mut sim = Sim::new(policy, waves, plan, devices);
        let _ = sim.apply_twice(Event::Tick);
        for step in steps {
            take(&mut sim, step);
            sim.now.watched += 500;
            let _ = sim.apply_twice(Event::Tick);
            let wanted = sim.rollout.wanted(sim.now, 20);
            for place in wanted {
                let standing = sim.standing(place);
                let _ = sim.apply_twice(Event::Standing { place, standing });
            }
        }
    }
}
