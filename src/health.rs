//! How well a device is, and why: 100 less what each rule takes off.
//!
//! Pure. The rules look at what the server knows live: presence, the last measurements, and how often the device and
//! its workload restarted. A value that a device does not report is no fault of it.
use fleetd_proto::v1::device_health::Status;
use fleetd_proto::v1::device_status::State;
use fleetd_proto::v1::HealthReason;

/// What a device is judged by. `None` is not reported.
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
}

/// Where a value becomes a fault, and a grave one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bar {
    pub warning: f64,
    pub critical: f64,
}

/// The bars of all rules. The defaults are where operators of Linux devices are usually called.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Thresholds {
    pub cpu_percent: Bar,
    pub memory_percent: Bar,
    /// A full disk stops updates and logs, so it is called in time to make room.
    pub disk_percent: Bar,
    /// Common boards throttle at 80 to 85 degrees.
    pub temperature_celsius: Bar,
    /// Below, not above.
    pub battery_percent: Bar,
    pub restarts: Bar,
    pub boots: Bar,
}

impl Default for Thresholds {
    fn default() -> Self {
        let bar = |warning, critical| Bar { warning, critical };
        Self {
            cpu_percent: bar(85.0, 95.0),
            memory_percent: bar(85.0, 95.0),
            disk_percent: bar(85.0, 95.0),
            temperature_celsius: bar(75.0, 85.0),
            battery_percent: bar(20.0, 10.0),
            restarts: bar(3.0, 10.0),
            boots: bar(2.0, 5.0),
        }
    }
}

/// The verdict, and what led to it, the gravest first.
#[derive(Clone, Debug, PartialEq)]
pub struct Health {
    pub status: Status,
    /// 0 to 100.
    pub score: i32,
    pub reasons: Vec<HealthReason>,
}

/// Scores from which a device is HEALTHY, and DEGRADED.
const HEALTHY_FROM: i32 = 80;
const DEGRADED_FROM: i32 = 50;

/// A device that is gone is UNHEALTHY whatever it said last.
const OFFLINE_IMPACT: i32 = 60;
const LATE_IMPACT: i32 = 15;
/// One warning leaves a device HEALTHY to look at, two or one grave fault make it DEGRADED.
const WARNING_IMPACT: i32 = 15;
const CRITICAL_IMPACT: i32 = 30;

/// Judges a device. One that has not reported has the status STATUS_UNSPECIFIED and the score 0: nothing is known.
pub fn judge(vitals: &Vitals, thresholds: &Thresholds) -> Health {
    if vitals.presence == State::Unknown {
        return Health { status: Status::Unspecified, score: 0, reasons: Vec::new() };
    }
    let mut reasons = Vec::new();
    match vitals.presence {
        State::Offline => reasons.push(plain("OFFLINE", "the device does not report any more", OFFLINE_IMPACT)),
        State::Late => {
            reasons.push(plain("HEARTBEAT_LATE", "the last heartbeat that was due did not come", LATE_IMPACT))
        }
        // Out of service on purpose is no fault.
        _ => {}
    }
    let Thresholds { cpu_percent, memory_percent, disk_percent, temperature_celsius, .. } = thresholds;
    let above = [
        ("CPU", "processor load", "%", vitals.cpu_percent, cpu_percent),
        ("MEMORY", "memory in use", "%", vitals.memory_percent, memory_percent),
        ("DISK", "disk in use", "%", vitals.disk_percent, disk_percent),
        ("TEMPERATURE", "temperature", " degrees Celsius", vitals.temperature_celsius, temperature_celsius),
        ("WORKLOAD_RESTARTS", "restarts of the workload", "", Some(vitals.restarts.into()), &thresholds.restarts),
        ("BOOTS", "boots", "", Some(vitals.boots.into()), &thresholds.boots),
    ];
    for (name, what, unit, value, bar) in above {
        reasons.extend(value.and_then(|value| crossed(name, what, unit, value, bar, false)));
    }
    let battery = vitals.battery_percent;
    let charge = "battery charge";
    reasons.extend(battery.and_then(|value| crossed("BATTERY", charge, "%", value, &thresholds.battery_percent, true)));
    // Of equals the order of the rules stays.
    reasons.sort_by_key(|reason| -reason.score_impact);
    let score = (100 - reasons.iter().map(|reason| reason.score_impact).sum::<i32>()).max(0);
    let status = match score {
        HEALTHY_FROM.. => Status::Healthy,
        DEGRADED_FROM.. => Status::Degraded,
        _ => Status::Unhealthy,
    };
    Health { status, score, reasons }
}

fn plain(code: &str, message: &str, score_impact: i32) -> HealthReason {
    HealthReason { code: code.to_owned(), message: message.to_owned(), score_impact, value: 0.0, threshold: 0.0 }
}

fn crossed(name: &str, what: &str, unit: &str, value: f64, bar: &Bar, is_low: bool) -> Option<HealthReason> {
    let beyond = |threshold: f64| if is_low { value <= threshold } else { value >= threshold };
    let (level, threshold, score_impact) = if beyond(bar.critical) {
        ("CRITICAL", bar.critical, CRITICAL_IMPACT)
    } else if beyond(bar.warning) {
        ("WARNING", bar.warning, WARNING_IMPACT)
    } else {
        return None;
    };
    let side = if is_low { "at or below" } else { "at or above" };
    let message = format!("{what} is {value:.1}{unit}, {side} {threshold}{unit}");
    Some(HealthReason { code: format!("{name}_{level}"), message, score_impact, value, threshold })
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
        }
    }

    fn codes(vitals: &Vitals) -> (Status, i32, Vec<String>) {
        let Health { status, score, reasons } = judge(vitals, &Thresholds::default());
        (status, score, reasons.into_iter().map(|reason| reason.code).collect())
    }

    #[test]
    fn each_rule_takes_off_what_it_says() {
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
        ] {
            let expected = expected.into_iter().map(str::to_owned).collect();
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
        };
        let health = judge(&all, &Thresholds::default());
        assert_eq!((health.status, health.score, health.reasons.len()), (Status::Unhealthy, 0, 8));
        let disk = health.reasons.iter().find(|reason| reason.code == "DISK_CRITICAL").expect("a full disk");
        assert_eq!(disk.message, "disk in use is 100.0%, at or above 95%");
        assert_eq!((disk.value, disk.threshold), (100.0, 95.0));
    }
}
