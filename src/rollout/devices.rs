//! The moves that a device can make, whoever asks for them: each writes its record, and with it all counts and indexes.
use super::machine::Rollout;
use super::record::{flag, Record, Why};
use super::{is_active, Action, DeploymentState, DeviceState, Now, Place, Refusal};

impl Rollout {
    /// Changes a record, and what follows from it: counts, indexes, effects.
    pub(super) fn write(&mut self, place: Place, change: impl FnOnce(&mut Record)) {
        let Some(record) = self.records.get_mut(place as usize) else { return };
        let from = *record;
        change(record);
        if *record == from {
            return;
        }
        if !from.has(flag::DIRTY) {
            record.put(flag::DIRTY, true);
            self.effects.changed.push(place);
        }
        let to = *record;
        self.head.count(&from, false);
        self.head.count(&to, true);
        self.index.change(place, &from, &to, &self.limits);
        self.effects.is_head_changed = true;
        if from.state() != to.state() {
            self.effects.actions.push(Action::TellDevice {
                place,
                from: from.state(),
                to: to.state(),
                wave: to.wave(),
                attempt: to.attempt,
            });
        }
    }

    /// Slots of `max_parallel` that are free.
    pub(super) fn free_slots(&self, limit: u32) -> usize {
        (limit as usize).saturating_sub(self.index.active.len())
    }

    pub(super) fn offer(&mut self, place: Place, is_rollback: bool, now: Now) {
        self.write(place, |record| {
            let state = if is_rollback { DeviceState::RollingBack } else { DeviceState::Offered };
            record.enter(state, Why::Nothing);
            record.attempt = record.attempt.saturating_add(1);
            record.offered = now.watched;
            record.since = now.watched;
            record.flags &= !(flag::ACCEPTED | flag::TARGET_SEEN | flag::SAID_BACK);
        });
        let action = self.offer_action(place);
        self.effects.actions.push(action);
    }

    pub(super) fn offer_action(&self, place: Place) -> Action {
        let record = self.record(place);
        let accept_before = record.offered.saturating_add(self.limits.accept);
        Action::Offer {
            place,
            attempt: record.attempt,
            accept_before,
            // The hour begins when it accepts, which is before that.
            finish_before: accept_before.saturating_add(self.limits.finish),
            is_rollback: record.state() == DeviceState::RollingBack,
        }
    }

    /// Takes back an offer that the device did not accept. The attempt is not used up, but its number is: an accept
    /// that comes late has an old one.
    pub(super) fn revoke(&mut self, place: Place, why: Why, now: Now) {
        let record = self.record(place);
        if !record.is_offered() {
            return;
        }
        let is_rollback = record.state() == DeviceState::RollingBack;
        self.write(place, |record| {
            match (is_rollback, why) {
                // Waiting in line says it all.
                (true, Why::OfferRevoked) => record.enter(DeviceState::RollbackQueued, Why::Nothing),
                (true, _) => record.enter(DeviceState::RollbackQueued, why),
                (false, Why::OfferRevoked) => record.enter(DeviceState::Queued, why),
                (false, _) => record.enter(DeviceState::Held, why),
            }
            record.since = now.watched;
        });
        self.effects.actions.push(Action::Revoke { place, attempt: record.attempt });
    }

    pub(super) fn revoke_all(&mut self, now: Now) {
        let offered: Vec<Place> = self.index.active.iter().filter(|place| self.record(*place).is_offered()).collect();
        for place in offered {
            self.revoke(place, Why::OfferRevoked, now);
        }
    }

    /// It took the offer.
    pub(super) fn accept(&mut self, place: Place, state: DeviceState, now: Now) {
        let epoch = self.head.epoch;
        self.write(place, |record| {
            if record.state() == DeviceState::RollingBack {
                record.put(flag::BACK_ATTEMPTED, true);
            } else {
                record.enter(state, Why::Nothing);
                record.attempted_in = epoch;
            }
            record.put(flag::ACCEPTED, true);
            record.accepted = now.watched;
            record.heard = now.watched;
            record.since = now.watched;
        });
    }

    /// It holds the new version.
    pub(super) fn succeed(&mut self, place: Place, why: Why, now: Now) {
        let record = self.record(place);
        let epoch = self.head.epoch;
        self.write(place, |record| {
            record.put(flag::RECOVERED, why == Why::Recovered);
            record.enter(DeviceState::Succeeded, why);
            record.attempted_in = epoch;
            record.failed_in = 0;
            record.failed_why = Why::Nothing;
            record.heard = now.watched;
            record.since = now.watched;
        });
        if record.has(flag::ACCEPTED) && is_active(record.state()) {
            self.head.durations.add(now.watched.saturating_sub(record.accepted));
        }
        self.done(place, now);
        if self.head.state == DeploymentState::RollingBack {
            self.queue_back(place, now);
        }
    }

