//! What an operator may choose about the journal: where it is, how large it grows, when it is fsynced.
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::format::SEGMENT_HEADER_BYTES;

/// A segment is the unit of deletion. 64 MiB is under a second of work at full load, so space comes back in small
/// steps, and a crash leaves at most this much to read at the next start (some 50 ms).
pub const DEFAULT_SEGMENT_BYTES: u64 = 64 << 20;

/// Backlog while ClickHouse is away: 8 GiB hold some 50 million heartbeats, half an hour at 30,000 a second.
pub const DEFAULT_CAPACITY_BYTES: u64 = 8 << 30;

/// Smaller segments would be more header and directory entry than data.
pub const MIN_SEGMENT_BYTES: u64 = 16 * SEGMENT_HEADER_BYTES as u64;

/// The capacity is at least this many segments: the one that is written to cannot be deleted, so with fewer a full
/// journal could not be emptied.
pub const MIN_CAPACITY_SEGMENTS: u64 = 2;

/// When records are forced to the disk. A killed process loses nothing in any mode, because a record is handed to the
/// kernel before it is acknowledged; the mode says what a power loss or a kernel crash may take.
///
/// Spelled `never`, `always` or `interval:50ms` (units `ms` and `s`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Deserialize)]
#[serde(try_from = "String")]
pub enum SyncMode {
    /// The kernel decides (on Linux after some 30 s).
    Never,
    /// At most this long, plus the time of one fsync, after a record was acknowledged.
    Interval(Duration),
    /// Before a record is acknowledged.
    Always,
}

impl Default for SyncMode {
    fn default() -> Self {
        Self::Interval(Duration::from_millis(50))
    }
}

/// The text that is no [`SyncMode`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("sync mode {0:?} is unknown; use \"never\", \"always\" or \"interval:50ms\" (1ms to 60s)")]
pub struct InvalidSyncMode(String);

impl FromStr for SyncMode {
    type Err = InvalidSyncMode;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidSyncMode(text.to_owned());
        match text {
            "never" => return Ok(Self::Never),
            "always" => return Ok(Self::Always),
            _ => {}
        }
        let span = text.strip_prefix("interval:").ok_or_else(invalid)?;
        // "ms" first: every "ms" also ends in "s".
        let (digits, unit_ms) = match span.strip_suffix("ms") {
            Some(digits) => (digits, 1),
            None => (span.strip_suffix('s').ok_or_else(invalid)?, 1000),
        };
        if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(invalid());
        }
        let count: u64 = digits.parse().map_err(|_| invalid())?;
        match count.checked_mul(unit_ms) {
            Some(ms @ 1..=60_000) => Ok(Self::Interval(Duration::from_millis(ms))),
            _ => Err(invalid()),
        }
    }
}

impl TryFrom<String> for SyncMode {
    type Error = InvalidSyncMode;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl fmt::Display for SyncMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Never => f.write_str("never"),
            Self::Always => f.write_str("always"),
            Self::Interval(every) => write!(f, "interval:{}ms", every.as_millis()),
        }
    }
}

/// Everything [`Journal::open`](super::Journal::open) needs to know.
#[derive(Clone, Debug)]
pub struct JournalOptions {
    /// Folder of the journal alone; made if missing. The caller holds the lock of the data directory above it.
    pub dir: PathBuf,
    pub sync: SyncMode,
    /// A segment is sealed when the next group would take it past this. One group may be larger than that.
    pub segment_bytes: u64,
    /// Bytes on disk and waiting to be written from which on appends are refused.
    pub capacity_bytes: u64,
}

impl JournalOptions {
    /// The defaults, in `dir`.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            sync: SyncMode::default(),
            segment_bytes: DEFAULT_SEGMENT_BYTES,
            capacity_bytes: DEFAULT_CAPACITY_BYTES,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sync_mode_reads_back_as_it_prints() {
        for text in ["never", "always", "interval:1ms", "interval:50ms", "interval:60000ms"] {
            assert_eq!(text.parse::<SyncMode>().expect(text).to_string(), text);
        }
        assert_eq!("interval:2s".parse(), Ok(SyncMode::Interval(Duration::from_secs(2))));
    }

    #[test]
    fn a_sync_mode_that_means_nothing_is_refused_by_name() {
        for text in ["", "Always", "interval", "interval:", "interval:0ms", "interval:61s", "interval:+5ms", "5ms"] {
            let error = text.parse::<SyncMode>().expect_err(text);
            assert!(error.to_string().contains(&format!("{text:?}")), "{error}");
        }
    }

    #[test]
    fn the_configuration_file_spells_it_as_text() {
        #[derive(serde::Deserialize)]
        struct Section {
            sync: SyncMode,
        }
        let section: Section = toml::from_str("sync = \"interval:20ms\"").expect("a mode");
        assert_eq!(section.sync, SyncMode::Interval(Duration::from_millis(20)));
        assert!(toml::from_str::<Section>("sync = \"sometimes\"").is_err());
    }
}
