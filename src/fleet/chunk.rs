//! The rows of 1,024 devices, column by column.
//!
//! What heartbeats change lies in [`Hot`]: atomics that the device's actor writes without a lock. What operators
//! change lies in [`Described`], under a lock that a query shares for the time of one chunk. A row is given to a
//! device, and taken from it, under that lock held alone; so while a query holds it, a row is one device's.
//!
//! A query may see one heartbeat half: each number is one that the device reported, but the processor load may be
//! from one heartbeat and the memory from the one before.
//!
//! Order of locks: a chunk's, then a device's (`DeviceEntry`), never the other way.
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, AtomicU8, Ordering};
use std::sync::Arc;
use std::time::Duration;

use fleetd_proto::v1::device_status::State;
use parking_lot::RwLock;

use super::bitmap::ROWS;
use super::described::Described;
use super::description::Description;
use super::stats::{finite, Gauges};
use crate::actors::entry::{DeviceEntry, Live};
use crate::clock::{Pause, UnixMillis};
use crate::presence::{self, Facts, Moment, Past};
use crate::telemetry::row::KnownDevice;

pub struct Chunk {
    pub hot: Hot,
    pub described: RwLock<Described>,
}

impl Chunk {
    pub fn new() -> Self {
        Self { hot: Hot::new(), described: RwLock::new(Described::new()) }
    }
}

/// One value a row. Each column has a block of its own: their lengths are powers of two, so the allocator wastes nothing
/// on them, where one block for all of them would be rounded up by an eighth.
type Column<T> = Box<[T; ROWS]>;

/// Columns that heartbeats write. Numbers are kept as their bits, `NAN` is one that was not reported.
pub struct Hot {
    /// Wall clock in milliseconds; [`NEVER`] for a device that was never seen.
    last_seen: Column<AtomicI64>,
    /// On the clock of [`Moment`], what presence is judged by.
    last_seen_at: Column<AtomicU64>,
    flags: Column<AtomicU8>,
    /// How long the device was told to wait, in milliseconds; 0 as the server's configuration says.
    expected_millis: Column<AtomicU32>,
    /// The presence that was told last, as the number of its state.
    announced: Column<AtomicU8>,
    cpu_percent: Column<AtomicU64>,
    memory_percent: Column<AtomicU64>,
    disk_percent: Column<AtomicU64>,
    /// 0 is not reported.
    uptime_seconds: Column<AtomicU64>,
    /// From the device's `SystemInfo`, for reports that leave the totals out; 0 is not known.
    memory_mb: Column<AtomicU64>,
    disk_gb: Column<AtomicU64>,
}

const NEVER: i64 = i64::MIN;

/// Flag: the device has reported since the server started.
const IS_SEEN: u8 = 1;
/// Flag: out of service, by the operator or by itself.
const IS_IN_MAINTENANCE: u8 = 2;
/// Flags of what was known before the server started.
const WAS_SEEN: u8 = 4;
const WAS_OFFLINE: u8 = 8;
const WAS_LATE: u8 = 16;

impl Hot {
    fn new() -> Self {
        Self {
            last_seen: column(|| AtomicI64::new(NEVER)),
            last_seen_at: column(AtomicU64::default),
            flags: column(AtomicU8::default),
            expected_millis: column(AtomicU32::default),
            announced: column(AtomicU8::default),
            cpu_percent: column(AtomicU64::default),
            memory_percent: column(AtomicU64::default),
            disk_percent: column(AtomicU64::default),
            uptime_seconds: column(AtomicU64::default),
            memory_mb: column(AtomicU64::default),
            disk_gb: column(AtomicU64::default),
        }
    }

    /// Makes the row that of a device which has not reported yet.
    pub fn reset(&self, row: usize, last_seen: Option<UnixMillis>) {
        self.last_seen[row].store(last_seen.map_or(NEVER, UnixMillis::as_millis), Ordering::Relaxed);
        self.set_totals(row, 0, 0.0);
        self.mirror(row, &Live::default());
    }

