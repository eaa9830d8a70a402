//! AnalyticsService: what its RPCs share. GetMetrics is in `metrics_query`, GetDeviceHealth in `device_health`, ExportData
//! and GetExport in `exports`.
use std::sync::Arc;

use super::access::Access;
use crate::actors::directory::DeviceDirectory;
use crate::analytics::export::Exports;
use crate::analytics::{AnalystPool, AnswerRoom, OnlineCounts};
use crate::artifacts::{BlobStore, DownloadUrls, Feeder};
use crate::fleet::FleetQueries;
use crate::health::HealthRules;
use crate::store::Store;
use crate::telemetry::rollup::Coverage;
use crate::telemetry::writer::WriterHandle;

pub const GET_METRICS: &str = "fleetd.v1.AnalyticsService/GetMetrics";
pub const GET_DEVICE_HEALTH: &str = "fleetd.v1.AnalyticsService/GetDeviceHealth";
pub const EXPORT_DATA: &str = "fleetd.v1.AnalyticsService/ExportData";
pub const GET_EXPORT: &str = "fleetd.v1.AnalyticsService/GetExport";

pub struct AnalyticsService {
    pub access: Arc<Access>,
    pub store: Arc<dyn Store>,
    pub directory: DeviceDirectory,
    pub queries: FleetQueries,
    pub pool: AnalystPool,
    pub room: AnswerRoom,
    pub blobs: BlobStore,
    pub urls: DownloadUrls,
    pub feeder: Feeder,
    pub exports: Exports,
    pub coverage: Coverage,
    pub writer: WriterHandle,
    pub online: OnlineCounts,
    pub health: Arc<HealthRules>,
}
