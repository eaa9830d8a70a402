//! A fleet that takes updates: devices that heartbeat at an interval each, answer offers by their [`Behaviour`], and
//! remember what the server told them, through its restarts.
//!
//! It is made for tests and for the rollout scenario, not for load: every device reports its version in every
//! heartbeat, and one thread with a few connections speaks for all.
mod device;
mod download;
mod snapshot;
mod worker;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::code::Code;
use crate::device::Device;
use crate::error::LoadError;
use crate::fleet::Fleet;
use crate::target::Target;
use crate::updater::{hash, Behaviour, Updater};
use device::SimDevice;
pub use snapshot::{DeviceView, Snapshot};
use worker::Worker;

/// Real downloads at a time; more would wait for the same processor.
const MAX_DOWNLOADS: usize = 16;

/// How long requests in flight may still take once the fleet is stopped.
const STOP_PATIENCE: Duration = Duration::from_secs(1);

/// How the fleet reports.
#[derive(Clone, Debug)]
pub struct UpdateFleetOptions {
    /// How often each device sends a heartbeat. What it has to answer or to end with it says at once.
    pub interval: Duration,
    /// Whether a device waits as long as the server says (HeartbeatResponse.next_heartbeat) instead of `interval`.
    pub honour_next_heartbeat: bool,
    /// HTTP/1.1 connections over all; at most one a device.
    pub connections: usize,
    /// How long a request may wait for its answer before its connection is given up.
    pub timeout: Duration,
    /// The version that every device runs at first; `None` is what it was registered with.
    pub initial_version: Option<String>,
    /// The share of the fleet, as [`Pick::Share`] with salt 0, that is off the network until
    /// [`UpdateFleet::set_offline`] brings it back.
    pub offline_share: f64,
    /// How every device behaves at first.
    pub behaviour: Behaviour,
    /// Seed of all that is drawn.
    pub seed: u64,
}

impl Default for UpdateFleetOptions {
    fn default() -> Self {
        Self {
            interval: Duration::from_millis(500),
            honour_next_heartbeat: false,
            connections: 32,
            timeout: Duration::from_secs(10),
            initial_version: None,
            offline_share: 0.0,
            behaviour: Behaviour::default(),
            seed: 1,
        }
    }
}

/// Some of the devices.
#[derive(Clone, Copy, Debug)]
pub enum Pick<'a> {
    All,
    /// So much of the fleet, 0 to 1, rounded up. The same share and salt pick the same devices, a larger share picks
    /// those and more, and another salt picks independently.
    Share {
        of: f64,
        salt: u64,
    },
    Ids(&'a [String]),
}

