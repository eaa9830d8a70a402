//! Finds devices: every registered one by id, and the actor of those that are awake.
//!
//! An actor that panicked is gone and its address closed for good; actix's `Supervisor` does not bring it back either.
//! So supervision is here: the directory notices a closed address, makes the actor anew from its entry, counts it,
//! and delivers the message. A message whose own handling panicked is answered INTERNAL and not tried again: it
//! would most likely panic again.
use std::borrow::Borrow;
use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Weak};
use std::time::Duration;

use actix::prelude::*;
use dashmap::{DashMap, Entry};
use fleetd_proto::v1::device_status::State;
use fleetd_proto::v1::HeartbeatRequest;

use super::device::{DeviceActor, Dismiss, Heartbeat, Taken};
use super::entry::{DeviceEntry, Live};
use super::lean::LeanContext;
use super::pace::{self, Load, Stretch, MAX_IN_FLIGHT};
use crate::clock::UnixMillis;
use crate::error::ApiError;
use crate::events::Events;
use crate::fleet::{Attention, Description, FleetIndex};
use crate::presence;
use crate::telemetry::journal::Journal;

/// What every device actor needs besides its own entry.
pub struct Shared {
    pub(super) journal: Journal,
    /// Pace that devices are told, before jitter.
    pub(super) heartbeat_interval: Duration,
    /// Actors alive now.
    pub(super) awake: AtomicUsize,
    /// Actors made anew because the last one was found dead.
    recreated: AtomicU64,
    /// Messages sent and not answered yet.
    in_flight: AtomicUsize,
    pub(super) events: Events,
    /// The clock that heartbeats are stamped by.
    pub(super) attention: Arc<Attention>,
    /// How far all intervals are stretched now.
    pub(super) stretch: Stretch,
}

/// When to come back to a server that has too much under way; by then it has worked off what it had.
const OVERLOADED_RETRY: Duration = Duration::from_secs(2);

/// How often the stretch of intervals follows the load.
const PACE_EVERY: Duration = Duration::from_millis(250);

/// Cheap, cloneable handle.
#[derive(Clone)]
pub struct DeviceDirectory {
    devices: Arc<DashMap<Known, ()>>,
    fleet: FleetIndex,
    /// For messages that come from no arbiter.
    fallback: ArbiterHandle,
    shared: Arc<Shared>,
}

/// A device where its id is looked for: 8 bytes, a third of what its id beside it would make. The map has up to twice as
/// many places as devices.
struct Known(Arc<DeviceEntry>);

impl Borrow<str> for Known {
    fn borrow(&self) -> &str {
        self.0.id.as_str()
    }
}

/// Of the id alone, as [`Borrow`] asks for.
impl Hash for Known {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.id.as_str().hash(state);
    }
}

impl PartialEq for Known {
    fn eq(&self, other: &Self) -> bool {
        self.0.id == other.0.id
    }
}

impl Eq for Known {}

/// Counts for operators and tests.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DirectorySnapshot {
    /// Devices in the registry.
    pub registered: usize,
    /// Devices whose actor lives.
    pub awake: usize,
    /// Actors made anew after a panic, since the start.
    pub recreated: u64,
    /// Messages in mailboxes or being handled.
    pub in_flight: usize,
    /// Factor by which all devices' intervals are longer now.
    pub stretch: f64,
}

static HASHER: LazyLock<std::hash::RandomState> = LazyLock::new(Default::default);

/// A hash seeded anew in each process, so that no client can foresee it.
pub(super) fn hash_of(value: &impl Hash) -> u64 {
    HASHER.hash_one(value)
}

impl DeviceDirectory {
    /// Must be made on an arbiter, which also serves the actors whose first message comes from none.
    pub fn new(journal: Journal, events: Events, heartbeat_interval: Duration) -> Self {
        let fleet = FleetIndex::new(heartbeat_interval);
        let shared = Shared {
            attention: fleet.attention(),
            journal,
            events,
            heartbeat_interval,
            awake: AtomicUsize::new(0),
            recreated: AtomicU64::new(0),
            in_flight: AtomicUsize::new(0),
            stretch: Stretch::default(),
        };
        let shared = Arc::new(shared);
        Pacer { shared: Arc::downgrade(&shared) }.start();
        Self { devices: Arc::default(), fleet, fallback: Arbiter::current(), shared }
    }

    /// Makes a device known that the registry has just taken. The registry has one device an id at a time, so another
    /// that is still known by this id was deleted, and is forgotten now.
    pub fn admit(&self, entry: DeviceEntry, record: &Description<'_>) {
        let entry = self.fleet.insert(entry, record);
        let deleted = match self.devices.entry(Known(entry)) {
            Entry::Vacant(place) => {
                place.insert(());
                return;
            }
            Entry::Occupied(place) => place.replace_entry(()).0,
        };
        self.retire(&deleted.0);
    }

