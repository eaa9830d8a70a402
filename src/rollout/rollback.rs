//! The way back: a rollout in reverse. Only devices that changed go back, the last wave first, each wave when the one
//! after it is through, under the same limits and a brake of its own.
use super::counts::Sample;
use super::head::RollbackHead;
use super::machine::Rollout;
use super::record::{flag, is_without_work, Why};
use super::{DeploymentState, DeviceState, Now, Place, Reason, Runs};

/// Devices that are looked over in one step: a step is one transaction, and must stay a short one.
const PLACES_A_STEP: u32 = 5_000;

impl Rollout {
    pub(super) fn start_back(&mut self, is_forced: bool, now: Now) {
        self.revoke_all(now);
        let working: Vec<Place> = self.index.active.iter().collect();
        let working_count = u32::try_from(working.len()).unwrap_or(u32::MAX);
        self.head.rollback = Some(RollbackHead {
            is_forced,
            started: now.into(),
            affected: self.head.counts.get(DeviceState::Succeeded).saturating_add(working_count),
            cursor: u32::try_from(self.records.len()).unwrap_or(u32::MAX),
            attempted: 0,
            is_braked: false,
            lane_since: None,
        });
        for wave in 0..self.head.waves.len() {
            self.skip_if_pending(wave);
        }
        self.enter(DeploymentState::RollingBack, Reason::Unspecified, now);
        for place in working {
            // Others finish first: a device that installs is not to be disturbed.
            let record = self.record(place);
            if record.state() == DeviceState::Confirming && record.has(flag::TARGET_SEEN) {
                self.queue_back(place, now);
            }
        }
        self.walk_back(now);
    }

    /// Looks the next devices over, the last one first.
    pub(super) fn walk_back(&mut self, now: Now) {
        let is_back = self.head.state == DeploymentState::RollingBack;
        let Some(rollback) =
            self.head.rollback.as_mut().filter(|rollback| is_back && !rollback.is_braked && rollback.cursor > 0)
        else {
            return;
        };
        let end = rollback.cursor;
        let start = end.saturating_sub(PLACES_A_STEP);
        rollback.cursor = start;
        self.effects.is_head_changed = true;
        for place in (start..end).rev() {
            let record = self.record(place);
            if record.state() == DeviceState::Succeeded && !record.has(flag::LEFT) {
                self.queue_back(place, now);
            } else {
                self.doubt_while_back(place);
            }
        }
    }

    pub(super) fn queue_back(&mut self, place: Place, now: Now) {
        self.write(place, |record| {
            record.enter(DeviceState::RollbackQueued, Why::Nothing);
            record.put(flag::DOUBTFUL, false);
            record.since = now.watched;
        });
    }

    /// One that was offered the update and did not succeed: it is asked what it runs.
    pub(super) fn doubt_while_back(&mut self, place: Place) {
        use DeviceState as D;
        let record = self.record(place);
        let is_settled = matches!(record.state(), D::RollbackQueued | D::RolledBack | D::RollbackFailed | D::Succeeded);
        let is_doubtful = self.head.state == DeploymentState::RollingBack
            && record.attempt > 0
            && !is_settled
            && !record.is_active()
            && !is_without_work(record.state())
            && !record.has(flag::LEFT);
        if is_doubtful {
            self.write(place, |record| record.put(flag::DOUBTFUL, true));
        }
    }

    /// Whether a device of a wave may be offered the way back now.
    pub(super) fn may_offer_back(&self, wave: usize) -> bool {
        self.back_wave() == Some(wave) && self.is_serving_back() && self.free_slots(self.policy.max_parallel) > 0
    }

    pub(super) fn is_serving_back(&self) -> bool {
        let Some(rollback) = &self.head.rollback else { return false };
        self.head.state == DeploymentState::RollingBack
            && !rollback.is_braked
            && (rollback.is_forced || self.window.is_open)
    }

    /// The last wave that has devices which can go back, or are on their way.
    pub(super) fn back_wave(&self) -> Option<usize> {
        let waves = self.index.back.iter().zip(&self.head.waves);
        waves
            .enumerate()
            .rev()
            .find(|(_, (ready, wave))| !ready.is_empty() || wave.counts.get(DeviceState::RollingBack) > 0)
            .map(|(wave, _)| wave)
    }

    pub(super) fn is_back(&mut self, place: Place, runs: Runs, now: Now) {
        let why = if runs == Runs::Other { Why::OtherVersion } else { Why::Nothing };
        self.write(place, |record| {
            if record.state() == DeviceState::RollingBack {
                record.put(flag::BACK_ATTEMPTED, true);
            }
            record.enter(DeviceState::RolledBack, why);
            record.heard = now.watched;
            record.since = now.watched;
        });
        self.done(place, now);
    }

    pub(super) fn fail_back(&mut self, place: Place, why: Why, now: Now) {
        self.write(place, |record| {
            record.put(flag::BACK_ATTEMPTED, true);
            record.enter(DeviceState::RollbackFailed, why);
            record.heard = now.watched;
            record.since = now.watched;
        });
        self.done(place, now);
    }

    /// Brakes, or ends, the way back.
    pub(super) fn settle_back(&mut self, now: Now) -> bool {
        let counts = &self.head.counts;
        let failed = counts.get(DeviceState::RollbackFailed);
        let waiting = counts.get(DeviceState::RollbackQueued);
        let Some(rollback) = &self.head.rollback else { return false };
        let sample = Sample { attempted: rollback.attempted, failed, vanished: 0 };
        if !rollback.is_braked && self.is_too_much(&sample, rollback.affected) {
            if let Some(rollback) = &mut self.head.rollback {
                rollback.is_braked = true;
            }
            self.effects.is_head_changed = true;
            self.revoke_all(now);
            return true;
        }
        if !self.index.active.is_empty() {
            return false;
        }
        let is_looking = rollback.cursor > 0 || !self.index.doubtful.is_empty();
        let is_ready = self.index.back.iter().any(|ready| !ready.is_empty());
        if !rollback.is_braked && (is_looking || is_ready) {
            return false;
        }
        if !rollback.is_braked && waiting > 0 {
            let since = rollback.lane_since.unwrap_or(now.watched);
            if rollback.lane_since.is_none() {
                if let Some(rollback) = &mut self.head.rollback {
                    rollback.lane_since = Some(since);
                }
                self.effects.is_head_changed = true;
            }
            if now.watched < since.saturating_add(self.limits.grace) {
                return false;
            }
        }
        let is_whole = failed == 0 && waiting == 0 && !rollback_is_braked(&self.head.rollback);
        let state = if is_whole { DeploymentState::RolledBack } else { DeploymentState::RollbackIncomplete };
        self.enter(state, Reason::Unspecified, now);
        true
    }
}

fn rollback_is_braked(rollback: &Option<RollbackHead>) -> bool {
    rollback.as_ref().is_some_and(|rollback| rollback.is_braked)
}
