//! The brake: when too many of the devices that were attempted failed. It looks after every event, at the wave whose
//! turn it is and at the whole deployment, each once enough devices were attempted; a wave with fewer devices than that
//! brakes at its first failure, and so does one that ends with fewer attempted.
use super::counts::Sample;
use super::head::Breach;
use super::machine::Rollout;
use super::{DeploymentState, Now, Reason, WaveState};
use fleetd_proto::v1::rollout_policy::OnBreach;

impl Rollout {
    /// Acts when there is reason to. A rollback has a brake of its own.
    pub(super) fn brake(&mut self, now: Now) -> bool {
        let is_watching = match self.head.state {
            DeploymentState::Running => true,
            // Devices that had accepted go on while it stands still, and may make it worse.
            DeploymentState::Paused => !is_by_failures(self.head.reason),
            _ => false,
        };
        let breach = if is_watching { self.breach(now) } else { None };
        match breach {
            Some(breach) => {
                self.act_on(breach, now);
                true
            }
            None => false,
        }
    }

    fn breach(&self, now: Now) -> Option<Breach> {
        let at = now.into();
        let wave = self.head.wave()?;
        if self.is_too_much(&wave.sample, wave.total_work) {
            return Some(Breach { wave: Some(self.head.current), sample: wave.sample, at });
        }
        let is_over_all = self.is_share_too_high(&self.head.sample);
        is_over_all.then_some(Breach { wave: None, sample: self.head.sample, at })
    }

    /// A wave that is over, of which fewer devices could be attempted than the brake asks for (the others were not
    /// there): any failure is too much.
    pub(super) fn breach_at_end(&self, now: Now) -> Option<Breach> {
        let wave = self.head.wave()?;
        let is_small = wave.sample.attempted < self.policy.min_attempted;
        let is_failed = is_small && wave.sample.failed > 0 && self.may_brake();
        is_failed.then(|| Breach { wave: Some(self.head.current), sample: wave.sample, at: now.into() })
    }

    /// Whether a group of devices of which `total` have work failed too often.
    pub(super) fn is_too_much(&self, sample: &Sample, total: u32) -> bool {
        if total < self.policy.min_attempted {
            sample.failed > 0 && self.may_brake()
        } else {
            self.is_share_too_high(sample)
        }
    }

    fn is_share_too_high(&self, sample: &Sample) -> bool {
        sample.attempted >= self.policy.min_attempted && self.is_above_limit(sample.failed, sample.attempted)
    }

    pub(super) fn is_above_limit(&self, failed: u32, attempted: u32) -> bool {
        self.may_brake() && f64::from(failed) * 100.0 > self.policy.max_failure_percentage * f64::from(attempted)
    }

    /// A limit of 100 per cent is none.
    fn may_brake(&self) -> bool {
        self.policy.max_failure_percentage < 100.0
    }

    pub(super) fn act_on(&mut self, breach: Breach, now: Now) {
        let is_vanished = breach.sample.vanished.saturating_mul(2) > breach.sample.failed;
        self.head.breach = Some(breach);
        self.breach_wave();
        if self.policy.on_breach == OnBreach::RollBack {
            self.start_back(false, now);
        } else {
            self.pause(if is_vanished { Reason::Vanished } else { Reason::FailureThreshold }, now);
        }
    }

    /// Stops the wave whose turn it is, unless it is done.
    pub(super) fn breach_wave(&mut self) {
        use WaveState as W;
        self.is_measuring = false;
        let state = self.head.wave().map(|wave| wave.state);
        if matches!(state, Some(W::Running | W::Soaking | W::Analyzing | W::AwaitingPromotion)) {
            self.enter_wave(self.head.current, W::Breached);
        }
    }
}

/// Whether the brake made it stand still.
pub(super) fn is_by_failures(reason: Reason) -> bool {
    matches!(reason, Reason::FailureThreshold | Reason::Vanished)
}
