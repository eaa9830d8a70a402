//! Deployments as callers see them: from the registry's records, and from what a coordinator knows, to the contract's
//! messages.
use std::collections::BTreeMap;
use std::time::Duration;

use fleetd_proto::v1::{DeploymentConfig, DeploymentMetrics, DeploymentStatus, DeviceDeploymentStatus, WaveStatus};
use fleetd_proto::Timestamp;
use prost::Message as _;

use super::device_service::timestamp;
use crate::actors::deployment;
use crate::clock::UnixMillis;
use crate::error::ApiError;
use crate::rollout::{Counts, DeploymentState, DeviceState, Head, Moment, Record, WaveHead};
use crate::store::{AttemptRecord, DeploymentDevice, DeploymentRecord};

pub use deployment::head_of;

/// `message` is the coordinator's; without one the deployment is over, and its head says how.
pub fn status(
    record: &DeploymentRecord,
    head: &Head,
    version: String,
    message: Option<String>,
) -> Result<DeploymentStatus, ApiError> {
    let config = DeploymentConfig::decode(record.config.clone()).map_err(|error| {
        ApiError::internal(format!("the policy of deployment {} cannot be read", record.id)).with_source(error)
    })?;
    Ok(DeploymentStatus {
        deployment_id: record.id.clone(),
        update_id: record.update_id.clone(),
        state: head.state.into(),
        reason: head.reason.into(),
        waves: head.waves.iter().enumerate().map(|(index, wave)| wave_status(index, wave)).collect(),
        total_devices: count(head.total_work),
        device_counts: counts(&head.counts),
        message: message.unwrap_or_else(|| head.message()),
        config: Some(config),
        device_filter: record.device_filter.clone(),
        created_by: record.created_by.clone(),
        created_at: Some(timestamp(record.created_at)),
        started_at: at(head.started),
        finished_at: at(head.finished),
        progress_percent: head.progress_percent(),
        version,
    })
}

fn wave_status(index: usize, wave: &WaveHead) -> WaveStatus {
    WaveStatus {
        index: i32::try_from(index).unwrap_or(i32::MAX),
        name: wave.name.clone(),
        state: wave.state.into(),
        total_devices: count(wave.total),
        device_counts: counts(&wave.counts),
        started_at: at(wave.started),
        soak_until: at(wave.soak_until),
        finished_at: at(wave.finished),
        gate_results: wave.gate_results.clone(),
    }
}

/// A deployment in figures, at a moment of its own clock.
pub fn metrics(head: &Head, watched: u64) -> DeploymentMetrics {
    // What stands still or goes back has no end to be foretold.
    let is_running = head.state == DeploymentState::Running;
    let estimated_completion = head.remaining_millis(watched).filter(|_| is_running).map(|millis| {
        let now = UnixMillis::now().as_millis();
        timestamp(UnixMillis::from_millis_clamped(now.saturating_add(i64::try_from(millis).unwrap_or(i64::MAX))))
    });
    DeploymentMetrics {
        attempted_devices: count(head.attempted),
        succeeded_devices: count(head.counts.get(DeviceState::Succeeded)),
        failed_devices: count(head.failed),
        active_devices: count(head.active()),
        failure_percentage: head.failure_percentage(),
        devices_per_minute: head.devices_per_minute(watched),
        estimated_completion,
        median_duration: head.durations.median().map(|millis| Duration::from_millis(millis).into()),
        failure_reasons: head.failures.iter().map(|(code, devices)| (code.to_owned(), count(devices))).collect(),
    }
}

fn at(moment: Option<Moment>) -> Option<Timestamp> {
    moment.map(|moment| timestamp(moment.wall()))
}

pub fn device(deployment_id: &str, device: DeploymentDevice, progress_percent: f64) -> DeviceDeploymentStatus {
    // Bytes that this server encoded itself; should they not decode, the rest is still shown.
    let record = Record::decode(&device.record).ok();
    DeviceDeploymentStatus {
        device_id: device.device_id.to_string(),
        state: device.state,
        wave: record.as_ref().map_or(0, |record| i32::try_from(record.wave()).unwrap_or(i32::MAX)),
        attempt: record.as_ref().map_or(0, Record::attempt),
        progress_percent,
        reason_code: record.as_ref().map(|record| record.reason_code().to_owned()).unwrap_or_default(),
        message: device.message,
        from_version: device.from_version,
        offered_at: device.offered_at.map(timestamp),
        updated_at: Some(timestamp(device.updated_at)),
        deployment_id: deployment_id.to_owned(),
    }
}

pub fn attempt(deployment_id: &str, attempt: AttemptRecord) -> DeviceDeploymentStatus {
    DeviceDeploymentStatus {
        device_id: attempt.device_id.to_string(),
        state: attempt.state,
        attempt: attempt.attempt,
        reason_code: attempt.reason_code,
        message: attempt.message,
        offered_at: attempt.offered_at.map(timestamp),
        updated_at: Some(timestamp(attempt.ended_at)),
        deployment_id: deployment_id.to_owned(),
        ..DeviceDeploymentStatus::default()
    }
}

fn counts(of: &Counts) -> BTreeMap<String, i32> {
    of.iter()
        .filter(|(_, devices)| *devices > 0)
        .map(|(state, devices)| (state.as_str_name().to_owned(), count(devices)))
        .collect()
}

pub fn count(devices: u32) -> i32 {
    i32::try_from(devices).unwrap_or(i32::MAX)
}
