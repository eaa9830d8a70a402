//! Plain HTTP downloads: what `curl -C -`, a browser and a cache rely on, on both HTTP versions.
use std::io::Read as _;
use std::time::{SystemTime, UNIX_EPOCH};

use fleetd::artifacts::DownloadUrls;
use fleetd::store::UnixMillis;

use crate::support::client::Client;
use crate::support::wire::{http1, http2, Ask, Http1, Reply};
use crate::support::{Options, Server, ADMIN_KEY};
use crate::transfer::uploaded;
use crate::{checksum, content, server};

/// What the server signs with.
fn urls(server: &Server) -> DownloadUrls {
    let registry = rusqlite::Connection::open(server.data_dir().join("registry.db")).expect("the registry");
    let secret: Vec<u8> = registry
        .query_row("SELECT value FROM settings WHERE name = 'download_url_secret'", [], |row| row.get(0))
        .expect("a secret");
    DownloadUrls::new("", secret.try_into().expect("32 bytes"))
}

fn in_seconds(seconds: i64) -> UnixMillis {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time after 1970").as_millis() as i64;
    UnixMillis::from_millis_clamped(now + seconds * 1_000)
}

/// The path of a URL that is good for a minute.
fn signed(server: &Server, id: &str) -> String {
    urls(server).sign(id, in_seconds(60))
}

/// The same request on both versions; both answers.
fn both(server: &Server, ask: &Ask) -> [Reply; 2] {
    [http1(server.http(), ask), http2(server.http(), ask)]
}

#[track_caller]
fn refused(reply: &Reply, status: u16, code: &str, part: &str) {
    assert_eq!(reply.status, status, "{}", reply.text());
    let outcome = Client::Json1.outcome(reply);
    assert_eq!(outcome.code, code);
    assert!(outcome.message.contains(part), "{part:?} is not in {:?}", outcome.message);
}

