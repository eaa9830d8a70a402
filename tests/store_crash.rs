//! The registry under kill -9 and on a disk that fills up: a child process registers devices, keeps deployments and
//! saves their steps, and says which were acknowledged; whatever happens to it, those are there afterwards.
//!
//! The child is this test program, started again with the name of its ignored "test" and a directory.
use std::collections::BTreeMap;
use std::env;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use fleetd::auth::KeyHash;
use fleetd::ids::DeviceId;
use fleetd::store::{
    sqlite, DeploymentChange, DeploymentDevice, DeploymentQuery, Device, NewDeployment, Store, StoreError, UnixMillis,
};

/// Tells the child which directory to work in; without it the child's "test" does nothing.
const DIRECTORY: &str = "FLEETD_TEST_STORE_DIRECTORY";
/// Callers that register at the same time.
const CALLERS: usize = 16;
/// Longer than any step here takes on a loaded machine; reaching it is a failure.
const PATIENCE: Duration = Duration::from_secs(60);

fn device(name: &str) -> Device {
    Device {
        id: DeviceId::parse(name).unwrap(),
        name: name.to_owned(),
        device_type: "raspberry-pi".to_owned(),
        version: "1.0.0".to_owned(),
        metadata: BTreeMap::from([("site".to_owned(), "x".repeat(300))]),
        labels: BTreeMap::new(),
        system_info: vec![7; 40].into(),
        registered_at: UnixMillis::now(),
        last_seen: None,
        key_hash: KeyHash::of(name),
        revision: 1,
        maintenance: false,
        heartbeat_interval: None,
    }
}

fn start_child(test: &str, directory: &Path) -> Child {
    Command::new(env::current_exe().unwrap())
        .args(["--exact", test, "--ignored", "--nocapture", "--test-threads=1"])
        .env(DIRECTORY, directory)
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap()
}

/// The lines `acknowledged NAME` of a child, as they come; ends when the child does.
fn acknowledgements(child: &mut Child) -> mpsc::Receiver<String> {
    let output = BufReader::new(child.stdout.take().unwrap());
    let (sender, receiver) = mpsc::sync_channel(1024);
    std::thread::spawn(move || {
        for line in output.lines().map_while(Result::ok) {
            if let Some(name) = line.strip_prefix("acknowledged ") {
                let _ = sender.send(name.to_owned());
            }
        }
    });
    receiver
}

/// The whole line in one write, so that a kill never leaves half a name that looks like a whole one.
fn say(line: &str) {
    let mut output = std::io::stdout().lock();
    output.write_all(format!("{line}\n").as_bytes()).unwrap();
    output.flush().unwrap();
}

/// Ends the line "test NAME ... " that the test harness has begun: the first acknowledgement would be lost in it.
fn end_the_harness_line() {
    say("");
}

fn names_in(directory: &Path) -> BTreeMap<String, KeyHash> {
    let store = sqlite::open(directory).unwrap();
    let mut names = BTreeMap::new();
    store.for_each_device(&mut |row| assert!(names.insert(row.id.to_owned(), row.key_hash).is_none())).unwrap();
    names
}

#[tokio::test]
#[ignore = "the child of the tests below"]
async fn child_that_registers_until_it_is_killed() {
    let Some(directory) = env::var_os(DIRECTORY) else { return };
    let store = sqlite::open(directory.as_ref()).unwrap();
    let round = store.count().await.unwrap();
    end_the_harness_line();
    let callers = (0..CALLERS).map(|caller| {
        let store = &store;
        async move {
            for n in 0.. {
                let name = format!("d-{round}-{caller}-{n}");
                store.register(device(&name)).await.unwrap();
                say(&format!("acknowledged {name}"));
            }
        }
    });
    futures_util::future::join_all(callers).await;
}

#[test]
fn what_was_acknowledged_before_kill_9_is_there_at_every_moment() {
    let directory = tempfile::tempdir().unwrap();
    let mut acknowledged = Vec::new();
    for round in 0..12_usize {
        let mut child = start_child("child_that_registers_until_it_is_killed", directory.path());
        let lines = acknowledgements(&mut child);
        // A count that differs each round, so that the kill falls on different moments of commit and checkpoint.
        for _ in 0..1 + round * round * 17 % 1_500 {
            acknowledged.push(lines.recv_timeout(PATIENCE).unwrap());
        }
        child.kill().unwrap();
        child.wait().unwrap();
        acknowledged.extend(lines.iter());

        let found = names_in(directory.path());
        for name in &acknowledged {
            assert_eq!(found.get(name), Some(&KeyHash::of(name)), "round {round}: {name} was acknowledged");
        }
        let unanswered = found.len() - acknowledged.len();
        assert!(unanswered <= (round + 1) * CALLERS, "{unanswered} devices that nobody asked for");
    }
}

