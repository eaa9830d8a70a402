//! How well a device is, and why: 100 less what each rule takes off.
//!
//! Pure. The rules look at what the server knows live (presence, the last measurements, how often the device and its
//! workload restarted), and, where it was looked up, at what became of the device in the last day. A value that is not
//! known is no fault of the device. Where a value becomes a fault is configured: [`rules`].
pub mod rules;
pub mod triage;

use fleetd_proto::v1::device_health::Status;
use fleetd_proto::v1::device_status::State;
use fleetd_proto::v1::HealthReason;

pub use rules::{Bar, HealthRules, HealthSettings, RulesError, Thresholds};
use rules::{Measure, Side};
pub use triage::Triage;

/// What a device is judged by. `None` is not known.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Vitals {
    pub presence: State,
    /// Per cent: 0 to 100.
    pub cpu_percent: Option<f64>,
    pub memory_percent: Option<f64>,
    pub disk_percent: Option<f64>,
    /// Degrees Celsius.
    pub temperature_celsius: Option<f64>,
    /// Per cent: 0 to 100.
    pub battery_percent: Option<f64>,
    /// Restarts of the device's workload since it booted.
    pub restarts: u32,
    /// Boots of the device since the server knows it.
    pub boots: u32,
    /// `None`: was not looked up.
    pub history: Option<History>,
}

/// What became of a device in the last day.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct History {
    /// Heartbeats that came, in per cent of those that were due; `None` where too few were.
    pub heartbeat_percent: Option<f64>,
    /// The longest silence between two heartbeats.
    pub heartbeat_gap_seconds: Option<f64>,
    /// Hours in which the device booted.
    pub reboot_hours: u32,
    pub failed_commands: u32,
    pub expired_commands: u32,
    pub failed_updates: u32,
}

/// The verdict, and what led to it, the gravest first.
#[derive(Clone, Debug, PartialEq)]
pub struct Health {
    pub status: Status,
    /// 0 to 100.
    pub score: i32,
    pub findings: Vec<Finding>,
}

/// Something that took off the score.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Finding {
    /// Stable, for programs.
    pub code: &'static str,
    /// 1 to 100.
    pub impact: i32,
    fault: Fault,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    /// The presence itself.
    Presence(&'static str),
    Crossed {
        measure: Measure,
        value: f64,
        threshold: f64,
    },
}

/// Scores from which a device is HEALTHY, and DEGRADED.
const HEALTHY_FROM: i32 = 80;
const DEGRADED_FROM: i32 = 50;

/// A device that is gone is UNHEALTHY whatever it said last.
const OFFLINE: Finding =
    Finding { code: "OFFLINE", impact: 60, fault: Fault::Presence("the device does not report any more") };
const LATE: Finding = Finding {
    code: "HEARTBEAT_LATE",
    impact: 15,
    fault: Fault::Presence("the last heartbeat that was due did not come"),
};
/// One warning leaves a device HEALTHY to look at, two or one grave fault make it DEGRADED.
const WARNING_IMPACT: i32 = 15;
const CRITICAL_IMPACT: i32 = 30;

/// Judges a device. One that has not reported has the status STATUS_UNSPECIFIED and the score 0: nothing is known.
pub fn judge(vitals: &Vitals, thresholds: &Thresholds) -> Health {
    if vitals.presence == State::Unknown {
        return Health { status: Status::Unspecified, score: 0, findings: Vec::new() };
    }
    let mut findings = Vec::new();
    match vitals.presence {
        State::Offline => findings.push(OFFLINE),
        State::Late => findings.push(LATE),
        // Out of service on purpose is no fault.
        _ => {}
    }
    for measure in Measure::ALL {
        findings.extend(vitals.value(measure).and_then(|value| crossed(measure, value, thresholds.bar(measure))));
    }
    // Of equals the order of the rules stays.
    findings.sort_by_key(|finding| -finding.impact);
    let score = (100 - findings.iter().map(|finding| finding.impact).sum::<i32>()).max(0);
    let status = match score {
        HEALTHY_FROM.. => Status::Healthy,
        DEGRADED_FROM.. => Status::Degraded,
        _ => Status::Unhealthy,
    };
    Health { status, score, findings }
}

