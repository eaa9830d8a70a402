//! Tells how the presence of devices changes, keeps in the registry what a restart has to know of it, and lets the
//! actors of devices that are gone end.
//!
//! A reconciler: every look compares what is with what was told. A look that tells only a part, or dies, is made good
//! by the next.
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use fleetd_proto::v1::device_status::State;

use super::directory::DeviceDirectory;
use crate::clock::UnixMillis;
use crate::events::{Event, Events, What};
use crate::fleet::{Change, FleetIndex};
use crate::store::{LastSeen, Store};

/// Pause between two looks at the fleet: how late a change may be told.
const EVERY: Duration = Duration::from_millis(500);

/// Changes that one look tells. A million devices that go at once are told in 50 s, at a rate that leaves the journal
/// to heartbeats; what lists show does not wait for it.
const MAX_TOLD: usize = 10_000;

/// Chunks looked at before others on this thread get a turn: some 100 µs.
const CHUNKS_A_TURN: usize = 32;

/// Facts for the registry that may wait while it does not answer. What is dropped beyond is said wrongly after a
/// restart until the device reports or is taken for gone once more.
const MAX_UNSAVED: usize = 200_000;

/// One for the server.
pub struct PresenceKeeper {
    directory: DeviceDirectory,
    fleet: FleetIndex,
    events: Events,
    store: Arc<dyn Store>,
    unsaved: Vec<LastSeen>,
    is_saving: bool,
    told: usize,
}

impl PresenceKeeper {
    pub fn new(directory: DeviceDirectory, events: Events, store: Arc<dyn Store>) -> Self {
        let fleet = directory.fleet().clone();
        // Silence counts from here, however long the start took before it.
        fleet.look();
        Self { directory, fleet, events, store, unsaved: Vec::new(), is_saving: false, told: 0 }
    }

    fn look(&mut self, context: &mut Context<Self>) {
        if self.fleet.look() {
            tracing::warn!("the server was away, devices get their intervals anew");
        }
        self.told = 0;
        self.look_on(0, context);
    }

    /// Goes on at a chunk, and comes back for the rest.
    fn look_on(&mut self, first: usize, context: &mut Context<Self>) {
        let moment = self.fleet.moment();
        let end = self.fleet.chunk_count().min(first + CHUNKS_A_TURN);
        let (fleet, mut gone) = (self.fleet.clone(), Vec::new());
        for chunk in first..end {
            fleet.changes(chunk, &moment, &mut |change| self.tell(&change, &mut gone));
        }
        // Not under the chunk's lock.
        gone.iter().for_each(|entry| self.directory.let_sleep(entry));
        if end < fleet.chunk_count() && self.told < MAX_TOLD {
            context.run_later(Duration::ZERO, move |this, context| this.look_on(end, context));
            return;
        }
        self.save(context);
        context.run_later(EVERY, Self::look);
    }

    fn tell(&mut self, change: &Change<'_>, gone: &mut Vec<Arc<super::entry::DeviceEntry>>) -> bool {
        if self.told >= MAX_TOLD {
            return false;
        }
        let Change { from, to, last_seen, .. } = *change;
        let device = Arc::clone(change.entry);
        let what = What::StatusChange { device: Arc::clone(&device), from, to, last_seen };
        let at = UnixMillis::now();
        if !self.events.tell(Event { at, what }) {
            // The journal is full, and would be for the others too.
            self.told = MAX_TOLD;
            return false;
        }
        self.told += 1;
        // What a restart has to know: that it was ever seen, and whether it was late or gone.
        // One that was never seen (an operator took it out of service) has nothing to be remembered by.
        let is_fact = [from, to].iter().any(|state| matches!(state, State::Late | State::Offline | State::Unknown));
        if let (true, Some(at)) = (is_fact, last_seen) {
            if self.unsaved.len() < MAX_UNSAVED {
                let (is_late, is_offline) = (to == State::Late, to == State::Offline);
                self.unsaved.push(LastSeen { device: device.id.clone(), at, is_late, is_offline });
            } else {
                tracing::warn!(device_id = %device.id, "the registry is behind, a device's presence is not kept");
            }
        }
        if to == State::Offline {
            gone.push(device);
        }
        true
    }

    fn save(&mut self, context: &mut Context<Self>) {
        if self.is_saving || self.unsaved.is_empty() {
            return;
        }
        self.is_saving = true;
        let seen = mem::take(&mut self.unsaved);
        let saved = self.store.touch(seen.clone()).into_actor(self).map(move |outcome, this, _| {
            this.is_saving = false;
            if let Err(error) = outcome {
                tracing::warn!(error = &error as &dyn std::error::Error, "presence is not kept yet");
                // Older ones first: the last word on a device is the one that stays.
                let newer = mem::replace(&mut this.unsaved, seen);
                this.unsaved.extend(newer);
                this.unsaved.truncate(MAX_UNSAVED);
            }
        });
        context.spawn(saved);
    }
}

impl Actor for PresenceKeeper {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Self::Context) {
        context.run_later(EVERY, Self::look);
    }
}
