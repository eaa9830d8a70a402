//! From what operators wrote to a policy without gaps: ranges are checked, and every default is filled in here, once.
use std::time::Duration;

use fleetd_proto::v1::rollout_policy::{Joiners, OnBreach};
use fleetd_proto::v1::update_strategy::Type as Strategy;
use fleetd_proto::v1::{wave_spec, DeploymentConfig, MetricGate, RolloutPolicy, UpdateStrategy, WaveSpec};

use super::policy::{Policy, WavePolicy, WaveSize};
use super::window;
use crate::clock::UnixMillis;
use crate::error::beginning;
use crate::query::Filter;
use crate::telemetry::metric::{Aggregation, Metric};

/// Waves of one deployment. Each is a bit of what a survey of the fleet finds of a device.
pub const MAX_WAVES: usize = 50;
/// Gates of one wave: each is a query of its own.
pub const MAX_GATES: usize = 16;
/// Windows of one deployment: a different one for each hour of two days; each is looked at for every offer.
pub const MAX_WINDOWS: usize = 64;
/// Labels by which a sample is stratified; more make every device a stratum of its own.
pub const MAX_STRATIFY_LABELS: usize = 8;

const MAX_PARALLEL: u32 = 100_000;
const MAX_ATTEMPTS: u32 = 10;
/// Characters of a text of the policy that an error repeats: more than a time, a zone or an aggregation has.
pub(super) const MAX_SHOWN: usize = 40;
const MAX_WAVE_NAME_BYTES: usize = 64;
const MAX_LABEL_BYTES: usize = 64;
const MAX_CONTROL_PERCENTAGE: f64 = 50.0;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(60 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const WEEK: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// Longest soak, and longest time that a canary is watched.
const MAX_SOAK: Duration = Duration::from_secs(30 * 24 * 60 * 60);
const MAX_DEADLINE: Duration = Duration::from_secs(365 * 24 * 60 * 60);
const MAX_GRACE: Duration = Duration::from_secs(90 * 24 * 60 * 60);

/// A value that no policy can have; INVALID_ARGUMENT.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} {message}")]
pub struct InvalidPolicy {
    /// The field's path from the request on, such as `config.policy.windows[0].start`.
    pub field: String,
    /// What was found and what is accepted.
    pub message: String,
}

/// What a policy takes over from the server that makes it.
#[derive(Clone, Copy, Debug)]
pub struct Defaults {
    /// How often devices report.
    pub heartbeat_interval: Duration,
    /// Drawn at random, for a policy that names no seed.
    pub seed: u64,
}

type Parsed<T> = Result<T, InvalidPolicy>;

fn invalid(field: impl Into<String>, message: impl Into<String>) -> InvalidPolicy {
    InvalidPolicy { field: field.into(), message: message.into() }
}

/// The messages that a policy is read from, and what their fields are called in errors.
struct Source<'a> {
    update: &'a UpdateStrategy,
    deployment: &'a DeploymentConfig,
}

