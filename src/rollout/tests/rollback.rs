//! The way back.
use super::*;

use DeviceState as D;

/// Two waves of 3 and 4, updated, and a third one that has not begun.
fn updated() -> Run {
    let waves = vec![wave("a"), wave("b"), InitialWave { auto_promote: false, ..wave("c") }, wave("d")];
    let policy = Policy { max_failure_percentage: 50.0, min_attempted: 3, ..policy() };
    let mut run = Run::start(policy, waves, devices(&[3, 4, 1, 2]));
    run.update_all();
    assert_eq!(run.wave_states()[2..], [WaveState::AwaitingPromotion, WaveState::Pending]);
    run
}

fn offer_back(run: &mut Run) -> Vec<Place> {
    let wanted = run.rollout.wanted(run.now, 100);
    for place in &wanted {
        let standing = Standing { silent_for: Some(5 * MINUTE), ..online(Runs::Target) };
        run.stand(*place, standing);
    }
    wanted.into_iter().filter(|place| run.state(*place) == D::RollingBack).collect()
}

fn go_back(run: &mut Run, place: Place) {
    run.say(place, Said::Accepted).unwrap();
    run.now.watched += 1;
    run.stand(place, online(Runs::Before));
    assert_eq!(run.state(place), D::RolledBack);
}

#[test]
fn only_what_changed_goes_back_the_last_wave_first() {
    let mut run = updated();
    run.order(Order::RollBack { force: false }).unwrap();
    assert_eq!(run.whole().0, DeploymentState::RollingBack);
    assert_eq!(run.rollout.head().rollback.as_ref().unwrap().affected, 8);
    assert_eq!(run.states()[8..], [D::Queued, D::Queued]);
    assert_eq!(run.wave_states()[3], WaveState::Skipped);
    run.order(Order::RollBack { force: false }).unwrap();
    for wave in [vec![7], vec![3, 4, 5, 6], vec![0, 1, 2]] {
        assert_eq!(offer_back(&mut run), wave);
        let is_back = |action: &Action| matches!(action, Action::Offer { is_rollback: true, attempt: 2, .. });
        assert!(run.actions.iter().any(is_back));
        for place in wave {
            go_back(&mut run, place);
        }
    }
    assert_eq!(run.whole().0, DeploymentState::RolledBack);
    assert!(run.rollout.is_final());
    assert_eq!(run.rollout.message(), "All 8 devices that it changed are back.");
}

#[test]
fn max_parallel_bounds_the_way_back_and_slots_of_working_devices_count() {
    let mut run = Run::of(Policy { max_parallel: 3, ..policy() }, &[8]);
    for _ in 0..2 {
        for place in run.offer() {
            run.update(place);
        }
    }
    run.offer();
    run.say(6, Said::Installing).unwrap();
    run.order(Order::RollBack { force: true }).unwrap();
    assert_eq!(run.states()[6..], [D::Installing, D::Queued], "what installs finishes; what waits is left alone");
    assert_eq!(offer_back(&mut run).len(), 2);
    // A device that finishes goes back too.
    run.say(6, Said::Succeeded).unwrap();
    run.now.watched += 1;
    run.stand(6, online(Runs::Target));
    assert_eq!(run.state(6), D::RollbackQueued);
}

#[test]
fn a_device_that_failed_is_asked_what_it_runs() {
    let mut run = Run::of(Policy { max_failure_percentage: 100.0, ..policy() }, &[4]);
    run.offer();
    run.update(0);
    run.fail(1);
    run.fail(2);
    run.order(Order::RollBack { force: false }).unwrap();
    assert!(run.rollout.wanted(run.now, 100).contains(&2));
    run.stand(1, online(Runs::Before));
    run.stand(2, online(Runs::Target));
    assert_eq!(run.states(), [D::RollbackQueued, D::Failed, D::RollbackQueued, D::Queued]);
    run.stand(3, online(Runs::Before));
    offer_back(&mut run);
    go_back(&mut run, 0);
    go_back(&mut run, 2);
    assert_eq!(run.whole().0, DeploymentState::RolledBack);
}

#[test]
fn too_many_that_cannot_go_back_brake_the_rollback() {
    let mut run = Run::of(Policy { max_failure_percentage: 50.0, min_attempted: 3, ..policy() }, &[8]);
    run.update_all();
    assert_eq!(run.whole().0, DeploymentState::Succeeded);
    run.order(Order::RollBack { force: false }).unwrap();
    offer_back(&mut run);
    run.say(0, Said::Accepted).unwrap();
    run.say(1, Said::Rejected).unwrap();
    run.say(2, Said::Failed).unwrap();
    assert!(run.rollout.head().rollback.as_ref().unwrap().is_braked);
    assert_eq!(run.states()[1..4], [D::RollbackFailed, D::RollbackFailed, D::RollbackQueued]);
    assert_eq!(run.whole().0, DeploymentState::RollingBack, "one is on its way");
    assert_eq!(code(run.say(3, Said::Accepted)), "OFFER_REVOKED");
    assert_eq!(offer_back(&mut run), [0], "no other than the one on its way");
    go_back(&mut run, 0);
    assert_eq!(run.whole().0, DeploymentState::RollbackIncomplete);
    assert_eq!(run.rollout.message(), "1 devices are back, 2 could not go back, 5 were not reached: look after those.");
}

