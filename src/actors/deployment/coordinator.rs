//! The actor that carries one deployment out: it hands what happens to the pure logic of [`crate::rollout`], makes durable
//! what changed, and only then does what follows.
//!
//! It is a reconciler. A look at the fleet, some times a second, asks how those devices stand that the logic wants to
//! know of; messages only make it look sooner. What was decided and not saved yet has had no effect on anybody, so a
//! crash between the two costs nothing: the next coordinator decides anew from what was saved.
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use tokio::sync::oneshot;

use super::handle::{Handle, Tally};
use super::save::{Batch, Unsaved};
use super::seat::Seat;
use super::watch::Watch;
use super::Shared;
use crate::error::ApiError;
use crate::rollout::{Action, DeviceState, Event, Now, Place, Refusal, Rollout};

/// Pause between two looks: how late an offer may go out, and a deadline be noticed.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Devices that one look asks for: about 1 ms of work, in which the other deployments wait.
const MAX_LOOKED_AT: usize = 5_000;

/// Looks that one which is over and has nothing to save is kept for, 10 s: it was taken up to be rolled back, and the
/// order is on its way.
const MAX_LOOKS_WHEN_OVER: u32 = 40;

/// Pause before a save is tried again that the registry did not take.
const SAVE_AGAIN_AFTER: Duration = Duration::from_millis(500);

/// One for each open deployment, all on one thread of their own: what they do never holds up a heartbeat.
pub struct DeploymentCoordinator {
    pub(super) rollout: Rollout,
    pub(super) seats: Vec<Seat>,
    /// Seats that the registry has; those after them joined just now.
    kept: usize,
    pub(super) handle: Arc<Handle>,
    pub(super) shared: Arc<Shared>,
    pub(super) watch: Watch,
    pub(super) unsaved: Unsaved,
    is_saving: bool,
    /// The last save failed.
    is_failing: bool,
    looks_when_over: u32,
    /// Waves whose gates are being measured.
    pub(super) measuring: Vec<usize>,
    pub(super) joiners: super::joiners::Joiners,
}

impl DeploymentCoordinator {
    pub(super) fn new(
        rollout: Rollout,
        seats: Vec<Seat>,
        handle: Arc<Handle>,
        shared: Arc<Shared>,
        joiners: super::joiners::Joiners,
    ) -> Self {
        let watch = Watch::from(rollout.head().watched, shared.directory.fleet());
        handle.set_tally(tally(&rollout));
        Self {
            rollout,
            kept: seats.len(),
            seats,
            handle,
            shared,
            watch,
            unsaved: Unsaved::default(),
            is_saving: false,
            is_failing: false,
            looks_when_over: 0,
            measuring: Vec::new(),
            joiners,
        }
    }

    pub(super) fn now(&self) -> Now {
        self.watch.now()
    }

    /// Hands over what happened. What it came to waits for the next save.
    pub(super) fn apply(&mut self, event: Event) -> Result<(), Refusal> {
        let now = self.now();
        self.rollout.apply(event, now)?;
        self.collect(now);
        Ok(())
    }

    fn collect(&mut self, now: Now) {
        let effects = self.rollout.take_effects();
        for action in &effects.actions {
            match action {
                Action::Offer { place, .. } => {
                    if let Some(seat) = self.seats.get_mut(*place as usize) {
                        let said = seat.said();
                        said.offered_at = Some(now.wall);
                        said.progress_percent = 0.0;
                        said.message.clear();
                    }
                }
                // An offer that is void or taken goes at once: it may only be shown while it surely holds.
                Action::Revoke { place, .. } => self.withdraw(*place),
                Action::TellDevice { place, from: DeviceState::Offered, .. } => self.withdraw(*place),
                _ => {}
            }
        }
        for place in &effects.changed {
            if let Some(seat) = self.seats.get_mut(*place as usize) {
                seat.said().updated_at = Some(now.wall);
            }
            self.note_work(*place);
        }
        if effects.is_head_changed {
            self.handle.set_tally(tally(&self.rollout));
        }
        self.unsaved.add(effects, now.wall);
    }

