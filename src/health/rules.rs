//! Where a value becomes a fault: the bars of all rules, for all devices and for those with a label.
//!
//! ```toml
//! [health]
//! cpu_percent = { warning = 80, critical = 90 }
//!
//! [[health.override]]
//! label = "site=freezer"
//! temperature_celsius = { warning = -10, critical = -5 }
//! ```
use std::collections::BTreeMap;

use serde::Deserialize;

/// What a rule looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    Cpu,
    Memory,
    Disk,
    Temperature,
    Battery,
    WorkloadRestarts,
    Boots,
    Heartbeats,
    HeartbeatGap,
    Reboots,
    FailedCommands,
    ExpiredCommands,
    FailedUpdates,
}

/// On which side of its bars a value is a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Above,
    Below,
}

/// Where a value becomes a fault, and a grave one: the bar itself counts. An infinite bar is never crossed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bar {
    pub warning: f64,
    pub critical: f64,
}

/// How one measure is judged.
#[derive(Debug)]
pub(super) struct Rule {
    /// Its name in the configuration, which has the unit.
    pub key: &'static str,
    /// Codes of its findings.
    pub warning: &'static str,
    pub critical: &'static str,
    pub side: Side,
    /// Begin of the sentence, before the value.
    pub what: &'static str,
    pub unit: &'static str,
    /// Digits after the point.
    pub digits: usize,
    /// Bars that make sense.
    least: f64,
    most: f64,
    /// Where operators of Linux devices are usually called.
    default: Bar,
}

const fn bar(warning: f64, critical: f64) -> Bar {
    Bar { warning, critical }
}

/// A share in per cent.
const fn percent(key: &'static str, codes: [&'static str; 2], what: &'static str, default: Bar) -> Rule {
    let [warning, critical] = codes;
    Rule { key, warning, critical, side: Side::Above, what, unit: " %", digits: 1, least: 0.0, most: 100.0, default }
}

/// A number of events. A bar of 0 would be crossed always.
const fn count(key: &'static str, codes: [&'static str; 2], what: &'static str, default: Bar) -> Rule {
    Rule { unit: "", digits: 0, least: 1.0, most: f64::INFINITY, ..percent(key, codes, what, default) }
}

/// Shorter silences are found in part only: see `crate::analytics::health`.
const LEAST_GAP: f64 = 3_600.0;

/// In the order of [`Measure`].
const RULES: [Rule; Measure::ALL.len()] = [
    percent("cpu_percent", ["CPU_WARNING", "CPU_CRITICAL"], "processor load is", bar(85.0, 95.0)),
    percent("memory_percent", ["MEMORY_WARNING", "MEMORY_CRITICAL"], "memory in use is", bar(85.0, 95.0)),
    // A full disk stops updates and logs, so it is called in time to make room.
    percent("disk_percent", ["DISK_WARNING", "DISK_CRITICAL"], "disk in use is", bar(85.0, 95.0)),
    Rule {
        unit: " degrees Celsius",
        least: -273.15,
        most: 1_000.0,
        ..percent(
            "temperature_celsius",
            ["TEMPERATURE_WARNING", "TEMPERATURE_CRITICAL"],
            "temperature is",
            // Common boards throttle at 80 to 85 degrees.
            bar(75.0, 85.0),
        )
    },
    Rule {
        side: Side::Below,
        ..percent("battery_percent", ["BATTERY_WARNING", "BATTERY_CRITICAL"], "battery charge is", bar(20.0, 10.0))
    },
    count(
        "restarts",
        ["WORKLOAD_RESTARTS_WARNING", "WORKLOAD_RESTARTS_CRITICAL"],
        "restarts of the workload since the device booted:",
        bar(3.0, 10.0),
    ),
    count("boots", ["BOOTS_WARNING", "BOOTS_CRITICAL"], "boots since the server knows the device:", bar(2.0, 5.0)),
    Rule {
        side: Side::Below,
        ..percent(
            "heartbeat_percent",
            ["HEARTBEATS_WARNING", "HEARTBEATS_CRITICAL"],
            "heartbeats that came of those due in the last day:",
            // Some radio links lose one in twenty for ever, and nobody is called for it.
            bar(90.0, 60.0),
        )
    },
    Rule {
        unit: " s",
        least: LEAST_GAP,
        ..count(
            "heartbeat_gap_seconds",
            ["HEARTBEAT_GAP_WARNING", "HEARTBEAT_GAP_CRITICAL"],
            "the longest silence in the last day was",
            bar(LEAST_GAP, 6.0 * 3_600.0),
        )
    },
    count(
        "reboot_hours",
        ["REBOOTS_WARNING", "REBOOTS_CRITICAL"],
        "hours of the last day in which the device booted:",
        bar(3.0, 6.0),
    ),
    count(
        "failed_commands",
        ["FAILED_COMMANDS_WARNING", "FAILED_COMMANDS_CRITICAL"],
        "commands that failed in the last day:",
        bar(1.0, 5.0),
    ),
    count(
        "expired_commands",
        ["EXPIRED_COMMANDS_WARNING", "EXPIRED_COMMANDS_CRITICAL"],
        "commands that expired in the last day:",
        bar(1.0, 5.0),
    ),
    count(
        "failed_updates",
        ["FAILED_UPDATES_WARNING", "FAILED_UPDATES_CRITICAL"],
        "attempts at an update that failed in the last day:",
        bar(1.0, 2.0),
    ),
];

