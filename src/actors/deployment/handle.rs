//! One open deployment as the rest of the server knows it: where its coordinator is, and which devices it should look at.
use std::collections::HashSet;
use std::sync::{Arc, OnceLock};

use actix::Addr;
use parking_lot::Mutex;

use super::coordinator::DeploymentCoordinator;
use super::release::Release;
use crate::rollout::{Counts, DeploymentState, Place};

/// Shared by the table of open deployments, its coordinator, and the devices that it has.
pub struct Handle {
    /// What is rolled out.
    pub(super) release: Arc<Release>,
    /// Known once the registry has the deployment.
    id: OnceLock<String>,
    address: Mutex<Option<Addr<DeploymentCoordinator>>>,
    /// How far it is, for who watches all of them together.
    tally: Mutex<Tally>,
    /// Devices that report another version than before, or are gone. Bounded by the devices of the deployment.
    noticed: Mutex<HashSet<Place>>,
}

/// How far a deployment is: its state, and its devices by theirs.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    pub state: DeploymentState,
    pub devices: Counts,
}

impl Handle {
    pub(super) fn new(release: Arc<Release>) -> Arc<Self> {
        Arc::new(Self {
            release,
            id: OnceLock::new(),
            address: Mutex::default(),
            tally: Mutex::default(),
            noticed: Mutex::default(),
        })
    }

    /// Empty until the registry has the deployment; nobody can ask for it before.
    pub fn id(&self) -> &str {
        self.id.get().map_or("", String::as_str)
    }

    pub(super) fn identify(&self, id: &str) {
        // It is said once.
        let _ = self.id.set(id.to_owned());
    }

    /// The coordinator, if it lives.
    pub(super) fn address(&self) -> Option<Addr<DeploymentCoordinator>> {
        self.address.lock().as_ref().filter(|address| address.connected()).cloned()
    }

    pub(super) fn set_address(&self, address: Addr<DeploymentCoordinator>) {
        *self.address.lock() = Some(address);
    }

    pub(super) fn tally(&self) -> Tally {
        *self.tally.lock()
    }

    pub(super) fn set_tally(&self, tally: Tally) {
        *self.tally.lock() = tally;
    }

    /// Asks for a look at a device at the coordinator's next turn.
    pub fn notice(&self, place: Place) {
        self.noticed.lock().insert(place);
    }

    /// Up to `limit` of those devices; the others are left for the next turn.
    pub(super) fn take_noticed(&self, limit: usize) -> Vec<Place> {
        let mut noticed = self.noticed.lock();
        let taken: Vec<Place> = noticed.iter().take(limit).copied().collect();
        if taken.len() == noticed.len() {
            // The room of a large one is not kept.
            *noticed = HashSet::new();
        } else {
            for place in &taken {
                noticed.remove(place);
            }
        }
        taken
    }
}
