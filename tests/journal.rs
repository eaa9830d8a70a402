//! The journal under what really happens to it: processes that are killed, disks that are full, several runtimes at
//! once. Tests that need a process of their own start this test binary again with one of the `child_` tests below.
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use fleetd::telemetry::journal::{CommitError, Journal, JournalOptions, Recovery, Seq, SyncMode};

const CHILD_DIR: &str = "FLEETD_TEST_JOURNAL_DIR";
const CHILD_SYNC: &str = "FLEETD_TEST_JOURNAL_SYNC";

fn options(dir: &Path, sync: SyncMode) -> JournalOptions {
    JournalOptions { sync, segment_bytes: 128 << 10, capacity_bytes: 1 << 30, ..JournalOptions::new(dir) }
}

fn open(dir: &Path, sync: SyncMode) -> (Journal, Recovery) {
    Journal::open(options(dir, sync)).expect("the journal opens")
}

fn block_on<T>(future: impl std::future::Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime").block_on(future)
}

fn read_all(journal: &Journal) -> BTreeMap<Seq, Vec<u8>> {
    let mut reader = journal.reader(1);
    let mut records = BTreeMap::new();
    while let Some(batch) = reader.next_batch(1000, 1 << 20).expect("readable") {
        for (seq, payload) in batch.iter() {
            assert!(records.insert(seq, payload.to_vec()).is_none(), "record {seq} came twice");
        }
    }
    records
}