/// Devices at work. Stopped, with its thread, when it is dropped.
#[derive(Debug)]
pub struct UpdateFleet {
    shared: Arc<Shared>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// What the thread and its owner share.
#[derive(Debug)]
pub(crate) struct Shared {
    options: UpdateFleetOptions,
    /// What the devices' times count from.
    epoch: Instant,
    /// By index, as `devices`.
    ids: Vec<String>,
    devices: Vec<Mutex<SimDevice>>,
    target: Mutex<Target>,
    /// Counts the targets, from 1: connections to an earlier one are given up.
    generation: AtomicU64,
    stop: AtomicBool,
    /// Deployments that the owner knows to be over, and since when.
    ended: Mutex<HashMap<String, Instant>>,
    downloads: Semaphore,
    counters: Counters,
}

#[derive(Debug, Default)]
struct Counters {
    acknowledged: AtomicU64,
    broken: AtomicU64,
    malformed: AtomicU64,
    refused: [AtomicU64; Code::COUNT],
    downloaded_bytes: AtomicU64,
    /// Devices that work on an update now, and the most that ever did.
    working: AtomicU64,
    peak_working: AtomicU64,
}

impl UpdateFleet {
    /// Sets registered devices to work, in a thread of their own; each sends its first heartbeat within an interval.
    pub fn start(fleet: Fleet, options: UpdateFleetOptions) -> Result<Self, LoadError> {
        let connections = options.connections.clamp(1, fleet.len().max(1));
        let ids: Vec<String> = fleet.devices.iter().map(|device| device.id.clone()).collect();
        let offline = share(&ids, options.offline_share, 0);
        let devices = fleet.devices.into_iter().enumerate().map(|(index, device)| {
            let version = options.initial_version.as_deref().unwrap_or_else(|| Device::version(index));
            let seed = options.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ hash(&device.id);
            let mut device = SimDevice::new(device, Updater::new(version, seed, options.behaviour.clone()));
            device.is_offline = offline.binary_search(&index).is_ok();
            Mutex::new(device)
        });
        let shared = Arc::new(Shared {
            ids,
            devices: devices.collect(),
            options,
            epoch: Instant::now(),
            target: Mutex::new(fleet.target),
            generation: AtomicU64::new(1),
            stop: AtomicBool::new(false),
            ended: Mutex::default(),
            downloads: Semaphore::new(MAX_DOWNLOADS),
            counters: Counters::default(),
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime =
            runtime.map_err(|source| LoadError::Io { operation: "make the fleet's runtime".to_owned(), source })?;
        let for_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("update-fleet".to_owned()).spawn(move || {
            runtime.block_on(run(for_thread, connections));
        });
        let thread =
            thread.map_err(|source| LoadError::Io { operation: "start the fleet's thread".to_owned(), source })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    pub fn ids(&self) -> Vec<String> {
        self.shared.ids.clone()
    }

    /// Changes how some devices behave from their next offer on; returns their ids.
    pub fn change_behaviour(&self, pick: Pick<'_>, change: impl Fn(&mut Behaviour)) -> Vec<String> {
        self.each(pick, |device| {
            let mut behaviour = device.updater.behaviour().clone();
            change(&mut behaviour);
            device.updater.set_behaviour(behaviour);
        })
    }

    /// As [`Self::change_behaviour`], wholly.
    pub fn set_behaviour(&self, pick: Pick<'_>, behaviour: &Behaviour) -> Vec<String> {
        self.each(pick, |device| device.updater.set_behaviour(behaviour.clone()))
    }

    /// Takes some devices off the network, or brings them back; their work goes on meanwhile. Returns their ids.
    pub fn set_offline(&self, pick: Pick<'_>, is_offline: bool) -> Vec<String> {
        self.each(pick, |device| device.is_offline = is_offline)
    }

    /// Switches on those of some devices that vanished or bricked; they run what they ran before.
    pub fn revive(&self, pick: Pick<'_>) -> Vec<String> {
        self.each(pick, |device| device.updater.revive())
    }

    /// Sends everything elsewhere from now on: for a server that came back on another port. Connections to the old
    /// address are given up, and [`Snapshot::reported`] counts anew.
    pub fn set_target(&self, target: &Target) {
        *lock(&self.shared.target) = target.clone();
        for device in &self.shared.devices {
            lock(device).has_reported = false;
        }
        self.shared.generation.fetch_add(1, Ordering::AcqRel);
    }

    /// Tells that a deployment is over: its offers in replies to requests that leave from now on are violations.
    pub fn mark_ended(&self, deployment_id: &str) {
        lock(&self.shared.ended).insert(deployment_id.to_owned(), Instant::now());
    }

    /// Tells that a deployment that was over makes offers again: it is rolled back.
    pub fn mark_running(&self, deployment_id: &str) {
        lock(&self.shared.ended).remove(deployment_id);
    }

    pub fn snapshot(&self) -> Snapshot {
        Snapshot::take(&self.shared)
    }

    pub fn device(&self, id: &str) -> Option<DeviceView> {
        let index = self.shared.ids.iter().position(|known| known == id)?;
        Some(DeviceView::of(&lock(&self.shared.devices[index])))
    }

    pub fn len(&self) -> usize {
        self.shared.devices.len()
    }

    pub fn is_empty(&self) -> bool {
        self.shared.devices.is_empty()
    }

    /// Stops all devices, and says how things stood.
    pub fn stop(mut self) -> Snapshot {
        self.end();
        self.snapshot()
    }

    fn end(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            // Fails only if the thread panicked, which it has said itself.
            let _ = thread.join();
        }
    }

    fn each(&self, pick: Pick<'_>, mut act: impl FnMut(&mut SimDevice)) -> Vec<String> {
        let ids = &self.shared.ids;
        let picked: Vec<usize> = match pick {
            Pick::All => (0..ids.len()).collect(),
            Pick::Share { of, salt } => share(ids, of, salt),
            Pick::Ids(wanted) => wanted.iter().filter_map(|id| ids.iter().position(|known| known == id)).collect(),
        };
        picked.iter().for_each(|index| act(&mut lock(&self.shared.devices[*index])));
        picked.into_iter().map(|index| ids[index].clone()).collect()
    }
}

impl Drop for UpdateFleet {
    fn drop(&mut self) {
        self.end();
    }
}

impl Shared {
    /// The devices' clock, in ms.
    fn millis(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.epoch).as_millis()).unwrap_or(u64::MAX)
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    fn target(&self) -> (u64, Target) {
        // Read before the address: one that is replaced in between is given up right away.
        let generation = self.generation.load(Ordering::Acquire);
        (generation, lock(&self.target).clone())
    }

    fn is_ended(&self, deployment_id: &str, departed: Instant) -> bool {
        lock(&self.ended).get(deployment_id).is_some_and(|ended| departed > *ended)
    }

    /// Keeps count of the devices at work. Only the fleet's thread changes them.
    fn count_work(&self, before: bool, after: bool) {
        if after && !before {
            let working = self.counters.working.fetch_add(1, Ordering::Relaxed) + 1;
            self.counters.peak_working.fetch_max(working, Ordering::Relaxed);
        } else if before && !after {
            self.counters.working.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

async fn run(shared: Arc<Shared>, connections: usize) {
    let mut workers = JoinSet::new();
    for number in 0..connections {
        let indices = (number..shared.devices.len()).step_by(connections).collect();
        workers.spawn(Worker::new(Arc::clone(&shared), number as u64, indices).run());
    }
    let mut stopped_at = None;
    while !workers.is_empty() {
        if shared.is_stopped() && stopped_at.get_or_insert_with(Instant::now).elapsed() > STOP_PATIENCE {
            return;
        }
        let _ = tokio::time::timeout(worker::WATCH_STEP, workers.join_next()).await;
    }
}

/// The devices of a share: those that come first in an order that the salt gives.
fn share(ids: &[String], of: f64, salt: u64) -> Vec<usize> {
    let count = (ids.len() as f64 * of.clamp(0.0, 1.0)).ceil() as usize;
    let mut order: Vec<usize> = (0..ids.len()).collect();
    order.sort_by_key(|index| {
        let seed = hash(&ids[*index]) ^ salt.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (crate::random::Random::new(seed).next(), *index)
    });
    order.truncate(count);
    order.sort_unstable();
    order
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_exact_stays_the_same_and_grows_by_nesting() {
        let ids = Vec::from_iter((0..1000).map(|n| format!("sim-{n:06}")));
        let third = share(&ids, 1.0 / 3.0, 1);
        assert_eq!(third.len(), 334);
        assert_eq!(third, share(&ids, 1.0 / 3.0, 1));
        assert_ne!(third, share(&ids, 1.0 / 3.0, 2));
        let half = share(&ids, 0.5, 1);
        assert!(third.iter().all(|index| half.contains(index)));
        assert_eq!((share(&ids, 0.0, 1).len(), share(&ids, 1.0, 1).len()), (0, 1000));
        let both = share(&ids, 0.5, 2).iter().filter(|index| half.contains(index)).count();
        assert!((200..300).contains(&both), "salts are independent: {both}");
    }
}
