//! DeviceService: registration and single reads. Lists are in `listing`, edits in `device_edit`, heartbeats in
//! `heartbeats`.
use std::sync::Arc;

use fleetd_proto::v1::{
    BatchRegisterDevicesRequest, BatchRegisterDevicesResponse, Device, DeviceHealth, DeviceMetrics, DeviceStatus,
    GetDeviceRequest, GetDeviceResponse, RegisterDeviceRequest, RegisterDeviceResponse, SystemInfo, SystemStats,
};
use fleetd_proto::Timestamp;
use prost::Message as _;
use tokio::sync::watch;

use super::access::{Access, Call};
use super::command_service::CommandCounters;
use super::device_edit;
use super::pages::Tokens;
use super::registration;
use crate::actors::deployment::Deployments;
use crate::actors::directory::DeviceDirectory;
use crate::actors::entry::{DeviceEntry, Live};
use crate::clock::UnixMillis;
use crate::error::ApiError;
use crate::events::{Event, Events, What};
use crate::fleet::{self, FleetQueries};
use crate::health::{self, Finding, Health, HealthRules, Vitals};
use crate::metrics::Metrics;
use crate::store::{self, Store};

pub const REGISTER_DEVICE: &str = "fleetd.v1.DeviceService/RegisterDevice";
pub const BATCH_REGISTER_DEVICES: &str = "fleetd.v1.DeviceService/BatchRegisterDevices";
pub const GET_DEVICE: &str = "fleetd.v1.DeviceService/GetDevice";

pub struct DeviceService {
    pub access: Arc<Access>,
    pub directory: DeviceDirectory,
    pub deployments: Deployments,
    pub store: Arc<dyn Store>,
    pub metrics: Metrics,
    pub commands: Arc<CommandCounters>,
    pub tokens: Tokens,
    pub queries: FleetQueries,
    pub events: Events,
    /// Ends streams when the server stops.
    pub stopping: watch::Receiver<bool>,
    pub health: Arc<HealthRules>,
}

impl DeviceService {
    /// Permission: `device:register`. The key in the answer is shown this once; only its hash is kept.
    pub async fn register(
        &self,
        call: &mut Call,
        request: RegisterDeviceRequest,
    ) -> Result<RegisterDeviceResponse, ApiError> {
        self.access.authorize(call, REGISTER_DEVICE).await?;
        let (device, key) = registration::device_of(request, UnixMillis::now())?;
        let answer = registration::answer(&device, &key);
        let entry = DeviceEntry::new(device.id.clone(), device.key_hash, (&device).into());
        self.store.register(device.clone()).await?;
        // Durable first, known second: a crash between the two leaves a device that the next start knows.
        self.directory.admit(entry, &(&device).into());
        self.tell(What::Registered { device: Arc::new(device) });
        Ok(answer)
    }

    /// Permission: `device:register`. Up to [`registration::MAX_BATCH`] devices, each with a result of its own.
    pub async fn register_batch(
        &self,
        call: &mut Call,
        request: BatchRegisterDevicesRequest,
    ) -> Result<BatchRegisterDevicesResponse, ApiError> {
        self.access.authorize(call, BATCH_REGISTER_DEVICES).await?;
        let batch = registration::Batch::of(request, UnixMillis::now())?;
        let outcomes = self.store.register_many(batch.devices()).await;
        Ok(batch.answer(outcomes, |entry, device| {
            self.directory.admit(entry, &device.into());
            self.tell(What::Registered { device: Arc::new(device.clone()) });
        }))
    }

    /// Tells what happened to a device. What the journal does not take is counted; the change stands without it.
    pub(super) fn tell(&self, what: What) {
        self.events.tell(Event { at: UnixMillis::now(), what });
    }

