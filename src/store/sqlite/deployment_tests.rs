//! Updates and deployments against a real file: what is kept, what is seen of it when, and what a restart leaves.
use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;
use tempfile::TempDir;

use super::tests::{device, id, new_store, open_in};
use super::*;
use crate::store::{
    AttemptRecord, DeploymentChange, DeploymentDevice, DeploymentDeviceQuery, DeploymentQuery, DeviceStore,
    NewDeployment, NewUpdate, SettingStore, UnixMillis, UpdateStore,
};

const START: UnixMillis = UnixMillis::from_unix_seconds(1_700_000_000);
const DAY: i64 = 24 * 3600;

fn at(seconds: i64) -> UnixMillis {
    UnixMillis::from_millis_clamped(START.as_millis() + 1_000 * seconds)
}

fn update(name: &str, version: &str) -> NewUpdate {
    NewUpdate {
        name: name.to_owned(),
        version: version.to_owned(),
        body: Bytes::from(format!("\0{name} {version}")),
        created_at: at(1),
    }
}

fn new_deployment(update_id: &str) -> NewDeployment {
    NewDeployment {
        update_id: update_id.to_owned(),
        request_id: String::new(),
        created_by: "admin".to_owned(),
        config: Bytes::from_static(b"config\0"),
        device_filter: "type = 'pi'".to_owned(),
        created_at: at(0),
        state: 1,
        head: Bytes::from_static(b"head\0"),
    }
}

fn member(place: u32, name: &str, state: i32) -> DeploymentDevice {
    DeploymentDevice {
        place,
        device_id: id(name),
        state,
        record: Bytes::from(format!("record of {name} in {state}")),
        from_version: "1.0.0".to_owned(),
        message: String::new(),
        offered_at: None,
        updated_at: at(i64::from(state)),
    }
}

fn members(count: u32) -> Vec<DeploymentDevice> {
    // Places and ids in different orders, as waves make them.
    (0..count).map(|place| member(place, &format!("d{:06}", u64::from(place) * 7_919 % u64::from(count)), 1)).collect()
}

fn change(deployment_id: &str, devices: Vec<DeploymentDevice>) -> DeploymentChange {
    DeploymentChange {
        deployment_id: deployment_id.to_owned(),
        state: 3,
        head: Bytes::from_static(b"later"),
        started_at: Some(at(5)),
        finished_at: None,
        devices,
        attempts: Vec::new(),
    }
}

fn attempt(name: &str, attempt: u32) -> AttemptRecord {
    AttemptRecord {
        device_id: id(name),
        attempt,
        state: 12,
        reason_code: "DISK_FULL".to_owned(),
        message: "no room".to_owned(),
        offered_at: Some(at(1)),
        ended_at: at(2),
    }
}

async fn create(store: &SqliteStore, devices: Vec<DeploymentDevice>) -> String {
    store.create_deployment(new_deployment("update-001"), devices).await.unwrap().0.id
}

fn loaded(store: &SqliteStore, deployment: &str) -> Vec<DeploymentDevice> {
    let mut devices = Vec::new();
    let count = store.for_each_deployment_device(deployment, &mut |device| devices.push(device)).unwrap();
    assert_eq!(count, devices.len() as u64);
    devices
}

/// All pages of a query, which must agree about the total.
async fn paged(store: &SqliteStore, deployment: &str, states: &[i32], limit: usize) -> Vec<DeploymentDevice> {
    let mut query =
        DeploymentDeviceQuery { deployment_id: deployment.to_owned(), states: states.to_vec(), after: None, limit };
    let mut found = Vec::new();
    loop {
        let page = store.deployment_devices(query.clone()).await.unwrap();
        let Some(last) = page.items.last() else {
            assert_eq!(page.total, found.len() as u64);
            return found;
        };
        assert!(page.items.len() <= limit);
        query.after = Some(last.device_id.to_string());
        found.extend(page.items);
    }
}