impl Measure {
    pub const ALL: [Self; 13] = [
        Self::Cpu,
        Self::Memory,
        Self::Disk,
        Self::Temperature,
        Self::Battery,
        Self::WorkloadRestarts,
        Self::Boots,
        Self::Heartbeats,
        Self::HeartbeatGap,
        Self::Reboots,
        Self::FailedCommands,
        Self::ExpiredCommands,
        Self::FailedUpdates,
    ];

    pub(super) fn rule(self) -> &'static Rule {
        &RULES[self as usize]
    }
}

/// The bars of all rules.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Thresholds([Bar; RULES.len()]);

impl Default for Thresholds {
    fn default() -> Self {
        Self(Measure::ALL.map(|measure| measure.rule().default))
    }
}

impl Thresholds {
    pub(super) fn bar(&self, measure: Measure) -> Bar {
        self.0[measure as usize]
    }
}

/// The `[health]` table of the configuration file.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct HealthSettings {
    #[serde(default, rename = "override")]
    pub overrides: Vec<OverrideSettings>,
    #[serde(flatten)]
    pub bars: BTreeMap<String, BarSettings>,
}

/// One `[[health.override]]`: bars for devices with a label.
#[derive(Clone, Debug, Deserialize)]
pub struct OverrideSettings {
    /// `key=value`.
    pub label: String,
    #[serde(flatten)]
    pub bars: BTreeMap<String, BarSettings>,
}

/// What is left out stays as it is without the entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BarSettings {
    pub warning: Option<f64>,
    pub critical: Option<f64>,
}

/// Thresholds that cannot be.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum RulesError {
    #[error("{place}.{key} is no threshold; there are {}", RULES.map(|rule| rule.key).join(", "))]
    Unknown { place: String, key: String },
    #[error("{place}.{key}: {level} = {value} is out of range: give {least} to {most}, or {never} for never")]
    Range { place: String, key: &'static str, level: &'static str, value: f64, least: f64, most: f64, never: f64 },
    #[error("{place}.{key}: warning = {warning} comes after critical = {critical}; warning must be {side} critical")]
    Order { place: String, key: &'static str, warning: f64, critical: f64, side: &'static str },
    #[error("{place}: label = {label:?} is no label; give \"key=value\"")]
    Label { place: String, label: String },
}

/// The thresholds of the fleet.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HealthRules {
    base: Thresholds,
    overrides: Vec<Override>,
}

#[derive(Clone, Debug, PartialEq)]
struct Override {
    key: String,
    value: String,
    thresholds: Thresholds,
}

impl HealthRules {
    /// Checks what a user wrote.
    ///
    /// # Errors
    /// Names the entry, its value, and what may stand there.
    pub fn of(settings: HealthSettings) -> Result<Self, RulesError> {
        let base = with(Thresholds::default(), &settings.bars, "health")?;
        let overrides = settings.overrides.into_iter().enumerate().map(|(number, settings)| {
            let place = format!("health.override[{number}]");
            let label = settings.label.split_once('=').filter(|(key, _)| !key.is_empty());
            let Some((key, value)) = label else { return Err(RulesError::Label { place, label: settings.label }) };
            let thresholds = with(base, &settings.bars, &place)?;
            Ok(Override { key: key.to_owned(), value: value.to_owned(), thresholds })
        });
        Ok(Self { base, overrides: overrides.collect::<Result<_, _>>()? })
    }

    /// For a device with the label `key` where `label(key)` says so: of the overrides that match the last one.
    pub fn of_device<'a>(&self, mut label: impl FnMut(&str) -> Option<&'a str>) -> &Thresholds {
        let matching = self.overrides.iter().rev().find(|other| label(&other.key) == Some(&other.value));
        matching.map_or(&self.base, |matching| &matching.thresholds)
    }

    /// Names of labels that [`Self::of_device`] asks for.
    pub fn labels(&self) -> impl Iterator<Item = &str> {
        self.overrides.iter().map(|other| other.key.as_str())
    }
}

