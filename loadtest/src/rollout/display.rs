//! How the waves are shown as they go: a bar for each on a terminal, a line for each change in a pipe.
use std::collections::HashMap;
use std::io::IsTerminal;

use fleetd_proto::v1::deployment_status::{Reason, State};
use fleetd_proto::v1::wave_status::State as WaveState;
use fleetd_proto::v1::{DeploymentStatus, WaveStatus};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// States of a device in which it is done, in one way or another.
const DONE: [&str; 8] =
    ["SUCCEEDED", "FAILED", "TIMED_OUT", "REJECTED", "VANISHED", "REVERTED", "ROLLED_BACK", "ROLLBACK_FAILED"];

/// What is worth a word beside the bar, in this order.
const TELLING: [(&str, &str); 11] = [
    ("SUCCEEDED", "done"),
    ("FAILED", "failed"),
    ("TIMED_OUT", "timed out"),
    ("REJECTED", "rejected"),
    ("VANISHED", "vanished"),
    ("REVERTED", "reverted"),
    ("HELD", "held"),
    ("RETRY_WAIT", "wait to try again"),
    ("ROLLING_BACK", "on the way back"),
    ("ROLLED_BACK", "back"),
    ("ROLLBACK_FAILED", "not back"),
];

pub(super) struct Waves {
    bars: Option<MultiProgress>,
    by_index: Vec<ProgressBar>,
    /// What was said last, so that only changes are said.
    deployment: Option<(State, Reason)>,
    waves: HashMap<i32, WaveState>,
}

impl Waves {
    /// Bars only if they are wanted and standard error is a terminal.
    pub(super) fn new(wants_bars: bool, deployment_id: &str) -> Self {
        let has_bars = wants_bars && std::io::stderr().is_terminal();
        let bars = has_bars.then(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr()));
        let waves = Self { bars, by_index: Vec::new(), deployment: None, waves: HashMap::new() };
        waves.say(&format!("deployment {deployment_id}"));
        waves
    }

    /// A line above the bars, or in the pipe.
    pub(super) fn say(&self, line: &str) {
        match &self.bars {
            // Fails only when the terminal is gone.
            Some(bars) => drop(bars.println(line)),
            None => eprintln!("{line}"),
        }
    }

    pub(super) fn show(&mut self, status: &DeploymentStatus) {
        let deployment = (status.state(), status.reason());
        if self.deployment.replace(deployment) != Some(deployment) {
            self.say(&deployment_line(status));
        }
        for wave in &status.waves {
            let state = wave.state();
            let is_news = self.waves.insert(wave.index, state) != Some(state);
            if self.bars.is_some() {
                self.draw(wave);
            } else if is_news {
                self.say(&wave_line(wave));
            }
            if is_news && state == WaveState::AwaitingPromotion {
                self.say(&format!(
                    "{} passed and waits: promote it with UpdateService/PromoteDeployment of {}",
                    name(wave),
                    status.deployment_id
                ));
            }
        }
    }

    /// Leaves the bars as they are; what comes next begins on a line of its own.
    pub(super) fn end(&mut self) {
        self.by_index.iter().for_each(ProgressBar::abandon);
        if self.bars.is_some() {
            eprintln!();
        }
    }

    fn draw(&mut self, wave: &WaveStatus) {
        let Some(bars) = &self.bars else { return };
        let index = usize::try_from(wave.index).unwrap_or(0);
        while self.by_index.len() <= index {
            let bar = bars.add(ProgressBar::new(0));
            // Falls back to the plain style only if the template is malformed.
            if let Ok(style) = ProgressStyle::with_template("{prefix:14} {bar:30} {pos}/{len}  {msg}") {
                bar.set_style(style);
            }
            self.by_index.push(bar);
        }
        let bar = &self.by_index[index];
        bar.set_prefix(name(wave));
        bar.set_length(wave.total_devices.unsigned_abs().into());
        bar.set_position(done(wave));
        bar.set_message(format!("{}{}", wave.state().as_str_name(), counts(wave)));
    }
}

fn name(wave: &WaveStatus) -> String {
    if wave.name.is_empty() {
        format!("wave {}", wave.index)
    } else {
        wave.name.clone()
    }
}

fn done(wave: &WaveStatus) -> u64 {
    DONE.iter().filter_map(|state| wave.device_counts.get(*state)).map(|count| u64::from(count.unsigned_abs())).sum()
}

/// `  12 done, 1 failed`, or nothing.
fn counts(wave: &WaveStatus) -> String {
    let told = TELLING.iter().filter_map(|(state, word)| {
        let count = wave.device_counts.get(*state).filter(|count| **count > 0)?;
        Some(format!("{count} {word}"))
    });
    let told = Vec::from_iter(told).join(", ");
    if told.is_empty() {
        told
    } else {
        format!("  {told}")
    }
}

fn wave_line(wave: &WaveStatus) -> String {
    format!("{:14} {:18} {}/{}{}", name(wave), wave.state().as_str_name(), done(wave), wave.total_devices, counts(wave))
}

fn deployment_line(status: &DeploymentStatus) -> String {
    let state = status.state().as_str_name();
    let reason = match status.reason() {
        Reason::Unspecified => String::new(),
        reason => format!(" ({})", reason.as_str_name()),
    };
    let message = if status.message.is_empty() { String::new() } else { format!(": {}", status.message) };
    format!("{state}{reason}{message}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wave_is_one_line_with_what_is_worth_knowing() {
        let count = |state: &str, count| (state.to_owned(), count);
        let wave = WaveStatus {
            name: "canary".to_owned(),
            state: WaveState::Running.into(),
            total_devices: 20,
            device_counts: [count("SUCCEEDED", 12), count("FAILED", 1), count("QUEUED", 7)].into(),
            ..WaveStatus::default()
        };
        assert_eq!(wave_line(&wave), "canary         RUNNING            13/20  12 done, 1 failed");
        let bare = WaveStatus { index: 2, state: WaveState::Pending.into(), ..WaveStatus::default() };
        assert_eq!(wave_line(&bare), "wave 2         PENDING            0/0");
    }

    #[test]
    fn a_pause_says_why() {
        let status = DeploymentStatus {
            state: State::Paused.into(),
            reason: Reason::FailureThreshold.into(),
            message: "4 of 40 failed".to_owned(),
            ..DeploymentStatus::default()
        };
        assert_eq!(deployment_line(&status), "PAUSED (FAILURE_THRESHOLD): 4 of 40 failed");
    }
}
