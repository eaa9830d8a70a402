//! All of a deployment but its devices: its state, its waves and its counts. It is kept in the registry beside the
//! devices' records, in the same transaction, and answers for a finished deployment without them.
use fleetd_proto::v1::{GateResult, MetricGate};
use serde::{Deserialize, Serialize};

use super::counts::{Counts, Sample, WhyCounts};
use super::stats::{Durations, Pace};
use super::{DeploymentState, Now, Reason, WaveState};
use crate::clock::UnixMillis;

/// A moment that something happened at, in both times.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    /// See [`Now::watched`].
    pub watched: u64,
    wall_millis: i64,
}

impl Moment {
    pub fn wall(self) -> UnixMillis {
        UnixMillis::from_millis_clamped(self.wall_millis)
    }
}

impl From<Now> for Moment {
    fn from(now: Now) -> Self {
        Self { watched: now.watched, wall_millis: now.wall.as_millis() }
    }
}

/// A deployment without its devices.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Head {
    pub state: DeploymentState,
    /// Why it stands still, while it is PAUSED.
    pub reason: Reason,
    /// Watched time at the last change, or some seconds after it: where a restart goes on from.
    pub watched: u64,
    pub created: Moment,
    /// When it began to run.
    pub started: Option<Moment>,
    /// When it reached a final state.
    pub finished: Option<Moment>,
    pub waves: Vec<WaveHead>,
    /// The wave whose turn it is, or was last.
    pub current: usize,
    /// Devices by state.
    pub counts: Counts,
    /// Devices that were not without work from the start.
    pub total_work: u32,
    /// Devices that were ever attempted.
    pub attempted: u32,
    /// Devices that failed and did not succeed since.
    pub failed: u32,
    /// Of those that failed, why.
    pub failures: WhyCounts,
    /// Grows each time an operator resumes in spite of failures: the brake looks at what happened since.
    pub epoch: u16,
    /// What the brake looks at over the whole deployment.
    pub sample: Sample,
    /// The policy's limit, for [`Head::message`].
    pub max_failure_percentage: f64,
    /// What made the brake act last.
    pub breach: Option<Breach>,
    /// Since when only the trailing lane is left.
    pub lane_since: Option<u64>,
    pub rollback: Option<RollbackHead>,
    pub is_approved: bool,
    /// An operator resumed it after its deadline.
    pub is_deadline_waived: bool,
    /// From accepting to the end, of devices that succeeded.
    pub durations: Durations,
    /// Devices that were done, in any way.
    pub pace: Pace,
}

/// A wave without its devices.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WaveHead {
    pub name: String,
    pub state: WaveState,
    pub soak_millis: u64,
    #[serde(with = "protobuf")]
    pub gates: Vec<MetricGate>,
    pub auto_promote: bool,
    pub total: u32,
    /// Of them, those that were not without work from the start.
    pub total_work: u32,
    pub counts: Counts,
    /// Of the HELD ones, those that wait for their own maintenance window: they hold the wave open.
    pub held_for_window: u32,
    /// What the brake looks at in this wave.
    pub sample: Sample,
    /// When its first device was offered the update.
    pub started: Option<Moment>,
    /// When the first offer went out while it ran, to a device of an earlier wave too: its offers spread from here.
    pub spread_from: Option<u64>,
    /// When its last device was done, so far.
    pub last_done: Option<u64>,
    /// When its soak ends or ended, once it began.
    pub soak_until: Option<Moment>,
    pub finished: Option<Moment>,
    /// What its gates measured last.
    #[serde(with = "protobuf")]
    pub gate_results: Vec<GateResult>,
    /// An operator passed it in spite of what it lacks: its gates, or any success.
    pub is_waived: bool,
    /// An operator promoted it.
    pub is_promoted: bool,
}

/// What made the brake act.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Breach {
    /// The wave that was judged; `None`: the whole deployment.
    pub wave: Option<usize>,
    pub sample: Sample,
    pub at: Moment,
}

/// How far a rollback is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RollbackHead {
    /// Outside of maintenance windows too.
    pub is_forced: bool,
    pub started: Moment,
    /// Devices that ran the update's version, or worked on it, when it began.
    pub affected: u32,
    /// Places below it were not looked at yet.
    pub cursor: u32,
    /// Devices that took the way back, or let it lapse.
    pub attempted: u32,
    /// Too many of them failed: no more are offered it.
    pub is_braked: bool,
    /// Since when only devices are left that cannot be reached.
    pub lane_since: Option<u64>,
}

