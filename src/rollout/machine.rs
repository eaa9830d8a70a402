//! One deployment: what it knows, and how an event passes through it. The decisions are in the files beside this one:
//! `standings` and `reports` (devices), `waves`, `brake`, `rollback`, `orders` (operators), `wanted` (whom to ask).
use std::time::Duration;

use fleetd_proto::v1::MetricGate;

use super::counts::{Counts, Sample, WhyCounts};
use super::head::{Head, Moment, WaveHead};
use super::index::Index;
use super::record::{flag, Record};
use super::stats::{Durations, Pace};
use super::{
    window, Action, DeploymentState, DeviceState, Effects, Event, Now, Place, Policy, Reason, Refusal, WaveState,
};

/// How far the kept watched time may lag behind: after a crash, deadlines are late by at most this.
const KEEP_TIME_EVERY: u64 = 10_000;

/// A wave as it was planned.
#[derive(Clone, Debug, PartialEq)]
pub struct InitialWave {
    pub name: String,
    pub soak: Duration,
    pub gates: Vec<MetricGate>,
    pub auto_promote: bool,
}

/// A device as it was planned. Its index in the plan is its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InitialDevice {
    pub wave: u16,
    /// QUEUED, ALREADY_INSTALLED or INCOMPATIBLE.
    pub state: DeviceState,
}

/// One deployment. `apply` an event, keep what [`Rollout::take_effects`] says has changed, then do what it asks for.
#[derive(Clone, Debug)]
pub struct Rollout {
    pub(super) policy: Policy,
    pub(super) limits: Limits,
    pub(super) head: Head,
    pub(super) records: Vec<Record>,
    /// Made of the records; rebuilt when it is loaded.
    pub(super) index: Index,
    pub(super) effects: Effects,
    /// The measurement of the wave was asked for, and has not come. Forgotten in a crash: it is asked for again.
    pub(super) is_measuring: bool,
    pub(super) window: Window,
}

/// Whether a maintenance window is open, worked out once for each second.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    pub is_per_device: bool,
    second: Option<i64>,
    pub is_open: bool,
}

impl Rollout {
    /// A deployment that begins: PLANNING until the first [`Event::Tick`]. Devices of a wave that is not there are in
    /// the last one.
    pub fn new(policy: Policy, waves: Vec<InitialWave>, devices: Vec<InitialDevice>, now: Now) -> Self {
        let head = Head {
            state: DeploymentState::Planning,
            reason: Reason::Unspecified,
            watched: now.watched,
            created: Moment::from(now),
            started: None,
            finished: None,
            waves: waves.into_iter().map(WaveHead::from).collect(),
            current: 0,
            counts: Counts::default(),
            total_work: 0,
            attempted: 0,
            failed: 0,
            failures: WhyCounts::default(),
            epoch: 1,
            sample: Sample::default(),
            max_failure_percentage: policy.max_failure_percentage,
            breach: None,
            lane_since: None,
            rollback: None,
            is_approved: false,
            is_deadline_waived: false,
            durations: Durations::default(),
            pace: Pace::default(),
        };
        let records = devices.into_iter().map(|device| Record::new(device.wave, device.state)).collect();
        let mut rollout = Self::of(policy, head, records);
        let Self { head, records, .. } = &mut rollout;
        for record in records.iter() {
            head.count_new(record);
        }
        rollout
    }

    /// A deployment as it was kept: it goes on as the one that was kept would have. Its offers stand
    /// ([`Rollout::open_offers`]).
    ///
    /// A large step is kept in pieces, the head with the last one. So the records may be ahead of the head, by what was
    /// decided and never acted on.
    pub fn load(policy: Policy, head: Head, mut records: Vec<Record>) -> Self {
        if head.rollback.is_none() {
            // Nobody was told of a rollback.
            records.iter_mut().for_each(Record::undo_way_back);
        }
        let mut rollout = Self::of(policy, head, records);
        rollout.head.recount(&rollout.records);
        rollout
    }

    fn of(policy: Policy, head: Head, mut records: Vec<Record>) -> Self {
        let last_wave = u16::try_from(head.waves.len().saturating_sub(1)).unwrap_or(u16::MAX);
        for record in &mut records {
            record.wave = record.wave.min(last_wave);
        }
        let limits = Limits::from(&policy);
        let index = Index::build(&records, head.waves.len(), &limits);
        let window = Window { is_per_device: window::is_per_device(&policy.windows), second: None, is_open: true };
        Self { policy, limits, head, records, index, effects: Effects::default(), is_measuring: false, window }
    }

