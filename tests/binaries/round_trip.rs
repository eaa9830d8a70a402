//! What is uploaded comes back, by every protocol, from every offset, and after a restart.
use fleetd_proto::v1::DownloadBinaryRequest;

use crate::support::ADMIN_KEY;
use crate::transfer::{download, named, upload, Via};
use crate::{artifacts, checksum, content, server};

#[test]
fn every_protocol_takes_a_file_and_gives_it_back() {
    let mut server = server();
    let device_key = server.register("rpi-001");
    let mut ids = Vec::new();
    for (seed, via) in Via::ALL.into_iter().enumerate() {
        let bytes = content(seed as u64, 2_500_000);
        let mut metadata = named(&format!("firmware-{seed}.bin"));
        metadata.checksum = checksum(&bytes);
        metadata.size_bytes = bytes.len() as i64;
        // Chunks that fit nothing, so that no border falls on another.
        let answer = upload(&server, via, metadata, &bytes, 300_007).uploaded();
        assert_eq!((answer.checksum.as_str(), answer.size_bytes), (checksum(&bytes).as_str(), 2_500_000), "{via:?}");
        assert!(answer.uploaded_at.is_some());
        ids.push(answer.binary_id);
    }
    assert_eq!(ids[0], "bin-001");
    assert_eq!(artifacts(&server).len(), Via::ALL.len());
    server.sigkill();
    server.restart();
    for (seed, via) in Via::ALL.into_iter().enumerate() {
        let bytes = content(seed as u64, 2_500_000);
        let request = DownloadBinaryRequest { binary_id: ids[seed].clone(), ..DownloadBinaryRequest::default() };
        // A device may, with its own key.
        let (metadata, chunks) = download(&server, via, Some(&device_key), request).downloaded();
        assert_eq!(metadata.name, format!("firmware-{seed}.bin"));
        assert_eq!((metadata.version.as_str(), metadata.platform.as_str()), ("2.0.0", "raspberry-pi"));
        assert_eq!((metadata.binary_id, metadata.checksum), (ids[seed].clone(), checksum(&bytes)));
        assert_eq!(chunks.iter().map(Vec::len).collect::<Vec<_>>(), [1 << 20, 1 << 20, 2_500_000 - (2 << 20)]);
        assert!(chunks.concat() == bytes, "{via:?}: the bytes came back different");
    }
}

#[test]
fn a_download_goes_on_from_an_offset() {
    let server = server();
    let bytes = content(7, 100_000);
    let id = upload(&server, Via::Grpc, named("firmware.bin"), &bytes, 1 << 20).uploaded().binary_id;
    for via in [Via::Grpc, Via::Connect1, Via::ConnectJson2] {
        for offset in [0, 1, 4_096, 99_999, 100_000] {
            let request = DownloadBinaryRequest { binary_id: id.clone(), offset, chunk_size: 4_096 };
            let (metadata, chunks) = download(&server, via, Some(ADMIN_KEY), request).downloaded();
            assert_eq!(metadata.size_bytes, 100_000, "the whole length, not that of the rest");
            assert!(chunks.iter().all(|chunk| (1..=4_096).contains(&chunk.len())));
            assert!(chunks.concat() == bytes[offset as usize..], "{via:?} from {offset}");
        }
    }
}

#[test]
fn the_same_bytes_are_stored_once_and_the_same_file_has_one_id() {
    let server = server();
    let bytes = content(1, 10_000);
    let first = upload(&server, Via::Grpc, named("a.bin"), &bytes, 1_000).uploaded();
    let again = upload(&server, Via::Connect1, named("a.bin"), &bytes, 7_777).uploaded();
    assert_eq!(first, again, "a repeat is told what the first was");
    let renamed = upload(&server, Via::Grpc, named("b.bin"), &bytes, 1_000).uploaded();
    assert_ne!(first.binary_id, renamed.binary_id);
    assert_eq!(first.checksum, renamed.checksum);
    assert_eq!(artifacts(&server).len(), 1);
}

#[test]
fn single_bytes_and_the_largest_chunks_make_the_same_file() {
    let server = server();
    let bytes = content(3, 9 << 20);
    let largest = upload(&server, Via::Grpc, named("large.bin"), &bytes, 4 << 20).uploaded();
    assert_eq!(largest.checksum, checksum(&bytes));
    let json = upload(&server, Via::ConnectJson1, named("large.bin"), &bytes, 4 << 20).uploaded();
    assert_eq!(json, largest);
    let few = &bytes[..5_000];
    assert_eq!(upload(&server, Via::Grpc, named("few.bin"), few, 1).uploaded().checksum, checksum(few));
}

#[test]
fn uploads_beside_each_other_do_not_mix() {
    let server = server();
    std::thread::scope(|scope| {
        for seed in 0..8 {
            let server = &server;
            scope.spawn(move || {
                // Half of them upload the same bytes at the same time.
                let bytes = content(seed / 2, 3_000_000);
                let via = Via::ALL[seed as usize % Via::ALL.len()];
                let answer = upload(server, via, named(&format!("{seed}.bin")), &bytes, 500_000).uploaded();
                assert_eq!(answer.checksum, checksum(&bytes), "{via:?}");
            });
        }
    });
    assert_eq!(artifacts(&server).len(), 4);
    assert_eq!(server.metrics().get("fleetd_uploads_total"), 8.0);
    assert_eq!(server.metrics().get("fleetd_uploaded_bytes_total"), 24e6);
}
