//! A server under measurement: started, found ready, watched for the processor time that it takes, and ended.
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::error::LoadError;
use crate::target::Target;

/// How long a server may take from its start to its ready line.
const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// How long it may take to end after SIGTERM, before it is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(15);

/// Ticks a second in `/proc/PID/stat`: USER_HZ, which Linux fixes at 100 for user space (`man 5 proc`, `man 7 time`).
const TICKS_PER_SECOND: f64 = 100.0;

/// A child process; ended when dropped.
#[derive(Debug)]
pub(crate) struct Process {
    name: &'static str,
    child: Child,
    pub(crate) target: Target,
}

/// Processor seconds so far of a process and of the children that it started.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct CpuSeconds {
    pub(crate) own: f64,
    pub(crate) children: f64,
}

impl std::ops::Sub for CpuSeconds {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self { own: self.own - earlier.own, children: self.children - earlier.children }
    }
}

impl Process {
    /// Starts `command` and waits for a line on its standard output that begins with `ready` and names `http=URL`.
    pub(crate) fn start(name: &'static str, mut command: Command, ready: &'static str) -> Result<Self, LoadError> {
        let program = PathBuf::from(command.get_program());
        let failed = |source| LoadError::Io { operation: format!("start {name} ({})", program.display()), source };
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().map_err(failed)?;
        let stdout = child.stdout.take();
        // From here on the child is ended on every path.
        let mut process = Self { name, child, target: Target::parse("http://127.0.0.1:0")? };
        let (sender, receiver) = mpsc::sync_channel(1);
        // Reads on after the ready line, so that the server never blocks on a full pipe.
        let reader = std::thread::Builder::new().name("ready-line".to_owned()).spawn(move || {
            for line in stdout.map(|stdout| BufReader::new(stdout).lines()).into_iter().flatten().map_while(Result::ok)
            {
                if line.starts_with(ready) {
                    let _ = sender.try_send(line);
                }
            }
        });
        reader.map_err(failed)?;
        let line = receiver.recv_timeout(READY_TIMEOUT).map_err(|_| LoadError::Setup {
            what: format!("{name} ({}) printed no line that begins with {ready:?}", program.display()),
            todo: "see its own messages above",
        })?;
        let url = line.split_whitespace().find_map(|word| word.strip_prefix("http=")).unwrap_or_default();
        process.target = Target::parse(url)?;
        Ok(process)
    }

    pub(crate) fn cpu_seconds(&self) -> CpuSeconds {
        let mut cpu = CpuSeconds { own: process_cpu_seconds(self.child.id()), children: 0.0 };
        let mut found = children(self.child.id());
        while let Some(pid) = found.pop() {
            cpu.children += process_cpu_seconds(pid);
            found.extend(children(pid));
        }
        cpu
    }

    /// Waits until the process and its children do next to nothing, so that what one round left behind (merges in
    /// ClickHouse) does not slow the next one. Returns whether that was reached in time, and what it took meanwhile.
    pub(crate) async fn settle(&self, patience: Duration) -> (bool, f64) {
        const LOOK: Duration = Duration::from_millis(500);
        /// Share of one core below which a process counts as idle.
        const IDLE_SHARE: f64 = 0.05;
        let deadline = Instant::now() + patience;
        let first = self.cpu_seconds();
        let mut before = first;
        loop {
            tokio::time::sleep(LOOK).await;
            let now = self.cpu_seconds();
            let spent = now - before;
            let since_first = now - first;
            let is_idle = spent.own + spent.children <= IDLE_SHARE * LOOK.as_secs_f64();
            if is_idle || Instant::now() >= deadline {
                return (is_idle, since_first.own + since_first.children);
            }
            before = now;
        }
    }

    /// Whether it still runs.
    pub(crate) fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    pub(crate) fn name(&self) -> &'static str {
        self.name
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // SIGTERM first, because a server that is killed cannot end its own children. The shell's `kill` is used
        // because std can only send SIGKILL.
        let term = format!("kill -TERM {}", self.child.id());
        let _ = Command::new("sh").arg("-c").arg(term).stderr(Stdio::null()).status();
        let deadline = Instant::now() + STOP_TIMEOUT;
        while self.is_alive() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// User and system time of a process with all its threads; 0 when it is gone or there is no `/proc`.
pub(crate) fn process_cpu_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    parse_stat(&stat).map_or(0.0, |ticks| ticks as f64 / TICKS_PER_SECOND)
}

/// Fields 14 and 15 of `/proc/PID/stat`. The second field is a name that may hold spaces and parentheses.
fn parse_stat(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

/// The children that any thread of a process started.
fn children(pid: u32) -> Vec<u32> {
    let Ok(threads) = Path::new("/proc").join(pid.to_string()).join("task").read_dir() else { return Vec::new() };
    let lists = threads.flatten().map(|thread| std::fs::read_to_string(thread.path().join("children")));
    lists
        .flatten()
        .flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_read_past_a_name_with_parentheses_and_spaces() {
        let stat = "7 (a ) b) S 1 7 7 0 -1 4194304 100 200 0 0 1234 66 9 9 20 0 8 0 100 1 1";
        assert_eq!(parse_stat(stat), Some(1300));
        assert_eq!(parse_stat("7 (gone"), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_busy_child_is_seen_and_counted_apart_from_its_parent() {
        let mut command = Command::new("sh");
        command
            .arg("-c")
            .arg("sh -c 'while :; do :; done' & echo ready http=http://127.0.0.1:1; trap 'kill $!; exit' TERM; wait");
        let mut process = Process::start("a shell", command, "ready").unwrap();
        assert!(process.is_alive());
        let deadline = Instant::now() + Duration::from_secs(20);
        while process.cpu_seconds().children < 0.05 {
            assert!(Instant::now() < deadline, "no processor time of the child: {:?}", process.cpu_seconds());
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(process.cpu_seconds().own < process.cpu_seconds().children);
        assert_eq!(process.target.authority(), "127.0.0.1:1");
    }

    #[test]
    fn a_server_that_ends_without_a_ready_line_is_named() {
        let mut command = Command::new("sh");
        command.arg("-c").arg("echo something else");
        let error = Process::start("a shell", command, "ready").unwrap_err().to_string();
        assert!(error.contains("a shell") && error.contains("\"ready\""), "{error}");
    }
}
