//! The one line that a rollout ends with.
use std::collections::BTreeMap;
use std::time::Duration;

use fleetd_loadtest::{Snapshot, Violations};
use fleetd_proto::v1::deployment_status::{Reason, State};
use fleetd_proto::v1::{DeploymentStatus, WaveStatus};
use serde::Serialize;

use super::calls::Created;

/// How a rollout went. Field names are the JSON line's.
#[derive(Debug, Serialize)]
pub(super) struct Outcome {
    deployment_id: String,
    update_id: String,
    version: String,
    state: &'static str,
    /// Why it stands still; `null` when it does not.
    reason: Option<&'static str>,
    message: String,
    waves: Vec<Wave>,
    /// The server's count of devices by state.
    devices: BTreeMap<String, i32>,
    /// The devices' own count of those that the update damaged.
    devices_harmed: usize,
    /// Number of offers that must never be made.
    violation_count: u64,
    pub(super) violations: Violations,
    /// How the devices saw it.
    fleet: Snapshot,
    duration_seconds: f64,
}

#[derive(Debug, Serialize)]
struct Wave {
    index: i32,
    name: String,
    state: &'static str,
    devices: i32,
    by_state: BTreeMap<String, i32>,
}

impl Outcome {
    pub(super) fn new(status: &DeploymentStatus, update: &Created, mut fleet: Snapshot, took: Duration) -> Self {
        let violations = std::mem::take(&mut fleet.violations);
        Self {
            deployment_id: status.deployment_id.clone(),
            update_id: update.id.clone(),
            version: update.version.clone(),
            state: status.state().as_str_name(),
            reason: Some(status.reason()).filter(|reason| *reason != Reason::Unspecified).map(|r| r.as_str_name()),
            message: status.message.clone(),
            waves: status.waves.iter().map(Wave::new).collect(),
            devices: status.device_counts.clone(),
            devices_harmed: fleet.harmed,
            violation_count: violations.total(),
            violations,
            fleet,
            duration_seconds: (took.as_secs_f64() * 1000.0).round() / 1000.0,
        }
    }

    pub(super) fn was_rate_limited(&self) -> bool {
        self.fleet.refused.contains_key("RESOURCE_EXHAUSTED")
    }

    /// Whether it ended safely, and the server commanded nobody wrongly.
    pub(super) fn is_good(&self) -> bool {
        let ends = [State::Succeeded, State::RolledBack].map(|state| state.as_str_name());
        ends.contains(&self.state) && self.violations.is_empty()
    }
}

impl Wave {
    fn new(wave: &WaveStatus) -> Self {
        Self {
            index: wave.index,
            name: wave.name.clone(),
            state: wave.state().as_str_name(),
            devices: wave.total_devices,
            by_state: wave.device_counts.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rollout_is_good_only_if_it_ended_safely_and_without_violations() {
        let outcome = |state: State, violations| {
            let status = DeploymentStatus { state: state.into(), ..DeploymentStatus::default() };
            let update = Created { id: "upd".to_owned(), version: "2".to_owned() };
            let violations = Violations { commanded_twice: violations, ..Violations::default() };
            Outcome::new(&status, &update, Snapshot { violations, ..Snapshot::default() }, Duration::from_secs(1))
        };
        assert!(outcome(State::Succeeded, 0).is_good() && outcome(State::RolledBack, 0).is_good());
        assert!(!outcome(State::Succeeded, 1).is_good());
        for state in [State::Failed, State::Paused, State::Cancelled, State::RollbackIncomplete, State::Running] {
            assert!(!outcome(state, 0).is_good(), "{state:?}");
        }
    }
}
