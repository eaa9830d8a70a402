//! A fleet of devices that obey, fail, lie, fall silent or revert, and a coordinator that keeps, then acts; with a
//! history of its own, from which the promises are checked without asking the machine.
use std::collections::{BTreeMap, BTreeSet};

use super::*;

/// How a device takes an update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nature {
    Good,
    /// Fails its first attempt only.
    FailsOnce,
    Fails,
    /// Never comes back from the restart.
    Brick,
    /// Never gets past downloading.
    Slow,
    /// Says that it succeeded, and runs the version before.
    Liar,
    Rejects,
    /// Reads its offers and does nothing.
    Ignores,
    /// Installs without ever saying so.
    Mute,
    /// Runs something else in the end.
    Stranger,
    /// Its reports are lost until it installs.
    Mumbles,
}

#[derive(Clone, Debug)]
pub struct Device {
    pub nature: Nature,
    pub is_online: bool,
    pub is_in_maintenance: bool,
    pub is_taken: bool,
    pub is_window_open: bool,
    is_bricked: bool,
    runs: Runs,
    /// What its last heartbeat showed.
    shown: Runs,
    /// In watched time; none since the server started.
    last_beat: Option<u64>,
    /// What the reply to its next heartbeat carries.
    slot: Option<(u32, bool)>,
    job: Option<Job>,
}

#[derive(Clone, Copy, Debug)]
struct Job {
    attempt: u32,
    is_rollback: bool,
    stage: Said,
}

impl Device {
    pub fn new(nature: Nature, is_online: bool) -> Self {
        Self {
            nature,
            is_online,
            is_in_maintenance: false,
            is_taken: false,
            is_window_open: true,
            is_bricked: false,
            runs: Runs::Before,
            shown: Runs::Before,
            last_beat: None,
            slot: None,
            job: None,
        }
    }
}

/// What happened, as an onlooker writes it down.
#[derive(Clone, Debug, Default)]
struct History {
    last_attempt: BTreeMap<Place, u32>,
    open_offer: BTreeMap<Place, u32>,
    accepted: BTreeSet<(Place, u32)>,
    wave_of: BTreeMap<Place, usize>,
    /// Since failures were last acknowledged.
    attempted: BTreeSet<Place>,
    failed: BTreeMap<Place, DeviceState>,
    is_braked: bool,
}

pub struct Sim {
    pub rollout: Rollout,
    pub now: Now,
    pub devices: Vec<Device>,
    /// Devices with work in each wave, joiners included.
    work: Vec<usize>,
    history: History,
    pub measure: Option<usize>,
    pub verdict: Verdict,
}

/// A device that was heard within this counts as online.
const LATE: u64 = 12 * SECOND;

impl Sim {
    pub fn new(policy: Policy, waves: Vec<InitialWave>, plan: Vec<InitialDevice>, devices: Vec<Device>) -> Self {
        let now = Now { watched: 0, wall: UnixMillis::from_millis_clamped(NOON) };
        let mut work = vec![0; waves.len()];
        let mut history = History::default();
        for (place, device) in (0..).zip(&plan) {
            history.wave_of.insert(place, usize::from(device.wave));
            work[usize::from(device.wave)] += usize::from(device.state == DeviceState::Queued);
        }
        let rollout = Rollout::new(policy, waves, plan, now);
        Self { rollout, now, devices, work, history, measure: None, verdict: Verdict::Passed }
    }

    pub fn standing(&self, place: Place) -> Standing {
        let device = &self.devices[place as usize];
        let silent_for = device.last_beat.map(|at| self.now.watched - at);
        let is_here = silent_for.is_some_and(|silent| silent <= LATE);
        let reachability = match (device.is_in_maintenance, is_here) {
            (true, _) => Reachability::Maintenance,
            (false, true) => Reachability::Online,
            (false, false) => Reachability::Offline,
        };
        let (is_window_open, is_taken) = (device.is_window_open, device.is_taken);
        Standing { reachability, silent_for, runs: device.shown, is_window_open, is_taken }
    }