    /// Its attempt failed, in one of the ways that count. FAILED and TIMED_OUT get another attempt if the policy has
    /// one left.
    pub(super) fn fail(&mut self, place: Place, state: DeviceState, why: Why, now: Now) {
        if self.record(place).state() == DeviceState::RollingBack {
            self.fail_back(place, why, now);
            return;
        }
        let epoch = self.head.epoch;
        self.write(place, |record| {
            record.enter(state, why);
            record.attempted_in = epoch;
            record.failed_in = epoch;
            record.failed_why = why;
            record.heard = now.watched;
            record.since = now.watched;
            record.tries = record.tries.saturating_add(1);
        });
        let record = self.record(place);
        let may_retry = matches!(state, DeviceState::Failed | DeviceState::TimedOut)
            && u32::from(record.tries) < self.policy.max_attempts
            && matches!(self.head.state, DeploymentState::Running | DeploymentState::Paused);
        if may_retry {
            let doubled = 1_u64.checked_shl(u32::from(record.tries) - 1).unwrap_or(u64::MAX);
            let wait = self.limits.retry.saturating_mul(doubled).min(self.limits.max_retry);
            self.write(place, |record| {
                record.enter(DeviceState::RetryWait, why);
                record.since = now.watched.saturating_add(wait);
            });
            return;
        }
        self.done(place, now);
        self.doubt_while_back(place);
    }

    /// Time alone ends what it was in.
    pub(super) fn deadline_passed(&mut self, place: Place, now: Now) {
        let record = self.record(place);
        match record.state() {
            DeviceState::RetryWait => {
                let is_open = matches!(self.head.state, DeploymentState::Running | DeploymentState::Paused);
                if is_open {
                    self.write(place, |record| {
                        record.enter(DeviceState::Queued, record.why);
                        record.since = now.watched;
                    });
                }
            }
            DeviceState::Confirming => {
                self.fail(place, DeviceState::TimedOut, Why::NotConfirmed, now);
            }
            _ => self.fail(place, DeviceState::TimedOut, Why::FinishTimeout, now),
        }
    }

    /// Another deployment takes the device. One that works on an update ends that first: two at once would leave nobody to
    /// say which of them broke it, and its slot here would be free while it is at risk.
    ///
    /// # Errors
    /// [`Refusal::Order`] for a device that took an offer here and is not done.
    pub(super) fn give_up(&mut self, place: Place, now: Now) -> Result<(), Refusal> {
        let record = self.record(place);
        if record.is_active() && !record.is_offered() {
            return Err(Refusal::Order(format!(
                "the device is {} here: it is taken over when it is done",
                record.state().as_str_name()
            )));
        }
        self.leave(place, DeviceState::Superseded, now);
        Ok(())
    }

    /// It is deleted, or another deployment's. What had ended here stays as it was.
    pub(super) fn leave(&mut self, place: Place, state: DeviceState, now: Now) {
        use DeviceState as D;
        let record = self.record(place);
        let is_over = self.head.is_final() && !record.is_active();
        let has_ended =
            !record.is_active() && !matches!(record.state(), D::Queued | D::Held | D::RetryWait | D::RollbackQueued);
        if has_ended || is_over {
            self.write(place, |record| record.flags = (record.flags | flag::LEFT) & !flag::DOUBTFUL);
            return;
        }
        self.write(place, |record| {
            record.enter(state, Why::Nothing);
            record.flags = (record.flags | flag::LEFT) & !flag::DOUBTFUL;
            record.since = now.watched;
        });
        if record.is_offered() {
            self.effects.actions.push(Action::Revoke { place, attempt: record.attempt });
        }
        self.done(place, now);
    }

    /// Devices that match since, in the last wave.
    pub(super) fn join(&mut self, count: u32) -> Result<(), Refusal> {
        let is_open = !self.head.is_final() && self.head.state != DeploymentState::RollingBack;
        let Some(wave) = self.head.waves.len().checked_sub(1).filter(|_| is_open) else {
            return Err(Refusal::Order("the deployment is over or goes back: it takes no more devices".into()));
        };
        for _ in 0..count {
            let Ok(place) = Place::try_from(self.records.len()) else { break };
            let mut record = Record::new(u16::try_from(wave).unwrap_or(u16::MAX), DeviceState::Queued);
            self.head.count_new(&record);
            self.index.add(place, &record, &self.limits);
            record.put(flag::DIRTY, true);
            self.records.push(record);
            self.effects.changed.push(place);
            self.effects.is_head_changed = true;
        }
        Ok(())
    }

    /// Notes that a device is done, in any way, for the wave's soak and for the rate.
    pub(super) fn done(&mut self, place: Place, now: Now) {
        let wave = self.record(place).wave();
        self.head.pace.add(now.watched);
        if let Some(wave) = self.head.waves.get_mut(wave) {
            wave.last_done = Some(now.watched);
        }
        self.effects.is_head_changed = true;
    }
}