    /// Forgets a device that was deleted: its key is refused from now on, its actor stops, and a heartbeat that is
    /// still on its way to it is refused. One that was registered anew by the same id stays. Says in what state the
    /// device was told to be last; `None` when it was forgotten before.
    pub fn forget(&self, entry: &Arc<DeviceEntry>) -> Option<State> {
        entry.forget();
        self.devices.remove_if(entry.id.as_str(), |known, ()| Arc::ptr_eq(&known.0, entry));
        self.retire(entry)
    }

    /// The rows of all devices, for queries.
    pub fn fleet(&self) -> &FleetIndex {
        &self.fleet
    }

    /// Lets the actor of a device that is gone end; the next message makes it anew.
    pub fn let_sleep(&self, entry: &DeviceEntry) {
        stop(entry);
    }

    /// How the device stands now.
    pub fn presence(&self, live: &Live) -> State {
        presence::presence(&live.facts(), &self.fleet.moment())
    }

    /// Ends a device that is known by its id no more.
    fn retire(&self, entry: &DeviceEntry) -> Option<State> {
        entry.forget();
        let announced = self.fleet.remove(entry);
        stop(entry);
        announced
    }

    /// Whether the device is there: its presence without regard to maintenance.
    pub fn reachability(&self, entry: &DeviceEntry) -> State {
        presence::reachability(&entry.live().facts(), &self.fleet.moment())
    }

    pub fn find(&self, id: &str) -> Option<Arc<DeviceEntry>> {
        self.devices.get(id).map(|known| Arc::clone(&known.key().0))
    }

    pub fn heartbeat_interval(&self) -> Duration {
        self.shared.heartbeat_interval
    }

    pub fn snapshot(&self) -> DirectorySnapshot {
        DirectorySnapshot {
            registered: self.devices.len(),
            awake: self.shared.awake.load(Ordering::Relaxed),
            recreated: self.shared.recreated.load(Ordering::Relaxed),
            in_flight: self.shared.in_flight.load(Ordering::Relaxed),
            stretch: self.shared.stretch.get(),
        }
    }

    /// Has the device's actor take a heartbeat. It is not durable yet: see [`Taken::ticket`].
    pub async fn heartbeat(
        &self,
        entry: &Arc<DeviceEntry>,
        request: HeartbeatRequest,
        received_at: UnixMillis,
    ) -> Result<Taken, ApiError> {
        let _counted = InFlight::claim(&self.shared, 1)?;
        // In two steps: to let go of an address wakes the actor, which the message has done already. Later it would be
        // once more.
        let answer = self.awake(entry)?.send(Heartbeat { request, received_at });
        answer.await.map_err(handler_died)?
    }

    /// Room for `size` heartbeats that are sent to their actors before the first answer is awaited.
    ///
    /// # Errors
    /// UNAVAILABLE when there is none.
    pub fn begin_batch(&self, size: usize) -> Result<HeartbeatBatch, ApiError> {
        Ok(HeartbeatBatch { directory: self.clone(), _claim: InFlight::claim(&self.shared, size)? })
    }

    /// The device's actor, made now if it sleeps or died.
    fn awake(&self, entry: &Arc<DeviceEntry>) -> Result<Addr<DeviceActor>, ApiError> {
        let mut address = entry.address.lock();
        // Under the lock that deletion takes last, so that no actor is made for a device that is gone.
        if entry.is_forgotten() {
            return Err(deleted(entry));
        }
        if let Some(known) = address.as_ref() {
            if let Some(live) = known.upgrade() {
                return Ok(live);
            }
            self.shared.recreated.fetch_add(1, Ordering::Relaxed);
            tracing::error!(device_id = %entry.id, "device actor had died, made anew");
        }
        // Where its messages come from: a device keeps its connection for hours, and so its messages stay on one
        // thread. Once it comes in by another worker they cross over, until the actor sleeps.
        let here = Arbiter::try_current().unwrap_or_else(|| self.fallback.clone());
        let (entry, shared) = (Arc::clone(entry), Arc::clone(&self.shared));
        let made = LeanContext::start_in_arbiter(&here, move || DeviceActor::new(entry, shared));
        *address = Some(made.downgrade());
        Ok(made)
    }
}

/// Ends the device's actor, after the messages that it has.
fn stop(entry: &DeviceEntry) {
    let address = entry.address.lock().take();
    if let Some(live) = address.and_then(|known| known.upgrade()) {
        // It arrives unless the actor is gone: each address has room for one message in a full mailbox too.
        let _ = live.try_send(Dismiss);
    }
}

