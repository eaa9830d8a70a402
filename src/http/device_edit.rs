//! UpdateDevice and DeleteDevice.
use std::sync::Arc;

use fleetd_proto::v1::device_status::State;
use fleetd_proto::v1::{DeleteDeviceRequest, DeleteDeviceResponse, Device, UpdateDeviceRequest, UpdateDeviceResponse};

use parking_lot::Mutex;

use super::access::Call;
use super::device_change;
use super::device_service::{no_device, timestamp, DeviceService};
use crate::actors::entry::DeviceEntry;
use crate::clock::UnixMillis;
use crate::error::{ApiError, ErrorCode};
use crate::events::What;
use crate::query::DeviceMask;
use crate::store;

pub const UPDATE_DEVICE: &str = "fleetd.v1.DeviceService/UpdateDevice";
pub const DELETE_DEVICE: &str = "fleetd.v1.DeviceService/DeleteDevice";

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
        let revision_before = Arc::new(Mutex::new(Ok(0)));
        let outcome = Arc::clone(&revision_before);
        let change = move |stored: &store::Device| {
            let changed = change_of(stored, &mask, &given);
            let (outcome_of_it, changed) = match changed {
                Ok(changed) => (Ok(stored.revision), Some(changed)),
                Err(error) => (Err(error), None),
            };
            *outcome.lock() = outcome_of_it;
            changed
        };
        let changed = self.store.update(&entry.id, Box::new(change)).await?;
        let revision_before = std::mem::replace(&mut *revision_before.lock(), Ok(0))?;
        let changed = changed.ok_or_else(|| no_device(entry.id.as_str()))?;
        if changed.revision != revision_before {
            let user = call.user_id();
            tracing::info!(device_id = %entry.id, user, revision = changed.revision, "device updated");
        }
        // Durable first, known second. Of two updates at once the later revision stays.
        entry.describe(&changed);
        if changed.revision != revision_before {
            self.tell(What::Updated { device: Arc::new(changed.clone()) });
        }
        let live = entry.live();
        Ok(UpdateDeviceResponse {
            device: Some(self.shown(changed, &live)),
            updated_at: Some(timestamp(UnixMillis::now())),
        })
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
        let stored = self.store.device(&entry.id).await?.ok_or_else(|| no_device(entry.id.as_str()))?;
        self.store.remove(&entry.id, &entry.key_hash).await?;
        // Durable first, forgotten second: a crash between the two leaves a device that the next start does not know.
        let announced = self.directory.forget(&entry);
        entry.assignment.notice();
        self.tell(What::Deleted { device: Arc::new(stored), from: announced.unwrap_or_default() });
        let user = call.user_id();
        tracing::info!(device_id = %entry.id, user, force = request.force, "device deleted");
        Ok(DeleteDeviceResponse { success: true, deleted_at: Some(timestamp(UnixMillis::now())) })
    }

    fn refuse_if_in_use(&self, entry: &DeviceEntry) -> Result<(), ApiError> {
        if let Some((deployment, _)) = entry.assignment.deployment() {
            let message = format!(
                "device {} is in deployment {}, which is not over; cancel that, or set force to remove the device all the same",
                entry.id,
                deployment.id()
            );
            return Err(ApiError::new(ErrorCode::FailedPrecondition, message));
        }
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

/// The device after the change, or why it is refused.
fn change_of(stored: &store::Device, mask: &DeviceMask, given: &Device) -> Result<store::Device, ApiError> {
    let etag = etag(stored);
    if !given.etag.is_empty() && given.etag != etag {
        let message = format!(
            "device {} has etag {etag}, not {:?}: somebody changed it; read it again and decide anew",
            stored.id, given.etag
        );
        return Err(ApiError::new(ErrorCode::FailedPrecondition, message));
    }
    device_change::apply(stored, mask, given)
}

/// The etag of a device: its revision, which every change by an operator raises.
pub(super) fn etag(device: &store::Device) -> String {
    format!("{:x}", device.revision)
}
