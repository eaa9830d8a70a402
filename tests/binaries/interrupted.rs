//! Uploads that break off, by the client, by a crash, by a stop: nothing of them stays. Downloads that break off go on.
use std::io;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fleetd_proto::v1::BinaryMetadata;
use futures_util::StreamExt as _;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;

use crate::support::client::frame;
use crate::support::wire::{Http1, Http2};
use crate::support::{wait_until, Server, ADMIN_KEY};
use crate::transfer::{chunk_message, metadata_message, named, Answer, Via, UPLOAD};
use crate::{artifacts, content, server};

const SOON: Duration = Duration::from_secs(10);

/// The beginning of an upload of 3 MB: metadata and two chunks that are on the disk when they were taken.
fn beginning(via: Via) -> Vec<u8> {
    let metadata = BinaryMetadata { size_bytes: 3 << 20, ..named("a.bin") };
    let chunk = chunk_message(via, &content(1, 1 << 20));
    [frame(0, &metadata_message(via, metadata)), frame(0, &chunk), frame(0, &chunk)].concat()
}

/// Begins an upload on HTTP/1.1 that says it is chunked and has not ended.
fn begin_on_http1(server: &Server) -> Http1 {
    let via = Via::Connect1;
    let ask = via.ask(UPLOAD, Some(ADMIN_KEY), Vec::new()).header("transfer-encoding", "chunked");
    let mut connection = Http1::open(server.http());
    connection.send(&ask.head_on_http1(None));
    let body = beginning(via);
    connection.send(format!("{:x}\r\n", body.len()).as_bytes());
    connection.send(&body);
    connection.send(b"\r\n");
    connection
}

#[track_caller]
fn is_on_its_way(server: &Server) {
    let written = || artifacts(server).iter().any(|path| path.metadata().is_ok_and(|facts| facts.len() >= 1 << 20));
    assert!(wait_until(SOON, written), "the upload never reached the disk: {:?}", artifacts(server));
}

#[track_caller]
fn leaves_nothing(server: &Server) {
    let is_empty = wait_until(SOON, || artifacts(server).is_empty());
    assert!(is_empty, "left behind: {:?}\n{}", artifacts(server), server.log());
}

#[test]
fn a_client_that_goes_away_leaves_nothing() {
    let server = server();
    let connection = begin_on_http1(&server);
    is_on_its_way(&server);
    drop(connection);
    leaves_nothing(&server);

    // On HTTP/2, where a broken body resets the stream.
    let via = Via::Grpc;
    let ask = via.ask(UPLOAD, Some(ADMIN_KEY), Vec::new());
    let pieces =
        futures_util::stream::iter([Ok(Frame::data(Bytes::from(beginning(via)))), Err(io::Error::other("gone"))]);
    let outcome = Http2::open(server.http()).ask_with(&ask, StreamBody::new(pieces).boxed_unsync());
    assert!(outcome.is_err(), "{outcome:?}");
    leaves_nothing(&server);
}

#[test]
fn a_body_that_ends_within_a_message_is_no_upload() {
    let server = server();
    for via in [Via::Grpc, Via::Connect2] {
        // No size is said: the framing alone shows that something is missing.
        let chunk = frame(0, &chunk_message(via, &content(1, 2 << 20)));
        let body = [frame(0, &metadata_message(via, named("a.bin"))), chunk.clone(), chunk[..chunk.len() - 1].to_vec()];
        let ask = via.ask(UPLOAD, Some(ADMIN_KEY), body.concat());
        let answer = Answer::of(via, &Http2::open(server.http()).ask(&ask));
        assert_ne!(answer.code, "OK", "{answer:?}");
    }
    leaves_nothing(&server);
    // Chunked HTTP/1.1 that lacks its last chunk.
    let mut connection = begin_on_http1(&server);
    is_on_its_way(&server);
    connection.stream.shutdown(std::net::Shutdown::Write).expect("half a close");
    if let Ok(reply) = connection.reply() {
        assert_ne!(Answer::of(Via::Connect1, &reply).code, "OK");
    }
    leaves_nothing(&server);
}

#[test]
fn a_server_that_is_killed_within_an_upload_leaves_nothing_after_its_next_start() {
    let mut server = server();
    let _connection = begin_on_http1(&server);
    is_on_its_way(&server);
    server.sigkill();
    assert_eq!(artifacts(&server).len(), 1, "a crash has no time to clean up");
    // As from a crash between keeping and registering.
    let orphan = server.data_dir().join("artifacts/sha256/ab").join(format!("ab{}", "0".repeat(62)));
    std::fs::create_dir_all(orphan.parent().expect("a folder")).expect("a folder");
    std::fs::write(&orphan, b"orphan").expect("an orphan");
    server.restart();
    assert_eq!(artifacts(&server), Vec::<std::path::PathBuf>::new());
}

#[test]
fn a_stop_ends_uploads_and_downloads_in_time() {
    let mut server = server();
    let bytes = content(2, 64 << 20);
    let id = crate::transfer::uploaded(&server, "large.bin", &bytes);
    let mut upload = begin_on_http1(&server);
    assert!(wait_until(SOON, || artifacts(&server).len() == 2));
    // A reader that takes nothing: the download stands still, far from its end.
    let mut download = Http1::open(server.http());
    download.send(
        format!("GET /artifacts/{id} HTTP/1.1\r\nhost: fleetd\r\nauthorization: Bearer {ADMIN_KEY}\r\n\r\n").as_bytes(),
    );
    assert!(wait_until(SOON, || server.metrics().get("fleetd_downloads_total") == 1.0));
    let asked = Instant::now();
    assert_eq!(server.sigterm(), Some(0));
    assert!(asked.elapsed() < Duration::from_secs(10), "took {:?}", asked.elapsed());
    if let Ok(reply) = upload.reply() {
        Answer::of(Via::Connect1, &reply).is_refused("UNAVAILABLE", &["stopping"]);
    }
    let cut_off = download.reply();
    assert!(cut_off.is_err(), "a download that was cut off is not whole");
    server.restart();
    assert_eq!(artifacts(&server).len(), 1);
}

/// An upload that never goes on is given up; the test only sees that it holds no one up meanwhile.
#[test]
fn stalled_uploads_take_places_but_not_all_of_the_server() {
    let server = server();
    let stalled: Vec<Http1> = (0..16).map(|_| begin_on_http1(&server)).collect();
    assert!(wait_until(SOON, || artifacts(&server).len() == 16), "{:?}", artifacts(&server).len());
    let answer = crate::transfer::upload(&server, Via::Grpc, named("b.bin"), b"x", 1);
    answer.is_refused("UNAVAILABLE", &["16 uploads"]);
    assert_eq!(answer.retry_after.as_deref(), Some("5"));
    server.register("rpi-001");
    drop(stalled);
    leaves_nothing(&server);
    crate::transfer::uploaded(&server, "b.bin", b"x");
}

#[test]
fn a_stream_that_stalls_forever_is_no_reason_to_wait_for_it() {
    // The pending body keeps the call open; dropping the client ends it.
    let server = server();
    let via = Via::Grpc;
    let ask = via.ask(UPLOAD, Some(ADMIN_KEY), Vec::new()).header("grpc-timeout", "2S");
    let first = futures_util::stream::iter([Ok(Frame::data(Bytes::from(beginning(via))))]);
    let body = StreamBody::new(first.chain(futures_util::stream::pending())).boxed_unsync();
    let answer = Answer::of(via, &Http2::open(server.http()).ask_with(&ask, body).expect("an answer"));
    answer.is_refused("DEADLINE_EXCEEDED", &[]);
    leaves_nothing(&server);
}
