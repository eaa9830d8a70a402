//! How deployments begin, go on after a start of the server, and come back to be rolled back.
use std::collections::HashSet;
use std::sync::Arc;

use actix::prelude::*;
use fleetd_proto::v1::{DeploymentConfig, UpdateStrategy};
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use prost::Message as _;

use super::coordinator::{DeploymentCoordinator, Failure};
use super::handle::Handle;
use super::joiners::Joiners;
use super::planning::{Planned, Wish};
use super::release::Release;
use super::seat::{Said, Seat};
use super::watch::Watch;
use super::{died, failed, head_of, no_deployment, Deployments, Shared};
use crate::error::{ApiError, ErrorCode};
use crate::rollout::{is_final, DeploymentState, Event, Now, Order, Place, Record, Rollout, Targets as _};
use crate::store::{DeploymentDevice, DeploymentRecord, NewDeployment, StoreError};

/// Devices that are taken out of other deployments at a time.
const TAKEN_AT_ONCE: usize = 1_024;

/// How often a plan is made anew because another deployment took some of its devices in between.
const MAX_PLANS: usize = 3;

/// What the registry has of the devices of a deployment: by their places, what is decided by and who they are; and the
/// versions that they ran before.
type Kept = (Vec<Record>, Vec<Seat>, Vec<Arc<str>>);

impl Deployments {
    /// Starts a deployment. Durable when this answers.
    ///
    /// # Errors
    /// NOT_FOUND for the update and for devices by id, INVALID_ARGUMENT for filter and policy, FAILED_PRECONDITION for
    /// a target that leaves no device to update.
    pub async fn deploy(
        &self,
        update_id: &str,
        wish: Wish,
        created_by: String,
        request_id: String,
    ) -> Result<DeploymentRecord, ApiError> {
        let _underway = self.begin(&created_by, &request_id)?;
        // A repeat must answer as the first call did, also when its devices are taken: by that first call.
        if let Some(known) = self.0.store.deployment_of_request(&created_by, &request_id).await? {
            return Ok(known);
        }
        for _ in 0..MAX_PLANS {
            let planned = self.planned(update_id, &wish).await?;
            planned.check(&wish)?;
            let handle = Handle::new(Arc::clone(&planned.release));
            if planned.policy.supersede && !self.take_over(&planned).await? {
                continue;
            }
            let planned = Arc::new(planned);
            let claim = {
                let (planned, handle) = (Arc::clone(&planned), Arc::clone(&handle));
                move || claim_all(&planned, &handle)
            };
            if !apart(claim).await? {
                continue;
            }
            let kept = self.keep(&planned, &handle, &wish, &created_by, &request_id).await;
            if kept.is_err() {
                release_all(&planned, &handle);
            }
            return kept;
        }
        let message = "other deployments kept taking devices of this one while it was planned; try again";
        Err(ApiError::new(ErrorCode::Aborted, message))
    }

    /// Holds a `request_id` until the call that has it is answered: a second one would find its devices taken.
    fn begin(&self, created_by: &str, request_id: &str) -> Result<Option<Underway>, StoreError> {
        if request_id.is_empty() {
            return Ok(None);
        }
        let name = (created_by.to_owned(), request_id.to_owned());
        if !self.0.underway.lock().insert(name.clone()) {
            return Err(StoreError::InProgress { what: "the first call with this request_id" });
        }
        Ok(Some(Underway { shared: Arc::clone(&self.0), name }))
    }

    async fn keep(
        &self,
        planned: &Arc<Planned>,
        handle: &Arc<Handle>,
        wish: &Wish,
        created_by: &str,
        request_id: &str,
    ) -> Result<DeploymentRecord, ApiError> {
        let Planned { release, policy, .. } = &**planned;
        let now = Watch::from(0, self.0.directory.fleet()).now();
        let prepare = {
            let planned = Arc::clone(planned);
            move || prepare(&planned, now)
        };
        let (rollout, seats, rows) = apart(prepare).await?;
        let new = NewDeployment {
            update_id: release.update.id.clone(),
            request_id: request_id.to_owned(),
            created_by: created_by.to_owned(),
            config: policy.to_config().encode_to_vec().into(),
            device_filter: wish.device_filter.clone(),
            created_at: now.wall,
            state: rollout.head().state.into(),
            head: rollout.head().encode().into(),
        };
        let (record, is_repeat) = self.0.store.create_deployment(new, rows).await?;
        if is_repeat {
            release_all(planned, handle);
            return Ok(record);
        }
        handle.identify(&record.id);
        let joiners = Joiners::new(policy, &wish.device_filter);
        // Who finds it in the table, and no coordinator yet, would make a second one.
        let _one_at_a_time = self.0.starting.lock().await;
        self.0.open.insert(record.id.clone(), Arc::clone(handle));
        self.run(DeploymentCoordinator::new(rollout, seats, Arc::clone(handle), Arc::clone(&self.0), joiners));
        Ok(record)
    }

