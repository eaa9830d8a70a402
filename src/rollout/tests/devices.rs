//! One device at a time: offers, reports, timers, retries, confirmation.
use super::*;

use DeviceState as D;

fn one() -> Run {
    let mut run = Run::of(Policy { min_attempted: 1, max_failure_percentage: 100.0, ..policy() }, &[3]);
    assert_eq!(run.offer(), [0, 1, 2]);
    run
}

#[test]
fn offers_go_out_in_the_order_of_places_up_to_max_parallel() {
    let mut run = Run::of(Policy { max_parallel: 4, ..policy() }, &[3, 30]);
    assert_eq!(run.offer(), [0, 1, 2]);
    (0..3).for_each(|place| run.update(place));
    run.tick();
    assert_eq!(run.offer(), [3, 4, 5, 6]);
    assert_eq!(run.offer(), [] as [Place; 0]);
    run.update(5);
    assert_eq!(run.offer(), [7]);
    assert_eq!(run.rollout.active_places(), [3, 4, 6, 7]);
    assert_eq!(run.rollout.explain(8).0, "WAITS_FOR_SLOT");
}

#[test]
fn an_offer_says_its_deadlines_in_watched_time() {
    let run = one();
    let offer = run.actions.iter().find(|action| matches!(action, Action::Offer { place: 0, .. }));
    let watched = run.now.watched;
    let expected = Action::Offer {
        place: 0,
        attempt: 1,
        accept_before: watched + 10 * MINUTE,
        finish_before: watched + 70 * MINUTE,
        is_rollback: false,
    };
    assert_eq!(offer, Some(&expected));
    assert_eq!(run.rollout.open_offers().first(), Some(&expected));
}

#[test]
fn states_only_move_forward_and_repeats_count() {
    let mut run = one();
    run.say(0, Said::Downloading).unwrap();
    assert_eq!(run.state(0), D::Downloading, "accepting goes without saying");
    assert!(run.rollout.record(0).accepted_at().is_some());
    run.say(0, Said::Rebooting).unwrap();
    for earlier in [Said::Accepted, Said::Downloading, Said::Rebooting, Said::Installing] {
        assert_eq!(run.say(0, earlier), Ok(()));
        assert_eq!(run.state(0), D::Rebooting);
    }
}

#[test]
fn reports_that_do_not_count_say_why() {
    let mut run = one();
    run.fail(0);
    let report = |attempt, state| Event::Report { place: 0, attempt, state };
    assert_eq!(code(run.apply(report(2, Said::Accepted))), "NOT_OFFERED");
    assert_eq!(code(run.apply(report(1, Said::Installing))), "OFFER_REVOKED");
    assert_eq!(run.apply(report(1, Said::Failed)), Ok(()), "a repeat");
    assert_eq!(code(run.apply(report(1, Said::Unspecified))), "STATE_MISSING");
    assert_eq!(code(run.apply(Event::Report { place: 99, attempt: 1, state: Said::Accepted })), "NOT_OFFERED");
    run.order(Order::RetryFailed { places: None }).unwrap();
    run.offer();
    assert_eq!(code(run.apply(report(1, Said::Accepted))), "OLD_ATTEMPT");
    run.order(Order::Cancel).unwrap();
    assert_eq!(code(run.apply(report(2, Said::Accepted))), "DEPLOYMENT_OVER");
}

#[test]
fn success_needs_the_version_in_heartbeats_for_the_confirm_duration() {
    let mut run = one();
    run.say(0, Said::Succeeded).unwrap();
    assert_eq!(run.state(0), D::Confirming);
    run.now.watched += 5;
    run.stand(0, online(Runs::Target));
    run.now.watched += MINUTE - 1;
    run.stand(0, online(Runs::Target));
    assert_eq!(run.state(0), D::Confirming);
    run.now.watched += MINUTE;
    // The last heartbeat is what counts, not the time of the question.
    run.stand(0, Standing { silent_for: Some(MINUTE), ..online(Runs::Target) });
    assert_eq!(run.state(0), D::Confirming);
    run.stand(0, online(Runs::Target));
    assert_eq!(run.state(0), D::Succeeded);
}