/// A kept head that this version cannot read.
#[derive(Debug, thiserror::Error)]
#[error("a deployment's head is not readable")]
pub struct HeadError(#[source] serde_json::Error);

/// The kept form: a version before everything else, so that a later one can tell.
#[derive(Serialize, Deserialize)]
struct Kept<T> {
    version: u32,
    head: T,
}

const VERSION: u32 = 1;

impl Head {
    /// As JSON.
    pub fn encode(&self) -> Vec<u8> {
        // Plain data with text keys: it always serialises.
        serde_json::to_vec(&Kept { version: VERSION, head: self }).unwrap_or_default()
    }

    /// # Errors
    /// When the bytes are not such a head, or one of a later version.
    pub fn decode(bytes: &[u8]) -> Result<Self, HeadError> {
        let kept: Kept<Self> = serde_json::from_slice(bytes).map_err(HeadError)?;
        if kept.version != VERSION {
            let error = format!("its version is {}, not {VERSION}", kept.version);
            return Err(HeadError(<serde_json::Error as serde::de::Error>::custom(error)));
        }
        Ok(kept.head)
    }

    /// Whether the state is final; devices may still be working.
    pub fn is_final(&self) -> bool {
        is_final(self.state)
    }

    /// Devices at risk now, from the offer to the end.
    pub fn active(&self) -> u32 {
        self.counts.active()
    }

    /// Share of the devices that are done in any way, in per cent; those without work do not count.
    pub fn progress_percent(&self) -> f64 {
        if self.total_work == 0 {
            return 100.0;
        }
        f64::from(self.done()) * 100.0 / f64::from(self.total_work)
    }

    /// Devices that had work at the start, and are done in any way; those found to have the version already count.
    fn done(&self) -> u32 {
        let total: u32 = self.waves.iter().map(|wave| wave.total).sum();
        let without_work_at_start = total.saturating_sub(self.total_work);
        (self.counts.done() + self.counts.without_work()).saturating_sub(without_work_at_start)
    }

    /// Failed in per cent of attempted, over the whole deployment.
    pub fn failure_percentage(&self) -> f64 {
        if self.attempted == 0 {
            return 0.0;
        }
        f64::from(self.failed) * 100.0 / f64::from(self.attempted)
    }

    /// When the devices that are left will be done at the rate of the last ten minutes, in milliseconds from now.
    pub fn remaining_millis(&self, watched: u64) -> Option<u64> {
        let left = self.total_work.saturating_sub(self.done());
        let rate = self.devices_per_minute(watched);
        (left > 0 && rate > 0.0 && !self.is_final()).then(|| (f64::from(left) / rate * 60_000.0) as u64)
    }

    /// Devices done a minute, over the last ten minutes.
    pub fn devices_per_minute(&self, watched: u64) -> f64 {
        self.pace.per_minute(self.started.map_or(watched, |started| started.watched), watched)
    }

    pub(super) fn wave(&self) -> Option<&WaveHead> {
        self.waves.get(self.current)
    }

    pub(super) fn is_last_wave(&self) -> bool {
        self.current + 1 >= self.waves.len()
    }

    /// Whether every wave is done, and only held devices of earlier waves, and joiners, are left.
    pub fn is_trailing(&self) -> bool {
        self.is_last_wave() && self.wave().is_none_or(|wave| wave.state == WaveState::Done)
    }
}

/// Whether a deployment in this state never runs again of itself.
pub fn is_final(state: DeploymentState) -> bool {
    use DeploymentState as S;
    matches!(
        state,
        S::Denied | S::Cancelled | S::RolledBack | S::RollbackIncomplete | S::Succeeded | S::Failed | S::Superseded
    )
}

/// Messages of the contract inside of JSON: encoded, in base64, so that every value (NaN too) comes back as it was.
mod protobuf {
    use base64::engine::general_purpose::STANDARD;
    use base64::Engine as _;
    use prost::Message;
    use serde::{de, Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<M: Message, S: Serializer>(messages: &[M], serializer: S) -> Result<S::Ok, S::Error> {
        let texts: Vec<String> = messages.iter().map(|message| STANDARD.encode(message.encode_to_vec())).collect();
        texts.serialize(serializer)
    }

    pub fn deserialize<'de, M: Message + Default, D: Deserializer<'de>>(reader: D) -> Result<Vec<M>, D::Error> {
        let texts = Vec::<String>::deserialize(reader)?;
        let message = |text: &String| {
            let bytes = STANDARD.decode(text).map_err(de::Error::custom)?;
            M::decode(bytes.as_slice()).map_err(de::Error::custom)
        };
        texts.iter().map(message).collect()
    }
}
