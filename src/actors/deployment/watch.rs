//! The clock of a deployment: milliseconds that a running server watched it. It stands still while the server is away,
//! also when the server is stopped or starved for a while, as the clock does by which presence is judged.
use crate::clock::UnixMillis;
use crate::fleet::FleetIndex;
use crate::rollout::Now;

/// Goes on from where the registry says it was.
pub(super) struct Watch {
    fleet: FleetIndex,
    before: u64,
    /// Nanoseconds of the fleet's clock.
    since: u64,
}

impl Watch {
    pub fn from(watched: u64, fleet: &FleetIndex) -> Self {
        Self { fleet: fleet.clone(), before: watched, since: fleet.moment().now }
    }

    pub fn now(&self) -> Now {
        let elapsed = self.fleet.moment().now.saturating_sub(self.since);
        Now { watched: self.before + elapsed / 1_000_000, wall: UnixMillis::now() }
    }
}