#[test]
fn a_signed_url_gives_the_file_with_what_a_client_needs_to_resume() {
    let server = server();
    let bytes = content(1, 1_000_000);
    let id = uploaded(&server, "firmware 2.bin", &bytes);
    let tag = format!("\"{}\"", &checksum(&bytes)[7..]);
    for reply in both(&server, &Ask::get(signed(&server, &id))) {
        assert_eq!(reply.status, 200, "{}", reply.text());
        assert!(reply.body == bytes);
        for (name, value) in [
            ("content-length", "1000000"),
            ("accept-ranges", "bytes"),
            ("etag", tag.as_str()),
            ("content-type", "application/octet-stream"),
            ("content-disposition", "attachment; filename*=UTF-8''firmware%202.bin"),
        ] {
            assert_eq!(reply.header(name), Some(value));
        }
        assert!(reply.header("x-request-id").is_some());
        assert!(reply.header("repr-digest").is_some_and(|digest| digest.starts_with("sha-256=:")));
    }
    let head = Ask { method: "HEAD", ..Ask::get(signed(&server, &id)) };
    let mut connection = Http1::open(server.http());
    connection.send(&head.on_http1());
    let mut text = String::new();
    let mut read_until = |connection: &mut Http1, end: &str| {
        while !text.ends_with(end) {
            let mut buffer = [0; 4096];
            let count = connection.stream.read(&mut buffer).expect("an answer");
            assert!(count > 0, "{text}");
            text.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
        std::mem::take(&mut text)
    };
    let answer = read_until(&mut connection, "\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(answer.matches("content-length: 1000000\r\n").count(), 1, "{answer}");
    // Only a head came: the next answer begins right after it.
    connection.send(&Ask::get("/healthz").on_http1());
    assert!(read_until(&mut connection, "ok\n").starts_with("HTTP/1.1 200"));
    let reply = http2(server.http(), &head);
    assert_eq!((reply.status, reply.header("content-length"), reply.body.len()), (200, Some("1000000"), 0));
}

#[test]
fn ranges_are_served_and_put_together_again() {
    let server = server();
    let bytes = content(2, 300_000);
    let id = uploaded(&server, "a.bin", &bytes);
    let url = signed(&server, &id);
    let get = |range: &str| Ask::get(url.clone()).header("range", range);
    for (range, from, to) in [
        ("bytes=0-0", 0, 1),
        ("bytes=0-99999", 0, 100_000),
        ("bytes=100000-", 100_000, 300_000),
        ("bytes=-5", 299_995, 300_000),
        ("bytes=299999-999999", 299_999, 300_000),
    ] {
        for reply in both(&server, &get(range)) {
            assert_eq!(reply.status, 206, "{range}");
            assert_eq!(reply.header("content-range"), Some(format!("bytes {from}-{}/300000", to - 1).as_str()));
            assert_eq!(reply.header("content-length"), Some((to - from).to_string().as_str()));
            assert!(reply.body == bytes[from..to], "{range}");
        }
    }
    for range in ["bytes=300000-", "bytes=-0"] {
        for reply in both(&server, &get(range)) {
            refused(&reply, 416, "OUT_OF_RANGE", "300000 bytes");
            assert_eq!(reply.header("content-range"), Some("bytes */300000"));
        }
    }
    for whole in ["bytes=0-1,5-6", "items=0-1", "bytes=x"] {
        for reply in both(&server, &get(whole)) {
            assert_eq!((reply.status, reply.body.len()), (200, 300_000), "{whole}");
        }
    }
}

#[test]
fn conditions_spare_a_client_what_it_has_and_never_mix_two_files() {
    let server = server();
    let bytes = content(3, 10_000);
    let id = uploaded(&server, "a.bin", &bytes);
    let tag = format!("\"{}\"", &checksum(&bytes)[7..]);
    let get = || Ask::get(signed(&server, &id));
    for reply in both(&server, &get().header("if-none-match", tag.as_str())) {
        assert_eq!((reply.status, reply.body.len()), (304, 0));
        assert_eq!(reply.header("etag"), Some(tag.as_str()));
    }
    for reply in both(&server, &get().header("if-none-match", "\"other\"")) {
        assert_eq!(reply.status, 200);
    }
    for reply in both(&server, &get().header("if-match", "\"other\"")) {
        refused(&reply, 412, "FAILED_PRECONDITION", &id);
    }
    let part = || get().header("range", "bytes=1-2");
    for (validator, status) in [(tag.as_str(), 206), ("\"other\"", 200), ("Wed, 21 Oct 2015 07:28:00 GMT", 200)] {
        for reply in both(&server, &part().header("if-range", validator)) {
            assert_eq!(reply.status, status, "{validator}");
        }
    }
}

#[test]
fn urls_that_expired_or_were_forged_open_nothing() {
    let mut server = server();
    let id = uploaded(&server, "a.bin", b"12345");
    uploaded(&server, "b.bin", b"67890");
    let good = signed(&server, &id);
    let expired = urls(&server).sign(&id, in_seconds(-2));
    let refusals = |ask: &Ask, part: &str| {
        for reply in both(&server, ask) {
            refused(&reply, 403, "PERMISSION_DENIED", part);
        }
    };
    refusals(&Ask::get(expired), "expired");
    refusals(&Ask::get(good.replace("bin-001", "bin-002")), "signature");
    refusals(&Ask::get(good.replace("expires=1", "expires=2")), "signature");
    let other = if good.ends_with('A') { 'E' } else { 'A' };
    refusals(&Ask::get(format!("{}{other}", &good[..good.len() - 1])), "signature");
    refusals(&Ask::get(format!("/artifacts/{id}?expires=99999999999")), "not whole");
    // A key does not make up for a wrong signature.
    let with_key =
        Ask::get(good.replace("expires=1", "expires=2")).header("authorization", format!("Bearer {ADMIN_KEY}"));
    refusals(&with_key, "signature");
    let head = Ask { method: "HEAD", ..Ask::get(good.replace("bin-001", "bin-002")) };
    let reply = http2(server.http(), &head);
    assert_eq!((reply.status, reply.body.len()), (403, 0));
    server.sigkill();
    server.restart();
    assert_eq!(http1(server.http(), &Ask::get(good)).status, 200, "a URL outlives a restart");
}

#[test]
fn a_key_opens_what_no_url_was_signed_for() {
    let server = server();
    let bytes = content(4, 1_000);
    let id = uploaded(&server, "a.bin", &bytes);
    let device = server.register("rpi-001");
    let get = |id: &str| Ask::get(format!("/artifacts/{id}"));
    for key in [ADMIN_KEY, &device] {
        for reply in both(&server, &get(&id).header("x-api-key", key)) {
            assert!(reply.status == 200 && reply.body == bytes);
        }
    }
    for reply in both(&server, &get(&id)) {
        refused(&reply, 401, "UNAUTHENTICATED", "Authentication required");
    }
    for unknown in ["bin-999", "", "../registry.db", "bin-001/x", "%2e%2e"] {
        for reply in both(&server, &get(unknown).header("x-api-key", ADMIN_KEY)) {
            refused(&reply, 404, "NOT_FOUND", unknown);
        }
    }
    for reply in both(&server, &Ask::post(format!("/artifacts/{id}"), "x").header("x-api-key", ADMIN_KEY)) {
        refused(&reply, 405, "INVALID_ARGUMENT", "takes GET");
        assert_eq!(reply.header("allow"), Some("GET, HEAD"));
    }
}

#[test]
fn a_device_downloads_with_its_key_as_often_as_its_limit_says() {
    let server = Server::with(Options::default().env("FLEETD_RATE_LIMIT_ANONYMOUS", "0"));
    let id = uploaded(&server, "a.bin", b"12345");
    let key = server.register("rpi-001");
    let ask = Ask::get(format!("/artifacts/{id}")).header("x-api-key", key.as_str());
    let statuses: Vec<u16> = (0..11).map(|_| http1(server.http(), &ask).status).collect();
    assert_eq!(statuses, [200, 200, 200, 200, 200, 200, 200, 200, 200, 200, 429]);
    // Heartbeats have a limit of their own.
    let heartbeat = Client::Json1.call("DeviceService/Heartbeat", Some(&key), br#"{"device_id":"rpi-001"}"#);
    assert_eq!(http1(server.http(), &heartbeat).status, 200);
    // A signed URL asks for no key and no limit.
    let url = signed(&server, &id);
    assert!((0..20).all(|_| http1(server.http(), &Ask::get(url.clone())).status == 200));
}

#[test]
fn curl_resumes_a_download() {
    let server = server();
    let bytes = content(5, 500_000);
    let id = uploaded(&server, "a.bin", &bytes);
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("a.bin");
    std::fs::write(&file, &bytes[..123_456]).expect("what came so far");
    let status = std::process::Command::new("curl")
        .args(["--silent", "--show-error", "--fail", "--continue-at", "-", "--output"])
        .arg(&file)
        .arg(format!("http://{}{}", server.http(), signed(&server, &id)))
        .status()
        .expect("curl");
    assert!(status.success());
    assert!(std::fs::read(&file).expect("the file") == bytes);
}