    /// Lets other deployments know whether they may take the device.
    pub(super) fn note_work(&self, place: Place) {
        if let Some(entry) = self.seats.get(place as usize).and_then(Seat::device) {
            let record = self.rollout.record(place);
            entry.assignment.set_working(&self.handle, record.is_active() && !record.is_offered());
        }
    }

    pub(super) fn withdraw(&self, place: Place) {
        if let Some(entry) = self.seats.get(place as usize).and_then(Seat::device) {
            entry.assignment.set_offer(&self.handle, None);
        }
    }

    fn look(&mut self, context: &mut Context<Self>) {
        if self.is_failing {
            // Nothing more is decided than waits already; the save is tried again by a timer of its own.
            return;
        }
        for place in self.handle.take_noticed(MAX_LOOKED_AT) {
            self.look_at(place);
        }
        let now = self.now();
        for place in self.rollout.wanted(now, MAX_LOOKED_AT) {
            self.look_at(place);
        }
        // Time passing cannot be refused.
        let _ = self.apply(Event::Tick);
        self.look_for_joiners(context);
        self.flush(context);
        if self.rollout.is_final() && !self.is_saving && self.unsaved.is_empty() {
            self.looks_when_over += 1;
            if self.looks_when_over > MAX_LOOKS_WHEN_OVER {
                self.end(context);
            }
        }
    }

    /// Feeds in how a device stands now.
    pub(super) fn look_at(&mut self, place: Place) {
        let Some(seat) = self.seats.get(place as usize) else { return };
        if place as usize >= self.kept {
            // It is asked again. The registry takes newcomers in their order, which nothing may change until then.
            return;
        }
        let policy = self.rollout.policy();
        let windows = |entry: &crate::actors::entry::DeviceEntry| self.shared.is_window_open(policy, entry);
        let record = self.rollout.record(place);
        let event = match seat.standing(&self.shared.directory, &self.handle, place, &record, &windows) {
            Some(standing) => Event::Standing { place, standing },
            None => Event::Removed { place },
        };
        // A fact is never refused; a place that is over changes nothing.
        let _ = self.apply(event);
    }

    /// Saves what there is to be saved, unless a save is under way: then that one's end comes back here.
    pub(super) fn flush(&mut self, context: &mut Context<Self>) {
        if self.is_saving || self.unsaved.is_empty() {
            return;
        }
        let batch = std::mem::take(&mut self.unsaved).into_batch();
        if !batch.has_changes() {
            self.finish(batch, context);
            return;
        }
        self.is_saving = true;
        let change = self.change_of(&batch);
        let seats = self.seats.len();
        let saved = self.shared.store.save_deployment(change).into_actor(self);
        context.spawn(saved.map(move |outcome, this, context| {
            this.is_saving = false;
            match outcome {
                Ok(()) => {
                    this.watch.go_on();
                    this.is_failing = false;
                    this.kept = seats;
                    this.finish(batch, context);
                    this.flush(context);
                }
                Err(error) => {
                    tracing::warn!(
                        deployment = this.handle.id(),
                        error = &error as &dyn std::error::Error,
                        "deployment is not saved, tried again"
                    );
                    this.watch.stand_still();
                    this.is_failing = true;
                    this.unsaved.take_back(batch, &error);
                    context.run_later(SAVE_AGAIN_AFTER, Self::flush);
                }
            }
        }));
    }

    /// Does what follows from what is durable now.
    fn finish(&mut self, batch: Batch, context: &mut Context<Self>) {
        self.tell(&batch);
        for action in &batch.actions {
            match action {
                Action::Offer { .. } => self.offer(action),
                Action::Measure { wave } => self.measure(*wave, context),
                _ => {}
            }
        }
        // Before the answers: who is told that it is over finds the devices free.
        if self.rollout.is_final() && self.unsaved.is_empty() {
            self.shared.ended.count(self.rollout.head().state);
            self.end(context);
        }
        batch.answer();
    }