/// Makes the writes of this process fail beyond a file size, as a full disk does; `None` lifts it.
fn limit_file_size(bytes: Option<u64>) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: plain system calls on a local structure. Ignoring the signal makes the write fail instead.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        assert_eq!(libc::getrlimit(libc::RLIMIT_FSIZE, &mut limit), 0);
        limit.rlim_cur = bytes.unwrap_or(limit.rlim_max);
        assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &limit), 0);
    }
}

#[tokio::test]
#[ignore = "the child of the test below"]
async fn child_whose_writes_fail_for_a_while() {
    let Some(directory) = env::var_os(DIRECTORY) else { return };
    let store = sqlite::open(directory.as_ref()).unwrap();
    end_the_harness_line();
    limit_file_size(Some(1 << 20));
    let mut refused = 0;
    let mut n = 0;
    while refused < 20 {
        let names: Vec<_> = (0..CALLERS).map(|caller| format!("full-{n}-{caller}")).collect();
        let results = futures_util::future::join_all(names.iter().map(|name| store.register(device(name)))).await;
        for (name, result) in names.iter().zip(results) {
            match result {
                Ok(()) => say(&format!("acknowledged {name}")),
                Err(StoreError::DiskFull { .. } | StoreError::Backend { .. }) => refused += 1,
                Err(other) => panic!("{other:?}"),
            }
        }
        n += 1;
    }
    limit_file_size(None);
    store.register(device("room-again")).await.unwrap();
    say("acknowledged room-again");
    // No orderly end: the next start has to make do with what is on the disk.
    std::process::abort();
}

#[test]
fn a_disk_that_fills_up_takes_nothing_back_and_the_registry_goes_on_when_there_is_room() {
    let directory = tempfile::tempdir().unwrap();
    let mut child = start_child("child_whose_writes_fail_for_a_while", directory.path());
    let lines = acknowledgements(&mut child);
    let mut acknowledged = Vec::new();
    loop {
        match lines.recv_timeout(PATIENCE) {
            Ok(name) => acknowledged.push(name),
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Err(mpsc::RecvTimeoutError::Timeout) => panic!("the child hangs after {acknowledged:?}"),
        }
    }
    child.wait().unwrap();
    assert_eq!(acknowledged.last().map(String::as_str), Some("room-again"));
    assert!(acknowledged.len() > 100, "a megabyte holds more than {} devices", acknowledged.len());
    let found = names_in(directory.path());
    for name in &acknowledged {
        assert!(found.contains_key(name), "{name} was acknowledged");
    }
}

/// Devices of a deployment that takes several transactions.
const LARGE: u32 = 9_000;
/// Deployments that take steps at the same time, and so share transactions.
const STEPPING: usize = 4;
/// Devices of each of them.
const SMALL: u32 = 200;

fn number(n: u64) -> Vec<u8> {
    n.to_le_bytes().to_vec()
}

fn new_deployment() -> NewDeployment {
    NewDeployment {
        update_id: "update-001".to_owned(),
        request_id: String::new(),
        created_by: "admin".to_owned(),
        config: vec![1; 500].into(),
        device_filter: String::new(),
        created_at: UnixMillis::now(),
        state: 1,
        head: number(0).into(),
    }
}

/// A device at `place` as step `n` leaves it.
fn member(place: u32, n: u64) -> DeploymentDevice {
    DeploymentDevice {
        place,
        device_id: DeviceId::parse(&format!("d-{:05}", place * 7 % LARGE)).unwrap(),
        state: (n % 9) as i32,
        record: number(n).into(),
        from_version: "1.0.0".to_owned(),
        message: String::new(),
        offered_at: None,
        updated_at: UnixMillis::from_unix_seconds(n as u32),
    }
}

/// The places that step `n` changes: one, or many.
fn places_of_step(n: u64) -> impl Iterator<Item = u32> {
    let count = if n.is_multiple_of(3) { 50 } else { 1 };
    (0..count).map(move |i| ((n * 37 + i) % u64::from(SMALL)) as u32)
}

async fn deployment_ids(store: &dyn Store) -> Vec<String> {
    let page = store.list_deployments(DeploymentQuery { limit: 10_000, ..Default::default() }).await.unwrap();
    assert_eq!(page.total, page.items.len() as u64);
    page.items.into_iter().rev().map(|deployment| deployment.id).collect()
}

#[tokio::test]
#[ignore = "the child of the test below"]
async fn child_that_keeps_deployments_until_it_is_killed() {
    let Some(directory) = env::var_os(DIRECTORY) else { return };
    let store = sqlite::open(directory.as_ref()).unwrap();
    end_the_harness_line();
    let keep = async {
        loop {
            let devices = (0..LARGE).map(|place| member(place, 0)).collect();
            let (record, _) = store.create_deployment(new_deployment(), devices).await.unwrap();
            say(&format!("acknowledged {}", record.id));
        }
    };
    // Comes between the chunks, so that the kill falls on all of them.
    let write = async {
        for n in 0_u64.. {
            store.set_setting("n", number(n)).await.unwrap();
            say(&format!("acknowledged {n}"));
        }
    };
    let ((), ()) = futures_util::future::join(keep, write).await;
}

