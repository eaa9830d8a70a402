//! The server against a bare actix handler, in turn (A B C A B C …), with the same generator on the same machine.
//!
//! Three cases make the first two ratios of design section 11: the bare handler and the server over Connect on 64
//! HTTP/1.1 connections, and the server over gRPC on 8 connections of 32 streams. While one is measured the other
//! servers are idle. Medians of rounds are compared, so that a neighbour's burst spoils a round and not the result.
pub mod bare;
mod process;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde::Serialize;

use crate::error::LoadError;
use crate::fleet::{Fleet, FleetOptions};
use crate::report::Report;
use crate::run::Load;
use crate::wire::Protocol;
use process::{process_cpu_seconds, CpuSeconds, Process};

/// How long a server may take to become idle after its round.
const SETTLE_PATIENCE: Duration = Duration::from_secs(20);

/// Heartbeats a minute that a device is allowed: the limiter is in the path and refuses nobody.
const NO_LIMIT: &str = "1000000000";

/// How to compare.
#[derive(Clone, Debug)]
pub struct CompareOptions {
    /// The server's executable.
    pub server: PathBuf,
    /// This program's own executable, which serves the bare handler.
    pub generator: PathBuf,
    /// Where the server's temporary data directory is made.
    pub work_dir: PathBuf,
    pub devices: usize,
    pub rounds: usize,
    pub warmup: Duration,
    pub duration: Duration,
    pub threads: usize,
}

/// One measurement.
#[derive(Clone, Debug, Serialize)]
pub struct Round {
    pub round: usize,
    pub case: &'static str,
    pub heartbeats_per_second: f64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub rejected: u64,
    pub errors: u64,
    /// Processor seconds from the start of the warm-up to the last answer.
    pub server_cpu_seconds: f64,
    /// Those of the server's children: the embedded ClickHouse.
    pub engine_cpu_seconds: f64,
    pub generator_cpu_seconds: f64,
    /// What the server and its engine still did after the round, before the next began.
    pub settle_cpu_seconds: f64,
    /// Whether all servers were idle when this round began.
    pub others_idle: bool,
}

/// All rounds, and the ratios of their medians.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    pub rounds: Vec<Round>,
    /// Median heartbeats a second of each case.
    pub bare: f64,
    pub connect: f64,
    pub grpc: f64,
    /// The server over Connect ÷ the bare handler; design section 11 asks for 0.75.
    pub connect_to_bare: f64,
    /// The server over gRPC ÷ the server over Connect; design section 11 asks for 1.6.
    pub grpc_to_connect: f64,
}

/// A case: which server, and how it is spoken to.
struct Case {
    name: &'static str,
    on_bare: bool,
    protocol: Protocol,
    connections: usize,
    streams: usize,
}

const CASES: [Case; 3] = [
    Case { name: "bare", on_bare: true, protocol: Protocol::Connect, connections: 64, streams: 1 },
    Case { name: "connect", on_bare: false, protocol: Protocol::Connect, connections: 64, streams: 1 },
    Case { name: "grpc", on_bare: false, protocol: Protocol::Grpc, connections: 8, streams: 32 },
];

/// Runs all rounds; `on_round` sees each when it is over.
pub async fn run(options: &CompareOptions, mut on_round: impl FnMut(&Round)) -> Result<Comparison, LoadError> {
    let data_dir = TemporaryFolder::make(&options.work_dir)?;
    let key = fresh_admin_key()?;
    let mut bare = start_bare(options)?;
    let mut server = start_server(options, &data_dir.0, &key)?;
    let register = |process: &Process, key: Option<String>| FleetOptions {
        target: process.target.clone(),
        admin_key: key,
        protocol: Protocol::Connect,
        devices: options.devices,
        id_prefix: Some("compare".to_owned()),
        keys: None,
    };
    let mut bare_fleet = Some(Fleet::register(&register(&bare, None), |_| {}).await?);
    let mut server_fleet = Some(Fleet::register(&register(&server, Some(key)), |_| {}).await?);

    let (mut others_idle, _) = server.settle(SETTLE_PATIENCE).await;
    let mut rounds = Vec::new();
    for round in 1..=options.rounds {
        for case in &CASES {
            let (process, fleet) =
                if case.on_bare { (&mut bare, &mut bare_fleet) } else { (&mut server, &mut server_fleet) };
            let taken = fleet.take().ok_or_else(|| LoadError::Setup {
                what: "a fleet was lost between rounds".to_owned(),
                todo: "this is a bug in the load generator; please report it",
            })?;
            let (back, report, cpu, generator_cpu) = measure(options, case, process, taken).await?;
            *fleet = Some(back);
            if !process.is_alive() {
                let what = format!("{} ended in round {round} of {}", process.name(), case.name);
                return Err(LoadError::Setup { what, todo: "see its own messages above" });
            }
            let (idle, settle_cpu_seconds) = process.settle(SETTLE_PATIENCE).await;
            let measured = Round {
                round,
                case: case.name,
                heartbeats_per_second: report.heartbeats_per_second,
                p50_ms: report.p50_ms,
                p99_ms: report.p99_ms,
                rejected: report.rejected.values().sum::<u64>() + report.malformed,
                errors: report.errors,
                server_cpu_seconds: hundredths(cpu.own),
                engine_cpu_seconds: hundredths(cpu.children),
                generator_cpu_seconds: hundredths(generator_cpu),
                settle_cpu_seconds: hundredths(settle_cpu_seconds),
                others_idle,
            };
            others_idle = idle;
            on_round(&measured);
            rounds.push(measured);
        }
    }
    Ok(Comparison::of(rounds))
}

