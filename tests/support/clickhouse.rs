//! ClickHouse beside the server: one statement at a time over HTTP, and an engine that a test runs itself.
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::wire::{http1, Ask, Http1};
use super::{send_signal, wait_until};

/// An engine of its own is ready in a tenth of a second; an overloaded machine gets a minute.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// Runs one statement; its rows as tab-separated text without the last line's end. Panics when ClickHouse refuses it.
pub fn run(at: SocketAddr, database: &str, sql: &str) -> String {
    let reply = http1(at, &Ask::post(format!("/?database={database}"), sql).header("host", at.to_string()));
    assert_eq!(reply.status, 200, "{sql}\n{}", reply.text());
    reply.text().trim_end().to_owned()
}

/// As [`run`], of a ClickHouse that may be away: `None` where it has no answer.
pub fn try_run(at: SocketAddr, database: &str, sql: &str) -> Option<String> {
    let ask = Ask::post(format!("/?database={database}"), sql).header("host", at.to_string());
    let reply = Http1::try_open(at).and_then(|mut connection| connection.try_ask(&ask)).ok()?;
    (reply.status == 200).then(|| reply.text().trim_end().to_owned())
}

/// The one number that `sql` gives.
pub fn number(at: SocketAddr, database: &str, sql: &str) -> u64 {
    let text = run(at, database, sql);
    text.parse().unwrap_or_else(|_| panic!("{text:?} is no number; {sql}"))
}

/// `fleetd clickhouse` as a process of the test: for the server it is somebody else's ClickHouse. Killed when dropped.
pub struct Engine {
    data_dir: PathBuf,
    address: SocketAddr,
    child: Option<Child>,
}

impl Engine {
    /// Starts it on a free port and waits until it answers.
    pub fn start(data_dir: &Path) -> Self {
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut engine = Self { data_dir: data_dir.into(), address, child: None };
        engine.restart();
        engine
    }

    /// Starts it again after [`Self::sigkill`], on the same port and data.
    pub fn restart(&mut self) {
        assert!(self.child.is_none(), "the engine still runs");
        let mut child = Command::new(env!("CARGO_BIN_EXE_fleetd"))
            .args(["clickhouse", "--listen", &self.address.to_string(), "--data-dir"])
            .arg(&self.data_dir)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("fleetd clickhouse starts");
        let mut line = String::new();
        let output = child.stdout.take().expect("standard output");
        let started = Instant::now();
        self.child = Some(child);
        BufReader::new(output).read_line(&mut line).expect("the ready line");
        let address = line.trim().strip_prefix("fleetd clickhouse ready http=http://");
        self.address = address
            .and_then(|address| address.parse().ok())
            .unwrap_or_else(|| panic!("{line:?} is not the ready line, after {:?}", started.elapsed()));
        assert!(started.elapsed() < READY_WITHIN, "the engine took {:?} to start", started.elapsed());
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn signal(&self, signal: libc::c_int) {
        send_signal(self.child.as_ref().expect("the engine runs").id(), signal);
    }

    /// Kills it as a crash would, and waits until it is gone.
    pub fn sigkill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("the engine is killed");
            child.wait().expect("the engine's end");
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.sigkill();
    }
}

/// Waits until `sql` gives `expected`; panics with what it gives instead when `limit` is over.
pub fn wait_for(at: SocketAddr, database: &str, sql: &str, expected: u64, limit: Duration) {
    let mut found = 0;
    let is_there = wait_until(limit, || {
        found = number(at, database, sql);
        found == expected
    });
    assert!(is_there, "{sql} gives {found}, not {expected}, after {limit:?}");
}
