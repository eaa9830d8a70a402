//! How waves follow each other, and how deployments start and end.
use fleetd_proto::v1::MaintenanceWindow;
use fleetd_proto::wkt;

use super::*;

use WaveState as W;

const RUNNING: (DeploymentState, Reason) = (DeploymentState::Running, Reason::Unspecified);

fn paused(reason: Reason) -> (DeploymentState, Reason) {
    (DeploymentState::Paused, reason)
}

/// A canary of 3 that soaks for an hour and is measured, and a rest of 5.
fn canary(auto_promote: bool) -> Run {
    let soak = Duration::from_secs(3_600);
    let canary = InitialWave { soak, gates: vec![gate()], auto_promote, ..wave("canary") };
    Run::start(policy(), vec![canary, wave("rest")], devices(&[3, 5]))
}

#[test]
fn an_approved_deployment_starts_at_its_time() {
    let start_at = Some(UnixMillis::from_millis_clamped(NOON + 60_000));
    let mut run = Run::of(Policy { require_approval: true, start_at, ..policy() }, &[1]);
    assert_eq!(run.whole().0, DeploymentState::AwaitingApproval);
    assert_eq!((run.offer().len(), run.rollout.explain(0).0), (0, "AWAITING_APPROVAL"));
    run.order(Order::Approve).unwrap();
    assert_eq!((run.whole().0, run.rollout.explain(0).0), (DeploymentState::Scheduled, "SCHEDULED"));
    run.pass(MINUTE - 1);
    assert_eq!(run.whole().0, DeploymentState::Scheduled);
    run.pass(1);
    assert_eq!((run.whole(), run.wave_states()), (RUNNING, vec![W::Running]));
    assert_eq!(run.rollout.head().started.unwrap().wall(), run.now.wall);
    run.update_all();
    let head = run.rollout.head();
    assert_eq!((head.state, run.rollout.is_final()), (DeploymentState::Succeeded, true));
    assert_eq!(head.message(), "1 of 1 devices run the new version.");
    assert!((head.progress_percent() - 100.0).abs() < 1e-9);
}

#[test]
fn a_canary_soaks_is_measured_and_goes_on_by_itself() {
    let mut run = canary(true);
    run.update_all();
    let last_done = run.rollout.waves()[0].last_done.unwrap();
    assert_eq!(run.wave_states(), [W::Soaking, W::Pending]);
    assert_eq!(run.rollout.explain(3).0, "WAITS_FOR_WAVE");
    let until = run.rollout.waves()[0].soak_until.unwrap();
    assert_eq!(until.watched, last_done + 60 * MINUTE);
    assert_eq!(until.wall().as_millis() - run.now.wall.as_millis(), (until.watched - run.now.watched) as i64);
    run.pass(until.watched - run.now.watched - 1);
    assert_eq!((run.wave_states(), run.offer().len()), (vec![W::Soaking, W::Pending], 0));
    run.pass(1);
    assert_eq!(run.wave_states(), [W::Analyzing, W::Pending]);
    run.pass(MINUTE);
    let asked = run.actions.iter().filter(|action| **action == Action::Measure { wave: 0 }).count();
    assert_eq!(asked, 1);
    run.take(Event::Measured { wave: 1, results: verdict(Verdict::Failed) });
    run.take(Event::Measured { wave: 0, results: verdict(Verdict::Passed) });
    assert_eq!(run.wave_states(), [W::Done, W::Running]);
    assert_eq!(run.rollout.waves()[0].gate_results, verdict(Verdict::Passed));
    run.update_all();
    assert_eq!(run.whole().0, DeploymentState::Succeeded);
}

#[test]
fn a_device_that_comes_back_while_its_wave_soaks_waits_for_the_next_one() {
    let mut run = canary(true);
    run.stand(2, offline());
    run.update_all();
    assert_eq!(run.wave_states(), [W::Soaking, W::Pending]);
    run.stand(2, online(Runs::Before));
    assert_eq!((run.state(2), run.rollout.explain(2).0), (DeviceState::Queued, "WAITS_FOR_WAVE"));
    assert_eq!(run.rollout.wanted(run.now, 100), [] as [Place; 0], "nobody is asked in vain");
    assert_eq!(run.offer().len(), 0);
    run.pass(61 * MINUTE);
    run.take(Event::Measured { wave: 0, results: verdict(Verdict::Passed) });
    assert_eq!(run.offer(), [2, 3, 4, 5, 6, 7]);
}

