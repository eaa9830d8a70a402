//! Names in a question that are nearly one of the server's: a metric `cpu_usge`, a label `type`.
//!
//! The fleet's own metrics and labels may be called so too, and nobody can list them in advance. So a name like that is only
//! suspicious here; it is refused where the fleet has nothing of that name either. `metrics.NAME` and `labels.NAME` say
//! that the fleet's own is meant, and are never suspicious.
use crate::analytics::question::ONLINE_COUNT;
use crate::query::nearest;
use crate::telemetry::metric::{known_names, CUSTOM_PREFIX};

/// Says that a label of devices is meant, whatever it is called.
pub(super) const LABEL_PREFIX: &str = "labels.";

/// What a label can be called that means something else.
const DIMENSIONS: [&str; 3] = ["device_type", "device_id", "version"];

/// Other names that people and other programs have for these: too short, or too far from them, to look like typing errors.
const OTHER_NAMES: [(&str, &str); 6] = [
    ("type", "device_type"),
    ("model", "device_type"),
    ("device", "device_id"),
    ("id", "device_id"),
    ("ver", "version"),
    ("firmware", "version"),
];

/// Words of a metric's name that say how something is measured, not what: `cpu_percent` is about `cpu`.
const MEASURES: [&str; 18] = [
    "percent",
    "percentage",
    "pct",
    "usage",
    "used",
    "use",
    "load",
    "utilization",
    "level",
    "average",
    "avg",
    "total",
    "count",
    "celsius",
    "mb",
    "gb",
    "bytes",
    "dbm",
];

/// The metric of the server that `name` is nearly called as; `None` for one of its names, and for `metrics.NAME`.
pub(super) fn metric(name: &str) -> Option<&'static str> {
    let names = || known_names().chain([ONLINE_COUNT]);
    if name.starts_with(CUSTOM_PREFIX) || names().any(|known| known == name) {
        return None;
    }
    let lower = name.to_ascii_lowercase();
    let mut words = lower.split(['_', '.']);
    let subject = words.next()?;
    // First, since `memory_percent` looks more like `battery_percent`. Of several the first is what most people want.
    let of_subject = words
        .all(|word| MEASURES.contains(&word))
        .then(|| names().find(|known| known.split('_').next() == Some(subject)))
        .flatten();
    of_subject.or_else(|| nearest(&lower, names()))
}

/// What `key` is nearly called as, of what a label can be called and means something else.
pub(super) fn dimension(key: &str) -> Option<&'static str> {
    if key.starts_with(LABEL_PREFIX) || DIMENSIONS.contains(&key) {
        return None;
    }
    // `deviceType`, `device-type` and `Device Type` are the same typing error.
    let plain: String = key.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect();
    if let Some((_, meant)) = OTHER_NAMES.into_iter().find(|(other, _)| *other == plain) {
        return Some(meant);
    }
    let known = DIMENSIONS.map(|known| (known.replace('_', ""), known));
    let near = nearest(&plain, known.iter().map(|(plain, _)| plain.as_str()))?;
    known.iter().find(|(plain, _)| plain == near).map(|(_, meant)| *meant)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_that_is_nearly_the_servers_is_told_from_one_of_the_fleets_own() {
        for (name, meant) in [
            ("cpu_usge", Some("cpu_usage")),
            ("cpuUsage", Some("cpu_usage")),
            ("CPU_USAGE", Some("cpu_usage")),
            ("cpu_percent", Some("cpu_usage")),
            ("cpu", Some("cpu_usage")),
            ("memory_percent", Some("memory_usage")),
            ("load_avg", Some("load_average_1m")),
            ("device_online", Some("device_online_count")),
            ("cpu_usage", None),
            ("device_online_count", None),
            ("metrics.cpu_usge", None),
            ("queue.depth", None),
            ("cpu_fan_rpm", None),
            ("disk_smart_errors", None),
            ("", None),
        ] {
            assert_eq!(metric(name), meant, "{name}");
        }
        // A name of the server's means itself, and no other.
        assert!(known_names().all(|name| metric(name).is_none()));
    }

    #[test]
    fn a_label_that_is_nearly_the_servers_is_told_from_one_of_the_fleets_own() {
        for (key, meant) in [
            ("type", Some("device_type")),
            ("deviceType", Some("device_type")),
            ("device-type", Some("device_type")),
            ("Device_ID", Some("device_id")),
            ("ver", Some("version")),
            ("verison", Some("version")),
            ("version", None),
            ("device_type", None),
            ("labels.type", None),
            ("region", None),
            ("site", None),
            ("größe", None),
        ] {
            assert_eq!(dimension(key), meant, "{key}");
        }
    }
}
