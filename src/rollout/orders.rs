//! What operators want. A repeat is harmless; an order that does not fit the state is refused, in a sentence that says
//! what the state is and what would fit.
use super::brake::is_by_failures;
use super::machine::Rollout;
use super::record::{flag, Why};
use super::{DeploymentState, DeviceState, Now, Order, Place, Reason, Refusal, WaveState};

use DeploymentState as S;

impl Rollout {
    pub(super) fn order(&mut self, order: Order, now: Now) -> Result<(), Refusal> {
        match order {
            Order::Approve => self.approve(now),
            Order::Deny => self.deny(now),
            Order::Pause => self.pause_by_operator(now),
            Order::Resume { acknowledge_failures } => self.resume(acknowledge_failures, now),
            Order::Promote { wave } => self.promote(wave, now),
            Order::Cancel => self.cancel(now),
            Order::RollBack { force } => self.roll_back(force, now),
            Order::RetryFailed { places } => self.retry_failed(places, now),
        }
    }

    fn approve(&mut self, now: Now) -> Result<(), Refusal> {
        match self.head.state {
            S::AwaitingApproval => {
                self.head.is_approved = true;
                self.enter(S::Scheduled, Reason::Unspecified, now);
                Ok(())
            }
            S::Denied => refuse("the deployment was denied: start a new one"),
            _ if self.head.is_approved && self.policy.require_approval => Ok(()),
            state => {
                refuse(format!("the deployment is {}: only one that is AWAITING_APPROVAL is approved", name(state)))
            }
        }
    }

    fn deny(&mut self, now: Now) -> Result<(), Refusal> {
        match self.head.state {
            S::AwaitingApproval => {
                self.enter(S::Denied, Reason::Unspecified, now);
                Ok(())
            }
            S::Denied => Ok(()),
            state => refuse(format!(
                "the deployment is {}: only one that is AWAITING_APPROVAL is denied; cancel it instead",
                name(state)
            )),
        }
    }

    fn pause_by_operator(&mut self, now: Now) -> Result<(), Refusal> {
        match (self.head.state, self.head.reason) {
            (S::Running, _) | (S::Paused, Reason::WindowClosed) => {
                self.pause(Reason::Operator, now);
                Ok(())
            }
            (S::Paused, _) => Ok(()),
            (state, _) => refuse(format!("the deployment is {}: only one that is RUNNING is paused", name(state))),
        }
    }

    fn resume(&mut self, is_acknowledged: bool, now: Now) -> Result<(), Refusal> {
        match self.head.state {
            S::Running => return Ok(()),
            S::Paused => {}
            state => return refuse(format!("the deployment is {}: only one that is PAUSED is resumed", name(state))),
        }
        // What was measured meanwhile was not taken: ask again.
        self.is_measuring = false;
        match self.head.reason {
            Reason::WindowClosed => {
                return refuse("no maintenance window is open: the deployment goes on by itself when one opens");
            }
            reason if is_by_failures(reason) => {
                if !is_acknowledged {
                    return refuse(format!("{} To go on in spite of that, set acknowledge_failures", self.message()));
                }
                self.head.begin_epoch();
                self.unbreach_wave(WaveState::Running);
            }
            Reason::AnalysisFailed | Reason::Inconclusive => {
                self.unbreach_wave(WaveState::Analyzing);
                let current = self.head.current;
                if let Some(wave) = self.head.waves.get_mut(current).filter(|_| is_acknowledged) {
                    wave.is_waived = true;
                }
            }
            Reason::Deadline => self.head.is_deadline_waived = true,
            _ => {}
        }
        self.enter(S::Running, Reason::Unspecified, now);
        Ok(())
    }

    fn unbreach_wave(&mut self, state: WaveState) {
        if self.head.wave().is_some_and(|wave| wave.state == WaveState::Breached) {
            self.enter_wave(self.head.current, state);
        }
    }

