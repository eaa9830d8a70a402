//! What one heartbeat delivers to its device.
use std::time::Duration;

use fleetd_proto::v1::command::State;

use super::{DEFAULT_TIMEOUT, MAX_DELIVERED, MAX_DELIVERED_BYTES, REDELIVER_AFTER};
use crate::clock::UnixMillis;

/// A command that is not over on this device, as the registry has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pending {
    /// QUEUED, DELIVERED or ACKED.
    pub state: State,
    pub expires_at: UnixMillis,
    /// Of the last delivery.
    pub delivered_at: Option<UnixMillis>,
    pub acked_at: Option<UnixMillis>,
    /// How long the device may work on it.
    pub timeout: Option<Duration>,
    /// Of its payload and parameters.
    pub bytes: usize,
}

/// What becomes of a device's pending commands now, as places in the list that [`plan`] was given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Their time ran out.
    pub expired: Vec<usize>,
    /// To deliver, in order.
    pub delivered: Vec<usize>,
}

/// Decides for the commands of one device, oldest first.
///
/// Commands are delivered in their order: one that waits for its redelivery does not hold back those behind it, since
/// the device has it already, but one that does not fit into the reply does.
pub fn plan(pending: &[Pending], now: UnixMillis) -> Plan {
    let mut plan = Plan::default();
    let mut bytes = 0;
    let mut is_full = false;
    for (place, command) in pending.iter().enumerate() {
        if command.is_over(now) {
            plan.expired.push(place);
        } else if command.is_due(now) && !is_full {
            let fits = plan.delivered.is_empty() || bytes + command.bytes <= MAX_DELIVERED_BYTES;
            if fits && plan.delivered.len() < MAX_DELIVERED {
                bytes += command.bytes;
                plan.delivered.push(place);
            } else {
                is_full = true;
            }
        }
    }
    plan
}

impl Pending {
    /// Whether its time ran out: to begin it, or, once the device has begun, to end it.
    pub fn is_over(&self, now: UnixMillis) -> bool {
        match (self.state, self.acked_at) {
            (State::Acked, Some(acked_at)) => {
                let until = acked_at.as_millis().saturating_add(millis(self.timeout.unwrap_or(DEFAULT_TIMEOUT)));
                now.as_millis() >= until.max(self.expires_at.as_millis())
            }
            _ => now >= self.expires_at,
        }
    }

    fn is_due(&self, now: UnixMillis) -> bool {
        match (self.state, self.delivered_at) {
            (State::Queued, _) | (State::Delivered, None) => true,
            (State::Delivered, Some(at)) => {
                let since = now.as_millis().saturating_sub(at.as_millis());
                // A delivery in the future is a clock that was set back: better a repeat, which says so, than never.
                since < 0 || since >= millis(REDELIVER_AFTER)
            }
            _ => false,
        }
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixMillis = UnixMillis::from_unix_seconds(1_700_000_000);

    fn at(seconds: i64) -> UnixMillis {
        UnixMillis::from_millis_clamped(NOW.as_millis() + 1_000 * seconds)
    }

    fn queued() -> Pending {
        Pending {
            state: State::Queued,
            expires_at: at(60),
            delivered_at: None,
            acked_at: None,
            timeout: None,
            bytes: 10,
        }
    }

    fn delivered(seconds_ago: i64) -> Pending {
        Pending { state: State::Delivered, delivered_at: Some(at(-seconds_ago)), ..queued() }
    }

    #[test]
    fn what_waits_is_delivered_in_order_and_what_was_delivered_lately_is_not() {
        let pending = [delivered(10), queued(), delivered(9), queued()];
        assert_eq!(plan(&pending, NOW), Plan { expired: vec![], delivered: vec![0, 1, 3] });
    }

    #[test]
    fn nothing_is_delivered_at_or_after_its_expiry() {
        let late = Pending { expires_at: NOW, ..queued() };
        let late_delivered = Pending { expires_at: at(-1), ..delivered(20) };
        assert_eq!(plan(&[late, late_delivered, queued()], NOW), Plan { expired: vec![0, 1], delivered: vec![2] });
    }

    #[test]
    fn a_device_that_works_on_a_command_has_its_timeout_also_beyond_the_expiry() {
        let acked = |seconds_ago: i64, timeout: Option<u64>| Pending {
            state: State::Acked,
            expires_at: at(-5),
            acked_at: Some(at(-seconds_ago)),
            timeout: timeout.map(Duration::from_secs),
            ..queued()
        };
        let pending = [acked(10, Some(11)), acked(10, Some(10)), acked(86_399, None), acked(86_400, None)];
        assert_eq!(plan(&pending, NOW), Plan { expired: vec![1, 3], delivered: vec![] });
    }

    #[test]
    fn a_clock_that_was_set_back_repeats_rather_than_forgets() {
        assert_eq!(plan(&[delivered(-3600)], NOW).delivered, [0]);
    }

    #[test]
    fn a_reply_is_bounded_and_one_that_does_not_fit_keeps_its_place() {
        assert_eq!(plan(&[queued(); 40], NOW).delivered, (0..MAX_DELIVERED).collect::<Vec<_>>());
        let large = Pending { bytes: MAX_DELIVERED_BYTES, ..queued() };
        assert_eq!(plan(&[queued(), large, queued()], NOW).delivered, [0], "the third must not overtake the second");
        let larger = Pending { bytes: 2 * MAX_DELIVERED_BYTES, ..queued() };
        assert_eq!(plan(&[larger, queued()], NOW).delivered, [0], "alone it passes");
    }
}