impl Vitals {
    fn value(&self, measure: Measure) -> Option<f64> {
        let history = self.history.as_ref();
        // What was missed out of service was not to be expected.
        let heartbeats = history.filter(|_| self.presence != State::Maintenance);
        match measure {
            Measure::Cpu => self.cpu_percent,
            Measure::Memory => self.memory_percent,
            Measure::Disk => self.disk_percent,
            Measure::Temperature => self.temperature_celsius,
            Measure::Battery => self.battery_percent,
            Measure::WorkloadRestarts => Some(self.restarts.into()),
            // The telemetry knows it better.
            Measure::Boots => history.is_none().then(|| self.boots.into()),
            Measure::Heartbeats => heartbeats?.heartbeat_percent,
            Measure::HeartbeatGap => heartbeats?.heartbeat_gap_seconds,
            Measure::Reboots => Some(history?.reboot_hours.into()),
            Measure::FailedCommands => Some(history?.failed_commands.into()),
            Measure::ExpiredCommands => Some(history?.expired_commands.into()),
            Measure::FailedUpdates => Some(history?.failed_updates.into()),
        }
    }
}

fn crossed(measure: Measure, value: f64, bar: Bar) -> Option<Finding> {
    let rule = measure.rule();
    let is_beyond = |threshold: f64| match rule.side {
        Side::Above => value >= threshold,
        Side::Below => value <= threshold,
    };
    let (code, threshold, impact) = if is_beyond(bar.critical) {
        (rule.critical, bar.critical, CRITICAL_IMPACT)
    } else if is_beyond(bar.warning) {
        (rule.warning, bar.warning, WARNING_IMPACT)
    } else {
        return None;
    };
    Some(Finding { code, impact, fault: Fault::Crossed { measure, value, threshold } })
}

