//! Where to find devices by what they wait for. All of it follows from the records: it is rebuilt when a deployment is
//! loaded, and moved along at each change of one.
use super::machine::Limits;
use super::places::PlaceSet;
use super::record::{flag, Record, Why};
use super::timers::Timers;
use super::{DeviceState, Place};

#[derive(Clone, Debug, Default)]
pub(super) struct Index {
    /// QUEUED devices by wave.
    pub queued: Vec<PlaceSet>,
    /// HELD devices of all waves.
    pub held: PlaceSet,
    /// Devices that hold a slot.
    pub active: PlaceSet,
    /// ROLLBACK_QUEUED devices by wave, those aside that cannot be reached.
    pub back: Vec<PlaceSet>,
    /// ROLLBACK_QUEUED devices that cannot be reached now.
    pub back_held: PlaceSet,
    /// Devices that may have to go back: what they run must be asked.
    pub doubtful: PlaceSet,
    /// When the passing of time alone changes a device.
    pub deadlines: Timers,
    /// When to look at a device, and decide by how it stands. A look that decides nothing comes again.
    pub looks: Timers,
    /// Where the rounds over the active and the held ones are; they start over after a restart.
    pub active_cursor: Place,
    pub held_cursor: Place,
}

impl Index {
    pub fn build(records: &[Record], waves: usize, limits: &Limits) -> Self {
        let mut index = Self {
            queued: vec![PlaceSet::default(); waves],
            back: vec![PlaceSet::default(); waves],
            ..Self::default()
        };
        for (place, record) in (0..).zip(records) {
            index.add(place, record, limits);
        }
        index
    }

    pub fn add(&mut self, place: Place, record: &Record, limits: &Limits) {
        if let Some(set) = self.set_of(record) {
            set.insert(place);
        }
        if record.has(flag::DOUBTFUL) {
            self.doubtful.insert(place);
        }
        self.set_timers(place, record, limits);
    }

    pub fn change(&mut self, place: Place, from: &Record, to: &Record, limits: &Limits) {
        if let Some(set) = self.set_of(from) {
            set.remove(place);
        }
        if let Some(set) = self.set_of(to) {
            set.insert(place);
        }
        match (from.has(flag::DOUBTFUL), to.has(flag::DOUBTFUL)) {
            (false, true) => self.doubtful.insert(place),
            (true, false) => self.doubtful.remove(place),
            _ => {}
        }
        if has_timers(from) || has_timers(to) {
            self.set_timers(place, to, limits);
        }
    }

    fn set_of(&mut self, record: &Record) -> Option<&mut PlaceSet> {
        match record.state() {
            DeviceState::Queued => self.queued.get_mut(record.wave()),
            DeviceState::Held => Some(&mut self.held),
            DeviceState::RollbackQueued if record.why == Why::Nothing => self.back.get_mut(record.wave()),
            DeviceState::RollbackQueued => Some(&mut self.back_held),
            _ if record.is_active() => Some(&mut self.active),
            _ => None,
        }
    }

    fn set_timers(&mut self, place: Place, record: &Record, limits: &Limits) {
        if has_timers(record) {
            self.deadlines.set(place, deadline_of(record, limits));
            self.looks.set(place, look_of(record, limits));
        } else {
            self.deadlines.set(place, None);
            self.looks.set(place, None);
        }
    }
}

fn has_timers(record: &Record) -> bool {
    record.is_active() || record.state() == DeviceState::RetryWait
}

/// When the passing of time alone changes it.
fn deadline_of(record: &Record, limits: &Limits) -> Option<u64> {
    match record.state() {
        DeviceState::RetryWait => Some(record.since),
        // It shows the version: it is confirmed, or falls silent, or stops showing it, each of which ends this.
        DeviceState::Confirming if record.has(flag::TARGET_SEEN) => None,
        _ if record.has(flag::ACCEPTED) => Some(record.accepted.saturating_add(limits.finish)),
        _ => None,
    }
}

/// When its standing decides something.
fn look_of(record: &Record, limits: &Limits) -> Option<u64> {
    if record.state() == DeviceState::RetryWait {
        return None;
    }
    if !record.has(flag::ACCEPTED) {
        return Some(record.offered.saturating_add(limits.accept));
    }
    let silent = record.heard.saturating_add(limits.vanish);
    let is_confirming = record.state() == DeviceState::Confirming && record.has(flag::TARGET_SEEN);
    Some(if is_confirming { silent.min(record.since.saturating_add(limits.confirm)) } else { silent })
}