/// Lets the stretch of intervals follow the load, and ends when nothing of the directory is left.
struct Pacer {
    shared: Weak<Shared>,
}

impl Actor for Pacer {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Self::Context) {
        context.run_interval(PACE_EVERY, |this, context| {
            let Some(shared) = this.shared.upgrade() else { return context.stop() };
            let journal = shared.journal.metrics();
            let load = Load {
                journal_share: journal.bytes as f64 / journal.capacity_bytes as f64,
                in_flight: shared.in_flight.load(Ordering::Relaxed),
            };
            shared.stretch.set(pace::stretch(load));
        });
    }
}

/// Counts messages while somebody waits for their answers, also when that somebody gives up.
struct InFlight {
    shared: Arc<Shared>,
    messages: usize,
}

impl InFlight {
    /// # Errors
    /// UNAVAILABLE when there are as many as there may be.
    fn claim(shared: &Arc<Shared>, messages: usize) -> Result<Self, ApiError> {
        let before = shared.in_flight.fetch_add(messages, Ordering::Relaxed);
        let claim = Self { shared: Arc::clone(shared), messages };
        // A batch that is larger than what is left passes when it is alone.
        if before > 0 && before + messages > MAX_IN_FLIGHT {
            return Err(overloaded());
        }
        Ok(claim)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.shared.in_flight.fetch_sub(self.messages, Ordering::Relaxed);
    }
}

/// Why a heartbeat is refused when there are as many under way as there may be.
pub fn overloaded() -> ApiError {
    let message = format!("the server has {MAX_IN_FLIGHT} heartbeats under way, which is the most; try again later");
    ApiError::unavailable(message, OVERLOADED_RETRY)
}

/// Heartbeats that are sent to their actors before the first answer is awaited.
pub struct HeartbeatBatch {
    directory: DeviceDirectory,
    _claim: InFlight,
}

/// A heartbeat that its actor has, or will have once this is awaited.
pub struct Sent(actix::dev::Request<DeviceActor, Heartbeat>);

impl HeartbeatBatch {
    /// Hands the heartbeat to its device's actor, whose mailbox has room for it: each address has a place of its own.
    pub fn send(
        &self,
        entry: &Arc<DeviceEntry>,
        request: HeartbeatRequest,
        received_at: UnixMillis,
    ) -> Result<Sent, ApiError> {
        Ok(Sent(self.directory.awake(entry)?.send(Heartbeat { request, received_at })))
    }
}

impl Sent {
    /// The actor's answer.
    pub async fn taken(self) -> Result<Taken, ApiError> {
        self.0.await.map_err(handler_died)?
    }
}

/// Why a device that was deleted takes nothing more.
pub(super) fn deleted(entry: &DeviceEntry) -> ApiError {
    ApiError::not_found(format!("device {} was deleted; RegisterDevice makes it known anew", entry.id))
}

