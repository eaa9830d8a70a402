//! Why, in a code and in a sentence: of a deployment, and of one device in it.
use fleetd_proto::v1::gate_result::Verdict;

use super::counts::Sample;
use super::head::{Head, WaveHead};
use super::machine::Rollout;
use super::record::{flag, Record};
use super::{DeploymentState, DeviceState, Place, Reason, WaveState};

use DeviceState as D;

impl Rollout {
    /// The state of the deployment and its reason in a sentence, with values and what to do.
    pub fn message(&self) -> String {
        let is_shut =
            self.head.state == DeploymentState::RollingBack && !self.is_serving_back() && !self.window.is_open;
        let shut = if is_shut { " No maintenance window is open; force goes on outside of them." } else { "" };
        format!("{}{shut}", self.head.message())
    }

    /// The one reason why a device is updating, or is not: a stable code, and the same in a sentence.
    pub fn explain(&self, place: Place) -> (&'static str, String) {
        let record = self.record(place);
        let state = record.state();
        match state {
            D::Queued => self.explain_queued(&record),
            D::Held => (record.reason_code(), self.explain_held(&record)),
            D::Offered => {
                let left = self.left(record.offered.saturating_add(self.limits.accept));
                let attempt = record.attempt();
                (
                    "OFFERED",
                    format!(
                        "it is offered the update (attempt {attempt}) and has {left} to accept; the offer \
                     is in the reply to its next heartbeat"
                    ),
                )
            }
            D::RetryWait => {
                let left = self.left(record.since);
                let why = record.reason_code();
                ("RETRY_WAIT", format!("attempt {} failed ({why}); it is queued again in {left}", record.attempt()))
            }
            D::Confirming if record.has(flag::TARGET_SEEN) => {
                let left = self.left(record.since.saturating_add(self.limits.confirm));
                (
                    "CONFIRMING",
                    format!(
                        "it runs the new version, and counts as done when a heartbeat after {left} still \
                     shows it"
                    ),
                )
            }
            D::Confirming => {
                let left = self.left(record.accepted.saturating_add(self.limits.finish));
                (
                    "CONFIRMING",
                    format!(
                        "it says that it runs the new version; its heartbeats must show that version within {left}"
                    ),
                )
            }
            D::Accepted | D::Downloading | D::Downloaded | D::Installing | D::Rebooting => {
                let left = self.left(record.accepted.saturating_add(self.limits.finish));
                (
                    state.as_str_name(),
                    format!("it works on attempt {} and has {left} until it counts as timed out", record.attempt()),
                )
            }
            D::RollbackQueued => self.explain_back(&record),
            D::RollingBack => ("ROLLING_BACK", "it is told to go back, or is on its way".into()),
            _ => explain_ended(&record),
        }
    }

    fn explain_queued(&self, record: &Record) -> (&'static str, String) {
        use DeploymentState as S;
        let head = &self.head;
        match head.state {
            S::Running => {}
            S::Paused if head.reason == Reason::WindowClosed => return ("WINDOW_CLOSED", head.message()),
            S::Paused => return ("PAUSED", head.message()),
            S::Planning | S::AwaitingApproval | S::Scheduled => return (head.state.as_str_name(), head.message()),
            S::RollingBack => return ("ROLLING_BACK", head.message()),
            _ => return ("DEPLOYMENT_OVER", head.message()),
        }
        let wave = head.waves.get(record.wave()).map_or("", |wave| wave.name.as_str());
        if record.wave() > head.current {
            let sentence = format!("its wave {} ({wave:?}) has not begun. {}", record.wave(), head.message());
            return (if self.awaits_promotion() { "AWAITING_PROMOTION" } else { "WAITS_FOR_WAVE" }, sentence);
        }
        if self.awaits_promotion() {
            return ("AWAITING_PROMOTION", head.message());
        }
        if !self.is_serving() {
            let sentence = format!("no device is offered the update while a wave is watched. {}", head.message());
            return ("WAITS_FOR_WAVE", sentence);
        }
        let (active, limit) = (self.index.active.len(), self.policy.max_parallel);
        (
            "WAITS_FOR_SLOT",
            format!("it is its wave's turn; {active} of at most {limit} devices (max_parallel) are being updated"),
        )
    }

    fn explain_held(&self, record: &Record) -> String {
        match record.reason_code() {
            "OFFLINE" => "it is offline; it gets its turn when it reports again".into(),
            "MAINTENANCE" => "it is in maintenance; it gets its turn when that is ended".into(),
            "WINDOW_CLOSED" => "no maintenance window is open for it; it gets its turn when one opens".into(),
            "IN_OTHER_DEPLOYMENT" => {
                "another deployment has it; it gets its turn when that one is done with it, or supersede that one"
                    .into()
            }
            code => format!("it waits: {code}"),
        }
    }