    /// Takes an event in. A refusal changed nothing.
    ///
    /// # Errors
    /// [`Refusal::Report`] for a device's report that does not count, [`Refusal::Order`] for an operator's order that
    /// does not fit. No other event is refused, but [`Event::Joined`] after the end.
    pub fn apply(&mut self, event: Event, now: Now) -> Result<(), Refusal> {
        let now = self.see(now);
        match event {
            Event::Tick => self.tick(now),
            Event::Standing { place, standing } => self.stand(place, standing, now),
            Event::Report { place, attempt, state } => self.report(place, attempt, state, now)?,
            Event::Order(order) => self.order(order, now)?,
            Event::Measured { wave, results } => self.measured(wave, results, now),
            Event::Joined { count } => self.join(count)?,
            Event::Removed { place } => self.leave(place, DeviceState::Removed, now),
            Event::Superseded { place } => self.give_up(place, now)?,
        }
        self.settle(now);
        if self.effects.is_head_changed {
            self.head.watched = now.watched;
        }
        Ok(())
    }

    /// What the events since the last call came to. What changed must be durable before its actions are done.
    pub fn take_effects(&mut self) -> Effects {
        let effects = std::mem::take(&mut self.effects);
        for place in &effects.changed {
            if let Some(record) = self.records.get_mut(*place as usize) {
                record.put(flag::DIRTY, false);
            }
        }
        effects
    }

    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    pub fn head(&self) -> &Head {
        &self.head
    }

    pub fn waves(&self) -> &[WaveHead] {
        &self.head.waves
    }

    /// A device; a place that is not there is one in no state.
    pub fn record(&self, place: Place) -> Record {
        let mut record = self.records.get(place as usize).copied().unwrap_or(Record::new(0, DeviceState::Unspecified));
        record.put(flag::DIRTY, false);
        record
    }

    pub fn place_count(&self) -> usize {
        self.records.len()
    }

    /// Whether it is over: its state is final and no device works any more.
    pub fn is_final(&self) -> bool {
        self.head.is_final() && self.index.active.is_empty()
    }

    /// Devices that hold a slot of `max_parallel`, in order.
    pub fn active_places(&self) -> Vec<Place> {
        self.index.active.iter().collect()
    }

    /// The offers that stand, and that no device accepted: to be put in their slots again after a restart.
    pub fn open_offers(&self) -> Vec<Action> {
        let offered = self.index.active.iter().filter(|place| self.record(*place).is_offered());
        offered.map(|place| self.offer_action(place)).collect()
    }

    /// Median time of a device from accepting to success, in milliseconds of watched time.
    pub fn median_duration(&self) -> Option<u64> {
        self.head.durations.median()
    }

    /// Devices that were done in the last ten minutes, for each minute.
    pub fn devices_per_minute(&self, now: Now) -> f64 {
        self.head.devices_per_minute(now.watched)
    }

    /// Takes a moment in. Watched time never goes back, whatever the caller's clock does.
    pub(super) fn see(&mut self, now: Now) -> Now {
        let second = now.wall.as_millis().div_euclid(1_000);
        if self.window.second != Some(second) {
            self.window.second = Some(second);
            self.window.is_open = self.window.is_per_device || window::is_open(&self.policy.windows, now.wall);
        }
        Now { watched: now.watched.max(self.head.watched), ..now }
    }

    fn tick(&mut self, now: Now) {
        if self.head.state == DeploymentState::Planning {
            self.head.is_approved = !self.policy.require_approval;
            let next =
                if self.head.is_approved { DeploymentState::Scheduled } else { DeploymentState::AwaitingApproval };
            self.enter(next, Reason::Unspecified, now);
        }
        while let Some(place) = self.index.deadlines.pop_due(now.watched) {
            self.deadline_passed(place, now);
        }
        self.walk_back(now);
        if now.watched >= self.head.watched.saturating_add(KEEP_TIME_EVERY) && !self.head.is_final() {
            self.effects.is_head_changed = true;
        }
    }

    /// Goes on until nothing more follows from what is known.
    fn settle(&mut self, now: Now) {
        // Each step moves a state that never comes back within one event; a wave takes at most five steps.
        for _ in 0..self.head.waves.len() * 5 + 8 {
            if !self.settle_once(now) {
                break;
            }
        }
    }

