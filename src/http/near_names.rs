//! Names in a question that are slips of one of the server's: a metric `cpu_usge`, a label `type`.
//!
//! The fleet's own metrics and labels may be called so too, and nobody can list them in advance. So such a name is only
//! suspicious here; it is refused where the fleet has nothing of that name either. A name that is merely like one of the
//! server's (`gpu_usage`, `app_version`) is none: it may be reported tomorrow, and a chart that waits for it is right to be
//! empty. `metrics.NAME` and `labels.NAME` say that the fleet's own is meant, and are never suspicious.
use crate::analytics::question::ONLINE_COUNT;
use crate::telemetry::metric::{known_names, CUSTOM_PREFIX};

/// Says that a label of devices is meant, whatever it is called.
pub(super) const LABEL_PREFIX: &str = "labels.";

/// What a label can be called that means something else.
const DIMENSIONS: [&str; 3] = ["device_type", "device_id", "version"];

/// Other names that people and other programs have for these.
const OTHER_NAMES: [(&str, &str); 4] =
    [("type", "device_type"), ("device", "device_id"), ("id", "device_id"), ("ver", "version")];

/// Words of a metric's name that say that something is measured, and not what of it: `cpu_percent` can only be how much of
/// the processor is in use.
const MEASURES: [&str; 9] = ["percent", "percentage", "pct", "usage", "use", "load", "utilization", "average", "avg"];

/// Words of fewer letters are not compared: `ip` and `id` are no slips of each other.
const SHORTEST_WORD: usize = 4;

/// The metric of the server that `name` is a slip of; `None` for one of its names, and for `metrics.NAME`.
pub(super) fn metric(name: &str) -> Option<&'static str> {
    let names = || known_names().chain([ONLINE_COUNT]);
    if name.starts_with(CUSTOM_PREFIX) || names().any(|known| known == name) {
        return None;
    }
    let lower = name.to_ascii_lowercase();
    let mut words = lower.split(['_', '.']);
    let subject = words.next()?;
    // Of several the first is what most people want.
    let of_subject = words
        .all(|word| MEASURES.contains(&word))
        .then(|| names().find(|known| known.split('_').next() == Some(subject)))
        .flatten();
    of_subject.or_else(|| names().find(|known| plain(known) == plain(name) || is_slip(&lower, known)))
}

/// What `key` is a slip of, of what a label can be called and means something else.
pub(super) fn dimension(key: &str) -> Option<&'static str> {
    if key.starts_with(LABEL_PREFIX) || DIMENSIONS.contains(&key) {
        return None;
    }
    let plain_key = plain(key);
    if let Some((_, meant)) = OTHER_NAMES.into_iter().find(|(other, _)| *other == plain_key) {
        return Some(meant);
    }
    let lower = key.to_ascii_lowercase();
    DIMENSIONS.into_iter().find(|known| plain(known) == plain_key || is_slip(&lower, known))
}

/// `deviceType`, `device-type` and `Device Type` are the same but for the way in which words are joined.
fn plain(name: &str) -> String {
    name.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
}

/// Whether the words are the same but for at most one letter in each, which is missing, one too many, another, or in its
/// neighbour's place. The first letter of a word is seldom wrong, and another there makes another word (`gpu`).
fn is_slip(found: &str, known: &str) -> bool {
    let words = |name| str::split(name, ['_', '.']);
    words(found).count() == words(known).count()
        && words(found).zip(words(known)).all(|(found, known)| {
            found == known
                || found.len().min(known.len()) >= SHORTEST_WORD
                    && found.len().abs_diff(known.len()) <= 1
                    && found.chars().next() == known.chars().next()
                    && strsim::osa_distance(found, known) == 1
        })
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
            ("temprature_celcius", Some("temperature_celsius")),
            ("memory_uasge", Some("memory_usage")),
            ("cpu_usage", None),
            ("device_online_count", None),
            ("metrics.cpu_usge", None),
            ("queue.depth", None),
            ("", None),
        ] {
            assert_eq!(metric(name), meant, "{name}");
        }
        // A name of the server's means itself, and no other.
        assert!(known_names().all(|name| metric(name).is_none()));
    }

    #[test]
    fn names_that_only_look_like_the_servers_are_the_fleets_own() {
        for name in [
            "alert_count",
            "app_usage",
            "battery_current",
            "battery_cycles",
            "battery_health",
            "cpu_count",
            "cpu_fan_rpm",
            "disk_free",
            "disk_reads",
            "disk_smart_errors",
            "disk_total",
            "error_count",
            "eth0_rx_bytes",
            "gpu_usage",
            "memory_free_mb",
            "network_rx_errors",
            "network_rx_packets",
            "ram_usage",
            "reboot_count",
            "request_count",
            "reset_count",
            "retry_count",
            "runtime_seconds",
            "temperature_cpu",
            "wifi_rx_bytes",
        ] {
            assert_eq!(metric(name), None, "{name}");
        }
        for key in [
            "app_version",
            "device_ip",
            "device_name",
            "device_os",
            "device_role",
            "device_site",
            "firmware",
            "fw_version",
            "model",
            "os_version",
            "revision",
            "service_id",
            "session",
        ] {
            assert_eq!(dimension(key), None, "{key}");
        }
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
