//! Keeps the embedded engine running as a child: starts it, restarts it on the same port, ends it.
//!
//! One thread does it all and waits in the kernel, so an idle engine costs nothing. It is a plain thread and not a
//! task because Linux takes the thread that started a child for its parent: when that thread ends, the child is
//! killed (`PR_SET_PDEATHSIG`), so it must live exactly as long as the supervision.
use std::collections::VecDeque;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{mpsc, Arc};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

use super::EngineError;

/// How long a start may take. ClickHouse opens all parts of all tables first; a big data directory on a slow disk
/// needs seconds.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a child may take to end after SIGTERM before it is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// Waits between restarts: the first at once, since a crash is rare and rows are waiting; then doubled.
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const LONGEST_BACKOFF: Duration = Duration::from_secs(10);

/// A child that ran this long counts as healthy: the next restart is quick again.
const HEALTHY_AFTER: Duration = Duration::from_secs(30);

/// The child's last lines, kept for the error of a failed start.
const LAST_LINES: usize = 20;

/// How the ready line of `fleetd clickhouse` begins.
const READY_PREFIX: &str = "fleetd clickhouse ready http=http://";

/// What to start.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// This program: it has the `clickhouse` subcommand.
    pub executable: PathBuf,
    /// The ClickHouse library, if it is not to be looked for.
    pub library: Option<PathBuf>,
    pub data_dir: PathBuf,
    /// Port 0 picks a free port once; restarts keep it.
    pub listen: SocketAddr,
    /// Most memory ClickHouse may take, in bytes; a default if not given.
    pub memory_limit_bytes: Option<u64>,
}

impl EngineOptions {
    /// On a free port of this machine alone, with the library where it is looked for and memory as much as by default.
    pub fn new(executable: impl Into<PathBuf>, data_dir: impl Into<PathBuf>) -> Self {
        Self {
            executable: executable.into(),
            library: None,
            data_dir: data_dir.into(),
            listen: (Ipv4Addr::LOCALHOST, 0).into(),
            memory_limit_bytes: None,
        }
    }
}

/// A supervised engine. Dropping it kills the child; [`shutdown`](Self::shutdown) ends it in order.
pub struct EngineProcess {
    shared: Arc<Shared>,
    address: SocketAddr,
    ended: Option<oneshot::Receiver<()>>,
}

/// What operators may know of the engine, also while it is being ended.
#[derive(Clone)]
pub struct EngineMonitor(Arc<Shared>);

impl EngineMonitor {
    /// How often a child was started after one had died.
    pub fn restarts(&self) -> u64 {
        self.0.restarts.load(Ordering::Relaxed)
    }
}

struct Shared {
    state: Mutex<State>,
    /// Wakes the supervisor out of a backoff.
    stopping: Condvar,
    restarts: AtomicU64,
    last_lines: Mutex<VecDeque<String>>,
}

#[derive(Default)]
struct State {
    /// The child as long as it is not reaped; while this is set, its id cannot belong to another process.
    pid: Option<u32>,
    is_ready: bool,
    is_stopping: bool,
}

impl EngineProcess {
    /// Starts the engine and waits until it answers.
    ///
    /// # Errors
    /// The executable cannot be started, or the engine ended or hung before it was ready; its last lines are in the
    /// error, among them why (library missing, data directory held, port taken).
    pub async fn start(options: EngineOptions) -> Result<Self, EngineError> {
        let shared = Arc::new(Shared {
            state: Mutex::new(State::default()),
            stopping: Condvar::new(),
            restarts: AtomicU64::new(0),
            last_lines: Mutex::new(VecDeque::new()),
        });
        let (started, first) = oneshot::channel();
        let (ending, ended) = oneshot::channel();
        let supervisor = Supervisor { options: options.clone(), shared: Arc::clone(&shared) };
        let spawned = thread::Builder::new().name("engine-supervisor".to_owned()).spawn(move || {
            supervisor.run(started);
            drop(ending);
        });
        let spawn_failed = |source| EngineError::Spawn { executable: options.executable.clone(), source };
        spawned.map_err(spawn_failed)?;
        // If the caller gives up waiting, this guard ends what was started.
        let mut process = Self { shared, address: options.listen, ended: Some(ended) };
        process.address = match first.await {
            Ok(result) => result?,
            Err(_supervisor_died) => return Err(spawn_failed(std::io::Error::other("the supervisor stopped"))),
        };
        Ok(process)
    }

