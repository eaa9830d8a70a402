//! How one simulated device updates itself: a state machine that is told the time, offers and acknowledgements, and
//! says what the device reports next. It does nothing by itself, and draws its mishaps from its seed.
//!
//! Its rules are those of a careful agent:
//! - an offer is answered until the answer is acknowledged, and no work begins before that;
//! - installing begins once DOWNLOADED is acknowledged, the last moment at which an offer can be void;
//! - what it reached is reported until it is acknowledged (at least once), and never twice begun;
//! - a higher attempt of what it works on already takes over that work instead of beginning it anew.
mod behaviour;
mod history;
mod task;
#[cfg(test)]
mod tests;

use std::time::Duration;

use fleetd_proto::v1::{UpdateInfo, UpdateProgress};

pub(crate) use behaviour::hash;
pub use behaviour::Behaviour;
use behaviour::Fate;
use history::History;
pub use history::{Attempt, Violations};
pub use task::Fetch;
use task::{Stage, Task};

/// One device's updating. Times are milliseconds of any clock that only goes forward.
#[derive(Clone, Debug)]
pub struct Updater {
    behaviour: Behaviour,
    seed: u64,
    version: String,
    task: Option<Task>,
    fetch: Option<Fetch>,
    /// Silent for good: vanished or bricked.
    is_gone: bool,
    is_harmed: bool,
    /// Since when it runs a bad version.
    bad_since: Option<u64>,
    boots: u32,
    installs: u64,
    rollbacks: u64,
    history: History,
}

impl Updater {
    pub fn new(version: &str, seed: u64, behaviour: Behaviour) -> Self {
        Self {
            behaviour,
            seed,
            version: version.to_owned(),
            task: None,
            fetch: None,
            is_gone: false,
            is_harmed: false,
            bad_since: None,
            boots: 0,
            installs: 0,
            rollbacks: 0,
            history: History::default(),
        }
    }

    pub fn behaviour(&self) -> &Behaviour {
        &self.behaviour
    }

    /// Holds for offers that come from now on; an attempt under way keeps its fate and takes the new durations.
    pub fn set_behaviour(&mut self, behaviour: Behaviour) {
        self.behaviour = behaviour;
    }

    pub fn version(&self) -> &str {
        &self.version
    }

    /// How often it restarted; uptime begins anew with each.
    pub fn boots(&self) -> u32 {
        self.boots
    }

    /// Whether it has heartbeats to send: not while it restarts, nor once it vanished.
    pub fn is_silent(&self) -> bool {
        self.is_gone || self.task.as_ref().is_some_and(|task| task.stage == Stage::Down)
    }

    /// Whether it vanished or never came up again.
    pub fn is_gone(&self) -> bool {
        self.is_gone
    }

    /// Switches a vanished or bricked device on again; it knows nothing of the attempt that it went away with.
    pub fn revive(&mut self) {
        if self.is_gone {
            self.is_gone = false;
            self.boots += 1;
            self.task = None;
        }
    }

    /// Whether an update did it harm, ever: an installation that failed, a version that did not boot, worked badly or
    /// was left again, a device that went silent. A rejection or a failed download does no harm.
    pub fn is_harmed(&self) -> bool {
        self.is_harmed
    }

    /// Whether it has work that it was told to do and is not done with.
    pub fn is_working(&self) -> bool {
        !self.is_gone && self.task.as_ref().is_some_and(|task| task.stage.is_working())
    }

    pub fn attempts(&self) -> &[Attempt] {
        &self.history.attempts
    }

    pub fn violations(&self) -> &Violations {
        &self.history.violations
    }

    pub fn reoffered_while_working(&self) -> u64 {
        self.history.reoffered_while_working
    }

    /// Updates that it came up with, rollbacks not counted.
    pub fn installs(&self) -> u64 {
        self.installs
    }

    pub fn rollbacks(&self) -> u64 {
        self.rollbacks
    }

