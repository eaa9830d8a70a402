//! The registry against real files: what it keeps, what it refuses, how it groups.
use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use tempfile::TempDir;

use super::*;
use crate::auth::{ApiKey, KeyHash, KeyKind};
use crate::ids::DeviceId;
use crate::store::{Device, DeviceChange, DeviceStore, LastSeen, SettingStore, UnixMillis};

pub(super) fn id(text: &str) -> DeviceId {
    DeviceId::parse(text).unwrap()
}

pub(super) fn device(name: &str) -> Device {
    let map = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    };
    Device {
        id: id(name),
        name: format!("Device {name}"),
        device_type: "raspberry-pi".to_owned(),
        version: "1.0.0".to_owned(),
        metadata: map(&[("location", "datacenter-1"), ("quote", "\"'\\")]),
        labels: map(&[]),
        system_info: Bytes::from_static(b"\x0a\x05Linux\x00"),
        registered_at: UnixMillis::from_millis_clamped(1_704_067_200_123),
        last_seen: None,
        key_hash: ApiKey::generate(KeyKind::Device).unwrap().hash(),
        revision: 1,
        maintenance: false,
        heartbeat_interval: None,
    }
}

pub(super) fn open_in(dir: &TempDir) -> SqliteStore {
    SqliteStore::open(&dir.path().join(DATABASE_FILE)).unwrap()
}

pub(super) fn new_store() -> (TempDir, SqliteStore) {
    let dir = TempDir::new().unwrap();
    let store = open_in(&dir);
    (dir, store)
}

#[tokio::test]
async fn a_registered_device_is_read_back_whole_also_after_a_restart() {
    let (dir, store) = new_store();
    let mut full = device("rpi-001");
    full.last_seen = Some(UnixMillis::from_millis_clamped(-5));
    full.maintenance = true;
    full.revision = 7;
    full.heartbeat_interval = Some(Duration::from_millis(86_400_000));
    let plain = device("rpi-002");
    store.register(full.clone()).await.unwrap();
    store.register(plain.clone()).await.unwrap();
    assert_eq!(store.device(&full.id).await.unwrap().as_ref(), Some(&full));
    drop(store);

    let store = open_in(&dir);
    assert_eq!(store.device(&full.id).await.unwrap(), Some(full.clone()));
    assert_eq!(store.device(&plain.id).await.unwrap(), Some(plain.clone()));
    assert_eq!(store.device(&id("rpi-003")).await.unwrap(), None);
    assert_eq!(store.device_of_key(&plain.key_hash).await.unwrap(), Some(plain.id));
    assert_eq!(store.device_of_key(&KeyHash::of("nobody's")).await.unwrap(), None);
    assert_eq!(store.count().await.unwrap(), 2);
}

#[tokio::test]
async fn changes_of_one_device_follow_each_other_and_none_is_lost() {
    let (dir, store) = new_store();
    let registered = device("rpi-001");
    store.register(registered.clone()).await.unwrap();
    let append = |letter: char| -> DeviceChange {
        Box::new(move |device: &Device| {
            let name = format!("{}{letter}", device.name);
            // What belongs to the registry is not the change's to alter.
            Some(Device { name, revision: 99, last_seen: Some(UnixMillis::EPOCH), ..device.clone() })
        })
    };
    let all = join_all("abcdefgh".chars().map(|letter| store.update(&registered.id, append(letter)))).await;
    assert!(all.into_iter().all(|outcome| outcome.unwrap().is_some()));
    assert_eq!(store.update(&registered.id, Box::new(|_| None)).await.unwrap().map(|device| device.revision), Some(9));
    assert_eq!(store.update(&id("rpi-002"), append('x')).await.unwrap(), None);
    drop(store);

    let store = open_in(&dir);
    let name = "Device rpi-001abcdefgh".to_owned();
    let changed = Device { name, revision: 9, ..registered };
    assert_eq!(store.device(&changed.id).await.unwrap(), Some(changed.clone()));
    store.remove(&changed.id, &changed.key_hash).await.unwrap();
    assert_eq!(store.count().await.unwrap(), 0);
}