#[test]
fn a_version_that_goes_away_again_starts_the_confirmation_over() {
    let mut run = one();
    run.say(0, Said::Succeeded).unwrap();
    for runs in [Runs::Target, Runs::Before, Runs::Target] {
        run.now.watched += 40 * SECOND;
        run.stand(0, online(runs));
    }
    assert_eq!(run.state(0), D::Confirming);
    run.now.watched += MINUTE;
    run.stand(0, online(Runs::Target));
    assert_eq!(run.state(0), D::Succeeded);
}

#[test]
fn a_device_that_shows_the_version_is_confirming_without_a_word() {
    let mut run = one();
    run.say(0, Said::Accepted).unwrap();
    run.now.watched += 1;
    run.stand(0, online(Runs::Target));
    assert_eq!(run.state(0), D::Confirming);
    // Even one that never accepted.
    run.stand(1, online(Runs::Target));
    assert_eq!(run.state(1), D::Confirming);
    assert!(run.revoked().contains(&(1, 1)));
    assert_eq!(run.rollout.head().attempted, 2);
}

#[test]
fn a_word_without_the_version_times_out() {
    let mut run = one();
    run.say(0, Said::Succeeded).unwrap();
    run.pass(60 * MINUTE - 1);
    assert_eq!(run.state(0), D::Confirming);
    run.pass(1);
    assert_eq!((run.state(0), run.rollout.record(0).reason_code()), (D::TimedOut, "NOT_CONFIRMED"));
}

#[test]
fn an_offer_that_was_read_lapses_and_one_that_was_not_is_taken_back() {
    let mut run = one();
    run.pass(10 * MINUTE);
    run.stand(0, online(Runs::Before));
    run.stand(1, Standing { silent_for: Some(10 * MINUTE), ..online(Runs::Before) });
    assert_eq!((run.state(0), run.rollout.record(0).reason_code()), (D::TimedOut, "ACCEPT_TIMEOUT"));
    assert_eq!((run.state(1), run.rollout.record(1).reason_code()), (D::Held, "OFFLINE"));
    assert_eq!(run.rollout.head().attempted, 1);
    assert_eq!(run.revoked(), [(0, 1), (1, 1)]);
    // One that is known to be gone does not hold its slot that long, unless it took the offer along.
    let mut run = one();
    run.pass(MINUTE);
    run.stand(1, Standing { silent_for: Some(30 * SECOND), ..offline() });
    run.stand(2, offline());
    assert_eq!((run.state(1), run.state(2)), (D::Offered, D::Held));
}

#[test]
fn finishing_late_and_silence_end_an_attempt() {
    let mut run = one();
    run.say(0, Said::Accepted).unwrap();
    run.say(1, Said::Accepted).unwrap();
    run.pass(29 * MINUTE);
    run.stand(1, online(Runs::Before));
    run.pass(MINUTE);
    run.stand(0, Standing { silent_for: Some(31 * MINUTE), ..offline() });
    run.stand(1, Standing { silent_for: Some(MINUTE), ..online(Runs::Before) });
    assert_eq!((run.state(0), run.state(1)), (D::Vanished, D::Accepted));
    run.pass(30 * MINUTE);
    assert_eq!((run.state(1), run.rollout.record(1).reason_code()), (D::TimedOut, "FINISH_TIMEOUT"));
}

#[test]
fn nothing_is_late_because_the_wall_clock_jumped() {
    let mut run = one();
    run.say(0, Said::Accepted).unwrap();
    for year in [3_000, -3_000] {
        run.now.wall = UnixMillis::from_millis_clamped(NOON + year * 86_400_000);
        run.tick();
        run.stand(0, online(Runs::Before));
        assert_eq!((run.state(0), run.state(1)), (D::Accepted, D::Offered));
    }
    // Nor because watched time is told wrong: it never goes back.
    let watched = run.rollout.head().watched;
    run.now.watched = 0;
    run.say(1, Said::Accepted).unwrap();
    assert_eq!((run.state(0), run.state(1)), (D::Accepted, D::Accepted));
    assert_eq!((run.rollout.head().watched, run.rollout.record(1).accepted_at()), (watched, Some(watched)));
}

