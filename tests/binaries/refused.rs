//! What is wrong is refused by name, and nothing of it stays.
use fleetd_proto::v1::{BinaryMetadata, DownloadBinaryRequest};

use crate::support::{Server, ADMIN_KEY};
use crate::transfer::{
    chunk_message, download, metadata_message, named, upload, uploaded, Answer, Via, DOWNLOAD, UPLOAD,
};
use crate::{artifacts, checksum, content, server};

const INVALID: &str = "INVALID_ARGUMENT";

fn sent(server: &Server, via: Via, messages: &[Vec<u8>]) -> Answer {
    via.call(server, UPLOAD, Some(ADMIN_KEY), messages)
}

#[track_caller]
fn leaves_nothing(server: &Server) {
    let is_empty = crate::support::wait_until(std::time::Duration::from_secs(5), || artifacts(server).is_empty());
    assert!(is_empty, "left behind: {:?}", artifacts(server));
}

#[test]
fn an_upload_that_is_not_what_it_says_leaves_nothing() {
    let server = server();
    let bytes = content(1, 50_000);
    let wrong = format!("sha256:{}", "0".repeat(64));
    for via in Via::ALL {
        let metadata = BinaryMetadata { checksum: wrong.clone(), ..named("a.bin") };
        upload(&server, via, metadata, &bytes, 10_000).is_refused(INVALID, &[&wrong, &checksum(&bytes)]);
        for (size, received) in [(49_999, "50000"), (50_001, "50000"), (10_000, "20000")] {
            let metadata = BinaryMetadata { size_bytes: size, ..named("a.bin") };
            let answer = upload(&server, via, metadata, &bytes, 10_000);
            answer.is_refused(INVALID, &[&size.to_string(), received]);
        }
    }
    leaves_nothing(&server);
    assert_eq!(server.metrics().get("fleetd_uploads_failed_total"), 4.0 * Via::ALL.len() as f64);
}

#[test]
fn messages_out_of_order_are_refused_by_number() {
    let server = server();
    for via in [Via::Grpc, Via::Connect1, Via::ConnectJson2, Via::GrpcWeb1] {
        let metadata = || metadata_message(via, named("a.bin"));
        let chunk = |bytes: &[u8]| chunk_message(via, bytes);
        let empty = if via.is_json() { b"{}".to_vec() } else { Vec::new() };
        sent(&server, via, &[]).is_refused(INVALID, &["before its metadata"]);
        sent(&server, via, &[chunk(b"x")]).is_refused(INVALID, &["message 1 is a chunk"]);
        sent(&server, via, &[metadata()]).is_refused(INVALID, &["no chunk"]);
        sent(&server, via, &[metadata(), metadata()]).is_refused(INVALID, &["message 2 is metadata again"]);
        sent(&server, via, &[metadata(), chunk(b"x"), chunk(b"")])
            .is_refused(INVALID, &["message 3 is an empty chunk"]);
        sent(&server, via, &[metadata(), empty.clone()]).is_refused(INVALID, &["message 2 holds neither"]);
        sent(&server, via, &[empty]).is_refused(INVALID, &["message 1 holds neither"]);
        let large = chunk(&vec![0; (4 << 20) + 1]);
        sent(&server, via, &[metadata(), large]).is_refused(INVALID, &["4194305 bytes", "4194304"]);
        let huge = chunk(&vec![0; 8 << 20]);
        sent(&server, via, &[metadata(), huge]).is_refused("RESOURCE_EXHAUSTED", &[]);
        sent(&server, via, &[b"\xff\xff\xff".to_vec()]).is_refused(INVALID, &["not valid"]);
    }
    leaves_nothing(&server);
}

