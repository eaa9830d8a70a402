//! How one deployment is rolled out, with every default filled in. The defaults err on the safe side.
use std::time::Duration;

use fleetd_proto::v1::rollout_policy::{Joiners, OnBreach};
use fleetd_proto::v1::update_strategy::Type as Strategy;
use fleetd_proto::v1::{MaintenanceWindow, MetricGate};

use crate::clock::UnixMillis;

/// See the fields of the same names in `proto/fleetd/v1/update.proto` for units, ranges and defaults.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    pub strategy: Strategy,
    pub max_parallel: u32,
    pub max_failure_percentage: f64,
    pub canary_percentage: f64,
    pub validation_duration: Duration,
    pub auto_promote: bool,
    /// Only for [`Strategy::Waves`].
    pub waves: Vec<WavePolicy>,
    pub min_attempted: u32,
    pub accept_timeout: Duration,
    pub finish_timeout: Duration,
    pub confirm_duration: Duration,
    pub vanish_timeout: Duration,
    pub max_attempts: u32,
    pub retry_backoff: Duration,
    pub max_retry_backoff: Duration,
    pub joiners: Joiners,
    pub on_breach: OnBreach,
    pub require_approval: bool,
    pub windows: Vec<MaintenanceWindow>,
    pub gates: Vec<MetricGate>,
    pub control_percentage: f64,
    pub stratify_labels: Vec<String>,
    pub start_spread: Duration,
    pub deadline: Option<Duration>,
    pub offline_grace: Duration,
    /// Never 0: drawn when the caller gave none.
    pub seed: u64,
    pub start_at: Option<UnixMillis>,
    pub supersede: bool,
}

/// A wave that the operator described.
#[derive(Clone, Debug, PartialEq)]
pub struct WavePolicy {
    pub name: String,
    pub size: WaveSize,
    /// In the query language; empty means any.
    pub device_filter: String,
    pub soak_duration: Duration,
    pub gates: Vec<MetricGate>,
    pub auto_promote: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum WaveSize {
    Devices(u32),
    Percentage(f64),
}