async fn measure(
    options: &CompareOptions,
    case: &Case,
    process: &Process,
    fleet: Fleet,
) -> Result<(Fleet, Report, CpuSeconds, f64), LoadError> {
    let load = Load {
        protocol: case.protocol,
        connections: case.connections,
        streams: case.streams,
        threads: options.threads,
        warmup: options.warmup,
        duration: Some(options.duration),
        ..Load::default()
    };
    let own = std::process::id();
    let before = (process.cpu_seconds(), process_cpu_seconds(own));
    let (fleet, report) = fleet.start(&load)?.finish().await?;
    let after = (process.cpu_seconds(), process_cpu_seconds(own));
    Ok((fleet, report, after.0 - before.0, after.1 - before.1))
}

fn start_bare(options: &CompareOptions) -> Result<Process, LoadError> {
    let mut command = Command::new(&options.generator);
    command.args(["bare", "--listen", "127.0.0.1:0"]);
    Process::start("the bare handler", command, bare::READY)
}

fn start_server(options: &CompareOptions, data_dir: &Path, key: &str) -> Result<Process, LoadError> {
    let mut command = Command::new(&options.server);
    command.args(["serve", "--listen", "127.0.0.1:0", "--engine-listen", "127.0.0.1:0", "--data-dir"]).arg(data_dir);
    command.env("FLEETD_ADMIN_KEY", key);
    for limit in ["ANONYMOUS", "AUTHENTICATED", "DEVICE"] {
        command.env(format!("FLEETD_RATE_LIMIT_{limit}"), NO_LIMIT);
    }
    Process::start("the server", command, "fleetd ready")
}

impl Comparison {
    fn of(rounds: Vec<Round>) -> Self {
        let median_of = |case: &str| {
            median(rounds.iter().filter(|round| round.case == case).map(|round| round.heartbeats_per_second).collect())
        };
        let (bare, connect, grpc) = (median_of("bare"), median_of("connect"), median_of("grpc"));
        let ratio = |part: f64, whole: f64| if whole > 0.0 { (part / whole * 1000.0).round() / 1000.0 } else { 0.0 };
        Self {
            bare,
            connect,
            grpc,
            connect_to_bare: ratio(connect, bare),
            grpc_to_connect: ratio(grpc, connect),
            rounds,
        }
    }

    /// Whether every heartbeat of every round was acknowledged: a server that refuses is fast for nothing.
    pub fn is_clean(&self) -> bool {
        self.rounds.iter().all(|round| round.rejected == 0 && round.errors == 0 && round.heartbeats_per_second > 0.0)
    }
}

/// Of an even number, the mean of the middle two.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}

fn hundredths(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

/// A key for one comparison on loopback: 256 random bits from the system.
fn fresh_admin_key() -> Result<String, LoadError> {
    use std::io::Read;
    let mut bytes = [0_u8; 32];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(|source| LoadError::Io { operation: "read /dev/urandom for an admin key".to_owned(), source })?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// A folder of this process's own, removed with all in it.
#[derive(Debug)]
struct TemporaryFolder(PathBuf);

impl TemporaryFolder {
    fn make(parent: &Path) -> Result<Self, LoadError> {
        let path = parent.join(format!("fleetd-compare-{}", std::process::id()));
        let made = std::fs::create_dir_all(parent).and_then(|()| std::fs::create_dir(&path));
        made.map_err(|source| LoadError::Io { operation: format!("make the folder {}", path.display()), source })?;
        Ok(Self(path))
    }
}

impl Drop for TemporaryFolder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(case: &'static str, heartbeats_per_second: f64) -> Round {
        Round {
            round: 1,
            case,
            heartbeats_per_second,
            p50_ms: 0.0,
            p99_ms: 0.0,
            rejected: 0,
            errors: 0,
            server_cpu_seconds: 0.0,
            engine_cpu_seconds: 0.0,
            generator_cpu_seconds: 0.0,
            settle_cpu_seconds: 0.0,
            others_idle: true,
        }
    }

    #[test]
    fn ratios_are_of_medians_so_one_bad_round_changes_nothing() {
        let rates = [("bare", [100.0, 5.0, 100.0]), ("connect", [80.0, 80.0, 1.0]), ("grpc", [160.0, 160.0, 160.0])];
        let rounds = rates.iter().flat_map(|(case, rates)| rates.iter().map(|rate| round(case, *rate))).collect();
        let comparison = Comparison::of(rounds);
        assert_eq!((comparison.connect_to_bare, comparison.grpc_to_connect), (0.8, 2.0));
        assert_eq!(median(vec![1.0, 2.0, 4.0, 8.0]), 3.0);
    }

    #[test]
    fn a_comparison_in_which_a_server_refused_is_not_clean() {
        let mut refused = round("connect", 10.0);
        refused.rejected = 1;
        assert!(!Comparison::of(vec![refused]).is_clean());
        assert!(Comparison::of(vec![round("bare", 10.0)]).is_clean());
    }
}
