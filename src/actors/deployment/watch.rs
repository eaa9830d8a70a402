//! The clock of a deployment: milliseconds that a running server watched it. It stands still while the server is away,
//! also when the server is stopped or starved for a while, as the clock does by which presence is judged, and while the
//! registry does not take what was decided: an offer that cannot go out must not lapse.
use crate::clock::UnixMillis;
use crate::fleet::FleetIndex;
use crate::rollout::Now;

/// Goes on from where the registry says it was.
pub(super) struct Watch {
    fleet: FleetIndex,
    before: u64,
    /// Nanoseconds of the fleet's clock; `None` while it stands still.
    since: Option<u64>,
}

impl Watch {
    pub fn from(watched: u64, fleet: &FleetIndex) -> Self {
        Self { fleet: fleet.clone(), before: watched, since: Some(fleet.moment().now) }
    }

    pub fn now(&self) -> Now {
        let elapsed = self.since.map_or(0, |since| self.fleet.moment().now.saturating_sub(since));
        Now { watched: self.before + elapsed / 1_000_000, wall: UnixMillis::now() }
    }

    pub fn stand_still(&mut self) {
        self.before = self.now().watched;
        self.since = None;
    }

    pub fn go_on(&mut self) {
        self.since.get_or_insert(self.fleet.moment().now);
    }
}
