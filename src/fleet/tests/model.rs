//! A device as plain values, and what queries may ask of it, written down without the index.
use std::collections::BTreeMap;
use std::time::Duration;

use fleetd_proto::v1::device_status::State;
use fleetd_proto::v1::{SystemInfo, SystemStats};
use proptest::prelude::*;
use proptest::sample::select;
use prost::Message as _;

use super::{INTERVAL, MOMENT};
use crate::actors::entry::Live;
use crate::auth::KeyHash;
use crate::clock::UnixMillis;
use crate::ids::DeviceId;
use crate::query::{NumberField, Subject, TextField};
use crate::store::Device;

#[derive(Clone, Debug)]
pub struct Model {
    pub record: Device,
    pub system: SystemInfo,
    pub report: Option<Report>,
}

/// The last heartbeat.
#[derive(Clone, Debug)]
pub struct Report {
    pub version: Option<String>,
    pub stats: Option<SystemStats>,
    pub uptime_seconds: u64,
    pub reported: State,
    pub last_seen: UnixMillis,
    pub silent: Duration,
}

impl Report {
    /// As the device's actor does.
    pub fn apply(&self, live: &mut Live) {
        live.last_seen = Some(self.last_seen);
        live.last_seen_at = MOMENT.now - self.silent.as_nanos() as u64;
        live.uptime_seconds = self.uptime_seconds;
        live.reported = self.reported;
        if let Some(version) = &self.version {
            live.version = Some(version.as_str().into());
        }
        if let Some(stats) = &self.stats {
            live.set_stats(stats);
        }
    }
}

/// Few texts, so that devices share them, and versions and numbers among them, so that they compare as such.
const TEXTS: [&str; 9] = ["", "a", "ab", "b", "größe", "7", "10", "1.0.0", "v1.10"];

fn text() -> impl Strategy<Value = String> {
    select(&TEXTS[..]).prop_map(str::to_owned)
}

fn notes() -> impl Strategy<Value = BTreeMap<String, String>> {
    prop::collection::btree_map(select(&["ring", "site", "a"][..]).prop_map(str::to_owned), text(), 0..3)
}

/// Round numbers, which meet what filters ask for, and what is no number.
fn number() -> impl Strategy<Value = f64> {
    select(&[0.0, 1.0, 7.0, 10.0, 50.5, 80.0, 100.0, -3.0, f64::NAN, f64::INFINITY][..])
}

fn total() -> impl Strategy<Value = u64> {
    select(&[0, 10, 1_000][..])
}

prop_compose! {
    fn system()(
        texts in prop::collection::vec(text(), 10),
        ip_addresses in prop::collection::vec(text(), 0..3),
        (cpu_cores, memory_mb, disk_gb) in (0..3u32, total(), number()),
    ) -> SystemInfo {
        let mut texts = texts.into_iter();
        let mut next = || texts.next().unwrap_or_default();
        SystemInfo {
            os: next(), arch: next(), os_version: next(), kernel_version: next(), hostname: next(),
            hardware_model: next(), serial_number: next(), firmware_version: next(), agent_version: next(),
            time_zone: next(),
            ip_addresses: ip_addresses.into_iter().filter(|text| !text.is_empty()).collect(),
            cpu_cores, memory_mb, disk_gb,
        }
    }
}

prop_compose! {
    fn stats()(
        (cpu_percent, memory_used_mb, disk_used_gb) in (number(), total(), number()),
        (memory_total_mb, disk_total_gb) in (total(), number()),
        metrics in prop::collection::btree_map(select(&["queue", "a"][..]).prop_map(str::to_owned), number(), 0..3),
        (load_average_1m, temperature_celsius) in (prop::option::of(number()), prop::option::of(number())),
        (battery_percent, signal_dbm) in (prop::option::of(number()), prop::option::of(-90..0i32)),
    ) -> SystemStats {
        SystemStats {
            cpu_percent, memory_used_mb, disk_used_gb, memory_total_mb, disk_total_gb, metrics, load_average_1m,
            load_average_5m: Some(0.0), temperature_celsius, battery_percent, signal_dbm,
            network_rx_bytes: 1 << 40, ..SystemStats::default()
        }
    }
}

prop_compose! {
    fn report()(
        version in prop::option::of(select(&TEXTS[1..]).prop_map(str::to_owned)),
        stats in prop::option::of(stats()),
        uptime_seconds in 0..3u64,
        reported in select(&[State::Online, State::Unknown, State::Maintenance][..]),
        last_seen in moment(),
        half_intervals in 0..9u32,
    ) -> Report {
        // Between the bounds of presence, which lie at 3 and at 6 halves.
        let silent = INTERVAL / 2 * half_intervals + INTERVAL / 4;
        Report { version, stats, uptime_seconds, reported, last_seen, silent }
    }
}

fn moment() -> impl Strategy<Value = UnixMillis> {
    (-5..5i64).prop_map(|hours| UnixMillis::from_millis_clamped(hours * 3_600_000))
}

