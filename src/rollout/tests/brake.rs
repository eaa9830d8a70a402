//! The brake, rule by rule.
use super::*;

fn lenient() -> Policy {
    Policy { max_failure_percentage: 20.0, min_attempted: 5, max_parallel: 20, ..policy() }
}

const BRAKED: (DeploymentState, Reason) = (DeploymentState::Paused, Reason::FailureThreshold);
const RUNNING: (DeploymentState, Reason) = (DeploymentState::Running, Reason::Unspecified);

#[test]
fn the_brake_waits_for_its_minimum_sample_and_then_acts_at_once() {
    let mut run = Run::of(lenient(), &[20]);
    run.offer();
    for place in 0..4 {
        run.fail(place);
        assert_eq!(run.whole(), RUNNING, "4 of 4 are no sample yet");
    }
    run.say(4, Said::Accepted).unwrap();
    assert_eq!(run.whole(), BRAKED, "4 of 5 attempted");
    assert_eq!(run.wave_states(), [WaveState::Breached]);
    assert!(
        run.rollout.message().contains("4 of 5 attempted devices of wave \"wave-0\" failed"),
        "{}",
        run.rollout.message()
    );
}

#[test]
fn failures_up_to_the_limit_do_not_brake() {
    let mut run = Run::of(lenient(), &[20]);
    run.offer();
    for place in 0..9 {
        run.say(place, Said::Accepted).unwrap();
    }
    run.fail(9);
    run.say(8, Said::Failed).unwrap();
    assert_eq!(run.whole(), RUNNING, "2 of 10 is not more than 20 %");
    run.say(7, Said::Failed).unwrap();
    assert_eq!(run.whole(), BRAKED, "3 of 10 is");
}

#[test]
fn the_share_is_of_those_attempted_not_of_the_whole_group() {
    let mut run = Run::of(Policy { min_attempted: 10, ..policy() }, &[20_000]);
    for _ in 0..2 {
        for place in run.offer() {
            if run.state(place) == DeviceState::Offered {
                run.fail(place);
            }
        }
    }
    let harmed = run.rollout.head().failed;
    assert_eq!((run.whole(), harmed), (BRAKED, 10));
}

#[test]
fn the_brake_revokes_offers_that_no_device_accepted_and_lets_the_others_finish() {
    let mut run = Run::of(lenient(), &[20]);
    run.offer();
    run.say(10, Said::Installing).unwrap();
    for place in 0..4 {
        run.fail(place);
    }
    assert_eq!(run.whole(), BRAKED);
    let revoked: Vec<(Place, u32)> = (4..20).filter(|place| *place != 10).map(|place| (place, 1)).collect();
    assert_eq!(run.revoked(), revoked);
    assert_eq!(run.state(5), DeviceState::Queued);
    assert_eq!(run.state(10), DeviceState::Installing);
    assert_eq!(code(run.say(5, Said::Accepted)), "OFFER_REVOKED");
    assert_eq!(run.offer(), [] as [Place; 0]);
    run.confirm(10);
    // The next offer has a number of its own, so that a late accept cannot be mistaken for one of it.
    run.order(Order::Resume { acknowledge_failures: true }).unwrap();
    run.offer();
    assert_eq!(run.offers_of(5), [1, 2]);
    let late = run.apply(Event::Report { place: 5, attempt: 1, state: Said::Accepted });
    assert_eq!(code(late), "OLD_ATTEMPT");
}

#[test]
fn a_small_wave_brakes_at_its_first_failure() {
    let mut run = Run::of(lenient(), &[4, 20]);
    run.offer();
    run.fail(0);
    assert_eq!(run.whole(), BRAKED);
    // But not where nothing may brake.
    let mut run = Run::of(Policy { max_failure_percentage: 100.0, ..lenient() }, &[4, 20]);
    run.offer();
    run.fail(0);
    assert_eq!(run.whole(), RUNNING);
}

#[test]
fn devices_without_work_do_not_make_a_wave_large() {
    let mut plan = devices(&[4]);
    plan.extend([InitialDevice { wave: 0, state: DeviceState::Incompatible }; 9]);
    let mut run = Run::start(lenient(), vec![wave("only")], plan);
    run.offer();
    run.fail(2);
    assert_eq!(run.whole(), BRAKED);
}

#[test]
fn a_wave_that_could_attempt_too_few_is_judged_at_its_end() {
    let mut run = Run::of(lenient(), &[8, 20]);
    // Half of the canary is offline; 1 of the other 4 fails.
    for place in 4..8 {
        run.stand(place, offline());
    }
    run.offer();
    run.fail(0);
    for place in 1..3 {
        run.update(place);
        assert_eq!(run.whole(), RUNNING);
    }
    run.update(3);
    assert_eq!(run.whole(), BRAKED, "1 of 4 must not pass for a success of 8");
}

#[test]
fn the_whole_deployment_is_judged_too() {
    // Each wave of 10 stays at its limit; the third failure in 25 is above 10 % of the whole only.
    let policy = Policy { max_failure_percentage: 10.0, min_attempted: 10, max_parallel: 30, ..policy() };
    let mut run = Run::of(policy, &[10, 10]);
    run.offer();
    run.fail(0);
    (1..10).for_each(|place| run.update(place));
    run.tick();
    assert_eq!(run.wave_states(), [WaveState::Done, WaveState::Running]);
    run.offer();
    for place in 11..19 {
        run.update(place);
    }
    // A device of the first wave reverts: 2 of 18 attempted.
    run.stand(1, online(Runs::Before));
    assert_eq!(run.state(1), DeviceState::Reverted);
    assert_eq!(run.whole(), BRAKED);
    assert_eq!(run.rollout.head().breach.as_ref().unwrap().wave, None);
}