async fn rows(store: &SqliteStore, table: &'static str) -> i64 {
    let sql = format!("SELECT count(*) FROM {table}");
    store.read("count rows", move |connection| Ok(connection.query_row(&sql, [], |row| row.get(0))?)).await.unwrap()
}

#[tokio::test]
async fn an_update_is_kept_once_by_name_and_version_and_read_back_after_a_restart() {
    let (dir, store) = new_store();
    let first = store.create_update(update("firmware", "2.0.0")).await.unwrap();
    let second = store.create_update(update("firmware", "2.1.0")).await.unwrap();
    let third = store.create_update(update("agent", "2.0.0")).await.unwrap();
    assert_eq!([&first.id, &second.id, &third.id], ["update-001", "update-002", "update-003"]);
    let error = store.create_update(update("firmware", "2.1.0")).await.unwrap_err();
    assert!(
        matches!(&error, StoreError::UpdateExists { id, name, version }
            if (id.as_str(), name.as_str(), version.as_str()) == ("update-002", "firmware", "2.1.0")),
        "{error:?}"
    );
    drop(store);

    let store = open_in(&dir);
    assert_eq!(first.body, Bytes::from_static(b"\0firmware 2.0.0"));
    assert_eq!(store.update_record("update-001").await.unwrap().as_ref(), Some(&first));
    for unknown in ["update-004", "update-1", "deploy-001", ""] {
        assert_eq!(store.update_record(unknown).await.unwrap(), None, "{unknown}");
    }
    assert_eq!(store.update_of_version("2.0.0").await.unwrap().as_ref(), Some(&third));
    assert_eq!(store.update_of_version("9").await.unwrap(), None);
    // A refusal uses no number up.
    assert_eq!(store.create_update(update("agent", "3.0.0")).await.unwrap().id, "update-004");
}

#[tokio::test]
async fn updates_are_listed_newest_first_and_page_without_gaps() {
    let (_dir, store) = new_store();
    for n in 0..7 {
        store.create_update(update("firmware", &format!("1.{n}"))).await.unwrap();
    }
    let (mut seen, mut after) = (Vec::new(), None::<String>);
    loop {
        let page = store.list_updates(after.as_deref(), 3).await.unwrap();
        assert_eq!(page.total, 7);
        let Some(last) = page.items.last() else { break };
        after = Some(last.id.clone());
        seen.extend(page.items.into_iter().map(|update| update.id));
    }
    assert_eq!(seen, (1..=7).rev().map(|n| format!("update-{n:03}")).collect::<Vec<_>>());
    assert_eq!(store.list_updates(Some("nonsense"), 3).await.unwrap().items, []);
}

#[tokio::test]
async fn a_deployment_is_read_back_whole_in_the_order_of_places_also_after_a_restart() {
    // Of one transaction, and of several.
    for count in [0, 5, 4_000, 9_000] {
        let (dir, store) = new_store();
        let devices = members(count);
        let asked = new_deployment("update-001");
        let (record, is_repeat) = store.create_deployment(asked.clone(), devices.clone()).await.unwrap();
        assert!(!is_repeat);
        assert_eq!((record.id.as_str(), record.number), ("deploy-001", 1));
        assert_eq!((&record.config, &record.head, record.state), (&asked.config, &asked.head, 1));
        assert_eq!((record.update_id.as_str(), record.created_by.as_str()), ("update-001", "admin"));
        assert_eq!((record.device_filter.as_str(), record.created_at), ("type = 'pi'", at(0)));
        assert_eq!((record.started_at, record.finished_at), (None, None));
        assert_eq!(store.deployment("deploy-001").await.unwrap().as_ref(), Some(&record));
        drop(store);

        let store = open_in(&dir);
        assert_eq!(store.deployment("deploy-001").await.unwrap().as_ref(), Some(&record));
        assert_eq!(store.deployment("deploy-002").await.unwrap(), None);
        assert_eq!(loaded(&store, "deploy-001"), devices);
        let mut by_id = devices;
        by_id.sort_by(|a, b| a.device_id.as_str().cmp(b.device_id.as_str()));
        assert_eq!(paged(&store, "deploy-001", &[], 1_000).await, by_id);
        assert_eq!(create(&store, members(1)).await, "deploy-002");
    }
}

