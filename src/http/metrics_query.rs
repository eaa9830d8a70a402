//! AnalyticsService/GetMetrics.
use fleetd_proto::v1::{GetMetricsRequest, GetMetricsResponse};

use super::access::Call;
use super::analytics_service::{AnalyticsService, GET_METRICS};
use crate::error::{ApiError, ErrorCode};

impl AnalyticsService {
    /// Permission: `analytics:view`.
    pub async fn get_metrics(&self, call: &mut Call, _: GetMetricsRequest) -> Result<GetMetricsResponse, ApiError> {
        self.access.authorize(call, GET_METRICS).await?;
        Err(ApiError::new(ErrorCode::Unimplemented, "GetMetrics is not served yet"))
    }
}
