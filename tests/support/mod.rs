//! A real `fleetd serve` as a child process, for tests that treat it as a black box.
//!
//! Each test binary compiles its own copy of this folder and uses a part of it. Nothing here needs an async runtime.
//!
//! ```ignore
//! let mut server = Server::start();                    // port 0, a fresh data directory, an embedded ClickHouse
//! let key = server.register("rpi-001");                // over the wire, with the admin key
//! server.sigkill();
//! server.restart();                                    // the same data directory
//! assert_eq!(server.sigterm(), Some(0));
//! ```
#![allow(dead_code)]
pub mod clickhouse;
pub mod client;
pub mod disk;
pub mod wire;

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// The key of every server that tests start.
pub const ADMIN_KEY: &str = "admin-key-of-the-tests-0123456789";

/// The engine is ready in well under a second; an overloaded machine gets a minute.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// What `fleetd serve` promises for SIGTERM, and a little for a busy machine.
const EXIT_WITHIN: Duration = Duration::from_secs(15);
/// Lines of the server's log that are kept to be shown when a test fails.
const LOG_LINES: usize = 200;

/// How a server is started, beyond what every test needs.
#[derive(Clone, Default)]
pub struct Options {
    env: Vec<(String, String)>,
    flags: Vec<String>,
    data_dir: Option<PathBuf>,
}

impl Options {
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    pub fn flag(mut self, flag: &str, value: &str) -> Self {
        self.flags.extend([flag.into(), value.into()]);
        self
    }

    /// A data directory of the test's own, in place of a temporary one; it stays when the server is dropped.
    pub fn data_dir(mut self, path: &Path) -> Self {
        self.data_dir = Some(path.into());
        self
    }

    /// A ClickHouse that somebody else runs, in place of the embedded one.
    pub fn clickhouse(self, address: SocketAddr) -> Self {
        self.flag("--clickhouse-url", &format!("http://{address}"))
    }

    /// No rate limits, for tests that send much and are about something else.
    pub fn unlimited(self) -> Self {
        ["ANONYMOUS", "AUTHENTICATED", "DEVICE"]
            .iter()
            .fold(self, |options, name| options.env(&format!("FLEETD_RATE_LIMIT_{name}"), "0"))
    }
}

/// A running server; killed and its data removed when this is dropped.
pub struct Server {
    options: Options,
    data_dir: PathBuf,
    /// Removes the data directory with the server, unless it is the test's own.
    _temporary: Option<tempfile::TempDir>,
    /// `None` once it ended.
    child: Option<Child>,
    /// Where the ready line comes, while it is waited for.
    starting: Mutex<Option<mpsc::Receiver<String>>>,
    http: SocketAddr,
    clickhouse: SocketAddr,
    log: Arc<Mutex<VecDeque<String>>>,
}

impl Server {
    pub fn start() -> Self {
        Self::with(Options::default())
    }

    pub fn with(options: Options) -> Self {
        let mut server = Self::begin_with(options);
        server.await_ready();
        server
    }

    /// As [`Self::with`], without waiting until the server is ready: [`Self::await_ready`] does that.
    pub fn begin_with(options: Options) -> Self {
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let temporary = match &options.data_dir {
            Some(_) => None,
            None => Some(tempfile::tempdir().expect("a folder for the server's data")),
        };
        let own = temporary.as_ref().map(|folder| folder.path().to_owned());
        let mut server = Self {
            data_dir: options.data_dir.clone().or(own).expect("one of the two"),
            _temporary: temporary,
            options,
            child: None,
            starting: Mutex::default(),
            http: nowhere,
            clickhouse: nowhere,
            log: Arc::default(),
        };
        server.begin();
        server
    }

    /// Address of the one port that serves every protocol.
    pub fn http(&self) -> SocketAddr {
        self.http
    }

    /// Address of ClickHouse's HTTP interface.
    pub fn clickhouse(&self) -> SocketAddr {
        self.clickhouse
    }

    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// The last lines that the server logged.
    pub fn log(&self) -> String {
        let lines = self.log.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        lines.iter().map(String::as_str).collect::<Vec<_>>().join("\n")
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the server runs").id()
    }

