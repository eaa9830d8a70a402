//! Maintenance windows. A stand-in that knows windows of every day in UTC.
use fleetd_proto::v1::MaintenanceWindow;

use crate::clock::UnixMillis;

const DAY_MILLIS: i64 = 24 * 60 * 60 * 1_000;

/// Whether a window is open at a moment; an empty list always is.
pub fn is_open(windows: &[MaintenanceWindow], wall: UnixMillis) -> bool {
    windows.is_empty()
        || windows.iter().any(|window| {
            let (hours, minutes) = window.start.split_once(':').unwrap_or_default();
            let minutes = hours.parse::<i64>().unwrap_or(0) * 60 + minutes.parse::<i64>().unwrap_or(0);
            let open_for = window.duration.as_ref().map_or(0, |duration| duration.seconds * 1_000);
            (wall.as_millis() - minutes * 60_000).rem_euclid(DAY_MILLIS) < open_for
        })
}

/// Whether windows are in the devices' own time zones.
pub fn is_per_device(windows: &[MaintenanceWindow]) -> bool {
    windows.iter().any(|window| window.time_zone == "device")
}
