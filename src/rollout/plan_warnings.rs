//! What an operator should know of a plan before starting it, in sentences.
use std::time::Duration;

use fleetd_proto::v1::update_strategy::Type as Strategy;
use fleetd_proto::v1::{Artifact, MetricGate};

use super::plan::{Exclusion, Plan, Wave};
use super::{artifact, Policy, WavePolicy};

/// A wave of which nothing came.
pub fn empty_wave(at: usize, spec: &WavePolicy) -> String {
    let why = match spec.device_filter.as_str() {
        "" => "no device was left for it",
        _ => "no device that was left matches its filter",
    };
    format!("the wave {:?} (waves[{at}]) is skipped: {why}", spec.name)
}

pub fn of(plan: &Plan, policy: &Policy, artifacts: &[Artifact]) -> Vec<String> {
    let targets = plan.target_count();
    let mut warnings = Vec::new();
    for (at, artifact) in artifacts.iter().enumerate().filter(|(_, artifact)| artifact::is_unverifiable(artifact)) {
        warnings.push(format!(
            "the checksum of artifacts[{at}] ({}) is abbreviated: devices cannot verify what they download",
            artifact.checksum
        ));
    }
    if targets == 0 {
        return warnings;
    }
    warnings.extend(misfits(plan, targets));
    let offline: usize = plan.waves.iter().map(|wave| wave.offline).sum();
    if offline * 3 >= targets {
        warnings.push(format!(
            "{offline} of {targets} targets ({:.0} %) are offline: they are held, and left out once they were waited \
             for {}",
            100.0 * offline as f64 / targets as f64,
            text(policy.offline_grace)
        ));
    }
    if policy.max_parallel as usize >= targets && targets > 1 {
        warnings.push(format!(
            "max_parallel is {} and there are {targets} targets: within a wave all may be at risk at once",
            policy.max_parallel
        ));
    }
    if policy.max_failure_percentage >= 100.0 {
        warnings.push("max_failure_percentage is 100: failures never stop the deployment".into());
    }
    match policy.strategy {
        Strategy::Unspecified | Strategy::Rolling if !policy.gates.is_empty() => {
            warnings.push("gates are measured after a canary or a wave; a ROLLING deployment measures none".into());
        }
        Strategy::Unspecified | Strategy::Rolling => {}
        Strategy::Canary | Strategy::Waves => {
            if let Some((canary, later)) = plan.waves.split_first().filter(|(_, later)| !later.is_empty()) {
                warnings.extend(canary_warnings(canary, targets));
                // What comes after the last wave is nothing.
                for wave in std::iter::once(canary).chain(&later[..later.len() - 1]) {
                    warnings.extend(gate_warnings(wave, plan.control));
                }
            }
        }
    }
    warnings
}

fn misfits(plan: &Plan, targets: usize) -> Option<String> {
    let excluded = plan.excluded.iter().find(|excluded| excluded.reason == Exclusion::Incompatible)?;
    let all = excluded.members.len() + targets;
    (excluded.members.len() * 2 >= all).then(|| {
        format!("no artifact fits {} of {all} devices that lack the update; check platform and arch", all - targets)
    })
}

fn canary_warnings(canary: &Wave, targets: usize) -> Vec<String> {
    let mut warnings = Vec::new();
    let (name, devices) = (&canary.name, canary.members.len());
    if devices == 1 && targets > 1 {
        warnings.push(format!("the first wave ({name:?}) is a single device: it shows little of {targets}"));
    }
    if canary.offline == devices {
        warnings.push(format!("all devices of the first wave ({name:?}) are offline: it will end without evidence"));
    }
    warnings
}

fn gate_warnings(wave: &Wave, control: usize) -> Vec<String> {
    let name = &wave.name;
    let mut warnings = Vec::new();
    if wave.auto_promote && wave.gates.is_empty() {
        warnings.push(format!(
            "the wave {name:?} goes on by itself and has no gates: nothing but failed installations stops it"
        ));
    }
    let needs = |gate: &MetricGate| usize::try_from(gate.min_devices.unwrap_or_default()).unwrap_or_default();
    for gate in &wave.gates {
        let (devices, needed) = (wave.members.len(), needs(gate));
        let compares = gate.max_increase_percentage.is_some();
        if devices < needed {
            warnings.push(format!(
                "the gate on {} needs {needed} devices and the wave {name:?} has {devices}: it will be inconclusive",
                gate.metric
            ));
        } else if compares && control < needed {
            warnings.push(format!(
                "the gate on {} compares with held-back devices and needs {needed}; {control} are held back: it will \
                 be inconclusive",
                gate.metric
            ));
        }
    }
    if !wave.gates.is_empty() && wave.soak.is_zero() {
        warnings.push(format!("the wave {name:?} has gates and no soak time: there is next to nothing to measure"));
    }
    warnings
}

impl Policy {
    /// What an operator should know of timeouts that are short for devices which report this seldom.
    pub fn timing_warnings(&self, heartbeat_interval: Duration) -> Vec<String> {
        let mut warnings = Vec::new();
        // An offer travels in a heartbeat's reply, and the answer to it in the next heartbeat.
        for (field, timeout, intervals) in
            [("accept_timeout", self.accept_timeout, 2), ("vanish_timeout", self.vanish_timeout, 3)]
        {
            let needed = heartbeat_interval * intervals;
            if timeout < needed {
                warnings.push(format!(
                    "{field} is {}, and devices report every {}: give {} or more, or healthy devices will be taken \
                     for failed ones",
                    text(timeout),
                    text(heartbeat_interval),
                    text(needed)
                ));
            }
        }
        if self.confirm_duration < heartbeat_interval {
            warnings.push(format!(
                "confirm_duration is {}, less than the interval of heartbeats ({}): the first one counts as proof",
                text(self.confirm_duration),
                text(heartbeat_interval)
            ));
        }
        warnings
    }
}

fn text(duration: Duration) -> fleetd_proto::Duration {
    duration.into()
}
