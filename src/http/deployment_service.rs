//! UpdateService, the deployments of updates: plan, start, watch, steer, explain, and what devices report.
use fleetd_proto::v1::{
    ApproveDeploymentRequest, ApproveDeploymentResponse, CancelDeploymentRequest, CancelDeploymentResponse,
    DeployUpdateRequest, DeployUpdateResponse, DeploymentStatus, ExplainDeviceRequest, ExplainDeviceResponse,
    GetDeploymentStatusRequest, GetDeploymentStatusResponse, ListDeploymentsRequest, ListDeploymentsResponse,
    PauseDeploymentRequest, PauseDeploymentResponse, PlanDeploymentRequest, PlanDeploymentResponse,
    PromoteDeploymentRequest, PromoteDeploymentResponse, ReportUpdateStatusRequest, ReportUpdateStatusResponse,
    ResumeDeploymentRequest, ResumeDeploymentResponse, RetryFailedRequest, RetryFailedResponse,
    RollbackDeploymentRequest, RollbackDeploymentResponse, UpdateProgress,
};

use super::access::Call;
use super::deployment_view::{self as view, count};
use super::device_service::timestamp;
use super::heartbeats::report_answer;
use super::pages;
use super::update_service::{place_after, UpdateService};
use crate::actors::deployment::Wish;
use crate::clock::UnixMillis;
use crate::error::{ApiError, ErrorCode};
use crate::ids::DeviceId;
use crate::query::{Digest, PageToken, SortValue};
use crate::rollout::{DeploymentState, DeviceState, Order};
use crate::store::{DeploymentDeviceQuery, DeploymentQuery};

pub const DEPLOY_UPDATE: &str = "fleetd.v1.UpdateService/DeployUpdate";
pub const PLAN_DEPLOYMENT: &str = "fleetd.v1.UpdateService/PlanDeployment";
pub const GET_DEPLOYMENT_STATUS: &str = "fleetd.v1.UpdateService/GetDeploymentStatus";
pub const LIST_DEPLOYMENTS: &str = "fleetd.v1.UpdateService/ListDeployments";
pub const PAUSE_DEPLOYMENT: &str = "fleetd.v1.UpdateService/PauseDeployment";
pub const RESUME_DEPLOYMENT: &str = "fleetd.v1.UpdateService/ResumeDeployment";
pub const PROMOTE_DEPLOYMENT: &str = "fleetd.v1.UpdateService/PromoteDeployment";
pub const APPROVE_DEPLOYMENT: &str = "fleetd.v1.UpdateService/ApproveDeployment";
pub const CANCEL_DEPLOYMENT: &str = "fleetd.v1.UpdateService/CancelDeployment";
pub const ROLLBACK_DEPLOYMENT: &str = "fleetd.v1.UpdateService/RollbackDeployment";
pub const RETRY_FAILED: &str = "fleetd.v1.UpdateService/RetryFailed";
pub const EXPLAIN_DEVICE: &str = "fleetd.v1.UpdateService/ExplainDevice";
pub const REPORT_UPDATE_STATUS: &str = "fleetd.v1.UpdateService/ReportUpdateStatus";

/// Devices that a call names one by one.
const MAX_DEVICE_IDS: usize = 100_000;
const MAX_REQUEST_ID_BYTES: usize = 128;
const MAX_REASON_BYTES: usize = 1_024;

impl UpdateService {
    /// Permission: `update:deploy`. Durable when this answers; the first offers go out within a second.
    pub async fn deploy(
        &self,
        call: &mut Call,
        request: DeployUpdateRequest,
    ) -> Result<DeployUpdateResponse, ApiError> {
        self.access.authorize(call, DEPLOY_UPDATE).await?;
        if request.request_id.len() > MAX_REQUEST_ID_BYTES {
            let bytes = request.request_id.len();
            let message = format!("request_id has {bytes} bytes; at most {MAX_REQUEST_ID_BYTES} are kept");
            return Err(ApiError::invalid_argument(message));
        }
        let wish = Wish {
            device_ids: device_ids("device_ids", &request.device_ids)?,
            device_filter: request.device_filter,
            config: request.config.unwrap_or_default(),
        };
        let created_by = call.user_id().unwrap_or_default().to_owned();
        let record = self.deployments.deploy(&request.update_id, wish, created_by, request.request_id).await?;
        tracing::info!(deployment = record.id, update = record.update_id, user = call.user_id(), "deployment created");
        let head = view::head_of(&record)?;
        Ok(DeployUpdateResponse {
            deployment_id: record.id,
            target_device_count: count(head.total_work),
            started_at: head.started.map(|started| timestamp(started.wall())),
        })
    }