impl Policy {
    /// The policy of a deployment: what `deployment` does not set comes from `update`, what neither sets is the default
    /// that update.proto documents. `policy` is taken whole from one of them.
    ///
    /// To check an update's strategy alone, give an empty `deployment`.
    ///
    /// # Errors
    /// The first value that is out of its range, with its field, by the message that it came from.
    pub fn of(update: &UpdateStrategy, deployment: &DeploymentConfig, defaults: Defaults) -> Parsed<Self> {
        let source = Source { update, deployment };
        let strategy = source.strategy()?;
        let auto_promote = deployment.auto_promote.or(update.auto_promote).unwrap_or(false);
        let waves = source.waves(strategy, auto_promote)?;
        let (policy_field, policy) = match (&deployment.policy, &update.policy) {
            (Some(policy), _) => ("config.policy", policy),
            (None, Some(policy)) => ("strategy.policy", policy),
            (None, None) => ("config.policy", &RolloutPolicy::default()),
        };
        let at = |name: &str| format!("{policy_field}.{name}");

        let finish_timeout = duration(&at("finish_timeout"), policy.finish_timeout, HOUR, MINUTE, WEEK)?;
        let confirm_duration = confirm_duration(&at("confirm_duration"), policy, finish_timeout, defaults)?;
        let retry_backoff = duration(&at("retry_backoff"), policy.retry_backoff, 5 * MINUTE, SECOND, WEEK)?;
        let max_retry_backoff = duration(
            &at("max_retry_backoff"),
            policy.max_retry_backoff,
            retry_backoff.max(6 * HOUR),
            retry_backoff,
            WEEK,
        )?;
        let gates = gates(&at("gates"), &policy.gates)?;
        let has_gates = !gates.is_empty() || waves.iter().any(|wave| !wave.gates.is_empty());
        let control_percentage = percentage(
            &at("control_percentage"),
            policy.control_percentage.unwrap_or(if has_gates { 10.0 } else { 0.0 }),
            0.0..=MAX_CONTROL_PERCENTAGE,
        )?;
        let compares = |gates: &[MetricGate]| gates.iter().any(|gate| gate.max_increase_percentage.is_some());
        if control_percentage == 0.0 && (compares(&gates) || waves.iter().any(|wave| compares(&wave.gates))) {
            return Err(invalid(
                at("control_percentage"),
                "is 0, and a gate with max_increase_percentage compares with devices that are held back; give more \
                 than 0, or leave it out for 10",
            ));
        }
        window::check(&policy.windows).map_err(|error| invalid(at(&error.field), error.message))?;

        Ok(Self {
            strategy,
            max_parallel: source.max_parallel()?,
            max_failure_percentage: source.percentage(
                "max_failure_percentage",
                (deployment.max_failure_percentage, update.max_failure_percentage),
                5.0,
                false,
            )?,
            canary_percentage: source.percentage(
                "canary_percentage",
                (deployment.canary_percentage, update.canary_percentage),
                10.0,
                true,
            )?,
            validation_duration: source.validation_duration()?,
            auto_promote,
            waves,
            min_attempted: count(&at("min_attempted"), policy.min_attempted, 10, i32::MAX as u32)?,
            accept_timeout: duration(&at("accept_timeout"), policy.accept_timeout, 10 * MINUTE, 10 * SECOND, WEEK)?,
            finish_timeout,
            confirm_duration,
            vanish_timeout: duration(&at("vanish_timeout"), policy.vanish_timeout, 30 * MINUTE, MINUTE, WEEK)?,
            max_attempts: count(&at("max_attempts"), policy.max_attempts, 1, MAX_ATTEMPTS)?,
            retry_backoff,
            max_retry_backoff,
            joiners: match Joiners::try_from(policy.joiners) {
                Ok(Joiners::Unspecified | Joiners::Include) => Joiners::Include,
                Ok(Joiners::Ignore) => Joiners::Ignore,
                Err(_) => return Err(unknown(at("joiners"), policy.joiners, "INCLUDE or IGNORE")),
            },
            on_breach: match OnBreach::try_from(policy.on_breach) {
                Ok(OnBreach::Unspecified | OnBreach::Pause) => OnBreach::Pause,
                Ok(OnBreach::RollBack) => OnBreach::RollBack,
                Err(_) => return Err(unknown(at("on_breach"), policy.on_breach, "PAUSE or ROLL_BACK")),
            },
            require_approval: policy.require_approval,
            windows: policy.windows.clone(),
            gates,
            control_percentage,
            stratify_labels: labels(&at("stratify_labels"), &policy.stratify_labels)?,
            start_spread: duration(&at("start_spread"), policy.start_spread, 30 * SECOND, Duration::ZERO, DAY)?,
            deadline: policy
                .deadline
                .map(|given| duration(&at("deadline"), Some(given), MINUTE, MINUTE, MAX_DEADLINE))
                .transpose()?,
            offline_grace: duration(&at("offline_grace"), policy.offline_grace, WEEK, Duration::ZERO, MAX_GRACE)?,
            seed: [policy.seed, defaults.seed, 1].into_iter().find(|seed| *seed != 0).unwrap_or(1),
            start_at: deployment.start_at.map(start_at).transpose()?,
            supersede: deployment.supersede,
        })
    }
}

