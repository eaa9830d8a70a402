//! How waves follow each other: each runs until every device is done or held, soaks, is measured, is promoted. A wave
//! without any success proves nothing, and never passes by itself.
use fleetd_proto::v1::gate_result::Verdict;
use fleetd_proto::v1::rollout_policy::OnBreach;
use fleetd_proto::v1::GateResult;

use super::head::Moment;
use super::machine::Rollout;
use super::record::Record;
use super::{Action, DeploymentState, DeviceState, Now, Reason, WaveState};
use crate::clock::UnixMillis;

impl Rollout {
    /// Whether devices may still be updated: it runs, or stands still.
    pub(super) fn is_open(&self) -> bool {
        matches!(self.head.state, DeploymentState::Running | DeploymentState::Paused)
    }

    /// Whether offers go out, windows apart: a wave runs, or only the trailing lane is left. They do not while a wave
    /// is watched and measured.
    pub(super) fn is_serving(&self) -> bool {
        self.head.state == DeploymentState::Running && self.has_turn()
    }

    fn has_turn(&self) -> bool {
        self.head.wave().is_some_and(|wave| wave.state == WaveState::Running) || self.head.is_trailing()
    }

    pub(super) fn is_turn_of(&self, record: &Record) -> bool {
        self.is_serving() && record.wave() <= self.head.current
    }

    /// Whether held devices still may come back: until the grace at the end is over.
    pub(super) fn is_waited_for(&self, now: Now) -> bool {
        self.head.lane_since.is_none_or(|since| now.watched < since.saturating_add(self.limits.grace))
    }

    /// Whether an offer may go out now, to a device whose turn it is.
    pub(super) fn may_offer(&self, now: Now) -> bool {
        self.is_serving() && self.free_slots(self.slot_limit(now)) > 0 && self.window.is_open
    }

    /// `max_parallel`, or less while a wave begins: what serves artifacts sees a slope, not a wall.
    pub(super) fn slot_limit(&self, now: Now) -> u32 {
        let max = self.policy.max_parallel;
        let Some(wave) = self.head.wave().filter(|wave| wave.state == WaveState::Running) else { return max };
        if self.limits.spread == 0 {
            return max;
        }
        let elapsed = wave.spread_from.map_or(0, |from| now.watched.saturating_sub(from));
        if elapsed >= self.limits.spread {
            return max;
        }
        let share = (u128::from(max) * u128::from(elapsed)).div_ceil(u128::from(self.limits.spread));
        u32::try_from(share).unwrap_or(max).clamp(1, max.max(1))
    }

    /// Notes when a wave began.
    pub(super) fn note_offer(&mut self, wave: usize, now: Now) {
        let current = self.head.current;
        if let Some(running) = self.head.waves.get_mut(current).filter(|wave| wave.state == WaveState::Running) {
            running.spread_from.get_or_insert(now.watched);
        }
        if let Some(own) = self.head.waves.get_mut(wave) {
            own.started.get_or_insert(now.into());
        }
        self.effects.is_head_changed = true;
    }

    /// One step of the wave whose turn it is.
    pub(super) fn advance(&mut self, now: Now) -> bool {
        let Some(wave) = self.head.wave() else {
            // No waves, no devices.
            self.finish(now);
            return true;
        };
        let current = self.head.current;
        match wave.state {
            WaveState::Pending => self.enter_wave(current, WaveState::Running),
            WaveState::Running => return self.end_of_running(now),
            WaveState::Soaking => {
                if wave.soak_until.is_some_and(|until| now.watched < until.watched) {
                    return false;
                }
                if wave.gates.is_empty() {
                    self.passed(now);
                } else {
                    self.enter_wave(current, WaveState::Analyzing);
                }
            }
            WaveState::Analyzing if wave.is_waived => self.passed(now),
            WaveState::Analyzing => {
                if !self.is_measuring {
                    self.is_measuring = true;
                    self.effects.actions.push(Action::Measure { wave: current });
                }
                return false;
            }
            WaveState::Done if !self.head.is_last_wave() => {
                self.head.current += 1;
                self.effects.is_head_changed = true;
            }
            WaveState::Done => return self.end_of_lane(now),
            _ => return false,
        }
        true
    }