    /// Permission: `update:view`. Starts nothing, claims nothing.
    pub async fn plan_deployment(
        &self,
        call: &mut Call,
        request: PlanDeploymentRequest,
    ) -> Result<PlanDeploymentResponse, ApiError> {
        self.access.authorize(call, PLAN_DEPLOYMENT).await?;
        let wish = Wish {
            device_ids: device_ids("device_ids", &request.device_ids)?,
            device_filter: request.device_filter,
            config: request.config.unwrap_or_default(),
        };
        self.deployments.plan(&request.update_id, wish).await
    }

    /// Permission: `update:view`. Devices come by the bytes of their ids.
    pub async fn deployment_status(
        &self,
        call: &mut Call,
        request: GetDeploymentStatusRequest,
    ) -> Result<GetDeploymentStatusResponse, ApiError> {
        self.access.authorize(call, GET_DEPLOYMENT_STATUS).await?;
        let size = pages::size_of(request.page_size)?;
        let states = states_of::<DeviceState>("device_states", &request.device_states)?;
        let live = self.deployments.live(&request.deployment_id).await?;
        let record = self.deployments.record(&request.deployment_id).await?;
        let head = match &live {
            Some(live) => live.head.clone(),
            None => view::head_of(&record)?,
        };
        let mut answer = GetDeploymentStatusResponse {
            status: Some(self.status_of(&record.id).await?),
            metrics: Some(view::metrics(&head, live.as_ref().map_or(head.watched, |live| live.watched))),
            ..GetDeploymentStatusResponse::default()
        };
        if request.include_device_details {
            let names: Vec<String> = states.iter().map(i32::to_string).collect();
            let digest = Digest::of(&[GET_DEPLOYMENT_STATUS, &record.id, &names.join(",")]);
            let after = self.tokens.read(&request.page_token, digest)?.map(|token| token.id);
            let query = DeploymentDeviceQuery { deployment_id: record.id.clone(), states, after, limit: size + 1 };
            let mut page = self.store.deployment_devices(query).await?;
            let has_more = page.items.len() > size;
            page.items.truncate(size);
            if let (Some(last), true) = (page.items.last(), has_more) {
                answer.next_page_token = self.tokens.write(&place_after(last.device_id.as_str()), digest);
            }
            answer.total_count = i32::try_from(page.total).unwrap_or(i32::MAX);
            let progress =
                self.deployments.progress(&record.id, page.items.iter().map(|item| item.place).collect()).await;
            answer.device_statuses = page
                .items
                .into_iter()
                .zip(progress)
                .map(|(device, progress)| view::device(&record.id, device, progress))
                .collect();
        }
        Ok(answer)
    }

    /// Permission: `update:view`. Newest first.
    pub async fn list_deployments(
        &self,
        call: &mut Call,
        request: ListDeploymentsRequest,
    ) -> Result<ListDeploymentsResponse, ApiError> {
        self.access.authorize(call, LIST_DEPLOYMENTS).await?;
        let size = pages::size_of(request.page_size)?;
        let states = states_of::<DeploymentState>("states", &request.states)?;
        let names: Vec<String> = states.iter().map(i32::to_string).collect();
        let digest = Digest::of(&[LIST_DEPLOYMENTS, &request.update_id, &names.join(",")]);
        let after = self.tokens.read(&request.page_token, digest)?.and_then(|token| match token.values[..] {
            // A row number, far below 2^53.
            [SortValue::Number(number)] => Some(number as i64),
            _ => None,
        });
        let update_id = Some(request.update_id).filter(|id| !id.is_empty());
        let query = DeploymentQuery { update_id, states, after, limit: size + 1 };
        let mut page = self.store.list_deployments(query).await?;
        let has_more = page.items.len() > size;
        page.items.truncate(size);
        let next_page_token = match page.items.last() {
            Some(last) if has_more => {
                let values = vec![SortValue::Number(last.number as f64)];
                self.tokens.write(&PageToken { now: UnixMillis::EPOCH, values, id: String::new() }, digest)
            }
            _ => String::new(),
        };
        let mut deployments = Vec::with_capacity(page.items.len());
        for record in &page.items {
            let version = self.deployments.version_of(&record.update_id).await;
            let mut status = view::status(record, &view::head_of(record)?, version, None)?;
            status.waves.clear();
            deployments.push(status);
        }
        let total_count = i32::try_from(page.total).unwrap_or(i32::MAX);
        Ok(ListDeploymentsResponse { deployments, next_page_token, total_count })
    }

