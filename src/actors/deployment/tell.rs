//! What a deployment did, as rows of `deployment_events` and as events for those who listen.
use std::sync::Arc;

use super::coordinator::DeploymentCoordinator;
use super::handle::Handle;
use super::save::Batch;
use super::Deployments;
use crate::clock::UnixMillis;
use crate::events::{DeviceProgress, Event, What};
use crate::rollout::{Action, Order};
use crate::telemetry::journal::{AppendError, Journal};
use crate::telemetry::row::DeploymentEvent;

impl DeploymentCoordinator {
    /// Tells what a save made durable.
    pub(super) fn tell(&self, batch: &Batch) {
        let row = DeploymentEvent {
            received_at: batch.at,
            deployment_id: self.handle.id(),
            timestamp: batch.at,
            device_id: "",
            update_id: &self.handle.release.update.id,
            kind: "",
            from_state: "",
            to_state: "",
            wave: 0,
            attempt: 0,
            detail: "",
        };
        let mut unkept = Unkept::default();
        for action in &batch.actions {
            match action {
                Action::TellDevice { place, from, to, wave, attempt } => {
                    let Some(seat) = self.seats.get(*place as usize) else { continue };
                    let message = seat.said.as_ref().map_or("", |said| said.message.as_str());
                    let row = DeploymentEvent {
                        kind: "device",
                        device_id: seat.device_id.as_str(),
                        from_state: from.as_str_name(),
                        to_state: to.as_str_name(),
                        wave: *wave as u32,
                        attempt: *attempt,
                        detail: message,
                        ..row
                    };
                    unkept.keep(&self.shared.journal, &row);
                    if let Some(entry) = seat.device() {
                        let progress = DeviceProgress {
                            deployment: Arc::clone(&self.handle),
                            state: *to,
                            wave: *wave as u32,
                            attempt: *attempt,
                            reason_code: self.rollout.record(*place).reason_code(),
                        };
                        let what = What::Deployment { device: Arc::clone(entry), progress };
                        self.shared.events.announce(Event { at: batch.at, what });
                    }
                }
                Action::TellWave { wave, from, to } => {
                    let (from_state, to_state) = (from.as_str_name(), to.as_str_name());
                    tracing::info!(deployment = self.handle.id(), wave, from_state, to_state, "wave");
                    unkept.keep(
                        &self.shared.journal,
                        &DeploymentEvent { kind: "wave", from_state, to_state, wave: *wave as u32, ..row },
                    );
                }
                Action::TellDeployment { from, to } => {
                    let message = self.rollout.message();
                    let (from_state, to_state) = (from.as_str_name(), to.as_str_name());
                    tracing::info!(deployment = self.handle.id(), from_state, to_state, message, "deployment");
                    let detail = &message;
                    unkept.keep(
                        &self.shared.journal,
                        &DeploymentEvent { kind: "deployment", from_state, to_state, detail, ..row },
                    );
                }
                Action::Offer { .. } | Action::Revoke { .. } | Action::Measure { .. } => {}
            }
        }
        unkept.log(self.handle.id());
    }
}

impl Deployments {
    /// Who wanted what and why, for the history in ClickHouse.
    pub(super) fn tell_order(&self, handle: &Handle, order: &Order, who: &str, reason: &str) {
        let at = UnixMillis::now();
        let order = match order {
            // Not each of up to a million places.
            Order::RetryFailed { places } => format!("RetryFailed of {} devices", places.as_ref().map_or(0, Vec::len)),
            order => format!("{order:?}"),
        };
        let detail = serde_json::json!({ "order": order, "by": who, "reason": reason }).to_string();
        let row = DeploymentEvent {
            received_at: at,
            deployment_id: handle.id(),
            timestamp: at,
            device_id: "",
            update_id: &handle.release.update.id,
            kind: "order",
            from_state: "",
            to_state: "",
            wave: 0,
            attempt: 0,
            detail: &detail,
        };
        let mut unkept = Unkept::default();
        unkept.keep(&self.0.journal, &row);
        unkept.log(handle.id());
    }
}

/// A journal that is full must not hold up a deployment: how much of a batch is not kept is told in the log, once, and
/// the registry has it all.
#[derive(Default)]
struct Unkept {
    events: usize,
    last: Option<AppendError>,
}

impl Unkept {
    fn keep(&mut self, journal: &Journal, row: &DeploymentEvent<'_>) {
        let mut record = Vec::with_capacity(192);
        row.encode(&mut record);
        if let Err(error) = journal.append(&record) {
            self.events += 1;
            self.last = Some(error);
        }
    }

    fn log(self, deployment: &str) {
        if let Some(error) = self.last {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(deployment, events = self.events, error, "events are not kept");
        }
    }
}