#[test]
fn a_measurement_is_asked_for_again_after_a_crash() {
    let mut run = canary(true);
    run.update_all();
    run.pass(61 * MINUTE);
    run.reload();
    run.tick();
    run.tick();
    let asked = run.actions.iter().filter(|action| **action == Action::Measure { wave: 0 }).count();
    assert_eq!(asked, 2);
}

#[test]
fn a_wave_without_auto_promote_waits_and_no_offers_go_out() {
    let mut run = canary(false);
    assert!(matches!(run.order(Order::Promote { wave: None }), Err(Refusal::Order(_))));
    run.update_all();
    run.pass(61 * MINUTE);
    run.take(Event::Measured { wave: 0, results: verdict(Verdict::Passed) });
    assert_eq!(run.wave_states(), [W::AwaitingPromotion, W::Pending]);
    assert_eq!((run.offer().len(), run.rollout.explain(3).0), (0, "AWAITING_PROMOTION"));
    assert!(matches!(run.order(Order::Promote { wave: Some(1) }), Err(Refusal::Order(_))));
    run.order(Order::Promote { wave: Some(0) }).unwrap();
    assert_eq!(run.wave_states(), [W::Done, W::Running]);
    run.order(Order::Promote { wave: Some(0) }).unwrap();
    assert!(matches!(run.order(Order::Promote { wave: None }), Err(Refusal::Order(_))));
}

#[test]
fn a_failed_gate_pauses_and_is_measured_again_or_passed_by_an_operator() {
    for acknowledge_failures in [false, true] {
        let mut run = canary(true);
        run.update_all();
        run.pass(61 * MINUTE);
        run.take(Event::Measured { wave: 0, results: verdict(Verdict::Failed) });
        assert_eq!(run.whole(), paused(Reason::AnalysisFailed));
        assert_eq!(run.wave_states(), [W::Breached, W::Pending]);
        assert!(run.rollout.message().contains("cpu_usage was 91.5"), "{}", run.rollout.message());
        run.order(Order::Resume { acknowledge_failures }).unwrap();
        let expected = if acknowledge_failures { [W::Done, W::Running] } else { [W::Analyzing, W::Pending] };
        assert_eq!(run.wave_states(), expected);
    }
}

#[test]
fn no_data_pauses_and_never_passes() {
    let mut run = canary(true);
    run.update_all();
    run.pass(61 * MINUTE);
    for results in [verdict(Verdict::Inconclusive), Vec::new(), verdict(Verdict::Unspecified)] {
        run.take(Event::Measured { wave: 0, results });
        assert_eq!((run.whole(), run.wave_states()[0]), (paused(Reason::Inconclusive), W::Analyzing));
        run.order(Order::Resume { acknowledge_failures: false }).unwrap();
        assert_eq!(run.wave_states()[0], W::Analyzing);
        assert_eq!(run.actions.last(), Some(&Action::Measure { wave: 0 }));
    }
    run.take(Event::Measured { wave: 0, results: Vec::new() });
    run.order(Order::Resume { acknowledge_failures: true }).unwrap();
    assert_eq!(run.wave_states(), [W::Done, W::Running]);
}

#[test]
fn a_measurement_that_comes_while_paused_is_asked_for_again() {
    let mut run = canary(true);
    run.update_all();
    run.pass(61 * MINUTE);
    run.order(Order::Pause).unwrap();
    run.take(Event::Measured { wave: 0, results: verdict(Verdict::Passed) });
    assert_eq!(run.wave_states()[0], W::Analyzing);
    run.order(Order::Resume { acknowledge_failures: false }).unwrap();
    assert_eq!(run.actions.last(), Some(&Action::Measure { wave: 0 }));
    run.take(Event::Measured { wave: 0, results: verdict(Verdict::Passed) });
    assert_eq!(run.wave_states()[0], W::Done);
}

#[test]
fn a_failed_gate_rolls_back_where_the_policy_says_so() {
    let canary = InitialWave { gates: vec![gate()], ..wave("canary") };
    let policy = Policy { on_breach: OnBreach::RollBack, ..policy() };
    let mut run = Run::start(policy, vec![canary, wave("rest")], devices(&[3, 5]));
    run.update_all();
    run.take(Event::Measured { wave: 0, results: verdict(Verdict::Failed) });
    assert_eq!(run.whole().0, DeploymentState::RollingBack);
    assert_eq!(run.wave_states(), [W::Breached, W::Skipped]);
}

