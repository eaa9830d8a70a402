//! A policy as the configuration that says the same: what PlanDeployment shows, and what the registry keeps.
use fleetd_proto::v1::{wave_spec, DeploymentConfig, RolloutPolicy, WaveSpec};

use super::policy::{Policy, WavePolicy, WaveSize};

impl Policy {
    /// With every field set. [`Policy::of`] with it and any update gives the same policy.
    pub fn to_config(&self) -> DeploymentConfig {
        let count = |count: u32| Some(i32::try_from(count).unwrap_or(i32::MAX));
        DeploymentConfig {
            strategy: self.strategy as i32,
            canary_percentage: Some(self.canary_percentage),
            validation_duration: Some(self.validation_duration.into()),
            auto_promote: Some(self.auto_promote),
            max_parallel: count(self.max_parallel),
            max_failure_percentage: Some(self.max_failure_percentage),
            waves: self.waves.iter().map(WavePolicy::to_spec).collect(),
            policy: Some(RolloutPolicy {
                min_attempted: count(self.min_attempted),
                accept_timeout: Some(self.accept_timeout.into()),
                finish_timeout: Some(self.finish_timeout.into()),
                confirm_duration: Some(self.confirm_duration.into()),
                vanish_timeout: Some(self.vanish_timeout.into()),
                max_attempts: count(self.max_attempts),
                retry_backoff: Some(self.retry_backoff.into()),
                max_retry_backoff: Some(self.max_retry_backoff.into()),
                joiners: self.joiners as i32,
                on_breach: self.on_breach as i32,
                require_approval: self.require_approval,
                windows: self.windows.clone(),
                gates: self.gates.clone(),
                control_percentage: Some(self.control_percentage),
                stratify_labels: self.stratify_labels.clone(),
                start_spread: Some(self.start_spread.into()),
                deadline: self.deadline.map(Into::into),
                offline_grace: Some(self.offline_grace.into()),
                seed: self.seed,
            }),
            start_at: self.start_at.map(|at| fleetd_proto::Timestamp::from_unix_millis(at.as_millis())),
            supersede: self.supersede,
        }
    }
}

impl WavePolicy {
    fn to_spec(&self) -> WaveSpec {
        WaveSpec {
            name: self.name.clone(),
            size: Some(match self.size {
                WaveSize::Devices(devices) => wave_spec::Size::DeviceCount(i32::try_from(devices).unwrap_or(i32::MAX)),
                WaveSize::Percentage(percentage) => wave_spec::Size::Percentage(percentage),
            }),
            device_filter: self.device_filter.clone(),
            soak_duration: Some(self.soak_duration.into()),
            gates: self.gates.clone(),
            auto_promote: Some(self.auto_promote),
        }
    }
}
