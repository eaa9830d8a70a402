//! Appending, waiting, rolling, filling up, trimming, closing.
use std::future::Future;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::*;

fn poll_once<F: Future>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

#[test]
fn a_new_journal_starts_with_number_one_and_an_id_that_stays() {
    let dir = folder();
    let (journal, recovery) = open(dir.path());
    assert_eq!((recovery.next_seq, recovery.records, recovery.bytes), (1, 0, 0));
    assert_eq!((journal.first_seq(), journal.written_seq()), (1, 0));
    assert_eq!(commit(&journal, b"first").expect("room"), 1);
    let id = journal.id();
    drop(journal);
    let (journal, recovery) = open(dir.path());
    assert_eq!((journal.id(), recovery.next_seq, recovery.records), (id, 2, 1));
    assert_ne!(open(folder().path()).0.id(), id);
}

#[test]
fn starts_without_records_leave_no_files() {
    let dir = folder();
    for _ in 0..5 {
        let (journal, recovery) = open(dir.path());
        assert_eq!(recovery.next_seq, 1);
        drop(journal);
    }
    assert_eq!(segment_files(dir.path()), Vec::<std::path::PathBuf>::new());
}

#[test]
fn a_record_whose_ticket_is_dropped_is_written_without_anybody_waiting() {
    let dir = folder();
    let (journal, _) = open(dir.path());
    drop(journal.append(b"nobody waits").expect("room"));
    assert_eq!(journal.written_seq(), 1);
    let mut future = Box::pin(journal.append(b"gave up").expect("room").committed());
    assert!(poll_once(future.as_mut()).is_pending(), "yields to the runtime first");
    drop(future);
    assert_eq!(journal.written_seq(), 2);
}

#[test]
fn a_waiter_that_goes_away_while_another_writes_leaves_its_record_to_that_one() {
    let dir = folder();
    let (journal, _) = open(dir.path());
    let (locked, is_locked) = std::sync::mpsc::sync_channel(1);
    let (release, released) = std::sync::mpsc::sync_channel::<()>(1);
    let inner = journal.inner().clone();
    let holder = std::thread::spawn(move || {
        inner.with_log(|_| {
            locked.send(()).expect("the test waits");
            released.recv().expect("the test releases");
        });
    });
    is_locked.recv().expect("the lock is taken");
    let mut abandoned = Box::pin(journal.append(b"abandoned").expect("room").committed());
    for _ in 0..3 {
        assert!(poll_once(abandoned.as_mut()).is_pending());
    }
    drop(abandoned);
    drop(journal.append(b"never polled").expect("room"));
    assert_eq!(journal.written_seq(), 0);
    release.send(()).expect("the holder waits");
    holder.join().expect("no panic");
    assert_eq!(journal.written_seq(), 2);
}

#[test]
fn a_stalled_disk_is_answered_when_too_much_waits_for_it_and_nothing_taken_is_lost() {
    let dir = folder();
    let options = JournalOptions { capacity_bytes: 1 << 30, ..options(dir.path()) };
    let (journal, _) = Journal::open(options).expect("the journal opens");
    let (locked, is_locked) = std::sync::mpsc::sync_channel(1);
    let (release, released) = std::sync::mpsc::sync_channel::<()>(1);
    let inner = journal.inner().clone();
    let stalled = std::thread::spawn(move || {
        inner.with_log(|_| {
            locked.send(()).expect("the test waits");
            released.recv().expect("the test releases");
        });
    });
    is_locked.recv().expect("the lock is taken");
    let mut taken = 0;
    let error = loop {
        match journal.append(&[1; 1 << 20]) {
            Ok(ticket) => drop(ticket),
            Err(error) => break error,
        }
        taken += 1;
    };
    assert!(matches!(error, AppendError::Backlogged { .. }), "{error}");
    assert_eq!(taken, MAX_PENDING_BYTES / ((1 << 20) + 20));
    assert_eq!(journal.metrics().busy_rejections, 1);
    release.send(()).expect("the holder waits");
    stalled.join().expect("no panic");
    assert_eq!(journal.written_seq(), taken as Seq);
    commit(&journal, b"goes on").expect("room");
    assert_eq!(read_all(&journal).len(), taken + 1);
}

