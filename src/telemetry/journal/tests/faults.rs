//! Writes, truncations and fsyncs that fail.
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use super::*;

fn in_mode(dir: &Path, sync: SyncMode) -> JournalOptions {
    JournalOptions { sync, ..options(dir) }
}

fn values(records: &[(Seq, Vec<u8>)]) -> Vec<&[u8]> {
    records.iter().map(|(_, payload)| payload.as_slice()).collect()
}

#[test]
fn a_short_write_fails_its_group_alone_and_leaves_nothing_behind() {
    // From nothing written to all written: the error alone decides.
    for short in [0, 1, 19, 20, 25, 26, 40, usize::MAX] {
        let dir = folder();
        let (journal, plan) = open_with_faults(options(dir.path()));
        commit(&journal, b"before").expect("room");
        *plan.write.lock() = Some((short, libc::ENOSPC));
        let error = block_on(async {
            let tickets = [journal.append(b"failed"), journal.append(b"as well")].map(|ticket| ticket.expect("room"));
            let mut errors = Vec::new();
            for ticket in tickets {
                errors.push(ticket.committed().await.expect_err("the disk is full"));
            }
            errors.remove(1)
        });
        let CommitError::Write { source, .. } = error else { panic!("{error}") };
        assert_eq!(source.raw_os_error(), Some(libc::ENOSPC));
        let after_failure = crash(dir.path());
        assert_eq!(values(&read_all(&open(after_failure.path()).0)), [b"before"]);
        let seq = commit(&journal, b"after").expect("room again");
        assert_eq!(seq, 4, "the numbers of the failed are skipped");
        assert_eq!(read_all(&journal), [(1, b"before".to_vec()), (4, b"after".to_vec())]);
        let stats = journal.metrics();
        assert_eq!((stats.write_errors, stats.failed_records, stats.quarantined_stretches), (1, 2, 0));
        let copy = crash(dir.path());
        assert_eq!(values(&read_all(&open(copy.path()).0)), [&b"before"[..], b"after"]);
    }
}

#[test]
fn no_group_is_written_before_the_rest_of_a_failed_one_is_gone() {
    let dir = folder();
    let (journal, plan) = open_with_faults(options(dir.path()));
    commit(&journal, b"before").expect("room");
    *plan.write.lock() = Some((usize::MAX, libc::EIO));
    plan.truncates.store(2, SeqCst);
    commit(&journal, b"failed, and left in the file").expect_err("write fails");
    let error = commit(&journal, b"too early").expect_err("the cut fails once more");
    assert!(matches!(error, CommitError::Write { operation: "cut back", .. }), "{error}");
    commit(&journal, b"after").expect("all works again");
    let copy = crash(dir.path());
    for journal in [&journal, &open(copy.path()).0] {
        assert_eq!(values(&read_all(journal)), [&b"before"[..], b"after"]);
    }
}

#[test]
fn bytes_of_refused_and_failed_records_are_given_back() {
    let dir = folder();
    let (journal, plan) = open_with_faults(options(dir.path()));
    commit(&journal, b"before").expect("room");
    let claimed = journal.inner().claimed.load(SeqCst);
    *plan.write.lock() = Some((5, libc::ENOSPC));
    commit(&journal, &[0; 1000]).expect_err("write fails");
    assert_eq!(journal.inner().claimed.load(SeqCst), claimed);
    assert_eq!(journal.bytes(), claimed);
}

#[test]
fn a_record_whose_file_has_no_durable_name_is_not_acknowledged() {
    for (failures, is_acknowledged) in [(1, true), (2, false)] {
        let dir = folder();
        let (journal, plan) = open_with_faults(in_mode(dir.path(), SyncMode::Always));
        plan.dir_syncs.store(failures, SeqCst);
        assert_eq!(commit(&journal, b"in a new file").is_ok(), is_acknowledged, "{failures} failures");
        assert_eq!(journal.is_read_only(), !is_acknowledged);
        assert_eq!(journal.synced_seq(), u64::from(is_acknowledged));
    }
}

#[test]
fn after_a_failed_fsync_unsynced_records_are_in_a_new_durable_segment() {
    let dir = folder();
    let (journal, plan) = open_with_faults(in_mode(dir.path(), SyncMode::Always));
    commit(&journal, b"durable").expect("room");
    plan.syncs.store(1, SeqCst);
    let seq = commit(&journal, b"rescued").expect("moved to a new segment");
    assert_eq!(journal.synced_seq(), seq);
    commit(&journal, b"later").expect("goes on");
    let expected = [&b"durable"[..], b"rescued", b"later"];
    assert_eq!(values(&read_all(&journal)), expected);
    let segments = journal.segments();
    assert_eq!(
        segments.iter().map(|segment| (segment.first_seq, segment.records)).collect::<Vec<_>>(),
        [(1, 1), (2, 1), (3, 1)]
    );
    let on_disk: u64 = segment_files(dir.path()).iter().map(|file| file.metadata().expect("there").len()).sum();
    assert_eq!(journal.bytes(), on_disk);
    assert_eq!(journal.inner().claimed.load(SeqCst), on_disk);
    assert_eq!(journal.metrics().sync_errors, 1);
    let copy = crash(dir.path());
    assert_eq!(values(&read_all(&open(copy.path()).0)), expected);
}

