//! Which devices are ONLINE by what was told of them: the end from which the history of presence is counted backwards.
//!
//! What was told, not what is: `device_events` has what was told, so the two agree. After a start it is what was known
//! before ([`crate::presence::before_start`]), so a restart of the server takes nobody offline.
use std::collections::HashMap;
use std::sync::Arc;

use fleetd_proto::v1::device_status::State;

use super::bitmap::Bitmap;
use super::chunk::Chunk;
use super::queries::{QueryFailure, Run};
use super::FleetIndex;
use crate::actors::entry::DeviceEntry;

/// The devices that were ONLINE at one look: 125 KB for a million.
#[derive(Clone, Debug, Default)]
pub struct OnlineNow {
    /// By the address of the chunk, which lives as long as the index.
    chunks: HashMap<usize, Bitmap>,
}

impl OnlineNow {
    /// How many they are.
    pub fn count(&self) -> usize {
        self.chunks.values().map(Bitmap::len).sum()
    }

    /// Whether a device is one of them. One that was given the row of a deleted device since is taken for that.
    pub fn has(&self, entry: &DeviceEntry) -> bool {
        let Some(row) = entry.row() else { return false };
        self.chunks.get(&address(&row.chunk)).is_some_and(|rows| rows.contains(row.slot()))
    }
}

impl FleetIndex {
    /// Blocks for the time that it takes, as [`Self::page`]: a millisecond or two for a million devices.
    pub(super) fn online_now(&self, run: &Run<'_>) -> Result<OnlineNow, QueryFailure> {
        let chunks: Vec<Arc<Chunk>> = self.0.chunks.read().clone();
        let mut online = OnlineNow::default();
        for (looked_at, chunk) in chunks.iter().enumerate() {
            run.check(looked_at, chunks.len())?;
            let described = chunk.described.read();
            let rows = described.occupied().filter(|row| chunk.hot.announced(row) == State::Online);
            online.chunks.insert(address(chunk), rows);
        }
        Ok(online)
    }
}

fn address(chunk: &Arc<Chunk>) -> usize {
    Arc::as_ptr(chunk) as usize
}