impl Source<'_> {
    fn strategy(&self) -> Parsed<Strategy> {
        for (field, number) in [("config.strategy", self.deployment.strategy), ("strategy.type", self.update.r#type)] {
            match Strategy::try_from(number) {
                Ok(Strategy::Unspecified) => {}
                Ok(strategy) => return Ok(strategy),
                Err(_) => return Err(unknown(field, number, "ROLLING, CANARY or WAVES")),
            }
        }
        Ok(Strategy::Rolling)
    }

    /// What `name` is called where its value comes from.
    fn field(&self, name: &str, is_of_deployment: bool) -> String {
        format!("{}.{name}", if is_of_deployment { "config" } else { "strategy" })
    }

    fn max_parallel(&self) -> Parsed<u32> {
        let given = self.deployment.max_parallel;
        count(&self.field("max_parallel", given.is_some()), given.or(self.update.max_parallel), 10, MAX_PARALLEL)
    }

    fn percentage(
        &self,
        name: &str,
        (deployment, update): (Option<f64>, Option<f64>),
        default: f64,
        is_some_needed: bool,
    ) -> Parsed<f64> {
        let field = self.field(name, deployment.is_some());
        let value = deployment.or(update).unwrap_or(default);
        if is_some_needed {
            return share(&field, value);
        }
        percentage(&field, value, 0.0..=100.0)
    }

    fn validation_duration(&self) -> Parsed<Duration> {
        let given = self.deployment.validation_duration;
        let field = self.field("validation_duration", given.is_some());
        duration(&field, given.or(self.update.validation_duration), HOUR, Duration::ZERO, MAX_SOAK)
    }

    fn waves(&self, strategy: Strategy, auto_promote: bool) -> Parsed<Vec<WavePolicy>> {
        let is_of_deployment = !self.deployment.waves.is_empty();
        let given = if is_of_deployment { &self.deployment.waves } else { &self.update.waves };
        let chooses_shape = self.deployment.strategy != Strategy::Unspecified as i32;
        let field = self.field("waves", is_of_deployment || (given.is_empty() && chooses_shape));
        if strategy != Strategy::Waves {
            // A deployment may choose another shape than its update, whose waves then mean nothing.
            let is_strange = is_of_deployment || !chooses_shape;
            if is_strange && !given.is_empty() {
                return Err(invalid(
                    field,
                    format!("has {} entries, and the strategy is {}; waves are for WAVES", given.len(), name(strategy)),
                ));
            }
            return Ok(Vec::new());
        }
        if given.is_empty() || given.len() > MAX_WAVES {
            return Err(invalid(
                field,
                format!("has {} entries; a deployment in WAVES has 1 to {MAX_WAVES}", given.len()),
            ));
        }
        let parse = |(at, wave): (usize, &WaveSpec)| wave_policy(&format!("{field}[{at}]"), at, wave, auto_promote);
        given.iter().enumerate().map(parse).collect()
    }
}

fn wave_policy(field: &str, at: usize, given: &WaveSpec, auto_promote: bool) -> Parsed<WavePolicy> {
    if given.name.len() > MAX_WAVE_NAME_BYTES {
        return Err(invalid(
            format!("{field}.name"),
            format!("has {} bytes; at most {MAX_WAVE_NAME_BYTES} are allowed", given.name.len()),
        ));
    }
    let size = match given.size {
        Some(wave_spec::Size::DeviceCount(devices)) => {
            WaveSize::Devices(count(&format!("{field}.device_count"), Some(devices), 1, i32::MAX as u32)?)
        }
        Some(wave_spec::Size::Percentage(of_all)) => {
            WaveSize::Percentage(share(&format!("{field}.percentage"), of_all)?)
        }
        None => {
            return Err(invalid(field, "has no size; give device_count, or percentage (100 takes all that match)"));
        }
    };
    Filter::parse(&given.device_filter, UnixMillis::EPOCH).map_err(|error| {
        let called = if given.name.is_empty() { String::new() } else { format!(" (wave {:?})", given.name) };
        invalid(format!("{field}.device_filter"), format!("cannot be understood{called}: {error}"))
    })?;
    Ok(WavePolicy {
        name: if given.name.is_empty() { format!("wave {}", at + 1) } else { given.name.clone() },
        size,
        device_filter: given.device_filter.clone(),
        soak_duration: duration(
            &format!("{field}.soak_duration"),
            given.soak_duration,
            Duration::ZERO,
            Duration::ZERO,
            MAX_SOAK,
        )?,
        gates: gates(&format!("{field}.gates"), &given.gates)?,
        auto_promote: given.auto_promote.unwrap_or(auto_promote),
    })
}

/// Default: two heartbeats, so that a single lucky one is not enough. Never so long that no device could be done in time.
fn confirm_duration(
    field: &str,
    policy: &RolloutPolicy,
    finish_timeout: Duration,
    defaults: Defaults,
) -> Parsed<Duration> {
    let default = (2 * defaults.heartbeat_interval).min(WEEK).min(finish_timeout / 2);
    let confirm = duration(field, policy.confirm_duration, default, Duration::ZERO, WEEK)?;
    if confirm >= finish_timeout {
        let message = format!(
            "is {}, and finish_timeout is {}: no device could be done in time; give less",
            text(confirm),
            text(finish_timeout)
        );
        return Err(invalid(field, message));
    }
    Ok(confirm)
}

fn gates(field: &str, given: &[MetricGate]) -> Parsed<Vec<MetricGate>> {
    if given.len() > MAX_GATES {
        return Err(invalid(field, format!("has {} entries; at most {MAX_GATES} are allowed", given.len())));
    }
    given.iter().enumerate().map(|(at, given)| gate(&format!("{field}[{at}]"), given)).collect()
}