#[tokio::test]
async fn devices_need_not_come_in_the_order_of_their_places() {
    let (_dir, store) = new_store();
    for count in [10, 9_000] {
        let mut devices = members(count);
        devices.reverse();
        let deployment = create(&store, devices.clone()).await;
        devices.reverse();
        assert_eq!(loaded(&store, &deployment), devices);
    }
}

#[tokio::test]
async fn other_writes_come_between_the_chunks_and_nobody_sees_a_deployment_before_its_last() {
    let (_dir, store) = new_store();
    let mut create = store.create_deployment(new_deployment("update-001"), members(40_000));
    let mut between = 0;
    let (record, _) = loop {
        match futures_util::poll!(&mut create) {
            std::task::Poll::Ready(created) => break created.unwrap(),
            std::task::Poll::Pending => {
                store.set_setting("n", vec![0]).await.unwrap();
                let seen = store.list_deployments(DeploymentQuery { limit: 9, ..Default::default() }).await.unwrap();
                if seen.total == 0 {
                    between += 1;
                    assert_eq!(store.deployment("deploy-001").await.unwrap(), None);
                    assert_eq!(store.deployment_device("deploy-001", &id("d000000")).await.unwrap(), None);
                    assert_eq!(store.last_deployment_of(&id("d000000")).await.unwrap(), None);
                    assert!(store.open_deployments().unwrap().is_empty());
                    assert_eq!(loaded(&store, "deploy-001").len(), 0);
                }
            }
        }
    };
    assert!(between >= 5, "{between} writes and reads came between");
    assert_eq!(record.id, "deploy-001");
    assert_eq!(loaded(&store, "deploy-001").len(), 40_000);
}

#[tokio::test]
async fn a_create_that_is_given_up_is_never_seen_and_the_next_start_removes_it_and_nothing_else() {
    let (dir, store) = new_store();
    let whole = create(&store, members(6_000)).await;
    for (given_up, chunks) in [(1, 0), (2, 1), (3, 3)] {
        let before = rows(&store, "deployment_devices").await;
        let mut create = store.create_deployment(new_deployment("update-001"), members(20_000));
        loop {
            assert!(futures_util::poll!(&mut create).is_pending());
            store.set_setting("n", vec![0]).await.unwrap();
            let is_begun = rows(&store, "deployments").await == 1 + given_up;
            if is_begun && rows(&store, "deployment_devices").await >= before + 4_000 * chunks {
                break;
            }
        }
    }
    store.set_setting("n", vec![1]).await.unwrap();
    assert_eq!(rows(&store, "deployments").await, 4);
    assert!(rows(&store, "deployment_devices").await > 6_000);
    assert_eq!(store.list_deployments(DeploymentQuery { limit: 9, ..Default::default() }).await.unwrap().total, 1);
    drop(store);

    let store = open_in(&dir);
    for (table, expected) in [
        ("deployments", 1),
        ("deployment_heads", 1),
        ("deployment_counts", 1),
        ("deployment_devices", 6_000),
        ("deployment_devices_by_state", 6_000),
    ] {
        assert_eq!(rows(&store, table).await, expected, "{table}");
    }
    assert_eq!(loaded(&store, &whole), members(6_000));
    assert_eq!(create(&store, members(1)).await, "deploy-005", "a number is never given twice");
}

