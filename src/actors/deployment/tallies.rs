//! All deployments together, by state, for `/metrics`. Reads what coordinators left in their handles: it asks none of them,
//! and no registry.
use std::sync::atomic::{AtomicU64, Ordering};

use super::Deployments;
use crate::rollout::{DeploymentState, DeviceState};

/// Numbers of states of the contract are below this.
const NUMBERS: usize = 32;

/// How many deployments ended in each state since the start of the server.
#[derive(Default)]
pub(super) struct Ended([AtomicU64; NUMBERS]);

impl Ended {
    pub fn count(&self, state: DeploymentState) {
        if let Some(counter) = self.0.get(state as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// What deployments are and were, by the name of the state; each state is there, also with none.
pub struct Tallies {
    /// Deployments that are not over.
    pub open: Vec<(&'static str, f64)>,
    /// Their devices.
    pub devices: Vec<(&'static str, f64)>,
    /// Deployments that ended since the start of the server, each time that one did: one that is over may be rolled back.
    pub ended: Vec<(&'static str, u64)>,
}

impl Deployments {
    pub fn tallies(&self) -> Tallies {
        let (mut open, mut devices) = ([0_u64; NUMBERS], [0_u64; NUMBERS]);
        let add = |counts: &mut [u64; NUMBERS], state: i32, more: u64| {
            if let Some(count) = usize::try_from(state).ok().and_then(|state| counts.get_mut(state)) {
                *count += more;
            }
        };
        for handle in &self.0.open {
            let tally = handle.tally();
            add(&mut open, tally.state.into(), 1);
            tally.devices.iter().for_each(|(state, count)| add(&mut devices, state.into(), count.into()));
        }
        let ended: Vec<u64> = self.0.ended.0.iter().map(|counter| counter.load(Ordering::Relaxed)).collect();
        Tallies {
            open: named(&open, deployment_state).map(|(name, count)| (name, count as f64)).collect(),
            devices: named(&devices, device_state).map(|(name, count)| (name, count as f64)).collect(),
            ended: named(&ended, deployment_state).collect(),
        }
    }
}

/// The counts of what has a name; 0 is "not set".
fn named(counts: &[u64], name: fn(i32) -> Option<&'static str>) -> impl Iterator<Item = (&'static str, u64)> + '_ {
    (0..).zip(counts).skip(1).filter_map(move |(number, count)| Some((name(number)?, *count)))
}

fn deployment_state(number: i32) -> Option<&'static str> {
    DeploymentState::try_from(number).ok().map(|state| state.as_str_name())
}

fn device_state(number: i32) -> Option<&'static str> {
    DeviceState::try_from(number).ok().map(|state| state.as_str_name())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_has_a_place_and_a_name() {
        let counts: Vec<u64> = (0..NUMBERS as u64).collect();
        let states: Vec<_> = named(&counts, deployment_state).collect();
        assert_eq!((states[0], states.last()), (("PLANNING", 1), Some(&("SUPERSEDED", 13))));
        let devices: Vec<_> = named(&counts, device_state).collect();
        assert_eq!((devices[0], devices.last()), (("QUEUED", 1), Some(&("ROLLBACK_FAILED", 24))));
        assert!(
            (NUMBERS as i32..NUMBERS as i32 + 100).all(|n| deployment_state(n).is_none() && device_state(n).is_none())
        );
    }
}