    /// The state's name: those of UpdateProgress, `DOWN` while it restarts, `GONE`, or `IDLE`.
    pub fn state(&self) -> &'static str {
        match &self.task {
            _ if self.is_gone => "GONE",
            None => "IDLE",
            Some(task) if task.stage == Stage::Down => "DOWN",
            Some(task) => task.stage.wire().as_str_name(),
        }
    }

    /// What a bad version adds to the processor's load, in per cent.
    pub fn extra_cpu_percent(&self) -> f64 {
        if self.bad_since.is_some() {
            self.behaviour.bad_cpu_percent
        } else {
            0.0
        }
    }

    /// How often its workload was restarted since it booted.
    pub fn restart_count(&self, now: u64) -> u32 {
        let every = millis(self.behaviour.bad_restart_every).max(1);
        let restarts = self.bad_since.map_or(0, |since| now.saturating_sub(since) / every);
        u32::try_from(restarts).unwrap_or(u32::MAX)
    }

    /// When it will have something new to say, or comes up; `None` while only the server can change that.
    pub fn due(&self) -> Option<u64> {
        self.task.as_ref().filter(|_| !self.is_gone).and_then(|task| task.due)
    }

    /// A file to fetch; given once.
    pub fn take_fetch(&mut self) -> Option<Fetch> {
        self.fetch.take()
    }

    /// Lets time pass.
    pub fn step(&mut self, now: u64) {
        // Each pass ends one stage; steps without duration follow at once.
        while let Some(due) = self.due().filter(|due| *due <= now) {
            self.stage_ends(due);
        }
    }

    /// What to report now; `None` when the server knows all there is to know.
    pub fn report(&self, now: u64) -> Option<UpdateProgress> {
        let task = self.task.as_ref().filter(|task| !(task.stage.is_final() && task.is_heard))?;
        let percent = match (task.stage, task.due) {
            (Stage::Downloading, _) if task.fetches => task.percent,
            (Stage::Downloading | Stage::Installing, Some(due)) => {
                let whole = due.saturating_sub(task.since).max(1) as f64;
                (now.saturating_sub(task.since) as f64 / whole * 100.0).clamp(0.0, 100.0).round()
            }
            _ => 0.0,
        };
        Some(UpdateProgress {
            deployment_id: task.offer.deployment_id.clone(),
            update_id: task.offer.update_id.clone(),
            attempt: task.offer.attempt,
            state: task.stage.wire().into(),
            progress_percent: percent,
            message: task.message.to_owned(),
        })
    }

    /// Whether the report should not wait for the next regular heartbeat: the device answers an offer, cannot go on
    /// before the server knows, or is done.
    pub fn is_urgent(&self) -> bool {
        self.task.as_ref().is_some_and(|task| match task.stage {
            Stage::Accepting | Stage::Downloaded | Stage::Rebooting => true,
            stage => stage.is_final() && !task.is_heard,
        })
    }

    /// Whether the report is to be made with ReportUpdateStatus rather than with a heartbeat.
    pub fn reports_by_call(&self) -> bool {
        let answers = |task: &Task| matches!(task.stage, Stage::Accepting | Stage::Rejecting) && !task.is_heard;
        self.behaviour.accept_by_call && self.task.as_ref().is_some_and(answers)
    }

    /// The server has this report. An offer that came in the same reply is told before: it may have crossed the answer.
    pub fn acknowledged(&mut self, report: &UpdateProgress, now: u64) {
        if let Some(attempt) = self.history.get_mut(&report.deployment_id, report.attempt) {
            attempt.is_answered = true;
        }
        let Some(task) = self.current(report) else { return };
        match task.stage {
            Stage::Accepting if task.fate == Fate::Vanishes => {
                self.is_gone = true;
                self.is_harmed = true;
            }
            Stage::Accepting => self.begin_download(now),
            Stage::Downloaded => self.begin_install(now),
            Stage::Rebooting => self.go_down(now),
            Stage::Rejecting | Stage::Succeeded | Stage::Failed | Stage::Reverted => task.is_heard = true,
            Stage::Downloading | Stage::Installing | Stage::Down | Stage::Confirming => {}
        }
    }

    /// Nobody knows whether the server has this report: it is made again, except that a restart does not wait.
    pub fn unanswered(&mut self, report: &UpdateProgress, now: u64) {
        if self.current(report).is_some_and(|task| task.stage == Stage::Rebooting) {
            self.go_down(now);
        }
    }

    /// The server has this report, and it does not count: the offer is void. What is not installed yet stops.
    pub fn refused(&mut self, report: &UpdateProgress) {
        if let Some(attempt) = self.history.get_mut(&report.deployment_id, report.attempt) {
            attempt.is_answered = true;
            attempt.is_void = true;
        }
        let Some(task) = self.current(report) else { return };
        let has_begun =
            !matches!(task.stage, Stage::Accepting | Stage::Rejecting | Stage::Downloading | Stage::Downloaded);
        if has_begun {
            task.is_heard = true;
        } else {
            self.task = None;
        }
    }

    /// An offer came. `is_ended` says that its deployment was known to be over when the request left.
    pub fn offered(&mut self, info: &UpdateInfo, is_ended: bool, now: u64) {
        let (index, is_first) = self.history.offer(info, is_ended);
        // A void offer that is made again under its number is taken as a new one.
        if !is_first && !self.history.attempts[index].is_void {
            return;
        }
        if let Some(task) = self.task.as_mut().filter(|task| task.stage.is_working()) {
            let is_same_work = task.offer.deployment_id == info.deployment_id && task.offer.rollback == info.rollback;
            if is_same_work {
                self.history.reoffered_while_working += 1;
                task.offer.attempt = info.attempt;
            } else {
                self.history.two_at_once(info, &task.offer);
            }
            return;
        }
        let attempt = &mut self.history.attempts[index];
        (attempt.is_void, attempt.is_answered) = (false, false);
        let fate = self.behaviour.draw(self.seed, &info.deployment_id, info.attempt, info.rollback);
        let (stage, message) = match fate {
            Fate::Ignores => {
                self.task = None;
                return;
            }
            Fate::Rejects => (Stage::Rejecting, "not now: the machine is in use"),
            _ => (Stage::Accepting, ""),
        };
        self.task = Some(Task {
            offer: info.clone(),
            fate,
            before: self.version.clone(),
            stage,
            since: now,
            due: None,
            is_heard: false,
            percent: 0.0,
            message,
            fetches: false,
        });
    }

    /// How far a fetch is.
    pub fn fetching(&mut self, fetch: &Fetch, percent: f64) {
        if let Some(task) = self.fetching_task(fetch) {
            task.percent = percent;
        }
    }

    /// How a fetch ended: whole and with the right checksum, or why not.
    pub fn fetched(&mut self, fetch: &Fetch, outcome: Result<(), &'static str>, now: u64) {
        if self.fetching_task(fetch).is_none() {
            return;
        }
        match outcome {
            Ok(()) => self.enter(Stage::Downloaded, now, None),
            Err(why) => self.fail(why, now),
        }
    }

    fn fetching_task(&mut self, fetch: &Fetch) -> Option<&mut Task> {
        let is_it = |task: &&mut Task| {
            task.fetches && task.stage == Stage::Downloading && task.offer.deployment_id == fetch.deployment_id
        };
        self.task.as_mut().filter(is_it)
    }

    /// The task, if this report tells of it as it is now.
    fn current(&mut self, report: &UpdateProgress) -> Option<&mut Task> {
        self.task.as_mut().filter(|task| {
            task.offer.attempt == report.attempt
                && task.offer.deployment_id == report.deployment_id
                && i32::from(task.stage.wire()) == report.state
        })
    }

    fn begin_download(&mut self, now: u64) {
        let download = millis(self.behaviour.download);
        let Some(task) = &mut self.task else { return };
        let fails = task.fate == Fate::DownloadFails;
        task.fetches = self.behaviour.fetch && !fails && !task.offer.download_url.is_empty();
        if task.fetches {
            let artifact = task.offer.artifact.clone().unwrap_or_default();
            self.fetch = Some(Fetch {
                deployment_id: task.offer.deployment_id.clone(),
                attempt: task.offer.attempt,
                url: task.offer.download_url.clone(),
                checksum: artifact.checksum,
                size_bytes: artifact.size_bytes.unsigned_abs(),
            });
            self.enter(Stage::Downloading, now, None);
        } else {
            self.enter(Stage::Downloading, now, Some(if fails { download / 2 } else { download }));
        }
    }

    fn begin_install(&mut self, now: u64) {
        if let Some(task) = &self.task {
            if let Some(attempt) = self.history.get_mut(&task.offer.deployment_id, task.offer.attempt) {
                attempt.installs += 1;
            }
        }
        self.enter(Stage::Installing, now, Some(millis(self.behaviour.install)));
    }

    fn go_down(&mut self, now: u64) {
        self.enter(Stage::Down, now, Some(millis(self.behaviour.reboot)));
    }

    /// The stage under way ends by itself.
    fn stage_ends(&mut self, now: u64) {
        let Some((stage, fate)) = self.task.as_ref().map(|task| (task.stage, task.fate)) else { return };
        match (stage, fate) {
            (Stage::Downloading, Fate::DownloadFails) => self.fail("the download broke off", now),
            (Stage::Downloading, _) => self.enter(Stage::Downloaded, now, None),
            (Stage::Installing, Fate::InstallFails) => {
                self.is_harmed = true;
                self.fail("the installer ended with an error", now);
            }
            (Stage::Installing, _) => self.enter(Stage::Rebooting, now, None),
            (Stage::Down, _) => self.come_up(now),
            (Stage::Confirming, Fate::Works { reverts: true, .. }) => {
                self.enter(Stage::Succeeded, now, Some(millis(self.behaviour.revert_after)));
            }
            (Stage::Confirming, _) => self.enter(Stage::Succeeded, now, None),
            (Stage::Succeeded, _) => self.revert(now),
            // Nothing else ends by itself.
            _ => self.enter(stage, now, None),
        }
    }

    fn come_up(&mut self, now: u64) {
        let Some(task) = &self.task else { return };
        match task.fate {
            Fate::Bricks => {
                self.is_gone = true;
                self.is_harmed = true;
            }
            Fate::BootFails => {
                self.is_harmed = true;
                self.boots += 1;
                self.bad_since = self.bad_since.map(|_| now);
                self.fail("the new version did not boot; the one before runs", now);
            }
            fate => {
                self.boots += 1;
                self.version.clone_from(&task.offer.version);
                *(if task.offer.rollback { &mut self.rollbacks } else { &mut self.installs }) += 1;
                let is_bad = matches!(fate, Fate::Works { is_bad: true, .. });
                self.bad_since = is_bad.then_some(now);
                self.is_harmed |= is_bad;
                self.enter(Stage::Confirming, now, Some(millis(self.behaviour.confirm)));
            }
        }
    }

    fn revert(&mut self, now: u64) {
        let Some(task) = &mut self.task else { return };
        self.version.clone_from(&task.before);
        task.message = "a watchdog went back to the version before";
        self.boots += 1;
        self.bad_since = None;
        self.is_harmed = true;
        self.enter(Stage::Reverted, now, None);
    }

    fn fail(&mut self, why: &'static str, now: u64) {
        if let Some(task) = &mut self.task {
            task.message = why;
        }
        self.enter(Stage::Failed, now, None);
    }

    fn enter(&mut self, stage: Stage, now: u64, lasts: Option<u64>) {
        if let Some(task) = &mut self.task {
            task.stage = stage;
            task.since = now;
            task.due = lasts.map(|lasts| now.saturating_add(lasts));
            task.is_heard = false;
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
