//! Maintenance windows: whether one is open, and when that changes.
//!
//! A window opens at a time of day on certain weekdays of its zone, and stays open for a span that elapses: when clocks
//! change within it, it is open as long as on any other day. A time of day that clocks skip is taken as much later as
//! they skip; of one that comes twice it is the first. Zones are those of the database that is built in.
use std::time::Duration;

use fleetd_proto::v1::maintenance_window::Day;
use fleetd_proto::v1::MaintenanceWindow;
use jiff::civil::{Date, Time, Weekday};
use jiff::tz::{Offset, TimeZone};
use jiff::Timestamp;

use super::policy_parse::{MAX_SHOWN, MAX_WINDOWS};
use crate::clock::UnixMillis;
use crate::error::beginning;

/// As the zone of a window: each device's own.
pub const DEVICE_ZONE: &str = "device";

const MIN_DURATION: Duration = Duration::from_secs(60);
const MAX_DURATION: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// Days back and ahead of now that can matter: a window is open for 7 days at most, and comes again within 7; one more
/// for the zones between which a date differs, and one for a day that a zone skips.
const DAYS_AROUND: i32 = 9;

/// A window that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} {message}")]
pub struct InvalidWindow {
    /// From the policy on, such as `windows[0].start`.
    pub field: String,
    pub message: String,
}

/// Checks the windows of a policy; the other functions here take windows that passed, and hold others for closed.
///
/// # Errors
/// The first thing that is wrong.
pub fn check(windows: &[MaintenanceWindow]) -> Result<(), InvalidWindow> {
    if windows.len() > MAX_WINDOWS {
        let message = format!("has {} entries; at most {MAX_WINDOWS} are allowed", windows.len());
        return Err(InvalidWindow { field: "windows".into(), message });
    }
    for (at, window) in windows.iter().enumerate() {
        check_one(window)
            .map_err(|(field, message)| InvalidWindow { field: format!("windows[{at}].{field}"), message })?;
    }
    Ok(())
}

fn check_one(window: &MaintenanceWindow) -> Result<(), (&'static str, String)> {
    for day in &window.days {
        if weekday(*day).is_none() {
            return Err(("days", format!("has {day}; days are MONDAY (1) to SUNDAY (7)")));
        }
    }
    if time_of_day(&window.start).is_none() {
        return Err(("start", format!("is {:?}; give HH:MM, 00:00 to 23:59", beginning(&window.start, MAX_SHOWN))));
    }
    match window.duration.map(Duration::try_from) {
        Some(Ok(duration)) if (MIN_DURATION..=MAX_DURATION).contains(&duration) => {}
        _ => {
            let found = window.duration.map_or("missing".to_owned(), |given| given.to_string());
            return Err(("duration", format!("is {found}; give 60s to 604800s")));
        }
    }
    if window.time_zone != DEVICE_ZONE && zone(&window.time_zone).is_none() {
        return Err((
            "time_zone",
            format!(
                "is {:?}, which is not known; give a name such as Europe/Zurich, an offset such as +02:00, or device",
                beginning(&window.time_zone, MAX_SHOWN)
            ),
        ));
    }
    Ok(())
}

/// Whether windows differ from device to device: then [`is_open_in`] says for each, and [`is_open`] is true.
pub fn is_per_device(windows: &[MaintenanceWindow]) -> bool {
    windows.iter().any(|window| window.time_zone == DEVICE_ZONE)
}

/// Whether offers may go out now, as far as that is the same for all devices: without windows always, else while one is
/// open. Windows in the devices' own zones count as open here.
pub fn is_open(windows: &[MaintenanceWindow], wall: UnixMillis) -> bool {
    windows.is_empty() || is_per_device(windows) || spans(windows, None, wall).any(|span| span.contains(wall))
}

/// Whether offers may go out now to a device in this zone; one that is empty or not known is taken for UTC.
pub fn is_open_in(windows: &[MaintenanceWindow], device_zone: &str, wall: UnixMillis) -> bool {
    windows.is_empty() || spans(windows, Some(device_zone), wall).any(|span| span.contains(wall))
}

/// When [`is_open`] will be another; `None`: never, as far as can be told.
pub fn next_change(windows: &[MaintenanceWindow], wall: UnixMillis) -> Option<UnixMillis> {
    if is_per_device(windows) {
        return None;
    }
    change(spans(windows, None, wall).collect(), wall)
}

