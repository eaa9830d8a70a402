//! What a coordinator decided and the registry does not have yet.
use std::collections::BTreeSet;

use fleetd_proto::v1::device_deployment_status::State as DeviceState;
use tokio::sync::oneshot;

use super::coordinator::{DeploymentCoordinator, Failure};
use crate::clock::UnixMillis;
use crate::rollout::{Action, Effects, Moment, Place};
use crate::store::{AttemptRecord, DeploymentChange, DeploymentDevice, StoreError};

/// Grows while a save is under way; bounded by the devices of the deployment and by who waits for an answer.
#[derive(Default)]
pub(super) struct Unsaved {
    places: BTreeSet<Place>,
    is_head_changed: bool,
    actions: Vec<Action>,
    /// When the first of `actions` was decided.
    at: Option<UnixMillis>,
    answers: Vec<oneshot::Sender<Result<(), Failure>>>,
}

/// What one save takes.
pub(super) struct Batch {
    places: BTreeSet<Place>,
    is_head_changed: bool,
    pub actions: Vec<Action>,
    pub at: UnixMillis,
    answers: Vec<oneshot::Sender<Result<(), Failure>>>,
}

impl Unsaved {
    pub fn add(&mut self, effects: Effects, now: UnixMillis) {
        self.places.extend(effects.changed);
        self.is_head_changed |= effects.is_head_changed;
        if !effects.actions.is_empty() {
            self.at.get_or_insert(now);
        }
        self.actions.extend(effects.actions);
    }

    /// Answers once all that was decided until now is durable.
    pub fn answer_later(&mut self, answer: oneshot::Sender<Result<(), Failure>>) {
        self.answers.push(answer);
    }

    pub fn is_empty(&self) -> bool {
        self.places.is_empty() && !self.is_head_changed && self.actions.is_empty() && self.answers.is_empty()
    }

    pub fn into_batch(self) -> Batch {
        let Self { places, is_head_changed, actions, at, answers } = self;
        Batch { places, is_head_changed, actions, at: at.unwrap_or_else(UnixMillis::now), answers }
    }

    /// A save failed: what it held is still to be saved, before what came since. Who waited is told, and may ask again.
    pub fn take_back(&mut self, batch: Batch, error: &StoreError) {
        let Batch { places, is_head_changed, mut actions, at, answers } = batch;
        self.places.extend(places);
        self.is_head_changed |= is_head_changed;
        actions.append(&mut self.actions);
        self.actions = actions;
        self.at = Some(at);
        for answer in answers {
            let _ = answer.send(Err(Failure::Unsaved(error.clone().into())));
        }
    }
}

impl Batch {
    pub fn has_changes(&self) -> bool {
        self.is_head_changed || !self.places.is_empty() || !self.actions.is_empty()
    }

    pub fn answer(self) {
        for answer in self.answers {
            // Who asked may have gone.
            let _ = answer.send(Ok(()));
        }
    }
}

impl DeploymentCoordinator {
    /// What the registry is to take of a batch: the state as it is now, which is that of the batch or later.
    ///
    /// It may take a large one in pieces, in this order, and a crash may come between them: devices that hold no slot of
    /// `max_parallel` come first, so that those which took their slots never stand beside them.
    pub(super) fn change_of(&self, batch: &Batch) -> DeploymentChange {
        let head = self.rollout.head();
        let (active, others): (Vec<&Place>, Vec<&Place>) =
            batch.places.iter().partition(|place| self.rollout.record(**place).is_active());
        DeploymentChange {
            deployment_id: self.handle.id().to_owned(),
            state: head.state.into(),
            head: head.encode().into(),
            started_at: head.started.map(Moment::wall),
            // Until then the next start takes it up again: a deployment that was cancelled waits for devices that install.
            finished_at: head.finished.map(Moment::wall).filter(|_| self.rollout.is_final()),
            devices: others.into_iter().chain(active).filter_map(|place| self.row_of(*place)).collect(),
            attempts: batch.actions.iter().filter_map(|action| self.attempt_of(action, batch.at)).collect(),
        }
    }

    pub(super) fn row_of(&self, place: Place) -> Option<DeploymentDevice> {
        let seat = self.seats.get(place as usize)?;
        let record = self.rollout.record(place);
        let said = seat.said.as_deref();
        Some(DeploymentDevice {
            place,
            device_id: seat.device_id.clone(),
            state: record.state().into(),
            record: record.encode().to_vec().into(),
            from_version: seat.from_version.to_string(),
            message: said.map(|said| said.message.clone()).unwrap_or_default(),
            offered_at: said.and_then(|said| said.offered_at),
            updated_at: said.and_then(|said| said.updated_at).unwrap_or_else(UnixMillis::now),
        })
    }

    /// The end of an attempt, for the history of a device.
    fn attempt_of(&self, action: &Action, at: UnixMillis) -> Option<AttemptRecord> {
        let Action::TellDevice { place, from, to, attempt, .. } = action else { return None };
        if !ends_attempt(*from, *to) {
            return None;
        }
        let seat = self.seats.get(*place as usize)?;
        let said = seat.said.as_deref();
        Some(AttemptRecord {
            device_id: seat.device_id.clone(),
            attempt: *attempt,
            state: (*to).into(),
            reason_code: self.rollout.record(*place).reason_code().to_owned(),
            message: said.map(|said| said.message.clone()).unwrap_or_default(),
            offered_at: said.and_then(|said| said.offered_at),
            ended_at: at,
        })
    }
}

fn ends_attempt(from: DeviceState, to: DeviceState) -> bool {
    use DeviceState as S;
    let ends = matches!(
        to,
        S::Succeeded
            | S::Failed
            | S::TimedOut
            | S::Rejected
            | S::Vanished
            | S::Reverted
            | S::RolledBack
            | S::RollbackFailed
    );
    // A device that waits for its next attempt has ended one.
    ends || (to == S::RetryWait && !matches!(from, S::Failed | S::TimedOut))
}
