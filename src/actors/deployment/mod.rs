//! Deployments: which are open, how they start, and the way to their coordinators.
//!
//! [`Deployments`] is the handle for the rest of the server. It plans and starts deployments, finds the coordinator of an
//! open one (and makes it anew from the registry should it have died), and answers for those that are over from the
//! registry alone. Devices reach their deployment through the [`assignment`] in their entry.
pub mod assignment;
mod coordinator;
mod explain;
mod handle;
mod joiners;
mod measure;
mod offer;
mod planning;
mod release;
mod save;
mod seat;
mod start;
mod tallies;
mod tell;
mod watch;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use dashmap::DashMap;
use fleetd_proto::v1::{DeploymentConfig, Update, UpdateInfo, UpdateProgress, UpdateStrategy};
use parking_lot::Mutex;
use prost::Message as _;
use tokio::sync::oneshot;

pub use explain::Explained;
pub use handle::Handle;
pub use planning::Wish;
pub use tallies::Tallies;

use self::coordinator::{DeploymentCoordinator, Failure, Read, SaidNow, Stop, Tell};
use crate::actors::directory::DeviceDirectory;
use crate::actors::entry::DeviceEntry;
use crate::artifacts::DownloadUrls;
use crate::error::{ApiError, ErrorCode};
use crate::events::Events;
use crate::fleet::FleetQueries;
use crate::ids::DeviceId;
use crate::rollout::{window, Defaults, Event, Head, Order, Place, Policy, Refusal};
use crate::store::{DeploymentRecord, Store, UpdateRecord};
use crate::telemetry::clickhouse::ClickHouse;
use crate::telemetry::journal::Journal;

/// When to try again what a coordinator that died could not answer.
const AGAIN: Duration = Duration::from_secs(1);

/// How often coordinators that died are looked for. One that died does nothing, so no device is at risk meanwhile.
const REVIVE_EVERY: Duration = Duration::from_secs(1);

/// What a device says for people is cut there.
const MAX_MESSAGE_BYTES: usize = 1_024;

/// What deployments need of the rest of the server.
pub struct Parts {
    pub store: Arc<dyn Store>,
    pub directory: DeviceDirectory,
    pub queries: FleetQueries,
    pub events: Events,
    pub journal: Journal,
    pub clickhouse: ClickHouse,
    pub urls: DownloadUrls,
}

/// What all coordinators share.
pub(super) struct Shared {
    store: Arc<dyn Store>,
    directory: DeviceDirectory,
    queries: FleetQueries,
    events: Events,
    journal: Journal,
    clickhouse: ClickHouse,
    urls: DownloadUrls,
    open: DashMap<String, Arc<Handle>>,
    ended: tallies::Ended,
    /// The thread of all coordinators.
    arbiter: ArbiterHandle,
    /// One start or revival at a time, so that a deployment never has two coordinators.
    starting: tokio::sync::Mutex<()>,
    /// Who calls DeployUpdate now, and with which `request_id`.
    underway: Mutex<HashSet<(String, String)>>,
}

/// Cheap, cloneable handle.
#[derive(Clone)]
pub struct Deployments(Arc<Shared>);

/// An open deployment as it is now.
pub struct Live {
    pub head: Head,
    /// See [`crate::rollout::Now::watched`].
    pub watched: u64,
    /// State and reason in a sentence.
    pub message: String,
}

/// What a heartbeat came to.
pub struct Exchange {
    /// As [`Deployments::report`] answers, when it had one.
    pub report: Option<Option<&'static str>>,
    pub offer: Option<UpdateInfo>,
}

impl Deployments {
    /// Takes up every deployment that is not over.
    pub async fn start(parts: Parts) -> Result<Self, crate::store::StoreError> {
        let Parts { store, directory, queries, events, journal, clickhouse, urls } = parts;
        let arbiter = Arbiter::new().handle();
        let shared = Arc::new(Shared {
            store,
            directory,
            queries,
            events,
            journal,
            clickhouse,
            urls,
            open: DashMap::new(),
            ended: tallies::Ended::default(),
            arbiter,
            starting: tokio::sync::Mutex::default(),
            underway: Mutex::default(),
        });
        let deployments = Self(shared);
        deployments.take_up_all().await?;
        Keeper { deployments: deployments.clone() }.start();
        Ok(deployments)
    }

