//! One device of the fleet: its measurements and its updater in one, and what it says when its turn comes.
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use fleetd_proto::v1::{
    HeartbeatRequest, HeartbeatResponse, ReportUpdateStatusRequest, ReportUpdateStatusResponse, UpdateProgress,
};
use http::header::{HeaderValue, RETRY_AFTER};

use super::{lock, Shared};
use crate::device::Device;
use crate::drift::Extras;
use crate::slot::unix_ms;
use crate::updater::{Fetch, Updater};
use crate::wire::{self, CallError, Protocol};

/// The longest that a refusal can make a device wait.
const MAX_WAIT: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) struct SimDevice {
    pub(super) device: Device,
    pub(super) updater: Updater,
    /// Boots that its measurements know of.
    boots: u32,
    /// Taken off the network by the fleet's owner.
    pub(super) is_offline: bool,
    /// Whether the server acknowledged a heartbeat since the fleet was last told where it is.
    pub(super) has_reported: bool,
}

/// What a device does when its turn comes.
pub(super) enum Turn {
    /// Nothing, until then.
    Silent(Instant),
    Speak(Speech),
}

/// One request of a device.
pub(super) struct Speech {
    pub(super) token: HeaderValue,
    pub(super) body: Bytes,
    pub(super) is_call: bool,
    report: Option<UpdateProgress>,
    departed: Instant,
}

/// What came of a request.
pub(super) enum Answer {
    Heartbeat(Box<HeartbeatResponse>),
    Report(ReportUpdateStatusResponse),
    Nothing(CallError),
}

/// When a device's next turn is, and what it wants fetched meanwhile.
pub(super) struct Next {
    pub(super) at: Instant,
    pub(super) fetch: Option<Fetch>,
}

impl SimDevice {
    pub(super) fn new(device: Device, updater: Updater) -> Self {
        Self { device, updater, boots: 0, is_offline: false, has_reported: false }
    }
}

impl Shared {
    /// Lets time pass for a device, and asks what it has to say.
    pub(super) fn turn(&self, index: usize, message: &mut HeartbeatRequest, buffer: &mut BytesMut) -> Turn {
        let now = Instant::now();
        let ms = self.millis(now);
        let SimDevice { device, updater, boots, is_offline, .. } = &mut *lock(&self.devices[index]);
        let was_working = updater.is_working();
        updater.step(ms);
        self.count_work(was_working, updater.is_working());
        let now_ms = unix_ms();
        if *boots != updater.boots() {
            *boots = updater.boots();
            device.reboot(now_ms);
        }
        let off = updater.behaviour().offline.as_ref();
        let is_off = *is_offline || off.is_some_and(|off| off.contains(&now.saturating_duration_since(self.epoch)));
        if is_off || updater.is_silent() {
            return Turn::Silent(self.next_turn(updater, now, now + self.options.interval));
        }
        let report = updater.report(ms);
        let token = device.token.clone();
        if updater.reports_by_call() {
            let report_ = report.clone().unwrap_or_default();
            let request = ReportUpdateStatusRequest {
                device_id: device.id.clone(),
                deployment_id: report_.deployment_id,
                update_id: report_.update_id,
                attempt: report_.attempt,
                state: report_.state,
                progress_percent: report_.progress_percent,
                message: report_.message,
            };
            let body = wire::encode(Protocol::Connect, &request, buffer);
            return Turn::Speak(Speech { token, body, is_call: true, report, departed: now });
        }
        device.measure(now_ms, message, Extras::default());
        message.version.clear();
        message.version.push_str(updater.version());
        message.update_progress.clone_from(&report);
        if let Some(status) = &mut message.status {
            status.restart_count = updater.restart_count(ms);
            status.boot_id = format!("{}-{boots}", message.device_id);
        }
        if let Some(stats) = &mut message.stats {
            stats.cpu_percent = (stats.cpu_percent + updater.extra_cpu_percent()).min(100.0);
        }
        let body = wire::encode(Protocol::Connect, message, buffer);
        device.take_back_id(message);
        Turn::Speak(Speech { token, body, is_call: false, report, departed: now })
    }

    /// Tells a device what came of its request.
    pub(super) fn answered(&self, index: usize, speech: &Speech, answer: Answer) -> Next {
        let now = Instant::now();
        let ms = self.millis(now);
        let mut regular = self.options.interval;
        let mut is_well = true;
        let device = &mut *lock(&self.devices[index]);
        let updater = &mut device.updater;
        let was_working = updater.is_working();
        match answer {
            Answer::Heartbeat(response) => {
                device.has_reported = true;
                // The offer first: one that crossed the answer in the same reply is no repetition.
                if let Some(info) = &response.pending_update {
                    updater.offered(info, self.is_ended(&info.deployment_id, speech.departed), ms);
                }
                let is_refused = response.update_report.as_ref().is_some_and(|report| !report.accepted);
                match &speech.report {
                    Some(report) if is_refused => updater.refused(report),
                    Some(report) => updater.acknowledged(report, ms),
                    None => {}
                }
                let said = response.next_heartbeat.and_then(|wait| wait.try_into().ok());
                if let Some(wait) = said.filter(|_| self.options.honour_next_heartbeat) {
                    regular = wait;
                }
            }
            Answer::Report(response) => {
                if let Some(report) = &speech.report {
                    if response.accepted {
                        updater.acknowledged(report, ms);
                    } else {
                        updater.refused(report);
                    }
                }
            }
            Answer::Nothing(error) => {
                is_well = false;
                regular = regular.max(told_to_wait(&error));
                if let Some(report) = &speech.report {
                    updater.unanswered(report, ms);
                }
            }
        }
        self.count_work(was_working, updater.is_working());
        let fetch = updater.take_fetch();
        // What waits for the server's word is said at once, unless the server has just said no.
        let at =
            if is_well && updater.is_urgent() { now } else { self.next_turn(updater, now, speech.departed + regular) };
        Next { at, fetch }
    }

    /// Whatever comes first: the regular turn, or something new to say.
    fn next_turn(&self, updater: &Updater, now: Instant, regular: Instant) -> Instant {
        let due = updater.due().map(|due| self.epoch + Duration::from_millis(due));
        due.map_or(regular, |due| due.min(regular)).max(now)
    }
}

/// How long a refusal asks to wait: a rate limit says so, in seconds.
fn told_to_wait(error: &CallError) -> Duration {
    let CallError::Refused(refusal) = error else { return Duration::ZERO };
    let seconds = refusal.headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    Duration::from_secs(seconds.unwrap_or(0)).min(MAX_WAIT)
}