#[tokio::test]
async fn a_kill_between_the_chunks_of_a_deployment_leaves_all_of_it_or_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let (mut acknowledged, mut visible) = (Vec::new(), 0);
    for round in 0..8_usize {
        let mut child = start_child("child_that_keeps_deployments_until_it_is_killed", directory.path());
        let lines = acknowledgements(&mut child);
        for _ in 0..3 + 11 * round {
            acknowledged.push(lines.recv_timeout(PATIENCE).unwrap());
        }
        child.kill().unwrap();
        child.wait().unwrap();
        acknowledged.extend(lines.iter());
        acknowledged.retain(|line| line.starts_with("deploy-"));

        let store = sqlite::open(directory.path()).unwrap();
        let found = deployment_ids(&*store).await;
        for id in &acknowledged {
            assert!(found.contains(id), "round {round}: {id} was acknowledged");
        }
        assert!(found.len() <= acknowledged.len() + round + 1, "deployments that nobody asked for");
        visible = found.len();
        for id in &found {
            let mut next = 0;
            store
                .for_each_deployment_device(id, &mut |device| {
                    assert_eq!(device, member(next, 0), "round {round}: {id}");
                    next += 1;
                })
                .unwrap();
            assert_eq!(next, LARGE, "round {round}: {id} is there, but not whole");
        }
    }
    assert!(visible > 0, "the child never kept a deployment");
}

#[tokio::test]
#[ignore = "the child of the test below"]
async fn child_that_saves_steps_until_it_is_killed() {
    let Some(directory) = env::var_os(DIRECTORY) else { return };
    let store = sqlite::open(directory.as_ref()).unwrap();
    for _ in deployment_ids(&*store).await.len()..STEPPING {
        let devices = (0..SMALL).map(|place| member(place, 0)).collect();
        store.create_deployment(new_deployment(), devices).await.unwrap();
    }
    let ids = deployment_ids(&*store).await;
    end_the_harness_line();
    let store = &store;
    let deployments = ids.iter().map(|id| async move {
        let head = store.deployment(id).await.unwrap().unwrap().head;
        for n in u64::from_le_bytes(head[..].try_into().unwrap()) + 1.. {
            let change = DeploymentChange {
                deployment_id: id.clone(),
                state: (n % 5) as i32,
                head: number(n).into(),
                started_at: None,
                finished_at: None,
                devices: places_of_step(n).map(|place| member(place, n)).collect(),
                attempts: Vec::new(),
            };
            store.save_deployment(change).await.unwrap();
            say(&format!("acknowledged {id} {n}"));
        }
    });
    futures_util::future::join_all(deployments).await;
}

#[tokio::test]
async fn each_step_of_a_deployment_that_was_acknowledged_before_kill_9_is_there_whole() {
    let directory = tempfile::tempdir().unwrap();
    let mut last: BTreeMap<String, u64> = BTreeMap::new();
    for round in 0..8_usize {
        let mut child = start_child("child_that_saves_steps_until_it_is_killed", directory.path());
        let lines = acknowledgements(&mut child);
        let mut acknowledged = Vec::new();
        for _ in 0..5 + round * round * 17 % 500 {
            acknowledged.push(lines.recv_timeout(PATIENCE).unwrap());
        }
        child.kill().unwrap();
        child.wait().unwrap();
        acknowledged.extend(lines.iter());
        for line in acknowledged {
            let (id, n) = line.split_once(' ').unwrap();
            last.insert(id.to_owned(), n.parse().unwrap());
        }

        let store = sqlite::open(directory.path()).unwrap();
        assert_eq!(deployment_ids(&*store).await.len(), STEPPING);
        for (id, acknowledged) in &last {
            let record = store.deployment(id).await.unwrap().unwrap();
            let head = u64::from_le_bytes(record.head[..].try_into().unwrap());
            assert!((*acknowledged..=acknowledged + 1).contains(&head), "{id}: step {acknowledged} was acknowledged");
            assert!(head == 0 || record.state == (head % 5) as i32);
            let mut expected: Vec<_> = (0..SMALL).map(|place| member(place, 0)).collect();
            for n in 1..=head {
                places_of_step(n).for_each(|place| expected[place as usize] = member(place, n));
            }
            let mut found = Vec::new();
            store.for_each_deployment_device(id, &mut |device| found.push(device)).unwrap();
            assert_eq!(found, expected, "{id} after step {head}");
        }
    }
}