    fn settle_once(&mut self, now: Now) -> bool {
        use DeploymentState as S;
        if self.brake(now) || self.all_superseded(now) {
            return true;
        }
        match self.head.state {
            S::Scheduled => {
                let is_due = self.policy.start_at.is_none_or(|start| start.as_millis() <= now.wall.as_millis());
                if is_due {
                    self.head.started = Some(now.into());
                    self.enter(S::Running, Reason::Unspecified, now);
                }
                is_due
            }
            S::Running => self.deadline(now) || self.advance(now) || self.close_window(now),
            S::Paused if self.head.reason == Reason::WindowClosed => {
                self.deadline(now) || self.advance(now) || self.open_window(now)
            }
            S::RollingBack => self.settle_back(now),
            _ => false,
        }
    }

    /// Moves the deployment to a state, and tells.
    pub(super) fn enter(&mut self, state: DeploymentState, reason: Reason, now: Now) {
        let from = self.head.state;
        if from == state && self.head.reason == reason {
            return;
        }
        self.head.state = state;
        self.head.reason = reason;
        self.effects.is_head_changed = true;
        self.effects.actions.push(Action::TellDeployment { from, to: state });
        if super::is_final(state) {
            self.head.finished = Some(now.into());
            for wave in 0..self.head.waves.len() {
                self.skip_if_pending(wave);
            }
        } else {
            self.head.finished = None;
        }
    }

    /// Stands still: no offers, and those that nobody accepted are taken back.
    pub(super) fn pause(&mut self, reason: Reason, now: Now) {
        self.enter(DeploymentState::Paused, reason, now);
        self.revoke_all(now);
    }

    pub(super) fn skip_if_pending(&mut self, wave: usize) {
        if self.head.waves.get(wave).is_some_and(|wave| wave.state == WaveState::Pending) {
            self.enter_wave(wave, WaveState::Skipped);
        }
    }

    pub(super) fn enter_wave(&mut self, wave: usize, state: WaveState) {
        let Some(head) = self.head.waves.get_mut(wave) else { return };
        let from = std::mem::replace(&mut head.state, state);
        if from != state {
            self.effects.is_head_changed = true;
            self.effects.actions.push(Action::TellWave { wave, from, to: state });
        }
    }

    /// Another deployment took every device that could still have been updated here.
    fn all_superseded(&mut self, now: Now) -> bool {
        let counts = &self.head.counts;
        let superseded = counts.get(DeviceState::Superseded);
        let gone = superseded + counts.get(DeviceState::Removed) + counts.without_work();
        let is_all = superseded > 0 && gone as usize == self.records.len();
        if !is_all || self.head.is_final() || self.head.state == DeploymentState::RollingBack {
            return false;
        }
        self.enter(DeploymentState::Superseded, Reason::Unspecified, now);
        true
    }
}

impl From<InitialWave> for WaveHead {
    fn from(wave: InitialWave) -> Self {
        Self {
            name: wave.name,
            state: WaveState::Pending,
            soak_millis: millis(wave.soak),
            gates: wave.gates,
            auto_promote: wave.auto_promote,
            total: 0,
            total_work: 0,
            counts: Counts::default(),
            held_for_window: 0,
            sample: Sample::default(),
            started: None,
            spread_from: None,
            last_done: None,
            soak_until: None,
            finished: None,
            gate_results: Vec::new(),
            is_waived: false,
            is_promoted: false,
        }
    }
}

/// The spans of the policy in milliseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub accept: u64,
    pub finish: u64,
    pub confirm: u64,
    pub vanish: u64,
    pub retry: u64,
    pub max_retry: u64,
    pub spread: u64,
    pub grace: u64,
    pub deadline: Option<u64>,
}

impl From<&Policy> for Limits {
    fn from(policy: &Policy) -> Self {
        Self {
            accept: millis(policy.accept_timeout),
            finish: millis(policy.finish_timeout),
            confirm: millis(policy.confirm_duration),
            vanish: millis(policy.vanish_timeout),
            retry: millis(policy.retry_backoff),
            max_retry: millis(policy.max_retry_backoff),
            spread: millis(policy.start_spread),
            grace: millis(policy.offline_grace),
            deadline: policy.deadline.map(millis),
        }
    }
}

pub(super) fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