    fn promote(&mut self, wanted: Option<usize>, now: Now) -> Result<(), Refusal> {
        let was_promoted = wanted.and_then(|wave| self.head.waves.get(wave)).is_some_and(|wave| wave.is_promoted);
        if was_promoted {
            return Ok(());
        }
        let current = self.head.current;
        let waits = self.head.wave().is_some_and(|wave| wave.state == WaveState::AwaitingPromotion);
        if !waits || self.head.is_final() || self.head.state == S::RollingBack {
            return refuse(format!("no wave awaits promotion: the deployment is {}", name(self.head.state)));
        }
        if let Some(wave) = wanted.filter(|wave| *wave != current) {
            return refuse(format!("wave {wave} does not await promotion, wave {current} does"));
        }
        if self.head.state != S::Running {
            return refuse(format!("the deployment is {}: resume it, then promote", name(self.head.state)));
        }
        if let Some(wave) = self.head.waves.get_mut(current) {
            wave.is_promoted = true;
        }
        self.wave_done(now);
        Ok(())
    }

    fn cancel(&mut self, now: Now) -> Result<(), Refusal> {
        match self.head.state {
            S::Planning | S::AwaitingApproval | S::Scheduled | S::Running | S::Paused => {
                self.revoke_all(now);
                self.enter(S::Cancelled, Reason::Unspecified, now);
                Ok(())
            }
            S::Cancelled => Ok(()),
            S::RollingBack => refuse("the deployment goes back: a rollback is not cancelled"),
            state => refuse(format!("the deployment is over: {}", name(state))),
        }
    }

    fn roll_back(&mut self, force: bool, now: Now) -> Result<(), Refusal> {
        match self.head.state {
            S::Running | S::Paused | S::Cancelled | S::Succeeded | S::Failed => {
                // Nothing is measured any more.
                self.is_measuring = false;
                self.start_back(force, now);
                Ok(())
            }
            S::RollingBack => {
                // A repeat; one that forces may follow one that waits for a window.
                if let Some(rollback) = self.head.rollback.as_mut().filter(|rollback| force && !rollback.is_forced) {
                    rollback.is_forced = true;
                    self.effects.is_head_changed = true;
                }
                Ok(())
            }
            S::RolledBack | S::RollbackIncomplete => Ok(()),
            state => refuse(format!(
                "the deployment is {}: it has changed no device, so there is nothing to roll back; cancel it",
                name(state)
            )),
        }
    }

    fn retry_failed(&mut self, places: Option<Vec<Place>>, now: Now) -> Result<(), Refusal> {
        if !self.is_open() {
            return refuse(format!(
                "the deployment is {}: failed devices are retried while it is RUNNING or PAUSED; deploy to them again",
                name(self.head.state)
            ));
        }
        for place in self.failed_places(places.as_deref()) {
            self.write(place, |record| {
                record.enter(DeviceState::Queued, Why::RetryOrdered);
                record.tries = 0;
                record.since = now.watched;
            });
        }
        Ok(())
    }

    /// Those that [`Order::RetryFailed`] would queue again, of some places or of all, each once.
    pub fn failed_places(&self, among: Option<&[Place]>) -> Vec<Place> {
        let is_failed = |place: &Place| {
            let record = self.record(*place);
            is_failed(record.state()) && !record.has(flag::LEFT)
        };
        match among {
            Some(places) => {
                let mut places: Vec<Place> = places.iter().copied().filter(is_failed).collect();
                places.sort_unstable();
                places.dedup();
                places
            }
            // An operator's order is rare: a look over all devices takes a few milliseconds at a million.
            None => (0..self.records.len() as Place).filter(is_failed).collect(),
        }
    }
}

/// Whether a device in this state failed, and nothing more is done for it without an order.
fn is_failed(state: DeviceState) -> bool {
    use DeviceState as D;
    matches!(state, D::Failed | D::TimedOut | D::Rejected | D::Vanished | D::Reverted)
}

fn name(state: DeploymentState) -> &'static str {
    state.as_str_name()
}

fn refuse(sentence: impl Into<String>) -> Result<(), Refusal> {
    Err(Refusal::Order(sentence.into()))
}