    /// Starts a coordinator on the thread of all coordinators.
    fn run(&self, coordinator: DeploymentCoordinator) {
        let handle = Arc::clone(&coordinator.handle);
        let address = DeploymentCoordinator::start_in_arbiter(&self.0.arbiter, move |_| coordinator);
        handle.set_address(address);
    }

    /// Frees devices of other deployments, whose coordinators know of it first. False when one of them began to work
    /// meanwhile, and is not given up.
    async fn take_over(&self, planned: &Planned) -> Result<bool, ApiError> {
        let taken =
            planned.targets().filter_map(|(_, entry)| Some((Arc::clone(entry), entry.assignment.deployment()?)));
        let taken: Vec<_> = taken.collect();
        let this = self.clone();
        let told = stream::iter(taken).map(move |(entry, (other, place))| {
            let this = this.clone();
            async move {
                match this.tell(&other, Event::Superseded { place }, None).await {
                    Ok(()) => entry.assignment.release(&other),
                    Err(Failure::Refused(_)) => return Ok(false),
                    Err(failure) => return Err(failed(failure, other.id())),
                }
                Ok::<_, ApiError>(true)
            }
        });
        // Many at once, since all that wait for one save are saved together.
        told.buffer_unordered(TAKEN_AT_ONCE).try_fold(true, |all, one| async move { Ok(all && one) }).await
    }

    /// Every deployment that is not over goes on, the newest first: of two that want a device (one of them taken up
    /// again to be rolled back), the newer one has it.
    pub(super) async fn take_up_all(&self) -> Result<(), StoreError> {
        for record in self.0.store.open_deployments()?.into_iter().rev() {
            let id = record.id.clone();
            if let Err(error) = self.take_up(record, None).await {
                // The others must not stand still for it; its devices are offered nothing.
                tracing::error!(
                    deployment = id,
                    error = &error as &dyn std::error::Error,
                    "deployment cannot be taken up"
                );
            }
        }
        Ok(())
    }

    /// Makes a coordinator from the registry.
    async fn take_up(&self, record: DeploymentRecord, handle: Option<Arc<Handle>>) -> Result<Arc<Handle>, ApiError> {
        let damaged = |what: String| ApiError::internal(format!("deployment {} cannot be read: {what}", record.id));
        let config = DeploymentConfig::decode(record.config.clone()).map_err(|error| damaged(error.to_string()))?;
        let policy = self.policy(&UpdateStrategy::default(), &config)?;
        let head = head_of(&record)?;
        let (this, id) = (self.clone(), record.id.clone());
        // A million rows take a second.
        let read = tokio::task::spawn_blocking(move || this.read_seats(&id)).await;
        let (records, seats, versions) = read.map_err(|error| damaged(error.to_string()))?.map_err(damaged)?;
        let handle = match handle {
            Some(handle) => handle,
            None => {
                let (update, ways_back) = (self.update(&record.update_id).await?, self.ways_back(versions).await?);
                let handle = Handle::new(Arc::new(Release::new(update, self.0.urls.clone(), ways_back)));
                handle.identify(&record.id);
                handle
            }
        };
        let rollout = Rollout::load(policy, head, records);
        for (place, seat) in seats.iter().enumerate() {
            let is_wanted = rollout.record(place as Place).is_in_play();
            // A device that another deployment has taken meanwhile is that one's.
            if is_wanted && !seat.entry.as_ref().is_some_and(|entry| entry.assignment.claim(&handle, place as Place)) {
                handle.notice(place as Place);
            }
        }
        let joiners = Joiners::new(rollout.policy(), &record.device_filter);
        self.0.open.insert(record.id.clone(), Arc::clone(&handle));
        self.run(DeploymentCoordinator::new(rollout, seats, Arc::clone(&handle), Arc::clone(&self.0), joiners));
        tracing::info!(deployment = record.id, "deployment goes on");
        Ok(handle)
    }

    /// Every device of a deployment. Blocks.
    fn read_seats(&self, id: &str) -> Result<Kept, String> {
        let (mut records, mut seats) = (Vec::new(), Vec::new());
        let mut versions: HashSet<Arc<str>> = HashSet::new();
        let mut damage = None;
        let read = self.0.store.for_each_deployment_device(id, &mut |device| {
            match Record::decode(&device.record) {
                Ok(record) if device.place as usize == seats.len() => records.push(record),
                Ok(_) => damage = Some(format!("place {} is missing", seats.len())),
                Err(error) => damage = Some(format!("the record of device {}: {error}", device.device_id)),
            }
            // Few versions, many devices: each text is kept once.
            let from_version = match versions.get(device.from_version.as_str()) {
                Some(known) => Arc::clone(known),
                None => {
                    let new: Arc<str> = device.from_version.as_str().into();
                    versions.insert(Arc::clone(&new));
                    new
                }
            };
            seats.push(self.seat(device, from_version));
        });
        read.map_err(|error| error.to_string())?;
        match damage {
            Some(damage) => Err(damage),
            None => Ok((records, seats, versions.into_iter().collect())),
        }
    }

