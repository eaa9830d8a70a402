//! Commands against a real file: what is promised of their states, also over restarts.
use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use fleetd_proto::v1::command::State;
use proptest::prelude::*;
use tempfile::TempDir;

use super::tests::{device, id, new_store, open_in};
use super::*;
use crate::commands::{MAX_DELIVERED, MAX_PENDING};
use crate::store::{
    CommandFailures, CommandQuery, CommandStore, DeviceStore, Exchange, NewCommand, Report, UnixMillis,
};

const START: UnixMillis = UnixMillis::from_unix_seconds(1_700_000_000);

fn at(seconds: i64) -> UnixMillis {
    UnixMillis::from_millis_clamped(START.as_millis() + 1_000 * seconds)
}

fn command(name: &str, now: UnixMillis, ttl_seconds: i64) -> NewCommand {
    NewCommand {
        id: name.to_owned(),
        request_id: String::new(),
        created_by: "admin".to_owned(),
        kind: "reboot".to_owned(),
        parameters: BTreeMap::from([("delay".to_owned(), "5".to_owned())]),
        payload: Bytes::from_static(b"\x00\xff"),
        created_at: now,
        expires_at: UnixMillis::from_millis_clamped(now.as_millis() + 1_000 * ttl_seconds),
        timeout: None,
    }
}

fn report(command_id: &str, state: State) -> Report {
    Report { command_id: command_id.to_owned(), state, result: Bytes::from_static(b"said") }
}

fn delivered(exchange: &Exchange) -> Vec<(&str, u32)> {
    exchange.commands.iter().map(|command| (command.id.as_str(), command.attempt)).collect()
}

async fn states(store: &SqliteStore) -> Vec<(String, State)> {
    let page = store.list_commands(CommandQuery { limit: 1_000, ..CommandQuery::default() }).await.unwrap();
    assert_eq!(page.total, page.records.len() as u64);
    page.records.into_iter().map(|record| (record.command.id, record.state)).collect()
}

#[tokio::test]
async fn a_command_goes_its_way_and_each_step_outlives_a_restart() {
    let (dir, mut store) = new_store();
    let rpi = id("rpi-001");
    store.register(device("rpi-001")).await.unwrap();
    store.send_command(command("c1", at(0), 60), vec![rpi.clone()]).await.unwrap();
    for (now, reports, expected, state) in [
        (1, vec![], vec![("c1", 1)], State::Delivered),
        (2, vec![], vec![], State::Delivered),
        (12, vec![], vec![("c1", 2)], State::Delivered),
        (13, vec![report("c1", State::Acked)], vec![], State::Acked),
        (30, vec![report("c1", State::Acked)], vec![], State::Acked),
        (31, vec![report("c1", State::Succeeded)], vec![], State::Succeeded),
        (32, vec![report("c1", State::Failed)], vec![], State::Succeeded),
    ] {
        drop(store);
        store = open_in(&dir);
        let mut commanded = 0;
        store.for_each_commanded_device(&mut |name| commanded += u32::from(name == "rpi-001")).unwrap();
        let exchange = store.exchange_commands(&rpi, reports, at(now)).await.unwrap();
        assert_eq!(delivered(&exchange), expected, "at {now} s");
        assert_eq!(states(&store).await, [("c1".to_owned(), state)], "at {now} s");
        assert!(commanded == 1 || now == 32, "at {now} s the start must find the device");
        assert_eq!(exchange.has_pending, state <= State::Acked, "at {now} s");
    }
    let page = store.list_commands(CommandQuery { limit: 1, ..CommandQuery::default() }).await.unwrap();
    let record = &page.records[0];
    assert_eq!((record.command.attempt, &record.result[..]), (2, &b"said"[..]));
    assert_eq!((record.delivered_at, record.finished_at), (Some(at(12)), Some(at(31))));
    assert_eq!(record.command.payload, Bytes::from_static(b"\x00\xff"));
}

