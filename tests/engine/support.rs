//! Starts an engine on a folder of its own, and speaks plain HTTP to it.
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fleetd::engine::{locate, EngineOptions, EngineProcess};
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// No condition of these tests takes longer on a slow machine that does other things too.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub fn options(data_dir: &Path) -> EngineOptions {
    let library = locate(None).unwrap_or_else(|error| panic!("run `make engine` first: {error}"));
    EngineOptions { library: Some(library), ..EngineOptions::new(env!("CARGO_BIN_EXE_fleetd"), data_dir) }
}

pub struct Engine {
    pub process: EngineProcess,
    pub data_dir: tempfile::TempDir,
}

pub async fn start() -> Engine {
    let data_dir = tempfile::tempdir().expect("a folder");
    let process = EngineProcess::start(options(data_dir.path())).await.expect("the engine starts");
    Engine { process, data_dir }
}

pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Reply {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("")
    }
}

impl Engine {
    pub fn authority(&self) -> String {
        self.process.url().trim_start_matches("http://").to_owned()
    }

    pub async fn connect(&self) -> hyper::client::conn::http1::SendRequest<Full<Bytes>> {
        let stream = TcpStream::connect(self.authority()).await.expect("the engine listens");
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("HTTP");
        tokio::spawn(connection);
        sender
    }

    pub async fn try_send(&self, request: Request<Full<Bytes>>) -> Result<Reply, hyper::Error> {
        let response = self.connect().await.send_request(request).await?;
        let (parts, body) = response.into_parts();
        Ok(Reply { status: parts.status, headers: parts.headers, body: body.collect().await?.to_bytes() })
    }

    pub fn request(&self, method: &str, path: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
        Request::builder()
            .method(method)
            .uri(path)
            .header("host", self.authority())
            .body(Full::new(body.into()))
            .expect("a request")
    }

    pub async fn get(&self, path: &str) -> Reply {
        self.try_send(self.request("GET", path, "")).await.expect("an answer")
    }

    pub async fn post(&self, path: &str, body: impl Into<Bytes>) -> Reply {
        self.try_send(self.request("POST", path, body)).await.expect("an answer")
    }

    /// Runs a statement that must succeed.
    pub async fn run(&self, statement: &str) -> String {
        let reply = self.post("/", statement.to_owned()).await;
        assert_eq!(reply.status, StatusCode::OK, "{statement}: {}", reply.text());
        reply.text().trim_end().to_owned()
    }

    pub async fn insert(&self, statement: &str, settings: &str, rows: impl Into<Bytes>) -> Reply {
        self.post(&format!("/?query={}{settings}", encode(statement)), rows).await
    }

    /// Asks until the answer is as expected.
    pub async fn eventually(&self, statement: &str, expected: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = self.run(statement).await;
            if answer == expected {
                return;
            }
            assert!(Instant::now() < deadline, "{statement}: still {answer}, not {expected}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

pub fn encode(text: &str) -> String {
    text.bytes()
        .map(|byte| if byte.is_ascii_alphanumeric() { (byte as char).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

/// Waits for a condition that another process makes true.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Whether the process is there and not a zombie.
pub fn is_alive(pid: u32) -> bool {
    // SAFETY: signal 0 only asks.
    if unsafe { libc::kill(pid as libc::pid_t, 0) } != 0 {
        return false;
    }
    match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => !stat.rsplit(')').next().unwrap_or("").trim_start().starts_with('Z'),
        Err(_) => !cfg!(target_os = "linux"),
    }
}

pub fn kill(pid: u32) {
    // SAFETY: a child of this test.
    assert_eq!(unsafe { libc::kill(pid as libc::pid_t, libc::SIGKILL) }, 0);
}

/// `n` rows of (UInt32, String) in RowBinary; the strings hold every byte.
pub fn rows(from: u32, count: u32) -> Vec<u8> {
    let every_byte: Vec<u8> = (0..=255).collect();
    let mut rows = Vec::new();
    for id in from..from + count {
        rows.extend_from_slice(&id.to_le_bytes());
        let length = (id % 257) as usize;
        // LEB128 of a length up to 256.
        if length < 128 {
            rows.push(length as u8);
        } else {
            rows.extend_from_slice(&[(length & 0x7f) as u8 | 0x80, (length >> 7) as u8]);
        }
        rows.extend_from_slice(&every_byte[..length]);
    }
    rows
}