#[test]
fn all_that_are_ready_in_one_turn_share_one_write() {
    let dir = folder();
    let (journal, _) = open(dir.path());
    block_on(async {
        let tasks = tokio::task::LocalSet::new();
        for _ in 0..100 {
            let journal = journal.clone();
            tasks.spawn_local(async move { journal.append(b"together").expect("room").committed().await });
        }
        tasks.await;
    });
    let stats = journal.metrics();
    assert_eq!(stats.records, 100);
    // A turn of tokio's local set runs some 60 tasks.
    assert!(stats.commit_records.count <= 3, "{:?}", stats.commit_records);
}

#[test]
fn an_append_of_many_has_consecutive_numbers_and_one_of_none_has_none() {
    let dir = folder();
    let (journal, _) = open(dir.path());
    let ticket = journal.append_many((1..=1000).map(payload)).expect("room");
    assert_eq!((ticket.first_seq(), ticket.seq()), (1, 1000));
    assert_eq!(block_on(ticket.committed()).expect("room"), 1000);
    let none = journal.append_many::<&[u8]>([]).expect("room");
    assert_eq!((none.first_seq(), none.seq()), (1001, 1000));
    assert_eq!(block_on(none.committed()).expect("nothing to wait for"), 1000);
    let records = read_all(&journal);
    assert_eq!(records, (1..=1000).map(|n| (n, payload(n))).collect::<Vec<_>>());
    assert_eq!(read_from(&journal, 500).first().map(|(seq, _)| *seq), Some(500));
}

#[test]
fn what_is_too_large_is_refused_with_its_size() {
    let dir = folder();
    let (journal, _) = open(dir.path());
    let large = vec![0; MAX_PAYLOAD_BYTES + 1];
    for error in [journal.append(&large).map(drop), journal.append_many([&large]).map(drop)] {
        assert!(matches!(error, Err(AppendError::TooLarge { bytes, .. }) if bytes > MAX_PAYLOAD_BYTES as u64));
    }
    assert_eq!(commit(&journal, &large[1..]).map(|_| ()).ok(), Some(()), "the limit itself is fine");
    assert_eq!(read_all(&journal)[0].1.len(), MAX_PAYLOAD_BYTES);
}

#[test]
fn segments_roll_and_are_all_there_after_a_crash_and_after_a_clean_stop() {
    let dir = folder();
    let options = JournalOptions { segment_bytes: 2048, ..options(dir.path()) };
    let (journal, _) = Journal::open(options.clone()).expect("the journal opens");
    for n in 1..=200 {
        commit(&journal, &payload(n)).expect("room");
    }
    let segments = journal.segments();
    assert!(segments.len() > 5);
    assert!(segments.iter().all(|segment| segment.bytes <= 2048 + 64));
    assert!(segments.windows(2).all(|pair| pair[0].sealed && pair[0].last_seq + 1 == pair[1].first_seq));
    let crashed = crash(dir.path());
    let (after_crash, recovery) = open(crashed.path());
    assert_eq!((recovery.records, recovery.scanned_segments), (200, 1));
    let expected = read_all(&journal);
    assert_eq!(expected.len(), 200);
    assert_eq!(read_all(&after_crash), expected);
    drop(journal);
    let (after_stop, recovery) = Journal::open(options).expect("the journal opens");
    assert_eq!((recovery.records, recovery.scanned_segments, recovery.next_seq), (200, 0, 201));
    assert_eq!(read_all(&after_stop), expected);
}

#[test]
fn a_journal_never_holds_more_than_its_capacity_however_long_records_are() {
    for length in (60..260).step_by(7) {
        let dir = folder();
        let options = JournalOptions { segment_bytes: 4096, capacity_bytes: 16384, ..options(dir.path()) };
        let (journal, _) = Journal::open(options).expect("the journal opens");
        while let Ok(ticket) = journal.append(&vec![7; length]) {
            block_on(ticket.committed()).expect("written");
        }
        assert!((15_800..=16_384).contains(&journal.bytes()), "{} bytes with records of {length}", journal.bytes());
    }
}

