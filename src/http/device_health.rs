//! AnalyticsService/GetDeviceHealth.
use fleetd_proto::v1::{GetDeviceHealthRequest, GetDeviceHealthResponse};

use super::access::Call;
use super::analytics_service::{AnalyticsService, GET_DEVICE_HEALTH};
use crate::error::{ApiError, ErrorCode};

impl AnalyticsService {
    /// Permission: `analytics:view`.
    pub async fn get_device_health(
        &self,
        call: &mut Call,
        _: GetDeviceHealthRequest,
    ) -> Result<GetDeviceHealthResponse, ApiError> {
        self.access.authorize(call, GET_DEVICE_HEALTH).await?;
        Err(ApiError::new(ErrorCode::Unimplemented, "GetDeviceHealth is not served yet"))
    }
}
