//! AnalyticsService/ExportData and GetExport.
use fleetd_proto::v1::{ExportDataRequest, ExportDataResponse, GetExportRequest, GetExportResponse};

use super::access::Call;
use super::analytics_service::{AnalyticsService, EXPORT_DATA, GET_EXPORT};
use crate::error::{ApiError, ErrorCode};

impl AnalyticsService {
    /// Permission: `analytics:export`.
    pub async fn export_data(&self, call: &mut Call, _: ExportDataRequest) -> Result<ExportDataResponse, ApiError> {
        self.access.authorize(call, EXPORT_DATA).await?;
        Err(ApiError::new(ErrorCode::Unimplemented, "ExportData is not served yet"))
    }

    /// Permission: `analytics:export`.
    pub async fn get_export(&self, call: &mut Call, _: GetExportRequest) -> Result<GetExportResponse, ApiError> {
        self.access.authorize(call, GET_EXPORT).await?;
        Err(ApiError::new(ErrorCode::Unimplemented, "GetExport is not served yet"))
    }
}