    /// Where the engine answers ClickHouse's HTTP protocol; the same for as long as this object lives.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The child's process id; `None` between a death and the restart.
    pub fn pid(&self) -> Option<u32> {
        self.shared.state.lock().pid
    }

    /// Whether the current child has reported that it answers.
    pub fn is_ready(&self) -> bool {
        self.shared.state.lock().is_ready
    }

    /// How often a child was started after one had died.
    pub fn restarts(&self) -> u64 {
        self.shared.restarts.load(Ordering::Relaxed)
    }

    /// A view for metrics that does not keep the engine running.
    pub fn monitor(&self) -> EngineMonitor {
        EngineMonitor(Arc::clone(&self.shared))
    }

    /// Ends the engine: SIGTERM, up to five seconds for running statements, then SIGKILL.
    pub async fn shutdown(self) {
        self.shutdown_within(STOP_TIMEOUT).await;
    }

    /// As [`Self::shutdown`], with less time for statements.
    pub async fn shutdown_within(mut self, within: Duration) {
        self.shared.stop(libc::SIGTERM);
        let Some(mut ended) = self.ended.take() else { return };
        if tokio::time::timeout(within.min(STOP_TIMEOUT), &mut ended).await.is_err() {
            tracing::warn!("the engine did not stop in time and is killed");
            self.shared.stop(libc::SIGKILL);
            let _ = ended.await;
        }
    }
}

impl Drop for EngineProcess {
    fn drop(&mut self) {
        self.shared.stop(libc::SIGKILL);
    }
}

impl Shared {
    fn stop(&self, signal: libc::c_int) {
        let mut state = self.state.lock();
        state.is_stopping = true;
        self.signal_locked(&state, signal);
        self.stopping.notify_all();
    }

    fn signal_locked(&self, state: &State, signal: libc::c_int) {
        if let Some(pid) = state.pid {
            // SAFETY: the child is not reaped while its id is in the state, which is locked.
            unsafe { libc::kill(pid as libc::pid_t, signal) };
        }
    }

    fn remember(&self, line: &str) {
        let mut lines = self.last_lines.lock();
        if lines.len() == LAST_LINES {
            lines.pop_front();
        }
        lines.push_back(line.to_owned());
    }

    fn last_lines(&self) -> String {
        self.last_lines.lock().iter().map(String::as_str).collect::<Vec<_>>().join("\n")
    }
}

struct Supervisor {
    options: EngineOptions,
    shared: Arc<Shared>,
}

