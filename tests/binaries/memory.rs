//! Memory stays flat however large a file is.
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use fleetd_proto::v1::DownloadBinaryRequest;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use sha2::{Digest as _, Sha256};

use crate::support::client::frame;
use crate::support::wire::Http2;
use crate::support::{Server, ADMIN_KEY};
use crate::transfer::{chunk_message, metadata_message, named, Answer, Via, DOWNLOAD, UPLOAD};
use crate::{content, hex, server};

const MEGABYTES: u64 = 256;
/// An upload holds a few chunks of 1 MB and a download a few pieces; the rest is the allocator's.
const GROWTH_ALLOWED: u64 = 48 << 20;
/// On a machine that does ten other things.
const PATIENCE: Duration = Duration::from_secs(300);

/// A megabyte of the file; no two are alike.
fn megabyte(number: u64) -> Vec<u8> {
    let mut bytes = content(42, 1 << 20);
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes
}

/// Runs `work`; gives by how much the server was larger than before at its largest.
fn growth(server: &Server, work: impl FnOnce()) -> u64 {
    let before = server.resident_bytes();
    let (is_over, most) = (AtomicBool::new(false), AtomicU64::new(before));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                most.fetch_max(server.resident_bytes(), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        work();
        is_over.store(true, Ordering::Relaxed);
    });
    most.load(Ordering::Relaxed).saturating_sub(before)
}

#[test]
fn a_large_file_goes_up_and_down_in_flat_memory() {
    let server = server();
    const VIA: Via = Via::Grpc;
    let mut hasher = Sha256::new();
    (0..MEGABYTES).for_each(|number| hasher.update(megabyte(number)));
    let expected = format!("sha256:{}", hex(&hasher.finalize()));

    let mut id = String::new();
    let up = growth(&server, || {
        let ask = VIA.ask(UPLOAD, Some(ADMIN_KEY), Vec::new());
        let first = std::iter::once(metadata_message(VIA, named("large.bin")));
        let messages = first.chain((0..MEGABYTES).map(|number| chunk_message(VIA, &megabyte(number))));
        let frames = messages.map(|message| Ok(Frame::data(Bytes::from(frame(0, &message)))));
        let body = StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync();
        let mut answer = Vec::new();
        let mut connection = Http2::open(server.http());
        let reply = connection.ask_each(&ask, body, PATIENCE, |piece| answer.extend_from_slice(piece));
        let reply = crate::support::wire::Reply { body: answer, ..reply.expect("an answer") };
        let uploaded = Answer::of(VIA, &reply).uploaded();
        assert_eq!((uploaded.checksum, uploaded.size_bytes), (expected.clone(), (MEGABYTES << 20) as i64));
        id = uploaded.binary_id;
    });

    let down = growth(&server, || {
        let request = DownloadBinaryRequest { binary_id: id.clone(), ..DownloadBinaryRequest::default() };
        let ask = VIA.ask(DOWNLOAD, Some(ADMIN_KEY), frame(0, &VIA.encode(&request)));
        let body = http_body_util::Full::new(Bytes::from(ask.body.clone())).map_err(|never| match never {});
        let mut count = 0;
        let mut connection = Http2::open(server.http());
        let reply = connection.ask_each(&ask, body.boxed_unsync(), PATIENCE, |piece| count += piece.len() as u64);
        assert_eq!(reply.expect("an answer").trailer("grpc-status"), Some("0"));
        assert!(count > MEGABYTES << 20, "{count}");
    });

    let plain = growth(&server, || {
        let mut connection = TcpStream::connect(server.http()).expect("the server accepts");
        let ask = format!(
            "GET /artifacts/{id} HTTP/1.1\r\nhost: fleetd\r\nconnection: close\r\nauthorization: Bearer {ADMIN_KEY}\r\n\r\n"
        );
        connection.write_all(ask.as_bytes()).expect("a request");
        let (mut hasher, mut buffer, mut head) = (Sha256::new(), vec![0; 1 << 16], Vec::new());
        let mut in_body = false;
        loop {
            let count = connection.read(&mut buffer).expect("bytes");
            if count == 0 {
                break;
            }
            if in_body {
                hasher.update(&buffer[..count]);
                continue;
            }
            head.extend_from_slice(&buffer[..count]);
            if let Some(end) = head.windows(4).position(|window| window == b"\r\n\r\n") {
                hasher.update(&head[end + 4..]);
                in_body = true;
            }
        }
        assert_eq!(format!("sha256:{}", hex(&hasher.finalize())), expected);
    });
    println!("resident memory grew by {} KB up, {} KB down by gRPC, {} KB by HTTP", up >> 10, down >> 10, plain >> 10);
    for (what, grown) in [("up", up), ("down by gRPC", down), ("down by HTTP", plain)] {
        assert!(grown < GROWTH_ALLOWED, "{what}: {} MB", grown >> 20);
    }
}
