//! The command line: flags, their checks and their help.
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use fleetd_loadtest::{Protocol, Target};

use crate::rollout::RolloutArgs;

const EXAMPLES: &str = "\
Examples:
  Flat out for 30 seconds with 1,000 devices:
    fleetd-loadtest --url http://127.0.0.1:8080 --key \"$(cat fleetd-data/admin.key)\"

  A steady 20,000 heartbeats a second over gRPC, latency corrected for coordinated omission:
    fleetd-loadtest --url http://127.0.0.1:8080 --key \"$KEY\" --protocol grpc --connections 8 --streams 32 \\
        --devices 100000 --rate 20000 --duration 1m

  The same devices each time, and every acknowledged heartbeat looked up in ClickHouse afterwards:
    fleetd-loadtest --url http://127.0.0.1:8080 --key \"$KEY\" --id-prefix sim --verify

  A canary over 500 devices of which 8 % fail to install:
    fleetd-loadtest rollout --url http://127.0.0.1:8080 --key \"$KEY\" --devices 500 --fail 8%

  The server against a bare actix handler, in turn:
    fleetd-loadtest compare

Output:
  Standard output gets one line of JSON: protocol, devices, connections, sent, acked, rejected (by code), errors,
  heartbeats_per_second, p50_ms, p99_ms, p99_9_ms, max_ms, and `verified` with --verify. All else goes to standard
  error. With --rate, latency counts from when a heartbeat was due; without, from when its connection was free.

Exit status:
  0  every heartbeat was answered (refusals are answers), or --verify found each acknowledged one exactly once
  1  heartbeats were lost: a broken connection without --verify, a failed --verify, unsent ones, or none acknowledged
  2  the command line is wrong
  3  the server or ClickHouse could not be reached or refused the set-up, such as a wrong key";

/// A simulated fleet of devices that heartbeats at a fleetd server and measures it.
#[derive(Debug, Parser)]
#[command(name = "fleetd-loadtest", version, after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
#[command(subcommand_negates_reqs = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Option<Sub>,
    #[command(flatten)]
    pub(crate) run: RunArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Sub {
    /// Runs the server and a bare actix handler in turn and prints the ratio of their throughputs
    Compare(CompareArgs),
    /// Rolls a simulated update out to a simulated fleet and prints its waves as they go
    Rollout(Box<RolloutArgs>),
    /// Serves the bare handler of `compare`
    #[command(hide = true)]
    Bare {
        #[arg(long, default_value = "127.0.0.1:0")]
        listen: SocketAddr,
    },
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// The server, as http://HOST:PORT
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8080", value_parser = target)]
    pub(crate) url: Target,
    /// Admin key, with which the devices are registered
    #[arg(long, value_name = "KEY", env = "FLEETD_ADMIN_KEY", hide_env_values = true, required = true)]
    pub(crate) key: Option<String>,
    /// Number of simulated devices
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = positive)]
    pub(crate) devices: usize,
    /// How long to measure: 500ms, 30s, 5m, 1h
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration)]
    pub(crate) duration: Duration,
    /// How long to heartbeat before measuring begins
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = duration)]
    pub(crate) warmup: Duration,
    /// How heartbeats are spoken
    #[arg(long, value_enum, default_value_t = ProtocolArg::Connect)]
    pub(crate) protocol: ProtocolArg,
    /// TCP connections; at most one a device [default: 64, with grpc 8]
    #[arg(long, value_name = "C", value_parser = positive)]
    pub(crate) connections: Option<usize>,
    /// Heartbeats in flight on each connection, with grpc only
    #[arg(long, value_name = "S", default_value_t = 32, value_parser = positive)]
    pub(crate) streams: usize,
    /// Heartbeats a second over all devices; without it each connection sends the next when the last is answered
    #[arg(long, value_name = "R", value_parser = rate)]
    pub(crate) rate: Option<f64>,
    /// Generator threads [default: half the processors, at least 1]
    #[arg(long, value_name = "T", value_parser = positive)]
    pub(crate) threads: Option<usize>,
    /// Time after which an unanswered heartbeat costs its connection
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    pub(crate) timeout: Duration,
    /// Devices are PREFIX-000000 and on, the same in each run [default: a prefix of this run's own]
    #[arg(long, value_name = "PREFIX", value_parser = prefix)]
    pub(crate) id_prefix: Option<String>,
    /// File that remembers the devices' keys from run to run [default: in the cache folder, by URL and prefix]
    #[arg(long, value_name = "FILE", requires = "id_prefix")]
    pub(crate) keys: Option<PathBuf>,
    /// Processes that each heartbeat reports
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) processes: usize,
    /// Custom metrics that each heartbeat reports
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) metrics: usize,
    /// Heartbeats carry every reading that such a device has: load, temperature, traffic, swap, battery, signal
    #[arg(long)]
    pub(crate) all_readings: bool,
    /// Devices install the updates that they are offered, well and within a few heartbeats
    #[arg(long)]
    pub(crate) take_updates: bool,
    /// After the run, look up every acknowledged heartbeat in ClickHouse
    #[arg(long)]
    pub(crate) verify: bool,
    /// ClickHouse, for --verify
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8123", value_parser = target)]
    pub(crate) clickhouse_url: Target,
    /// ClickHouse's database
    #[arg(long, value_name = "NAME", default_value = "fleetd")]
    pub(crate) clickhouse_database: String,
    /// ClickHouse's user
    #[arg(long, value_name = "NAME", env = "FLEETD_CLICKHOUSE_USER")]
    pub(crate) clickhouse_user: Option<String>,
    /// ClickHouse's password
    #[arg(long, value_name = "PASSWORD", env = "FLEETD_CLICKHOUSE_PASSWORD", hide_env_values = true)]
    pub(crate) clickhouse_password: Option<String>,
    /// How long --verify waits for the last rows
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration)]
    pub(crate) verify_timeout: Duration,
    /// Progress bar on standard error: on a terminal, or never
    #[arg(long, value_enum, default_value_t = ProgressArg::Auto)]
    pub(crate) progress: ProgressArg,
}

