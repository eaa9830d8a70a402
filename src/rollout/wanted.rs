//! Whose standing a deployment wants to know: facts about devices are pulled, so that a burst of heartbeats costs it
//! nothing. Every place that is named must be answered with `Event::Standing`, or `Event::Removed`.
use super::machine::Rollout;
use super::{DeploymentState, Now, Place};

/// A look that decided nothing is taken again after this: a device that must show its version is asked once a second.
const LOOK_AGAIN: u64 = 1_000;

/// Devices that are asked beyond the free slots: in a fleet whose devices are mostly offline, a slot must not wait for
/// one round of questions after the other.
const LOOK_AHEAD: usize = 256;

/// Devices that are asked in one call only because their turn of the round came: of those that work, and of those that
/// are held.
const ROUND: usize = 256;

impl Rollout {
    /// At most `limit` places: those with something due, then candidates for free slots in the order of their offers,
    /// then some of the active and the held ones, round and round.
    pub fn wanted(&mut self, now: Now, limit: usize) -> Vec<Place> {
        let now = self.see(now);
        let mut wanted = Vec::new();
        // Half of the answers are left to the others: as many looks may be due as devices work.
        while wanted.len() < limit - limit / 2 {
            let Some(place) = self.index.looks.pop_due(now.watched) else { break };
            self.index.looks.set(place, Some(now.watched.saturating_add(LOOK_AGAIN)));
            wanted.push(place);
        }
        self.add_candidates(&mut wanted, now, limit);
        let left = limit.saturating_sub(wanted.len());
        wanted.extend(self.index.doubtful.iter().take(left));
        let left = limit.saturating_sub(wanted.len());
        self.index.active.round(&mut self.index.active_cursor, left.min(ROUND), &mut wanted);
        let left = limit.saturating_sub(wanted.len()).min(ROUND);
        match self.head.state {
            DeploymentState::RollingBack => {
                self.index.back_held.round(&mut self.index.held_cursor, left, &mut wanted);
            }
            DeploymentState::Running | DeploymentState::Paused if self.is_waited_for(now) => {
                self.index.held.round(&mut self.index.held_cursor, left, &mut wanted);
            }
            _ => {}
        }
        wanted
    }

    fn add_candidates(&self, wanted: &mut Vec<Place>, now: Now, limit: usize) {
        let left = limit.saturating_sub(wanted.len());
        if self.is_serving_back() {
            let ready = self.back_wave().and_then(|wave| self.index.back.get(wave));
            let free = self.free_slots(self.policy.max_parallel);
            if let Some(ready) = ready.filter(|_| free > 0) {
                wanted.extend(ready.iter().take(left.min(free.saturating_add(LOOK_AHEAD))));
            }
        } else if self.may_offer(now) {
            let free = self.free_slots(self.slot_limit(now));
            let waves = self.index.queued.iter().take(self.head.current + 1);
            wanted.extend(waves.flat_map(|queued| queued.iter()).take(left.min(free.saturating_add(LOOK_AHEAD))));
        }
    }

    /// When the passing of time next changes something, or makes a look due, in watched time. Ticks come anyway; this
    /// says how long nothing can happen without an event.
    pub fn next_due(&self) -> Option<u64> {
        let soak = self.head.wave().filter(|_| self.is_open()).and_then(|wave| wave.soak_until);
        [self.index.deadlines.first(), self.index.looks.first(), soak.map(|until| until.watched)]
            .into_iter()
            .flatten()
            .min()
    }
}
