//! Configuration: every setting is a flag, a key of the TOML file and an environment variable `FLEETD_…`.
//!
//! A flag beats the environment, the environment beats the file, the file beats the default. [`Settings`] is the
//! union as the user may write it (everything optional); [`Config`] is what the server runs with, checked.
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use serde::Deserialize;

use crate::health::{HealthRules, HealthSettings, RulesError};
use crate::telemetry::clickhouse::Cluster;
use crate::telemetry::journal::SyncMode;
use crate::telemetry::schema::Retention;

/// What a user may set. `None` everywhere means "the default".
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Address and port to serve every protocol on; port 0 picks a free one [default: 127.0.0.1:8080]
    #[arg(long, env = "FLEETD_LISTEN", value_name = "ADDR")]
    pub listen: Option<SocketAddr>,

    /// Folder for the registry, the journal, the admin key and the embedded ClickHouse [default: ./fleetd-data]
    #[arg(long, env = "FLEETD_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,

    /// Threads that serve connections [default: one a core]
    #[arg(long, env = "FLEETD_WORKERS", value_name = "N")]
    pub workers: Option<usize>,

    /// ClickHouse server to write to; without it an embedded ClickHouse runs as a child process
    #[arg(long, env = "FLEETD_CLICKHOUSE_URL", value_name = "URL")]
    pub clickhouse_url: Option<String>,

    /// Database for the tables [default: fleetd]
    #[arg(long, env = "FLEETD_CLICKHOUSE_DATABASE", value_name = "NAME")]
    pub clickhouse_database: Option<String>,

    /// Cluster behind --clickhouse-url, by its name in ClickHouse's remote_servers: every table is then replicated and
    /// spread over its shards [default: none, a single server]
    #[arg(long, env = "FLEETD_CLICKHOUSE_CLUSTER", value_name = "NAME")]
    pub clickhouse_cluster: Option<String>,

    /// User for --clickhouse-url [default: default]
    #[arg(long, env = "FLEETD_CLICKHOUSE_USER", value_name = "NAME")]
    pub clickhouse_user: Option<String>,

    /// Password for --clickhouse-url; better given in the environment than on the command line
    #[arg(long, env = "FLEETD_CLICKHOUSE_PASSWORD", value_name = "PASSWORD", hide_env_values = true)]
    pub clickhouse_password: Option<String>,

    /// Address of the embedded ClickHouse; port 0 picks a free one [default: 127.0.0.1:8123]
    #[arg(long, env = "FLEETD_ENGINE_LISTEN", value_name = "ADDR")]
    pub engine_listen: Option<SocketAddr>,

    /// The embedded ClickHouse's library, libchdb.so [default: beside the program, then the user's cache]
    #[arg(long, env = "FLEETD_ENGINE_LIBRARY", value_name = "FILE")]
    pub engine_library: Option<PathBuf>,

    /// Days that heartbeats stay in ClickHouse; 0 keeps them for ever [default: 30]
    #[arg(long, env = "FLEETD_RETENTION_DAYS", value_name = "DAYS")]
    pub retention_days: Option<u32>,

    /// Days that metrics stay by the minute (table rollup_1m), at least 33 more than heartbeats; 0 keeps them for ever
    /// [default: 90]
    #[arg(long, env = "FLEETD_ROLLUP_RETENTION_DAYS", value_name = "DAYS")]
    pub rollup_retention_days: Option<u32>,

    /// Days that metrics stay by the hour (rollup_1h and device_1h), at least as many as by the minute; 0 keeps them for
    /// ever [default: 730]
    #[arg(long, env = "FLEETD_HOURLY_RETENTION_DAYS", value_name = "DAYS")]
    pub hourly_retention_days: Option<u32>,

    /// Days that events of devices and deployments stay; 0 keeps them for ever [default: 365]
    #[arg(long, env = "FLEETD_EVENT_RETENTION_DAYS", value_name = "DAYS")]
    pub event_retention_days: Option<u32>,

    /// Seconds between two times that the tables of minutes are computed; those of hours follow each sixty of these.
    /// Less makes questions about the last minutes cheaper, more makes ClickHouse read less [default: 60]
    #[arg(long, env = "FLEETD_ROLLUP_INTERVAL_SECONDS", value_name = "SECONDS")]
    pub rollup_interval_seconds: Option<u32>,

    /// When the journal is fsynced: "always", "interval:50ms" or "never" [default: interval:50ms]
    #[arg(long, env = "FLEETD_SYNC", value_name = "MODE")]
    pub sync: Option<SyncMode>,

    /// Megabytes that the journal may hold while ClickHouse is away; then heartbeats get UNAVAILABLE [default: 8192]
    #[arg(long, env = "FLEETD_JOURNAL_CAPACITY_MB", value_name = "MB")]
    pub journal_capacity_mb: Option<u64>,

    /// Megabytes of one journal segment, the unit in which the journal is audited and deleted [default: 64]
    #[arg(long, env = "FLEETD_JOURNAL_SEGMENT_MB", value_name = "MB")]
    pub journal_segment_mb: Option<u64>,

    /// Seconds that devices are told to wait between heartbeats, before jitter [default: 30]
    #[arg(long, env = "FLEETD_HEARTBEAT_INTERVAL_SECONDS", value_name = "SECONDS")]
    pub heartbeat_interval_seconds: Option<u32>,

    /// Where devices find this server, such as `https://fleet.example.com`, for the URLs they download from
    /// [default: `http://` and the listen address]
    #[arg(long, env = "FLEETD_PUBLIC_URL", value_name = "URL")]
    pub public_url: Option<String>,

    /// Bucket for the files of updates, s3://BUCKET/PREFIX, with credentials and region in the usual AWS_… variables;
    /// needs a build with --features s3 [default: DATA_DIR/artifacts]
    #[arg(long, env = "FLEETD_ARTIFACT_STORE", value_name = "URL")]
    pub artifact_store: Option<String>,

    /// Whether artifacts outside of this server may have http:// URLs, without TLS: true or false [default: false]
    #[arg(long, env = "FLEETD_ALLOW_HTTP_ARTIFACTS", value_name = "BOOL")]
    pub allow_http_artifacts: Option<bool>,

    /// Seconds that the file of an export is kept, and its URL good [default: 86400]
    #[arg(long, env = "FLEETD_EXPORT_RETENTION_SECONDS", value_name = "SECONDS")]
    pub export_retention_seconds: Option<u64>,

    #[command(flatten)]
    #[serde(default)]
    pub rate_limit: RateLimitSettings,

    /// The `[health]` table of the file: where a value becomes a fault (docs/analytics.md).
    #[arg(skip)]
    #[serde(default)]
    pub health: HealthSettings,
}