#[test]
fn a_wave_without_a_success_pauses() {
    let mut run = Run::of(policy(), &[2, 3]);
    run.stand(0, offline());
    run.stand(1, offline());
    run.tick();
    assert_eq!((run.whole(), run.wave_states()), (paused(Reason::Inconclusive), vec![W::Running, W::Pending]));
    assert!(run.rollout.message().contains("2 could not be reached"));
    run.order(Order::Resume { acknowledge_failures: false }).unwrap();
    assert_eq!(run.whole(), paused(Reason::Inconclusive));
    // A device that comes back is evidence to be had.
    run.stand(1, online(Runs::Before));
    run.order(Order::Resume { acknowledge_failures: false }).unwrap();
    assert_eq!((run.whole(), run.offer()), (RUNNING, vec![1]));
    let mut run = Run::of(policy(), &[2, 3]);
    run.stand(0, offline());
    run.stand(1, offline());
    run.order(Order::Resume { acknowledge_failures: true }).unwrap();
    assert_eq!((run.whole(), run.wave_states()), (RUNNING, vec![W::Done, W::Running]));
}

#[test]
fn offline_devices_do_not_hold_a_wave_open_and_are_served_when_they_come_back() {
    let mut run = Run::of(Policy { max_parallel: 3, ..policy() }, &[3, 6]);
    run.stand(1, offline());
    run.update_all_but_waves(2);
    assert_eq!(run.wave_states(), [W::Done, W::Running]);
    run.stand(1, online(Runs::Before));
    // First of all, with the wave that runs.
    assert_eq!(run.offer(), [1, 3, 4]);
    run.stand(5, offline());
    run.update(1);
    run.update(3);
    run.update(4);
    run.update_all();
    assert_eq!((run.whole(), run.wave_states()), (RUNNING, vec![W::Done, W::Done]));
    assert!(run.rollout.message().contains("1 devices could not be reached"), "{}", run.rollout.message());
    run.pass(86_400_000);
    run.stand(5, online(Runs::Before));
    run.update_all();
    assert_eq!(run.whole().0, DeploymentState::Succeeded);
    assert_eq!(run.rollout.head().counts.get(DeviceState::Succeeded), 9);
}

#[test]
fn the_grace_for_offline_devices_ends() {
    let mut run = Run::of(policy(), &[3]);
    run.stand(1, offline());
    run.update_all();
    assert_eq!(run.whole(), RUNNING);
    let since = run.rollout.head().lane_since.unwrap();
    run.pass(since + 7 * 86_400_000 - run.now.watched - 1);
    assert_eq!(run.whole(), RUNNING);
    run.pass(1);
    assert_eq!(run.whole().0, DeploymentState::Succeeded);
    assert!(run.rollout.message().contains("1 could not be reached in time"));
    assert_eq!(run.state(1), DeviceState::Held);
}

#[test]
fn the_brake_watches_the_trailing_lane() {
    let mut run = Run::of(Policy { max_failure_percentage: 10.0, min_attempted: 3, ..policy() }, &[4]);
    run.stand(3, offline());
    run.update_all();
    run.stand(3, online(Runs::Before));
    run.offer();
    run.fail(3);
    assert_eq!(run.whole(), paused(Reason::FailureThreshold));
    assert_eq!(run.wave_states(), [W::Done]);
    // Whoever goes on in spite of it, it has failed by its own policy.
    run.order(Order::Resume { acknowledge_failures: true }).unwrap();
    assert_eq!(run.whole().0, DeploymentState::Failed);
    assert!(run.rollout.message().contains("1 of 4 attempted devices failed (25.0 %), more than 10 %"));
}

#[test]
fn a_deployment_that_reached_nobody_did_not_succeed() {
    let mut run = Run::of(Policy { offline_grace: Duration::ZERO, ..policy() }, &[2]);
    run.stand(0, offline());
    run.stand(1, offline());
    assert_eq!(run.whole().0, DeploymentState::Failed);
    assert_eq!(run.rollout.message(), "None of 2 devices could be reached.");
}

#[test]
fn a_wave_spreads_its_offers() {
    let policy = Policy { start_spread: Duration::from_secs(30), max_parallel: 10, ..policy() };
    let mut run = Run::of(policy, &[40]);
    assert_eq!(run.offer().len(), 1, "at least one");
    run.pass(1_000);
    assert_eq!(run.offer().len(), 0, "10/30 of a device is one");
    run.pass(14_000);
    assert_eq!(run.rollout.active_places().len() + run.offer().len(), 5);
    run.pass(15_000);
    assert_eq!(run.rollout.active_places().len() + run.offer().len(), 10);
}

