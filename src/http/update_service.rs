//! UpdateService, the updates themselves: CreateUpdate, GetUpdate, ListUpdates. What becomes of them is in
//! `deployment_service`.
use std::sync::Arc;

use fleetd_proto::v1::{
    Artifact, CreateUpdateRequest, CreateUpdateResponse, DeploymentConfig, GetUpdateRequest, GetUpdateResponse,
    ListUpdatesRequest, ListUpdatesResponse, Update,
};
use prost::Message as _;

use super::access::{Access, Call};
use super::device_fields::{check_entries, check_text, MAX_METADATA_BYTES};
use super::device_service::timestamp;
use super::pages::{self, Tokens};
use crate::actors::deployment::{update_of, Deployments};
use crate::clock::UnixMillis;
use crate::error::ApiError;
use crate::query::{Digest, PageToken};
use crate::rollout::artifact;
use crate::store::{NewUpdate, Store};

pub const CREATE_UPDATE: &str = "fleetd.v1.UpdateService/CreateUpdate";
pub const GET_UPDATE: &str = "fleetd.v1.UpdateService/GetUpdate";
pub const LIST_UPDATES: &str = "fleetd.v1.UpdateService/ListUpdates";

const MAX_NAME_BYTES: usize = 256;
const MAX_VERSION_BYTES: usize = 128;
const MAX_DESCRIPTION_BYTES: usize = 4_096;

pub struct UpdateService {
    pub access: Arc<Access>,
    pub store: Arc<dyn Store>,
    pub tokens: Tokens,
    pub deployments: Deployments,
    /// Whether artifacts may be fetched over plain HTTP.
    pub allow_http_artifacts: bool,
}

impl UpdateService {
    /// Permission: `update:create`. Durable when this answers.
    pub async fn create_update(
        &self,
        call: &mut Call,
        request: CreateUpdateRequest,
    ) -> Result<CreateUpdateResponse, ApiError> {
        self.access.authorize(call, CREATE_UPDATE).await?;
        check_named("name", &request.name, MAX_NAME_BYTES)?;
        check_named("version", &request.version, MAX_VERSION_BYTES)?;
        if request.description.len() > MAX_DESCRIPTION_BYTES {
            let bytes = request.description.len();
            let message = format!("description has {bytes} bytes; at most {MAX_DESCRIPTION_BYTES} are kept");
            return Err(ApiError::invalid_argument(message));
        }
        check_entries("metadata", &request.metadata, MAX_METADATA_BYTES)?;
        artifact::check_artifacts(&request.artifacts, self.allow_http_artifacts)?;
        let strategy = request.strategy.unwrap_or_default();
        // A strategy that no deployment could use is refused where it is written, not weeks later.
        self.deployments.policy(&strategy, &DeploymentConfig::default())?;
        let mut artifacts = request.artifacts;
        for (place, artifact) in artifacts.iter_mut().enumerate() {
            self.complete(place, artifact).await?;
        }
        let created_at = UnixMillis::now();
        let update = Update {
            id: String::new(),
            name: request.name,
            version: request.version,
            description: request.description,
            artifacts,
            strategy: Some(strategy),
            metadata: request.metadata,
            created_at: Some(timestamp(created_at)),
            created_by: call.user_id().unwrap_or_default().to_owned(),
        };
        let kept = self
            .store
            .create_update(NewUpdate {
                name: update.name.clone(),
                version: update.version.clone(),
                body: update.encode_to_vec().into(),
                created_at,
            })
            .await?;
        tracing::info!(
            update = kept.id,
            name = update.name,
            version = update.version,
            user = call.user_id(),
            "update created"
        );
        let update_id = kept.id.clone();
        Ok(CreateUpdateResponse {
            update: Some(Update { id: kept.id, ..update }),
            update_id,
            created_at: Some(timestamp(kept.created_at)),
        })
    }

    /// Fills in what the server knows of an uploaded file, and refuses what contradicts it. A file elsewhere stays as it is.
    async fn complete(&self, place: usize, artifact: &mut Artifact) -> Result<(), ApiError> {
        let id = &artifact.binary_id;
        if id.is_empty() {
            return Ok(());
        }
        let known = self.store.binary(id).await?.ok_or_else(|| {
            ApiError::not_found(format!(
                "artifacts[{place}].binary_id {id:?} is no uploaded binary; UploadBinary gives one"
            ))
        })?;
        let size_bytes = i64::try_from(known.size_bytes).unwrap_or(i64::MAX);
        let checksum = known.checksum.to_string();
        if !artifact.checksum.is_empty() && artifact.checksum != checksum {
            let message = format!(
                "artifacts[{place}].checksum is {}, but binary {id} has {}; leave it out, or upload the other file",
                artifact.checksum, checksum
            );
            return Err(ApiError::invalid_argument(message));
        }
        if artifact.size_bytes != 0 && artifact.size_bytes != size_bytes {
            let message = format!(
                "artifacts[{place}].size_bytes is {}, but binary {id} has {size_bytes}; leave it out",
                artifact.size_bytes
            );
            return Err(ApiError::invalid_argument(message));
        }
        artifact.checksum = checksum;
        artifact.size_bytes = size_bytes;
        Ok(())
    }

    /// Permission: `update:view`.
    pub async fn get_update(&self, call: &mut Call, request: GetUpdateRequest) -> Result<GetUpdateResponse, ApiError> {
        self.access.authorize(call, GET_UPDATE).await?;
        let update = self.deployments.update(&request.update_id).await?;
        Ok(GetUpdateResponse { update: Some(update) })
    }

    /// Permission: `update:view`.
    pub async fn list_updates(
        &self,
        call: &mut Call,
        request: ListUpdatesRequest,
    ) -> Result<ListUpdatesResponse, ApiError> {
        self.access.authorize(call, LIST_UPDATES).await?;
        let size = pages::size_of(request.page_size)?;
        let digest = Digest::of(&[LIST_UPDATES]);
        let after = self.tokens.read(&request.page_token, digest)?;
        let mut page = self.store.list_updates(after.as_ref().map(|token| token.id.as_str()), size + 1).await?;
        let has_more = page.items.len() > size;
        page.items.truncate(size);
        let next_page_token = match page.items.last() {
            Some(last) if has_more => self.tokens.write(&place_after(&last.id), digest),
            _ => String::new(),
        };
        Ok(ListUpdatesResponse {
            updates: page.items.into_iter().filter_map(update_of).collect(),
            next_page_token,
            total_count: i32::try_from(page.total).unwrap_or(i32::MAX),
        })
    }
}

/// A token that goes on after an item with this id.
pub(super) fn place_after(id: &str) -> PageToken {
    PageToken { now: UnixMillis::EPOCH, values: Vec::new(), id: id.to_owned() }
}

fn check_named(field: &str, value: &str, max_bytes: usize) -> Result<(), ApiError> {
    if value.is_empty() {
        return Err(ApiError::invalid_argument(format!("{field} is empty; give 1 to {max_bytes} bytes")));
    }
    check_text(field, value, max_bytes)
}