    fn end_of_running(&mut self, now: Now) -> bool {
        let Some(wave) = self.head.wave() else { return false };
        let waiting = wave.counts.get(DeviceState::Queued) + wave.counts.get(DeviceState::RetryWait);
        if waiting + wave.counts.active() + wave.held_for_window > 0 {
            return false;
        }
        let has_success = wave.counts.get(DeviceState::Succeeded) > 0;
        let (total_work, is_waived, last_done) = (wave.total_work, wave.is_waived, wave.last_done);
        let soak_millis = wave.soak_millis;
        if let Some(breach) = self.breach_at_end(now) {
            self.act_on(breach, now);
        } else if has_success {
            let until = last_done.unwrap_or(now.watched).saturating_add(soak_millis);
            let left = until.saturating_sub(now.watched);
            let wall_millis = now.wall.as_millis().saturating_add(i64::try_from(left).unwrap_or(i64::MAX));
            let wall = UnixMillis::from_millis_clamped(wall_millis);
            if let Some(wave) = self.head.waves.get_mut(self.head.current) {
                wave.soak_until = Some(Moment::from(Now { watched: until, wall }));
            }
            self.enter_wave(self.head.current, WaveState::Soaking);
        } else if total_work == 0 || is_waived || self.head.is_last_wave() {
            // There is nothing to watch or to measure.
            self.wave_done(now);
        } else {
            self.pause(Reason::Inconclusive, now);
        }
        true
    }

    /// What the gates of a wave measured.
    pub(super) fn measured(&mut self, wave: usize, results: Vec<GateResult>, now: Now) {
        let current = self.head.current;
        let is_awaited = wave == current
            && self.head.state == DeploymentState::Running
            && self.head.wave().is_some_and(|wave| wave.state == WaveState::Analyzing);
        let Some(head) = self.head.waves.get_mut(wave).filter(|_| is_awaited) else { return };
        self.is_measuring = false;
        let is_any = |verdict| results.iter().any(|result| result.verdict() == verdict);
        let is_complete = results.len() == head.gates.len();
        let is_passed = is_complete && results.iter().all(|result| result.verdict() == Verdict::Passed);
        let is_failed = is_any(Verdict::Failed);
        head.gate_results = results;
        self.effects.is_head_changed = true;
        if is_passed {
            self.passed(now);
        } else if !is_failed {
            self.pause(Reason::Inconclusive, now);
        } else {
            self.breach_wave();
            if self.policy.on_breach == OnBreach::RollBack {
                self.start_back(false, now);
            } else {
                self.pause(Reason::AnalysisFailed, now);
            }
        }
    }

    fn passed(&mut self, now: Now) {
        let waits = self.head.wave().is_some_and(|wave| !wave.auto_promote && !wave.is_promoted);
        if waits && !self.head.is_last_wave() {
            self.enter_wave(self.head.current, WaveState::AwaitingPromotion);
        } else {
            self.wave_done(now);
        }
    }

    pub(super) fn wave_done(&mut self, now: Now) {
        let current = self.head.current;
        self.enter_wave(current, WaveState::Done);
        if let Some(wave) = self.head.waves.get_mut(current) {
            wave.finished = Some(now.into());
        }
    }

    /// Every wave is done: held devices are waited for, for a while.
    fn end_of_lane(&mut self, now: Now) -> bool {
        if self.head.lane_since.is_none() {
            self.head.lane_since = Some(now.watched);
            self.effects.is_head_changed = true;
        }
        let counts = &self.head.counts;
        let waiting = counts.get(DeviceState::Queued) + counts.get(DeviceState::RetryWait) + counts.active();
        let is_over = waiting == 0 && (counts.get(DeviceState::Held) == 0 || !self.is_waited_for(now));
        if is_over {
            self.finish(now);
        }
        is_over
    }

    fn finish(&mut self, now: Now) {
        let counts = &self.head.counts;
        let is_nothing_done = counts.get(DeviceState::Succeeded) == 0 && counts.get(DeviceState::Held) > 0;
        let is_failed = is_nothing_done || self.is_above_limit(self.head.failed, self.head.attempted);
        let state = if is_failed { DeploymentState::Failed } else { DeploymentState::Succeeded };
        self.enter(state, Reason::Unspecified, now);
    }

    /// Stands still while no window is open and there is someone to offer the update to.
    pub(super) fn close_window(&mut self, now: Now) -> bool {
        let closes = self.has_turn() && self.has_candidates() && !self.window.is_open;
        if closes {
            self.pause(Reason::WindowClosed, now);
        }
        closes
    }

    pub(super) fn open_window(&mut self, now: Now) -> bool {
        let opens = !self.has_turn() || self.window.is_open;
        if opens {
            self.enter(DeploymentState::Running, Reason::Unspecified, now);
        }
        opens
    }

    /// Whether a device waits for nothing but a slot, or has an offer that would have to be taken back.
    fn has_candidates(&self) -> bool {
        self.index.queued.iter().take(self.head.current + 1).any(|queued| !queued.is_empty())
            || self.head.counts.get(DeviceState::Offered) > 0
    }

    pub(super) fn deadline(&mut self, now: Now) -> bool {
        let (Some(deadline), Some(started)) = (self.limits.deadline, self.head.started) else { return false };
        let is_late = !self.head.is_deadline_waived && now.watched > started.watched.saturating_add(deadline);
        if is_late {
            self.pause(Reason::Deadline, now);
        }
        is_late
    }
}
