//! The command line of `fleetd-loadtest rollout`.
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use fleetd_loadtest::Target;
use fleetd_proto::v1::{rollout_policy, update_strategy, wave_spec};

use crate::cli::{duration, positive, prefix, target, ProgressArg};

const EXAMPLES: &str = "\
Examples:
  A canary of 10 % of 200 devices, watched for 10 seconds, then the rest:
    fleetd-loadtest rollout --url http://127.0.0.1:8080 --key \"$KEY\" --auto-promote

  8 % of the devices fail to install, more than the 5 % that are allowed: the brake pauses it, exit status 1:
    fleetd-loadtest rollout --key \"$KEY\" --devices 1000 --strategy rolling --max-parallel 50 --fail 8%

  The same, and the brake takes everything back by itself: exit status 0, because it ended safely:
    fleetd-loadtest rollout --key \"$KEY\" --devices 1000 --strategy rolling --fail 8% --on-breach roll-back

  Waves of 5 devices, a quarter and the rest; a third of the fleet is offline and comes back after a minute:
    fleetd-loadtest rollout --key \"$KEY\" --strategy waves --wave 5 --wave 25% --auto-promote \\
        --offline 33% --rejoin-after 1m --offline-grace 5m

  A file that is really uploaded, fetched by each device and checked:
    fleetd-loadtest rollout --key \"$KEY\" --devices 50 --upload 4MiB --auto-promote

What happens:
  Registers the devices and lets them report every --interval; creates an update and deploys it to them; then prints
  how its waves go, on a terminal with a bar for each, in a pipe with a line for each change, on standard error. A wave
  that waits for promotion waits for you. A deployment that pauses, for any other reason than a closed window, ends
  the scenario and stays paused. Ctrl-C cancels the deployment. A server that is started without --rate-limit-device 0
  lets a device report 10 times a minute; with it, this all takes longer, and --interval 6s is what a device can keep.

Output:
  Standard output gets one line of JSON: deployment_id, update_id, version, state, reason, message, waves, devices (by
  state), devices_harmed (that an update damaged), violations (offers that must never be made), fleet, duration_seconds.

