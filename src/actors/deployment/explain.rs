//! Why a device is updating, or is not: one reason.
use super::coordinator::DeploymentCoordinator;
use super::{head_of, no_deployment, Deployments};
use crate::error::ApiError;
use crate::ids::DeviceId;
use crate::rollout::Record;

/// One reason.
pub struct Explained {
    /// Stable, in upper case.
    pub code: String,
    /// The same with values and what to do.
    pub sentence: String,
    /// The deployment that it is about.
    pub deployment: Option<String>,
}

impl Deployments {
    /// Of the deployment that is asked for; else of the one that has the device, or had it last.
    pub async fn explain(&self, device: DeviceId, deployment: Option<String>) -> Result<Explained, ApiError> {
        let entry = self.0.directory.find(device.as_str());
        let current =
            entry.as_ref().and_then(|entry| entry.assignment.deployment()).map(|(handle, _)| handle.id().to_owned());
        let id = match (deployment, current) {
            (Some(asked), _) => Some(self.0.store.deployment(&asked).await?.ok_or_else(|| no_deployment(&asked))?.id),
            (None, Some(current)) => Some(current),
            (None, None) => self.0.store.last_deployment_of(&device).await?,
        };
        let Some(id) = id else {
            if entry.is_none() {
                return Err(ApiError::not_found(format!(
                    "device {device} is not registered; RegisterDevice makes it known"
                )));
            }
            return Ok(Explained {
                code: "NOT_TARGETED".into(),
                sentence: format!("device {device} is in no deployment; DeployUpdate with its id or a filter that it matches puts it into one"),
                deployment: None,
            });
        };
        let Some(seat) = self.0.store.deployment_device(&id, &device).await? else {
            return Ok(Explained {
                code: "NOT_TARGETED".into(),
                sentence: format!(
                    "device {device} is not among the targets of deployment {id}, which were chosen when it started"
                ),
                deployment: Some(id),
            });
        };
        if let Some(handle) = self.find(&id) {
            let place = seat.place;
            let explain = move |coordinator: &DeploymentCoordinator| {
                let (code, sentence) = coordinator.rollout.explain(place);
                (code.to_owned(), sentence)
            };
            let read = self.read(&handle, explain).await?;
            if let Some((code, sentence)) = read {
                return Ok(Explained { code, sentence, deployment: Some(id) });
            }
        }
        let state = head_of(&self.record(&id).await?)?.state.as_str_name();
        let record = Record::decode(&seat.record).map_err(|error| {
            ApiError::internal(format!("the record of device {device} cannot be read")).with_source(error)
        })?;
        let code = record.state().as_str_name();
        let sentence =
            format!("deployment {id} is {state}; device {device} ended in it as {code} ({})", record.reason_code());
        Ok(Explained { code: code.into(), sentence, deployment: Some(id) })
    }
}