/// When [`is_open_in`] will be another; `None`: never, as far as can be told.
pub fn next_change_in(windows: &[MaintenanceWindow], device_zone: &str, wall: UnixMillis) -> Option<UnixMillis> {
    change(spans(windows, Some(device_zone), wall).collect(), wall)
}

/// Milliseconds since 1970 in which a window is open, the end exclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Span {
    from: i64,
    until: i64,
}

impl Span {
    fn contains(&self, wall: UnixMillis) -> bool {
        (self.from..self.until).contains(&wall.as_millis())
    }
}

fn change(mut spans: Vec<Span>, wall: UnixMillis) -> Option<UnixMillis> {
    let now = wall.as_millis();
    spans.sort_unstable();
    let mut end_of_open = None;
    for span in spans.into_iter().filter(|span| span.until > now) {
        match &mut end_of_open {
            None if span.from > now => return Some(UnixMillis::from_millis_clamped(span.from)),
            None => end_of_open = Some(span.until),
            // They touch or overlap: nothing closes between them.
            Some(end) if span.from <= *end => *end = span.until.max(*end),
            Some(_) => break,
        }
    }
    // What lasts beyond the days that were looked at has no end that matters.
    let horizon = now.saturating_add(i64::from(DAYS_AROUND - 1) * 86_400_000);
    end_of_open.filter(|end| *end < horizon).map(UnixMillis::from_millis_clamped)
}

/// The spans of all windows around `wall`; `device_zone` is that of windows in the devices' own.
fn spans<'a>(
    windows: &'a [MaintenanceWindow],
    device_zone: Option<&'a str>,
    wall: UnixMillis,
) -> impl Iterator<Item = Span> + 'a {
    windows.iter().flat_map(move |window| spans_of(window, device_zone, wall).unwrap_or_default())
}

fn spans_of(window: &MaintenanceWindow, device_zone: Option<&str>, wall: UnixMillis) -> Option<Vec<Span>> {
    let zone = match (window.time_zone.as_str(), device_zone) {
        (DEVICE_ZONE, None) => return None,
        (DEVICE_ZONE, Some(own)) => zone(own).unwrap_or(TimeZone::UTC),
        (name, _) => zone(name)?,
    };
    let start = time_of_day(&window.start)?;
    let length = i64::try_from(Duration::try_from(window.duration?).ok()?.as_millis()).ok()?;
    let today = zone.to_datetime(Timestamp::from_millisecond(wall.as_millis()).ok()?).date();
    let opens = (-DAYS_AROUND..=DAYS_AROUND)
        .filter_map(|days| today.checked_add(jiff::Span::new().try_days(days).ok()?).ok())
        .filter(|date| window.days.is_empty() || window.days.iter().any(|day| weekday(*day) == Some(date.weekday())))
        .filter_map(|date| opening(&zone, date, start));
    Some(opens.map(|from| Span { from, until: from.saturating_add(length) }).collect())
}

fn opening(zone: &TimeZone, date: Date, start: Time) -> Option<i64> {
    let at = zone.to_ambiguous_timestamp(date.to_datetime(start)).compatible().ok()?;
    Some(at.as_millisecond())
}

fn weekday(number: i32) -> Option<Weekday> {
    Some(match Day::try_from(number).ok()? {
        Day::Unspecified => return None,
        Day::Monday => Weekday::Monday,
        Day::Tuesday => Weekday::Tuesday,
        Day::Wednesday => Weekday::Wednesday,
        Day::Thursday => Weekday::Thursday,
        Day::Friday => Weekday::Friday,
        Day::Saturday => Weekday::Saturday,
        Day::Sunday => Weekday::Sunday,
    })
}

/// `HH:MM`.
fn time_of_day(text: &str) -> Option<Time> {
    let (hour, minute) = two_numbers(text)?;
    Time::new(hour, minute, 0, 0).ok()
}

fn two_numbers(text: &str) -> Option<(i8, i8)> {
    let (first, second) = text.split_once(':')?;
    let number = |digits: &str| {
        let is_two_digits = digits.len() == 2 && digits.bytes().all(|byte| byte.is_ascii_digit());
        is_two_digits.then(|| digits.parse::<i8>().ok()).flatten()
    };
    Some((number(first)?, number(second)?))
}

