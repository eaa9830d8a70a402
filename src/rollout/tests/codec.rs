//! What is kept comes back as it was.
use proptest::prelude::*;

use super::super::places::PlaceSet;
use super::super::timers::Timers;
use super::*;
use std::collections::BTreeSet;

#[test]
fn a_head_comes_back_whole() {
    let mut canary = InitialWave { gates: vec![gate()], soak: Duration::from_secs(5), ..wave("canary \"1\"") };
    canary.gates[0].max_value = Some(f64::NAN);
    let mut run =
        Run::start(Policy { max_failure_percentage: 33.3, ..policy() }, vec![canary, wave("rest")], devices(&[3, 3]));
    run.update_all();
    run.pass(MINUTE);
    run.take(Event::Measured { wave: 0, results: verdict(Verdict::Inconclusive) });
    let head = run.rollout.head();
    let back = Head::decode(&head.encode()).unwrap();
    assert_eq!(back.waves[0].gate_results, head.waves[0].gate_results);
    assert_eq!(back.encode(), head.encode());
    assert!(back.waves[0].gates[0].max_value.unwrap().is_nan());
    assert_eq!(back.message(), head.message());
    assert!(back.message().contains("cpu_usage"), "{}", back.message());
}

#[test]
fn heads_and_records_of_other_versions_are_refused() {
    let run = Run::of(policy(), &[1]);
    let text = String::from_utf8(run.rollout.head().encode()).unwrap();
    assert!(Head::decode(text.replacen("\"version\":1", "\"version\":2", 1).as_bytes()).is_err());
    assert!(Head::decode(b"{").is_err());
    let record = run.rollout.record(0).encode();
    let with = |at: usize, byte: u8| {
        let mut bytes = record;
        bytes[at] = byte;
        Record::decode(&bytes)
    };
    assert_eq!(with(0, 2), Err(RecordError::Version(2)));
    assert_eq!(with(46, 200), Err(RecordError::State(200)));
    assert_eq!(with(47, 99), Err(RecordError::Why(99)));
    assert_eq!(Record::decode(&record[1..]), Err(RecordError::Length(48)));
}

#[test]
fn a_device_takes_48_bytes() {
    assert_eq!(size_of::<Record>(), 48);
}

#[test]
fn the_median_is_within_its_bucket_and_the_rate_is_of_ten_minutes() {
    let mut durations = Durations::default();
    assert_eq!(durations.median(), None);
    for millis in [90_000, 100_000, 110_000, 1, 9_000_000] {
        durations.add(millis);
    }
    let median = durations.median().unwrap();
    assert!((65_536..131_072).contains(&median), "{median}");
    let mut pace = Pace::default();
    for minute in 0..30 {
        pace.add(minute * MINUTE);
        pace.add(minute * MINUTE + 1);
    }
    assert_eq!(pace.recent(29 * MINUTE), 20);
    assert_eq!(pace.recent(34 * MINUTE), 10);
    assert_eq!(pace.recent(99 * MINUTE), 0);
    assert!((pace.per_minute(0, 29 * MINUTE) - 2.0).abs() < 1e-9);
    pace.add(99 * MINUTE);
    assert_eq!(pace.recent(99 * MINUTE), 1);
}