impl Finding {
    /// As callers are told.
    pub fn reason(&self) -> HealthReason {
        let (message, value, threshold) = match self.fault {
            Fault::Presence(message) => (message.to_owned(), 0.0, 0.0),
            Fault::Crossed { measure, value, threshold } => {
                let rule = measure.rule();
                let side = match rule.side {
                    Side::Above => "at or above",
                    Side::Below => "at or below",
                };
                let (what, unit, digits) = (rule.what, rule.unit, rule.digits);
                (format!("{what} {value:.digits$}{unit}, {side} {threshold}{unit}"), value, threshold)
            }
        };
        HealthReason { code: self.code.to_owned(), message, score_impact: self.impact, value, threshold }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn well() -> Vitals {
        Vitals {
            presence: State::Online,
            cpu_percent: Some(20.0),
            memory_percent: Some(40.0),
            disk_percent: None,
            temperature_celsius: Some(50.0),
            battery_percent: Some(100.0),
            restarts: 0,
            boots: 1,
            history: None,
        }
    }

    fn since(history: History) -> Vitals {
        Vitals { history: Some(history), ..well() }
    }

    fn codes(vitals: &Vitals) -> (Status, i32, Vec<&'static str>) {
        let Health { status, score, findings } = judge(vitals, &Thresholds::default());
        (status, score, findings.into_iter().map(|finding| finding.code).collect())
    }

    #[test]
    fn each_rule_takes_off_what_it_says() {
        let none = History::default();
        for (vitals, status, score, expected) in [
            (well(), Status::Healthy, 100, vec![]),
            (Vitals { presence: State::Maintenance, ..well() }, Status::Healthy, 100, vec![]),
            (Vitals { presence: State::Late, ..well() }, Status::Healthy, 85, vec!["HEARTBEAT_LATE"]),
            (Vitals { presence: State::Offline, ..well() }, Status::Unhealthy, 40, vec!["OFFLINE"]),
            (Vitals { presence: State::Unknown, ..well() }, Status::Unspecified, 0, vec![]),
            (Vitals { cpu_percent: Some(85.0), ..well() }, Status::Healthy, 85, vec!["CPU_WARNING"]),
            (Vitals { cpu_percent: Some(84.9), ..well() }, Status::Healthy, 100, vec![]),
            (Vitals { disk_percent: Some(95.0), ..well() }, Status::Degraded, 70, vec!["DISK_CRITICAL"]),
            (Vitals { battery_percent: Some(20.0), ..well() }, Status::Healthy, 85, vec!["BATTERY_WARNING"]),
            (Vitals { battery_percent: Some(5.0), ..well() }, Status::Degraded, 70, vec!["BATTERY_CRITICAL"]),
            (Vitals { restarts: 10, ..well() }, Status::Degraded, 70, vec!["WORKLOAD_RESTARTS_CRITICAL"]),
            (Vitals { boots: 2, ..well() }, Status::Healthy, 85, vec!["BOOTS_WARNING"]),
            (
                Vitals { cpu_percent: Some(90.0), memory_percent: Some(99.0), ..well() },
                Status::Degraded,
                55,
                vec!["MEMORY_CRITICAL", "CPU_WARNING"],
            ),
            (since(none), Status::Healthy, 100, vec![]),
            (Vitals { boots: 9, ..since(none) }, Status::Healthy, 100, vec![]),
            (since(History { heartbeat_percent: Some(90.0), ..none }), Status::Healthy, 85, vec!["HEARTBEATS_WARNING"]),
            (since(History { heartbeat_percent: Some(90.1), ..none }), Status::Healthy, 100, vec![]),
            (
                since(History { heartbeat_gap_seconds: Some(21_600.0), ..none }),
                Status::Degraded,
                70,
                vec!["HEARTBEAT_GAP_CRITICAL"],
            ),
            (
                Vitals {
                    presence: State::Maintenance,
                    ..since(History { heartbeat_percent: Some(0.0), heartbeat_gap_seconds: Some(9e9), ..none })
                },
                Status::Healthy,
                100,
                vec![],
            ),
            (since(History { reboot_hours: 3, ..none }), Status::Healthy, 85, vec!["REBOOTS_WARNING"]),
            (since(History { failed_commands: 1, ..none }), Status::Healthy, 85, vec!["FAILED_COMMANDS_WARNING"]),
            (since(History { expired_commands: 5, ..none }), Status::Degraded, 70, vec!["EXPIRED_COMMANDS_CRITICAL"]),
            (since(History { failed_updates: 1, ..none }), Status::Healthy, 85, vec!["FAILED_UPDATES_WARNING"]),
            (since(History { failed_updates: 2, ..none }), Status::Degraded, 70, vec!["FAILED_UPDATES_CRITICAL"]),
        ] {
            assert_eq!(codes(&vitals), (status, score, expected), "{vitals:?}");
        }
    }

    #[test]
    fn a_score_never_falls_below_0_and_a_reason_says_value_and_bar() {
        let all = Vitals {
            presence: State::Offline,
            cpu_percent: Some(100.0),
            memory_percent: Some(100.0),
            disk_percent: Some(100.0),
            temperature_celsius: Some(99.0),
            battery_percent: Some(0.0),
            restarts: 100,
            boots: 100,
            history: None,
        };
        let health = judge(&all, &Thresholds::default());
        assert_eq!((health.status, health.score, health.findings.len()), (Status::Unhealthy, 0, 8));
        let of = |code: &str| health.findings.iter().find(|finding| finding.code == code).expect(code).reason();
        let disk = of("DISK_CRITICAL");
        assert_eq!(disk.message, "disk in use is 100.0 %, at or above 95 %");
        assert_eq!((disk.value, disk.threshold), (100.0, 95.0));
        assert_eq!(of("BOOTS_CRITICAL").message, "boots since the server knows the device: 100, at or above 5");
    }
}