/// The `[rate_limit]` table of the file. 0 means no limit.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimitSettings {
    /// Requests a second from one address without a valid key; 0 = no limit [default: 10]
    #[arg(long = "rate-limit-anonymous", env = "FLEETD_RATE_LIMIT_ANONYMOUS", value_name = "N")]
    pub anonymous: Option<u32>,

    /// Requests a second with one key; 0 = no limit [default: 100]
    #[arg(long = "rate-limit-authenticated", env = "FLEETD_RATE_LIMIT_AUTHENTICATED", value_name = "N")]
    pub authenticated: Option<u32>,

    /// Heartbeats a minute from one device; 0 = no limit [default: 10]
    #[arg(long = "rate-limit-device", env = "FLEETD_RATE_LIMIT_DEVICE", value_name = "N")]
    pub device: Option<u32>,
}

/// By how much what is computed of heartbeats outlasts them: a question reads them from there, so what is dropped there
/// must be gone here too. Heartbeats are dropped by the time of their receipt, what is computed of them by their own time,
/// which may be 31 days before; and a day goes as a whole.
const ROLLUP_MARGIN: Duration = Duration::from_secs(33 * 86_400);

/// The longest retention. ClickHouse counts a TTL in seconds since 1970 in 32 bits, which end in 2106 and then begin
/// anew: rows that are to stay for a hundred years would be dropped at once.
const MAX_RETENTION_DAYS: u64 = 10_000;

const DAY: Duration = Duration::from_secs(86_400);

/// Where ClickHouse is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClickHouseTarget {
    /// A child process of this program, on this address.
    Embedded { listen: SocketAddr, library: Option<PathBuf> },
    /// A server that somebody else runs.
    Server { url: String },
}