#[derive(Debug, Args)]
pub(crate) struct CompareArgs {
    /// The server's executable [default: `fleetd` beside this program]
    #[arg(long, value_name = "PATH")]
    pub(crate) server: Option<PathBuf>,
    /// Rounds of each case
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = positive)]
    pub(crate) rounds: usize,
    /// Measured time of each round
    #[arg(long, value_name = "TIME", default_value = "8s", value_parser = duration)]
    pub(crate) duration: Duration,
    /// Time before measuring in each round
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = duration)]
    pub(crate) warmup: Duration,
    /// Number of simulated devices
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = positive)]
    pub(crate) devices: usize,
    /// Generator threads [default: half the processors, at least 1]
    #[arg(long, value_name = "T", value_parser = positive)]
    pub(crate) threads: Option<usize>,
    /// Where the server's temporary data directory is made [default: the system's temporary folder]
    #[arg(long, value_name = "DIR")]
    pub(crate) work_dir: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProtocolArg {
    /// Connect, binary protobuf, HTTP/1.1
    Connect,
    /// gRPC, HTTP/2 without TLS
    Grpc,
    /// Connect, protobuf JSON, HTTP/1.1
    Json,
}

impl From<ProtocolArg> for Protocol {
    fn from(argument: ProtocolArg) -> Self {
        match argument {
            ProtocolArg::Connect => Self::Connect,
            ProtocolArg::Grpc => Self::Grpc,
            ProtocolArg::Json => Self::Json,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProgressArg {
    Auto,
    Never,
}

/// Half the processors: the other half is the server's.
pub(crate) fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| (cores.get() / 2).max(1))
}

pub(crate) fn target(text: &str) -> Result<Target, String> {
    Target::parse(text).map_err(|error| error.to_string())
}

pub(crate) fn positive(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|number| *number > 0).ok_or_else(|| "give a whole number above 0".to_owned())
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|rate: &f64| rate.is_finite() && *rate >= 0.001);
    rate.ok_or_else(|| "give heartbeats a second, such as 20000".to_owned())
}

/// Device ids begin with it, so it obeys their rule.
pub(crate) fn prefix(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._:-".contains(c);
    let valid = text.len() <= 100 && text.chars().all(allowed) && text.starts_with(|c: char| c.is_ascii_alphanumeric());
    if valid {
        Ok(text.to_owned())
    } else {
        Err("give 1 to 100 of A-Z a-z 0-9 . _ : -, first a letter or digit".to_owned())
    }
}

pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let seconds = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err("give a number and a unit: 500ms, 30s, 5m, 1h".to_owned()),
    };
    let number: f64 = number.parse().map_err(|_| "give a number and a unit: 500ms, 30s, 5m, 1h".to_owned())?;
    Duration::try_from_secs_f64(number * seconds).map_err(|_| "give a time of 0 or more".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn times_need_a_unit() {
        assert_eq!(duration("1.5m"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        for wrong in ["30", "s", "-1s", "1d", ""] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn compare_needs_no_key_and_a_run_does() {
        assert!(Cli::try_parse_from(["fleetd-loadtest", "compare", "--rounds", "2"]).is_ok());
        if std::env::var_os("FLEETD_ADMIN_KEY").is_none() {
            assert!(Cli::try_parse_from(["fleetd-loadtest"]).is_err());
        }
        assert!(Cli::try_parse_from(["fleetd-loadtest", "--key", "k", "--protocol", "stream"]).is_err());
        assert!(Cli::try_parse_from(["fleetd-loadtest", "--key", "k", "--devices", "0"]).is_err());
        assert!(Cli::try_parse_from(["fleetd-loadtest", "--key", "k", "--keys", "f"]).is_err());
    }
}