fn gate(field: &str, given: &MetricGate) -> Parsed<MetricGate> {
    Metric::named(&given.metric).map_err(|error| invalid(format!("{field}.metric"), error.to_string()))?;
    let aggregation = Aggregation::named(&given.aggregation).filter(|one| one.is_comparable());
    let Some(aggregation) = aggregation else {
        return Err(invalid(
            format!("{field}.aggregation"),
            format!(
                "is {:?}; gates know AVG, MIN, MAX, P50, P90, P95 and P99",
                beginning(&given.aggregation, MAX_SHOWN)
            ),
        ));
    };
    let bounds = [
        ("max_value", given.max_value),
        ("min_value", given.min_value),
        ("max_increase_percentage", given.max_increase_percentage),
    ];
    if bounds.iter().all(|(_, bound)| bound.is_none()) {
        return Err(invalid(field, "has no bound; give max_value, min_value or max_increase_percentage"));
    }
    for (name, bound) in bounds {
        if let Some(bound) = bound.filter(|bound| !bound.is_finite()) {
            return Err(invalid(format!("{field}.{name}"), format!("is {bound}; give a finite number")));
        }
    }
    if let Some(increase) = given.max_increase_percentage.filter(|increase| *increase < 0.0) {
        return Err(invalid(format!("{field}.max_increase_percentage"), format!("is {increase}; give 0 or more")));
    }
    if let (Some(least), Some(most)) = (given.min_value, given.max_value) {
        if least > most {
            return Err(invalid(
                format!("{field}.min_value"),
                format!("is {least}, above max_value, which is {most}: no value could pass"),
            ));
        }
    }
    let min_devices = count(&format!("{field}.min_devices"), given.min_devices, 3, i32::MAX as u32)?;
    Ok(MetricGate {
        aggregation: aggregation.name().to_owned(),
        // Of an i32, so it fits one.
        min_devices: Some(i32::try_from(min_devices).unwrap_or(i32::MAX)),
        ..given.clone()
    })
}

fn labels(field: &str, given: &[String]) -> Parsed<Vec<String>> {
    if given.len() > MAX_STRATIFY_LABELS {
        return Err(invalid(field, format!("has {} entries; at most {MAX_STRATIFY_LABELS} are allowed", given.len())));
    }
    for (at, label) in given.iter().enumerate() {
        if label.is_empty() || label.len() > MAX_LABEL_BYTES {
            return Err(invalid(
                format!("{field}[{at}]"),
                format!("has {} bytes; the name of a label has 1 to {MAX_LABEL_BYTES}", label.len()),
            ));
        }
    }
    Ok(given.to_vec())
}

fn count(field: &str, given: Option<i32>, default: u32, most: u32) -> Parsed<u32> {
    let Some(given) = given else { return Ok(default) };
    match u32::try_from(given) {
        Ok(count) if (1..=most).contains(&count) => Ok(count),
        _ if most == i32::MAX as u32 => Err(invalid(field, format!("is {given}; give 1 or more"))),
        _ => Err(invalid(field, format!("is {given}; give 1 to {most}"))),
    }
}

fn percentage(field: &str, value: f64, range: std::ops::RangeInclusive<f64>) -> Parsed<f64> {
    // Not a number is in no range. Zero has no sign here, so that what is written reads back as it was.
    if !range.contains(&value) {
        return Err(invalid(field, format!("is {value}; give {} to {} per cent", range.start(), range.end())));
    }
    Ok(value + 0.0)
}

/// A percentage of devices, of which there must be some.
fn share(field: &str, value: f64) -> Parsed<f64> {
    if value > 0.0 && value <= 100.0 {
        return Ok(value);
    }
    Err(invalid(field, format!("is {value}; give more than 0 and at most 100 per cent")))
}

fn duration(
    field: &str,
    given: Option<fleetd_proto::Duration>,
    default: Duration,
    least: Duration,
    most: Duration,
) -> Parsed<Duration> {
    let Some(given) = given else { return Ok(default) };
    match Duration::try_from(given) {
        Ok(duration) if (least..=most).contains(&duration) => Ok(duration),
        _ => Err(invalid(field, format!("is {given}; give {} to {}", text(least), text(most)))),
    }
}

/// As protobuf writes it in JSON.
fn text(duration: Duration) -> fleetd_proto::Duration {
    duration.into()
}

fn start_at(given: fleetd_proto::Timestamp) -> Parsed<UnixMillis> {
    if !given.is_valid() {
        return Err(invalid(
            "config.start_at",
            format!("is {} s and {} ns, which is no time", given.seconds, given.nanos),
        ));
    }
    Ok(UnixMillis::from_parts_clamped(given.seconds, given.nanos))
}

fn unknown(field: impl Into<String>, number: i32, known: &str) -> InvalidPolicy {
    invalid(field, format!("is {number}, which stands for nothing; give {known}"))
}

fn name(strategy: Strategy) -> &'static str {
    match strategy {
        Strategy::Unspecified | Strategy::Rolling => "ROLLING",
        Strategy::Canary => "CANARY",
        Strategy::Waves => "WAVES",
    }
}

impl From<InvalidPolicy> for crate::error::ApiError {
    fn from(invalid: InvalidPolicy) -> Self {
        Self::invalid_argument(invalid.to_string())
    }
}