/// What the server runs with.
#[derive(Clone, Debug)]
pub struct Config {
    pub listen: SocketAddr,
    pub data_dir: PathBuf,
    pub workers: usize,
    pub clickhouse: ClickHouseTarget,
    pub clickhouse_database: String,
    /// Only with [`ClickHouseTarget::Server`].
    pub clickhouse_cluster: Option<Cluster>,
    pub clickhouse_user: Option<String>,
    pub clickhouse_password: Option<String>,
    pub retention: Retention,
    pub rollup_interval: Duration,
    pub sync: SyncMode,
    pub journal_capacity_bytes: u64,
    pub journal_segment_bytes: u64,
    pub heartbeat_interval: Duration,
    pub rate_limits: RateLimits,
    /// `None`: made of the address that the server listens on. Without a slash at its end.
    pub public_url: Option<String>,
    /// `s3://…`; `None`: a folder in the data directory.
    pub artifact_store: Option<String>,
    pub allow_http_artifacts: bool,
    pub health: HealthRules,
    pub export_retention: Duration,
    /// `FLEETD_ADMIN_KEY`: a secret, so neither a flag nor a key of the file.
    pub admin_key: Option<String>,
}

/// Requests allowed in one period; 0 = no limit. Periods: a second, a second, a minute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimits {
    pub anonymous_per_second: u32,
    pub authenticated_per_second: u32,
    pub device_per_minute: u32,
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration file {}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("the configuration file {} is not valid: {message}", path.display())]
    Parse { path: PathBuf, message: String },
    /// The value is left out: it may hold a password.
    #[error("clickhouse_url {0}")]
    ClickHouseUrl(&'static str),
    #[error("clickhouse_cluster names a cluster, and the embedded ClickHouse is none: give clickhouse_url too")]
    ClusterWithoutUrl,
    #[error("{name} = {value} is out of range: {expected}")]
    Range { name: &'static str, value: String, expected: &'static str },
    #[error("{name} = {value:?} is not valid: give {expected}")]
    Url { name: &'static str, value: String, expected: &'static str },
    #[error(transparent)]
    Health(#[from] RulesError),
}

impl Settings {
    /// Reads the TOML file; an unknown key is an error with its name and line.
    pub fn from_file(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.into(), source })?;
        toml::from_str(&text)
            .map_err(|error| ConfigError::Parse { path: path.into(), message: error.to_string().trim().to_owned() })
    }

    /// `self`, with `fallback` wherever `self` says nothing.
    #[must_use]
    pub fn or(self, fallback: Self) -> Self {
        Self {
            listen: self.listen.or(fallback.listen),
            data_dir: self.data_dir.or(fallback.data_dir),
            workers: self.workers.or(fallback.workers),
            clickhouse_url: self.clickhouse_url.or(fallback.clickhouse_url),
            clickhouse_database: self.clickhouse_database.or(fallback.clickhouse_database),
            clickhouse_cluster: self.clickhouse_cluster.or(fallback.clickhouse_cluster),
            clickhouse_user: self.clickhouse_user.or(fallback.clickhouse_user),
            clickhouse_password: self.clickhouse_password.or(fallback.clickhouse_password),
            engine_listen: self.engine_listen.or(fallback.engine_listen),
            engine_library: self.engine_library.or(fallback.engine_library),
            retention_days: self.retention_days.or(fallback.retention_days),
            rollup_retention_days: self.rollup_retention_days.or(fallback.rollup_retention_days),
            hourly_retention_days: self.hourly_retention_days.or(fallback.hourly_retention_days),
            event_retention_days: self.event_retention_days.or(fallback.event_retention_days),
            rollup_interval_seconds: self.rollup_interval_seconds.or(fallback.rollup_interval_seconds),
            sync: self.sync.or(fallback.sync),
            journal_capacity_mb: self.journal_capacity_mb.or(fallback.journal_capacity_mb),
            journal_segment_mb: self.journal_segment_mb.or(fallback.journal_segment_mb),
            heartbeat_interval_seconds: self.heartbeat_interval_seconds.or(fallback.heartbeat_interval_seconds),
            public_url: self.public_url.or(fallback.public_url),
            artifact_store: self.artifact_store.or(fallback.artifact_store),
            allow_http_artifacts: self.allow_http_artifacts.or(fallback.allow_http_artifacts),
            export_retention_seconds: self.export_retention_seconds.or(fallback.export_retention_seconds),
            rate_limit: RateLimitSettings {
                anonymous: self.rate_limit.anonymous.or(fallback.rate_limit.anonymous),
                authenticated: self.rate_limit.authenticated.or(fallback.rate_limit.authenticated),
                device: self.rate_limit.device.or(fallback.rate_limit.device),
            },
            // There is neither a flag nor a variable for it.
            health: fallback.health,
        }
    }

    /// Fills in the defaults and checks the ranges.
    pub fn resolve(self, admin_key: Option<String>) -> Result<Config, ConfigError> {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let clickhouse = match self.clickhouse_url {
            Some(url) => {
                check_clickhouse_url(&url).map_err(ConfigError::ClickHouseUrl)?;
                ClickHouseTarget::Server { url }
            }
            None => ClickHouseTarget::Embedded {
                listen: self.engine_listen.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 8123))),
                library: self.engine_library,
            },
        };
        let clickhouse_cluster = self.clickhouse_cluster.map(cluster).transpose()?;
        if clickhouse_cluster.is_some() && matches!(clickhouse, ClickHouseTarget::Embedded { .. }) {
            return Err(ConfigError::ClusterWithoutUrl);
        }
        let workers = self.workers.unwrap_or(cores);
        let segment_mb = self.journal_segment_mb.unwrap_or(64);
        let capacity_mb = self.journal_capacity_mb.unwrap_or(8192);
        let interval = self.heartbeat_interval_seconds.unwrap_or(30);
        let usual = Retention::default();
        let events = kept("event_retention_days", self.event_retention_days, usual.device_events)?;
        let heartbeats = kept("retention_days", self.retention_days, usual.heartbeats)?;
        let minutes = kept("rollup_retention_days", self.rollup_retention_days, usual.rollup_1m)?;
        let hours = kept("hourly_retention_days", self.hourly_retention_days, usual.rollup_1h)?;
        let rollup_1m = longer(minutes, heartbeats.map(|kept| kept + ROLLUP_MARGIN));
        let retention = Retention {
            heartbeats,
            device_events: events,
            deployment_events: events,
            rollup_1m,
            rollup_1h: longer(hours, rollup_1m),
            ..usual
        };
        in_range("workers", workers as u64, 1..=1024, "1 to 1024 threads")?;
        in_range("journal_segment_mb", segment_mb, 1..=1024, "1 to 1024 megabytes")?;
        in_range("journal_capacity_mb", capacity_mb, 2 * segment_mb..=1 << 20, "two segments to 1048576 megabytes")?;
        let rollup_interval = self.rollup_interval_seconds.unwrap_or(60);
        in_range("rollup_interval_seconds", rollup_interval.into(), 1..=3_600, "1 second to an hour")?;
        in_range("heartbeat_interval_seconds", interval.into(), 1..=86_400, "1 second to a day")?;
        let export_retention = self.export_retention_seconds.unwrap_or(86_400);
        in_range("export_retention_seconds", export_retention, 1..=30 * 86_400, "1 second to 30 days")?;
        let public_url = self.public_url.map(public_url).transpose()?;
        let artifact_store = self.artifact_store.map(artifact_store).transpose()?;
        Ok(Config {
            listen: self.listen.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 8080))),
            data_dir: self.data_dir.unwrap_or_else(|| "fleetd-data".into()),
            workers,
            clickhouse,
            clickhouse_database: self.clickhouse_database.unwrap_or_else(|| "fleetd".into()),
            clickhouse_cluster,
            clickhouse_user: self.clickhouse_user,
            clickhouse_password: self.clickhouse_password,
            retention,
            rollup_interval: Duration::from_secs(rollup_interval.into()),
            sync: self.sync.unwrap_or(SyncMode::Interval(Duration::from_millis(50))),
            journal_capacity_bytes: capacity_mb << 20,
            journal_segment_bytes: segment_mb << 20,
            heartbeat_interval: Duration::from_secs(interval.into()),
            rate_limits: RateLimits {
                anonymous_per_second: self.rate_limit.anonymous.unwrap_or(10),
                authenticated_per_second: self.rate_limit.authenticated.unwrap_or(100),
                device_per_minute: self.rate_limit.device.unwrap_or(10),
            },
            public_url,
            artifact_store,
            allow_http_artifacts: self.allow_http_artifacts.unwrap_or(false),
            health: HealthRules::of(self.health)?,
            export_retention: Duration::from_secs(export_retention),
            admin_key,
        })
    }
}

