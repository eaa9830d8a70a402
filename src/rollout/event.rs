//! What a deployment is told, and what it wants done.
use fleetd_proto::v1::{update_progress, GateResult};

use super::{DeploymentState, DeviceState, Place, WaveState};

/// What can happen to a deployment.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Time passed.
    Tick,
    /// How a device stands that the deployment wanted to know of.
    Standing { place: Place, standing: Standing },
    /// What a device says of the update that it was offered.
    Report { place: Place, attempt: u32, state: update_progress::State },
    /// What an operator wants.
    Order(Order),
    /// What the gates of a wave measured, one result for each gate of its policy, in order.
    Measured { wave: usize, results: Vec<GateResult> },
    /// Devices that match since; they take the next places, in this order, and start as QUEUED in the last wave.
    Joined { count: u32 },
    /// The device was deleted from the fleet.
    Removed { place: Place },
    /// Another deployment takes the device, by an operator's explicit choice; refused while it works on this one's.
    Superseded { place: Place },
}

/// What an operator can want. Each is harmless when it is repeated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    Approve,
    Deny,
    Pause,
    Resume {
        acknowledge_failures: bool,
    },
    /// `wave` is the one that waits; `None` means whichever does.
    Promote {
        wave: Option<usize>,
    },
    Cancel,
    /// `force` goes back outside of maintenance windows too.
    RollBack {
        force: bool,
    },
    /// Devices that failed, or all of them.
    RetryFailed {
        places: Option<Vec<Place>>,
    },
}

/// How a device stands now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    pub reachability: Reachability,
    /// Milliseconds since its last heartbeat, on the monotonic clock; `None`: none since the server started.
    pub silent_for: Option<u64>,
    pub runs: Runs,
    /// Whether a maintenance window is open for it, where windows are in the devices' own time zones.
    pub is_window_open: bool,
    /// Whether another deployment has it now.
    pub is_taken: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reachability {
    /// It reports, in time or a little late.
    Online,
    Offline,
    /// An operator took it out of service.
    Maintenance,
}

/// Which version a device reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runs {
    /// The update's.
    Target,
    /// The one that it ran when it was chosen.
    Before,
    /// Neither.
    Other,
}

/// What is to be done, once what changed is durable.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Offer the update (or, on the way back, the version before) to a device. Moments are in watched time.
    Offer {
        place: Place,
        attempt: u32,
        accept_before: u64,
        finish_before: u64,
        is_rollback: bool,
    },
    /// Take back an offer that no device accepted.
    Revoke {
        place: Place,
        attempt: u32,
    },
    /// Measure the gates of a wave, and come back with [`Event::Measured`]. Asked again after a reload.
    Measure {
        wave: usize,
    },
    /// For `deployment_events`, streams and webhooks.
    TellDevice {
        place: Place,
        from: DeviceState,
        to: DeviceState,
        wave: usize,
        attempt: u32,
    },
    TellWave {
        wave: usize,
        from: WaveState,
        to: WaveState,
    },
    TellDeployment {
        from: DeploymentState,
        to: DeploymentState,
    },
}

/// What the events since the last look came to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Effects {
    /// Devices whose record changed, each once.
    pub changed: Vec<Place>,
    /// Whether the head (state, waves, counts) changed.
    pub is_head_changed: bool,
    /// In order.
    pub actions: Vec<Action>,
}

/// Why an event was not taken; nothing changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A device's report that does not count; the code is stable, such as `OFFER_REVOKED` or `OLD_ATTEMPT`.
    #[error("the report does not count: {code}")]
    Report { code: &'static str },
    /// An operator's order that does not fit the deployment's state; FAILED_PRECONDITION, in a sentence.
    #[error("{0}")]
    Order(String),
}
