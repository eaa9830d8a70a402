//! Cut files, flipped bits, zeros: what is intact is delivered, what is not is found and counted.
use super::super::format::{FRAME_HEADER_BYTES, SEGMENT_FOOTER_BYTES, SEGMENT_HEADER_BYTES};
use super::*;

type Records = Vec<(Seq, Vec<u8>)>;

/// A crashed journal with `count` records, and the offsets at which its records end, the header first.
fn crashed(count: u64, group: u64) -> (TempDir, Records, Vec<usize>) {
    let dir = folder();
    let (journal, _) = open(dir.path());
    for n in 1..=count {
        assert_eq!(commit(&journal, &payload(n)).expect("room"), n);
    }
    let rest: Vec<_> = (count + 1..=count + group).map(payload).collect();
    if group > 0 {
        block_on(journal.append_many(&rest).expect("room").committed()).expect("room");
    }
    let records = read_all(&journal);
    let mut ends = vec![SEGMENT_HEADER_BYTES];
    for (_, payload) in &records {
        ends.push(ends[ends.len() - 1] + FRAME_HEADER_BYTES + payload.len());
    }
    (crash(dir.path()), records, ends)
}

/// Appends one record, reads all back, and does it again after another start.
fn goes_on(dir: &Path, journal: Journal, expected: &[(Seq, Vec<u8>)]) {
    let seq = commit(&journal, b"one more").expect("room");
    assert!(expected.iter().all(|(earlier, _)| *earlier < seq), "a number is used again");
    let mut expected = expected.to_vec();
    expected.push((seq, b"one more".to_vec()));
    assert_eq!(read_all(&journal), expected);
    drop(journal);
    let (journal, recovery) = open(dir);
    assert_eq!(recovery.next_seq, seq + 1, "a clean stop leaves no gap");
    assert_eq!(recovery.torn_bytes, 0);
    assert_eq!(recovery.quarantined_bytes, 0, "damage is counted once");
    assert_eq!(read_all(&journal), expected);
}

#[test]
fn a_file_cut_anywhere_in_its_last_record_or_group_keeps_all_that_was_whole() {
    for group in [0, 5] {
        let (origin, records, ends) = crashed(8, group);
        let cut_from = ends[7];
        for cut in cut_from..ends[ends.len() - 1] {
            let dir = crash(origin.path());
            let file = segment_file(dir.path());
            std::fs::File::options().write(true).open(file).and_then(|file| file.set_len(cut as u64)).expect("cut");
            let (journal, recovery) = open(dir.path());
            let whole = ends.iter().filter(|end| **end <= cut).count() - 1;
            assert_eq!(read_all(&journal), records[..whole], "cut at {cut}");
            assert_eq!(recovery.records, whole as u64);
            assert_eq!(recovery.torn_bytes, (cut - ends[whole]) as u64);
            assert_eq!(recovery.quarantined_bytes, 0, "a torn tail is no damage");
            goes_on(dir.path(), journal, &records[..whole]);
        }
    }
}

#[test]
fn a_file_cut_inside_its_header_holds_nothing_and_stops_nobody() {
    let (origin, _, _) = crashed(1, 0);
    for cut in 0..=SEGMENT_HEADER_BYTES {
        let dir = crash(origin.path());
        let file = segment_file(dir.path());
        std::fs::File::options().write(true).open(file).and_then(|file| file.set_len(cut as u64)).expect("cut");
        let (journal, recovery) = open(dir.path());
        assert_eq!(recovery.records, 0);
        goes_on(dir.path(), journal, &[]);
    }
}

#[test]
fn zeros_behind_the_last_record_are_what_a_power_loss_leaves() {
    let (origin, records, ends) = crashed(8, 0);
    for zeros in [1, 19, 20, 21, 63, 64, 65, 4096, 100_000] {
        let dir = crash(origin.path());
        let file = segment_file(dir.path());
        let length = (ends[8] + zeros) as u64;
        std::fs::File::options().write(true).open(file).and_then(|file| file.set_len(length)).expect("grown");
        let (journal, recovery) = open(dir.path());
        assert_eq!((recovery.torn_bytes, recovery.quarantined_bytes), (zeros as u64, 0));
        goes_on(dir.path(), journal, &records);
    }
}

