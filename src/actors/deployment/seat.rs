//! A device in a deployment: what the coordinator keeps of it beside the record that decisions go by.
use std::sync::Arc;

use super::handle::Handle;
use crate::actors::directory::DeviceDirectory;
use crate::actors::entry::DeviceEntry;
use crate::clock::UnixMillis;
use crate::ids::DeviceId;
use crate::rollout::{Place, Reachability, Record, Runs, Standing};
use fleetd_proto::v1::device_status::State;

/// One device, at its place. A million of them are 50 MB.
pub(super) struct Seat {
    pub device_id: DeviceId,
    /// `None` when the fleet does not have the device (any more).
    pub entry: Option<Arc<DeviceEntry>>,
    /// The version that it ran when it was chosen.
    pub from_version: Arc<str>,
    /// Nothing for the many whose turn has not come.
    pub said: Option<Box<Said>>,
}

/// What happened at the seat.
#[derive(Clone, Debug, Default)]
pub(super) struct Said {
    pub message: String,
    pub progress_percent: f64,
    pub offered_at: Option<UnixMillis>,
    pub updated_at: Option<UnixMillis>,
}

impl Seat {
    pub fn said(&mut self) -> &mut Said {
        self.said.get_or_insert_with(Box::default)
    }

    /// The device, unless it was deleted.
    pub fn device(&self) -> Option<&Arc<DeviceEntry>> {
        self.entry.as_ref().filter(|entry| !entry.is_forgotten())
    }

    /// How the device at `place` stands; `None` when it is gone from the fleet. One that another deployment had, and let
    /// go, is claimed: what it is offered could not reach it otherwise.
    pub fn standing(
        &self,
        directory: &DeviceDirectory,
        handle: &Arc<Handle>,
        place: Place,
        record: &Record,
        windows: &dyn Fn(&DeviceEntry) -> bool,
    ) -> Option<Standing> {
        let entry = self.device()?;
        let is_taken = match record.is_in_play() {
            true => !entry.assignment.claim(handle, place),
            false => entry.assignment.is_held_by_another(handle),
        };
        let now = directory.fleet().moment().now;
        let (presence, silent_for, runs) = entry.with_live(|live| {
            let silent_for = live.last_seen.map(|_| now.saturating_sub(live.last_seen_at) / 1_000_000);
            let runs = match &live.version {
                // Since this server started it has not said, which is no evidence that it runs any of the two.
                None => Runs::Other,
                Some(version) if **version == handle.release.update.version => Runs::Target,
                Some(version) if **version == *self.from_version => Runs::Before,
                Some(_) => Runs::Other,
            };
            // Nor that it went back: only one that works is to be heard, whatever it says.
            let is_evidence = live.version.is_some() || record.is_active();
            (directory.presence(live), silent_for.filter(|_| is_evidence), runs)
        });
        let reachability = match presence {
            State::Online | State::Late => Reachability::Online,
            State::Maintenance => Reachability::Maintenance,
            State::Offline | State::Unknown => Reachability::Offline,
        };
        Some(Standing { reachability, silent_for, runs, is_window_open: windows(entry), is_taken })
    }
}
