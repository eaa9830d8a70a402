//! Updates in a load run: devices that take what they are offered and do it well, beside their heartbeats.
//!
//! A device costs nothing for this until it is offered an update. It says what it does with its regular heartbeats
//! only, and restarts between two of them, so that neither the rate nor the ledger of the run changes.
use std::time::Duration;

use fleetd_proto::v1::{HeartbeatRequest, UpdateInfo, UpdateProgress};

use crate::updater::{hash, Behaviour, Updater};

/// How long each step takes: long enough to be watched on a fleet that reports every ten seconds.
const STEP: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(crate) struct Updating {
    updater: Updater,
    /// What the heartbeat in flight says.
    said: Option<UpdateProgress>,
    boots: u32,
}

impl Updating {
    pub(crate) fn new(device_id: &str) -> Self {
        let behaviour =
            Behaviour { download: STEP, install: STEP, reboot: Duration::ZERO, confirm: STEP, ..Behaviour::default() };
        // Until it installs something it says no version: the server knows better than this run, which may be the
        // second of the same fleet.
        Self { updater: Updater::new("", hash(device_id), behaviour), said: None, boots: 0 }
    }

    /// Lets time pass, and adds to a heartbeat what there is to say of updates. True when the device restarted since
    /// its last heartbeat.
    pub(crate) fn speak(&mut self, now_ms: i64, message: &mut HeartbeatRequest) -> bool {
        let now = now_ms.unsigned_abs();
        self.updater.step(now);
        message.version.push_str(self.updater.version());
        self.said = self.updater.report(now);
        message.update_progress.clone_from(&self.said);
        let has_restarted = self.boots != self.updater.boots();
        self.boots = self.updater.boots();
        has_restarted
    }

    /// The heartbeat in flight was acknowledged, or nobody knows.
    pub(crate) fn answered(&mut self, now_ms: i64, is_acknowledged: bool) {
        let Some(said) = self.said.take() else { return };
        if is_acknowledged {
            self.updater.acknowledged(&said, now_ms.unsigned_abs());
        } else {
            self.updater.unanswered(&said, now_ms.unsigned_abs());
        }
    }

    /// The heartbeat in flight was acknowledged, and its report does not count.
    pub(crate) fn refused(&mut self) {
        if let Some(said) = self.said.take() {
            self.updater.refused(&said);
        }
    }

    pub(crate) fn offered(&mut self, info: &UpdateInfo, now_ms: i64) {
        self.updater.offered(info, false, now_ms.unsigned_abs());
    }
}

#[cfg(test)]
mod tests {
    use fleetd_proto::v1::update_progress::State;

    use super::*;

    #[test]
    fn a_device_under_load_installs_what_it_is_offered_within_its_heartbeats() {
        let mut updating = Updating::new("sim-1");
        let mut message = HeartbeatRequest::default();
        assert!(!updating.speak(0, &mut message));
        assert_eq!((message.version.as_str(), &message.update_progress), ("", &None));
        let version = "2.0.0".to_owned();
        updating.offered(&UpdateInfo { deployment_id: "dep".to_owned(), version, attempt: 1, ..Default::default() }, 0);
        let (mut states, mut restarts) = (Vec::new(), 0);
        for beat in 1..=12 {
            let mut message = HeartbeatRequest::default();
            restarts += u32::from(updating.speak(beat * 10_000, &mut message));
            states.extend(message.update_progress.map(|progress| State::try_from(progress.state).unwrap()));
            updating.answered(beat * 10_000, true);
        }
        assert_eq!(states.first(), Some(&State::Accepted));
        assert_eq!((states.last(), restarts), (Some(&State::Succeeded), 1));
        let mut message = HeartbeatRequest::default();
        updating.speak(200_000, &mut message);
        assert_eq!((message.version.as_str(), &message.update_progress), ("2.0.0", &None));
    }
}
