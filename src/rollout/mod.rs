//! Deployments as decisions: who is offered an update when, when to stop, and when it is over.
//!
//! Pure: it imports no actix, tokio or clickhouse, draws no random numbers that are not of the policy's seed, and reads no
//! clock. [`Rollout`] is one deployment; an [`Event`] and a moment ([`Now`]) go in, and what changed and what
//! is to be done ([`Effects`]) comes out. The coordinator actor (`crate::actors::deployment`) persists the former
//! before it does the latter, so that a deployment which is loaded again goes on as if nothing had happened.
pub mod artifact;
mod brake;
mod counts;
mod devices;
mod event;
mod explain;
mod hash;
mod head;
mod index;
mod machine;
mod orders;
mod places;
mod plan;
#[cfg(test)]
mod plan_tests;
mod plan_warnings;
mod policy;
mod policy_config;
mod policy_parse;
#[cfg(test)]
mod policy_tests;
mod record;
mod reports;
mod rollback;
mod sample;
mod standings;
mod stats;
mod timers;
mod wanted;
mod waves;
pub mod window;

#[cfg(test)]
mod tests;

pub use counts::{Counts, Sample, WhyCounts};
pub use event::{Action, Effects, Event, Order, Reachability, Refusal, Runs, Standing};
pub use hash::{combine, stable_hash};
pub use head::{is_final, Breach, Head, HeadError, Moment, RollbackHead, WaveHead};
pub use machine::{InitialDevice, InitialWave, Rollout};
pub use plan::{Excluded, Exclusion, Plan, Target, Targets, Wave, SAMPLES};
pub use policy::{Policy, WavePolicy, WaveSize};
pub use policy_parse::{Defaults, InvalidPolicy, MAX_WAVES};
pub use record::{is_active, Record, RecordError, Why, RECORD_BYTES};
pub use stats::{Durations, Pace};

pub use fleetd_proto::v1::deployment_status::{Reason, State as DeploymentState};
pub use fleetd_proto::v1::device_deployment_status::State as DeviceState;
pub use fleetd_proto::v1::wave_status::State as WaveState;

use crate::clock::UnixMillis;

/// A device's number in its deployment, from 0. Within a wave, offers go out in this order.
pub type Place = u32;

/// A moment, as a deployment knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Milliseconds that a running server has watched the deployment since it was created. Every deadline is kept in
    /// this time: neither a jump of the wall clock nor an outage of the server, in which no device could report,
    /// makes anything late. It goes on from the saved value after a restart.
    pub watched: u64,
    /// For maintenance windows, for `start_at`, and for people.
    pub wall: UnixMillis,
}