#[test]
fn metadata_that_could_do_harm_is_refused_by_name() {
    let server = server();
    for name in ["", "..", "../../etc/passwd", "a/b", "a\\b", "/etc/passwd", "a\0b", "a\nb"] {
        let answer = upload(&server, Via::ConnectJson1, named(name), b"x", 1);
        answer.is_refused(INVALID, &["metadata.name"]);
        assert!(name.is_empty() || answer.message.contains(&format!("{name:?}")), "{}", answer.message);
    }
    let long = BinaryMetadata { version: "1".repeat(129), ..named("a") };
    upload(&server, Via::Grpc, long, b"x", 1).is_refused(INVALID, &["metadata.version has 129 bytes"]);
    let md5 = BinaryMetadata { checksum: "md5:00".into(), ..named("a") };
    upload(&server, Via::Grpc, md5, b"x", 1).is_refused(INVALID, &["md5:00"]);
    let negative = BinaryMetadata { size_bytes: -1, ..named("a") };
    upload(&server, Via::Grpc, negative, b"x", 1).is_refused(INVALID, &["size_bytes is -1"]);
    leaves_nothing(&server);
}

#[test]
fn downloads_of_what_is_not_there_are_refused_by_value() {
    let server = server();
    let id = uploaded(&server, "a.bin", b"12345");
    let ask = |binary_id: &str, offset, chunk_size| {
        let request = DownloadBinaryRequest { binary_id: binary_id.into(), offset, chunk_size };
        download(&server, Via::Grpc, Some(ADMIN_KEY), request)
    };
    for unknown in ["", "bin-002", "bin-1", "../bin-001", "sha256:00"] {
        ask(unknown, 0, 0).is_refused("NOT_FOUND", &[unknown]);
    }
    for offset in [-1, 6, i64::MAX] {
        ask(&id, offset, 0).is_refused(INVALID, &[&format!("offset is {offset}"), "5 bytes"]);
    }
    for size in [-1, 1, 4_095, 4_194_305] {
        ask(&id, 0, size).is_refused(INVALID, &[&format!("chunk_size is {size}"), "4096"]);
    }
}

#[test]
fn keys_decide_who_uploads_and_who_downloads() {
    let server = server();
    let id = uploaded(&server, "a.bin", b"12345");
    let device = server.register("rpi-001");
    for via in [Via::Grpc, Via::Connect1] {
        let messages = [metadata_message(via, named("b.bin")), chunk_message(via, b"x")];
        via.call(&server, UPLOAD, None, &messages).is_refused("UNAUTHENTICATED", &[]);
        via.call(&server, UPLOAD, Some("nobody"), &messages).is_refused("UNAUTHENTICATED", &[]);
        via.call(&server, UPLOAD, Some(&device), &messages).is_refused("PERMISSION_DENIED", &["update:create"]);
        let request = via.encode(&DownloadBinaryRequest { binary_id: id.clone(), ..DownloadBinaryRequest::default() });
        via.call(&server, DOWNLOAD, None, std::slice::from_ref(&request)).is_refused("UNAUTHENTICATED", &[]);
        assert_eq!(via.call(&server, DOWNLOAD, Some(&device), &[request]).downloaded().1.concat(), b"12345");
    }
    assert_eq!(artifacts(&server).len(), 1);
}

#[test]
fn a_file_whose_bytes_are_gone_is_data_loss_and_an_upload_heals_it() {
    let server = server();
    let bytes = content(5, 10_000);
    let id = uploaded(&server, "a.bin", &bytes);
    let ask = || {
        let request = DownloadBinaryRequest { binary_id: id.clone(), ..DownloadBinaryRequest::default() };
        download(&server, Via::Grpc, Some(ADMIN_KEY), request)
    };
    let [path] = artifacts(&server).try_into().expect("one file");
    std::fs::write(&path, &bytes[..9_000]).expect("a damaged file");
    ask().is_refused("DATA_LOSS", &["9000 of 10000 bytes", "upload the file again"]);
    std::fs::remove_file(&path).expect("no file");
    ask().is_refused("DATA_LOSS", &["gone", "upload the file again"]);
    assert_eq!(uploaded(&server, "a.bin", &bytes), id);
    assert!(ask().downloaded().1.concat() == bytes);
}