#[tokio::test]
async fn a_device_that_was_registered_anew_is_not_removed_for_the_old_one() {
    let (_dir, store) = new_store();
    let (old, new) = (device("rpi-001"), device("rpi-001"));
    store.register(old.clone()).await.unwrap();
    store.remove(&old.id, &old.key_hash).await.unwrap();
    store.register(new.clone()).await.unwrap();
    assert!(matches!(store.remove(&old.id, &old.key_hash).await, Err(StoreError::NotFound(_))));
    assert_eq!(store.device_of_key(&old.key_hash).await.unwrap(), None);
    assert_eq!(store.device(&new.id).await.unwrap(), Some(new));
}

#[tokio::test]
async fn closing_leaves_one_file_with_everything_in_it() {
    let (dir, store) = new_store();
    store.register(device("rpi-001")).await.unwrap();
    drop(store);
    let files: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(files, [DATABASE_FILE]);
    assert_eq!(open_in(&dir).count().await.unwrap(), 1);
}

#[tokio::test]
async fn closing_does_what_is_queued_and_refuses_what_comes_later() {
    let (dir, store) = new_store();
    let queued = join_all((0..500).map(|n| store.register(device(&format!("d-{n}")))).collect::<Vec<_>>());
    let not_begun = store.register_many((0..3_000).map(|n| device(&format!("e-{n}"))).collect());
    drop(store);
    for result in queued.await {
        result.unwrap();
    }
    let results = not_begun.await;
    assert_eq!(results.len(), 3_000);
    assert!(results.iter().all(|result| matches!(result, Err(StoreError::Closed { .. }))));
    assert_eq!(open_in(&dir).count().await.unwrap(), 500);
}

#[tokio::test]
async fn a_taken_id_is_refused_and_the_device_there_stays_as_it_is() {
    let (_dir, store) = new_store();
    let first = device("rpi-001");
    store.register(first.clone()).await.unwrap();
    let error = store.register(device("rpi-001")).await.unwrap_err();
    assert!(matches!(&error, StoreError::AlreadyExists(id) if id.as_str() == "rpi-001"), "{error}");
    assert_eq!(store.device(&first.id).await.unwrap(), Some(first));
}

#[tokio::test]
async fn of_callers_that_race_for_one_id_exactly_one_wins() {
    let (_dir, store) = new_store();
    let results = join_all((0..50).map(|_| store.register(device("rpi-001")))).await;
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
    assert!(results.iter().all(|result| matches!(result, Ok(()) | Err(StoreError::AlreadyExists(_)))));
}

#[tokio::test]
async fn a_bulk_registration_answers_for_each_device_in_its_place() {
    let (_dir, store) = new_store();
    store.register(device("d-1500")).await.unwrap();
    let devices: Vec<_> = (0..2_500).map(|n| device(&format!("d-{n:04}"))).collect();
    let results = store.register_many(devices).await;
    assert_eq!(results.len(), 2_500);
    for (n, result) in results.iter().enumerate() {
        assert_eq!(result.is_err(), n == 1_500, "device {n}: {result:?}");
    }
    assert_eq!(store.count().await.unwrap(), 2_500);
    assert!(store.register_many(Vec::new()).await.is_empty());
}

#[tokio::test]
async fn a_list_is_ordered_by_the_bytes_of_ids_and_pages_without_gaps() {
    let (_dir, store) = new_store();
    let mut ids = ["b", "a", "B", "a-1", "a.1", "a10", "a2", "0", "Z:9", "a_1"];
    store.register_many(ids.iter().map(|name| device(name)).collect()).await;
    ids.sort_unstable();
    let mut seen = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let page = store.list(after.as_deref(), 3).await.unwrap();
        assert!(page.len() <= 3);
        let Some(last) = page.last() else { break };
        after = Some(last.id.to_string());
        seen.extend(page.into_iter().map(|device| device.id.to_string()));
    }
    assert_eq!(seen, ids);
    assert_eq!(store.list(None, usize::MAX).await.unwrap().len(), ids.len());
    assert!(store.list(None, 0).await.unwrap().is_empty());
}

#[tokio::test]
async fn last_seen_moves_forward_only_and_leaves_the_revision_alone() {
    let (_dir, store) = new_store();
    store.register_many(vec![device("a"), device("b")]).await;
    let seen = |name: &str, at| LastSeen {
        device: id(name),
        at: UnixMillis::from_millis_clamped(at),
        is_late: false,
        is_offline: false,
    };
    store.touch(vec![seen("a", 100), seen("gone", 100)]).await.unwrap();
    store.touch(vec![seen("a", 50), seen("b", 7)]).await.unwrap();
    let a = store.device(&id("a")).await.unwrap().unwrap();
    assert_eq!((a.last_seen, a.revision), (Some(UnixMillis::from_millis_clamped(100)), 1));
    assert_eq!(store.device(&id("b")).await.unwrap().unwrap().last_seen, Some(UnixMillis::from_millis_clamped(7)));
}

