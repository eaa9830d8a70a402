//! The fleet index: every registered device as a row of columns, for lists, filters and targeting.
//!
//! A read model: the registry and the device actors own the facts and write them through, in place, as they change
//! (`DeviceEntry::describe`, `DeviceEntry::update_live`), so a query over a million devices asks neither the database
//! nor an actor. [`FleetIndex`] has the rows, in chunks of 1,024 that never move; [`FleetQueries`] runs queries over
//! them on threads of its own.
//!
//! A query looks at each row once, at no common moment: it sees every device that was there throughout, with values
//! that were true while it ran.
mod announced;
mod attention;
mod bitmap;
mod changes;
mod checkup;
mod chunk;
mod described;
mod description;
mod evaluate;
mod members;
mod queries;
mod record;
mod scan;
mod stats;
mod subject;
mod targets;
#[cfg(test)]
mod tests;
mod texts;
mod top;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::Duration;

use fleetd_proto::v1::device_status::State;
use parking_lot::{Mutex, RwLock};

pub use announced::OnlineNow;
pub use changes::Change;
pub use checkup::{CheckupRequest, Examined};
pub use chunk::Row;
pub use description::Description;
pub use members::Members;
pub use queries::{FleetQueries, QueryFailure, QueryStats};
pub use scan::{Page, Place, Selection};
pub use stats::percentages;
pub use targets::{DeviceKind, Survey, SurveyRequest};

use crate::actors::entry::DeviceEntry;
use crate::clock;
use crate::presence::{self, Moment};
use crate::query::Filter;
pub(crate) use attention::Attention;
use attention::Heard;
use bitmap::ROWS;
use chunk::Chunk;
use subject::RowSubject;

/// All rows. Cheap, cloneable handle.
#[derive(Clone)]
pub struct FleetIndex(Arc<Inner>);

struct Inner {
    chunks: RwLock<Vec<Arc<Chunk>>>,
    /// Rows that nobody has.
    free: Mutex<Vec<Row>>,
    occupied: AtomicUsize,
    /// How often devices report whose interval nobody set.
    default_interval: Duration,
    attention: Arc<Attention>,
}

impl FleetIndex {
    pub fn new(default_interval: Duration) -> Self {
        Self(Arc::new(Inner {
            chunks: RwLock::default(),
            free: Mutex::default(),
            occupied: AtomicUsize::new(0),
            default_interval,
            attention: Arc::default(),
        }))
    }

    /// How many devices have a row.
    pub fn len(&self) -> usize {
        self.0.occupied.load(Ordering::Relaxed)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Gives `entry` a row. Queries see it from now on.
    pub fn insert(&self, mut entry: DeviceEntry, record: &Description<'_>) -> Arc<DeviceEntry> {
        let row = self.0.free_row();
        row.chunk.hot.reset(row.slot(), record.last_seen);
        entry.take_row(row.clone());
        let entry = Arc::new(entry);
        let mut described = row.chunk.described.write();
        described.occupy(row.slot(), Arc::clone(&entry));
        described.describe(&row.chunk.hot, row.slot(), record, None);
        let live = entry.lock_live();
        row.mirror(&live);
        let facts = live.facts();
        row.chunk.hot.announce(row.slot(), presence::before_start(facts.past, facts.is_in_maintenance));
        drop(live);
        drop(described);
        self.0.occupied.fetch_add(1, Ordering::Relaxed);
        entry
    }

    /// Takes the row of a forgotten device back, and says in what state it was told to be last. `None`, without effect,
    /// when that was done before.
    pub fn remove(&self, entry: &DeviceEntry) -> Option<State> {
        let row = entry.row()?;
        debug_assert!(entry.is_forgotten(), "a device that is known would go on writing its row");
        let mut described = row.chunk.described.write();
        row.is_of(&described, entry).then(|| described.vacate(row.slot())).flatten()?;
        // Changes are told under the lock too, so none can follow.
        let announced = row.chunk.hot.announced(row.slot());
        drop(described);
        self.0.occupied.fetch_sub(1, Ordering::Relaxed);
        self.0.free.lock().push(row.clone());
        Some(announced)
    }

    /// Whether a filter holds for one device now; false for one that has no row. Takes the device's lock.
    pub fn matches(&self, entry: &DeviceEntry, filter: &Filter) -> bool {
        let Some(row) = entry.row() else { return false };
        let described = row.chunk.described.read();
        row.is_of(&described, entry)
            && filter.matches(&RowSubject::new(&described, &row.chunk.hot, row.slot(), self.moment()))
    }

    /// Now, as presence is judged.
    pub fn moment(&self) -> Moment {
        let Heard { now, began, listening_since } = self.0.attention.heard(clock::monotonic_nanos());
        Moment { now, began, listening_since, default_interval: self.0.default_interval }
    }

    /// The clock that reports of devices are stamped by.
    pub(crate) fn attention(&self) -> Arc<Attention> {
        Arc::clone(&self.0.attention)
    }
}

impl Inner {
    fn free_row(&self) -> Row {
        let mut free = self.free.lock();
        if let Some(row) = free.pop() {
            return row;
        }
        let chunk = Arc::new(Chunk::new());
        free.reserve(ROWS);
        // The first row of the chunk is the one that is given out now, the second the next, and so on.
        free.extend((1..ROWS).rev().map(|slot| Row { chunk: Arc::clone(&chunk), slot: slot as u16 }));
        self.chunks.write().push(Arc::clone(&chunk));
        Row { chunk, slot: 0 }
    }
}

/// Entries hold their rows, and rows their entries: here the circle is cut.
impl Drop for Inner {
    fn drop(&mut self) {
        for chunk in self.chunks.get_mut().iter() {
            let mut described = chunk.described.write();
            let occupied = *described.occupied();
            occupied.iter().for_each(|row| drop(described.vacate(row)));
        }
    }
}