    /// An event, what is kept of it, and what is done. All promises hold after it.
    pub fn apply(&mut self, event: Event) -> Result<(), Refusal> {
        let acknowledges = event == Event::Order(Order::Resume { acknowledge_failures: true });
        let was = (self.rollout.head().state, self.rollout.head().reason);
        let result = self.rollout.apply(event.clone(), self.now);
        let is_by_failures = matches!(was.1, Reason::FailureThreshold | Reason::Vanished);
        if result.is_ok() && acknowledges && was.0 == DeploymentState::Paused && is_by_failures {
            self.history.attempted.clear();
            self.history.failed.clear();
            self.history.is_braked = false;
        }
        if let (Event::Report { place, attempt, .. }, Ok(())) = (&event, &result) {
            assert_eq!(self.history.last_attempt.get(place), Some(attempt), "only the last offer's number counts");
            // Whoever reports has read its offer.
            let device = &mut self.devices[*place as usize];
            device.slot = device.slot.filter(|(offered, _)| offered != attempt);
        }
        let effects = self.rollout.take_effects();
        let mut seen = BTreeSet::new();
        assert!(effects.changed.iter().all(|place| seen.insert(*place)), "each changed device once");
        if result.is_err() {
            assert_eq!(effects, Effects::default(), "a refusal changes nothing: {event:?}");
        }
        for action in effects.actions {
            self.act(action);
        }
        self.check(&event);
        result
    }

    fn act(&mut self, action: Action) {
        let history = &mut self.history;
        match action {
            Action::Offer { place, attempt, accept_before, finish_before, is_rollback } => {
                let last = history.last_attempt.insert(place, attempt).unwrap_or(0);
                assert!(attempt > last, "attempts grow: {attempt} after {last}");
                assert!(!history.accepted.contains(&(place, attempt)), "no attempt is offered twice");
                assert!(is_rollback || !history.is_braked, "nothing is offered after the brake");
                assert_eq!(history.open_offer.insert(place, attempt), None, "one offer at a time");
                self.check_turn(place, is_rollback);
                assert!(accept_before > self.now.watched && finish_before > accept_before);
                self.devices[place as usize].slot = Some((attempt, is_rollback));
            }
            Action::Revoke { place, attempt } => {
                assert_eq!(history.last_attempt.get(&place), Some(&attempt), "only offers are taken back");
                history.open_offer.remove(&place);
                let device = &mut self.devices[place as usize];
                device.slot = device.slot.filter(|(offered, _)| *offered != attempt);
            }
            Action::Measure { wave } => self.measure = Some(wave),
            Action::TellDevice { place, from, to, wave, attempt } => {
                use DeviceState as D;
                assert_ne!(from, to);
                assert_eq!(history.wave_of.get(&place), Some(&wave));
                if from == D::Offered && !matches!(to, D::Queued | D::Held | D::Removed | D::Superseded) {
                    // It accepted, or ended without.
                    assert_eq!(history.open_offer.remove(&place), Some(attempt));
                    if to != D::TimedOut {
                        history.accepted.insert((place, attempt));
                    }
                    history.attempted.insert(place);
                }
                if from == D::RollingBack {
                    history.open_offer.remove(&place);
                }
                match to {
                    D::Failed | D::TimedOut | D::Rejected | D::Vanished | D::Reverted => {
                        history.attempted.insert(place);
                        history.failed.insert(place, to);
                    }
                    D::Succeeded => {
                        history.attempted.insert(place);
                        history.failed.remove(&place);
                    }
                    D::Queued | D::Held | D::RollbackQueued | D::Removed | D::Superseded => {
                        history.open_offer.remove(&place);
                    }
                    _ => {}
                }
            }
            Action::TellDeployment { from: _, to } => {
                if matches!(to, DeploymentState::RollingBack) {
                    history.is_braked = true;
                }
            }
            Action::TellWave { wave, from, to } => {
                assert_ne!(from, to);
                if from == WaveState::Running && matches!(to, WaveState::Soaking | WaveState::Done) {
                    self.check_end_of_running(wave, to);
                }
            }
        }
    }