/// Starts this binary again to run one of the ignored `child_` tests.
fn child(test: &str, dir: &Path, sync: SyncMode) -> Child {
    Command::new(std::env::current_exe().expect("this binary"))
        .args(["--ignored", "--exact", test, "--nocapture", "--test-threads=1"])
        .env(CHILD_DIR, dir)
        .env(CHILD_SYNC, sync.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the child starts")
}

/// Where and how a child works; it fails without a parent that says so.
fn from_parent() -> (std::path::PathBuf, SyncMode) {
    let dir = std::env::var_os(CHILD_DIR).expect("started by a test of this file");
    let sync = std::env::var(CHILD_SYNC).expect("started by a test of this file");
    (dir.into(), sync.parse().expect("a sync mode"))
}

#[test]
#[ignore = "a process of its own, started by a_killed_process_loses_nothing_that_was_committed"]
fn child_appends_until_it_is_killed() {
    let (dir, sync) = from_parent();
    let (journal, _) = open(&dir, sync);
    let threads: Vec<_> = (0..2)
        .map(|_| {
            let journal = journal.clone();
            std::thread::spawn(move || {
                let tasks = tokio::task::LocalSet::new();
                for task in 0..8_usize {
                    let journal = journal.clone();
                    tasks.spawn_local(async move {
                        for round in 0_usize.. {
                            let payload = format!("{task}-{round}-{}", "x".repeat((task * round) % 200));
                            let ticket = match round % 5 {
                                0 => journal.append_many([payload.as_bytes(); 3]).expect("room"),
                                _ => journal.append(payload.as_bytes()).expect("room"),
                            };
                            let first = ticket.first_seq();
                            let last = ticket.committed().await.expect("written");
                            // One write a line, so that a kill leaves at most one torn line.
                            let line = format!("\ncommitted {first} {last} {payload}\n");
                            std::io::stdout().write_all(line.as_bytes()).expect("the parent reads");
                        }
                    });
                }
                block_on(tasks);
            })
        })
        .collect();
    for thread in threads {
        thread.join().expect("no panic");
    }
}

#[test]
fn a_killed_process_loses_nothing_that_was_committed() {
    for sync in [SyncMode::Never, SyncMode::Interval(Duration::from_millis(5)), SyncMode::Always] {
        let dir = tempfile::tempdir().expect("a folder");
        let mut committed: BTreeMap<Seq, String> = BTreeMap::new();
        for life in 0..4 {
            let highest = committed.keys().last().copied().unwrap_or(0);
            let mut child = child("child_appends_until_it_is_killed", dir.path(), sync);
            let mut lines = BufReader::new(child.stdout.take().expect("piped")).split(b'\n');
            let mut lives = 0;
            let mut note = |line: Vec<u8>| {
                let line = String::from_utf8(line).expect("text");
                let words: Vec<_> = line.split(' ').collect();
                if let ["committed", first, last, payload] = words[..] {
                    let (first, last): (Seq, Seq) = (first.parse().expect("a seq"), last.parse().expect("a seq"));
                    assert!(first > highest, "number {first} was used by an earlier process");
                    for seq in first..=last {
                        assert_eq!(committed.insert(seq, payload.to_owned()), None, "number {seq} is used twice");
                    }
                    lives += 1;
                }
                lives
            };
            // Killed in full flight, each time at another point.
            while note(lines.next().expect("the child lives").expect("readable")) < 300 + 331 * life {}
            child.kill().expect("killed");
            let mut rest: Vec<Vec<u8>> = lines.map(|line| line.expect("readable")).collect();
            child.wait().expect("gone");
            // The last line may be torn: then its end was not printed, and nothing was promised.
            rest.pop();
            for line in rest {
                note(line);
            }
        }
        let (journal, recovery) = open(dir.path(), sync);
        assert_eq!(recovery.quarantined_bytes, 0);
        let found = read_all(&journal);
        for (seq, payload) in &committed {
            let found = found.get(seq).map(|payload| String::from_utf8_lossy(payload));
            assert_eq!(found.as_deref(), Some(payload.as_str()), "{sync}: committed record {seq} is lost");
        }
    }
}

/// Fills the disk until groups fail, makes room, and goes on; at the end exactly the acknowledged records are there.
fn fills_up(dir: &Path, sync: SyncMode, expected_errors: &[i32], make_room: impl FnOnce()) {
    let (journal, _) = open(dir, sync);
    let mut acknowledged = BTreeMap::new();
    let mut append = |n: usize| {
        let payload = vec![n as u8; 500 + n % 1000];
        let ticket = journal.append_many([&payload, &payload]).expect("capacity is not the limit here");
        let first = ticket.first_seq();
        match block_on(ticket.committed()) {
            Ok(last) => {
                (first..=last).for_each(|seq| drop(acknowledged.insert(seq, payload.clone())));
                Ok(())
            }
            Err(CommitError::Write { source, .. }) => Err(source.raw_os_error().expect("from the system")),
            Err(error) => panic!("{error}"),
        }
    };
    let mut failed = 0;
    let mut n = 0;
    while failed < 20 {
        n += 1;
        assert!(n < 100_000, "the disk never fills");
        if let Err(number) = append(n) {
            assert!(expected_errors.contains(&number), "os error {number}");
            failed += 1;
        }
    }
    // A start on the full disk works too, and what is there can be read.
    let copy = tempfile::tempdir().expect("a folder");
    for entry in std::fs::read_dir(dir).expect("a folder") {
        let entry = entry.expect("an entry");
        if entry.file_type().expect("known").is_file() {
            std::fs::copy(entry.path(), copy.path().join(entry.file_name())).expect("room elsewhere");
        }
    }
    make_room();
    for n in 0..200 {
        append(n).expect("room again");
    }
    assert_eq!(read_all(&journal), acknowledged);
    let stats = journal.metrics();
    assert!(stats.write_errors >= 20);
    assert_eq!((stats.quarantined_bytes, stats.sync_errors), (0, 0));
    drop(journal);
    assert_eq!(read_all(&open(dir, sync).0), acknowledged, "failed records came back");
    let (before_room, recovery) = open(copy.path(), sync);
    assert_eq!((recovery.torn_bytes, recovery.quarantined_bytes), (0, 0), "failed writes were cut back at once");
    let found = read_all(&before_room);
    let highest = found.keys().last().copied().unwrap_or(0);
    assert_eq!(found, acknowledged.range(..=highest).map(|(seq, payload)| (*seq, payload.clone())).collect());
}

fn set_file_size_limit(bytes: libc::rlim_t) {
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: plain system calls on a valid struct; this process is the child's own.
    unsafe {
        assert_ne!(libc::signal(libc::SIGXFSZ, libc::SIG_IGN), libc::SIG_ERR);
        assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &limit), 0);
    }
}

#[test]
#[ignore = "a process of its own, started by files_that_cannot_grow_fail_their_group_alone"]
fn child_meets_a_file_size_limit() {
    let (dir, sync) = from_parent();
    // Half a segment, so that writes fail in its middle, and short.
    set_file_size_limit((64 << 10) + 37);
    fills_up(&dir, sync, &[libc::EFBIG], || set_file_size_limit(libc::RLIM_INFINITY));
}

#[test]
#[ignore = "a process of its own, started by a_full_disk_fails_its_groups_alone_and_work_goes_on_when_there_is_room"]
fn child_meets_a_full_disk() {
    let (dir, sync) = from_parent();
    let target = std::ffi::CString::new(dir.as_os_str().as_encoded_bytes()).expect("no zero");
    // SAFETY: plain system calls with valid strings; the mount is seen by this process alone and goes with it.
    let is_mounted = unsafe {
        let namespaces = if libc::geteuid() == 0 { libc::CLONE_NEWNS } else { libc::CLONE_NEWNS | libc::CLONE_NEWUSER };
        let none = std::ptr::null();
        libc::unshare(namespaces) == 0
            && libc::mount(none, c"/".as_ptr(), none, libc::MS_REC | libc::MS_PRIVATE, none.cast()) == 0
            && libc::mount(c"tmpfs".as_ptr(), target.as_ptr(), c"tmpfs".as_ptr(), 0, c"size=1m".as_ptr().cast()) == 0
    };
    if !is_mounted {
        // Containers may forbid it. The limit on file sizes is the next best: the same scenario by another error.
        println!("no mount: {}", std::io::Error::last_os_error());
        set_file_size_limit((64 << 10) + 37);
        return fills_up(&dir, sync, &[libc::EFBIG], || set_file_size_limit(libc::RLIM_INFINITY));
    }
    let filler = dir.join("filler");
    std::fs::write(&filler, vec![1; 600 << 10]).expect("room");
    fills_up(&dir, sync, &[libc::ENOSPC], || std::fs::remove_file(filler).expect("removed"));
}