/// The ready line and logs show the URL, so it must hold no secret; and what the client cannot speak is said at the
/// start, rather than taken for a ClickHouse that is away.
fn check_clickhouse_url(url: &str) -> Result<(), &'static str> {
    let url: http::Uri = url.parse().map_err(|_| "is no URL; give http://HOST:PORT")?;
    match (url.scheme_str(), url.authority()) {
        (Some("http"), Some(authority)) if authority.as_str().contains('@') => {
            Err("holds a user; give clickhouse_user and clickhouse_password instead")
        }
        (Some("http"), Some(_)) if url.query().is_some() => Err("has a query; give http://HOST:PORT alone"),
        (Some("http"), Some(_)) => Ok(()),
        (Some("https"), _) => Err("begins with https, which is not spoken yet; give http://HOST:PORT"),
        _ => Err("must be http://HOST:PORT"),
    }
}

/// A base that paths can follow.
fn public_url(value: String) -> Result<String, ConfigError> {
    let host = value.strip_prefix("https://").or_else(|| value.strip_prefix("http://")).unwrap_or_default();
    let is_base =
        value.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'?' | b'#' | b'"' | b'<' | b'>'));
    if host.is_empty() || host.starts_with('/') || !is_base {
        let expected = "http:// or https://, a host, and no query";
        return Err(ConfigError::Url { name: "public_url", value, expected });
    }
    Ok(value.trim_end_matches('/').to_owned())
}

