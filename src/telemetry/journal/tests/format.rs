//! The format against arbitrary bytes.
use proptest::prelude::*;

use super::super::format::*;
use super::*;

fn frames(salt: u32, records: &[(Seq, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (seq, payload) in records {
        bytes.extend(frame_header(salt, payload.len() as u32, *seq, payload_crc(salt, payload)));
        bytes.extend(payload);
    }
    bytes
}

#[test]
fn a_segment_of_a_newer_format_is_told_from_a_damaged_one() {
    let identity = Identity { id: uuid::Uuid::from_u128(5), salt: 3 };
    let mut block = SegmentHeader { identity, first_seq: 9 }.encode();
    block[8] = 2;
    assert_eq!(SegmentHeader::decode(&block), Err(BadHeader::Damaged));
    super::super::format::seal_block(&mut block);
    assert_eq!(SegmentHeader::decode(&block), Err(BadHeader::Version(2)));
}

#[test]
fn records_that_the_next_segment_holds_as_well_are_left_out() {
    let records: Vec<_> = (1..=6).map(|n| (n, payload(n))).collect();
    let bytes = frames(1, &records);
    let found = scan(&bytes, 1, 0, 4);
    assert_eq!((found.records, found.last_seq), (3, 3));
    assert_eq!(found.superseded_bytes, bytes.len() - found.data_end);
    assert!(found.damage.is_empty());
}

#[test]
fn a_search_through_hostile_bytes_takes_time_in_proportion() {
    // Every offset looks like a frame header up to its checksum; a search that read each claimed payload would look at
    // 50,000 times 1 MiB.
    let mut bytes = Vec::new();
    for seq in 1..50_000_u64 {
        bytes.extend((1_u32 << 20).to_le_bytes());
        bytes.extend(seq.to_le_bytes());
        bytes.extend([0; 8]);
    }
    bytes.resize(bytes.len() + (1 << 20), 1);
    let started = std::time::Instant::now();
    assert_eq!(resync(&bytes, 0, 7, 0), None);
    assert!(started.elapsed() < std::time::Duration::from_secs(5));
}

/// A frame header that fits, but whose payload does not, is no record: its number may be anything.
#[test]
fn a_frame_header_within_damage_hides_no_record_behind_it() {
    let salt = 7;
    let mut lost = frame_header(salt, 4, 1 << 40, 0).to_vec();
    lost.extend([0; 40]);
    let mut bytes = frames(salt, &[(1, lost), (2, payload(2)), (3, payload(3))]);
    bytes[0] ^= 1;
    let found = scan(&bytes, salt, 0, Seq::MAX);
    assert_eq!((found.records, found.last_seq), (2, 3), "{found:?}");
    assert_eq!(found.damage.len(), 1, "{found:?}");
}

proptest! {
    #[test]
    fn arbitrary_bytes_are_scanned_to_their_end(bytes in proptest::collection::vec(any::<u8>(), 0..2000), salt: u32) {
        let found = scan(&bytes, salt, 0, Seq::MAX);
        prop_assert!(found.data_end <= bytes.len());
        let damaged: usize = found.damage.iter().map(|damage| damage.range.len()).sum();
        prop_assert_eq!(found.records, 0, "no checksum fits by chance");
        prop_assert_eq!(damaged + found.torn_bytes, bytes.len());
    }

    #[test]
    fn records_are_found_whatever_stands_between_them(
        parts in proptest::collection::vec((proptest::collection::vec(any::<u8>(), 0..60), any::<bool>()), 1..20),
        salt: u32,
    ) {
        let mut bytes = Vec::new();
        let mut expected = 0;
        for (at, (part, is_record)) in parts.iter().enumerate() {
            if *is_record {
                bytes.extend(frames(salt, &[(at as Seq + 1, part.clone())]));
                expected += 1;
            } else {
                bytes.extend(part);
            }
        }
        let found = scan(&bytes, salt, 0, Seq::MAX);
        prop_assert_eq!(found.records, expected);
    }

    #[test]
    fn a_folder_with_an_arbitrary_segment_opens_and_goes_on(
        bytes in proptest::collection::vec(any::<u8>(), 0..400),
        is_framed: bool,
        first_seq in 1..1000_u64,
    ) {
        let dir = folder();
        let id = open(dir.path()).0.id();
        let identity = {
            let (journal, _) = open(dir.path());
            journal.inner().identity
        };
        let mut file = if is_framed { SegmentHeader { identity, first_seq }.encode().to_vec() } else { Vec::new() };
        file.extend(&bytes);
        std::fs::write(dir.path().join(segment::file_name(first_seq)), file).expect("room");
        let (journal, recovery) = open(dir.path());
        prop_assert_eq!(journal.id(), id);
        prop_assert_eq!(read_all(&journal), []);
        prop_assert!(recovery.next_seq >= first_seq);
        let seq = commit(&journal, b"on").expect("room");
        prop_assert_eq!(read_all(&journal), [(seq, b"on".to_vec())]);
    }
}
