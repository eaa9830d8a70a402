//! The states of a command on one device, and what leads from one to another.
use fleetd_proto::v1::command::State;

/// What happens to a command on one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A reply to a heartbeat carries it.
    Delivered,
    /// The device says that it has it.
    Acked,
    Succeeded,
    Failed,
    /// Its time ran out.
    Expired,
    /// An operator takes it back.
    Canceled,
}

/// The state after `event`; `None` when the event changes nothing, since it came late or out of turn.
///
/// An end is final: what a device says after it, as it does when a reply was lost, is not held against what was
/// told before. A device may skip ACKED, and may report a command whose delivery the server forgot in a restore.
pub fn next(state: State, event: Event) -> Option<State> {
    match (state, event) {
        (State::Queued | State::Delivered, Event::Delivered) => Some(State::Delivered),
        (State::Queued | State::Delivered, Event::Acked) => Some(State::Acked),
        (State::Queued | State::Delivered | State::Acked, Event::Succeeded) => Some(State::Succeeded),
        (State::Queued | State::Delivered | State::Acked, Event::Failed) => Some(State::Failed),
        (State::Queued | State::Delivered | State::Acked, Event::Expired) => Some(State::Expired),
        // Too late once a device may have it.
        (State::Queued, Event::Canceled) => Some(State::Canceled),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_event_in_every_state_does_what_the_table_says() {
        use Event::*;
        const ROWS: [(State, [Option<State>; 6]); 8] = {
            let (d, a, s, f, x, c) = (
                Some(State::Delivered),
                Some(State::Acked),
                Some(State::Succeeded),
                Some(State::Failed),
                Some(State::Expired),
                Some(State::Canceled),
            );
            let none = [None; 6];
            [
                (State::Unspecified, none),
                (State::Queued, [d, a, s, f, x, c]),
                (State::Delivered, [d, a, s, f, x, None]),
                (State::Acked, [None, None, s, f, x, None]),
                (State::Succeeded, none),
                (State::Failed, none),
                (State::Expired, none),
                (State::Canceled, none),
            ]
        };
        for (state, expected) in ROWS {
            let reached = [Delivered, Acked, Succeeded, Failed, Expired, Canceled].map(|event| next(state, event));
            assert_eq!(reached, expected, "{state:?}");
        }
    }
}