#[tokio::test]
async fn settings_are_set_replaced_and_kept() {
    let (dir, store) = new_store();
    assert_eq!(store.setting("journal").await.unwrap(), None);
    store.set_setting("journal", vec![0, 255, 1]).await.unwrap();
    store.set_setting("journal", vec![2]).await.unwrap();
    store.set_setting("empty", Vec::new()).await.unwrap();
    drop(store);
    let store = open_in(&dir);
    assert_eq!(store.setting("journal").await.unwrap(), Some(vec![2]));
    assert_eq!(store.setting("empty").await.unwrap(), Some(Vec::new()));
}

#[tokio::test]
async fn the_load_of_a_start_shows_every_device_once() {
    let (_dir, store) = new_store();
    let devices: Vec<_> = (0..1_234).map(|n| device(&format!("d-{n:04}"))).collect();
    store.register_many(devices.clone()).await;
    let mut left: BTreeMap<_, _> = devices.into_iter().map(|device| (device.id.to_string(), device)).collect();
    let shown = store
        .for_each_device(&mut |row| {
            let device = left.remove(row.id).expect("shown once, and registered");
            assert_eq!(row.key_hash, device.key_hash);
            assert_eq!(row.metadata.decode().unwrap(), device.metadata);
            assert!(row.labels.is_empty());
            assert_eq!(row.system_info, &device.system_info[..]);
            assert_eq!((row.registered_at, row.last_seen, row.revision), (device.registered_at, None, 1));
        })
        .unwrap();
    assert_eq!(shown, 1_234);
    assert!(left.is_empty());
}

#[tokio::test]
async fn writes_that_wait_share_transactions() {
    let (_dir, store) = new_store();
    let before = store.stats().transactions;
    for group in 0..10 {
        let writes = (0..1_000).map(|n| store.register(device(&format!("d-{group}-{n}"))));
        for result in join_all(writes).await {
            result.unwrap();
        }
    }
    let stats = store.stats();
    let transactions = stats.transactions - before;
    assert_eq!(stats.writes, 10_000);
    assert!(transactions <= 1_000, "10,000 writes took {transactions} transactions");
    assert_eq!((stats.writes_queued, stats.overloaded, stats.writes_failed), (0, 0, 0));
}

#[tokio::test]
async fn a_write_goes_on_when_its_caller_does_not_wait() {
    let (_dir, store) = new_store();
    drop(store.register(device("rpi-001")));
    // Writes are done in their order, so the first is there when the second is acknowledged.
    store.register(device("rpi-002")).await.unwrap();
    assert_eq!(store.count().await.unwrap(), 2);
}

/// Makes the writer wait in a transaction until the returned sender is dropped.
fn hold_writer(store: &SqliteStore) -> (std::sync::mpsc::SyncSender<()>, StoreFuture<()>) {
    let (release, held) = std::sync::mpsc::sync_channel::<()>(1);
    let (began, begun) = std::sync::mpsc::sync_channel::<()>(1);
    let answer = store.write("hold the writer", 0, move |_| {
        let _ = began.send(());
        let _ = held.recv();
        Ok(())
    });
    begun.recv().unwrap();
    (release, answer)
}

#[tokio::test]
async fn a_full_queue_turns_writes_away_and_does_all_that_it_took() {
    let (_dir, store) = new_store();
    let (release, held) = hold_writer(&store);
    let mut taken = Vec::new();
    let mut refused = 0;
    for n in 0..WRITE_QUEUE + 100 {
        let mut write = store.register(device(&format!("d-{n}")));
        match futures_util::poll!(&mut write) {
            std::task::Poll::Ready(Err(StoreError::Overloaded { .. })) => refused += 1,
            std::task::Poll::Ready(other) => panic!("{other:?}"),
            std::task::Poll::Pending => taken.push(write),
        }
    }
    assert_eq!((taken.len(), refused), (WRITE_QUEUE, 100));
    drop(release);
    held.await.unwrap();
    for result in join_all(taken).await {
        result.unwrap();
    }
    assert_eq!(store.count().await.unwrap(), WRITE_QUEUE as u64);
    assert_eq!(store.stats().overloaded, 100);
}

