//! What operators may order when.
use super::*;

/// A deployment in each state, by its name.
type Example = (&'static str, fn() -> Run);

const STATES: [Example; 9] = [
    ("AWAITING_APPROVAL", || Run::of(Policy { require_approval: true, ..policy() }, &[1, 1])),
    ("SCHEDULED", || {
        let start_at = Some(UnixMillis::from_millis_clamped(NOON + 1_000));
        Run::of(Policy { start_at, ..policy() }, &[1, 1])
    }),
    ("RUNNING", || Run::of(policy(), &[1, 1])),
    ("PAUSED", || ordered(&[Order::Pause])),
    ("CANCELLED", || ordered(&[Order::Cancel])),
    ("ROLLING_BACK", || {
        let mut run = Run::of(policy(), &[1, 1]);
        run.offer();
        run.update(0);
        run.order(Order::RollBack { force: false }).unwrap();
        run
    }),
    ("ROLLED_BACK", || ordered(&[Order::RollBack { force: false }])),
    ("SUCCEEDED", || {
        let mut run = Run::of(policy(), &[1, 1]);
        run.update_all();
        run
    }),
    ("DENIED", || {
        let mut run = Run::of(Policy { require_approval: true, ..policy() }, &[1]);
        run.order(Order::Deny).unwrap();
        run
    }),
];

fn ordered(orders: &[Order]) -> Run {
    let mut run = Run::of(policy(), &[1, 1]);
    for order in orders {
        run.order(order.clone()).unwrap();
    }
    run
}

#[test]
fn each_order_fits_some_states_is_harmless_in_others_and_refused_in_the_rest() {
    // A letter for each of STATES: o changes something, . is harmless, x is refused.
    let table = [
        (Order::Approve, "oxxxxxxxx"),
        (Order::Deny, "oxxxxxxx."),
        (Order::Pause, "xxo.xxxxx"),
        (Order::Resume { acknowledge_failures: false }, "xx.oxxxxx"),
        (Order::Promote { wave: None }, "xxxxxxxxx"),
        (Order::Cancel, "oooo.xxxx"),
        (Order::RollBack { force: false }, "xxooo..ox"),
        (Order::RetryFailed { places: None }, "xx..xxxxx"),
    ];
    for (order, expected) in table {
        for ((state, make), letter) in STATES.iter().zip(expected.chars()) {
            let mut run = make();
            assert_eq!(run.whole().0.as_str_name(), *state);
            let before = run.rollout.head().clone();
            let result = run.order(order.clone());
            let outcome = match &result {
                Err(Refusal::Order(sentence)) => {
                    assert!(sentence.contains("the deployment") || sentence.contains("no wave"), "{sentence}");
                    'x'
                }
                Err(other) => panic!("{other:?}"),
                Ok(()) if *run.rollout.head() == before => '.',
                Ok(()) => 'o',
            };
            assert_eq!(outcome, letter, "{order:?} while {state}: {result:?}");
            if outcome != 'x' {
                // Whatever an order did, it does not do twice.
                let after = run.rollout.head().clone();
                let _ = run.order(order.clone());
                assert_eq!(*run.rollout.head(), after, "{order:?} twice while {state}");
            }
        }
    }
}

#[test]
fn pausing_revokes_what_nobody_accepted_and_lets_the_rest_finish() {
    let mut run = Run::of(policy(), &[3]);
    run.offer();
    run.say(0, Said::Downloading).unwrap();
    run.order(Order::Pause).unwrap();
    assert_eq!(run.states(), [DeviceState::Downloading, DeviceState::Queued, DeviceState::Queued]);
    assert_eq!(run.revoked(), [(1, 1), (2, 1)]);
    run.confirm(0);
    assert_eq!(run.offer().len(), 0);
    run.order(Order::Resume { acknowledge_failures: false }).unwrap();
    assert_eq!(run.offer(), [1, 2]);
}

#[test]
fn a_cancelled_deployment_records_how_its_working_devices_end() {
    let mut run = Run::of(Policy { max_attempts: 3, ..policy() }, &[4]);
    run.offer();
    run.say(0, Said::Downloading).unwrap();
    run.say(1, Said::Downloading).unwrap();
    run.say(2, Said::Downloading).unwrap();
    run.order(Order::Cancel).unwrap();
    assert_eq!(run.whole().0, DeploymentState::Cancelled);
    assert!(!run.rollout.is_final(), "three still work");
    assert_eq!(run.state(3), DeviceState::Queued);
    run.reload();
    run.say(0, Said::Failed).unwrap();
    assert_eq!(run.state(0), DeviceState::Failed, "there is no other attempt");
    run.confirm(1);
    run.pass(60 * MINUTE);
    assert_eq!(run.state(2), DeviceState::TimedOut);
    assert!(run.rollout.is_final());
}

#[test]
fn retrying_takes_all_that_failed_or_those_that_are_named() {
    let policy = Policy { max_failure_percentage: 100.0, ..policy() };
    let mut run = Run::of(policy, &[4]);
    run.offer();
    (0..3).for_each(|place| run.fail(place));
    run.order(Order::RetryFailed { places: Some(vec![1, 3, 99]) }).unwrap();
    assert_eq!(run.state(1), DeviceState::Queued);
    assert_eq!(run.state(0), DeviceState::Failed);
    run.order(Order::RetryFailed { places: None }).unwrap();
    assert_eq!(run.offer(), [0, 1, 2]);
    (0..4).for_each(|place| run.update(place));
    assert_eq!(run.whole().0, DeploymentState::Succeeded);
    assert_eq!(run.rollout.head().failed, 0);
}

#[test]
fn a_denied_deployment_never_runs() {
    let mut run = Run::of(Policy { require_approval: true, ..policy() }, &[2]);
    run.order(Order::Deny).unwrap();
    run.pass(86_400_000);
    assert_eq!((run.whole().0, run.wave_states()), (DeploymentState::Denied, vec![WaveState::Skipped]));
    assert!(run.rollout.is_final());
    assert_eq!(run.offer().len(), 0);
}

#[test]
fn an_approval_is_harmless_when_it_is_repeated() {
    let mut run = Run::of(Policy { require_approval: true, ..policy() }, &[2]);
    run.order(Order::Approve).unwrap();
    run.order(Order::Approve).unwrap();
    assert_eq!(run.whole().0, DeploymentState::Running);
    assert!(matches!(run.order(Order::Deny), Err(Refusal::Order(_))));
}