#[test]
fn a_full_journal_refuses_and_takes_again_after_a_trim() {
    let dir = folder();
    let options = JournalOptions { segment_bytes: 4096, capacity_bytes: 16384, ..options(dir.path()) };
    let (journal, _) = Journal::open(options.clone()).expect("the journal opens");
    let fill = |journal: &Journal| loop {
        match journal.append(&[7; 100]) {
            Ok(ticket) => drop(ticket),
            Err(error) => break error,
        }
    };
    let error = fill(&journal);
    assert!(matches!(error, AppendError::Full { bytes, capacity: 16384 } if bytes > 16000), "{error}");
    assert_eq!(journal.metrics().full_rejections, 1);
    let written = journal.written_seq();
    assert_eq!(
        journal.trim_through(written + 1),
        Err(TrimError::Unwritten { asked: written + 1, written }),
        "what was never written cannot have been delivered"
    );
    let sealed: u64 = journal.segments().iter().filter(|segment| segment.sealed).map(|segment| segment.bytes).sum();
    let trimmed = journal.trim_through(written).expect("written");
    assert_eq!((trimmed.bytes, journal.segments().len()), (sealed, 1));
    assert_eq!(journal.first_seq(), journal.segments()[0].first_seq);
    wait_until("files are deleted", || segment_files(dir.path()).len() == 1);
    commit(&journal, b"room again").expect("room");
    assert_eq!(read_all(&journal).last().map(|(_, payload)| payload.clone()), Some(b"room again".to_vec()));

    // A start finds what is on disk, however full it is.
    fill(&journal);
    let copy = crash(dir.path());
    let (journal, _) = Journal::open(JournalOptions { dir: copy.path().to_owned(), ..options }).expect("opens");
    assert!(matches!(fill(&journal), AppendError::Full { .. }));
    journal.trim_through(journal.written_seq()).expect("written");
    commit(&journal, b"drained").expect("room");
}

#[test]
fn a_reader_of_a_journal_that_was_trimmed_to_nothing_is_through() {
    let dir = folder();
    let (journal, _) = open(dir.path());
    for n in 1..=3 {
        assert_eq!(commit(&journal, &payload(n)).expect("room"), n);
    }
    drop(journal);
    let (journal, _) = open(dir.path());
    journal.trim_through(3).expect("written");
    assert!(journal.segments().is_empty());
    let mut reader = journal.reader(1);
    assert!(reader.next_batch_through(2, 10, 1_000).expect("readable").is_none());
    assert_eq!(reader.read_through(), 2, "no more than was asked for");
    assert!(reader.next_batch(10, 1_000).expect("readable").is_none());
    assert_eq!(reader.read_through(), 3, "else who waits for what comes behind it waits for nothing and goes round");
    let next = commit(&journal, &payload(9)).expect("written");
    assert_eq!(reader.next_batch(10, 1_000).expect("readable").map(|batch| batch.first_seq), Some(next));
    assert_eq!(reader.read_through(), next);
}

#[test]
fn a_trim_never_takes_a_segment_that_holds_a_later_record() {
    let dir = folder();
    let options = JournalOptions { segment_bytes: 1024, ..options(dir.path()) };
    let (journal, _) = Journal::open(options).expect("the journal opens");
    for n in 1..=100 {
        commit(&journal, &payload(n)).expect("room");
    }
    for through in 0..=100 {
        journal.trim_through(through).expect("written");
        let left: Vec<_> = read_all(&journal).into_iter().filter(|(seq, _)| *seq > through).collect();
        assert_eq!(left, (through + 1..=100).map(|n| (n, payload(n))).collect::<Vec<_>>());
    }
}

#[test]
fn a_reader_waits_for_what_is_written_next() {
    let dir = folder();
    let (journal, _) = open(dir.path());
    block_on(async {
        let mut reader = journal.reader(1);
        assert!(reader.next_batch(10, 1000).expect("readable").is_none());
        let mut waiting = Box::pin(journal.written_past(reader.read_through()));
        assert!(poll_once(waiting.as_mut()).is_pending());
        journal.append(b"next").expect("room").committed().await.expect("room");
        assert_eq!(waiting.await, 1);
        let batch = reader.next_batch(10, 1000).expect("readable").expect("a record");
        assert_eq!((batch.len(), batch.payload(0).as_ref(), batch.payload_bytes()), (1, &b"next"[..], 4));
        let mut waiting = Box::pin(journal.written_past(reader.read_through()));
        assert!(poll_once(waiting.as_mut()).is_pending());
        journal.close().await;
        assert_eq!(waiting.await, 1, "a closed journal keeps nobody waiting");
    });
}

