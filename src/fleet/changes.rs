//! Finds devices whose presence is no longer what was told of it.
//!
//! Presence follows from columns and the clock, so nothing has to be set when it changes, and nothing can be forgotten:
//! whoever tells it compares what is with what was told, again and again. A million rows take some 4 ms
//! (docs/performance.md).
use std::sync::Arc;

use fleetd_proto::v1::device_status::State;

use super::FleetIndex;
use crate::actors::entry::DeviceEntry;
use crate::clock::{self, UnixMillis};
use crate::presence::{self, Moment};

/// A device that is not in the state that was told last.
pub struct Change<'a> {
    pub entry: &'a Arc<DeviceEntry>,
    pub from: State,
    pub to: State,
    pub last_seen: Option<UnixMillis>,
}

impl FleetIndex {
    /// Says that the devices are looked at now. True when the server was away before: then silence counts anew.
    pub fn look(&self) -> bool {
        self.0.attention.look(clock::monotonic_nanos())
    }

    /// How many chunks there are; more may come.
    pub fn chunk_count(&self) -> usize {
        self.0.chunks.read().len()
    }

    /// Shows the changes in one chunk to `tell`; what it does not take (false) is shown again next time.
    pub fn changes(&self, chunk: usize, moment: &Moment, tell: &mut dyn FnMut(Change<'_>) -> bool) {
        let Some(chunk) = self.0.chunks.read().get(chunk).cloned() else { return };
        let described = chunk.described.read();
        for row in described.occupied().iter() {
            let (from, to) = (chunk.hot.announced(row), chunk.hot.state(row, moment));
            if !presence::is_news(from, to) {
                continue;
            }
            let Some(entry) = described.entry(row) else { continue };
            if tell(Change { entry, from, to, last_seen: chunk.hot.last_seen(row) }) {
                chunk.hot.announce(row, to);
            }
        }
    }
}