fn handler_died(error: MailboxError) -> ApiError {
    ApiError::internal("the device's actor died while it handled this message; try again").with_source(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actors::entry::Settings;
    use crate::auth::KeyHash;
    use crate::error::ErrorCode;
    use crate::ids::DeviceId;
    use crate::telemetry::journal::{JournalOptions, SyncMode};

    fn directory(dir: &std::path::Path) -> DeviceDirectory {
        let options =
            JournalOptions { dir: dir.into(), sync: SyncMode::Never, segment_bytes: 1 << 20, capacity_bytes: 8 << 20 };
        let (journal, _) = Journal::open(options).expect("a journal in a new folder");
        DeviceDirectory::new(journal.clone(), Events::new(journal), Duration::from_secs(30))
    }

    fn register(directory: &DeviceDirectory, id: &str) -> Arc<DeviceEntry> {
        let id = DeviceId::parse(id).expect("a valid id");
        let entry = DeviceEntry::new(id.clone(), KeyHash::of("secret"), Settings::default());
        directory.admit(entry, &Description::default());
        directory.find(id.as_str()).expect("just admitted")
    }

    fn heartbeat(id: &str) -> HeartbeatRequest {
        HeartbeatRequest { device_id: id.into(), ..HeartbeatRequest::default() }
    }

    #[actix_rt::test]
    async fn a_device_goes_on_after_its_actor_panicked() {
        let folder = tempfile::tempdir().expect("a folder");
        let directory = directory(folder.path());
        let entry = register(&directory, "rpi-001");
        directory
            .heartbeat(&entry, heartbeat("rpi-001"), UnixMillis::now())
            .await
            .expect("taken")
            .ticket
            .committed()
            .await
            .expect("1");

        let actor = directory.awake(&entry).expect("not deleted");
        actor.send(super::super::device::Panic).await.expect_err("the panic takes the actor down");
        let taken =
            directory.heartbeat(&entry, heartbeat("rpi-001"), UnixMillis::now()).await.expect("taken by a new actor");
        assert_eq!(taken.ticket.committed().await.expect("committed"), 2);
        assert_eq!(
            directory.snapshot(),
            DirectorySnapshot { registered: 1, awake: 1, recreated: 1, in_flight: 0, stretch: 1.0 }
        );
    }

    #[actix_rt::test]
    async fn a_heartbeat_is_visible_in_the_read_model_and_paces_the_device() {
        let folder = tempfile::tempdir().expect("a folder");
        let directory = directory(folder.path());
        let entry = register(&directory, "rpi-002");
        let now = UnixMillis::now();
        let taken = directory.heartbeat(&entry, heartbeat("rpi-002"), now).await.expect("taken");
        assert_eq!(entry.live().last_seen, Some(now));
        let seconds = taken.next_heartbeat.as_secs_f64();
        assert!((27.0..=33.0).contains(&seconds), "{seconds} s is not 30 s within a tenth");
    }

    #[actix_rt::test]
    async fn what_is_more_than_may_be_under_way_is_refused_with_a_time_to_retry_and_leaves_no_trace() {
        let folder = tempfile::tempdir().expect("a folder");
        let directory = directory(folder.path());
        let entry = register(&directory, "rpi-001");
        let batch = directory.begin_batch(MAX_IN_FLIGHT).expect("all the room there is");
        let refused = directory.heartbeat(&entry, heartbeat("rpi-001"), UnixMillis::now()).await;
        let refused = refused.err().expect("no room");
        assert_eq!((refused.code, refused.retry_after), (ErrorCode::Unavailable, Some(OVERLOADED_RETRY)));
        assert!(directory.begin_batch(1).is_err());
        assert_eq!(directory.snapshot().in_flight, MAX_IN_FLIGHT);
        assert_eq!(entry.live().heartbeats, 0);
        drop(batch);
        directory.heartbeat(&entry, heartbeat("rpi-001"), UnixMillis::now()).await.expect("taken");
        assert_eq!(directory.snapshot().in_flight, 0);
    }

    #[actix_rt::test]
    async fn an_actor_that_is_let_sleep_takes_what_was_sent_to_it_and_is_made_anew_by_the_next_message() {
        let folder = tempfile::tempdir().expect("a folder");
        let directory = directory(folder.path());
        let entry = register(&directory, "rpi-005");
        let batch = directory.begin_batch(1).expect("room");
        let sent = batch.send(&entry, heartbeat("rpi-005"), UnixMillis::now()).expect("not deleted");
        directory.let_sleep(&entry);
        sent.taken().await.expect("taken before it sleeps");
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert_eq!(directory.snapshot().awake, 0);
        directory.heartbeat(&entry, heartbeat("rpi-005"), UnixMillis::now()).await.expect("taken by a new actor");
        assert_eq!((directory.snapshot().awake, directory.snapshot().recreated), (1, 0), "sleep is no death");
        assert_eq!(entry.live().heartbeats, 2);
    }

    #[actix_rt::test]
    async fn a_device_that_was_forgotten_takes_nothing_more() {
        let folder = tempfile::tempdir().expect("a folder");
        let directory = directory(folder.path());
        let entry = register(&directory, "rpi-003");
        directory.heartbeat(&entry, heartbeat("rpi-003"), UnixMillis::now()).await.expect("taken");
        directory.forget(&entry);
        assert!(directory.find("rpi-003").is_none());
        let refused = directory.heartbeat(&entry, heartbeat("rpi-003"), UnixMillis::now()).await;
        assert_eq!(refused.err().map(|error| error.code), Some(ErrorCode::NotFound));
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert_eq!(
            directory.snapshot(),
            DirectorySnapshot { registered: 0, awake: 0, recreated: 0, in_flight: 0, stretch: 1.0 }
        );
    }

    #[actix_rt::test]
    async fn a_device_that_was_registered_anew_stays_when_the_old_one_is_forgotten() {
        let folder = tempfile::tempdir().expect("a folder");
        let directory = directory(folder.path());
        let old = register(&directory, "rpi-004");
        let new = register(&directory, "rpi-004");
        assert!(old.is_forgotten() && !new.is_forgotten());
        directory.forget(&old);
        assert!(directory.find("rpi-004").is_some_and(|known| Arc::ptr_eq(&known, &new)));
        assert_eq!(directory.snapshot().registered, 1);
    }
}