    /// Permission: `update:deploy`.
    pub async fn pause_deployment(
        &self,
        call: &mut Call,
        request: PauseDeploymentRequest,
    ) -> Result<PauseDeploymentResponse, ApiError> {
        self.access.authorize(call, PAUSE_DEPLOYMENT).await?;
        let status = self.order(call, &request.deployment_id, Order::Pause, &request.reason).await?;
        Ok(PauseDeploymentResponse { status: Some(status) })
    }

    /// Permission: `update:deploy`.
    pub async fn resume_deployment(
        &self,
        call: &mut Call,
        request: ResumeDeploymentRequest,
    ) -> Result<ResumeDeploymentResponse, ApiError> {
        self.access.authorize(call, RESUME_DEPLOYMENT).await?;
        let order = Order::Resume { acknowledge_failures: request.acknowledge_failures };
        let status = self.order(call, &request.deployment_id, order, &request.reason).await?;
        Ok(ResumeDeploymentResponse { status: Some(status) })
    }

    /// Permission: `update:deploy`.
    pub async fn promote_deployment(
        &self,
        call: &mut Call,
        request: PromoteDeploymentRequest,
    ) -> Result<PromoteDeploymentResponse, ApiError> {
        self.access.authorize(call, PROMOTE_DEPLOYMENT).await?;
        let wave = request.wave.map(|wave| {
            usize::try_from(wave).map_err(|_| ApiError::invalid_argument(format!("wave is {wave}; waves count from 0")))
        });
        let order = Order::Promote { wave: wave.transpose()? };
        let status = self.order(call, &request.deployment_id, order, &request.reason).await?;
        Ok(PromoteDeploymentResponse { status: Some(status) })
    }

    /// Permission: `update:approve`. Who started it cannot approve it, unless it was with the admin key: that one is
    /// shared by people whom the server cannot tell apart.
    pub async fn approve_deployment(
        &self,
        call: &mut Call,
        request: ApproveDeploymentRequest,
    ) -> Result<ApproveDeploymentResponse, ApiError> {
        let principal = self.access.authorize(call, APPROVE_DEPLOYMENT).await?;
        let record = self.deployments.record(&request.deployment_id).await?;
        let is_own = call.user_id() == Some(record.created_by.as_str());
        if is_own && principal != crate::auth::Principal::Admin && !request.deny {
            let message =
                format!("{} started deployment {}; somebody else must approve it", record.created_by, record.id);
            return Err(ApiError::new(ErrorCode::FailedPrecondition, message));
        }
        let order = if request.deny { Order::Deny } else { Order::Approve };
        let status = self.order(call, &request.deployment_id, order, &request.reason).await?;
        Ok(ApproveDeploymentResponse { status: Some(status) })
    }

    /// Permission: `update:deploy`.
    pub async fn cancel_deployment(
        &self,
        call: &mut Call,
        request: CancelDeploymentRequest,
    ) -> Result<CancelDeploymentResponse, ApiError> {
        self.access.authorize(call, CANCEL_DEPLOYMENT).await?;
        let status = self.order(call, &request.deployment_id, Order::Cancel, &request.reason).await?;
        Ok(CancelDeploymentResponse { status: Some(status) })
    }

    /// Permission: `update:rollback`. Also of a deployment that is over.
    pub async fn rollback_deployment(
        &self,
        call: &mut Call,
        request: RollbackDeploymentRequest,
    ) -> Result<RollbackDeploymentResponse, ApiError> {
        self.access.authorize(call, ROLLBACK_DEPLOYMENT).await?;
        let order = Order::RollBack { force: request.force };
        self.order(call, &request.deployment_id, order, &request.reason).await?;
        let head = self.deployments.head(&request.deployment_id).await?;
        Ok(RollbackDeploymentResponse {
            success: true,
            devices_rolled_back: count(head.rollback.as_ref().map_or(0, |rollback| rollback.affected)),
            rolled_back_at: head.rollback.as_ref().map(|rollback| timestamp(rollback.started.wall())),
        })
    }

    /// Permission: `update:deploy`.
    pub async fn retry_failed(
        &self,
        call: &mut Call,
        request: RetryFailedRequest,
    ) -> Result<RetryFailedResponse, ApiError> {
        self.access.authorize(call, RETRY_FAILED).await?;
        let ids = device_ids("device_ids", &request.device_ids)?;
        let who = call.user_id().unwrap_or_default();
        let retried = self.deployments.retry_failed(&request.deployment_id, ids, who).await?;
        tracing::info!(
            deployment = request.deployment_id,
            devices = retried,
            user = who,
            "failed devices queued again"
        );
        let status = self.status_of(&request.deployment_id).await?;
        Ok(RetryFailedResponse { retried_device_count: count(retried), status: Some(status) })
    }