    /// Bytes of memory that the server itself (not the engine) holds.
    pub fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("the server's status");
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("VmRSS");
        line.split_ascii_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("VmRSS in kB") * 1024
    }

    /// Processor time that the server itself has used since it started.
    pub fn cpu_time(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).expect("the server's statistics");
        // The name in parentheses may hold spaces; user and system time are the 12th and 13th field after it.
        let after_name = stat.rsplit_once(')').expect("a process name").1;
        let ticks: u64 =
            after_name.split_ascii_whitespace().skip(11).take(2).filter_map(|n| n.parse::<u64>().ok()).sum();
        // Linux counts in hundredths of a second for every program (USER_HZ).
        Duration::from_millis(ticks * 10)
    }

    /// Process id of the embedded ClickHouse, a child of the server; `None` while there is none.
    pub fn engine_pid(&self) -> Option<u32> {
        self.child.as_ref().and_then(|child| engine_of(child.id()))
    }

    /// Kills the server as a crash would, and waits until it is gone. The engine is left to its own devices.
    pub fn sigkill(&mut self) {
        self.starting = Mutex::default();
        if let Some(mut child) = self.child.take() {
            child.kill().expect("the server is killed");
            child.wait().expect("the server's end");
        }
    }

    /// Kills the engine as a crash would; its id, so that a test can wait for another.
    pub fn sigkill_engine(&self) -> u32 {
        let engine = self.engine_pid().expect("an engine runs");
        send_signal(engine, libc::SIGKILL);
        engine
    }

    /// Asks the server to stop, waits for it, and gives its exit status (`None`: ended by a signal).
    pub fn sigterm(&mut self) -> Option<i32> {
        let mut child = self.child.take().expect("the server runs");
        send_signal(child.id(), libc::SIGTERM);
        let asked = Instant::now();
        loop {
            if let Some(status) = child.try_wait().expect("the server's state") {
                return status.code();
            }
            if asked.elapsed() > EXIT_WITHIN {
                let _ = child.kill();
                let _ = child.wait();
                panic!("the server did not stop within {EXIT_WITHIN:?} of SIGTERM; its log:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Starts the server again on the same data directory, after [`Self::sigkill`] or [`Self::sigterm`].
    pub fn restart(&mut self) {
        self.begin_restart();
        self.await_ready();
    }

    /// As [`Self::restart`], without waiting until the server is ready: [`Self::await_ready`] does that.
    pub fn begin_restart(&mut self) {
        assert!(self.child.is_none(), "the server still runs");
        self.begin();
    }

    /// What `/metrics` shows now.
    pub fn metrics(&self) -> Metrics {
        let reply = wire::http1(self.http, &wire::Ask::get("/metrics"));
        assert_eq!(reply.status, 200, "/metrics: {}", reply.text());
        Metrics(reply.text())
    }

    /// Sends a signal to the server.
    pub fn signal(&self, signal: libc::c_int) {
        send_signal(self.pid(), signal);
    }

    /// Registers a device with the admin key; gives the device's own key.
    pub fn register(&self, device_id: &str) -> String {
        let message = serde_json::json!({ "device_id": device_id, "device_type": "test" });
        let ask = wire::Ask::post("/fleetd.v1.DeviceService/RegisterDevice", message.to_string())
            .header("content-type", "application/json")
            .header("authorization", format!("Bearer {ADMIN_KEY}"));
        let reply = wire::http1(self.http, &ask);
        assert_eq!(reply.status, 200, "RegisterDevice {device_id}: {}\n{}", reply.text(), self.log());
        reply.json()["apiKey"].as_str().expect("an apiKey").to_owned()
    }

    fn begin(&mut self) {
        let mut child = Command::new(env!("CARGO_BIN_EXE_fleetd"))
            .args(["serve", "--listen", "127.0.0.1:0", "--engine-listen", "127.0.0.1:0", "--data-dir"])
            .arg(&self.data_dir)
            .args(&self.options.flags)
            .env("FLEETD_ADMIN_KEY", ADMIN_KEY)
            .envs(self.options.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("fleetd starts");
        let stdout = child.stdout.take().expect("standard output");
        let stderr = child.stderr.take().expect("standard error");
        self.child = Some(child);
        let log = Arc::clone(&self.log);
        read_lines(stderr, move |line| {
            let mut log = log.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if log.len() == LOG_LINES {
                log.pop_front();
            }
            log.push_back(line);
        });
        let (lines, ready) = mpsc::sync_channel(1);
        read_lines(stdout, move |line| {
            // Only the first line is waited for, and nobody listens once it has come.
            let _ = lines.try_send(line);
        });
        self.starting = Mutex::new(Some(ready));
    }

    /// Waits until the server that [`Self::begin_restart`] started is ready.
    pub fn await_ready(&mut self) {
        let ready = self
            .starting
            .get_mut()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .take()
            .expect("a server that is starting");
        let line = match ready.recv_timeout(READY_WITHIN) {
            Ok(line) => line,
            Err(reason) => {
                let why = match reason {
                    RecvTimeoutError::Timeout => format!("was not ready within {READY_WITHIN:?}"),
                    RecvTimeoutError::Disconnected => "ended before it was ready".to_owned(),
                };
                // Its last words may still be on their way through the pipe.
                self.sigkill();
                std::thread::sleep(Duration::from_millis(100));
                panic!("fleetd {why}; its log:\n{}", self.log());
            }
        };
        let address = |name: &str| {
            let url = line.split_ascii_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix("=http://"));
            url.and_then(|url| url.parse().ok()).unwrap_or_else(|| panic!("no {name} address in {line:?}"))
        };
        assert!(line.starts_with("fleetd ready "), "{line:?} is not the ready line");
        (self.http, self.clickhouse) = (address("http"), address("clickhouse"));
    }
}

/// One reading of `/metrics`.
#[derive(Debug)]
pub struct Metrics(String);

impl Metrics {
    /// The value of a metric without labels, or with exactly these: `fleetd_heartbeats_total{outcome="acked"}`.
    pub fn get(&self, name: &str) -> f64 {
        let value = self.0.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
        value.unwrap_or_else(|| panic!("{name} is not in\n{}", self.0))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let engine = self.engine_pid();
        self.sigkill();
        // A server that dies takes its engine along; should that fail, no test leaves 200 MB behind.
        if let Some(engine) = engine {
            wait_until(Duration::from_secs(5), || !is_engine(engine));
            sigkill_engine_if_there(engine);
        }
    }
}

/// Polls until `condition` holds; whether it did within `limit`.
pub fn wait_until(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    loop {
        if condition() {
            return true;
        }
        if start.elapsed() > limit {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn read_lines(from: impl Read + Send + 'static, mut take: impl FnMut(String) + Send + 'static) {
    std::thread::spawn(move || {
        for line in BufReader::new(from).split(b'\n') {
            match line {
                Ok(bytes) => take(String::from_utf8_lossy(&bytes).into_owned()),
                Err(_) => return,
            }
        }
    });
}

/// The child of `parent` that is an engine. Linux lists the children of each thread, so all threads are asked.
fn engine_of(parent: u32) -> Option<u32> {
    let threads = std::fs::read_dir(format!("/proc/{parent}/task")).ok()?;
    threads
        .filter_map(|thread| std::fs::read_to_string(thread.ok()?.path().join("children")).ok())
        .flat_map(|children| children.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<u32>>())
        .find(|pid| is_engine(*pid))
}

fn is_engine(pid: u32) -> bool {
    std::fs::read(format!("/proc/{pid}/cmdline"))
        .is_ok_and(|line| line.split(|byte| *byte == 0).nth(1).is_some_and(|word| word == b"clickhouse"))
}

/// Kills the engine with this id, unless it is gone already. The id is only signalled while it is an engine's.
pub fn sigkill_engine_if_there(pid: u32) {
    if is_engine(pid) {
        // SAFETY: kill takes two integers and touches no memory of ours. It may have died since; that is fine.
        unsafe { libc::kill(libc::pid_t::try_from(pid).expect("a process id"), libc::SIGKILL) };
    }
}

pub fn send_signal(pid: u32, signal: libc::c_int) {
    let pid = libc::pid_t::try_from(pid).expect("a process id");
    // SAFETY: kill takes two integers and touches no memory of ours.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0, "signal {signal} to process {pid}");
}

/// Every file below `DATA_DIR/artifacts`.
pub fn artifacts(server: &Server) -> Vec<PathBuf> {
    fn below(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.path() {
                path if path.is_dir() => below(&path, found),
                path => found.push(path),
            }
        }
    }
    let mut found = Vec::new();
    below(&server.data_dir().join("artifacts"), &mut found);
    found
}