fn succeeds(test: &str) {
    for sync in [SyncMode::Never, SyncMode::default(), SyncMode::Always] {
        let dir = tempfile::tempdir().expect("a folder");
        let output = child(test, dir.path(), sync).wait_with_output().expect("the child ends");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("1 passed"), "{sync}: {text}");
    }
}

#[test]
fn files_that_cannot_grow_fail_their_group_alone() {
    succeeds("child_meets_a_file_size_limit");
}

#[test]
fn a_full_disk_fails_its_groups_alone_and_work_goes_on_when_there_is_room() {
    succeeds("child_meets_a_full_disk");
}

#[test]
fn several_runtimes_append_at_once_while_a_reader_follows_and_trims() {
    const THREADS: usize = 4;
    const TASKS: usize = 16;
    const ROUNDS: usize = 200;
    for sync in [SyncMode::Never, SyncMode::Interval(Duration::from_millis(1)), SyncMode::Always] {
        let dir = tempfile::tempdir().expect("a folder");
        let (journal, _) = open(dir.path(), sync);
        let is_done = AtomicBool::new(false);
        let (expected, found) = std::thread::scope(|scope| {
            let appenders: Vec<_> = (0..THREADS)
                .map(|thread| {
                    scope.spawn({
                        let journal = journal.clone();
                        move || appends(&journal, thread, TASKS, ROUNDS)
                    })
                })
                .collect();
            let reader = scope.spawn(|| {
                let mut reader = journal.reader(1);
                let mut found = BTreeMap::new();
                let deadline = Instant::now() + Duration::from_secs(120);
                loop {
                    let was_done = is_done.load(Relaxed);
                    while let Some(batch) = reader.next_batch(100, 10_000).expect("readable") {
                        found.extend(batch.iter().map(|(seq, payload)| (seq, payload.to_vec())));
                        journal.trim_through(batch.last_seq).expect("written");
                    }
                    if was_done {
                        return found;
                    }
                    assert!(Instant::now() < deadline, "appenders hang");
                    std::thread::yield_now();
                }
            });
            let mut expected = BTreeMap::new();
            for appender in appenders {
                for (seq, payload) in appender.join().expect("no panic") {
                    assert_eq!(expected.insert(seq, payload), None, "number {seq} was given twice");
                }
            }
            is_done.store(true, Relaxed);
            (expected, reader.join().expect("no panic"))
        });
        assert_eq!(expected.len(), THREADS * TASKS * (ROUNDS + ROUNDS / 10 * 2));
        assert!(found == expected, "{sync}: the reader saw something else than what was appended");
        assert_eq!(journal.metrics().records, expected.len() as u64);
    }
}

/// Appends from one runtime; some clients hang up, before or while they wait.
fn appends(journal: &Journal, thread: usize, tasks: usize, rounds: usize) -> Vec<(Seq, Vec<u8>)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let local = tokio::task::LocalSet::new();
    let handles: Vec<_> = (0..tasks)
        .map(|task| {
            let journal = journal.clone();
            local.spawn_local(async move {
                let mut records = Vec::new();
                for round in 0..rounds {
                    let payload = format!("{thread} {task} {round}").into_bytes();
                    let copies = if round % 10 == 0 { 3 } else { 1 };
                    let ticket = journal.append_many(vec![&payload; copies]).expect("room");
                    records.extend((ticket.first_seq()..=ticket.seq()).map(|seq| (seq, payload.clone())));
                    match (task + round) % 7 {
                        0 => drop(ticket),
                        1 => {
                            tokio::select! {
                                biased;
                                result = ticket.committed() => drop(result.expect("written")),
                                () = tokio::task::yield_now() => {}
                            }
                        }
                        _ => drop(ticket.committed().await.expect("written")),
                    }
                }
                records
            })
        })
        .collect();
    local.block_on(&runtime, async {
        let mut records = Vec::new();
        for handle in handles {
            records.extend(handle.await.expect("no panic"));
        }
        records
    })
}