#[tokio::test]
async fn a_repeated_request_queues_nothing_and_answers_as_the_first() {
    let (_dir, store) = new_store();
    store.register(device("a")).await.unwrap();
    let first = NewCommand { request_id: "r1".into(), ..command("c1", at(0), 60) };
    let again = |id: &str, by: &str, now| NewCommand {
        request_id: "r1".into(),
        created_by: by.into(),
        ..command(id, at(now), 60)
    };
    let sent = store.send_command(first, vec![id("a")]).await.unwrap();
    assert_eq!((sent.id.as_str(), sent.targets), ("c1", 1));
    assert_eq!(store.send_command(again("c2", "admin", 5), vec![id("a")]).await.unwrap(), sent);
    assert_eq!(store.send_command(again("c3", "other", 5), vec![id("a")]).await.unwrap().id, "c3");
    let next_day = 24 * 3600 + 1;
    assert_eq!(store.send_command(again("c4", "admin", next_day), vec![id("a")]).await.unwrap().id, "c4");
    assert_eq!(states(&store).await.len(), 3);
}

#[tokio::test]
async fn a_device_with_too_many_waiting_takes_no_more_until_some_are_over() {
    let (_dir, store) = new_store();
    for name in ["a", "b"] {
        store.register(device(name)).await.unwrap();
    }
    for n in 0..MAX_PENDING {
        store.send_command(command(&format!("c{n:03}"), at(0), 600), vec![id("a")]).await.unwrap();
    }
    let both = store.send_command(command("more", at(0), 600), vec![id("a"), id("b"), id("gone")]).await.unwrap();
    assert_eq!((both.targets, both.refused), (1, 1), "who is not registered is passed over");
    let exchange = store.exchange_commands(&id("a"), vec![], at(1)).await.unwrap();
    let expected: Vec<_> = (0..MAX_DELIVERED).map(|n| (format!("c{n:03}"), 1)).collect();
    assert_eq!(exchange.commands.iter().map(|c| (c.id.clone(), c.attempt)).collect::<Vec<_>>(), expected);
    let again = |name: &str| NewCommand { request_id: "r1".into(), ..command(name, at(2), 600) };
    assert_eq!(store.send_command(again("first"), vec![id("a")]).await.unwrap().refused, 1);
    store.exchange_commands(&id("a"), vec![report("c000", State::Failed)], at(2)).await.unwrap();
    let retried = store.send_command(again("second"), vec![id("a")]).await.unwrap();
    assert_eq!((retried.id.as_str(), retried.targets), ("second", 1), "a refusal is not what a retry is answered by");
    store.exchange_commands(&id("a"), vec![report("c001", State::Failed)], at(2)).await.unwrap();
    assert_eq!(store.send_command(command("now", at(3), 600), vec![id("a")]).await.unwrap().targets, 1);
}

#[tokio::test]
async fn a_command_for_many_is_taken_back_where_nobody_has_it() {
    let (_dir, store) = new_store();
    let names: Vec<_> = (0..4_500).map(|n| format!("d{n:04}")).collect();
    let registered = store.register_many(names.iter().map(|name| device(name)).collect()).await;
    assert!(registered.iter().all(Result::is_ok));
    let ids = names.iter().map(|name| id(name)).collect();
    let sent = store.send_command(command("c1", at(0), 60), ids).await.unwrap();
    assert_eq!((sent.targets, sent.refused), (4_500, 0));
    for name in &names[..10] {
        assert_eq!(store.exchange_commands(&id(name), vec![], at(1)).await.unwrap().commands.len(), 1);
    }
    let one = store.cancel_command("c1", Some(&id("d0020")), at(2)).await.unwrap().unwrap();
    assert_eq!((one.canceled, one.too_late), (1, 0));
    let all = store.cancel_command("c1", None, at(2)).await.unwrap().unwrap();
    assert_eq!((all.canceled, all.too_late), (4_489, 11));
    let again = store.cancel_command("c1", None, at(3)).await.unwrap().unwrap();
    assert_eq!((again.canceled, again.too_late), (0, 4_500));
    assert_eq!(store.cancel_command("c2", None, at(3)).await.unwrap(), None);
    assert!(store.exchange_commands(&id("d0020"), vec![], at(3)).await.unwrap().commands.is_empty());
}