fn with(
    mut thresholds: Thresholds,
    settings: &BTreeMap<String, BarSettings>,
    place: &str,
) -> Result<Thresholds, RulesError> {
    for (key, settings) in settings {
        let Some(at) = RULES.iter().position(|rule| rule.key == key) else {
            return Err(RulesError::Unknown { place: place.to_owned(), key: key.clone() });
        };
        let (rule, bar) = (&RULES[at], &mut thresholds.0[at]);
        *bar = Bar {
            warning: settings.warning.unwrap_or(bar.warning),
            critical: settings.critical.unwrap_or(bar.critical),
        };
        let never = if rule.side == Side::Above { f64::INFINITY } else { f64::NEG_INFINITY };
        for (level, value) in [("warning", bar.warning), ("critical", bar.critical)] {
            if value != never && !(rule.least..=rule.most).contains(&value) {
                let (place, key, least, most) = (place.to_owned(), rule.key, rule.least, rule.most);
                return Err(RulesError::Range { place, key, level, value, least, most, never });
            }
        }
        let (is_ordered, side) = match rule.side {
            Side::Above => (bar.warning <= bar.critical, "at or below"),
            Side::Below => (bar.warning >= bar.critical, "at or above"),
        };
        if !is_ordered {
            let Bar { warning, critical } = *bar;
            return Err(RulesError::Order { place: place.to_owned(), key: rule.key, warning, critical, side });
        }
    }
    Ok(thresholds)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(text: &str) -> Result<HealthRules, RulesError> {
        #[derive(Deserialize)]
        struct File {
            health: HealthSettings,
        }
        HealthRules::of(toml::from_str::<File>(text).expect("valid TOML").health)
    }

    fn cpu_of(rules: &HealthRules, labels: &[(&str, &'static str)]) -> Bar {
        let label = |key: &str| labels.iter().find(|(name, _)| *name == key).map(|(_, value)| *value);
        rules.of_device(label).bar(Measure::Cpu)
    }

    #[test]
    fn each_measure_has_the_rule_of_its_place_and_each_default_is_allowed() {
        let keys = Measure::ALL.map(|measure| (measure as usize, measure.rule().key));
        assert_eq!(keys[3], (3, "temperature_celsius"));
        assert_eq!(keys[12], (12, "failed_updates"));
        for rule in &RULES {
            let settings = BarSettings { warning: Some(rule.default.warning), critical: Some(rule.default.critical) };
            with(Thresholds::default(), &[(rule.key.to_owned(), settings)].into(), "health").expect(rule.key);
        }
    }

    #[test]
    fn of_the_overrides_that_match_a_device_the_last_one_wins() {
        let rules = rules(
            "[health]\ncpu_percent = { warning = 70 }\n\
             [[health.override]]\nlabel = \"site=freezer\"\ncpu_percent = { critical = 80 }\n\
             [[health.override]]\nlabel = \"ring=canary\"\ncpu_percent = { warning = 10, critical = 20.5 }\n",
        )
        .expect("valid");
        assert_eq!(cpu_of(&rules, &[]), bar(70.0, 95.0));
        assert_eq!(cpu_of(&rules, &[("site", "oven")]), bar(70.0, 95.0));
        assert_eq!(cpu_of(&rules, &[("site", "freezer")]), bar(70.0, 80.0));
        assert_eq!(cpu_of(&rules, &[("site", "freezer"), ("ring", "canary")]), bar(10.0, 20.5));
        assert_eq!(rules.labels().collect::<Vec<_>>(), ["site", "ring"]);
    }

    #[test]
    fn a_threshold_that_cannot_be_is_named_with_its_value() {
        for (text, told) in [
            ("cpu_persent = { warning = 1 }", "health.cpu_persent is no threshold; there are cpu_percent, memory_perc"),
            ("cpu_percent = { warning = 101 }", "health.cpu_percent: warning = 101 is out of range: give 0 to 100"),
            ("cpu_percent = { warning = nan }", "health.cpu_percent: warning = NaN is out of range"),
            ("cpu_percent = { warning = -inf }", "out of range: give 0 to 100, or inf for never"),
            ("cpu_percent = { warning = 96 }", "warning = 96 comes after critical = 95"),
            ("battery_percent = { warning = 9 }", "warning = 9 comes after critical = 10; warning must be at or above"),
            ("failed_commands = { warning = 0 }", "failed_commands: warning = 0 is out of range: give 1 to inf"),
            ("heartbeat_gap_seconds = { warning = 60 }", "warning = 60 is out of range: give 3600"),
            ("[[health.override]]\nlabel = \"freezer\"", "health.override[0]: label = \"freezer\" is no label"),
            ("[[health.override]]\nlabel = \"a=b\"\nx = {}", "health.override[0].x is no threshold"),
        ] {
            let message = rules(&format!("[health]\n{text}")).expect_err(text).to_string();
            assert!(message.contains(told), "{message}");
        }
    }

    #[test]
    fn a_rule_can_be_turned_off() {
        let rules = rules("[health]\ncpu_percent = { warning = inf, critical = inf }\nbattery_percent = { warning = -inf, critical = -inf }\n").expect("valid");
        let thresholds = rules.of_device(|_| None);
        assert_eq!(thresholds.bar(Measure::Cpu).critical, f64::INFINITY);
        assert_eq!(thresholds.bar(Measure::Battery).warning, f64::NEG_INFINITY);
    }
}
