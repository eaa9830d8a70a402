//! Offers: from a decision to what the device's next heartbeat is answered with.
use super::coordinator::DeploymentCoordinator;
use super::release::Lease;
use crate::clock::UnixMillis;
use crate::rollout::{Action, DeviceState};

impl DeploymentCoordinator {
    /// Puts an offer where the device's heartbeats find it, if it still holds.
    pub(super) fn offer(&self, action: &Action) {
        let Action::Offer { place, attempt, accept_before, finish_before, is_rollback } = *action else { return };
        let record = self.rollout.record(place);
        let holds = match record.state() {
            DeviceState::Offered => !is_rollback,
            DeviceState::RollingBack => is_rollback && record.is_offered(),
            _ => false,
        };
        if !holds || record.attempt() != attempt {
            return;
        }
        let Some(seat) = self.seats.get(place as usize) else { return };
        let Some(entry) = seat.device() else { return };
        let now = self.now();
        let wall = |watched: u64| {
            UnixMillis::from_millis_clamped(
                now.wall.as_millis().saturating_add(watched.saturating_sub(now.watched) as i64),
            )
        };
        let lease = Lease {
            deployment_id: self.handle.id(),
            attempt,
            accept_before: wall(accept_before),
            finish_before: wall(finish_before),
            is_rollback,
        };
        let kind = self.shared.directory.fleet().kind(entry).unwrap_or_default();
        let release = &self.handle.release;
        let offer = if is_rollback {
            let file = release.way_back(&seat.from_version, &kind.device_type, &kind.arch);
            release.offer(&lease, &seat.from_version, file)
        } else {
            release.offer(&lease, &release.update.version, release.artifact(&kind.device_type, &kind.arch))
        };
        entry.assignment.set_offer(&self.handle, Some(offer));
    }

    /// Puts back the offers that held when the last coordinator ended.
    pub(super) fn restore(&self) {
        for entry in self.seats.iter().filter_map(|seat| seat.entry.as_ref()) {
            entry.assignment.set_offer(&self.handle, None);
        }
        self.rollout.open_offers().iter().for_each(|offer| self.offer(offer));
        self.rollout.active_places().into_iter().for_each(|place| self.note_work(place));
    }
}