#[tokio::test]
async fn a_repeated_request_keeps_nothing_and_answers_with_the_first_deployment() {
    for count in [2, 6_000] {
        let (_dir, store) = new_store();
        let request = |by: &str, now| NewDeployment {
            request_id: "r1".to_owned(),
            created_by: by.to_owned(),
            created_at: at(now),
            ..new_deployment("update-001")
        };
        let (first, _) = store.create_deployment(request("admin", 0), members(count)).await.unwrap();
        store.save_deployment(change(&first.id, vec![member(0, "d000000", 2)])).await.unwrap();
        let (again, is_repeat) = store.create_deployment(request("admin", DAY), members(5)).await.unwrap();
        assert!(is_repeat);
        assert_eq!(Some(&again), store.deployment(&first.id).await.unwrap().as_ref(), "as it is now");
        assert_eq!(again.head, Bytes::from_static(b"later"));
        assert_eq!(store.create_deployment(request("other", 1), members(1)).await.unwrap().0.id, "deploy-002");
        let (next_day, is_repeat) = store.create_deployment(request("admin", DAY + 1), members(1)).await.unwrap();
        assert_eq!((next_day.id.as_str(), is_repeat), ("deploy-003", false));
        let (latest, _) = store.create_deployment(request("admin", DAY + 2), members(1)).await.unwrap();
        assert_eq!(latest.id, "deploy-003");
        assert_eq!(loaded(&store, &first.id).len(), count as usize);
    }
}

#[tokio::test]
async fn a_request_that_is_not_over_yet_is_in_progress_and_one_that_was_given_up_is_free_again() {
    let (_dir, store) = new_store();
    let request = || NewDeployment { request_id: "r1".to_owned(), ..new_deployment("update-001") };
    let mut first = store.create_deployment(request(), members(20_000));
    assert!(futures_util::poll!(&mut first).is_pending());
    for devices in [1, 6_000] {
        let refused = store.create_deployment(request(), members(devices)).await;
        assert!(matches!(refused, Err(StoreError::InProgress { .. })), "{refused:?}");
    }
    drop(first);
    let (second, is_repeat) = store.create_deployment(request(), members(5_000)).await.unwrap();
    assert!(!is_repeat);
    assert_eq!(store.create_deployment(request(), vec![]).await.unwrap(), (second, true));
}

#[tokio::test]
async fn a_step_replaces_what_it_names_adds_joiners_and_leaves_the_rest() {
    let (dir, store) = new_store();
    let deployment = create(&store, vec![member(0, "c", 1), member(1, "a", 1), member(2, "b", 1)]).await;
    let offered = DeploymentDevice {
        offered_at: Some(at(7)),
        message: "downloading…".to_owned(),
        from_version: "1.0.1".to_owned(),
        ..member(1, "a", 4)
    };
    let step = DeploymentChange {
        attempts: vec![attempt("a", 1), attempt("b", 1)],
        finished_at: Some(at(9)),
        ..change(&deployment, vec![offered.clone(), member(7, "joiner", 1)])
    };
    store.save_deployment(step).await.unwrap();
    drop(store);

    let store = open_in(&dir);
    let record = store.deployment(&deployment).await.unwrap().unwrap();
    assert_eq!((record.state, record.started_at, record.finished_at), (3, Some(at(5)), Some(at(9))));
    assert_eq!((&record.head[..], &record.config[..]), (&b"later"[..], &b"config\0"[..]));
    let expected = [member(0, "c", 1), offered.clone(), member(2, "b", 1), member(7, "joiner", 1)];
    assert_eq!(loaded(&store, &deployment), expected);
    assert_eq!(store.deployment_device(&deployment, &id("a")).await.unwrap(), Some(offered));
    assert_eq!(store.deployment_device(&deployment, &id("joiner")).await.unwrap(), Some(member(7, "joiner", 1)));
    assert_eq!(store.deployment_device(&deployment, &id("z")).await.unwrap(), None);
    assert_eq!(store.deployment_device("deploy-009", &id("a")).await.unwrap(), None);

    // Times may be taken back, and a step may change nothing but the head.
    store.save_deployment(DeploymentChange { started_at: None, ..change(&deployment, vec![]) }).await.unwrap();
    let record = store.deployment(&deployment).await.unwrap().unwrap();
    assert_eq!((record.started_at, record.finished_at), (None, None));
}

