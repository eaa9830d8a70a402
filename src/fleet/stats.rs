//! Reads single numbers out of an encoded `SystemStats`, without decoding the rest: a device's last report is kept
//! encoded, and a query that asks for a rare number looks at a million of them.
//!
//! The bytes are this server's own encoding. Should they be damaged, what comes after the damage is not reported.
use bytes::Buf as _;
use fleetd_proto::v1::SystemStats;
use prost::encoding::{decode_key, decode_varint, skip_field, DecodeContext, WireType};

use crate::query::NumberField;

/// Field numbers of `SystemStats` (`proto/fleetd/v1/device.proto`); a test holds them to the message.
mod tag {
    pub const CPU_PERCENT: u32 = 1;
    pub const MEMORY_USED_MB: u32 = 2;
    pub const DISK_USED_GB: u32 = 3;
    pub const MEMORY_TOTAL_MB: u32 = 4;
    pub const DISK_TOTAL_GB: u32 = 5;
    pub const METRICS: u32 = 6;
    pub const LOAD_AVERAGE_1M: u32 = 7;
    pub const LOAD_AVERAGE_5M: u32 = 8;
    pub const LOAD_AVERAGE_15M: u32 = 9;
    pub const TEMPERATURE_CELSIUS: u32 = 10;
    pub const BATTERY_PERCENT: u32 = 16;
    pub const SIGNAL_DBM: u32 = 17;
}

/// The numbers that have columns of their own. `NAN` is one that was not reported.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gauges {
    pub cpu_percent: f64,
    pub memory_used_mb: f64,
    pub memory_total_mb: f64,
    pub disk_used_gb: f64,
    pub disk_total_gb: f64,
}

impl Gauges {
    /// Of a device that reported no stats.
    const NONE: Self = Self {
        cpu_percent: f64::NAN,
        memory_used_mb: f64::NAN,
        memory_total_mb: f64::NAN,
        disk_used_gb: f64::NAN,
        disk_total_gb: f64::NAN,
    };

    /// Of encoded stats; of none when there are no bytes. What proto3 leaves out because it is 0, is 0.
    pub fn of(stats: &[u8]) -> Self {
        if stats.is_empty() {
            return Self::NONE;
        }
        let zero = 0.0;
        let mut gauges = Self {
            cpu_percent: zero,
            memory_used_mb: zero,
            memory_total_mb: zero,
            disk_used_gb: zero,
            disk_total_gb: zero,
        };
        walk(stats, |tag, value| {
            let place = match tag {
                tag::CPU_PERCENT => &mut gauges.cpu_percent,
                tag::MEMORY_USED_MB => &mut gauges.memory_used_mb,
                tag::DISK_USED_GB => &mut gauges.disk_used_gb,
                tag::MEMORY_TOTAL_MB => &mut gauges.memory_total_mb,
                tag::DISK_TOTAL_GB => &mut gauges.disk_total_gb,
                _ => return,
            };
            *place = match value {
                Value::Double(number) => number,
                Value::Integer(number) => number as f64,
                Value::Bytes(_) => return,
            };
        });
        gauges
    }

    /// Used memory in per cent of the total; of `total_mb`, where the report has no total.
    pub fn memory_percent(&self, total_mb: f64) -> Option<f64> {
        percent(self.memory_used_mb, self.memory_total_mb, total_mb)
    }

    /// As [`Self::memory_percent`], of the main file system.
    pub fn disk_percent(&self, total_gb: f64) -> Option<f64> {
        percent(self.disk_used_gb, self.disk_total_gb, total_gb)
    }
}

fn percent(used: f64, reported_total: f64, known_total: f64) -> Option<f64> {
    let total = if reported_total > 0.0 { reported_total } else { known_total };
    finite(100.0 * used / total).filter(|_| total > 0.0)
}

/// What no gauge can be is not reported.
pub fn finite(number: f64) -> Option<f64> {
    number.is_finite().then_some(number)
}

/// Both percentages of a report: memory in use, then disk in use.
pub fn percentages(stats: &SystemStats, total_mb: f64, total_gb: f64) -> (Option<f64>, Option<f64>) {
    let memory = percent(stats.memory_used_mb as f64, stats.memory_total_mb as f64, total_mb);
    (memory, percent(stats.disk_used_gb, stats.disk_total_gb, total_gb))
}

/// A number that has no column of its own.
pub fn number(stats: &[u8], field: NumberField) -> Option<f64> {
    let wanted = match field {
        NumberField::LoadAverage1m => tag::LOAD_AVERAGE_1M,
        NumberField::LoadAverage5m => tag::LOAD_AVERAGE_5M,
        NumberField::LoadAverage15m => tag::LOAD_AVERAGE_15M,
        NumberField::TemperatureCelsius => tag::TEMPERATURE_CELSIUS,
        NumberField::BatteryPercent => tag::BATTERY_PERCENT,
        NumberField::SignalDbm => tag::SIGNAL_DBM,
        NumberField::CpuUsage
        | NumberField::MemoryUsage
        | NumberField::DiskUsage
        | NumberField::UptimeSeconds
        | NumberField::CpuCores
        | NumberField::MemoryMb
        | NumberField::DiskGb => return None,
    };
    let mut found = None;
    walk(stats, |tag, value| {
        if tag == wanted {
            found = match value {
                Value::Double(number) => Some(number),
                // The only such field is a sint32, which is zigzag-coded.
                Value::Integer(coded) => Some(((coded >> 1) as i64 ^ -((coded & 1) as i64)) as f64),
                Value::Bytes(_) => None,
            };
        }
    });
    found.and_then(finite)
}