#[tokio::test]
async fn large_writes_are_turned_away_before_they_fill_the_memory() {
    let (_dir, store) = new_store();
    let (release, held) = hold_writer(&store);
    let large = |n| store.set_setting(&format!("s{n}"), vec![0; 8 << 20]);
    let (mut taken, mut refused) = (Vec::new(), 0);
    for n in 0..12 {
        let mut write = large(n);
        match futures_util::poll!(&mut write) {
            std::task::Poll::Ready(Err(StoreError::Overloaded { .. })) => refused += 1,
            std::task::Poll::Ready(other) => panic!("{other:?}"),
            std::task::Poll::Pending => taken.push(write),
        }
    }
    assert_eq!((taken.len(), refused), (7, 5), "64 MiB hold seven settings of 8 MiB and their names");
    drop(release);
    held.await.unwrap();
    for result in join_all(taken).await {
        result.unwrap();
    }
    large(99).await.unwrap();
}

#[tokio::test]
async fn a_write_that_is_refused_or_panics_takes_nobody_with_it() {
    let (_dir, store) = new_store();
    let (release, held) = hold_writer(&store);
    let good = store.register(device("a"));
    let half = store.write("do half", 0, |connection| {
        connection.execute("INSERT INTO settings (name, value) VALUES ('half', x'00')", [])?;
        Err::<(), _>(JobError::Refused(StoreError::Overloaded { work: "halves" }))
    });
    let wrong = store.write("do nonsense", 0, |connection| {
        connection.execute("INSERT INTO settings (name, value) VALUES ('wrong', x'00')", [])?;
        connection.execute("INSERT INTO settings (name, value) VALUES ('wrong', NULL)", [])?;
        Ok(())
    });
    let panics = store.write::<(), _>("panic", 0, |connection| {
        connection.execute("INSERT INTO settings (name, value) VALUES ('panic', x'00')", [])?;
        panic!("as a bug would")
    });
    let last = store.register(device("b"));
    drop(release);
    held.await.unwrap();
    good.await.unwrap();
    assert!(matches!(half.await, Err(StoreError::Overloaded { work: "halves" })));
    assert!(matches!(wrong.await, Err(StoreError::Backend { operation: "do nonsense", .. })));
    assert!(matches!(panics.await, Err(StoreError::Backend { operation: "panic", .. })));
    last.await.unwrap();
    assert_eq!(store.count().await.unwrap(), 2);
    for name in ["half", "wrong", "panic"] {
        assert_eq!(store.setting(name).await.unwrap(), None, "{name} left something behind");
    }
    // Writing the panic's backtrace can outlast GROUP_TIME, so the last one may be in a group of its own.
    assert!(store.stats().transactions <= 2, "{:?}", store.stats());
}

#[tokio::test]
async fn a_full_database_refuses_loses_nothing_acknowledged_and_goes_on_with_room() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join(DATABASE_FILE);
    let writer = connection::open_writer(&path).unwrap();
    let pages: i64 = writer.query_row("PRAGMA page_count", [], |row| row.get(0)).unwrap();
    writer.pragma_update(None, "max_page_count", pages + 20).unwrap();
    let store = SqliteStore::start(&path, writer, vec![connection::open_reader(&path).unwrap()]).unwrap();

    let names: Vec<_> = (0..2_000).map(|n| format!("d-{n}")).collect();
    let (mut acknowledged, mut refused) = (Vec::new(), 0);
    for group in names.chunks(100) {
        let results = join_all(group.iter().map(|name| store.register(device(name)))).await;
        for (name, result) in group.iter().zip(results) {
            match result {
                Ok(()) => acknowledged.push(name),
                Err(StoreError::DiskFull { .. }) => refused += 1,
                Err(other) => panic!("{other:?}"),
            }
        }
    }
    assert!(!acknowledged.is_empty() && refused > 0, "{} acknowledged, {refused} refused", acknowledged.len());
    assert_eq!(store.count().await.unwrap(), acknowledged.len() as u64);
    for name in &acknowledged {
        assert!(store.device(&id(name)).await.unwrap().is_some(), "{name} was acknowledged");
    }

    store
        .write("make room", 0, |connection| Ok(connection.pragma_update(None, "max_page_count", 1_000_000)?))
        .await
        .unwrap();
    store.register(device("after")).await.unwrap();
}