/// By its name, or its offset from UTC such as `+02:00`; empty is UTC.
fn zone(text: &str) -> Option<TimeZone> {
    let sign = match text.as_bytes().first() {
        None => return Some(TimeZone::UTC),
        Some(b'+') => 1,
        Some(b'-') => -1,
        Some(_) => return TimeZone::get(text).ok(),
    };
    let (hours, minutes) = two_numbers(&text[1..]).filter(|(hours, minutes)| *hours < 24 && *minutes < 60)?;
    let seconds = i32::from(hours) * 3_600 + i32::from(minutes) * 60;
    Offset::from_seconds(sign * seconds).ok().map(TimeZone::fixed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(days: &[Day], start: &str, minutes: i64, zone: &str) -> MaintenanceWindow {
        MaintenanceWindow {
            days: days.iter().map(|day| *day as i32).collect(),
            start: start.into(),
            duration: Some(fleetd_proto::Duration { seconds: minutes * 60, nanos: 0 }),
            time_zone: zone.into(),
        }
    }

    fn at(text: &str) -> UnixMillis {
        let time: fleetd_proto::Timestamp = text.parse().expect("a time");
        UnixMillis::from_parts_clamped(time.seconds, time.nanos)
    }

    fn change_at(windows: &[MaintenanceWindow], now: &str) -> Option<String> {
        next_change(windows, at(now)).map(|at| fleetd_proto::Timestamp::from_unix_millis(at.as_millis()).to_string())
    }

    #[test]
    fn without_windows_it_is_always_open() {
        assert!(is_open(&[], at("2026-03-01T12:00:00Z")));
        assert!(is_open_in(&[], "Asia/Tokyo", at("2026-03-01T12:00:00Z")));
        assert_eq!(change_at(&[], "2026-03-01T12:00:00Z"), None);
    }

    #[test]
    fn a_window_over_midnight_belongs_to_the_day_on_which_it_opens() {
        // 2026-03-06 is a Friday.
        let windows = [window(&[Day::Friday], "22:00", 8 * 60, "")];
        for (now, open) in [
            ("2026-03-06T21:59:59.999Z", false),
            ("2026-03-06T22:00:00Z", true),
            ("2026-03-07T05:59:59.999Z", true),
            ("2026-03-07T06:00:00Z", false),
            ("2026-03-06T02:00:00Z", false),
            ("2026-03-07T22:30:00Z", false),
        ] {
            assert_eq!(is_open(&windows, at(now)), open, "{now}");
        }
        assert_eq!(change_at(&windows, "2026-03-06T12:00:00Z").as_deref(), Some("2026-03-06T22:00:00Z"));
        assert_eq!(change_at(&windows, "2026-03-07T00:00:00Z").as_deref(), Some("2026-03-07T06:00:00Z"));
        assert_eq!(change_at(&windows, "2026-03-07T06:00:00Z").as_deref(), Some("2026-03-13T22:00:00Z"));
    }

    #[test]
    fn a_window_keeps_its_local_time_when_clocks_change() {
        let windows = [window(&[], "04:00", 60, "Europe/Zurich")];
        // Winter time is UTC+1, summer time (from 2026-03-29) is UTC+2.
        assert!(is_open(&windows, at("2026-03-28T03:30:00Z")) && !is_open(&windows, at("2026-03-28T02:30:00Z")));
        assert!(is_open(&windows, at("2026-03-29T02:30:00Z")) && !is_open(&windows, at("2026-03-29T03:30:00Z")));
    }

    #[test]
    fn an_opening_that_clocks_skip_is_later_and_one_that_comes_twice_is_the_first() {
        let windows = [window(&[], "02:30", 60, "Europe/Zurich")];
        // 02:30 does not exist on 2026-03-29: it is taken as 03:30, which is 01:30 UTC.
        assert!(!is_open(&windows, at("2026-03-29T01:29:00Z")));
        assert!(is_open(&windows, at("2026-03-29T01:30:00Z")) && is_open(&windows, at("2026-03-29T02:29:00Z")));
        // On 2026-10-25 it comes at 00:30 and at 01:30 UTC. Open for an hour that elapses.
        assert!(is_open(&windows, at("2026-10-25T00:30:00Z")) && is_open(&windows, at("2026-10-25T01:29:00Z")));
        assert!(!is_open(&windows, at("2026-10-25T01:30:00Z")));
    }

    #[test]
    fn windows_that_touch_are_one_and_seven_days_are_for_ever() {
        let touching = [window(&[], "08:00", 60, "+02:00"), window(&[], "09:00", 60, "+02:00")];
        assert_eq!(change_at(&touching, "2026-03-01T06:30:00Z").as_deref(), Some("2026-03-01T08:00:00Z"));
        let always = [window(&[Day::Monday], "00:00", 7 * 24 * 60, "")];
        for day in 1..=28 {
            assert!(is_open(&always, at(&format!("2026-02-{day:02}T11:00:00Z"))));
        }
        assert_eq!(change_at(&always, "2026-02-01T00:00:00Z"), None);
        assert_eq!(change_at(&[window(&[], "00:00", 24 * 60, "")], "2026-02-01T00:00:00Z"), None);
    }

    #[test]
    fn offsets_that_are_not_whole_hours_count() {
        let windows = [window(&[], "00:00", 60, "-03:30"), window(&[], "12:00", 1, "Asia/Kathmandu")];
        assert!(is_open(&windows, at("2026-03-01T03:30:00Z")) && !is_open(&windows, at("2026-03-01T03:29:00Z")));
        assert!(is_open(&windows, at("2026-03-01T06:15:00Z")) && !is_open(&windows, at("2026-03-01T06:14:00Z")));
    }

    #[test]
    fn a_window_in_the_devices_own_zones_opens_for_each_when_it_is_its_time() {
        let windows = [window(&[], "01:00", 60, DEVICE_ZONE)];
        let now = at("2026-03-01T16:30:00Z");
        assert!(is_per_device(&windows) && is_open(&windows, now));
        assert!(is_open_in(&windows, "Asia/Tokyo", now) && !is_open_in(&windows, "Europe/Zurich", now));
        for unknown in ["", "Middle/Earth", "device", "+99:00"] {
            assert!(!is_open_in(&windows, unknown, now), "{unknown:?} is taken for UTC");
            assert!(is_open_in(&windows, unknown, at("2026-03-01T01:30:00Z")), "{unknown:?} is taken for UTC");
        }
        assert_eq!(next_change(&windows, now), None);
        assert_eq!(next_change_in(&windows, "Asia/Tokyo", now), Some(at("2026-03-01T17:00:00Z")));
        let both = [window(&[], "16:00", 60, ""), windows[0].clone()];
        assert!(is_open_in(&both, "Europe/Zurich", now));
    }

    #[test]
    fn the_ends_of_time_do_no_harm() {
        let windows = [window(&[], "00:00", 24 * 60, "Pacific/Apia")];
        for wall in [UnixMillis::MIN, UnixMillis::EPOCH, UnixMillis::MAX] {
            is_open(&windows, wall);
            next_change(&windows, wall);
        }
        // Samoa skipped 2011-12-30: its days before and after touch.
        assert!(is_open(&windows, at("2011-12-30T10:00:00Z")));
    }

    #[test]
    fn a_window_that_cannot_be_is_named() {
        let good = window(&[Day::Monday], "23:59", 1, "Europe/Zurich");
        assert_eq!(check(std::slice::from_ref(&good)), Ok(()));
        for zone in ["", "UTC", "+02:00", "-11:30", "device", "America/Argentina/Buenos_Aires"] {
            assert_eq!(check(&[MaintenanceWindow { time_zone: zone.into(), ..good.clone() }]), Ok(()), "{zone}");
        }
        let cases: Vec<(MaintenanceWindow, &str)> = vec![
            (MaintenanceWindow { days: vec![0], ..good.clone() }, "days has 0"),
            (MaintenanceWindow { days: vec![8], ..good.clone() }, "days has 8"),
            (MaintenanceWindow { start: "9:00".into(), ..good.clone() }, "start is \"9:00\""),
            (MaintenanceWindow { start: "09:60".into(), ..good.clone() }, "start is \"09:60\""),
            (MaintenanceWindow { start: "+9:00".into(), ..good.clone() }, "start is"),
            (MaintenanceWindow { start: String::new(), ..good.clone() }, "start is \"\""),
            (MaintenanceWindow { duration: None, ..good.clone() }, "duration is missing"),
            (window(&[], "09:00", 0, ""), "duration is 0s"),
            (window(&[], "09:00", 7 * 24 * 60 + 1, ""), "duration is 604860s"),
            (window(&[], "09:00", 60, "Middle/Earth"), "time_zone is \"Middle/Earth\""),
            (window(&[], "09:00", 60, "+2:00"), "time_zone is"),
            (window(&[], "09:00", 60, "+24:00"), "time_zone is"),
            (window(&[], "09:00", 60, "../../etc/localtime"), "time_zone is"),
        ];
        for (bad, says) in cases {
            let refused = check(&[good.clone(), bad]).expect_err(says).to_string();
            assert!(refused.starts_with("windows[1].") && refused.contains(says), "{refused}");
        }
        assert!(check(&vec![good; 65]).is_err());
    }
}
