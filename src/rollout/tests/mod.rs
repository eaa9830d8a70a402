//! What the machine promises: rule by rule, and over random fleets, events, clocks and crashes.
mod brake;
mod codec;
mod devices;
mod fleet;
mod orders;
mod properties;
mod rollback;
mod waves;

use std::time::Duration;

use fleetd_proto::v1::gate_result::Verdict;
use fleetd_proto::v1::rollout_policy::{Joiners, OnBreach};
use fleetd_proto::v1::update_progress::State as Said;
use fleetd_proto::v1::{GateResult, MetricGate};

use super::*;
use crate::clock::UnixMillis;

const SECOND: u64 = 1_000;
const MINUTE: u64 = 60 * SECOND;

/// Noon of the first day.
const NOON: i64 = 12 * 3_600 * 1_000;

fn policy() -> Policy {
    Policy {
        strategy: fleetd_proto::v1::update_strategy::Type::Rolling,
        max_parallel: 10,
        max_failure_percentage: 5.0,
        canary_percentage: 10.0,
        validation_duration: Duration::ZERO,
        auto_promote: true,
        waves: Vec::new(),
        min_attempted: 10,
        accept_timeout: Duration::from_secs(600),
        finish_timeout: Duration::from_secs(3_600),
        confirm_duration: Duration::from_secs(60),
        vanish_timeout: Duration::from_secs(1_800),
        max_attempts: 1,
        retry_backoff: Duration::from_secs(300),
        max_retry_backoff: Duration::from_secs(21_600),
        joiners: Joiners::Include,
        on_breach: OnBreach::Pause,
        require_approval: false,
        windows: Vec::new(),
        gates: Vec::new(),
        control_percentage: 0.0,
        stratify_labels: Vec::new(),
        start_spread: Duration::ZERO,
        deadline: None,
        offline_grace: Duration::from_secs(7 * 86_400),
        seed: 1,
        start_at: None,
        supersede: false,
    }
}

fn wave(name: &str) -> InitialWave {
    InitialWave { name: name.into(), soak: Duration::ZERO, gates: Vec::new(), auto_promote: true }
}

fn gate() -> MetricGate {
    MetricGate { metric: "cpu_usage".into(), ..MetricGate::default() }
}

fn verdict(verdict: Verdict) -> Vec<GateResult> {
    let value = (verdict != Verdict::Inconclusive).then_some(91.5);
    vec![GateResult { gate: Some(gate()), verdict: verdict as i32, value, device_count: 3, ..GateResult::default() }]
}

/// Devices of each wave in turn, all QUEUED.
fn devices(waves: &[usize]) -> Vec<InitialDevice> {
    let of =
        |(wave, count): (usize, &usize)| vec![InitialDevice { wave: wave as u16, state: DeviceState::Queued }; *count];
    waves.iter().enumerate().flat_map(of).collect()
}

fn online(runs: Runs) -> Standing {
    Standing { reachability: Reachability::Online, silent_for: Some(0), runs, is_window_open: true, is_taken: false }
}

fn offline() -> Standing {
    Standing { reachability: Reachability::Offline, silent_for: Some(5 * MINUTE), ..online(Runs::Before) }
}

/// A deployment and its clock, with a memory of what it did.
struct Run {
    rollout: Rollout,
    now: Now,
    actions: Vec<Action>,
}

impl Run {
    /// A deployment that has seen its first tick.
    fn start(policy: Policy, waves: Vec<InitialWave>, devices: Vec<InitialDevice>) -> Self {
        let now = Now { watched: 1_000_000, wall: UnixMillis::from_millis_clamped(NOON) };
        let mut run = Self { rollout: Rollout::new(policy, waves, devices, now), now, actions: Vec::new() };
        run.tick();
        run
    }

    fn of(policy: Policy, sizes: &[usize]) -> Self {
        let waves = (0..sizes.len()).map(|number| wave(&format!("wave-{number}"))).collect();
        Self::start(policy, waves, devices(sizes))
    }

    fn apply(&mut self, event: Event) -> Result<(), Refusal> {
        let result = self.rollout.apply(event, self.now);
        self.actions.extend(self.rollout.take_effects().actions);
        result
    }

