//! The plan of a deployment: who is left out and why, the waves, and the order within each. Pure; the same policy, seed
//! and targets give the same plan, in whatever order the targets come.
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use fleetd_proto::v1::update_strategy::Type as Strategy;
use fleetd_proto::v1::{Artifact, ExcludedDevices, MetricGate, PlanDeploymentResponse, PlannedWave};

use super::hash::{mix, MixedMap};
use super::sample::{Candidate, Candidates};
use super::{artifact, plan_warnings, sample, Policy, WavePolicy, WaveSize};

/// Devices of a wave, or of those that are left out, that an answer names.
pub const SAMPLES: usize = 10;

/// What a plan goes by for one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// [`super::stable_hash`] of its id.
    pub id_hash: u64,
    /// Hash of what the canary is stratified by: type, version and labels.
    pub stratum: u64,
    /// Bit n: it matches the filter of the policy's wave n; of a wave without a filter it is not looked at.
    pub wave_matches: u64,
    /// Number of its text, as of the next two, for [`Targets::text`].
    pub device_type: u32,
    pub arch: u32,
    /// That it reported, else the registered one.
    pub version: u32,
    /// It reports, in time or a little late, and is not in maintenance.
    pub is_online: bool,
    /// Another deployment has it, and does not give it up.
    pub is_taken: bool,
}

/// The devices that a deployment is to reach; each once.
pub trait Targets {
    fn rows(&self) -> &[Target];
    /// The text with this number.
    fn text(&self, number: u32) -> &str;
    /// The id of the target with this number.
    fn id(&self, target: usize) -> &str;
}

/// Who gets the update when.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// In order, none empty. Places count through them, and then through [`Excluded::is_no_work`].
    pub waves: Vec<Wave>,
    /// How many of the last wave's last devices are held back: what gates compare with until then.
    pub control: usize,
    /// One entry for each reason that there is.
    pub excluded: Vec<Excluded>,
    /// What an operator should know before starting it, in sentences.
    pub warnings: Vec<String>,
}

/// One wave of a plan.
#[derive(Clone, Debug, PartialEq)]
pub struct Wave {
    pub name: String,
    /// How long it is watched after its last device is done.
    pub soak: Duration,
    pub gates: Vec<MetricGate>,
    /// Whether it goes on by itself once it passed.
    pub auto_promote: bool,
    /// Numbers of targets, in the order in which they are offered the update.
    pub members: Vec<u32>,
    pub offline: usize,
    /// Number of its devices by the number of their type.
    pub device_types: BTreeMap<u32, usize>,
}

/// Why a device is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Exclusion {
    /// It runs the update's version.
    AlreadyInstalled,
    /// No artifact is for its type and architecture.
    Incompatible,
    /// Another deployment has it, and does not give it up.
    InOtherDeployment,
}

impl Exclusion {
    pub const fn code(self) -> &'static str {
        match self {
            Self::AlreadyInstalled => "ALREADY_INSTALLED",
            Self::Incompatible => "INCOMPATIBLE",
            Self::InOtherDeployment => "IN_OTHER_DEPLOYMENT",
        }
    }
}

/// Devices that are left out for one reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Excluded {
    pub reason: Exclusion,
    /// Numbers of targets, in the plan's random order.
    pub members: Vec<u32>,
}

impl Excluded {
    /// Whether they belong to the deployment, as devices that are done before it begins.
    pub fn is_no_work(&self) -> bool {
        self.reason != Exclusion::InOtherDeployment
    }
}

impl Plan {
    /// Makes the plan. `version` and `artifacts` are the update's.
    pub fn of(policy: &Policy, version: &str, artifacts: &[Artifact], targets: &impl Targets) -> Self {
        let mut judge = Judge { version, artifacts, targets, fits: MixedMap::default() };
        let lots = sample::shuffled(targets, policy.seed, |target| judge.exclusion(target));
        let mut excluded = BTreeMap::<_, Vec<u32>>::new();
        for lot in &lots {
            if let Some(reason) = lot.exclusion {
                excluded.entry(reason).or_default().push(lot.target);
            }
        }
        let excluded = excluded.into_iter().map(|(reason, members)| Excluded { reason, members }).collect();
        let mut plan = Self { waves: Vec::new(), control: 0, excluded, warnings: Vec::new() };
        plan.choose_waves(policy, Candidates::of(targets, &lots, policy.seed));
        let warnings = plan_warnings::of(&plan, policy, artifacts);
        plan.warnings.extend(warnings);
        plan
    }