    fn explain_back(&self, record: &Record) -> (&'static str, String) {
        if self.head.is_final() {
            return ("ROLLBACK_INCOMPLETE", "the rollback ended before it could go back".into());
        }
        match record.reason_code() {
            "" => ("WAITS_FOR_SLOT", format!("it waits for its turn to go back. {}", self.head.message())),
            code => (code, format!("it is to go back. {}", self.explain_held(record))),
        }
    }

    fn awaits_promotion(&self) -> bool {
        self.head.wave().is_some_and(|wave| wave.state == WaveState::AwaitingPromotion)
    }

    fn left(&self, until: u64) -> String {
        span(until.saturating_sub(self.head.watched))
    }
}

fn explain_ended(record: &Record) -> (&'static str, String) {
    let attempt = record.attempt();
    let code = match record.reason_code() {
        "" => record.state().as_str_name(),
        code => code,
    };
    let sentence = match record.state() {
        D::Succeeded if record.is_recovered() => "it had been given up, and runs the new version after all".into(),
        D::Succeeded => format!("it runs the new version, since attempt {attempt}"),
        D::Failed => format!("it said that attempt {attempt} failed; see what it said, then RetryFailed"),
        D::TimedOut => match code {
            "ACCEPT_TIMEOUT" => format!(
                "it got the offer of attempt {attempt} and did not accept it in time; \
             RetryFailed queues it again"
            ),
            "NOT_CONFIRMED" => format!(
                "it said that attempt {attempt} was done, and never showed the new \
             version; RetryFailed queues it again"
            ),
            _ => format!("it accepted attempt {attempt} and was not done in time; RetryFailed queues it again"),
        },
        D::Rejected => format!("it declined attempt {attempt}; see what it said, then RetryFailed"),
        D::Vanished => format!(
            "it went silent after accepting attempt {attempt}: look after it; it counts as \
         failed until it shows the new version"
        ),
        D::Reverted => "it ran the new version, and went back to another one; RetryFailed queues it again".into(),
        D::AlreadyInstalled => "it runs the version already".into(),
        D::Incompatible => "no artifact of the update fits it".into(),
        D::Removed => "it was deleted from the fleet".into(),
        D::Superseded => "another deployment took it, by an operator's choice".into(),
        D::RolledBack => "it is back".into(),
        D::RollbackFailed => format!("it could not go back ({code}): look after it"),
        _ => "it is not part of the deployment".into(),
    };
    (code, sentence)
}

impl Head {
    /// The state and its reason in a sentence, with values and what to do.
    pub fn message(&self) -> String {
        use DeploymentState as S;
        let (succeeded, total) = (self.counts.get(D::Succeeded), self.total_work);
        match self.state {
            S::Unspecified | S::Planning => "Its targets and waves are being chosen.".into(),
            S::AwaitingApproval => "It waits for the approval of someone other than who started it.".into(),
            S::Denied => "Its approval was denied; start a new deployment.".into(),
            S::Scheduled => "It waits for its start time (start_at).".into(),
            S::Running => format!("{succeeded} of {total} devices run the new version. {}", self.doing()),
            S::Paused => self.standing_still(),
            S::Cancelled => match self.active() {
                0 => format!("It was cancelled; {succeeded} of {total} devices run the new version."),
                active => format!("It was cancelled; {active} devices that had accepted may still finish."),
            },
            S::RollingBack => self.going_back(),
            S::RolledBack => format!("All {} devices that it changed are back.", self.counts.get(D::RolledBack)),
            S::RollbackIncomplete => format!(
                "{} devices are back, {} could not go back, {} were not reached: look after those.",
                self.counts.get(D::RolledBack),
                self.counts.get(D::RollbackFailed),
                self.counts.get(D::RollbackQueued)
            ),
            S::Succeeded => match self.counts.get(D::Held) {
                0 => format!("{succeeded} of {total} devices run the new version."),
                held => format!(
                    "{succeeded} of {total} devices run the new version; {held} could not be \
                 reached in time, and were left out."
                ),
            },
            S::Failed if succeeded == 0 && self.attempted == 0 => {
                format!("None of {total} devices could be reached.")
            }
            S::Failed => format!(
                "{} of {} attempted devices failed ({:.1} %), more than {} %; {succeeded} of {total} run the \
                 new version.",
                self.failed,
                self.attempted,
                self.failure_percentage(),
                self.max_failure_percentage
            ),
            S::Superseded => "Another deployment took all its devices.".into(),
        }
    }

    fn doing(&self) -> String {
        let Some(wave) = self.wave() else { return String::new() };
        let place = format!("Wave {} of {} ({:?})", self.current + 1, self.waves.len(), wave.name);
        match wave.state {
            WaveState::Soaking => {
                let until = wave.soak_until.map_or(0, |until| until.watched);
                format!("{place} is watched for another {}.", span(until.saturating_sub(self.watched)))
            }
            WaveState::Analyzing => format!("{place} is being measured by {} gates.", wave.gates.len()),
            WaveState::AwaitingPromotion => format!("{place} passed, and waits to be promoted (PromoteDeployment)."),
            WaveState::Done => format!(
                "Every wave is done; {} devices could not be reached, and are waited for.",
                self.counts.get(D::Held)
            ),
            _ => match self.waits_for(wave) {
                Some(waits) => format!("{place} waits for {waits}."),
                None => format!("{place} runs; {} devices are being updated.", self.active()),
            },
        }
    }