#[test]
fn a_segment_of_which_nothing_was_durable_is_replaced_as_a_whole() {
    let dir = folder();
    let (journal, plan) = open_with_faults(in_mode(dir.path(), SyncMode::Always));
    plan.syncs.store(1, SeqCst);
    // A reader that is already inside the file that goes.
    let mut reader = journal.reader(1);
    let ticket = journal.append_many([b"one", b"two"]).expect("room");
    block_on(ticket.committed()).expect("moved");
    assert_eq!(segment_files(dir.path()).len(), 1);
    let batch = reader.next_batch(1, 1 << 20).expect("readable").expect("a record");
    assert_eq!(batch.iter().collect::<Vec<_>>(), [(1, &b"one"[..])]);
    commit(&journal, b"three").expect("goes on");
    let copy = crash(dir.path());
    assert_eq!(values(&read_all(&open(copy.path()).0)), [b"one".as_slice(), b"two", b"three"]);
}

#[test]
fn a_reader_in_the_middle_of_a_moved_tail_gets_each_record_once() {
    let dir = folder();
    let interval = SyncMode::Interval(Duration::from_millis(1));
    let (journal, plan) = open_with_faults(in_mode(dir.path(), interval));
    let mut reader = journal.reader(1);
    let mut read = Vec::new();
    for n in 1..=50 {
        plan.syncs.store(u32::from(n % 5 == 0), SeqCst);
        commit(&journal, &payload(n)).expect("room");
        if n % 3 == 0 {
            let batch = reader.next_batch(2, 1 << 20).expect("readable").expect("a record");
            read.extend(batch.iter().map(|(seq, payload)| (seq, payload.to_vec())));
        }
        wait_until("the fsync round", || journal.synced_seq() == n);
    }
    while let Some(batch) = reader.next_batch(2, 1 << 20).expect("readable") {
        read.extend(batch.iter().map(|(seq, payload)| (seq, payload.to_vec())));
    }
    assert_eq!(read, (1..=50).map(|n| (n, payload(n))).collect::<Vec<_>>());
    assert!(journal.metrics().sync_errors > 0);
    assert_eq!(journal.metrics().quarantined_stretches, 0);
}

#[test]
fn a_disk_that_cannot_fsync_at_all_makes_the_journal_read_only() {
    let dir = folder();
    let (journal, plan) = open_with_faults(in_mode(dir.path(), SyncMode::Always));
    commit(&journal, b"durable").expect("room");
    plan.syncs.store(u32::MAX, SeqCst);
    let error = commit(&journal, b"not proven").expect_err("no fsync works");
    assert!(matches!(error, CommitError::Sync { .. }), "{error}");
    let error = journal.append(b"refused").map(drop).expect_err("read-only");
    assert!(matches!(error, AppendError::ReadOnly(_)), "{error}");
    assert_eq!(values(&read_all(&journal)), [&b"durable"[..], b"not proven"], "what is there can be delivered");
    block_on(journal.close());
}

#[test]
fn a_journal_without_reserved_numbers_takes_nothing_until_the_disk_confirms_some() {
    let dir = folder();
    let faults = Faults::default();
    faults.plan.syncs.store(2, SeqCst);
    // The meta file must exist: making it is allowed to fail the start.
    drop(open(dir.path()));
    let plan = faults.plan.clone();
    let (journal, _) = Journal::open_with(options(dir.path()), 8, faults).expect("the journal opens");
    let error = journal.append(b"").map(drop).expect_err("no number");
    assert!(matches!(error, AppendError::Unreserved), "{error}");
    wait_until("the keeper tries again", || journal.append(b"").is_ok());
    assert_eq!(plan.syncs.load(SeqCst), 0);
}

#[test]
fn numbers_go_on_over_many_small_reservations_and_crashes() {
    let mut dir = folder();
    let mut last = 0;
    for _ in 0..5 {
        let (journal, recovery) =
            Journal::open_with(options(dir.path()), 16, Faults::default()).expect("the journal opens");
        assert!(recovery.next_seq > last);
        for _ in 0..100 {
            wait_until("a reservation", || match journal.append(b"x") {
                Ok(ticket) => {
                    assert!(ticket.seq() > last);
                    last = ticket.seq();
                    true
                }
                Err(AppendError::Unreserved) => false,
                Err(error) => panic!("{error}"),
            });
        }
        dir = crash(dir.path());
    }
    assert_eq!(read_all(&open(dir.path()).0).len(), 500);
}