    fn choose_waves(&mut self, policy: &Policy, mut left: Candidates) {
        let all = left.len();
        let mut control = Vec::new();
        for (at, spec) in specs(policy).iter().enumerate() {
            let filter = (!spec.device_filter.is_empty()).then_some(at);
            let size = match spec.size {
                WaveSize::Devices(devices) => devices as usize,
                WaveSize::Percentage(percentage) => share(percentage, all),
            };
            // The first wave is the canary, whatever it is called.
            let is_first = self.waves.is_empty();
            let members = if is_first { left.draw_online_first(size, filter) } else { left.draw(size, filter) };
            if members.is_empty() {
                self.warnings.push(plan_warnings::empty_wave(at, spec));
                continue;
            }
            if is_first && policy.control_percentage > 0.0 {
                control = left.draw_online_first(share(policy.control_percentage, all), None);
            }
            // Waves without gates of their own have the rollout's.
            let gates = if spec.gates.is_empty() { &policy.gates } else { &spec.gates };
            self.waves.push(Wave {
                soak: spec.soak_duration,
                gates: gates.clone(),
                auto_promote: spec.auto_promote,
                ..Wave::of(&spec.name, &members)
            });
        }
        let mut rest = left.draw_all();
        let name = match (self.waves.is_empty(), rest.is_empty()) {
            (true, _) => "all",
            (false, false) => "rest",
            (false, true) => "held back",
        };
        self.control = control.len();
        rest.append(&mut control);
        if !rest.is_empty() {
            self.waves.push(Wave { auto_promote: policy.auto_promote, ..Wave::of(name, &rest) });
        }
    }

    /// Devices that will be offered the update.
    pub fn target_count(&self) -> usize {
        self.waves.iter().map(|wave| wave.members.len()).sum()
    }

    /// As the API tells it; `config` is the policy's.
    pub fn to_response(&self, policy: &Policy, targets: &impl Targets) -> PlanDeploymentResponse {
        let samples =
            |members: &[u32]| members.iter().take(SAMPLES).map(|at| targets.id(*at as usize).into()).collect();
        let wave = |(index, wave): (usize, &Wave)| PlannedWave {
            index: count(index),
            name: wave.name.clone(),
            device_count: count(wave.members.len()),
            offline_device_count: count(wave.offline),
            sample_device_ids: samples(&wave.members),
            device_types: wave.device_types.iter().map(|(kind, n)| (targets.text(*kind).into(), count(*n))).collect(),
        };
        PlanDeploymentResponse {
            target_device_count: count(self.target_count()),
            waves: self.waves.iter().enumerate().map(wave).collect(),
            excluded: self
                .excluded
                .iter()
                .map(|excluded| ExcludedDevices {
                    reason_code: excluded.reason.code().into(),
                    device_count: count(excluded.members.len()),
                    sample_device_ids: samples(&excluded.members),
                })
                .collect(),
            config: Some(policy.to_config()),
            warnings: self.warnings.clone(),
        }
    }
}

impl Wave {
    fn of(name: &str, members: &[Candidate]) -> Self {
        let mut device_types = BTreeMap::new();
        for member in members {
            *device_types.entry(member.device_type).or_default() += 1;
        }
        Self {
            name: name.to_owned(),
            soak: Duration::ZERO,
            gates: Vec::new(),
            auto_promote: false,
            members: members.iter().map(|member| member.target).collect(),
            offline: members.iter().filter(|member| !member.is_online).count(),
            device_types,
        }
    }
}

/// The waves that take a part of the targets each; what they leave is the last wave.
fn specs(policy: &Policy) -> Cow<'_, [WavePolicy]> {
    match policy.strategy {
        Strategy::Unspecified | Strategy::Rolling => Cow::Borrowed(&[]),
        Strategy::Waves => Cow::Borrowed(&policy.waves),
        Strategy::Canary => Cow::Owned(vec![WavePolicy {
            name: "canary".into(),
            size: WaveSize::Percentage(policy.canary_percentage),
            device_filter: String::new(),
            soak_duration: policy.validation_duration,
            gates: policy.gates.clone(),
            auto_promote: policy.auto_promote,
        }]),
    }
}

/// A percentage of all devices, rounded: at least one where there are any.
fn share(percentage: f64, all: usize) -> usize {
    let devices = (all as f64 * percentage / 100.0).round() as usize;
    devices.max(1).min(all)
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

/// Says of each target why it is left out.
struct Judge<'a, T> {
    version: &'a str,
    artifacts: &'a [Artifact],
    targets: &'a T,
    /// Whether an artifact fits a type and an architecture. There are few of them, and a million targets.
    fits: MixedMap<bool>,
}

impl<T: Targets> Judge<'_, T> {
    fn exclusion(&mut self, target: &Target) -> Option<Exclusion> {
        if self.targets.text(target.version) == self.version {
            return Some(Exclusion::AlreadyInstalled);
        }
        let (artifacts, targets) = (self.artifacts, self.targets);
        let kind = mix(u64::from(target.device_type) << 32 | u64::from(target.arch));
        let fits = *self.fits.entry(kind).or_insert_with(|| {
            artifact::choose(artifacts, targets.text(target.device_type), targets.text(target.arch)).is_some()
        });
        if !fits {
            return Some(Exclusion::Incompatible);
        }
        target.is_taken.then_some(Exclusion::InOtherDeployment)
    }
}
