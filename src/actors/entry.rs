//! What the server knows of one registered device without asking its actor: the credential, the limit, the address
//! of the actor if it is awake, and the live state that lists and single reads show.
//!
//! There is one entry a registered device, live or not, so its size is the memory of a registered fleet.
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::Arc;
use std::time::Duration;

use actix::Addr;
use fleetd_proto::v1::device_status::State;
use parking_lot::{Mutex, MutexGuard};

use super::device::DeviceActor;
use crate::auth::rate_limit::DeviceBuckets;
use crate::auth::KeyHash;
use crate::clock::UnixMillis;
use crate::fleet::{Description, Row};
use crate::ids::DeviceId;
use crate::store::{Device, DeviceRow};

/// One registered device, shared by the directory, its actor and the requests that concern it.
pub struct DeviceEntry {
    pub id: DeviceId,
    pub key_hash: KeyHash,
    pub limits: DeviceBuckets,
    /// `None` until the first message, and again once the actor is found dead.
    pub(super) address: Mutex<Option<Addr<DeviceActor>>>,
    /// The actor is its only writer; a reader holds the lock for a copy. Taken after the lock of the row's chunk, when
    /// both are.
    live: Mutex<Live>,
    /// The device's place in the fleet index, where lists find what this entry knows.
    row: Option<Row>,
    is_forgotten: AtomicBool,
    pub commands: CommandHint,
}

/// Tells without asking the registry whether commands may be pending for a device, so that a heartbeat of a device
/// without any costs two loads.
///
/// `sent` grows after a command is durable; `settled` is what `sent` was before a look into the registry that found
/// nothing pending. So they are equal only if no command was sent since that look began.
#[derive(Debug, Default)]
pub struct CommandHint {
    sent: AtomicU32,
    settled: AtomicU32,
}

impl CommandHint {
    /// A command was made durable.
    pub fn sent(&self) {
        self.sent.fetch_add(1, Ordering::AcqRel);
    }

    /// `Some` when commands may be pending: hand it to [`Self::settled`] if a look finds none.
    pub fn look(&self) -> Option<u32> {
        let sent = self.sent.load(Ordering::Acquire);
        (sent != self.settled.load(Ordering::Acquire)).then_some(sent)
    }

    /// The look that began with `seen` found nothing pending.
    pub fn settled(&self, seen: u32) {
        self.settled.store(seen, Ordering::Release);
    }
}

/// Live state as the last heartbeat left it. Lost with the process; the next heartbeat brings it back.
#[derive(Clone, Debug, Default)]
pub struct Live {
    /// Wall clock of the last heartbeat, for people. `None`: not seen since the start.
    pub last_seen: Option<UnixMillis>,
    /// Monotonic nanoseconds ([`crate::clock::monotonic_nanos`]) of the last heartbeat: what presence is judged by.
    pub last_seen_at: u64,
    /// What the device last said of itself.
    pub reported: State,
    pub uptime_seconds: u64,
    /// Boots since the actor was made, told from an uptime that fell.
    pub boots: u32,
    /// Version that the device reported, where it differs from the registered one.
    pub version: Option<Arc<str>>,
    /// The last `SystemStats`, encoded: a fifth of the decoded struct's size, and most are never read.
    pub stats: Vec<u8>,
    pub heartbeats: u64,
    pub settings: Settings,
}

/// What an operator set that concerns live state; a copy of the registry's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Revision of the record that this is from.
    pub revision: u64,
    /// Taken out of service, whatever the device reports.
    pub maintenance: bool,
    /// How often the device is expected to report; `None` as the server's configuration says.
    pub heartbeat_interval: Option<Duration>,
}

impl From<&Device> for Settings {
    fn from(device: &Device) -> Self {
        let Device { revision, maintenance, heartbeat_interval, .. } = *device;
        Self { revision, maintenance, heartbeat_interval }
    }
}

impl From<&DeviceRow<'_>> for Settings {
    fn from(row: &DeviceRow<'_>) -> Self {
        Self { revision: row.revision, maintenance: row.maintenance, heartbeat_interval: row.heartbeat_interval }
    }
}

impl DeviceEntry {
    pub fn new(id: DeviceId, key_hash: KeyHash, settings: Settings) -> Self {
        Self {
            id,
            key_hash,
            limits: DeviceBuckets::default(),
            address: Mutex::new(None),
            live: Mutex::new(Live { settings, ..Live::default() }),
            row: None,
            is_forgotten: AtomicBool::new(false),
            commands: CommandHint::default(),
        }
    }

    /// For the fleet index, before anybody else sees the entry.
    pub(crate) fn take_row(&mut self, row: Row) {
        self.row = Some(row);
    }

    pub(crate) fn row(&self) -> Option<&Row> {
        self.row.as_ref()
    }

    /// Takes over what an operator changed, for requests and for lists. Of two changes that arrive in the wrong order
    /// the later one stays.
    pub fn describe(&self, device: &Device) {
        let Some(row) = &self.row else { return };
        row.change(self, |row, live| {
            if device.revision > live.settings.revision {
                live.settings = Settings::from(device);
                row.describe(&Description::from(device), live);
            }
        });
    }

    /// Whether the device was deleted. Who still holds the entry must take nothing more for it.
    pub fn is_forgotten(&self) -> bool {
        self.is_forgotten.load(Ordering::Acquire)
    }