    /// Permission: `update:view`.
    pub async fn explain_device(
        &self,
        call: &mut Call,
        request: ExplainDeviceRequest,
    ) -> Result<ExplainDeviceResponse, ApiError> {
        self.access.authorize(call, EXPLAIN_DEVICE).await?;
        let device = DeviceId::parse(&request.device_id)
            .map_err(|reason| ApiError::invalid_argument(format!("device_id {reason}")))?;
        let asked = Some(request.deployment_id).filter(|id| !id.is_empty());
        let explained = self.deployments.explain(device.clone(), asked).await?;
        let (status, seat) = match &explained.deployment {
            Some(id) => (Some(self.status_of(id).await?), self.store.deployment_device(id, &device).await?),
            None => (None, None),
        };
        let id = explained.deployment.as_deref().unwrap_or_default();
        let progress = match &seat {
            Some(seat) => self.deployments.progress(id, vec![seat.place]).await.first().copied().unwrap_or_default(),
            None => 0.0,
        };
        let history = match &explained.deployment {
            Some(id) => self.store.attempts_of(id, &device).await?,
            None => Vec::new(),
        };
        Ok(ExplainDeviceResponse {
            reason_code: explained.code,
            message: explained.sentence,
            device: seat.map(|seat| view::device(id, seat, progress)),
            deployment: status,
            history: history.into_iter().map(|attempt| view::attempt(id, attempt)).collect(),
        })
    }

    /// Permission: `device:heartbeat`, with the device's own key. Durable when this answers.
    pub async fn report_update_status(
        &self,
        call: &mut Call,
        request: ReportUpdateStatusRequest,
    ) -> Result<ReportUpdateStatusResponse, ApiError> {
        let entry = self.access.authorize_for_device(call, REPORT_UPDATE_STATUS, &request.device_id).await?;
        let progress = UpdateProgress {
            deployment_id: request.deployment_id,
            update_id: request.update_id,
            attempt: request.attempt,
            state: request.state,
            progress_percent: request.progress_percent,
            message: request.message,
        };
        Ok(report_answer(self.deployments.report(&entry, progress).await?))
    }

    /// Has an order carried out, and shows the deployment after it.
    async fn order(&self, call: &Call, id: &str, order: Order, reason: &str) -> Result<DeploymentStatus, ApiError> {
        if reason.len() > MAX_REASON_BYTES {
            let message = format!("reason has {} bytes; at most {MAX_REASON_BYTES} are kept", reason.len());
            return Err(ApiError::invalid_argument(message));
        }
        let what = format!("{order:?}");
        self.deployments.order(id, order, call.user_id().unwrap_or_default(), reason).await?;
        tracing::info!(deployment = id, order = what, user = call.user_id(), reason, "deployment ordered");
        self.status_of(id).await
    }

    /// The deployment as it is now.
    async fn status_of(&self, id: &str) -> Result<DeploymentStatus, ApiError> {
        let live = self.deployments.live(id).await?;
        // After that: one that ends in between is in the registry as it ended.
        let record = self.deployments.record(id).await?;
        let version = self.deployments.version_of(&record.update_id).await;
        match live {
            Some(live) => view::status(&record, &live.head, version, Some(live.message)),
            None => view::status(&record, &view::head_of(&record)?, version, None),
        }
    }
}

fn device_ids(field: &str, given: &[String]) -> Result<Vec<DeviceId>, ApiError> {
    if given.len() > MAX_DEVICE_IDS {
        let message =
            format!("{field} has {} entries; at most {MAX_DEVICE_IDS} are taken, a filter has no limit", given.len());
        return Err(ApiError::invalid_argument(message));
    }
    let parsed = given.iter().enumerate().map(|(place, id)| {
        DeviceId::parse(id).map_err(|reason| ApiError::invalid_argument(format!("{field}[{place}] {reason}")))
    });
    parsed.collect()
}

/// Checks the numbers of states that a list is narrowed to.
fn states_of<S: TryFrom<i32>>(field: &str, given: &[i32]) -> Result<Vec<i32>, ApiError> {
    for (place, state) in given.iter().enumerate() {
        if *state == 0 || S::try_from(*state).is_err() {
            return Err(ApiError::invalid_argument(format!("{field}[{place}] is {state}, which is no state")));
        }
    }
    let mut states = given.to_vec();
    states.sort_unstable();
    states.dedup();
    Ok(states)
}
