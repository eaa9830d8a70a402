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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn let_pass(millis: u64, fleet: &FleetIndex) {
        let until = fleet.moment().now + millis * 1_000_000;
        while fleet.moment().now < until {
            std::thread::yield_now();
        }
    }

    #[test]
    fn time_in_which_it_stands_still_is_not_counted() {
        let fleet = FleetIndex::new(Duration::from_secs(30));
        let mut watch = Watch::from(5_000, &fleet);
        let_pass(20, &fleet);
        watch.stand_still();
        let stood_at = watch.now().watched;
        assert!(stood_at >= 5_020, "{stood_at}");
        let_pass(20, &fleet);
        // A second failure.
        watch.stand_still();
        assert_eq!(watch.now().watched, stood_at);
        watch.go_on();
        watch.go_on();
        let_pass(20, &fleet);
        assert!(watch.now().watched >= stood_at + 20);
    }
}