    /// Once this returns, nothing more is written to the device's row.
    pub(crate) fn forget(&self) {
        let _writers_are_done = self.live.lock();
        self.is_forgotten.store(true, Ordering::Release);
    }

    pub fn live(&self) -> Live {
        self.live.lock().clone()
    }

    /// Runs `read` on the last `SystemStats`, encoded.
    pub(crate) fn with_stats<T>(&self, read: impl FnOnce(&[u8]) -> T) -> T {
        read(&self.live.lock().stats)
    }

    /// For the fleet index.
    pub(crate) fn lock_live(&self) -> MutexGuard<'_, Live> {
        self.live.lock()
    }

    /// For the device's actor alone. Lists see the change when this returns.
    pub(crate) fn update_live<T>(&self, change: impl FnOnce(&mut Live) -> T) -> T {
        let mut live = self.live.lock();
        let version = live.version.clone();
        let result = change(&mut live);
        let Some(row) = self.row.as_ref().filter(|_| !self.is_forgotten()) else { return result };
        row.mirror(&live);
        let same_version = match (&version, &live.version) {
            (Some(before), Some(after)) => Arc::ptr_eq(before, after),
            (None, None) => true,
            _ => false,
        };
        drop(live);
        if !same_version {
            // Rare, and under the lock of the row's chunk, which comes before the device's own.
            row.change(self, |row, live| row.set_version(live));
        }
        result
    }
}

/// Missed heartbeats after which a device is LATE, then OFFLINE: 1.5 intervals forgive jitter and one slow network
/// round, 3 intervals mean that two heartbeats in a row were lost.
const LATE_AFTER_HALF_INTERVALS: u64 = 3;
const OFFLINE_AFTER_HALF_INTERVALS: u64 = 6;

/// How a device that reports every `interval` stands when it was silent for so many nanoseconds.
pub(crate) fn reachability(silent_nanos: u64, interval: Duration) -> State {
    // 292 years of half nanoseconds fit.
    let half_interval = interval.as_nanos() as u64 / 2;
    if silent_nanos > half_interval.saturating_mul(OFFLINE_AFTER_HALF_INTERVALS) {
        State::Offline
    } else if silent_nanos > half_interval.saturating_mul(LATE_AFTER_HALF_INTERVALS) {
        State::Late
    } else {
        State::Online
    }
}

impl Live {
    /// How often the device is expected to report; `default` where nobody said it for this one.
    pub fn interval(&self, default: Duration) -> Duration {
        self.settings.heartbeat_interval.unwrap_or(default)
    }

    /// Out of service, by the operator or by itself.
    pub fn is_in_maintenance(&self) -> bool {
        self.settings.maintenance || self.reported == State::Maintenance
    }

    /// Presence at `now` (monotonic nanoseconds); `default_interval` is the server's.
    pub fn presence(&self, now: u64, default_interval: Duration) -> State {
        if self.is_in_maintenance() {
            return State::Maintenance;
        }
        self.reachability(now, default_interval)
    }

    /// As [`Self::presence`], also for a device that is out of service: whether it is there.
    pub fn reachability(&self, now: u64, default_interval: Duration) -> State {
        if self.last_seen.is_none() {
            return State::Unknown;
        }
        reachability(now.saturating_sub(self.last_seen_at), self.interval(default_interval))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(30);
    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn presence_fades_from_online_to_late_to_offline() {
        let live = Live {
            last_seen: Some(UnixMillis::EPOCH),
            last_seen_at: 100 * SECOND,
            reported: State::Online,
            ..Live::default()
        };
        for (seconds_later, expected) in
            [(0, State::Online), (45, State::Online), (46, State::Late), (90, State::Late), (91, State::Offline)]
        {
            assert_eq!(live.presence((100 + seconds_later) * SECOND, INTERVAL), expected, "{seconds_later} s");
        }
    }

    #[test]
    fn a_device_that_has_not_reported_since_the_start_is_unknown_not_offline() {
        assert_eq!(Live::default().presence(u64::MAX, INTERVAL), State::Unknown);
    }

    #[test]
    fn maintenance_stands_over_silence() {
        let live = Live { last_seen: Some(UnixMillis::EPOCH), reported: State::Maintenance, ..Live::default() };
        assert_eq!(live.presence(u64::MAX, INTERVAL), State::Maintenance);
        assert_eq!(live.reachability(u64::MAX, INTERVAL), State::Offline);
        let settings = Settings { maintenance: true, ..Settings::default() };
        assert_eq!(Live { settings, ..Live::default() }.presence(0, INTERVAL), State::Maintenance);
    }

    #[test]
    fn a_command_sent_during_a_look_is_not_forgotten() {
        let hint = CommandHint::default();
        assert_eq!(hint.look(), None);
        hint.sent();
        let seen = hint.look().expect("one was sent");
        hint.sent();
        hint.settled(seen);
        let seen = hint.look().expect("one was sent during the look");
        hint.settled(seen);
        assert_eq!(hint.look(), None);
    }

    #[test]
    fn a_device_is_judged_by_its_own_interval() {
        let settings = Settings { heartbeat_interval: Some(10 * INTERVAL), ..Settings::default() };
        let live = Live { last_seen: Some(UnixMillis::EPOCH), settings, ..Live::default() };
        assert_eq!(live.presence(91 * SECOND, INTERVAL), State::Online);
        assert_eq!(live.presence(901 * SECOND, INTERVAL), State::Offline);
    }
}