    fn take(&mut self, event: Event) {
        assert_eq!(self.apply(event.clone()), Ok(()), "{event:?}");
    }

    fn tick(&mut self) {
        self.take(Event::Tick);
    }

    /// Lets time pass, to the wall too.
    fn pass(&mut self, millis: u64) {
        self.now.watched += millis;
        self.now.wall = UnixMillis::from_millis_clamped(self.now.wall.as_millis() + millis as i64);
        self.tick();
    }

    fn stand(&mut self, place: Place, standing: Standing) {
        self.take(Event::Standing { place, standing });
    }

    fn order(&mut self, order: Order) -> Result<(), Refusal> {
        self.apply(Event::Order(order))
    }

    fn say(&mut self, place: Place, said: Said) -> Result<(), Refusal> {
        let attempt = self.rollout.record(place).attempt();
        self.apply(Event::Report { place, attempt, state: said })
    }

    /// Asks for candidates, and answers that all are online and run the version before.
    fn offer(&mut self) -> Vec<Place> {
        let wanted = self.rollout.wanted(self.now, 1_000);
        let waiting = |place: &Place| matches!(self.rollout.record(*place).state(), DeviceState::Queued);
        let wanted: Vec<Place> = wanted.into_iter().filter(waiting).collect();
        for place in &wanted {
            self.stand(*place, online(Runs::Before));
        }
        wanted.into_iter().filter(|place| self.state(*place) == DeviceState::Offered).collect()
    }

    fn state(&self, place: Place) -> DeviceState {
        self.rollout.record(place).state()
    }

    fn states(&self) -> Vec<DeviceState> {
        (0..self.rollout.place_count() as Place).map(|place| self.state(place)).collect()
    }

    fn whole(&self) -> (DeploymentState, Reason) {
        (self.rollout.head().state, self.rollout.head().reason)
    }

    fn wave_states(&self) -> Vec<WaveState> {
        self.rollout.waves().iter().map(|wave| wave.state).collect()
    }

    /// From an offer to success.
    fn update(&mut self, place: Place) {
        self.say(place, Said::Accepted).unwrap();
        self.confirm(place);
    }

    fn confirm(&mut self, place: Place) {
        self.say(place, Said::Succeeded).unwrap();
        self.now.watched += 1;
        self.stand(place, online(Runs::Target));
        self.now.watched += MINUTE;
        self.stand(place, online(Runs::Target));
        assert_eq!(self.state(place), DeviceState::Succeeded);
    }

    /// Offers and updates devices until nothing is left to offer.
    fn update_all(&mut self) {
        loop {
            self.tick();
            let offered = self.offer();
            if offered.is_empty() {
                return;
            }
            for place in offered {
                self.update(place);
            }
        }
    }

    fn fail(&mut self, place: Place) {
        self.say(place, Said::Accepted).unwrap();
        self.say(place, Said::Failed).unwrap();
    }

    fn offers_of(&self, place: Place) -> Vec<u32> {
        let attempt = |action: &Action| match action {
            Action::Offer { place: offered, attempt, .. } if *offered == place => Some(*attempt),
            _ => None,
        };
        self.actions.iter().filter_map(attempt).collect()
    }

    fn revoked(&self) -> Vec<(Place, u32)> {
        let revoked = |action: &Action| match action {
            Action::Revoke { place, attempt } => Some((*place, *attempt)),
            _ => None,
        };
        self.actions.iter().filter_map(revoked).collect()
    }

    /// As after a crash: from what was kept.
    fn reload(&mut self) {
        self.rollout = reloaded(&self.rollout);
    }
}

fn reloaded(rollout: &Rollout) -> Rollout {
    let head = Head::decode(&rollout.head().encode()).unwrap();
    let records = (0..rollout.place_count() as Place).map(|place| rollout.record(place).encode());
    let records = records.map(|record| Record::decode(&record).unwrap()).collect();
    Rollout::load(rollout.policy().clone(), head, records)
}

fn code(result: Result<(), Refusal>) -> &'static str {
    match result {
        Err(Refusal::Report { code }) => code,
        other => panic!("{other:?}"),
    }
}