#[tokio::test]
async fn a_step_is_kept_whole_or_not_at_all() {
    let (_dir, store) = new_store();
    let deployment = create(&store, members(100)).await;
    let before = (store.deployment(&deployment).await.unwrap(), loaded(&store, &deployment));
    let moved: Vec<_> = members(100).into_iter().map(|device| DeploymentDevice { state: 2, ..device }).collect();
    let unknown_attempt =
        DeploymentChange { attempts: vec![attempt("stranger", 1)], ..change(&deployment, moved.clone()) };
    let mut twice = moved;
    twice.push(member(100, "d000050", 1));
    for wrong in [unknown_attempt, change(&deployment, twice), change("deploy-002", vec![]), change("x", vec![])] {
        let error = store.save_deployment(wrong).await.unwrap_err();
        assert!(matches!(error, StoreError::Backend { operation: "save a deployment", .. }), "{error:?}");
        assert_eq!((store.deployment(&deployment).await.unwrap(), loaded(&store, &deployment)), before);
        assert_eq!(paged(&store, &deployment, &[1], 50).await.len(), 100);
    }
}

#[tokio::test]
async fn a_large_step_lets_others_write_in_between() {
    let (_dir, store) = new_store();
    let deployment = create(&store, members(20_000)).await;
    let moved = members(20_000).into_iter().map(|device| DeploymentDevice { state: 2, ..device }).collect();
    let before = store.stats().transactions;
    store.save_deployment(change(&deployment, moved)).await.unwrap();
    assert_eq!(store.stats().transactions - before, 10);
    assert_eq!(paged(&store, &deployment, &[1], 999).await.len(), 0);
    assert_eq!(paged(&store, &deployment, &[2], 999).await.len(), 20_000);
}

#[tokio::test]
async fn devices_are_paged_by_the_bytes_of_their_ids_and_filtered_by_state() {
    let (_dir, store) = new_store();
    let names = ["b", "a", "B", "a-1", "a.1", "a10", "a2", "0", "Z:9", "a_1"];
    let other = create(&store, vec![member(0, "a", 3)]).await;
    let devices = names.iter().enumerate().map(|(n, name)| member(n as u32, name, n as i32 % 4)).collect();
    let deployment = create(&store, devices).await;
    for (states, limit) in [(&[][..], 3), (&[1], 2), (&[3, 1], 2), (&[1, 1, 3], 1), (&[0, 1, 2, 3], 100), (&[9], 5)] {
        let mut expected: Vec<_> =
            (0..10).filter(|n| states.is_empty() || states.contains(&(n % 4))).map(|n| names[n as usize]).collect();
        expected.sort_unstable();
        let found = paged(&store, &deployment, states, limit).await;
        assert_eq!(found.iter().map(|device| device.device_id.as_str()).collect::<Vec<_>>(), expected, "{states:?}");
    }
    assert_eq!(paged(&store, &other, &[], 9).await, [member(0, "a", 3)]);
    assert!(paged(&store, "deploy-009", &[], 9).await.is_empty());
    let none = DeploymentDeviceQuery { deployment_id: deployment, ..Default::default() };
    let page = store.deployment_devices(none).await.unwrap();
    assert_eq!((page.items.len(), page.total), (0, 10));
}

#[tokio::test]
async fn deployments_are_listed_newest_first_by_update_and_state() {
    let (_dir, store) = new_store();
    for n in 0..10 {
        let asked = NewDeployment { state: n % 3, ..new_deployment(&format!("update-00{}", n % 2)) };
        store.create_deployment(asked, vec![]).await.unwrap();
    }
    for (update_id, states) in
        [(None, vec![]), (Some(1), vec![]), (None, vec![0, 2, 2]), (Some(0), vec![1]), (Some(5), vec![])]
    {
        let expected: Vec<_> = (0..10)
            .rev()
            .filter(|n| update_id.is_none_or(|update| n % 2 == update))
            .filter(|n| states.is_empty() || states.contains(&(n % 3)))
            .map(|n| i64::from(n) + 1)
            .collect();
        let update_id = update_id.map(|update| format!("update-00{update}"));
        let mut query = DeploymentQuery { update_id, states, after: None, limit: 2 };
        let mut found = Vec::new();
        loop {
            let page = store.list_deployments(query.clone()).await.unwrap();
            assert_eq!(page.total, expected.len() as u64, "{query:?}");
            let Some(last) = page.items.last() else { break };
            query.after = Some(last.number);
            found.extend(page.items.into_iter().map(|deployment| deployment.number));
        }
        assert_eq!(found, expected, "{query:?}");
    }
}