    /// Waits until what was decided is saved. Nothing is decided after it.
    pub async fn stop(&self) {
        let open: Vec<_> = self.0.open.iter().map(|handle| Arc::clone(&handle)).collect();
        // One that is not in the table is not made anew.
        self.0.open.clear();
        for coordinator in open.iter().filter_map(|handle| handle.address()) {
            // One that died has saved what it could.
            let _ = coordinator.send(Stop).await;
        }
        self.0.arbiter.stop();
    }

    /// How many deployments are open.
    pub fn open_count(&self) -> usize {
        self.0.open.len()
    }

    /// How an update and a deployment's own words make a policy.
    ///
    /// # Errors
    /// INVALID_ARGUMENT that names the field, its value and its range.
    pub fn policy(&self, strategy: &UpdateStrategy, config: &DeploymentConfig) -> Result<Policy, ApiError> {
        let heartbeat_interval = self.0.directory.heartbeat_interval();
        let seed = planning::draw_seed()?;
        Policy::of(strategy, config, Defaults { heartbeat_interval, seed })
            .map_err(|error| ApiError::invalid_argument(error.to_string()))
    }

    /// # Errors
    /// NOT_FOUND that names it.
    pub async fn update(&self, id: &str) -> Result<Update, ApiError> {
        let found = self.0.store.update_record(id).await?;
        found.and_then(update_of).ok_or_else(|| {
            ApiError::not_found(format!(
                "there is no update {id:?}; CreateUpdate makes one, ListUpdates names those that are"
            ))
        })
    }

    /// The version that an update installs; empty if it cannot be read.
    pub async fn version_of(&self, update_id: &str) -> String {
        match self.0.store.update_record(update_id).await {
            Ok(found) => found.and_then(update_of).map(|update| update.version).unwrap_or_default(),
            Err(_) => String::new(),
        }
    }

    /// # Errors
    /// NOT_FOUND that names it.
    pub async fn record(&self, id: &str) -> Result<DeploymentRecord, ApiError> {
        self.0.store.deployment(id).await?.ok_or_else(|| no_deployment(id))
    }

    /// An open deployment as its coordinator has it; `None` for one that is over.
    pub async fn live(&self, id: &str) -> Result<Option<Live>, ApiError> {
        let Some(handle) = self.find(id) else { return Ok(None) };
        self.read(&handle, |coordinator| Live {
            head: coordinator.rollout.head().clone(),
            watched: coordinator.now().watched,
            message: coordinator.rollout.message(),
        })
        .await
    }

    /// # Errors
    /// NOT_FOUND that names the deployment.
    pub async fn head(&self, id: &str) -> Result<Head, ApiError> {
        if let Some(live) = self.live(id).await? {
            return Ok(live.head);
        }
        head_of(&self.record(id).await?)
    }

    /// How far devices of a deployment said that they are, in per cent.
    pub async fn progress(&self, id: &str, places: Vec<Place>) -> Vec<f64> {
        let count = places.len();
        let Some(handle) = self.find(id) else { return vec![0.0; count] };
        let read = move |coordinator: &DeploymentCoordinator| {
            let of = |place: &Place| {
                let seat = coordinator.seats.get(*place as usize);
                seat.and_then(|seat| seat.said.as_ref()).map_or(0.0, |said| said.progress_percent)
            };
            places.iter().map(of).collect()
        };
        self.read(&handle, read).await.ok().flatten().unwrap_or_else(|| vec![0.0; count])
    }

    /// Carries out what an operator wants. Durable when this answers.
    ///
    /// # Errors
    /// NOT_FOUND, and FAILED_PRECONDITION where it does not fit the deployment's state; then nothing changed.
    pub async fn order(&self, id: &str, order: Order, who: &str, reason: &str) -> Result<(), ApiError> {
        let handle = match self.find(id) {
            Some(handle) => handle,
            None => match self.reopen_for(id, &order).await? {
                Some(handle) => handle,
                None => return Ok(()),
            },
        };
        let told = self.tell(&handle, Event::Order(order.clone()), None).await;
        told.map_err(|failure| failed(failure, id))?;
        self.tell_order(&handle, &order, who, reason);
        Ok(())
    }