    /// Permission: `device:view`; a device may read itself.
    pub async fn get(&self, call: &mut Call, request: GetDeviceRequest) -> Result<GetDeviceResponse, ApiError> {
        let entry = self.access.authorize_for_device(call, GET_DEVICE, &request.device_id).await?;
        let stored = self.store.device(&entry.id).await?.ok_or_else(|| no_device(entry.id.as_str()))?;
        let live = entry.live();
        let system = SystemInfo::decode(stored.system_info.clone()).unwrap_or_default();
        let metrics = metrics_of(&system, &live);
        let health = request.include_health.then(|| self.health_of(&stored, &live, metrics.as_ref()));
        let metrics = metrics.filter(|_| request.include_metrics);
        Ok(GetDeviceResponse { device: Some(self.shown(stored, &live)), metrics, health })
    }

    fn health_of(&self, stored: &store::Device, live: &Live, metrics: Option<&DeviceMetrics>) -> DeviceHealth {
        let stats = metrics.and_then(|metrics| metrics.stats.as_ref());
        let vitals = Vitals {
            presence: self.directory.presence(live),
            cpu_percent: stats.map(|stats| stats.cpu_percent),
            memory_percent: metrics.and_then(|metrics| metrics.memory_percent),
            disk_percent: metrics.and_then(|metrics| metrics.disk_percent),
            temperature_celsius: stats.and_then(|stats| stats.temperature_celsius),
            battery_percent: stats.and_then(|stats| stats.battery_percent),
            restarts: live.restarts,
            boots: live.boots,
            history: None,
        };
        let thresholds = self.health.of_device(|key| stored.labels.get(key).map(String::as_str));
        health_told(stored.id.as_str(), &health::judge(&vitals, thresholds), UnixMillis::now())
    }

    /// A device as callers see it: the record, with what its heartbeats said since.
    pub(super) fn shown(&self, stored: store::Device, live: &Live) -> Device {
        let presence = self.directory.presence(live);
        let etag = device_edit::etag(&stored);
        Device {
            id: stored.id.to_string(),
            name: stored.name,
            r#type: stored.device_type,
            version: live.version.as_deref().map_or(stored.version, str::to_owned),
            metadata: stored.metadata,
            last_seen: live.last_seen.or(stored.last_seen).map(timestamp),
            // Bytes that this server encoded itself; should they not decode, the device is still shown.
            system_info: Some(stored.system_info)
                .filter(|bytes| !bytes.is_empty())
                .and_then(|bytes| SystemInfo::decode(bytes).ok()),
            status: presence.into(),
            registered_at: Some(timestamp(stored.registered_at)),
            labels: stored.labels,
            etag,
            heartbeat_interval: stored.heartbeat_interval.map(Into::into),
        }
    }
}

/// Health as callers see it.
pub(super) fn health_told(id: &str, health: &Health, at: UnixMillis) -> DeviceHealth {
    DeviceHealth {
        device_id: id.to_owned(),
        status: health.status.into(),
        score: health.score,
        reasons: health.findings.iter().map(Finding::reason).collect(),
        checked_at: Some(timestamp(at)),
    }
}

/// `None` for a device that has sent no heartbeat since the server started.
pub(super) fn metrics_of(system: &SystemInfo, live: &Live) -> Option<DeviceMetrics> {
    let last_seen = live.last_seen?;
    let stats = SystemStats::decode(&live.stats[..]).unwrap_or_default();
    // The sizes that the device registered with stand in for those that it does not report, as in lists.
    let (memory_percent, disk_percent) = fleet::percentages(&stats, system.memory_mb as f64, system.disk_gb);
    Some(DeviceMetrics {
        timestamp: Some(timestamp(last_seen)),
        memory_percent,
        disk_percent,
        stats: Some(stats),
        status: Some(DeviceStatus {
            state: live.reported.into(),
            uptime_seconds: live.uptime_seconds,
            restart_count: live.restarts,
            ..DeviceStatus::default()
        }),
        processes: Vec::new(),
        heartbeat_count: live.heartbeats,
    })
}

pub(super) fn no_device(id: &str) -> ApiError {
    ApiError::not_found(format!("device {id} is not registered; RegisterDevice makes it known"))
}

/// A point in time as protobuf writes it.
pub(super) fn timestamp(at: UnixMillis) -> Timestamp {
    Timestamp::from_unix_millis(at.as_millis())
}
