//! What the server knows of one registered device without asking its actor: the credential, the limit, the address
//! of the actor if it is awake, and the live state that lists and single reads show.
//!
//! There is one entry a registered device, live or not, so its size is the memory of a registered fleet.
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::Arc;
use std::time::Duration;

use actix::WeakAddr;
use fleetd_proto::v1::device_status::State;
use fleetd_proto::v1::SystemStats;
use parking_lot::{Mutex, MutexGuard};
use prost::Message as _;

use super::deployment::assignment::Assignment;
use super::device::DeviceActor;
use crate::auth::rate_limit::DeviceBuckets;
use crate::auth::KeyHash;
use crate::clock::{Pause, UnixMillis};
use crate::fleet::{Description, Row};
use crate::ids::DeviceId;
use crate::presence::{Facts, Past};
use crate::store::{Device, DeviceRow};
use crate::telemetry::row::KnownDevice;

/// One registered device, shared by the directory, its actor and the requests that concern it.
pub struct DeviceEntry {
    pub id: DeviceId,
    pub key_hash: KeyHash,
    pub limits: DeviceBuckets,
    /// `None` until the first message, and again once the actor is dismissed. It lives without a held address, which
    /// would be 80 bytes more.
    pub(super) address: Mutex<Option<WeakAddr<DeviceActor>>>,
    /// The actor is its only writer; a reader holds the lock for a copy. Taken after the lock of the row's chunk, when
    /// both are.
    live: Mutex<Live>,
    /// The device's place in the fleet index, where lists find what this entry knows.
    row: Option<Row>,
    is_forgotten: AtomicBool,
    pub commands: CommandHint,
    /// What a deployment has to do with it.
    pub assignment: Assignment,
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
    /// The last heartbeat on the clock of [`crate::presence::Moment`]: what presence is judged by.
    pub last_seen_at: u64,
    /// What the device last said of itself.
    pub reported: State,
    pub uptime_seconds: u64,
    /// Boots since the actor was made, told from an uptime that fell.
    pub boots: u32,
    /// Restarts of its workload since it booted, as it last said.
    pub restarts: u32,
    /// Version that the device reported, where it differs from the registered one.
    pub version: Option<Arc<str>>,
    /// The last `SystemStats`, encoded: a fifth of the decoded struct's size, and most are never read.
    pub stats: Box<[u8]>,
    pub heartbeats: u64,
    pub settings: Settings,
    /// How long the last reply told the device to wait.
    pub told: Option<Pause>,
    /// What was known of it before the server started.
    pub past: Past,
}

/// What an operator set that concerns live state; a copy of the registry's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Revision of the record that this is from.
    pub revision: u64,
    /// Taken out of service, whatever the device reports.
    pub maintenance: bool,
    /// How often the device is expected to report; `None` as the server's configuration says.
    pub heartbeat_interval: Option<Pause>,
}

impl From<&Device> for Settings {
    fn from(device: &Device) -> Self {
        let Device { revision, maintenance, heartbeat_interval, .. } = *device;
        Self { revision, maintenance, heartbeat_interval: heartbeat_interval.map(Pause::from) }
    }
}

impl From<&DeviceRow<'_>> for Settings {
    fn from(row: &DeviceRow<'_>) -> Self {
        let DeviceRow { revision, maintenance, heartbeat_interval, .. } = *row;
        Self { revision, maintenance, heartbeat_interval: heartbeat_interval.map(Pause::from) }
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
            assignment: Assignment::default(),
        }
    }

    /// With what was known of the device before this start.
    pub fn with_past(mut self, past: Past) -> Self {
        self.live.get_mut().past = past;
        self
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

    /// Runs `read` on what the server knows of the device beside its reports, which must be quick: an operator's change
    /// to one of its neighbours waits. Without a copy, because every heartbeat comes by.
    pub(super) fn with_known<T>(&self, read: impl FnOnce(KnownDevice<'_>) -> T) -> T {
        match &self.row {
            Some(row) => row.with_known(self, read),
            None => read(KnownDevice::default()),
        }
    }

    /// Runs `read` on the live state, without copying it.
    pub(crate) fn with_live<T>(&self, read: impl FnOnce(&Live) -> T) -> T {
        read(&self.live.lock())
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
            self.assignment.notice();
        }
        result
    }
}

impl Live {
    /// How often the device is expected to report; `default` where nobody said it for this one.
    pub fn interval(&self, default: Duration) -> Duration {
        self.settings.heartbeat_interval.map_or(default, Duration::from)
    }

    /// Takes over a report's stats.
    pub fn set_stats(&mut self, stats: &SystemStats) {
        let length = stats.encoded_len();
        // A report is as long as the last one, mostly.
        if self.stats.len() != length {
            self.stats = vec![0; length].into();
        }
        // There is room for just these bytes.
        let _ = stats.encode(&mut &mut self.stats[..]);
    }

    /// What the device's presence follows from.
    pub fn facts(&self) -> Facts {
        Facts {
            is_in_maintenance: self.settings.maintenance || self.reported == State::Maintenance,
            last_seen_at: self.last_seen.map(|_| self.last_seen_at),
            past: self.past,
            expected: self.told.or(self.settings.heartbeat_interval).map(Duration::from),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_fits_the_block_that_it_is_meant_for() {
        // With the two counts of its `Arc`. The allocator's next block has 384 bytes: 61 MiB for a million devices.
        assert!(std::mem::size_of::<DeviceEntry>() + 16 <= 320, "{}", std::mem::size_of::<DeviceEntry>());
    }

    #[test]
    fn stats_are_those_of_the_last_report_whatever_its_length() {
        let mut live = Live::default();
        for cpu_percent in [0.0, 50.0, 60.0, 0.0] {
            let stats = SystemStats { cpu_percent, memory_used_mb: 5, ..SystemStats::default() };
            live.set_stats(&stats);
            assert_eq!(SystemStats::decode(&live.stats[..]), Ok(stats));
        }
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
}
