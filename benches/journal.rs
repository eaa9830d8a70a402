//! What the journal costs: records a second by sync mode and by how many wait at once.
//!
//! Waiters are spread over two threads with a current-thread runtime each, as the server's workers are. Every waiter appends
//! a record of 120 bytes, waits for its commit, and goes on. Run with `cargo bench --bench journal`; the folder is made
//! in `FLEETD_BENCH_DIR` (default: the temporary folder), so the figures are those of its disk.
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fleetd::telemetry::journal::{Journal, JournalOptions, SyncMode};

const PAYLOAD: [u8; 120] = [0x5A; 120];
const RUN: Duration = Duration::from_secs(3);
const WORKERS: usize = 2;

struct Figures {
    per_second: f64,
    per_group: f64,
    cpu_micros: f64,
}

fn main() {
    println!(
        "{:<28} {:>14} {:>14} {:>12} {:>12}",
        "case (120-byte payloads)", "sync", "records/s", "per group", "cpu us/rec"
    );
    for sync in [SyncMode::Never, SyncMode::Interval(Duration::from_millis(50)), SyncMode::Always] {
        for (name, waiters, batch) in
            [("append, 1 waiter", 1, 1), ("append, 64 waiters", 64, 1), ("append_many 1000, 2 waiters", 2, 1000)]
        {
            let figures = run(sync, waiters, batch);
            println!(
                "{name:<28} {:>14} {:>14.0} {:>12.1} {:>12.2}",
                sync.to_string(),
                figures.per_second,
                figures.per_group,
                figures.cpu_micros
            );
        }
    }
    read_back();
}

fn folder() -> tempfile::TempDir {
    let root = std::env::var_os("FLEETD_BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    tempfile::tempdir_in(root).expect("a temporary folder")
}

fn run(sync: SyncMode, waiters: usize, batch: usize) -> Figures {
    let dir = folder();
    let (journal, _) = Journal::open(JournalOptions { sync, ..JournalOptions::new(dir.path()) }).expect("opens");
    let stop = Arc::new(AtomicBool::new(false));
    let committed = Arc::new(AtomicU64::new(0));
    let workers = WORKERS.min(waiters);
    let cpu_before = cpu_time();
    let started = Instant::now();
    let threads: Vec<_> = (0..workers)
        .map(|_| {
            let (journal, stop, committed) = (journal.clone(), stop.clone(), committed.clone());
            std::thread::spawn(move || worker(&journal, waiters / workers, batch, &stop, &committed))
        })
        .collect();
    while started.elapsed() < RUN {
        std::thread::sleep(Duration::from_millis(100));
        // As the ClickHouse writer does, so that the disk does not fill.
        journal.trim_through(journal.written_seq().saturating_sub(1_000_000)).expect("written");
    }
    stop.store(true, Relaxed);
    let elapsed = started.elapsed();
    for thread in threads {
        thread.join().expect("no panic");
    }
    let cpu = cpu_time() - cpu_before;
    let stats = journal.metrics();
    let records = committed.load(Relaxed) as f64;
    Figures {
        per_second: records / elapsed.as_secs_f64(),
        per_group: stats.records as f64 / stats.commit_records.count.max(1) as f64,
        cpu_micros: cpu.as_secs_f64() * 1e6 / records,
    }
}

fn worker(journal: &Journal, waiters: usize, batch: usize, stop: &Arc<AtomicBool>, committed: &Arc<AtomicU64>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let tasks = tokio::task::LocalSet::new();
    for _ in 0..waiters {
        let (journal, stop, committed) = (journal.clone(), stop.clone(), committed.clone());
        tasks.spawn_local(async move {
            while !stop.load(Relaxed) {
                let ticket = match batch {
                    1 => journal.append(&PAYLOAD),
                    _ => journal.append_many(std::iter::repeat_n(&PAYLOAD, batch)),
                };
                ticket.expect("room").committed().await.expect("written");
                committed.fetch_add(batch as u64, Relaxed);
            }
        });
    }
    runtime.block_on(tasks);
}

/// User and system time of this process.
fn cpu_time() -> Duration {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: getrusage fills the struct it is given; zeroed is a valid value should it fail.
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr());
        usage.assume_init()
    };
    let span = |time: libc::timeval| Duration::new(time.tv_sec as u64, time.tv_usec as u32 * 1000);
    span(usage.ru_utime) + span(usage.ru_stime)
}

/// How fast a start after a crash is, and how fast the writer can drain.
fn read_back() {
    const RECORDS: usize = 2_000_000;
    let dir = folder();
    let options = JournalOptions { sync: SyncMode::Never, ..JournalOptions::new(dir.path()) };
    let (journal, _) = Journal::open(options.clone()).expect("opens");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    for _ in 0..RECORDS / 1000 {
        let ticket = journal.append_many(std::iter::repeat_n(&PAYLOAD, 1000)).expect("room");
        runtime.block_on(ticket.committed()).expect("written");
    }
    let started = Instant::now();
    let mut reader = journal.reader(1);
    let mut records = 0;
    while let Some(batch) = reader.next_batch(50_000, 16 << 20).expect("readable") {
        records += batch.len();
    }
    let seconds = started.elapsed().as_secs_f64();
    assert_eq!(records, RECORDS);
    println!("read back: {:.0} records/s", records as f64 / seconds);

    // What a killed process leaves: the files as they are.
    let copy = folder();
    for entry in std::fs::read_dir(dir.path()).expect("a folder") {
        let entry = entry.expect("an entry");
        std::fs::copy(entry.path(), copy.path().join(entry.file_name())).expect("room");
    }
    let (_journal, recovery) =
        Journal::open(JournalOptions { dir: copy.path().to_owned(), ..options }).expect("opens after a crash");
    assert_eq!(recovery.records, RECORDS as u64);
    println!(
        "open after a crash: {} ms ({} segments, {} MiB, {} scanned)",
        recovery.duration.as_millis(),
        recovery.segments,
        recovery.bytes >> 20,
        recovery.scanned_segments
    );
}