    /// Offers go to waves whose turn it is; on the way back, to the last wave that has someone to go.
    fn check_turn(&self, place: Place, is_rollback: bool) {
        let head = self.rollout.head();
        let wave = self.rollout.record(place).wave();
        if !is_rollback {
            let state = head.waves[head.current].state;
            assert!(wave <= head.current && (state == WaveState::Running || head.is_trailing()), "its turn has come");
            return;
        }
        assert!(head.rollback.as_ref().is_some_and(|rollback| !rollback.is_braked), "the way back has a brake too");
        for other in 0..self.rollout.place_count() as Place {
            let other = self.rollout.record(other);
            let is_ready = other.state() == DeviceState::RollbackQueued && other.reason_code().is_empty();
            let goes = is_ready || other.state() == DeviceState::RollingBack;
            assert!(!goes || other.wave() <= wave, "later waves go back first");
        }
    }

    /// What a wave must have shown to pass.
    fn check_end_of_running(&self, wave: usize, to: WaveState) {
        let head = &self.rollout.head().waves[wave];
        let is_last = wave + 1 == self.work.len();
        let has_success = head.counts.get(DeviceState::Succeeded) > 0;
        if to == WaveState::Soaking {
            assert!(has_success, "no evidence never passes");
        } else {
            assert!(has_success || is_last || head.is_waived || self.work[wave] == 0, "no evidence never passes");
        }
        assert!(!self.is_breached(wave, true), "a wave that is too small a sample passes without a failure only");
    }

    /// The documented rule, counted over from the history: the wave whose turn it is, then the whole.
    fn is_breached(&self, current: usize, at_end: bool) -> bool {
        let policy = self.rollout.policy();
        let judge = |total: usize, attempted: usize, failed: usize| {
            let limit = policy.max_failure_percentage;
            let min = policy.min_attempted as usize;
            if limit >= 100.0 {
                false
            } else if total < min || (at_end && attempted < min) {
                failed > 0
            } else {
                attempted >= min && failed as f64 / attempted as f64 > limit / 100.0
            }
        };
        let of_wave = |place: &&Place| self.history.wave_of.get(place) == Some(&current);
        let attempted = self.history.attempted.iter().filter(of_wave).count();
        let failed = self.history.failed.keys().filter(of_wave).count();
        let total = self.work.get(current).copied().unwrap_or(0);
        let is_whole = judge(usize::MAX, self.history.attempted.len(), self.history.failed.len());
        judge(total, attempted, failed) || (is_whole && self.history.attempted.len() >= policy.min_attempted as usize)
    }

    fn check(&mut self, event: &Event) {
        use DeploymentState as S;
        let head = self.rollout.head();
        let (state, reason) = (head.state, head.reason);
        let records: Vec<Record> =
            (0..self.rollout.place_count() as Place).map(|place| self.rollout.record(place)).collect();

        let active = records.iter().filter(|record| record.is_active()).count();
        assert!(active <= self.rollout.policy().max_parallel as usize, "max_parallel holds");
        assert_eq!(active, self.rollout.active_places().len());
        assert_eq!(active, head.active() as usize);

        let stands_by_failures = state == S::Paused && matches!(reason, Reason::FailureThreshold | Reason::Vanished);
        if matches!(state, S::Running | S::Paused) && !stands_by_failures {
            assert!(
                !self.is_breached(head.current, false),
                "the brake is not late: {event:?} {:?} {head:?}",
                self.history
            );
        }
        if stands_by_failures && !self.history.is_braked {
            assert!(self.is_breached(head.current, true), "the brake has a reason: {event:?} {head:?}");
            let failed = head.breach.as_ref().unwrap().sample;
            assert_eq!(reason == Reason::Vanished, failed.vanished * 2 > failed.failed);
            self.history.is_braked = true;
        }

        for (place, record) in (0..).zip(&records) {
            if record.is_offered() {
                let stands = matches!(state, S::Running | S::RollingBack);
                assert!(stands, "no offer stands while nothing may be offered: {place} {record:?} {state:?}");
                assert_eq!(self.history.open_offer.get(&place), Some(&record.attempt()));
            }
            let device = &self.devices[place as usize];
            match device.slot {
                Some((attempt, _)) => {
                    assert!(
                        record.is_offered() && record.attempt() == attempt,
                        "what is void is taken back: {record:?}"
                    );
                }
                None if record.is_offered() => assert!(matches!(device.nature, Nature::Mute | Nature::Mumbles)),
                None => {}
            }
            if record.is_active() {
                assert!(self.rollout.has_timer(place), "no device is forgotten: {place} {record:?}");
            }
        }
        self.rollout.assert_counts_are_exact();
        assert!(!self.rollout.message().is_empty());
        let (code, sentence) = self.rollout.explain(self.now.watched as Place % records.len().max(1) as Place);
        assert!(!code.is_empty() && !sentence.is_empty(), "every device has a reason");
    }