#[test]
fn failed_attempts_are_retried_with_a_backoff_that_doubles_up_to_its_limit() {
    let policy = Policy {
        max_attempts: 4,
        max_failure_percentage: 100.0,
        max_retry_backoff: Duration::from_secs(900),
        ..policy()
    };
    let mut run = Run::of(policy, &[1]);
    for (attempt, minutes) in [(1, 5), (2, 10), (3, 15)] {
        assert_eq!(run.offer(), [0]);
        assert_eq!(run.rollout.record(0).attempt(), attempt);
        run.fail(0);
        assert_eq!(run.state(0), D::RetryWait);
        run.pass(minutes * MINUTE - 1);
        assert_eq!((run.state(0), run.rollout.explain(0).0), (D::RetryWait, "RETRY_WAIT"));
        run.pass(1);
        assert_eq!(run.state(0), D::Queued);
    }
    run.offer();
    run.fail(0);
    assert_eq!(run.state(0), D::Failed);
    assert_eq!(run.offers_of(0), [1, 2, 3, 4]);
}

#[test]
fn rejected_and_vanished_devices_are_not_retried_by_themselves() {
    let policy = Policy { max_attempts: 4, max_failure_percentage: 100.0, ..policy() };
    let mut run = Run::of(policy, &[2, 1]);
    run.offer();
    run.say(0, Said::Rejected).unwrap();
    run.say(1, Said::Accepted).unwrap();
    run.pass(30 * MINUTE);
    run.stand(1, Standing { silent_for: None, ..offline() });
    assert_eq!(run.states()[..2], [D::Rejected, D::Vanished]);
    // By an order they are, and the number of attempts begins again, not their numbering.
    run.order(Order::RetryFailed { places: None }).unwrap();
    assert_eq!(run.states()[..2], [D::Queued, D::Queued]);
    assert!(run.rollout.record(0).has_failed());
}

#[test]
fn a_success_that_goes_back_is_reverted_by_heartbeat_or_word() {
    let mut run = one();
    run.update(0);
    run.update(1);
    run.stand(0, Standing { silent_for: Some(5 * MINUTE), ..online(Runs::Before) });
    assert_eq!(run.state(0), D::Succeeded, "a heartbeat from before says nothing");
    run.stand(0, Standing { is_taken: true, ..online(Runs::Other) });
    assert_eq!(run.state(0), D::Succeeded, "another deployment's work is no revert");
    run.stand(0, online(Runs::Before));
    run.say(1, Said::Reverted).unwrap();
    assert_eq!((run.state(0), run.state(1)), (D::Reverted, D::Reverted));
    assert_eq!(run.rollout.head().failed, 2);
}

#[test]
fn a_device_that_was_given_up_recovers_when_it_shows_the_version() {
    let mut run = one();
    run.say(0, Said::Rebooting).unwrap();
    run.pass(31 * MINUTE);
    run.stand(0, Standing { silent_for: None, ..offline() });
    assert_eq!((run.state(0), run.rollout.head().failed), (D::Vanished, 1));
    run.stand(0, Standing { silent_for: Some(MINUTE), ..online(Runs::Target) });
    assert_eq!(run.state(0), D::Vanished, "heard before it vanished");
    run.stand(0, online(Runs::Target));
    assert_eq!((run.state(0), run.rollout.head().failed), (D::Succeeded, 0));
    assert!(run.rollout.record(0).is_recovered());
}

#[test]
fn what_is_in_the_way_holds_a_device_with_its_reason() {
    let window = fleetd_proto::v1::MaintenanceWindow { time_zone: "device".into(), ..Default::default() };
    let mut run = Run::of(Policy { windows: vec![window], ..policy() }, &[5, 1]);
    let cases = [
        (offline(), "OFFLINE"),
        (Standing { reachability: Reachability::Maintenance, ..online(Runs::Before) }, "MAINTENANCE"),
        (Standing { is_window_open: false, ..online(Runs::Before) }, "WINDOW_CLOSED"),
        (Standing { is_taken: true, ..online(Runs::Before) }, "IN_OTHER_DEPLOYMENT"),
    ];
    for (place, (standing, code)) in (0..).zip(cases) {
        run.stand(place, standing);
        assert_eq!((run.state(place), run.rollout.record(place).reason_code()), (D::Held, code));
        assert_eq!(run.rollout.explain(place).0, code);
    }
    // Not before its turn.
    run.stand(5, offline());
    assert_eq!((run.state(5), run.rollout.explain(5).0), (D::Queued, "WAITS_FOR_WAVE"));
    for place in 0..4 {
        run.stand(place, online(Runs::Before));
        assert_eq!(run.state(place), D::Queued);
    }
    assert_eq!(run.offer(), [0, 1, 2, 3, 4]);
}