#[tokio::test]
async fn a_sweep_ends_what_is_late_and_in_time_forgets_it() {
    let (_dir, store) = new_store();
    store.register(device("a")).await.unwrap();
    let with_timeout = NewCommand { timeout: Some(Duration::from_secs(100)), ..command("works", at(0), 60) };
    store.send_command(with_timeout, vec![id("a")]).await.unwrap();
    store.send_command(command("waits", at(0), 60), vec![id("a")]).await.unwrap();
    store.exchange_commands(&id("a"), vec![report("works", State::Acked)], at(50)).await.unwrap();
    assert_eq!(store.sweep_commands(at(59)).await.unwrap().expired, 0);
    assert_eq!(store.sweep_commands(at(60)).await.unwrap().expired, 1);
    assert_eq!(states(&store).await, [("waits".into(), State::Expired), ("works".into(), State::Acked)]);
    assert_eq!(store.sweep_commands(at(149)).await.unwrap().expired, 0);
    assert_eq!(store.sweep_commands(at(300)).await.unwrap().expired, 1);
    let month = 31 * 24 * 3600;
    while store.sweep_commands(at(month)).await.unwrap().has_more {}
    assert_eq!(states(&store).await, []);
}

#[tokio::test]
async fn a_sweep_ends_a_bounded_number_at_a_time_and_all_in_the_end() {
    let (_dir, store) = new_store();
    let names: Vec<_> = (0..1_500).map(|n| format!("d{n:04}")).collect();
    store.register_many(names.iter().map(|name| device(name)).collect()).await;
    for name in ["c1", "c2", "c3"] {
        store.send_command(command(name, at(0), 60), names.iter().map(|name| id(name)).collect()).await.unwrap();
    }
    let mut ended = Vec::new();
    loop {
        let swept = store.sweep_commands(at(60)).await.unwrap();
        ended.push(swept.expired);
        if !swept.has_more {
            break;
        }
    }
    assert_eq!(ended.iter().sum::<u64>(), 4_500);
    assert!(ended.iter().all(|ended| *ended <= 2_000), "{ended:?}");
}

#[tokio::test]
async fn the_commands_of_a_deleted_device_go_with_it() {
    let (_dir, store) = new_store();
    let registered = device("a");
    store.register(registered.clone()).await.unwrap();
    store.send_command(command("c1", at(0), 60), vec![id("a")]).await.unwrap();
    store.remove(&registered.id, &registered.key_hash).await.unwrap();
    store.register(device("a")).await.unwrap();
    assert_eq!(store.exchange_commands(&id("a"), vec![], at(1)).await.unwrap(), Exchange::default());
    assert_eq!(states(&store).await, []);
}

/// What may happen to the commands of one device.
#[derive(Clone, Debug)]
enum Step {
    Send { ttl: i64 },
    Heartbeat,
    Report { command: usize, state: State },
    Cancel { command: usize },
    Sweep,
    Wait { seconds: i64 },
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let states = prop::sample::select(vec![State::Acked, State::Succeeded, State::Failed]);
    prop_oneof![
        3 => (1..60i64).prop_map(|ttl| Step::Send { ttl }),
        4 => Just(Step::Heartbeat),
        3 => (0..8usize, states).prop_map(|(command, state)| Step::Report { command, state }),
        1 => (0..8usize).prop_map(|command| Step::Cancel { command }),
        1 => Just(Step::Sweep),
        // Also back: a wall clock may jump.
        3 => (-20..40i64).prop_map(|seconds| Step::Wait { seconds }),
        1 => Just(Step::Restart),
    ]
}