    /// Queues devices that failed again; all of them when none are named. Says how many.
    ///
    /// # Errors
    /// As [`Self::order`], and NOT_FOUND for a device that is not in the deployment.
    pub async fn retry_failed(&self, id: &str, devices: Vec<DeviceId>, who: &str) -> Result<u32, ApiError> {
        let handle = match self.find(id) {
            Some(handle) => handle,
            None => {
                let record = self.record(id).await?;
                let state = head_of(&record)?.state.as_str_name();
                let message =
                    format!("deployment {id} is {state}, which is final; deploy the update to those devices anew");
                return Err(ApiError::new(ErrorCode::FailedPrecondition, message));
            }
        };
        let mut places = None;
        if !devices.is_empty() {
            let mut chosen = Vec::with_capacity(devices.len());
            for device in &devices {
                chosen.push(self.place_of(&handle, device).await?);
            }
            places = Some(chosen);
        }
        let failing = move |coordinator: &DeploymentCoordinator| coordinator.rollout.failed_places(places.as_deref());
        let places = self.read(&handle, failing).await?.unwrap_or_default();
        let count = u32::try_from(places.len()).unwrap_or(u32::MAX);
        let order = Order::RetryFailed { places: Some(places) };
        let told = self.tell(&handle, Event::Order(order.clone()), None).await;
        told.map_err(|failure| failed(failure, id))?;
        self.tell_order(&handle, &order, who, "");
        Ok(count)
    }

    async fn place_of(&self, handle: &Arc<Handle>, device: &DeviceId) -> Result<Place, ApiError> {
        let claim = self.0.directory.find(device.as_str()).and_then(|entry| entry.assignment.deployment());
        if let Some((_, place)) = claim.filter(|(claimed_by, _)| Arc::ptr_eq(claimed_by, handle)) {
            return Ok(place);
        }
        let id = handle.id();
        let seat = self.0.store.deployment_device(id, device).await?;
        seat.map(|seat| seat.place)
            .ok_or_else(|| ApiError::not_found(format!("device {device} is not in deployment {id}")))
    }

    /// What a heartbeat does for its device's deployment: its report is durable, and what is offered is known, when
    /// this answers. A device that is in none costs a load.
    pub async fn exchange(&self, entry: &DeviceEntry, report: Option<UpdateProgress>) -> Result<Exchange, ApiError> {
        let report = match report {
            // Boxed: few heartbeats report, and all would carry the space that it needs.
            Some(progress) => Some(Box::pin(self.report(entry, progress)).await?),
            None => None,
        };
        Ok(Exchange { report, offer: entry.assignment.offer().map(|offer| UpdateInfo::clone(&offer)) })
    }

    /// Takes what a device says of its update; `Some` is the stable code of why it does not count.
    ///
    /// # Errors
    /// INVALID_ARGUMENT for a state that no device can report; UNAVAILABLE when it could not be kept, and is to be said
    /// again.
    pub async fn report(
        &self,
        entry: &DeviceEntry,
        progress: UpdateProgress,
    ) -> Result<Option<&'static str>, ApiError> {
        check_progress(&progress)?;
        let state = progress.state();
        let Some((handle, place)) = entry.assignment.deployment() else { return Ok(Some("NOT_IN_DEPLOYMENT")) };
        if progress.deployment_id != handle.id() {
            return Ok(Some("OTHER_DEPLOYMENT"));
        }
        if !progress.update_id.is_empty() && progress.update_id != handle.release.update.id {
            return Ok(Some("OTHER_UPDATE"));
        }
        // People read it on terminals.
        let mut message = progress.message.replace(|character: char| character.is_control(), " ");
        truncate(&mut message, MAX_MESSAGE_BYTES);
        let progress_percent =
            if progress.progress_percent.is_finite() { progress.progress_percent.clamp(0.0, 100.0) } else { 0.0 };
        let event = Event::Report { place, attempt: progress.attempt, state };
        match self.tell(&handle, event, Some(SaidNow { place, progress_percent, message })).await {
            Ok(()) => Ok(None),
            Err(Failure::Refused(Refusal::Report { code })) => Ok(Some(code)),
            Err(failure) => Err(failed(failure, handle.id())),
        }
    }

    fn find(&self, id: &str) -> Option<Arc<Handle>> {
        self.0.open.get(id).map(|handle| Arc::clone(&handle))
    }

    async fn tell(&self, handle: &Arc<Handle>, event: Event, said: Option<SaidNow>) -> Result<(), Failure> {
        let coordinator = self.coordinator(handle).await.map_err(Failure::Unsaved)?;
        let (answer, answered) = oneshot::channel();
        let sent = coordinator.send(Tell { event, said, answer }).await;
        sent.map_err(|_| Failure::Unsaved(died()))?;
        answered.await.unwrap_or_else(|_| Err(Failure::Unsaved(died())))
    }

    /// Reads from a coordinator; `None` when the deployment ended meanwhile.
    async fn read<T: Send + 'static>(
        &self,
        handle: &Arc<Handle>,
        read: impl FnOnce(&DeploymentCoordinator) -> T + Send + 'static,
    ) -> Result<Option<T>, ApiError> {
        let coordinator = match self.coordinator(handle).await {
            Ok(coordinator) => coordinator,
            Err(_) if self.find(handle.id()).is_none() => return Ok(None),
            Err(error) => return Err(error),
        };
        match coordinator.send(Read(Box::new(read))).await {
            Ok(answer) => Ok(answer),
            Err(_) if self.find(handle.id()).is_none() => Ok(None),
            Err(_) => Err(died()),
        }
    }
}