#[test]
fn closed_windows_pause_and_open_ones_go_on() {
    let window = MaintenanceWindow {
        start: "12:00".into(),
        duration: Some(wkt::Duration { seconds: 3_600, nanos: 0 }),
        ..MaintenanceWindow::default()
    };
    let mut run = Run::of(Policy { windows: vec![window], max_parallel: 2, ..policy() }, &[4]);
    run.offer();
    run.say(0, Said::Installing).unwrap();
    run.now.watched += MINUTE;
    run.now.wall = UnixMillis::from_millis_clamped(NOON + 61 * 60_000);
    run.tick();
    assert_eq!(run.whole(), paused(Reason::WindowClosed));
    assert_eq!((run.state(0), run.state(1)), (DeviceState::Installing, DeviceState::Queued));
    assert_eq!(run.rollout.explain(1).0, "WINDOW_CLOSED");
    assert!(matches!(run.order(Order::Resume { acknowledge_failures: true }), Err(Refusal::Order(_))));
    run.confirm(0);
    run.stand(1, online(Runs::Before));
    assert_eq!(run.state(1), DeviceState::Queued);
    run.now.wall = UnixMillis::from_millis_clamped(NOON + 24 * 3_600_000);
    run.tick();
    assert_eq!((run.whole(), run.offer()), (RUNNING, vec![1, 2]));
}

#[test]
fn a_wave_waits_for_its_devices_own_windows() {
    let window = MaintenanceWindow { time_zone: "device".into(), ..MaintenanceWindow::default() };
    let mut run = Run::of(Policy { windows: vec![window], ..policy() }, &[2, 2]);
    run.stand(0, Standing { is_window_open: false, ..online(Runs::Before) });
    run.stand(1, online(Runs::Before));
    run.update(1);
    assert_eq!(run.wave_states(), [W::Running, W::Pending]);
    assert!(run.rollout.message().contains("waits for the maintenance windows of 1 devices"));
    run.stand(0, online(Runs::Before));
    run.offer();
    run.update(0);
    assert_eq!(run.wave_states(), [W::Done, W::Running]);
}

#[test]
fn a_deadline_pauses_once() {
    let mut run = Run::of(Policy { deadline: Some(Duration::from_secs(3_600)), ..policy() }, &[30]);
    run.offer();
    run.pass(60 * MINUTE);
    assert_eq!(run.whole(), RUNNING);
    run.pass(1);
    assert_eq!(run.whole(), paused(Reason::Deadline));
    assert_eq!(run.rollout.active_places(), [] as [Place; 0]);
    run.order(Order::Resume { acknowledge_failures: false }).unwrap();
    run.pass(MINUTE);
    assert_eq!(run.whole(), RUNNING);
}

#[test]
fn a_deployment_whose_devices_all_went_to_another_is_superseded() {
    let mut run = Run::of(policy(), &[1, 2]);
    run.take(Event::Removed { place: 1 });
    run.take(Event::Superseded { place: 2 });
    assert_eq!(run.whole(), RUNNING);
    run.take(Event::Superseded { place: 0 });
    assert_eq!(run.whole().0, DeploymentState::Superseded);
}

#[test]
fn nothing_to_do_is_done() {
    let plan = vec![InitialDevice { wave: 0, state: DeviceState::AlreadyInstalled }; 3];
    let run = Run::start(policy(), vec![wave("canary"), wave("rest")], plan);
    assert_eq!(run.whole().0, DeploymentState::Succeeded);
    let run = Run::start(policy(), Vec::new(), Vec::new());
    assert_eq!(run.whole().0, DeploymentState::Succeeded);
}

#[test]
fn watched_time_is_kept_every_ten_seconds() {
    let mut run = Run::of(policy(), &[1]);
    let kept = run.rollout.head().watched;
    run.now.watched += 9_999;
    run.rollout.apply(Event::Tick, run.now).unwrap();
    assert_eq!((run.rollout.take_effects(), run.rollout.head().watched), (Effects::default(), kept));
    run.now.watched += 1;
    run.rollout.apply(Event::Tick, run.now).unwrap();
    assert!(run.rollout.take_effects().is_head_changed);
    assert_eq!(run.rollout.head().watched, kept + 10_000);
}

impl Run {
    /// Updates devices until so many waves have begun.
    fn update_all_but_waves(&mut self, begun: usize) {
        while self.rollout.head().current + 1 < begun {
            for place in self.offer() {
                self.update(place);
            }
        }
    }
}