#[tokio::test]
async fn open_deployments_are_those_without_an_end_oldest_first() {
    let (_dir, store) = new_store();
    for state in [5, 1, 7, 3] {
        store.create_deployment(NewDeployment { state, ..new_deployment("update-001") }, vec![]).await.unwrap();
    }
    let finished_at = Some(at(9));
    for id in ["deploy-001", "deploy-004"] {
        store.save_deployment(DeploymentChange { finished_at, ..change(id, vec![]) }).await.unwrap();
    }
    // Whatever its state is: one that was cancelled waits for devices that install.
    let open = store.open_deployments().unwrap();
    assert_eq!(open.iter().map(|record| record.id.as_str()).collect::<Vec<_>>(), ["deploy-002", "deploy-003"]);
    assert_eq!(Some(&open[0]), store.deployment("deploy-002").await.unwrap().as_ref());
    // And one that is rolled back after its end is open again.
    store.save_deployment(DeploymentChange { finished_at: None, ..change("deploy-001", vec![]) }).await.unwrap();
    assert_eq!(store.open_deployments().unwrap().len(), 3);
}

#[tokio::test]
async fn the_last_deployment_of_a_device_outlives_its_states_and_its_registration() {
    let (_dir, store) = new_store();
    let registered = device("a");
    store.register(registered.clone()).await.unwrap();
    let first = create(&store, vec![member(0, "a", 1), member(1, "b", 1)]).await;
    assert_eq!(store.last_deployment_of(&id("a")).await.unwrap(), Some(first.clone()));
    let second = create(&store, vec![member(0, "a", 1)]).await;
    create(&store, vec![]).await;
    store.save_deployment(change(&second, vec![member(0, "a", 9)])).await.unwrap();
    store.save_deployment(change(&first, vec![member(0, "a", 8)])).await.unwrap();
    store.remove(&registered.id, &registered.key_hash).await.unwrap();
    assert_eq!(store.last_deployment_of(&id("a")).await.unwrap(), Some(second.clone()));
    assert_eq!(store.last_deployment_of(&id("b")).await.unwrap(), Some(first));
    assert_eq!(store.last_deployment_of(&id("c")).await.unwrap(), None);
    assert_eq!(store.deployment_device(&second, &id("a")).await.unwrap(), Some(member(0, "a", 9)));
    let third = create(&store, vec![]).await;
    store.save_deployment(change(&third, vec![member(0, "c", 1)])).await.unwrap();
    assert_eq!(store.last_deployment_of(&id("c")).await.unwrap(), Some(third), "a joiner counts as well");
}

#[tokio::test]
async fn attempts_are_kept_by_their_number_and_read_last_one_first() {
    let (_dir, store) = new_store();
    let deployment = create(&store, members(10)).await;
    let other = create(&store, members(10)).await;
    let step = |attempts, devices| DeploymentChange { attempts, ..change(&deployment, devices) };
    store.save_deployment(step(vec![attempt("d000000", 1)], vec![])).await.unwrap();
    store
        .save_deployment(step(vec![attempt("d000000", 2), attempt("joins", 1)], vec![member(10, "joins", 1)]))
        .await
        .unwrap();
    // What is saved again is kept once, as it was said last.
    let again = AttemptRecord { offered_at: None, message: "other".to_owned(), ..attempt("d000000", 2) };
    store.save_deployment(step(vec![again.clone()], vec![])).await.unwrap();
    assert_eq!(store.attempts_of(&deployment, &id("d000000")).await.unwrap(), [again, attempt("d000000", 1)]);
    assert_eq!(store.attempts_of(&deployment, &id("joins")).await.unwrap(), [attempt("joins", 1)]);
    for (deployment, name) in [(&deployment, "d000001"), (&deployment, "z"), (&other, "d000000")] {
        assert_eq!(store.attempts_of(deployment, &id(name)).await.unwrap(), [], "{name} in {deployment}");
    }
}

