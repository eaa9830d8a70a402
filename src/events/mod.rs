//! What happens to devices, told to whoever listens, and kept in ClickHouse.
//!
//! An event goes to subscribers over bounded rings: one that is too slow misses the oldest, and is told how many. It
//! never holds anybody up. All but heartbeats are also rows of `device_events`, on the same way through the journal as
//! heartbeats themselves.
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::Arc;

use fleetd_proto::v1::device_status::State;
use tokio::sync::broadcast::{self, error::RecvError};

use crate::actors::deployment::Handle;
use crate::actors::entry::DeviceEntry;
use crate::clock::UnixMillis;
use crate::rollout::DeviceState;
use crate::store::Device;
use crate::telemetry::journal::Journal;
use crate::telemetry::row::DeviceEvent as Row;

/// Events that a subscriber may be behind. A fleet whose network fails makes some thousands a second, so this is a
/// second to catch up in; at 64 bytes each it costs 1 MB, whoever listens.
const RING: usize = 16_384;

/// Subscribers at a time. Each costs a task and is woken by each event.
pub const MAX_SUBSCRIBERS: usize = 1_000;

/// Something that happened to a device.
#[derive(Clone, Debug)]
pub struct Event {
    pub at: UnixMillis,
    pub what: What,
}

#[derive(Clone)]
pub enum What {
    StatusChange {
        device: Arc<DeviceEntry>,
        from: State,
        to: State,
        last_seen: Option<UnixMillis>,
    },
    Heartbeat {
        device: Arc<DeviceEntry>,
    },
    Registered {
        device: Arc<Device>,
    },
    Updated {
        device: Arc<Device>,
    },
    /// With what the registry knew of it.
    Deleted {
        device: Arc<Device>,
        /// The state that was told of it last.
        from: State,
    },
    /// What became of it in a deployment.
    Deployment {
        device: Arc<DeviceEntry>,
        progress: DeviceProgress,
    },
}

/// How far a device is in a deployment.
#[derive(Clone)]
pub struct DeviceProgress {
    pub deployment: Arc<Handle>,
    pub state: DeviceState,
    pub wave: u32,
    pub attempt: u32,
    pub reason_code: &'static str,
}

impl std::fmt::Debug for What {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {}", self.kind().name(), self.device_id())
    }
}

/// The kinds of events, by the names that the contract has for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    StatusChange,
    Heartbeat,
    Registered,
    Updated,
    Deleted,
    Deployment,
}

impl Kind {
    pub const ALL: [Self; 6] =
        [Self::StatusChange, Self::Heartbeat, Self::Registered, Self::Updated, Self::Deleted, Self::Deployment];

    pub const fn name(self) -> &'static str {
        match self {
            Self::StatusChange => "status_change",
            Self::Heartbeat => "heartbeat",
            Self::Registered => "registered",
            Self::Updated => "updated",
            Self::Deleted => "deleted",
            Self::Deployment => "deployment",
        }
    }
}

impl What {
    pub fn kind(&self) -> Kind {
        match self {
            Self::StatusChange { .. } => Kind::StatusChange,
            Self::Heartbeat { .. } => Kind::Heartbeat,
            Self::Registered { .. } => Kind::Registered,
            Self::Updated { .. } => Kind::Updated,
            Self::Deleted { .. } => Kind::Deleted,
            Self::Deployment { .. } => Kind::Deployment,
        }
    }

    pub fn device_id(&self) -> &str {
        match self {
            Self::StatusChange { device, .. } | Self::Heartbeat { device } | Self::Deployment { device, .. } => {
                device.id.as_str()
            }
            Self::Registered { device } | Self::Updated { device } | Self::Deleted { device, .. } => device.id.as_str(),
        }
    }
}

/// Where events are told. Cheap to clone.
#[derive(Clone)]
pub struct Events(Arc<Inner>);

struct Inner {
    journal: Journal,
    changes: broadcast::Sender<Event>,
    heartbeats: broadcast::Sender<Event>,
    /// So that a heartbeat that nobody listens to costs one load.
    heartbeat_subscribers: AtomicUsize,
    subscribers: AtomicUsize,
    told: AtomicU64,
    /// Events that the journal did not take.
    unkept: AtomicU64,
}

/// Counts for `/metrics`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventStats {
    pub subscribers: usize,
    pub told: u64,
    pub unkept: u64,
}

/// There are [`MAX_SUBSCRIBERS`] already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{MAX_SUBSCRIBERS} streams of events are open, which is the most; close one, or try again later")]
pub struct TooManySubscribers;