#[test]
fn a_candidate_that_has_the_version_already_is_left_alone() {
    let mut run = Run::of(policy(), &[2]);
    run.stand(0, online(Runs::Target));
    assert_eq!(run.state(0), D::AlreadyInstalled);
    assert_eq!(run.rollout.head().attempted, 0);
    assert!((run.rollout.head().progress_percent() - 50.0).abs() < 1e-9);
}

#[test]
fn removed_and_superseded_devices_free_their_slot() {
    let mut run = Run::of(Policy { max_parallel: 3, max_failure_percentage: 100.0, ..policy() }, &[6]);
    run.offer();
    run.update(2);
    run.offer();
    run.say(1, Said::Installing).unwrap();
    run.take(Event::Removed { place: 0 });
    let before = run.states();
    let refused = run.apply(Event::Superseded { place: 1 });
    assert!(matches!(&refused, Err(Refusal::Order(why)) if why.contains("INSTALLING")), "{refused:?}");
    assert_eq!(run.states(), before, "one that works on the update ends that first");
    run.take(Event::Superseded { place: 2 });
    run.take(Event::Superseded { place: 3 });
    assert_eq!(run.states()[..4], [D::Removed, D::Installing, D::Succeeded, D::Superseded]);
    assert!(run.revoked().contains(&(0, 1)) && run.revoked().contains(&(3, 1)));
    assert_eq!(code(run.say(3, Said::Accepted)), "OFFER_REVOKED");
    run.stand(2, online(Runs::Other));
    assert_eq!(run.state(2), D::Succeeded, "what another deployment does to it is not its revert");
    assert_eq!(run.offer(), [4, 5]);
    run.say(1, Said::Failed).unwrap();
    run.take(Event::Superseded { place: 1 });
    assert_eq!(run.state(1), D::Failed, "how it ended here stays");
}

#[test]
fn joiners_come_last() {
    let mut run = Run::of(policy(), &[1, 1]);
    run.take(Event::Joined { count: 2 });
    assert_eq!((run.rollout.place_count(), run.rollout.record(3).wave()), (4, 1));
    run.update_all();
    assert_eq!(run.whole().0, DeploymentState::Succeeded);
    assert_eq!(run.rollout.head().counts.get(D::Succeeded), 4);
    assert!(matches!(run.apply(Event::Joined { count: 1 }), Err(Refusal::Order(_))));
}

#[test]
fn wanted_names_due_devices_candidates_and_the_held_in_turn() {
    let mut run = Run::of(Policy { max_parallel: 2, ..policy() }, &[6]);
    assert_eq!(run.rollout.wanted(run.now, 3), [0, 1, 2]);
    run.stand(0, offline());
    run.stand(1, offline());
    run.offer();
    let mut seen = Vec::new();
    for _ in 0..4 {
        seen.extend(run.rollout.wanted(run.now, 3));
    }
    for held_or_active in [0, 1, 2, 3] {
        assert!(seen.contains(&held_or_active), "{seen:?}");
    }
    assert!(!seen.contains(&4), "no slot is free for it");
    run.now.watched += 10 * MINUTE;
    assert_eq!(run.rollout.wanted(run.now, 4)[..2], [2, 3], "their offers are due");
}

#[test]
fn every_place_has_a_reason() {
    let mut run = Run::of(Policy { max_failure_percentage: 100.0, ..policy() }, &[6, 2]);
    run.stand(0, offline());
    run.offer();
    run.update(1);
    run.fail(2);
    run.say(3, Said::Installing).unwrap();
    run.say(4, Said::Succeeded).unwrap();
    let codes: Vec<_> = (0..8).map(|place| run.rollout.explain(place).0).collect();
    let expected =
        ["OFFLINE", "SUCCEEDED", "REPORTED", "INSTALLING", "CONFIRMING", "OFFERED", "WAITS_FOR_WAVE", "WAITS_FOR_WAVE"];
    assert_eq!(codes, expected);
    run.order(Order::Pause).unwrap();
    assert_eq!(run.rollout.explain(7).0, "PAUSED");
    run.order(Order::Cancel).unwrap();
    assert_eq!(run.rollout.explain(7).0, "DEPLOYMENT_OVER");
}
