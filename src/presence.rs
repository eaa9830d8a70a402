//! Whether a device is there: judged from when it last reported and how often it was told to, on the monotonic clock.
//! Pure; GetDevice, lists, filters and events all judge by this, so they agree.
use std::time::Duration;

use fleetd_proto::v1::device_status::State;

/// Silence after which a device is LATE, then OFFLINE, in halves of the interval that it was told: 1.5 intervals
/// forgive one slow network round, 3 intervals mean that two heartbeats in a row were lost. The jitter and the stretch
/// of an interval are in what the device was told, so neither makes it late.
const LATE_AFTER_HALF_INTERVALS: u64 = 3;
const OFFLINE_AFTER_HALF_INTERVALS: u64 = 6;

/// What was known of a device before this server started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Past {
    /// It has never reported.
    #[default]
    NeverSeen,
    /// It has, and was not known to be late or gone.
    Seen,
    /// It was LATE.
    Late,
    /// It was OFFLINE.
    Offline,
}

/// What presence follows from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Out of service, by the operator or by itself.
    pub is_in_maintenance: bool,
    /// Its last report to this server, on the clock of [`Moment`]; `None` before the first.
    pub last_seen_at: Option<u64>,
    pub past: Past,
    /// How long it was told to wait; `None` as the server's configuration says.
    pub expected: Option<Duration>,
}

/// The time by which devices are judged, in nanoseconds of a monotonic clock that stands still while the server is
/// away: while it did not listen, nobody can be blamed for saying nothing.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    pub now: u64,
    /// When the server began to listen.
    pub began: u64,
    /// When it began to listen again after its last stall, from where devices get their intervals anew.
    pub listening_since: u64,
    /// How often devices report whose interval nobody set.
    pub default_interval: Duration,
}

/// Presence, with MAINTENANCE over it.
pub fn presence(facts: &Facts, moment: &Moment) -> State {
    if facts.is_in_maintenance {
        return State::Maintenance;
    }
    reachability(facts, moment)
}

/// As [`presence`], also for a device that is out of service: whether it is there.
pub fn reachability(facts: &Facts, moment: &Moment) -> State {
    let silent_since = facts.last_seen_at.unwrap_or(moment.began);
    // A stall forgives what was not heard for it, and brings nobody back who was late or gone before it.
    let silent_before = moment.listening_since.saturating_sub(silent_since);
    let silent = moment.now.saturating_sub(silent_since.max(moment.listening_since)).max(silent_before);
    // 292 years of half nanoseconds fit.
    let half_interval = facts.expected.unwrap_or(moment.default_interval).as_nanos() as u64 / 2;
    let is_offline = silent > half_interval.saturating_mul(OFFLINE_AFTER_HALF_INTERVALS);
    match (facts.last_seen_at, facts.past) {
        (None, Past::NeverSeen) => State::Unknown,
        (None, Past::Offline) => State::Offline,
        // It has its intervals to report after a start.
        (None, Past::Seen | Past::Late) if !is_offline => State::Unknown,
        _ if is_offline => State::Offline,
        _ if silent > half_interval.saturating_mul(LATE_AFTER_HALF_INTERVALS) => State::Late,
        _ => State::Online,
    }
}

/// The state that a device is taken to have been in before this server judged it: what the next change is told from.
pub fn before_start(past: Past, is_in_maintenance: bool) -> State {
    match past {
        _ if is_in_maintenance => State::Maintenance,
        Past::NeverSeen => State::Unknown,
        // So a fleet that goes on after a restart of the server is no news.
        Past::Seen => State::Online,
        Past::Late => State::Late,
        Past::Offline => State::Offline,
    }
}

/// Whether going from one state to another is news. That the server does not know yet is none.
pub fn is_news(from: State, to: State) -> bool {
    from != to && to != State::Unknown
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn at(seconds: u64, listening_since: u64) -> Moment {
        Moment {
            now: seconds * SECOND,
            began: 0,
            listening_since: listening_since * SECOND,
            default_interval: Duration::from_secs(30),
        }
    }

    fn seen_at(seconds: u64) -> Facts {
        Facts { is_in_maintenance: false, last_seen_at: Some(seconds * SECOND), past: Past::NeverSeen, expected: None }
    }

    #[test]
    fn presence_fades_from_online_to_late_to_offline() {
        for (later, expected) in
            [(0, State::Online), (45, State::Online), (46, State::Late), (90, State::Late), (91, State::Offline)]
        {
            assert_eq!(presence(&seen_at(100), &at(100 + later, 0)), expected, "{later} s");
        }
    }

    #[test]
    fn a_device_is_judged_by_what_it_was_told() {
        let slow = Facts { expected: Some(Duration::from_secs(300)), ..seen_at(0) };
        for (later, expected) in [(450, State::Online), (451, State::Late), (900, State::Late), (901, State::Offline)] {
            assert_eq!(presence(&slow, &at(later, 0)), expected, "{later} s");
        }
    }

    #[test]
    fn after_a_start_every_device_has_its_intervals_to_report() {
        let of = |past, seconds| presence(&Facts { last_seen_at: None, past, ..seen_at(0) }, &at(seconds, 10));
        for seconds in [10, 100] {
            assert_eq!(of(Past::NeverSeen, seconds), State::Unknown);
            assert_eq!(of(Past::Seen, seconds), State::Unknown, "{seconds} s");
            assert_eq!(of(Past::Late, seconds), State::Unknown, "{seconds} s");
            assert_eq!(of(Past::Offline, seconds), State::Offline, "{seconds} s");
        }
        assert_eq!(of(Past::NeverSeen, 1_000_000), State::Unknown);
        assert_eq!(of(Past::Seen, 101), State::Offline);
    }

    #[test]
    fn a_stall_of_the_server_is_nobodys_silence() {
        for (seconds, expected) in
            [(110, State::Online), (155, State::Online), (156, State::Late), (200, State::Late), (201, State::Offline)]
        {
            assert_eq!(presence(&seen_at(100), &at(seconds, 110)), expected, "{seconds} s");
        }
    }

    #[test]
    fn a_stall_of_the_server_brings_back_nobody_who_was_late_or_gone() {
        for (seen, expected) in [(100, State::Offline), (150, State::Late), (160, State::Online)] {
            assert_eq!(presence(&seen_at(seen), &at(200, 200)), expected, "seen at {seen} s");
        }
        let silent_since_the_start = Facts { last_seen_at: None, past: Past::Seen, ..seen_at(0) };
        assert_eq!(presence(&silent_since_the_start, &at(200, 200)), State::Offline);
    }

    #[test]
    fn maintenance_stands_over_silence() {
        let out = Facts { is_in_maintenance: true, ..seen_at(0) };
        assert_eq!(presence(&out, &at(1_000_000, 0)), State::Maintenance);
        assert_eq!(reachability(&out, &at(1_000_000, 0)), State::Offline);
    }

    #[test]
    fn a_restart_of_the_server_is_no_news_of_any_device() {
        for past in [Past::NeverSeen, Past::Seen, Past::Late, Past::Offline] {
            let facts = Facts { last_seen_at: None, past, ..seen_at(0) };
            let now = presence(&facts, &at(11, 10));
            assert!(!is_news(before_start(past, false), now), "{past:?}");
        }
        assert!(is_news(State::Online, State::Late) && is_news(State::Unknown, State::Online));
    }
}