    /// A step that is crashed at and gone through again comes to the same.
    pub fn apply_twice(&mut self, event: Event) -> Result<(), Refusal> {
        let mut other = reloaded(&self.rollout);
        let mut same = self.rollout.clone();
        let results = (other.apply(event.clone(), self.now), same.apply(event.clone(), self.now));
        assert_eq!(results.0, results.1);
        let (other_effects, mut effects) = (other.take_effects(), same.take_effects());
        // A measurement is asked for again after a crash: nobody knows whether the first asking was heard.
        let is_not_asking = |action: &Action| !matches!(action, Action::Measure { .. });
        effects.actions.retain(is_not_asking);
        let other_actions: Vec<Action> = other_effects.actions.into_iter().filter(is_not_asking).collect();
        assert_eq!(other_actions, effects.actions, "{event:?}");
        assert_eq!(other_effects.changed, effects.changed);
        assert_eq!(other_effects.is_head_changed, effects.is_head_changed);
        assert_eq!(other.head(), same.head());
        assert_eq!(other.sets(), same.sets());
        self.apply(event)
    }

    pub fn tick(&mut self) {
        self.apply(Event::Tick).unwrap();
    }

    pub fn pass(&mut self, millis: u64) {
        self.now.watched += millis;
        self.now.wall = UnixMillis::from_millis_clamped(self.now.wall.as_millis() + millis as i64);
        self.tick();
    }

    /// The server dies, and comes back: slots and moments of heartbeats are lost, and the time since the last save.
    pub fn crash(&mut self) {
        self.rollout = reloaded(&self.rollout);
        self.now.watched = self.rollout.head().watched;
        self.measure = None;
        for device in &mut self.devices {
            device.slot = None;
            device.last_beat = None;
        }
        for offer in self.rollout.open_offers() {
            if let Action::Offer { place, attempt, is_rollback, .. } = offer {
                assert_eq!(self.history.open_offer.get(&place), Some(&attempt));
                self.devices[place as usize].slot = Some((attempt, is_rollback));
            }
        }
        self.tick();
    }

    /// Looks at who is wanted.
    pub fn look(&mut self, limit: usize) {
        let wanted = self.rollout.wanted(self.now, limit);
        assert!(wanted.len() <= limit);
        for place in wanted {
            let standing = self.standing(place);
            self.apply(Event::Standing { place, standing }).unwrap();
        }
    }

    /// A device reports, and works on.
    pub fn beat(&mut self, place: Place) {
        let now = self.now.watched;
        let device = &mut self.devices[place as usize];
        if !device.is_online || device.is_bricked {
            return;
        }
        device.last_beat = Some(now);
        let has_moved = device.shown != device.runs;
        device.shown = device.runs;
        if has_moved {
            let standing = self.standing(place);
            self.apply(Event::Standing { place, standing }).unwrap();
        }
        let device = &mut self.devices[place as usize];
        if let Some((attempt, is_rollback)) = device.slot {
            match device.nature {
                Nature::Ignores => {}
                Nature::Rejects if !is_rollback => {
                    device.slot = None;
                    let _ = self.say(place, attempt, Said::Rejected);
                }
                Nature::Mute | Nature::Mumbles => {
                    device.slot = None;
                    device.job = Some(Job { attempt, is_rollback, stage: Said::Accepted });
                }
                _ => {
                    device.slot = None;
                    if self.say(place, attempt, Said::Accepted).is_ok() {
                        self.devices[place as usize].job = Some(Job { attempt, is_rollback, stage: Said::Accepted });
                        assert!(self.is_active_or_over(place), "who accepts is being watched");
                    }
                }
            }
        } else if let Some(job) = device.job {
            self.work(place, job);
        }
    }

