//! Tests that need the inside of the journal: injected faults, exact bytes. Tests of real processes, real full disks
//! and several runtimes are in `tests/journal.rs` of the package.
mod damage;
mod faults;
mod format;
mod lifecycle;
mod model;

use std::path::Path;

use tempfile::TempDir;

use super::disk::{FaultPlan, Faults};
use super::*;

/// A folder in memory where there is one: these tests open thousands of journals, and fsync there is free.
fn folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.expect("a temporary folder")
}

fn options(dir: &Path) -> JournalOptions {
    JournalOptions { segment_bytes: 1 << 20, capacity_bytes: 8 << 20, ..JournalOptions::new(dir) }
}

fn open(dir: &Path) -> (Journal, Recovery) {
    Journal::open(options(dir)).expect("the journal opens")
}

fn open_with_faults(options: JournalOptions) -> (Journal, Arc<FaultPlan>) {
    let faults = Faults::default();
    let plan = faults.plan.clone();
    let (journal, _) = Journal::open_with(options, DEFAULT_RESERVED_BLOCK, faults).expect("the journal opens");
    (journal, plan)
}

fn block_on<T>(future: impl std::future::Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime").block_on(future)
}

fn commit(journal: &Journal, payload: &[u8]) -> Result<Seq, CommitError> {
    block_on(journal.append(payload).expect("room").committed())
}

/// Payload number `n`: of varying length, some empty, all different.
fn payload(n: u64) -> Vec<u8> {
    let mut bytes = n.to_le_bytes().repeat((n as usize * 7) % 23);
    bytes.truncate((n as usize * 37) % 150);
    bytes
}

fn read_from(journal: &Journal, from: Seq) -> Vec<(Seq, Vec<u8>)> {
    let mut reader = journal.reader(from);
    let mut records = Vec::new();
    while let Some(batch) = reader.next_batch(7, 1000).expect("readable") {
        assert!(!batch.is_empty());
        assert_eq!(Some(batch.first_seq), batch.iter().next().map(|(seq, _)| seq));
        assert_eq!(Some(batch.last_seq), batch.iter().last().map(|(seq, _)| seq));
        assert_eq!(reader.read_through(), batch.last_seq);
        records.extend(batch.iter().map(|(seq, payload)| (seq, payload.to_vec())));
    }
    assert!(reader.read_through() >= journal.written_seq());
    assert!(records.windows(2).all(|pair| pair[0].0 < pair[1].0), "in order, each once");
    records
}

fn read_all(journal: &Journal) -> Vec<(Seq, Vec<u8>)> {
    read_from(journal, 1)
}

/// What a killed process leaves: the files as they are now, in a folder of their own.
fn crash(dir: &Path) -> TempDir {
    let copy = folder();
    copy_into(dir, copy.path());
    copy
}

fn copy_into(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            std::fs::create_dir_all(&target).expect("room");
            copy_into(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("room");
        }
    }
}

/// The only segment file in `dir`.
fn segment_file(dir: &Path) -> std::path::PathBuf {
    let mut files: Vec<_> = segment_files(dir);
    assert_eq!(files.len(), 1, "{files:?}");
    files.remove(0)
}

fn segment_files(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(dir)
        .expect("a folder")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "segment"))
        .collect();
    files.sort();
    files
}

fn quarantined_bytes(dir: &Path) -> Vec<Vec<u8>> {
    let Ok(entries) = std::fs::read_dir(dir.join("quarantine")) else { return Vec::new() };
    entries.map(|entry| std::fs::read(entry.expect("an entry").path()).expect("readable")).collect()
}

/// Waits for what another thread will do.
fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let started = std::time::Instant::now();
    while !condition() {
        assert!(started.elapsed() < std::time::Duration::from_secs(20), "{what}");
        std::thread::yield_now();
    }
}