#[test]
fn a_hole_of_zeros_before_intact_records_is_damage_and_they_are_delivered() {
    let (dir, records, ends) = crashed(8, 0);
    let file = segment_file(dir.path());
    let mut bytes = std::fs::read(&file).expect("readable");
    bytes[ends[3]..ends[5]].fill(0);
    std::fs::write(&file, bytes).expect("room");
    let (journal, recovery) = open(dir.path());
    assert_eq!(recovery.quarantined_records, 2);
    assert_eq!(recovery.quarantined_bytes, (ends[5] - ends[3]) as u64);
    let expected: Vec<_> = records.iter().filter(|(seq, _)| ![4, 5].contains(seq)).cloned().collect();
    goes_on(dir.path(), journal, &expected);
}

#[test]
fn every_flipped_bit_of_a_crashed_segment_is_found_counted_and_set_aside() {
    let (origin, records, ends) = crashed(10, 3);
    let original = std::fs::read(segment_file(origin.path())).expect("readable");
    assert_eq!(ends.last(), Some(&original.len()));
    for bit in 0..original.len() * 8 {
        let dir = crash(origin.path());
        let mut bytes = original.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        std::fs::write(segment_file(dir.path()), &bytes).expect("room");
        let (journal, recovery) = open(dir.path());
        let hit = ends.iter().filter(|end| **end <= bit / 8).count();
        let damaged = if hit == 0 { 0..SEGMENT_HEADER_BYTES } else { ends[hit - 1]..ends[hit] };
        // A header holds no record.
        let expected: Vec<_> =
            records.iter().enumerate().filter(|(at, _)| hit != at + 1).map(|(_, record)| record.clone()).collect();
        assert_eq!(read_all(&journal), expected, "bit {bit}");
        let lost = u64::from(hit > 0);
        // The last record has no neighbour that would tell how many there were.
        assert!(recovery.quarantined_records >= lost, "bit {bit}");
        assert!(hit == 13 || recovery.quarantined_records == lost, "bit {bit}");
        assert_eq!(recovery.torn_bytes, 0, "bit {bit}");
        assert_eq!(quarantined_bytes(dir.path()), [&bytes[damaged.clone()]], "bit {bit}");
        assert_eq!(journal.metrics().quarantined_bytes, damaged.len() as u64);
        assert!(recovery.next_seq > 13);
    }
}

#[test]
fn every_flipped_bit_of_a_sealed_segment_is_found_when_it_is_read() {
    let (origin, records, ends) = crashed(10, 0);
    drop(open(origin.path()));
    let original = std::fs::read(segment_file(origin.path())).expect("readable");
    assert_eq!(original.len(), ends[10] + SEGMENT_FOOTER_BYTES);
    for bit in 0..original.len() * 8 {
        let dir = crash(origin.path());
        let mut bytes = original.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        std::fs::write(segment_file(dir.path()), &bytes).expect("room");
        let (journal, recovery) = open(dir.path());
        let hit = ends.iter().filter(|end| **end <= bit / 8).count();
        let expected: Vec<_> =
            records.iter().enumerate().filter(|(at, _)| hit != at + 1).map(|(_, record)| record.clone()).collect();
        for _ in 0..2 {
            assert_eq!(read_all(&journal), expected, "bit {bit}");
        }
        let stats = journal.metrics();
        assert_eq!(stats.quarantined_stretches, 1, "bit {bit}: once, however often it is read");
        assert_eq!(quarantined_bytes(dir.path()).len(), 1);
        if (1..=10).contains(&hit) {
            assert_eq!(recovery.quarantined_bytes, 0, "sealed segments are not read at the start");
            assert_eq!(stats.quarantined_records, 1, "bit {bit}");
            assert_eq!(quarantined_bytes(dir.path())[0], bytes[ends[hit - 1]..ends[hit]]);
        }
    }
}