Exit status:
  0  the deployment ended as SUCCEEDED or ROLLED_BACK, and no device was commanded twice or two things at once
  1  it ended in another way, paused, was interrupted or took longer than --timeout, or there were violations
  2  the command line is wrong
  3  the server could not be reached or refused the set-up, such as a wrong key";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct RolloutArgs {
    /// The server, as http://HOST:PORT
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8080", value_parser = target)]
    pub(super) url: Target,
    /// Admin key, with which the devices are registered and the update is deployed
    #[arg(long, value_name = "KEY", env = "FLEETD_ADMIN_KEY", hide_env_values = true, required = true)]
    pub(super) key: Option<String>,
    /// Number of simulated devices; at most 100,000
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = devices)]
    pub(super) devices: usize,
    /// Devices are PREFIX-000000 and on, the same in each run [default: a prefix of this run's own]
    #[arg(long, value_name = "PREFIX", value_parser = prefix)]
    pub(super) id_prefix: Option<String>,
    /// File that remembers the devices' keys from run to run [default: in the cache folder, by URL and prefix]
    #[arg(long, value_name = "FILE", requires = "id_prefix")]
    pub(super) keys: Option<PathBuf>,
    /// How often each device reports
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = duration)]
    pub(super) interval: Duration,

    /// The shape of the rollout
    #[arg(long, value_enum, default_value_t = StrategyArg::Canary, help_heading = "Rollout")]
    pub(super) strategy: StrategyArg,
    /// Devices at risk at once, from the offer to the end
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = positive, help_heading = "Rollout")]
    pub(super) max_parallel: usize,
    /// Share of the attempted devices that may fail before the brake acts [default: the server's, 5%]
    #[arg(long, value_name = "SHARE", value_parser = share, help_heading = "Rollout")]
    pub(super) max_failure: Option<f64>,
    /// Size of the canary [default: the server's, 10%]
    #[arg(long, value_name = "SHARE", value_parser = share, help_heading = "Rollout")]
    pub(super) canary_percentage: Option<f64>,
    /// A wave, in devices or per cent of the targets; give it once for each, the rest makes a last one
    #[arg(long = "wave", value_name = "SIZE", value_parser = wave, required_if_eq("strategy", "waves"), help_heading = "Rollout")]
    pub(super) waves: Vec<WaveArg>,
    /// How long the canary, or each wave, is watched after its last device is done
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration, help_heading = "Rollout")]
    pub(super) validation: Duration,
    /// Waves that passed go on by themselves, rather than wait for PromoteDeployment
    #[arg(long, help_heading = "Rollout")]
    pub(super) auto_promote: bool,
    /// What the brake does
    #[arg(long, value_enum, default_value_t = BreachArg::Pause, help_heading = "Rollout")]
    pub(super) on_breach: BreachArg,
    /// Attempts for one device, the first included
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(i32).range(1..=10),
        help_heading = "Rollout")]
    pub(super) max_attempts: i32,
    /// How long offline devices are waited for at the end
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration, help_heading = "Rollout")]
    pub(super) offline_grace: Duration,
    /// Upload a file of this size, such as 4MiB, that each device fetches and checks [default: none is fetched]
    #[arg(long, value_name = "SIZE", value_parser = size, help_heading = "Rollout")]
    pub(super) upload: Option<usize>,
    /// How long the whole may take
    #[arg(long, value_name = "TIME", default_value = "30m", value_parser = duration, help_heading = "Rollout")]
    pub(super) timeout: Duration,

    /// Share of the attempts that fail to install
    #[arg(long, value_name = "SHARE", default_value = "0%", value_parser = share, help_heading = "Mishaps")]
    pub(super) fail: f64,
    /// Share that goes silent for good after accepting
    #[arg(long, value_name = "SHARE", default_value = "0%", value_parser = share, help_heading = "Mishaps")]
    pub(super) vanish: f64,
    /// Share that goes back by itself, 3 seconds after success
    #[arg(long, value_name = "SHARE", default_value = "0%", value_parser = share, help_heading = "Mishaps")]
    pub(super) revert: f64,
    /// Share that declines
    #[arg(long, value_name = "SHARE", default_value = "0%", value_parser = share, help_heading = "Mishaps")]
    pub(super) reject: f64,
    /// Share of the devices that is off the network from the start
    #[arg(long, value_name = "SHARE", default_value = "0%", value_parser = share, help_heading = "Mishaps")]
    pub(super) offline: f64,
    /// When those come back, counted from the start of the deployment [default: never]
    #[arg(long, value_name = "TIME", value_parser = duration, help_heading = "Mishaps")]
    pub(super) rejoin_after: Option<Duration>,
    /// Seed of the mishaps: the same devices, deployment and seed meet the same
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Mishaps")]
    pub(super) seed: u64,

    /// Progress bars on standard error: on a terminal, or never
    #[arg(long, value_enum, default_value_t = ProgressArg::Auto)]
    pub(super) progress: ProgressArg,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum StrategyArg {
    /// Continuously, up to --max-parallel devices at once
    Rolling,
    /// A sample first, then the rest
    Canary,
    /// In the --wave sizes that are given
    Waves,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum BreachArg {
    /// Pauses the deployment, and leaves the rest to people
    Pause,
    /// Takes back what was installed
    RollBack,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum WaveArg {
    Devices(i32),
    /// In per cent.
    Share(f64),
}

impl From<StrategyArg> for update_strategy::Type {
    fn from(argument: StrategyArg) -> Self {
        match argument {
            StrategyArg::Rolling => Self::Rolling,
            StrategyArg::Canary => Self::Canary,
            StrategyArg::Waves => Self::Waves,
        }
    }
}

impl From<BreachArg> for rollout_policy::OnBreach {
    fn from(argument: BreachArg) -> Self {
        match argument {
            BreachArg::Pause => Self::Pause,
            BreachArg::RollBack => Self::RollBack,
        }
    }
}

impl From<WaveArg> for wave_spec::Size {
    fn from(argument: WaveArg) -> Self {
        match argument {
            WaveArg::Devices(count) => Self::DeviceCount(count),
            WaveArg::Share(percent) => Self::Percentage(percent),
        }
    }
}

fn devices(text: &str) -> Result<usize, String> {
    positive(text)?;
    // What DeployUpdate takes by id.
    text.parse().ok().filter(|count| *count <= 100_000).ok_or_else(|| "give at most 100000".to_owned())
}

/// In per cent; the sign may be left out.
fn share(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix('%').unwrap_or(text).trim().parse().ok();
    let number = number.filter(|number: &f64| (0.0..=100.0).contains(number));
    number.ok_or_else(|| "give a share of 0% to 100%".to_owned())
}

fn wave(text: &str) -> Result<WaveArg, String> {
    if text.ends_with('%') {
        return share(text).map(WaveArg::Share);
    }
    let count = text.parse().ok().filter(|count| *count > 0).map(WaveArg::Devices);
    count.ok_or_else(|| "give devices, such as 5, or a share, such as 25%".to_owned())
}

fn size(text: &str) -> Result<usize, String> {
    let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let unit = match unit {
        "" | "B" => Some(1),
        "KiB" => Some(1 << 10),
        "MiB" => Some(1 << 20),
        _ => None,
    };
    let bytes = number.parse::<usize>().ok().zip(unit).and_then(|(number, unit)| number.checked_mul(unit));
    // The upload is made in memory.
    let bytes = bytes.filter(|bytes| (1..=256 << 20).contains(bytes));
    bytes.ok_or_else(|| "give a size of 1 byte to 256MiB, such as 500KiB or 4MiB".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_waves_and_sizes_are_read_as_people_write_them() {
        assert_eq!((share("8%"), share("8"), share("0.5%")), (Ok(8.0), Ok(8.0), Ok(0.5)));
        assert!(["-1%", "101%", "x", "", "%"].iter().all(|wrong| share(wrong).is_err()));
        assert_eq!((wave("5"), wave("25%")), (Ok(WaveArg::Devices(5)), Ok(WaveArg::Share(25.0))));
        assert!(["0", "-5", "all", ""].iter().all(|wrong| wave(wrong).is_err()));
        assert_eq!((size("4MiB"), size("500KiB"), size("7")), (Ok(4 << 20), Ok(512_000), Ok(7)));
        assert!(["0", "257MiB", "4MB", "MiB", ""].iter().all(|wrong| size(wrong).is_err()));
    }
}