    fn is_active_or_over(&self, place: Place) -> bool {
        self.rollout.record(place).is_active()
    }

    pub fn say(&mut self, place: Place, attempt: u32, said: Said) -> Result<(), Refusal> {
        self.apply(Event::Report { place, attempt, state: said })
    }

    /// One stage further.
    fn work(&mut self, place: Place, job: Job) {
        let Job { attempt, is_rollback, stage } = job;
        let device = &mut self.devices[place as usize];
        let nature = device.nature;
        let next = match stage {
            Said::Accepted => Said::Downloading,
            Said::Downloading if nature == Nature::Slow => return,
            Said::Downloading => Said::Downloaded,
            Said::Downloaded => Said::Installing,
            Said::Installing => match nature {
                Nature::Fails => Said::Failed,
                Nature::FailsOnce if attempt == 1 => Said::Failed,
                _ => Said::Rebooting,
            },
            Said::Rebooting if nature == Nature::Brick => {
                device.is_bricked = true;
                return;
            }
            _ => {
                device.runs = match (is_rollback, nature) {
                    (_, Nature::Liar) => device.runs,
                    (true, _) => Runs::Before,
                    (false, Nature::Stranger) => Runs::Other,
                    (false, _) => Runs::Target,
                };
                Said::Succeeded
            }
        };
        device.job = Some(Job { stage: next, ..job }).filter(|_| !matches!(next, Said::Failed | Said::Succeeded));
        let is_lost = nature == Nature::Mumbles && (next as i32) < Said::Installing as i32;
        if nature != Nature::Mute
            && !is_lost
            && self.say(place, attempt, next).is_err()
            && (next as i32) < Said::Installing as i32
        {
            // Told to stop before it installs, it does.
            self.devices[place as usize].job = None;
        }
    }

    /// It goes back by itself.
    pub fn revert(&mut self, place: Place) {
        let device = &mut self.devices[place as usize];
        if device.runs == Runs::Target && device.job.is_none() {
            device.runs = Runs::Before;
        }
    }

    pub fn answer_measure(&mut self) {
        if let Some(wave) = self.measure.take() {
            let results = verdict(self.verdict);
            self.apply(Event::Measured { wave, results }).unwrap();
        }
    }

    pub fn join(&mut self, device: Device) {
        let place = self.rollout.place_count() as Place;
        let Some(last) = self.work.len().checked_sub(1) else { return };
        // The onlooker knows before the machine tells.
        self.work[last] += 1;
        self.history.wave_of.insert(place, last);
        self.devices.push(device);
        if self.apply(Event::Joined { count: 1 }).is_err() {
            self.work[last] -= 1;
            self.devices.pop();
            self.history.wave_of.remove(&place);
        }
    }
}

/// What tests see of the machine's inside.
impl Rollout {
    fn has_timer(&self, place: Place) -> bool {
        self.index.looks.get(place).is_some() || self.index.deadlines.get(place).is_some()
    }

    pub fn sets(&self) -> Vec<Vec<Place>> {
        let index = &self.index;
        let sets = [&index.held, &index.active, &index.back_held, &index.doubtful];
        index.queued.iter().chain(&index.back).chain(sets).map(|set| set.iter().collect()).collect()
    }

    /// Counts in the head are what a recount of the records comes to.
    pub fn assert_counts_are_exact(&self) {
        let mut recount = self.head.clone();
        recount.counts = Counts::default();
        recount.sample = Sample::default();
        recount.failures = WhyCounts::default();
        (recount.attempted, recount.failed, recount.total_work) = (0, 0, 0);
        for wave in &mut recount.waves {
            (wave.counts, wave.sample) = (Counts::default(), Sample::default());
            (wave.total, wave.held_for_window) = (0, 0);
        }
        if let Some(rollback) = &mut recount.rollback {
            rollback.attempted = 0;
        }
        let work: Vec<u32> = recount.waves.iter().map(|wave| wave.total_work).collect();
        for record in &self.records {
            recount.count_new(record);
        }
        // What had work at the start is not in the records.
        for (wave, work) in recount.waves.iter_mut().zip(work) {
            wave.total_work = work;
        }
        recount.total_work = self.head.total_work;
        assert_eq!(recount, self.head);
    }
}