#[test]
fn frames_inside_a_damaged_payload_are_not_taken_for_records() {
    let dir = folder();
    let (journal, _) = open(dir.path());
    // What a client could send that knows the format, but not the journal's salt.
    let mut image = Vec::new();
    for seq in 2..200 {
        image.extend(super::super::format::frame_header(0, 5, seq, super::super::format::payload_crc(0, b"false")));
        image.extend(b"false");
    }
    commit(&journal, &image).expect("room");
    commit(&journal, b"true").expect("room");
    let copy = crash(dir.path());
    let file = segment_file(copy.path());
    let mut bytes = std::fs::read(&file).expect("readable");
    bytes[SEGMENT_HEADER_BYTES + 1] ^= 1;
    std::fs::write(&file, bytes).expect("room");
    let (journal, recovery) = open(copy.path());
    assert_eq!(read_all(&journal), [(2, b"true".to_vec())]);
    assert_eq!(recovery.quarantined_records, 1);
}

#[test]
fn a_segment_whose_damage_cannot_be_copied_is_kept_when_it_is_trimmed() {
    let (dir, records, ends) = crashed(5, 0);
    drop(open(dir.path()));
    let file = segment_file(dir.path());
    let mut bytes = std::fs::read(&file).expect("readable");
    bytes[ends[2]] ^= 1;
    std::fs::write(&file, &bytes).expect("room");
    // A file where the folder should be.
    std::fs::write(dir.path().join("quarantine"), b"").expect("room");
    let (journal, _) = open(dir.path());
    assert_eq!(read_all(&journal).len(), records.len() - 1, "delivery goes on");
    std::fs::remove_file(dir.path().join("quarantine")).expect("removed");
    assert_eq!(journal.trim_through(5).expect("written").segments, 1);
    wait_until("the segment moves", || !file.exists());
    assert_eq!(quarantined_bytes(dir.path()), [bytes]);
}

#[test]
fn what_an_unfinished_rescue_left_is_deleted_or_counted_once() {
    let (dir, records, ends) = crashed(6, 0);
    let original = std::fs::read(segment_file(dir.path())).expect("readable");
    // Renamed, but the old segment not yet cut: records 4 to 6 are in both.
    let identity = super::super::format::SegmentHeader::decode(&original).expect("intact").identity;
    let mut moved = super::super::format::SegmentHeader { identity, first_seq: 4 }.encode().to_vec();
    moved.extend(&original[ends[3]..]);
    std::fs::write(dir.path().join(segment::file_name(4)), moved).expect("room");
    let half_done = dir.path().join("00000000000000000005.rescue");
    std::fs::write(&half_done, b"half").expect("room");
    let (journal, recovery) = open(dir.path());
    assert!(!half_done.exists());
    assert_eq!((recovery.records, recovery.quarantined_bytes, recovery.torn_bytes), (6, 0, 0));
    assert_eq!(read_all(&journal), records);
    goes_on(dir.path(), journal, &records);
}

#[test]
fn a_lost_meta_file_is_restored_from_the_segments() {
    let (dir, records, _) = crashed(5, 0);
    let id = open(dir.path()).0.id();
    for damage in [None, Some(vec![0xAA; 5000])] {
        let meta = dir.path().join("journal.meta");
        match damage {
            None => std::fs::remove_file(&meta).expect("removed"),
            Some(bytes) => std::fs::write(&meta, bytes).expect("room"),
        }
        let (journal, recovery) = open(dir.path());
        assert_eq!(journal.id(), id);
        assert!(recovery.next_seq > 5 + DEFAULT_RESERVED_BLOCK, "no number of the lost block is used");
        assert_eq!(read_all(&journal), records);
    }
}

#[test]
fn what_is_not_this_journals_is_refused_by_name() {
    let (dir, _, _) = crashed(2, 0);
    let (other, _, _) = crashed(3, 0);
    let file = segment_file(dir.path());
    std::fs::copy(segment_file(other.path()), &file).expect("room");
    let error = Journal::open(options(dir.path())).map(drop).expect_err("foreign");
    assert!(matches!(error, OpenError::Foreign { .. }), "{error}");

    std::fs::rename(segment_file(other.path()), other.path().join(segment::file_name(77))).expect("renamed");
    let error = Journal::open(options(other.path())).map(drop).expect_err("misnamed");
    assert!(matches!(error, OpenError::Misnamed { first_seq: 1, .. }), "{error}");

    std::fs::remove_file(file).expect("removed");
    std::fs::write(dir.path().join("journal.meta"), [0xAA; 5000]).expect("room");
    let error = Journal::open(options(dir.path())).map(drop).expect_err("nameless");
    assert!(matches!(error, OpenError::Unidentified { .. }), "{error}");
}