    pub fn set_totals(&self, row: usize, memory_mb: u64, disk_gb: f64) {
        self.memory_mb[row].store(memory_mb, Ordering::Relaxed);
        put(&self.disk_gb[row], disk_gb);
    }

    /// Takes over the live state of the row's device; called with the device's lock held.
    pub fn mirror(&self, row: usize, live: &Live) {
        let gauges = Gauges::of(&live.stats);
        put(&self.cpu_percent[row], finite(gauges.cpu_percent).unwrap_or(f64::NAN));
        let total_mb = self.memory_mb[row].load(Ordering::Relaxed) as f64;
        put(&self.memory_percent[row], gauges.memory_percent(total_mb).unwrap_or(f64::NAN));
        put(&self.disk_percent[row], gauges.disk_percent(get(&self.disk_gb[row])).unwrap_or(f64::NAN));
        self.uptime_seconds[row].store(live.uptime_seconds, Ordering::Relaxed);
        self.last_seen_at[row].store(live.last_seen_at, Ordering::Relaxed);
        if let Some(at) = live.last_seen {
            self.last_seen[row].store(at.as_millis(), Ordering::Relaxed);
        }
        let facts = live.facts();
        let expected = facts.expected.map_or(0, |expected| Pause::from(expected).as_millis());
        self.expected_millis[row].store(expected, Ordering::Relaxed);
        let is_seen = if facts.last_seen_at.is_some() { IS_SEEN } else { 0 };
        let maintenance = if facts.is_in_maintenance { IS_IN_MAINTENANCE } else { 0 };
        let past = match facts.past {
            Past::NeverSeen => 0,
            Past::Seen => WAS_SEEN,
            Past::Late => WAS_LATE,
            Past::Offline => WAS_OFFLINE,
        };
        self.flags[row].store(is_seen | maintenance | past, Ordering::Relaxed);
    }

    pub fn last_seen(&self, row: usize) -> Option<UnixMillis> {
        let millis = self.last_seen[row].load(Ordering::Relaxed);
        (millis != NEVER).then(|| UnixMillis::from_millis_clamped(millis))
    }

    /// As for [`Live::facts`].
    pub fn state(&self, row: usize, moment: &Moment) -> State {
        let flags = self.flags[row].load(Ordering::Relaxed);
        let has = |flag| flags & flag != 0;
        let expected = Pause::from_millis(self.expected_millis[row].load(Ordering::Relaxed));
        let facts = Facts {
            is_in_maintenance: has(IS_IN_MAINTENANCE),
            last_seen_at: has(IS_SEEN).then(|| self.last_seen_at[row].load(Ordering::Relaxed)),
            past: match flags & (WAS_SEEN | WAS_LATE | WAS_OFFLINE) {
                WAS_OFFLINE => Past::Offline,
                WAS_LATE => Past::Late,
                WAS_SEEN => Past::Seen,
                _ => Past::NeverSeen,
            },
            expected: expected.map(Duration::from),
        };
        presence::presence(&facts, moment)
    }

    /// The presence that was told last.
    pub fn announced(&self, row: usize) -> State {
        State::try_from(i32::from(self.announced[row].load(Ordering::Relaxed))).unwrap_or_default()
    }

    pub fn announce(&self, row: usize, state: State) {
        self.announced[row].store(state as u8, Ordering::Relaxed);
    }

    pub fn cpu_percent(&self, row: usize) -> f64 {
        get(&self.cpu_percent[row])
    }

    pub fn memory_percent(&self, row: usize) -> f64 {
        get(&self.memory_percent[row])
    }

    pub fn disk_percent(&self, row: usize) -> f64 {
        get(&self.disk_percent[row])
    }

    /// `NAN` where it was not reported.
    pub fn uptime_seconds(&self, row: usize) -> f64 {
        none_if_zero(self.uptime_seconds[row].load(Ordering::Relaxed) as f64)
    }