#[test]
fn timed_out_rejected_reverted_and_vanished_all_count() {
    let policy = Policy { max_failure_percentage: 60.0, min_attempted: 5, max_parallel: 20, ..policy() };
    let mut run = Run::of(policy, &[8]);
    run.offer();
    run.update(5);
    run.say(0, Said::Rejected).unwrap();
    run.fail(1);
    run.stand(5, online(Runs::Other));
    assert_eq!(run.state(5), DeviceState::Reverted);
    run.say(2, Said::Accepted).unwrap();
    run.pass(30 * MINUTE);
    run.stand(2, Standing { silent_for: Some(31 * MINUTE), ..offline() });
    assert_eq!(run.state(2), DeviceState::Vanished);
    assert_eq!(run.whole(), RUNNING, "4 attempted");
    run.stand(3, online(Runs::Before));
    assert_eq!(run.state(3), DeviceState::TimedOut, "it had the offer, and let it lapse");
    assert_eq!(run.whole(), BRAKED, "5 of 5");
    let head = run.rollout.head();
    assert_eq!((head.attempted, head.failed), (5, 5));
    let reasons: Vec<_> = head.failures.iter().collect();
    assert_eq!(reasons, [("ACCEPT_TIMEOUT", 1), ("REPORTED", 1), ("REJECTED", 1), ("SILENT", 1), ("REVERTED", 1)]);
}

#[test]
fn a_brake_for_devices_that_fell_silent_says_so() {
    let mut run = Run::of(lenient(), &[20]);
    run.offer();
    for place in 0..6 {
        run.say(place, Said::Accepted).unwrap();
    }
    run.pass(30 * MINUTE);
    for place in 0..2 {
        run.stand(place, Standing { silent_for: None, ..offline() });
    }
    assert_eq!(run.whole(), (DeploymentState::Paused, Reason::Vanished));
}

#[test]
fn resuming_after_the_brake_needs_an_acknowledgement_and_counts_anew() {
    let mut run = Run::of(lenient(), &[40]);
    run.offer();
    (0..5).for_each(|place| run.fail(place));
    assert_eq!(run.whole(), BRAKED);
    assert!(matches!(run.order(Order::Resume { acknowledge_failures: false }), Err(Refusal::Order(_))));
    assert_eq!(run.whole(), BRAKED);
    run.order(Order::Resume { acknowledge_failures: true }).unwrap();
    assert_eq!((run.whole(), run.wave_states()), (RUNNING, vec![WaveState::Running]));
    run.order(Order::Resume { acknowledge_failures: true }).unwrap();
    run.offer();
    for place in 5..9 {
        run.fail(place);
        assert_eq!(run.whole(), RUNNING, "the old failures do not count");
    }
    run.say(9, Said::Accepted).unwrap();
    assert_eq!(run.whole(), BRAKED);
    assert_eq!(run.rollout.head().failed, 9, "but they are not forgotten");
}

#[test]
fn a_device_that_failed_counts_as_failed_until_it_succeeds() {
    let mut run = Run::of(Policy { max_attempts: 3, ..lenient() }, &[20]);
    run.offer();
    run.fail(0);
    assert_eq!((run.state(0), run.rollout.head().failed), (DeviceState::RetryWait, 1));
    run.pass(5 * MINUTE);
    run.offer();
    assert_eq!((run.state(0), run.rollout.head().failed), (DeviceState::Offered, 1));
    run.update(0);
    assert_eq!(run.rollout.head().failed, 0);
}

#[test]
fn the_brake_watches_while_a_wave_soaks_and_waits_to_be_promoted() {
    for auto_promote in [true, false] {
        let mut canary = InitialWave { auto_promote, ..wave("canary") };
        if auto_promote {
            canary.soak = Duration::from_secs(3_600);
        }
        let mut run = Run::start(lenient(), vec![canary, wave("rest")], devices(&[3, 10]));
        run.update_all();
        let state = if auto_promote { WaveState::Soaking } else { WaveState::AwaitingPromotion };
        assert_eq!(run.wave_states(), [state, WaveState::Pending]);
        run.stand(1, online(Runs::Before));
        assert_eq!((run.whole(), run.wave_states()), (BRAKED, vec![WaveState::Breached, WaveState::Pending]));
    }
}

#[test]
fn the_brake_looks_at_devices_that_finish_while_an_operator_paused() {
    let mut run = Run::of(lenient(), &[20]);
    run.offer();
    (0..6).for_each(|place| run.say(place, Said::Accepted).unwrap());
    run.order(Order::Pause).unwrap();
    (0..2).for_each(|place| run.say(place, Said::Failed).unwrap());
    assert_eq!(run.whole(), BRAKED, "so that nobody resumes without having seen it");
}

#[test]
fn a_policy_that_says_so_rolls_back_at_once() {
    let mut run = Run::of(Policy { on_breach: OnBreach::RollBack, ..lenient() }, &[20]);
    run.offer();
    run.update(6);
    (0..4).for_each(|place| run.fail(place));
    assert_eq!(run.whole(), (DeploymentState::RollingBack, Reason::Unspecified));
    assert_eq!(run.wave_states(), [WaveState::Breached]);
    assert_eq!(run.state(6), DeviceState::RollbackQueued);
}
