//! The registry under kill -9 and on a disk that fills up: a child process registers devices and says which were
//! acknowledged; whatever happens to it, those are there afterwards.
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
use fleetd::store::{sqlite, Device, StoreError, UnixMillis};

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