/// A measurement of the fleet's own.
pub fn metric(stats: &[u8], name: &str) -> Option<f64> {
    let mut found = None;
    walk(stats, |tag, value| {
        // An entry of a map is a message: its key is field 1, its value field 2, and a 0 may be left out.
        if let (tag::METRICS, Value::Bytes(entry)) = (tag, value) {
            let (mut key, mut number) = (&[][..], 0.0);
            walk(entry, |tag, value| match (tag, value) {
                (1, Value::Bytes(bytes)) => key = bytes,
                (2, Value::Double(value)) => number = value,
                _ => {}
            });
            if key == name.as_bytes() {
                found = Some(number);
            }
        }
    });
    found.and_then(finite)
}

enum Value<'a> {
    Double(f64),
    Integer(u64),
    Bytes(&'a [u8]),
}

/// Shows each field of an encoded message, until its end or until it reads as none.
fn walk<'a>(mut bytes: &'a [u8], mut each: impl FnMut(u32, Value<'a>)) {
    while !bytes.is_empty() {
        let Ok((tag, wire_type)) = decode_key(&mut bytes) else { return };
        let value = match wire_type {
            WireType::SixtyFourBit => match bytes.try_get_f64_le() {
                Ok(number) => Value::Double(number),
                Err(_) => return,
            },
            WireType::Varint => match decode_varint(&mut bytes) {
                Ok(number) => Value::Integer(number),
                Err(_) => return,
            },
            WireType::LengthDelimited => {
                let Ok(length) = decode_varint(&mut bytes) else { return };
                let Some((inner, rest)) = usize::try_from(length).ok().and_then(|n| bytes.split_at_checked(n)) else {
                    return;
                };
                bytes = rest;
                Value::Bytes(inner)
            }
            WireType::StartGroup | WireType::EndGroup | WireType::ThirtyTwoBit => {
                if skip_field(wire_type, tag, &mut bytes, DecodeContext::default()).is_err() {
                    return;
                }
                continue;
            }
        };
        each(tag, value);
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    fn stats() -> SystemStats {
        SystemStats {
            cpu_percent: 12.5,
            memory_used_mb: 300,
            disk_used_gb: 0.25,
            memory_total_mb: 1_200,
            disk_total_gb: 0.0,
            metrics: [("queue.depth".to_owned(), -1.5), ("zero".to_owned(), 0.0)].into(),
            load_average_1m: Some(0.0),
            load_average_5m: Some(5.0),
            load_average_15m: None,
            temperature_celsius: Some(-4.5),
            network_rx_bytes: u64::MAX,
            battery_percent: Some(100.0),
            signal_dbm: Some(-67),
            ..SystemStats::default()
        }
    }

    #[test]
    fn each_number_is_read_from_its_own_field() {
        let bytes = stats().encode_to_vec();
        let gauges = Gauges::of(&bytes);
        assert_eq!((gauges.cpu_percent, gauges.memory_used_mb, gauges.disk_used_gb), (12.5, 300.0, 0.25));
        assert_eq!(gauges.memory_percent(0.0), Some(25.0));
        assert_eq!(gauges.disk_percent(0.0), None, "nobody knows the size");
        assert_eq!(gauges.disk_percent(2.5), Some(10.0));
        assert_eq!(percentages(&stats(), 9.0, 2.5), (Some(25.0), Some(10.0)));
        for (field, expected) in [
            (NumberField::LoadAverage1m, Some(0.0)),
            (NumberField::LoadAverage5m, Some(5.0)),
            (NumberField::LoadAverage15m, None),
            (NumberField::TemperatureCelsius, Some(-4.5)),
            (NumberField::BatteryPercent, Some(100.0)),
            (NumberField::SignalDbm, Some(-67.0)),
        ] {
            assert_eq!(number(&bytes, field), expected, "{field:?}");
        }
        for (name, expected) in [("queue.depth", Some(-1.5)), ("zero", Some(0.0)), ("queue", None)] {
            assert_eq!(metric(&bytes, name), expected, "{name}");
        }
    }

    #[test]
    fn what_was_not_reported_and_what_is_no_number_is_missing() {
        assert!(Gauges::of(&[]).cpu_percent.is_nan());
        let bytes = SystemStats { disk_used_gb: f64::NAN, ..stats() }.encode_to_vec();
        assert_eq!(Gauges::of(&bytes).disk_percent(2.5), None);
        let bytes = SystemStats { temperature_celsius: Some(f64::INFINITY), ..stats() }.encode_to_vec();
        assert_eq!(number(&bytes, NumberField::TemperatureCelsius), None);
    }

    #[test]
    fn damaged_bytes_neither_panic_nor_hang() {
        let bytes = stats().encode_to_vec();
        for cut in 0..bytes.len() {
            for flipped in [0, 1, 7] {
                let mut damaged = bytes[..cut].to_vec();
                if let Some(last) = damaged.last_mut() {
                    *last ^= 1 << flipped;
                }
                let _ = (Gauges::of(&damaged), metric(&damaged, "zero"), number(&damaged, NumberField::SignalDbm));
            }
        }
    }
}
