//! UpdateDevice and DeleteDevice.
use fleetd_proto::v1::device_status::State;
use fleetd_proto::v1::{DeleteDeviceRequest, DeleteDeviceResponse, UpdateDeviceRequest, UpdateDeviceResponse};

use super::access::Call;
use super::device_change;
use super::device_service::{no_device, timestamp, DeviceService};
use crate::actors::entry::DeviceEntry;
use crate::clock::UnixMillis;
use crate::error::{ApiError, ErrorCode};
use crate::query::DeviceMask;
use crate::store::{self, StoreError};

pub const UPDATE_DEVICE: &str = "fleetd.v1.DeviceService/UpdateDevice";
pub const DELETE_DEVICE: &str = "fleetd.v1.DeviceService/DeleteDevice";

/// How often an update without an etag starts again because somebody else changed the device meanwhile. Each time
/// somebody got through, so only a crowd on one device needs more.
const MAX_ATTEMPTS: u32 = 16;

impl DeviceService {
    /// Permission: `device:update`. Fields that the mask does not name stay as they are, also when two callers change
    /// different ones at once.
    pub async fn update(
        &self,
        call: &mut Call,
        request: UpdateDeviceRequest,
    ) -> Result<UpdateDeviceResponse, ApiError> {
        let entry = self.access.authorize_for_device(call, UPDATE_DEVICE, &request.device_id).await?;
        let given =
            request.device.ok_or_else(|| ApiError::invalid_argument("device is not set; it holds the new values"))?;
        if !given.id.is_empty() && given.id != request.device_id {
            let message =
                format!("device.id is {:?}, and device_id {}; an id never changes", given.id, request.device_id);
            return Err(ApiError::invalid_argument(message));
        }
        let mask = match &request.update_mask {
            Some(mask) if !mask.paths.is_empty() => {
                DeviceMask::parse(mask).map_err(|error| ApiError::invalid_argument(format!("update_mask: {error}")))?
            }
            _ => device_change::mask_of_set_fields(&given),
        };
        for _ in 0..MAX_ATTEMPTS {
            let stored = self.store.device(&entry.id).await?.ok_or_else(|| no_device(entry.id.as_str()))?;
            let etag = etag(&stored);
            if !given.etag.is_empty() && given.etag != etag {
                let message = format!(
                    "device {} has etag {etag}, not {:?}: somebody changed it; read it again and decide anew",
                    entry.id, given.etag
                );
                return Err(ApiError::new(ErrorCode::FailedPrecondition, message));
            }
            let mut changed = device_change::apply(&stored, &mask, &given)?;
            if changed != stored {
                changed.revision = match self.store.replace(changed.clone()).await {
                    Ok(revision) => revision,
                    Err(StoreError::Changed(_)) => continue,
                    Err(error) => return Err(error.into()),
                };
                let user = call.user_id();
                tracing::info!(device_id = %entry.id, user, ?mask, revision = changed.revision, "device updated");
            }
            // Durable first, known second. Of two updates at once the later revision stays.
            entry.describe(&changed);
            let live = entry.live();
            return Ok(UpdateDeviceResponse {
                device: Some(self.shown(changed, &live)),
                updated_at: Some(timestamp(UnixMillis::now())),
            });
        }
        let message = format!("device {} is being changed by too many at once; try again", entry.id);
        Err(ApiError::new(ErrorCode::Aborted, message))
    }

    /// Permission: `device:delete`. The key is dead when this answers; telemetry stays until it ages out.
    pub async fn delete(
        &self,
        call: &mut Call,
        request: DeleteDeviceRequest,
    ) -> Result<DeleteDeviceResponse, ApiError> {
        let entry = self.access.authorize_for_device(call, DELETE_DEVICE, &request.device_id).await?;
        if !request.force {
            self.refuse_if_in_use(&entry)?;
        }
        self.store.remove(&entry.id, &entry.key_hash).await?;
        // Durable first, forgotten second: a crash between the two leaves a device that the next start does not know.
        self.directory.forget(&entry);
        let user = call.user_id();
        tracing::info!(device_id = %entry.id, user, force = request.force, "device deleted");
        Ok(DeleteDeviceResponse { success: true, deleted_at: Some(timestamp(UnixMillis::now())) })
    }

    fn refuse_if_in_use(&self, entry: &DeviceEntry) -> Result<(), ApiError> {
        let state = self.directory.reachability(entry);
        if matches!(state, State::Online | State::Late) {
            let message = format!(
                "device {} is {}; stop it first, or set force to remove it all the same",
                entry.id,
                state.as_str_name()
            );
            return Err(ApiError::new(ErrorCode::FailedPrecondition, message));
        }
        Ok(())
    }
}

/// The etag of a device: its revision, which every change by an operator raises.
pub(super) fn etag(device: &store::Device) -> String {
    format!("{:x}", device.revision)
}