impl Events {
    pub fn new(journal: Journal) -> Self {
        Self(Arc::new(Inner {
            journal,
            changes: broadcast::Sender::new(RING),
            heartbeats: broadcast::Sender::new(RING),
            heartbeat_subscribers: AtomicUsize::new(0),
            subscribers: AtomicUsize::new(0),
            told: AtomicU64::new(0),
            unkept: AtomicU64::new(0),
        }))
    }

    /// Keeps the event and tells it. False when the journal did not take it: then nobody is told either, so that who
    /// can say it again later does.
    pub fn tell(&self, event: Event) -> bool {
        let (from_state, to_state) = match &event.what {
            What::StatusChange { from, to, .. } => (from.as_str_name(), to.as_str_name()),
            // A device that is deleted is in no state from then on.
            What::Deleted { from, .. } => (from.as_str_name(), ""),
            _ => ("", ""),
        };
        let device_id = event.what.device_id();
        let kind = event.what.kind().name();
        let mut record = Vec::with_capacity(128);
        Row { received_at: event.at, device_id, timestamp: event.at, kind, from_state, to_state, detail: "" }
            .encode(&mut record);
        if let Err(error) = self.0.journal.append(&record) {
            self.0.unkept.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(device_id, kind, error = &error as &dyn std::error::Error, "event is not kept");
            return false;
        }
        self.0.told.fetch_add(1, Ordering::Relaxed);
        // An error says that nobody listens.
        let _ = self.0.changes.send(event);
        true
    }

    /// Tells what is kept elsewhere, such as in `deployment_events`.
    pub fn announce(&self, event: Event) {
        self.0.told.fetch_add(1, Ordering::Relaxed);
        // An error says that nobody listens.
        let _ = self.0.changes.send(event);
    }

    /// Tells a heartbeat, if anybody listens to them.
    pub fn tell_heartbeat(&self, device: &Arc<DeviceEntry>, at: UnixMillis) {
        if self.0.heartbeat_subscribers.load(Ordering::Relaxed) > 0 {
            let _ = self.0.heartbeats.send(Event { at, what: What::Heartbeat { device: Arc::clone(device) } });
        }
    }

    pub fn stats(&self) -> EventStats {
        EventStats {
            subscribers: self.0.subscribers.load(Ordering::Relaxed),
            told: self.0.told.load(Ordering::Relaxed),
            unkept: self.0.unkept.load(Ordering::Relaxed),
        }
    }

    /// Listens from now on, to changes, to heartbeats, or to both.
    ///
    /// # Errors
    /// When too many listen already.
    pub fn subscribe(&self, to_changes: bool, to_heartbeats: bool) -> Result<Subscription, TooManySubscribers> {
        let inner = &self.0;
        if inner.subscribers.fetch_add(1, Ordering::Relaxed) >= MAX_SUBSCRIBERS {
            inner.subscribers.fetch_sub(1, Ordering::Relaxed);
            return Err(TooManySubscribers);
        }
        inner.heartbeat_subscribers.fetch_add(usize::from(to_heartbeats), Ordering::Relaxed);
        Ok(Subscription {
            changes: to_changes.then(|| inner.changes.subscribe()),
            heartbeats: to_heartbeats.then(|| inner.heartbeats.subscribe()),
            missed: 0,
            events: self.clone(),
        })
    }
}

/// One listener.
pub struct Subscription {
    changes: Option<broadcast::Receiver<Event>>,
    heartbeats: Option<broadcast::Receiver<Event>>,
    missed: u64,
    events: Events,
}

impl Subscription {
    /// The next event, and how many were missed just before it. Cancel safe.
    pub async fn next(&mut self) -> (Event, u64) {
        loop {
            let received = tokio::select! {
                received = receive(&mut self.changes) => received,
                received = receive(&mut self.heartbeats) => received,
            };
            match received {
                Ok(event) => return (event, std::mem::take(&mut self.missed)),
                Err(RecvError::Lagged(missed)) => self.missed += missed,
                // The senders live as long as `events`, which is here.
                Err(RecvError::Closed) => std::future::pending().await,
            }
        }
    }
}

async fn receive(receiver: &mut Option<broadcast::Receiver<Event>>) -> Result<Event, RecvError> {
    match receiver {
        Some(receiver) => receiver.recv().await,
        None => std::future::pending().await,
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let inner = &self.events.0;
        inner.subscribers.fetch_sub(1, Ordering::Relaxed);
        inner.heartbeat_subscribers.fetch_sub(usize::from(self.heartbeats.is_some()), Ordering::Relaxed);
    }
}
