//! Updates, deployments and the devices in them as the registry keeps them.
use bytes::Bytes;

use super::{Answer, StoreError, StoreFuture};
use crate::clock::UnixMillis;
use crate::ids::DeviceId;

/// An update to be kept; its id is the store's to give.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewUpdate {
    /// Taken together with `version`: two updates never share both.
    pub name: String,
    pub version: String,
    /// An encoded protobuf `Update` without its id; the store does not look inside.
    pub body: Bytes,
    pub created_at: UnixMillis,
}

/// An update as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpdateRecord {
    /// `update-001` and on: three digits or more.
    pub id: String,
    pub body: Bytes,
    pub created_at: UnixMillis,
}

/// A deployment to be kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewDeployment {
    pub update_id: String,
    /// Makes a repeat of the call harmless for 24 hours; empty means none. Part of a name with `created_by`.
    pub request_id: String,
    pub created_by: String,
    /// An encoded protobuf `DeploymentConfig` with every default filled in.
    pub config: Bytes,
    pub device_filter: String,
    pub created_at: UnixMillis,
    /// Its state, as the number of `DeploymentStatus.State`.
    pub state: i32,
    /// Everything about the deployment but its devices, as `crate::rollout` encodes it.
    pub head: Bytes,
}

/// A deployment as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeploymentRecord {
    /// `deploy-001` and on.
    pub id: String,
    /// Grows with each deployment: newest first is this descending.
    pub number: i64,
    pub update_id: String,
    pub created_by: String,
    pub config: Bytes,
    pub device_filter: String,
    pub created_at: UnixMillis,
    pub started_at: Option<UnixMillis>,
    pub finished_at: Option<UnixMillis>,
    pub state: i32,
    pub head: Bytes,
}

/// A device in a deployment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeploymentDevice {
    /// `crate::rollout::Place`.
    pub place: u32,
    pub device_id: DeviceId,
    /// As the number of `DeviceDeploymentStatus.State`; what reads are filtered by.
    pub state: i32,
    /// The record that `crate::rollout` decides by, as it encodes it.
    pub record: Bytes,
    /// The version that it ran when it was chosen.
    pub from_version: String,
    /// What it said last; empty for most.
    pub message: String,
    pub offered_at: Option<UnixMillis>,
    pub updated_at: UnixMillis,
}

/// How one attempt on a device ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttemptRecord {
    pub device_id: DeviceId,
    pub attempt: u32,
    /// As the number of `DeviceDeploymentStatus.State`.
    pub state: i32,
    pub reason_code: String,
    pub message: String,
    pub offered_at: Option<UnixMillis>,
    pub ended_at: UnixMillis,
}

/// What one step changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeploymentChange {
    pub deployment_id: String,
    pub state: i32,
    pub head: Bytes,
    pub started_at: Option<UnixMillis>,
    pub finished_at: Option<UnixMillis>,
    /// Replaced by their place if they are there, else added (joiners).
    pub devices: Vec<DeploymentDevice>,
    pub attempts: Vec<AttemptRecord>,
}

/// Which deployments to list, newest first; what is set narrows the list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeploymentQuery {
    pub update_id: Option<String>,
    /// Empty means all.
    pub states: Vec<i32>,
    /// `number` of the last item of the page before.
    pub after: Option<i64>,
    pub limit: usize,
}

/// Which devices of a deployment to list, by the bytes of their ids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeploymentDeviceQuery {
    pub deployment_id: String,
    /// Empty means all.
    pub states: Vec<i32>,
    /// Id of the last device of the page before.
    pub after: Option<String>,
    pub limit: usize,
}

/// One page, and how many there are on all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Paged<T> {
    pub items: Vec<T>,
    pub total: u64,
}

/// Updates and their deployments.
pub trait UpdateStore: Send + Sync {
    /// Keeps an update and gives it an id.
    ///
    /// # Errors
    /// [`StoreError::UpdateExists`] with the id of the one that has this name and version.
    fn create_update(&self, update: NewUpdate) -> StoreFuture<UpdateRecord>;

    fn update_record(&self, id: &str) -> StoreFuture<Option<UpdateRecord>>;

    /// The newest update with this version, for the way back.
    fn update_of_version(&self, version: &str) -> StoreFuture<Option<UpdateRecord>>;

    /// Up to `limit` updates that come before the one with the id `after` (from the newest, without it), newest first.
    fn list_updates(&self, after: Option<&str>, limit: usize) -> StoreFuture<Paged<UpdateRecord>>;

    /// Keeps a deployment with its devices, all or nothing, and gives it an id. More than a few thousand devices take
    /// several transactions; until the last one no other call sees the deployment, and a start removes one whose last
    /// never came.
    ///
    /// A repeat of a `request_id` keeps nothing and answers with the first call's deployment and `true`.
    ///
    /// # Errors
    /// [`StoreError::InProgress`] when the first call with this `request_id` is not over yet.
    fn create_deployment(
        &self,
        deployment: NewDeployment,
        devices: Vec<DeploymentDevice>,
    ) -> Answer<Result<(DeploymentRecord, bool), StoreError>>;

    /// The deployment of an earlier call with this `request_id`, within its 24 hours; `None` for an empty one.
    ///
    /// # Errors
    /// [`StoreError::InProgress`] when that call is not over yet.
    fn deployment_of_request(&self, created_by: &str, request_id: &str) -> StoreFuture<Option<DeploymentRecord>>;

    fn deployment(&self, id: &str) -> StoreFuture<Option<DeploymentRecord>>;

    fn list_deployments(&self, query: DeploymentQuery) -> StoreFuture<Paged<DeploymentRecord>>;

    /// Applies a step. More than a few thousand devices take several transactions, in their order, the head with the
    /// last one: a crash or an error between them leaves devices that are ahead of the head, which `crate::rollout`
    /// allows for.
    fn save_deployment(&self, change: DeploymentChange) -> StoreFuture<()>;

    /// `total` is that of the whole query.
    fn deployment_devices(&self, query: DeploymentDeviceQuery) -> StoreFuture<Paged<DeploymentDevice>>;

    fn deployment_device(&self, deployment_id: &str, device: &DeviceId) -> StoreFuture<Option<DeploymentDevice>>;

    /// The newest deployment that has or had the device.
    fn last_deployment_of(&self, device: &DeviceId) -> StoreFuture<Option<String>>;

    /// The attempts on a device in a deployment, the last one first.
    fn attempts_of(&self, deployment_id: &str, device: &DeviceId) -> StoreFuture<Vec<AttemptRecord>>;

    /// Deployments without `finished_at`, oldest first. For the start of the server: blocks.
    fn open_deployments(&self) -> Result<Vec<DeploymentRecord>, StoreError>;

    /// Shows every device of a deployment in the order of `place`. For the start of the server: blocks.
    fn for_each_deployment_device(
        &self,
        deployment_id: &str,
        each: &mut dyn FnMut(DeploymentDevice),
    ) -> Result<u64, StoreError>;
}