prop_compose! {
    /// A device, all but its id.
    pub fn model()(
        (name, device_type, version) in (text(), text(), text()),
        (metadata, labels) in (notes(), notes()),
        system in system(),
        (registered_at, last_seen) in (moment(), prop::option::of(moment())),
        maintenance in any::<bool>(),
        interval in select(vec![None, Some(INTERVAL), Some(INTERVAL * 2)]),
        report in prop::option::of(report()),
    ) -> Model {
        let record = Device {
            id: DeviceId::parse("unnamed").expect("valid"),
            name, device_type, version, metadata, labels,
            system_info: system.encode_to_vec().into(),
            registered_at, last_seen,
            key_hash: KeyHash::of("key"),
            revision: 1,
            maintenance,
            heartbeat_interval: interval,
        };
        Model { record, system, report }
    }
}

impl Model {
    pub fn named(&self, id: &str) -> Self {
        let mut named = self.clone();
        named.record.id = DeviceId::parse(id).expect("a valid id");
        named
    }

    fn stats(&self) -> Option<&SystemStats> {
        // An empty message cannot be told from none.
        self.report.as_ref()?.stats.as_ref().filter(|stats| **stats != SystemStats::default())
    }
}

impl Subject for Model {
    fn any_text(&self, field: TextField, test: &mut dyn FnMut(&str) -> bool) -> bool {
        let (record, system) = (&self.record, &self.system);
        let reported = self.report.as_ref().and_then(|report| report.version.as_ref());
        let text = match field {
            TextField::Id => record.id.as_str(),
            TextField::Name => &record.name,
            TextField::Type => &record.device_type,
            TextField::Version => reported.unwrap_or(&record.version),
            TextField::Os => &system.os,
            TextField::Arch => &system.arch,
            TextField::OsVersion => &system.os_version,
            TextField::KernelVersion => &system.kernel_version,
            TextField::Hostname => &system.hostname,
            TextField::HardwareModel => &system.hardware_model,
            TextField::SerialNumber => &system.serial_number,
            TextField::FirmwareVersion => &system.firmware_version,
            TextField::AgentVersion => &system.agent_version,
            TextField::TimeZone => &system.time_zone,
            TextField::IpAddresses => return system.ip_addresses.iter().any(|address| test(address)),
        };
        !text.is_empty() && test(text)
    }

    fn metadata(&self, key: &str) -> Option<&str> {
        self.record.metadata.get(key).map(String::as_str)
    }

    fn label(&self, key: &str) -> Option<&str> {
        self.record.labels.get(key).map(String::as_str)
    }

    fn number(&self, field: NumberField) -> Option<f64> {
        let (stats, system) = (self.stats(), &self.system);
        let unless_zero = |number: f64| Some(number).filter(|number| *number != 0.0);
        let share = |used: f64, totals: [f64; 2]| {
            totals.into_iter().find(|total| *total > 0.0).map(|total| 100.0 * used / total)
        };
        // A size that is no number is not known.
        let disk_gb = if system.disk_gb.is_finite() { system.disk_gb } else { 0.0 };
        let found = match field {
            NumberField::CpuUsage => stats.map(|stats| stats.cpu_percent),
            NumberField::MemoryUsage => stats.and_then(|stats| {
                share(stats.memory_used_mb as f64, [stats.memory_total_mb as f64, system.memory_mb as f64])
            }),
            NumberField::DiskUsage => stats.and_then(|stats| share(stats.disk_used_gb, [stats.disk_total_gb, disk_gb])),
            NumberField::UptimeSeconds => self.report.as_ref().and_then(|r| unless_zero(r.uptime_seconds as f64)),
            NumberField::LoadAverage1m => stats.and_then(|stats| stats.load_average_1m),
            NumberField::LoadAverage5m => stats.and_then(|stats| stats.load_average_5m),
            NumberField::LoadAverage15m => stats.and_then(|stats| stats.load_average_15m),
            NumberField::TemperatureCelsius => stats.and_then(|stats| stats.temperature_celsius),
            NumberField::BatteryPercent => stats.and_then(|stats| stats.battery_percent),
            NumberField::SignalDbm => stats.and_then(|stats| stats.signal_dbm).map(f64::from),
            NumberField::CpuCores => unless_zero(f64::from(system.cpu_cores)),
            NumberField::MemoryMb => unless_zero(system.memory_mb as f64),
            NumberField::DiskGb => unless_zero(disk_gb),
        };
        found.filter(|number| number.is_finite())
    }

    fn metric(&self, name: &str) -> Option<f64> {
        self.stats()?.metrics.get(name).copied().filter(|number| number.is_finite())
    }

    fn last_seen(&self) -> Option<UnixMillis> {
        self.report.as_ref().map(|report| report.last_seen).or(self.record.last_seen)
    }

    fn registered_at(&self) -> UnixMillis {
        self.record.registered_at
    }

    fn state(&self) -> State {
        let reported = self.report.as_ref().map(|report| report.reported);
        if self.record.maintenance || reported == Some(State::Maintenance) {
            return State::Maintenance;
        }
        let Some(report) = &self.report else { return State::Unknown };
        let interval = self.record.heartbeat_interval.unwrap_or(INTERVAL).as_secs_f64();
        match report.silent.as_secs_f64() / interval {
            missed if missed > 3.0 => State::Offline,
            missed if missed > 1.5 => State::Late,
            _ => State::Online,
        }
    }
}