    /// Nothing is left to do: the devices are free, and who asks is answered from the registry.
    fn end(&mut self, context: &mut Context<Self>) {
        self.release_all();
        self.shared.forget(self.handle.id());
        tracing::info!(
            deployment = self.handle.id(),
            state = self.rollout.head().state.as_str_name(),
            "deployment is over"
        );
        context.stop();
    }

    pub(super) fn release_all(&self) {
        for entry in self.seats.iter().filter_map(|seat| seat.entry.as_ref()) {
            entry.assignment.release(&self.handle);
        }
    }
}

fn tally(rollout: &Rollout) -> Tally {
    let head = rollout.head();
    Tally { state: head.state, devices: head.counts }
}

impl Drop for DeploymentCoordinator {
    /// After a panic: the next coordinator knows nothing of newcomers that the registry does not have.
    fn drop(&mut self) {
        for entry in self.seats.iter().skip(self.kept).filter_map(|seat| seat.entry.as_ref()) {
            entry.assignment.release(&self.handle);
        }
    }
}

impl Actor for DeploymentCoordinator {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Self::Context) {
        self.restore();
        context.run_interval(LOOK_EVERY, Self::look);
    }
}

/// What to do with a deployment, and where to say what came of it once that is durable.
pub(super) struct Tell {
    pub event: Event,
    /// What a device said besides its state.
    pub said: Option<SaidNow>,
    pub answer: oneshot::Sender<Result<(), Failure>>,
}

impl Message for Tell {
    type Result = ();
}

pub(super) struct SaidNow {
    pub place: Place,
    pub progress_percent: f64,
    pub message: String,
}

/// Why nothing came of it.
#[derive(Debug)]
pub(super) enum Failure {
    Refused(Refusal),
    /// The registry did not take it; it counts once it does, and may be said again.
    Unsaved(ApiError),
}

impl Handler<Tell> for DeploymentCoordinator {
    type Result = ();

    fn handle(&mut self, message: Tell, context: &mut Context<Self>) {
        let Tell { event, said, answer } = message;
        if let Err(refusal) = self.apply(event) {
            // Who asked may have gone.
            let _ = answer.send(Err(Failure::Refused(refusal)));
            return;
        }
        if let Some(said) = said {
            // A device that works on it needs no offer any more.
            self.withdraw(said.place);
            if let Some(seat) = self.seats.get_mut(said.place as usize) {
                let known = seat.said();
                known.progress_percent = said.progress_percent;
                if !said.message.is_empty() {
                    known.message = said.message;
                }
            }
        }
        self.unsaved.answer_later(answer);
        // With the rest of what this turn of the mailbox brings.
        context.run_later(Duration::ZERO, Self::flush);
    }
}

/// Runs on the coordinator, for reads of its state.
pub(super) struct Read<T>(pub Box<dyn FnOnce(&DeploymentCoordinator) -> T + Send>);

impl<T: Send + 'static> Message for Read<T> {
    type Result = Option<T>;
}

impl<T: Send + 'static> Handler<Read<T>> for DeploymentCoordinator {
    type Result = Option<T>;

    fn handle(&mut self, message: Read<T>, _: &mut Context<Self>) -> Option<T> {
        Some((message.0)(self))
    }
}

/// Waits for what is being saved, for a server that stops; nothing more is decided after it.
pub(super) struct Stop;

impl Message for Stop {
    type Result = ();
}

impl Handler<Stop> for DeploymentCoordinator {
    type Result = ResponseActFuture<Self, ()>;

    fn handle(&mut self, _: Stop, context: &mut Context<Self>) -> Self::Result {
        let (answer, saved) = oneshot::channel();
        self.unsaved.answer_later(answer);
        self.flush(context);
        Box::pin(async move { drop(saved.await) }.into_actor(self).map(|(), _, context| context.stop()))
    }
}