impl Supervisor {
    /// Until told to stop. `started` gets the outcome of the first start; a first start that fails is not repeated.
    fn run(self, started: oneshot::Sender<Result<SocketAddr, EngineError>>) {
        let mut started = Some(started);
        let mut listen = self.options.listen;
        let mut backoff = FIRST_BACKOFF;
        loop {
            let begun = Instant::now();
            let outcome = self.run_child(listen, |address| {
                listen = address;
                if let Some(started) = started.take() {
                    let _ = started.send(Ok(address));
                }
            });
            if self.shared.state.lock().is_stopping {
                return;
            }
            if let (Some(started), Err(error)) = (started.take(), &outcome) {
                tracing::debug!(%error, "engine did not start");
                let _ = started.send(outcome.map(|_| listen));
                return;
            }
            match &outcome {
                Ok(status) => tracing::error!(%status, "engine died, it is started again"),
                Err(error) => tracing::error!(%error, "engine could not be started again"),
            }
            if begun.elapsed() > HEALTHY_AFTER {
                backoff = FIRST_BACKOFF;
            }
            if self.is_stopped_within(backoff) {
                return;
            }
            backoff = (backoff * 2).min(LONGEST_BACKOFF);
            self.shared.restarts.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits, unless told to stop.
    fn is_stopped_within(&self, pause: Duration) -> bool {
        let deadline = Instant::now() + pause;
        let mut state = self.shared.state.lock();
        while !state.is_stopping {
            if self.shared.stopping.wait_until(&mut state, deadline).timed_out() {
                break;
            }
        }
        state.is_stopping
    }

    /// One child, from its start to its death. An error means that it never was ready.
    fn run_child(&self, listen: SocketAddr, on_ready: impl FnOnce(SocketAddr)) -> Result<ExitStatus, EngineError> {
        self.shared.last_lines.lock().clear();
        let mut child = {
            // Locked over the spawn: a stop comes either before it, or finds the child's id.
            let mut state = self.shared.state.lock();
            if state.is_stopping {
                return Err(self.spawn_error(std::io::Error::other("the engine is stopping")));
            }
            let child = self.command(listen).spawn().map_err(|source| self.spawn_error(source))?;
            state.pid = Some(child.id());
            child
        };
        // Held open until the child is gone: its end tells the child that this process died.
        let lifeline = child.stdin.take();
        let (ready, announced) = mpsc::sync_channel(1);
        let readers = [self.pass_errors_on(&mut child), self.read_ready_line(&mut child, ready)];

        let address = announced.recv_timeout(START_TIMEOUT);
        match address {
            Ok(address) => {
                self.shared.state.lock().is_ready = true;
                on_ready(address);
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {
                let state = self.shared.state.lock();
                self.shared.signal_locked(&state, libc::SIGKILL);
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => {}
        }
        wait_without_reaping(child.id());
        let status = {
            let mut state = self.shared.state.lock();
            state.pid = None;
            state.is_ready = false;
            child.wait()
        };
        drop(lifeline);
        for reader in readers.into_iter().flatten() {
            let _ = reader.join();
        }
        let status = status.map_err(|source| self.spawn_error(source))?;
        let last_lines = self.shared.last_lines();
        match address {
            Ok(_) => Ok(status),
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                Err(EngineError::DiedAtStart { status: status.to_string(), last_lines })
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {
                Err(EngineError::SlowStart { seconds: START_TIMEOUT.as_secs(), last_lines })
            }
        }
    }

    fn spawn_error(&self, source: std::io::Error) -> EngineError {
        EngineError::Spawn { executable: self.options.executable.clone(), source }
    }

    fn command(&self, listen: SocketAddr) -> Command {
        let mut command = Command::new(&self.options.executable);
        command.arg("clickhouse").arg("--supervised");
        command.arg("--listen").arg(listen.to_string()).arg("--data-dir").arg(&self.options.data_dir);
        if let Some(library) = &self.options.library {
            command.arg("--library").arg(library);
        }
        if let Some(bytes) = self.options.memory_limit_bytes {
            command.arg("--memory-limit-bytes").arg(bytes.to_string());
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // Signals to the terminal's group (Ctrl-C) go to the parent alone, which ends the child in its order.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        command
    }

    /// Log lines of the child, and whatever ClickHouse itself writes.
    fn pass_errors_on(&self, child: &mut Child) -> Option<thread::JoinHandle<()>> {
        let errors = child.stderr.take()?;
        let shared = Arc::clone(&self.shared);
        let reader = move || {
            for line in lines(BufReader::new(errors)) {
                shared.remember(&line);
                if line.contains("ERROR") || line.contains("<Fatal>") || line.contains("<Error>") {
                    tracing::error!(target: "fleetd::engine::child", "{line}");
                } else {
                    tracing::info!(target: "fleetd::engine::child", "{line}");
                }
            }
        };
        thread::Builder::new().name("engine-log".to_owned()).spawn(reader).ok()
    }

    fn read_ready_line(
        &self,
        child: &mut Child,
        ready: mpsc::SyncSender<SocketAddr>,
    ) -> Option<thread::JoinHandle<()>> {
        let output = child.stdout.take()?;
        let reader = move || {
            for line in lines(BufReader::new(output)) {
                if let Some(address) = line.strip_prefix(READY_PREFIX).and_then(|rest| rest.trim().parse().ok()) {
                    // There is one such line; a second one would find nobody who waits.
                    let _ = ready.try_send(address);
                }
            }
        };
        thread::Builder::new().name("engine-ready".to_owned()).spawn(reader).ok()
    }
}

/// Lines that need not be UTF-8, until the pipe ends.
fn lines(mut reader: impl BufRead) -> impl Iterator<Item = String> {
    std::iter::from_fn(move || {
        let mut line = Vec::new();
        match reader.read_until(b'\n', &mut line) {
            Ok(count) if count > 0 => Some(String::from_utf8_lossy(&line).trim_end().to_owned()),
            _ => None,
        }
    })
}

/// Blocks until the child has ended, and leaves it for [`Child::wait`], so that its id stays its own meanwhile.
fn wait_without_reaping(pid: u32) {
    loop {
        // SAFETY: a zeroed siginfo_t is valid, and is only written to.
        let result = unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            libc::waitid(libc::P_PID, pid as libc::id_t, &mut info, libc::WEXITED | libc::WNOWAIT)
        };
        let was_interrupted = result != 0 && std::io::Error::last_os_error().kind() == std::io::ErrorKind::Interrupted;
        if !was_interrupted {
            return;
        }
    }
}