#[test]
fn a_range_is_read_again_exactly() {
    let dir = folder();
    let (journal, _) = open(dir.path());
    for n in 1..=20 {
        commit(&journal, &payload(n)).expect("room");
    }
    let mut reader = journal.reader(5);
    let first = reader.next_batch_through(11, 3, 1 << 20).expect("readable").expect("records");
    let second = reader.next_batch_through(11, 100, 1 << 20).expect("readable").expect("records");
    assert_eq!((first.first_seq, first.last_seq), (5, 7));
    assert_eq!((second.first_seq, second.last_seq), (8, 11));
    assert!(reader.next_batch_through(11, 100, 1 << 20).expect("readable").is_none());
    assert_eq!(reader.read_through(), 11);
    assert_eq!(reader.next_batch(1, 1).expect("readable").expect("a record").first_seq, 12);
}

#[test]
fn closing_makes_everything_durable_in_every_mode_and_refuses_what_comes_later() {
    for sync in [SyncMode::Never, SyncMode::Interval(Duration::from_secs(60)), SyncMode::Always] {
        let dir = folder();
        let (journal, _) = Journal::open(JournalOptions { sync, ..options(dir.path()) }).expect("opens");
        block_on(async {
            let ticket = journal.append(b"in flight").expect("room");
            tokio::join!(journal.close(), async { ticket.committed().await.expect("written by the close") });
            journal.close().await;
        });
        assert_eq!(journal.synced_seq(), 1, "{sync}");
        assert!(matches!(journal.append(b"late"), Err(AppendError::Closed)));
        assert!(matches!(journal.append_many([b"late"]), Err(AppendError::Closed)));
        assert_eq!(read_all(&journal), [(1, b"in flight".to_vec())], "readers go on");
    }
}

#[test]
fn the_interval_is_kept() {
    let dir = folder();
    let sync = SyncMode::Interval(Duration::from_millis(20));
    let (journal, _) = Journal::open(JournalOptions { sync, ..options(dir.path()) }).expect("opens");
    for n in 1..=3 {
        commit(&journal, b"x").expect("room");
        wait_until("an fsync", || journal.synced_seq() == n);
    }
    assert!((1..=4).contains(&journal.metrics().sync_micros.count), "and an idle journal does not fsync");
}

#[test]
fn options_that_cannot_work_are_refused_by_name_and_value() {
    let dir = folder();
    let small = JournalOptions { segment_bytes: 100, ..options(dir.path()) };
    let error = Journal::open(small).map(drop).expect_err("too small");
    assert_eq!(error.to_string(), "journal option segment_bytes is 100; it must be at least 1024");
    let tight = JournalOptions { capacity_bytes: 1 << 20, ..options(dir.path()) };
    assert!(matches!(Journal::open(tight), Err(OpenError::Option { name: "capacity_bytes", .. })));
}

/// A scrape of the metrics that looks at the segments twice at once stands still for ever when a segment comes or goes
/// in between, and everything else behind it.
#[test]
fn watching_a_journal_while_its_segments_come_and_go_blocks_nobody() {
    let dir = folder();
    let segment_bytes = MIN_SEGMENT_BYTES;
    let (journal, _) =
        Journal::open(JournalOptions { segment_bytes, ..options(dir.path()) }).expect("the journal opens");
    let (done, is_done) = std::sync::mpsc::sync_channel(0);
    let is_over = Arc::new(AtomicBool::new(false));
    for _ in 0..2 {
        let (journal, is_over) = (journal.clone(), is_over.clone());
        std::thread::spawn(move || {
            while !is_over.load(Relaxed) {
                assert!(journal.metrics().bytes < 8 << 20);
            }
        });
    }
    std::thread::spawn(move || {
        let half_a_segment = vec![7; segment_bytes as usize / 2];
        for _ in 0..2_000 {
            let seq = commit(&journal, &half_a_segment).expect("room");
            journal.trim_through(seq).expect("written");
        }
        let _ = done.send(());
    });
    let finished = is_done.recv_timeout(Duration::from_secs(60));
    is_over.store(true, Relaxed);
    finished.expect("the journal stands still");
}