/// What the promises are checked against: only what the device and the operator saw.
#[derive(Default)]
struct Seen {
    expires_at: i64,
    deliveries: u32,
    is_canceled: bool,
    /// Reported as over by the device, and taken so.
    is_over: bool,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn no_command_is_lost_doubled_unsaid_or_delivered_after_its_end(steps in prop::collection::vec(step(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(follow(steps))?;
    }
}

async fn follow(steps: Vec<Step>) -> Result<(), TestCaseError> {
    let (dir, mut store): (TempDir, SqliteStore) = new_store();
    store.register(device("a")).await.unwrap();
    let mut seen: Vec<Seen> = Vec::new();
    let mut now = 0;
    for step in steps {
        match step {
            Step::Send { ttl } => {
                let sent = store.send_command(command(&seen.len().to_string(), at(now), ttl), vec![id("a")]).await;
                // Sixty steps never fill the device's queue.
                prop_assert_eq!(sent.unwrap().targets, 1);
                seen.push(Seen { expires_at: now + ttl, ..Seen::default() });
            }
            Step::Heartbeat => {
                let exchange = store.exchange_commands(&id("a"), vec![], at(now)).await.unwrap();
                let mut last = None;
                for delivery in &exchange.commands {
                    let number: usize = delivery.id.parse().unwrap();
                    prop_assert!(last < Some(number), "out of order");
                    last = Some(number);
                    let command = &mut seen[number];
                    command.deliveries += 1;
                    prop_assert_eq!(delivery.attempt, command.deliveries, "an attempt is told wrongly");
                    prop_assert!(now < command.expires_at, "delivered after its end");
                    prop_assert!(!command.is_canceled && !command.is_over, "delivered after it was over");
                }
            }
            Step::Report { command, state } => {
                let reports = vec![report(&command.to_string(), state)];
                let exchange = store.exchange_commands(&id("a"), reports, at(now)).await.unwrap();
                for delivery in &exchange.commands {
                    seen[delivery.id.parse::<usize>().unwrap()].deliveries += 1;
                }
                if exchange.applied == 1 && state != State::Acked {
                    seen[command].is_over = true;
                }
            }
            Step::Cancel { command } => {
                let outcome = store.cancel_command(&command.to_string(), None, at(now)).await.unwrap();
                if outcome.is_some_and(|outcome| outcome.canceled == 1) {
                    prop_assert_eq!(seen[command].deliveries, 0, "taken back from a device that has it");
                    seen[command].is_canceled = true;
                }
            }
            Step::Sweep => drop(store.sweep_commands(at(now)).await.unwrap()),
            Step::Wait { seconds } => now += seconds,
            Step::Restart => {
                drop(store);
                store = open_in(&dir);
            }
        }
    }
    prop_assert_eq!(states(&store).await.len(), seen.len(), "a command is lost, or was never taken");
    Ok(())
}

#[tokio::test]
async fn commands_that_failed_or_expired_are_counted_by_device_since_a_moment() {
    let (_dir, store) = new_store();
    for name in ["a", "b"] {
        store.register(device(name)).await.unwrap();
    }
    for (name, now) in [("old", 0), ("failed", 100), ("done", 101), ("expired", 102)] {
        store.send_command(command(name, at(now), 50), vec![id("a"), id("b")]).await.unwrap();
        let state = match name {
            "old" | "failed" => State::Failed,
            "done" => State::Succeeded,
            _ => continue,
        };
        store.exchange_commands(&id("a"), vec![], at(now + 1)).await.unwrap();
        store.exchange_commands(&id("a"), vec![report(name, state)], at(now + 2)).await.unwrap();
    }
    store.sweep_commands(at(1_000)).await.unwrap();
    let of = |since| store.command_failures(vec![id("b"), id("gone"), id("a")], at(since));
    let failures = |failed, expired| CommandFailures { failed, expired };
    assert_eq!(of(50).await.unwrap(), [failures(0, 4), failures(0, 0), failures(1, 1)]);
    assert_eq!(of(0).await.unwrap()[2], failures(2, 1));
    assert_eq!(of(2_000).await.unwrap(), [CommandFailures::default(); 3]);
}