    /// What the device's `SystemInfo` says of its memory in MB and its disk in GB; 0 is not known.
    pub fn totals(&self, row: usize) -> (u64, f64) {
        (self.memory_mb[row].load(Ordering::Relaxed), get(&self.disk_gb[row]))
    }

    pub fn memory_mb(&self, row: usize) -> f64 {
        none_if_zero(self.memory_mb[row].load(Ordering::Relaxed) as f64)
    }

    pub fn disk_gb(&self, row: usize) -> f64 {
        none_if_zero(get(&self.disk_gb[row]))
    }
}

/// A new column, made on the heap at once: it need not fit into a thread's stack.
fn column<T>(value: impl FnMut() -> T) -> Column<T> {
    let mut values = Vec::with_capacity(ROWS);
    values.resize_with(ROWS, value);
    let values: Box<[T]> = values.into();
    values.try_into().unwrap_or_else(|_| unreachable!("it was made with as many rows"))
}

fn put(column: &AtomicU64, number: f64) {
    column.store(number.to_bits(), Ordering::Relaxed);
}

fn get(column: &AtomicU64) -> f64 {
    f64::from_bits(column.load(Ordering::Relaxed))
}

pub(super) fn none_if_zero(number: f64) -> f64 {
    if number == 0.0 {
        return f64::NAN;
    }
    number
}

/// The place of one device in the index. A device keeps its row until it is forgotten.
#[derive(Clone)]
pub struct Row {
    pub(super) chunk: Arc<Chunk>,
    pub(super) slot: u16,
}

impl Row {
    pub(super) fn slot(&self) -> usize {
        usize::from(self.slot)
    }

    /// Takes over live state, all but the version. The caller holds the device's lock, and the device is known.
    pub fn mirror(&self, live: &Live) {
        self.chunk.hot.mirror(self.slot(), live);
    }

    /// Runs `read` on what is known of the row's device, with the chunk held against changes; nothing is known of a device
    /// that has no row (any more).
    pub fn with_known<T>(&self, entry: &DeviceEntry, read: impl FnOnce(KnownDevice<'_>) -> T) -> T {
        let described = self.chunk.described.read();
        if !self.is_of(&described, entry) {
            return read(KnownDevice::default());
        }
        let (memory_mb, disk_gb) = self.chunk.hot.totals(self.slot());
        let (device_type, version) = described.type_and_version(self.slot());
        read(KnownDevice { device_type, version, memory_mb, disk_gb })
    }

    /// Runs `change` with the row and the device's live state held alone; not for a device that has no row (any more).
    pub fn change(&self, entry: &DeviceEntry, change: impl FnOnce(&mut HeldRow<'_>, &mut Live)) {
        let mut described = self.chunk.described.write();
        if !self.is_of(&described, entry) {
            return;
        }
        let mut live = entry.lock_live();
        if !entry.is_forgotten() {
            change(&mut HeldRow { described: &mut described, row: self }, &mut live);
        }
    }

    /// Whether this is still the row of `entry`.
    pub(super) fn is_of(&self, described: &Described, entry: &DeviceEntry) -> bool {
        described.entry(self.slot()).is_some_and(|there| std::ptr::eq(Arc::as_ptr(there), entry))
    }
}

/// A row that nobody else looks at.
pub struct HeldRow<'a> {
    described: &'a mut Described,
    row: &'a Row,
}

impl HeldRow<'_> {
    /// Takes over a device's record, and what its live state took from it.
    pub fn describe(&mut self, record: &Description<'_>, live: &Live) {
        let (hot, slot) = (&self.row.chunk.hot, self.row.slot());
        self.described.describe(hot, slot, record, live.version.as_deref());
        hot.mirror(slot, live);
    }

    /// Takes over the version that the device reported.
    pub fn set_version(&mut self, live: &Live) {
        if let Some(version) = &live.version {
            self.described.set_version(self.row.slot(), version);
        }
    }
}
