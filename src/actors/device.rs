//! One device as an actor: takes its heartbeats in order, keeps its live state, writes its rows to the journal.
//!
//! A heartbeat is handled without waiting for the disk: the actor appends to the journal's pending group and hands
//! back a ticket; the request that sent the heartbeat waits for that ticket before it acknowledges.
use std::cell::RefCell;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use fleetd_proto::v1::{device_status::State, HeartbeatRequest};

use super::directory::Shared;
use super::entry::DeviceEntry;
use super::lean::LeanContext;
use super::pace;
use crate::clock::{self, UnixMillis};
use crate::error::ApiError;
use crate::telemetry::journal::Ticket;
use crate::telemetry::row;

/// A heartbeat on its way to its device.
pub(super) struct Heartbeat {
    pub request: HeartbeatRequest,
    pub received_at: UnixMillis,
}

/// The actor's answer. The heartbeat may be acknowledged once `ticket` is committed, not before.
pub struct Taken {
    pub ticket: Ticket,
    /// When the device should report next.
    pub next_heartbeat: Duration,
}

impl Message for Heartbeat {
    type Result = Result<Taken, ApiError>;
}

/// State of one live device that only its actor touches.
pub struct DeviceActor {
    entry: Arc<DeviceEntry>,
    shared: Arc<Shared>,
    heartbeats: u32,
}

impl DeviceActor {
    pub(super) fn new(entry: Arc<DeviceEntry>, shared: Arc<Shared>) -> Self {
        shared.awake.fetch_add(1, Ordering::Relaxed);
        Self { entry, shared, heartbeats: 0 }
    }
}

impl Drop for DeviceActor {
    /// Also runs when a handler panics, so the gauge stays true.
    fn drop(&mut self) {
        self.shared.awake.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Actor for DeviceActor {
    type Context = LeanContext<Self>;
}

thread_local! {
    /// Rows are encoded here and copied into the journal's group; one buffer a worker, never one a heartbeat.
    static ROW: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Handler<Heartbeat> for DeviceActor {
    type Result = Result<Taken, ApiError>;

    fn handle(&mut self, heartbeat: Heartbeat, _: &mut LeanContext<Self>) -> Self::Result {
        let Heartbeat { request, received_at } = heartbeat;
        if self.entry.is_forgotten() {
            return Err(super::directory::deleted(&self.entry));
        }
        let ticket = ROW.with_borrow_mut(|payload| {
            payload.clear();
            let id = self.entry.id.as_str();
            self.entry.with_known(|known| row::encode_heartbeat(id, &known, &request, received_at, payload))?;
            Ok::<_, ApiError>(self.shared.journal.append(payload)?)
        })?;
        self.heartbeats = self.heartbeats.wrapping_add(1);
        // The spread comes from a hash of who and how often: even over a fleet, and no random generator on this path.
        let hash = super::directory::hash_of(&(self.entry.id.as_str(), self.heartbeats));
        let stretch = self.shared.stretch.get();
        let next_heartbeat = self.entry.update_live(|live| {
            live.last_seen = Some(received_at);
            live.last_seen_at = self.shared.attention.at(clock::monotonic_nanos());
            if let Some(status) = &request.status {
                if status.uptime_seconds < live.uptime_seconds {
                    live.boots += 1;
                }
                live.uptime_seconds = status.uptime_seconds;
                live.restarts = status.restart_count;
                live.reported = State::try_from(status.state).unwrap_or_default();
            }
            if !request.version.is_empty() && live.version.as_deref() != Some(&request.version) {
                live.version = Some(request.version.into());
            }
            if let Some(stats) = &request.stats {
                live.set_stats(stats);
            }
            live.heartbeats += 1;
            let next = pace::next_heartbeat(live.interval(self.shared.heartbeat_interval), stretch, hash);
            live.told = Some(next.into());
            next
        });
        self.shared.events.tell_heartbeat(&self.entry, received_at);
        Ok(Taken { ticket, next_heartbeat })
    }
}

/// Lets the actor end once it has handled what was sent to it; from the directory, which then knows it no more.
pub(super) struct Dismiss;

impl Message for Dismiss {
    type Result = ();
}

impl Handler<Dismiss> for DeviceActor {
    type Result = ();

    fn handle(&mut self, _: Dismiss, context: &mut LeanContext<Self>) {
        context.dismiss();
    }
}

/// Makes the actor panic, as a bug in a handler would. Sent by the test of re-creation.
#[cfg(test)]
pub(super) struct Panic;

#[cfg(test)]
impl Message for Panic {
    type Result = ();
}

#[cfg(test)]
impl Handler<Panic> for DeviceActor {
    type Result = ();

    fn handle(&mut self, _: Panic, _: &mut LeanContext<Self>) {
        panic!("asked to panic");
    }
}