/// A step of a deployment as a model sees it: places and the states they go to; a place that is new joins.
fn steps() -> impl Strategy<Value = Vec<(Vec<(u32, i32)>, bool)>> {
    prop::collection::vec((prop::collection::vec((0..30u32, 0..5i32), 0..8), any::<bool>()), 1..20)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]
    #[test]
    fn after_any_steps_and_restarts_every_read_agrees_with_a_map(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(follow(steps))?;
    }
}

async fn follow(steps: Vec<(Vec<(u32, i32)>, bool)>) -> Result<(), TestCaseError> {
    let (dir, mut store): (TempDir, SqliteStore) = new_store();
    let name = |place: u32| format!("d{:02}", place * 7 % 30);
    let mut model: BTreeMap<u32, DeploymentDevice> =
        (0..15).map(|place| (place, member(place, &name(place), 0))).collect();
    let deployment = create(&store, model.values().cloned().collect()).await;
    create(&store, members(30)).await;
    for (changed, is_restart) in steps {
        let devices: Vec<_> = changed.into_iter().map(|(place, state)| member(place, &name(place), state)).collect();
        model.extend(devices.iter().map(|device| (device.place, device.clone())));
        store.save_deployment(change(&deployment, devices)).await.unwrap();
        if is_restart {
            drop(store);
            store = open_in(&dir);
        }
        prop_assert_eq!(&loaded(&store, &deployment), &model.values().cloned().collect::<Vec<_>>());
        for states in [&[][..], &[0], &[2, 4]] {
            let mut expected: Vec<_> = model.values().cloned().collect();
            expected.retain(|device| states.is_empty() || states.contains(&device.state));
            expected.sort_by(|a, b| a.device_id.as_str().cmp(b.device_id.as_str()));
            prop_assert_eq!(&paged(&store, &deployment, states, 4).await, &expected);
        }
        for device in model.values() {
            let found = store.deployment_device(&deployment, &device.device_id).await.unwrap();
            prop_assert_eq!(found.as_ref(), Some(device));
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_large_step_comes_in_pieces_and_the_head_with_the_last_one() {
    let dir = TempDir::new().unwrap();
    let store = open_in(&dir);
    let deployment = create(&store, members(5_000)).await;
    let mut devices = members(5_000);
    devices.iter_mut().for_each(|device| device.state = 2);
    let names = [devices[0].device_id.to_string(), devices[4_999].device_id.to_string()];
    let attempts: Vec<_> = names.iter().map(|name| attempt(name, 1)).collect();

    // The last piece is refused: the device has another place.
    let mut twice = devices.clone();
    twice.push(member(5_000, &names[0], 2));
    let step = DeploymentChange { attempts: attempts.clone(), ..change(&deployment, twice) };
    store.save_deployment(step).await.unwrap_err();
    assert_eq!(&store.deployment(&deployment).await.unwrap().unwrap().head[..], b"head\0");
    let ahead = loaded(&store, &deployment).iter().filter(|device| device.state == 2).count();
    assert_eq!(ahead, 4_000, "what came before is kept, in the order of the step");
    assert_eq!(paged(&store, &deployment, &[2], 1_000).await.len(), ahead);

    store.save_deployment(DeploymentChange { attempts, ..change(&deployment, devices.clone()) }).await.unwrap();
    assert_eq!(&store.deployment(&deployment).await.unwrap().unwrap().head[..], b"later");
    assert_eq!(loaded(&store, &deployment), devices);
    for name in names {
        assert_eq!(store.attempts_of(&deployment, &id(&name)).await.unwrap().len(), 1);
    }
}
