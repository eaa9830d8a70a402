//! How the fleet stands, in figures, and one device of it in full.
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use serde::Serialize;

use super::device::SimDevice;
use super::{lock, Shared};
use crate::code::Code;
use crate::updater::{Attempt, Violations};

/// The fleet at one moment. Devices are looked at one after the other, so a moving fleet is a little blurred.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Snapshot {
    pub devices: usize,
    /// Devices that had a heartbeat acknowledged since the start, or since the last new target.
    pub reported: usize,
    /// Devices that [`super::UpdateFleet::set_offline`] or the fleet's options took off the network.
    pub offline: usize,
    pub by_version: BTreeMap<String, usize>,
    /// By state of the updater: those of UpdateProgress, `IDLE`, `DOWN` while it restarts, `GONE` for good.
    pub by_state: BTreeMap<&'static str, usize>,
    /// Devices that vanished or bricked.
    pub gone: usize,
    /// Devices that an update did harm, ever: see [`crate::updater::Updater::is_harmed`].
    pub harmed: usize,
    /// Devices at work now, from the acknowledged acceptance to the first heartbeat afterwards, and the most that ever
    /// were: the server must hold a slot for each.
    pub working: u64,
    pub peak_working: u64,
    /// Attempts that were offered, and of them those with an acknowledged answer.
    pub attempts: u64,
    pub answered: u64,
    /// Attempts whose answer did not count any more.
    pub void: u64,
    /// Installations begun, and devices that came up with an update, or with the version before by a rollback.
    pub installs_begun: u64,
    pub installs: u64,
    pub rollbacks: u64,
    /// See `Updater::reoffered_while_working`: no violation.
    pub reoffered_while_working: u64,
    #[serde(skip_serializing_if = "Violations::is_empty")]
    pub violations: Violations,
    /// Heartbeats and reports that were acknowledged.
    pub acknowledged: u64,
    /// Refusals by code.
    pub refused: BTreeMap<&'static str, u64>,
    /// Requests whose connection broke.
    pub broken: u64,
    /// Answers that break the protocol.
    pub malformed: u64,
    pub downloaded_bytes: u64,
}

impl Snapshot {
    pub fn on_version(&self, version: &str) -> usize {
        self.by_version.get(version).copied().unwrap_or(0)
    }

    pub fn in_state(&self, state: &str) -> usize {
        self.by_state.get(state).copied().unwrap_or(0)
    }

    pub(super) fn take(shared: &Shared) -> Self {
        let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &shared.counters;
        let refused = counters.refused.iter().map(load).enumerate().filter(|(_, count)| *count > 0);
        let mut snapshot = Self {
            devices: shared.devices.len(),
            working: load(&counters.working),
            peak_working: load(&counters.peak_working),
            acknowledged: load(&counters.acknowledged),
            refused: refused.map(|(index, count)| (Code::from_index(index).name(), count)).collect(),
            broken: load(&counters.broken),
            malformed: load(&counters.malformed),
            downloaded_bytes: load(&counters.downloaded_bytes),
            ..Self::default()
        };
        for (id, device) in shared.ids.iter().zip(&shared.devices) {
            snapshot.add(id, &lock(device));
        }
        snapshot
    }

    fn add(&mut self, id: &str, device: &SimDevice) {
        let updater = &device.updater;
        self.reported += usize::from(device.has_reported);
        self.offline += usize::from(device.is_offline);
        // The key is copied only for the first device of a version.
        match self.by_version.get_mut(updater.version()) {
            Some(count) => *count += 1,
            None => drop(self.by_version.insert(updater.version().to_owned(), 1)),
        }
        *self.by_state.entry(updater.state()).or_default() += 1;
        self.gone += usize::from(updater.is_gone());
        self.harmed += usize::from(updater.is_harmed());
        for attempt in updater.attempts() {
            self.attempts += 1;
            self.answered += u64::from(attempt.is_answered);
            self.void += u64::from(attempt.is_void);
            self.installs_begun += u64::from(attempt.installs);
        }
        self.installs += updater.installs();
        self.rollbacks += updater.rollbacks();
        self.reoffered_while_working += updater.reoffered_while_working();
        self.violations.add(updater.violations(), id);
    }
}

/// One device in full.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceView {
    pub version: String,
    pub state: &'static str,
    pub boots: u32,
    pub is_gone: bool,
    pub is_harmed: bool,
    pub is_offline: bool,
    pub has_reported: bool,
    pub attempts: Vec<Attempt>,
    pub violations: Violations,
}

impl DeviceView {
    pub(super) fn of(device: &SimDevice) -> Self {
        let updater = &device.updater;
        Self {
            version: updater.version().to_owned(),
            state: updater.state(),
            boots: updater.boots(),
            is_gone: updater.is_gone(),
            is_harmed: updater.is_harmed(),
            is_offline: device.is_offline,
            has_reported: device.has_reported,
            attempts: updater.attempts().to_vec(),
            violations: updater.violations().clone(),
        }
    }
}