impl Shared {
    fn forget(&self, id: &str) {
        self.open.remove(id);
    }

    /// Whether a device's own window is open; only asked where windows are in the devices' time zones.
    fn is_window_open(&self, policy: &Policy, entry: &DeviceEntry) -> bool {
        if !window::is_per_device(&policy.windows) {
            return true;
        }
        let zone = self.directory.fleet().kind(entry).unwrap_or_default().time_zone;
        window::is_open_in(&policy.windows, &zone, crate::clock::UnixMillis::now())
    }
}

/// Makes coordinators anew that died.
struct Keeper {
    deployments: Deployments,
}

impl Actor for Keeper {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Self::Context) {
        context.run_interval(REVIVE_EVERY, |this, context| {
            let dead: Vec<_> = this
                .deployments
                .0
                .open
                .iter()
                .filter(|handle| handle.address().is_none())
                .map(|handle| Arc::clone(&handle))
                .collect();
            for handle in dead {
                let deployments = this.deployments.clone();
                context.spawn(async move { drop(deployments.coordinator(&handle).await) }.into_actor(this));
            }
        });
    }
}

/// Refuses what no device can report, before anything of its heartbeat is taken.
///
/// # Errors
/// INVALID_ARGUMENT for a state that there is not.
pub fn check_progress(progress: &UpdateProgress) -> Result<(), ApiError> {
    if progress.state() != fleetd_proto::v1::update_progress::State::Unspecified {
        return Ok(());
    }
    let number = progress.state;
    Err(ApiError::invalid_argument(format!(
        "the state of an update's progress is {number}, which no device reports; give ACCEPTED, DOWNLOADING, \
         DOWNLOADED, INSTALLING, REBOOTING, CONFIRMING, SUCCEEDED, FAILED, REJECTED or REVERTED"
    )))
}

/// An update as it was given, with its id; `None` for bytes that do not decode, which this server did not write.
pub fn update_of(record: UpdateRecord) -> Option<Update> {
    Update::decode(record.body).ok().map(|update| Update { id: record.id, ..update })
}

/// All of a deployment but its devices.
pub fn head_of(record: &DeploymentRecord) -> Result<Head, ApiError> {
    Head::decode(&record.head).map_err(|error| {
        ApiError::internal(format!("the record of deployment {} cannot be read", record.id)).with_source(error)
    })
}

fn no_deployment(id: &str) -> ApiError {
    ApiError::not_found(format!("there is no deployment {id:?}; ListDeployments names those that are"))
}

fn died() -> ApiError {
    ApiError::unavailable("the deployment's coordinator died and is made anew; try again in a second", AGAIN)
}

fn failed(failure: Failure, id: &str) -> ApiError {
    match failure {
        Failure::Refused(refusal) => {
            ApiError::new(ErrorCode::FailedPrecondition, format!("deployment {id}: {refusal}"))
        }
        Failure::Unsaved(error) => error,
    }
}

fn truncate(text: &mut String, max_bytes: usize) {
    if text.len() > max_bytes {
        let end = (0..=max_bytes).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
    }
}