    /// What a wave waits for when no device of it is being updated.
    fn waits_for(&self, wave: &WaveHead) -> Option<String> {
        let (queued, retrying) = (wave.counts.get(D::Queued), wave.counts.get(D::RetryWait));
        if wave.counts.active() + queued > 0 {
            None
        } else if retrying > 0 {
            Some(format!("the next attempt of {retrying} devices"))
        } else if wave.held_for_window > 0 {
            Some(format!("the maintenance windows of {} devices", wave.held_for_window))
        } else {
            None
        }
    }

    fn standing_still(&self) -> String {
        let wave = self.wave();
        let name = wave.map_or("", |wave| wave.name.as_str());
        match self.reason {
            Reason::Operator | Reason::Unspecified => "An operator paused it; ResumeDeployment goes on.".into(),
            Reason::FailureThreshold | Reason::Vanished => {
                let breach = self.breach.as_ref();
                let Sample { attempted, failed, vanished } = breach.map_or(self.sample, |breach| breach.sample);
                let whose = breach.and_then(|breach| breach.wave).and_then(|wave| self.waves.get(wave));
                let whose = whose.map_or_else(String::new, |wave| format!(" of wave {:?}", wave.name));
                let silent = if vanished > 0 { format!(", {vanished} of them silent") } else { String::new() };
                format!(
                    "{failed} of {attempted} attempted devices{whose} failed{silent}, which the limit of {} % \
                     does not allow. Look into it, then RollbackDeployment, or ResumeDeployment with \
                     acknowledge_failures.",
                    self.max_failure_percentage
                )
            }
            Reason::AnalysisFailed => format!(
                "Wave {name:?} failed its gates: {}. RollbackDeployment, or ResumeDeployment to measure again, \
                 or with acknowledge_failures to pass it.",
                wave.map_or_else(String::new, |wave| gates_with(wave, Verdict::Failed))
            ),
            Reason::Inconclusive if wave.is_some_and(|wave| wave.state == WaveState::Analyzing) => format!(
                "Wave {name:?} could not be judged: {}. ResumeDeployment measures again, or passes it with \
                 acknowledge_failures.",
                wave.map_or_else(String::new, |wave| gates_with(wave, Verdict::Inconclusive))
            ),
            Reason::Inconclusive => format!(
                "Wave {name:?} ended without a device that succeeded ({} could not be reached), so nothing is \
                 known of the update. ResumeDeployment tries again, or goes on with acknowledge_failures.",
                wave.map_or(0, |wave| wave.counts.get(D::Held))
            ),
            Reason::WindowClosed => "No maintenance window is open; it goes on by itself when one opens.".into(),
            Reason::Deadline => {
                "It took longer than its deadline; ResumeDeployment goes on without one, CancelDeployment ends \
                 it."
                .into()
            }
        }
    }

    fn going_back(&self) -> String {
        let (back, failed) = (self.counts.get(D::RolledBack), self.counts.get(D::RollbackFailed));
        let left = self.counts.get(D::RollbackQueued) + self.counts.get(D::RollingBack);
        let braked = self.rollback.as_ref().is_some_and(|rollback| rollback.is_braked);
        let end = if braked { " Too many failed to go back: no more are told to; look after them." } else { "" };
        let working = self.active().saturating_sub(self.counts.get(D::RollingBack));
        let finishing = if working > 0 { format!(" {working} finish the update first.") } else { String::new() };
        format!("It goes back: {back} devices are back, {failed} could not, {left} are to go.{finishing}{end}")
    }
}

/// The gates of a wave with a verdict, with what they measured.
fn gates_with(wave: &WaveHead, verdict: Verdict) -> String {
    let gates = wave.gate_results.iter().filter(|result| result.verdict() == verdict).map(|result| {
        let gate = result.gate.as_ref();
        let metric = gate.map_or("a metric", |gate| gate.metric.as_str());
        let value = result.value.map_or_else(|| "no value".into(), |value| format!("{value}"));
        let control = result.control_value.map_or_else(String::new, |value| format!(" against {value} held back"));
        format!("{metric} was {value}{control} on {} devices", result.device_count)
    });
    let gates: Vec<String> = gates.collect();
    if gates.is_empty() {
        return "not every gate was measured".into();
    }
    gates.join("; ")
}

/// A span for people: its two largest units.
fn span(millis: u64) -> String {
    let seconds = millis.div_ceil(1_000);
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, _, _) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}