#[test]
fn the_way_back_has_the_same_timers() {
    let mut run = Run::of(Policy { max_failure_percentage: 100.0, ..policy() }, &[5]);
    run.update_all();
    run.order(Order::RollBack { force: false }).unwrap();
    offer_back(&mut run);
    run.say(2, Said::Accepted).unwrap();
    run.say(3, Said::Succeeded).unwrap();
    run.pass(10 * MINUTE);
    run.stand(0, online(Runs::Target));
    run.stand(1, Standing { silent_for: None, ..online(Runs::Target) });
    assert_eq!((run.state(0), run.rollout.record(0).reason_code()), (D::RollbackFailed, "ACCEPT_TIMEOUT"));
    assert_eq!((run.state(1), run.rollout.record(1).reason_code()), (D::RollbackQueued, "OFFLINE"));
    run.pass(20 * MINUTE);
    run.stand(2, Standing { silent_for: None, ..online(Runs::Target) });
    assert_eq!((run.state(2), run.rollout.record(2).reason_code()), (D::RollbackFailed, "SILENT"));
    run.stand(3, online(Runs::Target));
    assert_eq!(run.state(3), D::RollingBack, "the word alone is not enough");
    run.stand(3, online(Runs::Other));
    assert_eq!((run.state(3), run.rollout.record(3).reason_code()), (D::RolledBack, "OTHER_VERSION"));
}

#[test]
fn offline_devices_are_waited_for_and_then_left() {
    let mut run = Run::of(Policy { min_attempted: 1, ..policy() }, &[2]);
    run.update_all();
    run.order(Order::RollBack { force: false }).unwrap();
    run.stand(1, offline());
    assert_eq!(run.rollout.explain(1).0, "OFFLINE");
    run.stand(0, Standing { silent_for: Some(5 * MINUTE), ..online(Runs::Target) });
    go_back(&mut run, 0);
    run.pass(86_400_000);
    assert_eq!(run.whole().0, DeploymentState::RollingBack);
    let mut other = Run { rollout: reloaded(&run.rollout), now: run.now, actions: Vec::new() };
    other.pass(6 * 86_400_000);
    assert_eq!(other.whole().0, DeploymentState::RollbackIncomplete);
    run.stand(1, online(Runs::Before));
    assert_eq!(run.whole().0, DeploymentState::RolledBack, "it went back by itself");
}

#[test]
fn windows_are_kept_unless_it_is_forced() {
    let window = fleetd_proto::v1::MaintenanceWindow {
        start: "12:00".into(),
        duration: Some(fleetd_proto::wkt::Duration { seconds: 3_600, nanos: 0 }),
        ..Default::default()
    };
    let mut run = Run::of(Policy { windows: vec![window], ..policy() }, &[2]);
    run.update_all();
    run.now.wall = UnixMillis::from_millis_clamped(NOON + 2 * 3_600_000);
    run.order(Order::RollBack { force: false }).unwrap();
    assert_eq!(offer_back(&mut run), [] as [Place; 0]);
    assert!(run.rollout.message().contains("No maintenance window is open"));
    run.order(Order::RollBack { force: true }).unwrap();
    assert_eq!(offer_back(&mut run), [0, 1]);
}

#[test]
fn a_device_that_went_on_to_another_deployment_is_not_rolled_back() {
    let mut run = Run::of(policy(), &[2]);
    run.update_all();
    run.take(Event::Superseded { place: 0 });
    run.order(Order::RollBack { force: false }).unwrap();
    assert_eq!(run.states(), [D::Succeeded, D::RollbackQueued]);
}

#[test]
fn a_large_rollback_begins_in_steps() {
    let mut run = Run::of(
        Policy { max_failure_percentage: 100.0, max_parallel: 20_000, confirm_duration: Duration::ZERO, ..policy() },
        &[12_000],
    );
    run.offer_all(12_000);
    run.order(Order::RollBack { force: false }).unwrap();
    let queued = |run: &Run| run.rollout.head().counts.get(D::RollbackQueued);
    assert_eq!(queued(&run), 5_000);
    run.reload();
    run.tick();
    run.tick();
    assert_eq!(queued(&run), 12_000);
}

impl Run {
    /// Updates devices in one go.
    fn offer_all(&mut self, count: u32) {
        for place in 0..count {
            self.stand(place, online(Runs::Before));
            self.say(place, Said::Succeeded).unwrap();
            self.now.watched += 1;
            self.stand(place, online(Runs::Target));
        }
    }
}
