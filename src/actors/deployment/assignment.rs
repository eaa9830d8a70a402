//! What one device has to do with deployments, as its heartbeats see it.
//!
//! Nearly always nothing, or nothing now: then a heartbeat pays one load. The coordinator of the deployment is the only
//! writer of the offer; it puts one here once it is durable, and takes it away as soon as the device took it, or
//! it is void.
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::Arc;

use fleetd_proto::v1::UpdateInfo;
use parking_lot::Mutex;

use super::handle::Handle;
use crate::rollout::Place;

/// Flag: a deployment has the device.
const IS_CLAIMED: u8 = 1;
/// Flag: an offer waits for its next heartbeat.
const HAS_OFFER: u8 = 2;
/// Flag: the device works on an update.
const IS_WORKING: u8 = 4;

/// Part of each device's entry.
#[derive(Default)]
pub struct Assignment {
    flags: AtomicU8,
    /// Boxed, since most devices of a fleet are in no deployment most of the time.
    claim: Mutex<Option<Box<Claim>>>,
}

/// The one deployment that has a device.
struct Claim {
    deployment: Arc<Handle>,
    place: Place,
    offer: Option<Arc<UpdateInfo>>,
}

impl Assignment {
    /// Whether a deployment has the device.
    pub fn is_claimed(&self) -> bool {
        self.flags.load(Ordering::Acquire) & IS_CLAIMED != 0
    }

    /// The deployment that has the device, and its place there.
    pub fn deployment(&self) -> Option<(Arc<Handle>, Place)> {
        if !self.is_claimed() {
            return None;
        }
        self.claim.lock().as_ref().map(|claim| (Arc::clone(&claim.deployment), claim.place))
    }

    /// What the next reply to the device carries.
    pub fn offer(&self) -> Option<Arc<UpdateInfo>> {
        if self.flags.load(Ordering::Acquire) & HAS_OFFER == 0 {
            return None;
        }
        self.claim.lock().as_ref().and_then(|claim| claim.offer.clone())
    }

    /// The device reports another version than before, or was deleted: its deployment should look.
    pub fn notice(&self) {
        if let Some((deployment, place)) = self.deployment() {
            deployment.notice(place);
        }
    }

    /// Takes the device for a deployment, or finds that it has it; false when another one does.
    pub(super) fn claim(&self, deployment: &Arc<Handle>, place: Place) -> bool {
        let mut claim = self.claim.lock();
        match &mut *claim {
            Some(held) if Arc::ptr_eq(&held.deployment, deployment) => held.place = place,
            Some(_) => return false,
            None => *claim = Some(Box::new(Claim { deployment: Arc::clone(deployment), place, offer: None })),
        }
        self.flags.fetch_or(IS_CLAIMED, Ordering::AcqRel);
        true
    }

    /// Lets the device go, if this deployment has it.
    pub(super) fn release(&self, deployment: &Arc<Handle>) {
        let mut claim = self.claim.lock();
        if claim.as_ref().is_some_and(|held| Arc::ptr_eq(&held.deployment, deployment)) {
            *claim = None;
            self.flags.store(0, Ordering::Release);
        }
    }

    /// Whether the device works on an update: then no other deployment may take it.
    pub(super) fn is_working(&self) -> bool {
        self.flags.load(Ordering::Acquire) & IS_WORKING != 0
    }

    /// Notes whether the device works on this deployment's update.
    pub(super) fn set_working(&self, deployment: &Arc<Handle>, is_working: bool) {
        if is_working == self.is_working() {
            return;
        }
        let claim = self.claim.lock();
        if claim.as_ref().is_some_and(|held| Arc::ptr_eq(&held.deployment, deployment)) {
            if is_working {
                self.flags.fetch_or(IS_WORKING, Ordering::AcqRel);
            } else {
                self.flags.fetch_and(!IS_WORKING, Ordering::AcqRel);
            }
        }
    }

    /// Whether a deployment other than this one has the device.
    pub(super) fn is_held_by_another(&self, deployment: &Arc<Handle>) -> bool {
        self.is_claimed() && self.claim.lock().as_ref().is_some_and(|held| !Arc::ptr_eq(&held.deployment, deployment))
    }

    /// Sets or takes away what this deployment offers.
    pub(super) fn set_offer(&self, deployment: &Arc<Handle>, offer: Option<Arc<UpdateInfo>>) {
        let mut claim = self.claim.lock();
        let Some(held) = claim.as_mut().filter(|held| Arc::ptr_eq(&held.deployment, deployment)) else { return };
        if offer.is_some() {
            self.flags.fetch_or(HAS_OFFER, Ordering::AcqRel);
        } else {
            self.flags.fetch_and(!HAS_OFFER, Ordering::AcqRel);
        }
        held.offer = offer;
    }
}