fn cluster(value: String) -> Result<Cluster, ConfigError> {
    Cluster::named(&value).ok_or(ConfigError::Url { name: "clickhouse_cluster", value, expected: Cluster::EXPECTED })
}

fn artifact_store(value: String) -> Result<String, ConfigError> {
    match value.strip_prefix("s3://") {
        Some(bucket) if !bucket.is_empty() && !bucket.starts_with('/') => Ok(value),
        _ => Err(ConfigError::Url { name: "artifact_store", value, expected: "s3://BUCKET or s3://BUCKET/PREFIX" }),
    }
}

/// How long something is kept: `usual` where nobody said it, for ever (`None`) where the user said 0.
fn kept(name: &'static str, days: Option<u32>, usual: Option<Duration>) -> Result<Option<Duration>, ConfigError> {
    let Some(days) = days else { return Ok(usual) };
    in_range(name, days.into(), 0..=MAX_RETENTION_DAYS, "up to 10000 days, or 0 for ever")?;
    Ok((days > 0).then(|| DAY * days))
}

/// `None` is for ever.
fn longer(a: Option<Duration>, b: Option<Duration>) -> Option<Duration> {
    Some(a?.max(b?))
}

fn in_range(
    name: &'static str,
    value: u64,
    allowed: std::ops::RangeInclusive<u64>,
    expected: &'static str,
) -> Result<(), ConfigError> {
    if allowed.contains(&value) {
        Ok(())
    } else {
        Err(ConfigError::Range { name, value: value.to_string(), expected })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(text: &str) -> Result<Settings, ConfigError> {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), text).expect("the file is written");
        Settings::from_file(file.path())
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line() {
        let message = settings("listen = \"127.0.0.1:0\"\nlissten = 1\n").expect_err("a typo").to_string();
        assert!(message.contains("lissten") && message.contains("line 2"), "{message}");
        let message = settings("[rate_limit]\ndevise = 1\n").expect_err("a typo in a table").to_string();
        assert!(message.contains("devise") && message.contains("line 2"), "{message}");
    }

    #[test]
    fn a_flag_beats_the_file_and_the_file_beats_the_default() {
        let file = settings("workers = 3\nsync = \"always\"\n[rate_limit]\ndevice = 0\n").expect("valid");
        let flags = Settings { workers: Some(5), ..Settings::default() };
        let config = flags.or(file).resolve(None).expect("valid");
        assert_eq!((config.workers, config.sync), (5, SyncMode::Always));
        assert_eq!(config.rate_limits.device_per_minute, 0);
        assert_eq!(config.rate_limits.authenticated_per_second, 100);
    }

    #[test]
    fn a_clickhouse_url_that_cannot_work_or_holds_a_secret_is_refused_without_showing_it() {
        let resolve = |url: &str| Settings { clickhouse_url: Some(url.into()), ..Settings::default() }.resolve(None);
        for url in ["http://127.0.0.1:8123", "http://clickhouse:8123/", "http://[::1]:8123/behind/a/proxy"] {
            resolve(url).expect(url);
        }
        for (url, told) in [
            ("http://fleet:hunter2@db:8123", "clickhouse_password"),
            ("http://db:8123/?user=fleet&password=hunter2", "query"),
            ("https://db:8443", "https"),
            ("db:8123", "http://HOST:PORT"),
            ("tcp://db:9000", "http://HOST:PORT"),
            ("", "http://HOST:PORT"),
        ] {
            let message = resolve(url).expect_err(url).to_string();
            assert!(message.contains(told) && !message.contains("hunter2"), "{message}");
        }
    }

    #[test]
    fn a_cluster_is_named_by_a_word_and_behind_a_url() {
        let resolve = |url: Option<&str>, cluster: &str| {
            let (clickhouse_url, clickhouse_cluster) = (url.map(str::to_owned), Some(cluster.to_owned()));
            Settings { clickhouse_url, clickhouse_cluster, ..Settings::default() }.resolve(None)
        };
        let url = Some("http://db:8123");
        let config = resolve(url, "fleet").expect("a cluster");
        assert_eq!(config.clickhouse_cluster.expect("kept").name(), "fleet");
        for wrong in ["", "a-b", "1a", "x'; DROP DATABASE fleetd"] {
            let message = resolve(url, wrong).expect_err(wrong).to_string();
            assert!(message.contains("clickhouse_cluster") && message.contains("remote_servers"), "{message}");
        }
        let message = resolve(None, "fleet").expect_err("no server").to_string();
        assert!(message.contains("clickhouse_url"), "{message}");
    }

    #[test]
    fn a_public_url_is_one_that_paths_can_follow() {
        let resolved = |url: &str| Settings { public_url: Some(url.into()), ..Settings::default() }.resolve(None);
        for (given, base) in [
            ("https://fleet.example.com", "https://fleet.example.com"),
            ("http://10.0.0.1:8080/fleetd/", "http://10.0.0.1:8080/fleetd"),
        ] {
            assert_eq!(resolved(given).expect(given).public_url.as_deref(), Some(base));
        }
        for wrong in ["", "fleet.example.com", "ftp://x", "https://", "https:///x", "https://x?y", "https://x y"] {
            let message = resolved(wrong).expect_err(wrong).to_string();
            assert!(message.contains("public_url") && message.contains(&format!("{wrong:?}")), "{message}");
        }
    }

    #[test]
    fn a_retention_beyond_what_clickhouse_can_count_is_refused() {
        let resolved = |name: &str, days: u32| settings(&format!("{name} = {days}")).expect("a setting").resolve(None);
        for name in ["retention_days", "rollup_retention_days", "hourly_retention_days", "event_retention_days"] {
            for days in [0, 1, 10_000] {
                resolved(name, days).expect("counted");
            }
            let message = resolved(name, 36_500).expect_err("a hundred years").to_string();
            assert!(message.contains(&format!("{name} = 36500")), "{message}");
        }
    }

    #[test]
    fn what_nobody_set_is_kept_as_long_as_usual_and_what_is_set_to_0_for_ever() {
        let retention = |text: &str| settings(text).expect("valid").resolve(None).expect("valid").retention;
        let usual = Retention::default();
        assert_eq!(retention(""), usual);
        let told = retention(
            "retention_days = 1\nrollup_retention_days = 40\nhourly_retention_days = 0\nevent_retention_days = 3",
        );
        let expected = Retention {
            heartbeats: Some(DAY),
            rollup_1m: Some(40 * DAY),
            rollup_1h: None,
            device_events: Some(3 * DAY),
            deployment_events: Some(3 * DAY),
            ..usual
        };
        assert_eq!(told, expected);
    }

    #[test]
    fn what_is_computed_of_heartbeats_outlasts_them() {
        let retention = |text: &str| settings(text).expect("valid").resolve(None).expect("valid").retention;
        let told = retention("retention_days = 100\nrollup_retention_days = 1\nhourly_retention_days = 1");
        assert_eq!((told.rollup_1m, told.rollup_1h), (Some(133 * DAY), Some(133 * DAY)));
        let told = retention("retention_days = 0\nrollup_retention_days = 1");
        assert_eq!((told.heartbeats, told.rollup_1m, told.rollup_1h), (None, None, None));
    }

    #[test]
    fn artifacts_go_to_a_folder_or_to_s3() {
        let resolved = |url: &str| Settings { artifact_store: Some(url.into()), ..Settings::default() }.resolve(None);
        assert_eq!(
            resolved("s3://bucket/fleetd").expect("a bucket").artifact_store.as_deref(),
            Some("s3://bucket/fleetd")
        );
        for wrong in ["", "s3://", "s3:///x", "/var/artifacts", "gs://bucket"] {
            assert!(resolved(wrong).expect_err(wrong).to_string().contains("artifact_store"), "{wrong}");
        }
    }

    #[test]
    fn a_journal_smaller_than_two_segments_is_refused() {
        let small = Settings { journal_capacity_mb: Some(100), ..Settings::default() };
        assert!(small.resolve(None).expect_err("too small").to_string().contains("journal_capacity_mb = 100"));
    }
}