#[test]
fn a_file_that_is_no_database_stops_the_start_and_stays_as_it_is() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join(DATABASE_FILE);
    let text = "this is a shopping list, and no database\n".repeat(200);
    fs::write(&path, &text).unwrap();
    let error = SqliteStore::open(&path).err().unwrap();
    assert!(matches!(error, StoreError::Foreign { .. }), "{error}");
    assert!(error.to_string().contains("registry.db is no database"), "{error}");
    assert_eq!(fs::read_to_string(&path).unwrap(), text);
}

#[test]
fn another_programs_database_stops_the_start_and_stays_as_it_is() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join(DATABASE_FILE);
    Connection::open(&path).unwrap().execute_batch("CREATE TABLE photos (x)").unwrap();
    let before = fs::read(&path).unwrap();
    let error = SqliteStore::open(&path).err().unwrap();
    assert!(matches!(error, StoreError::Foreign { .. }), "{error}");
    assert_eq!(fs::read(&path).unwrap(), before);
}

#[test]
fn a_newer_fleetds_database_stops_the_start() {
    let (dir, store) = new_store();
    drop(store);
    let path = dir.path().join(DATABASE_FILE);
    Connection::open(&path).unwrap().pragma_update(None, "user_version", 1_000).unwrap();
    let error = SqliteStore::open(&path).err().unwrap();
    assert!(matches!(error, StoreError::Newer { found: 1_000, .. }), "{error}");
}

#[tokio::test]
async fn a_damaged_database_is_reported_as_damaged_by_the_load_of_the_start() {
    let (dir, store) = new_store();
    store.register_many((0..2_000).map(|n| device(&format!("d-{n}"))).collect()).await;
    drop(store);
    let path = dir.path().join(DATABASE_FILE);
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2 / 4096 * 4096;
    bytes[middle..middle + 40 * 4096].fill(0xa5);
    fs::write(&path, &bytes).unwrap();
    let found = SqliteStore::open(&path).and_then(|store| store.for_each_device(&mut |_| {}));
    let error = found.unwrap_err();
    assert!(matches!(error, StoreError::Damaged { .. }), "{error:?}");
    assert!(error.to_string().contains("restore it from a backup"), "{error}");
}

#[tokio::test]
async fn a_value_that_somebody_wrote_by_hand_is_damage_not_a_panic() {
    for sql in [
        "UPDATE devices SET id = 'no spaces'",
        "UPDATE devices SET metadata = '[1]'",
        "UPDATE devices SET labels = '{\"a\": 1}'",
        "PRAGMA ignore_check_constraints = ON; UPDATE devices SET revision = -1",
        "PRAGMA ignore_check_constraints = ON; UPDATE devices SET key_hash = x'00'",
    ] {
        let (dir, store) = new_store();
        store.register(device("a")).await.unwrap();
        Connection::open(dir.path().join(DATABASE_FILE)).unwrap().execute_batch(sql).unwrap();
        let error = store.list(None, 10).await.unwrap_err();
        assert!(matches!(error, StoreError::Damaged { .. }), "{sql}: {error:?}");
    }
}

#[tokio::test]
async fn another_process_can_read_and_back_up_while_the_store_writes() {
    let (dir, store) = new_store();
    store.register(device("a")).await.unwrap();
    let other = Connection::open(dir.path().join(DATABASE_FILE)).unwrap();
    other.execute_batch("BEGIN").unwrap();
    let count = || other.query_row("SELECT count(*) FROM devices", [], |row| row.get::<_, i64>(0)).unwrap();
    assert_eq!(count(), 1);
    store.register(device("b")).await.unwrap();
    assert_eq!(count(), 1, "a reader keeps its snapshot");
    other.execute_batch("COMMIT").unwrap();
    assert_eq!(count(), 2);
}

#[test]
fn a_directory_that_is_not_there_is_named() {
    let dir = TempDir::new().unwrap();
    let error = open(&dir.path().join("nowhere")).err().unwrap();
    assert!(matches!(error, StoreError::Open { .. }), "{error:?}");
    assert!(error.to_string().contains("nowhere"), "{error}");
}