proptest! {
    #[test]
    fn a_record_comes_back_whole(
        words in any::<[u64; 4]>(),
        attempt in any::<u32>(),
        shorts in any::<[u16; 4]>(),
        state in 0..25_u8,
        why in 0..16_u8,
    ) {
        let mut bytes = vec![1];
        words.iter().for_each(|word| bytes.extend(word.to_le_bytes()));
        bytes.extend(attempt.to_le_bytes());
        let flags = shorts[3] & !super::super::record::flag::DIRTY;
        [shorts[0], shorts[1], shorts[2], flags].iter().for_each(|short| bytes.extend(short.to_le_bytes()));
        bytes.extend([7, state, why, 15 - why]);
        let record = Record::decode(&bytes).unwrap();
        prop_assert_eq!(record.encode().to_vec(), bytes);
    }

    #[test]
    fn a_set_of_places_is_a_set(
        changes in proptest::collection::vec((any::<bool>(), 0..20_u32, 0..70_u32), 0..300),
        from in 0..1_100_000_u32,
    ) {
        let mut set = PlaceSet::default();
        let mut naive = BTreeSet::new();
        for (is_in, far, near) in changes {
            // Over words, blocks and regions.
            let place = far * 55_555 + near;
            if is_in {
                set.insert(place);
                naive.insert(place);
            } else {
                set.remove(place);
                naive.remove(&place);
            }
            prop_assert_eq!(set.len(), naive.len());
        }
        prop_assert_eq!(set.next_from(from), naive.range(from..).next().copied());
        prop_assert!(set.iter().eq(naive.iter().copied()));
        let (mut cursor, mut round) = (from, Vec::new());
        set.round(&mut cursor, 7, &mut round);
        set.round(&mut cursor, usize::MAX, &mut round);
        let seen: BTreeSet<Place> = round.iter().copied().collect();
        prop_assert_eq!(seen, naive);
    }

    #[test]
    fn timers_come_due_in_order(
        changes in proptest::collection::vec((0..20_u32, proptest::option::of(0..50_u64)), 0..100),
    ) {
        let mut timers = Timers::default();
        let mut naive = std::collections::BTreeMap::new();
        for (place, due) in changes {
            timers.set(place, due);
            match due {
                Some(due) => naive.insert(place, due),
                None => naive.remove(&place),
            };
            prop_assert_eq!(timers.first(), naive.values().min().copied());
        }
        let is_due = |(_, due): &(&Place, &u64)| **due <= 25;
        let mut due: Vec<(u64, Place)> = naive.iter().filter(is_due).map(|(place, due)| (*due, *place)).collect();
        due.sort_unstable();
        let popped: Vec<Place> = std::iter::from_fn(|| timers.pop_due(25)).collect();
        prop_assert!(popped.into_iter().eq(due.into_iter().map(|(_, place)| place)));
    }
}

/// The deployment as a crash leaves it that comes before the last piece of a large step: some records are of later.
fn torn(before: &Rollout, after: &Rollout, is_kept: impl Fn(Place) -> bool) -> Rollout {
    let record = |place| {
        if is_kept(place) || place as usize >= before.place_count() {
            after.record(place)
        } else {
            before.record(place)
        }
    };
    Rollout::load(
        before.policy().clone(),
        before.head().clone(),
        (0..after.place_count() as Place).map(record).collect(),
    )
}

#[test]
fn records_that_are_ahead_of_the_head_are_counted_and_newcomers_among_them() {
    let mut run = Run::of(policy(), &[2, 4]);
    let before = run.rollout.clone();
    for place in 0..2 {
        run.take(Event::Standing { place, standing: online(Runs::Before) });
        run.take(Event::Report { place, attempt: 1, state: Said::Accepted });
    }
    run.take(Event::Report { place: 1, attempt: 1, state: Said::Failed });
    run.take(Event::Joined { count: 3 });
    let torn = torn(&before, &run.rollout, |place| place == 1);
    let head = torn.head();
    assert_eq!((head.counts.get(DeviceState::Failed), head.counts.get(DeviceState::Queued)), (1, 8));
    assert_eq!((head.attempted, head.failed, head.sample.failed, head.waves[0].sample.attempted), (1, 1, 1, 1));
    assert_eq!((head.total_work, head.waves[1].total, head.waves[1].total_work), (9, 7, 7));
    // And nothing changes where the head is of the same step.
    assert_eq!(reloaded(&run.rollout).head(), run.rollout.head());
}

#[test]
fn a_rollback_whose_start_was_not_kept_did_not_begin() {
    let mut run = Run::of(Policy { confirm_duration: Duration::ZERO, ..policy() }, &[2]);
    for place in 0..2 {
        run.take(Event::Standing { place, standing: online(Runs::Before) });
        run.take(Event::Report { place, attempt: 1, state: Said::Succeeded });
    }
    run.pass(SECOND);
    run.take(Event::Standing { place: 0, standing: online(Runs::Target) });
    let before = run.rollout.clone();
    assert_eq!(before.record(0).state(), DeviceState::Succeeded);
    run.take(Event::Order(Order::RollBack { force: false }));
    assert_eq!(run.rollout.record(0).state(), DeviceState::RollbackQueued);
    let torn = torn(&before, &run.rollout, |place| place == 0);
    assert_eq!((torn.record(0).state(), torn.head().state), (DeviceState::Succeeded, DeploymentState::Running));
    assert_eq!(torn.head().counts, before.head().counts);
}