    fn seat(&self, device: DeploymentDevice, from_version: Arc<str>) -> Seat {
        let said = device.offered_at.map(|offered_at| {
            Box::new(Said {
                message: device.message,
                progress_percent: 0.0,
                offered_at: Some(offered_at),
                updated_at: Some(device.updated_at),
            })
        });
        let entry = self.0.directory.find(device.device_id.as_str());
        Seat { device_id: device.device_id, entry, from_version, said }
    }

    /// The deployment's coordinator, made anew if it died.
    pub(super) async fn coordinator(&self, handle: &Arc<Handle>) -> Result<Addr<DeploymentCoordinator>, ApiError> {
        if let Some(address) = handle.address() {
            return Ok(address);
        }
        let _one_at_a_time = self.0.starting.lock().await;
        if let Some(address) = handle.address() {
            return Ok(address);
        }
        if self.find(handle.id()).is_none() {
            return Err(died());
        }
        tracing::error!(deployment = handle.id(), "coordinator had died, made anew");
        let record = self.record(handle.id()).await?;
        self.take_up(record, Some(Arc::clone(handle))).await?;
        handle.address().ok_or_else(died)
    }

    /// A deployment that is over is taken up again to be rolled back; nothing else can be done with it. `None` when it is
    /// over because of such an order, which is repeated. An order that it would refuse is refused before: it would have
    /// its devices again, and no end.
    pub(super) async fn reopen_for(&self, id: &str, order: &Order) -> Result<Option<Arc<Handle>>, ApiError> {
        let _one_at_a_time = self.0.starting.lock().await;
        if let Some(handle) = self.find(id) {
            return Ok(Some(handle));
        }
        let record = self.0.store.deployment(id).await?.ok_or_else(|| no_deployment(id))?;
        let state = head_of(&record)?.state;
        use DeploymentState as S;
        match (order, state) {
            (Order::Cancel, S::Cancelled)
            | (Order::Deny, S::Denied)
            | (Order::RollBack { .. }, S::RolledBack | S::RollbackIncomplete) => Ok(None),
            (Order::RollBack { .. }, S::Cancelled | S::Succeeded | S::Failed) => {
                self.take_up(record, None).await.map(Some)
            }
            (_, state) if !is_final(state) => Err(ApiError::internal(format!(
                "deployment {id} is {} and could not be taken up when the server started; its log says why",
                state.as_str_name()
            ))),
            (order, state) => {
                let state = state.as_str_name();
                let message = match order {
                    Order::RollBack { .. } => format!("deployment {id} is {state}: it has no device to roll back"),
                    _ => format!("deployment {id} is {state}, which is final"),
                };
                Err(ApiError::new(ErrorCode::FailedPrecondition, message))
            }
        }
    }
}

/// A call with a `request_id` that is not answered yet.
struct Underway {
    shared: Arc<Shared>,
    name: (String, String),
}

impl Drop for Underway {
    fn drop(&mut self) {
        self.shared.underway.lock().remove(&self.name);
    }
}

/// Does what takes a while for a million devices, on a thread where nobody waits for it.
async fn apart<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, ApiError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|died| ApiError::internal("the deployment could not be prepared").with_source(died))
}

/// The deployment of a plan as it begins: its logic, its seats, and the registry's rows of them.
fn prepare(planned: &Planned, now: Now) -> (Rollout, Vec<Seat>, Vec<DeploymentDevice>) {
    let Planned { policy, survey, .. } = planned;
    let places: Vec<_> = planned.places().collect();
    let devices = places.iter().map(|(_, device)| *device).collect();
    let mut rollout = Rollout::new(policy.clone(), planned.waves(), devices, now);
    // So that it runs, or waits for what it says, when it is first seen. What follows is collected with the first look.
    let _ = rollout.apply(Event::Tick, now);
    let mut seats = Vec::with_capacity(places.len());
    let mut rows = Vec::with_capacity(places.len());
    for (place, (target, _)) in places.into_iter().enumerate() {
        let entry = &survey.devices[target as usize];
        let from_version = survey.shared_text(survey.rows()[target as usize].version);
        let record = rollout.record(place as Place);
        rows.push(DeploymentDevice {
            place: place as u32,
            device_id: entry.id.clone(),
            state: record.state().into(),
            record: record.encode().to_vec().into(),
            from_version: from_version.to_string(),
            message: String::new(),
            offered_at: None,
            updated_at: now.wall,
        });
        seats.push(Seat { device_id: entry.id.clone(), entry: Some(Arc::clone(entry)), from_version, said: None });
    }
    (rollout, seats, rows)
}

/// Takes all devices of a plan, or none.
fn claim_all(planned: &Planned, handle: &Arc<Handle>) -> bool {
    let are_free = planned.targets().all(|(place, entry)| entry.assignment.claim(handle, place));
    if !are_free {
        release_all(planned, handle);
    }
    are_free
}

fn release_all(planned: &Planned, handle: &Arc<Handle>) {
    planned.targets().for_each(|(_, entry)| entry.assignment.release(handle));
}
