//! One row as the query language sees a device: the plain way to evaluate a filter, for one device at a time.
use fleetd_proto::v1::device_status::State;

use super::chunk::{none_if_zero, Hot};
use super::described::{Described, Notes, TextColumn};
use super::stats;
use crate::clock::UnixMillis;
use crate::presence::Moment;
use crate::query::{NumberField, Subject, TextField};

pub struct RowSubject<'a> {
    described: &'a Described,
    hot: &'a Hot,
    row: usize,
    moment: Moment,
}

impl<'a> RowSubject<'a> {
    /// The caller shares the lock of the row's chunk, and holds no device's.
    pub fn new(described: &'a Described, hot: &'a Hot, row: usize, moment: Moment) -> Self {
        Self { described, hot, row, moment }
    }

    fn of_stats(&self, read: impl FnOnce(&[u8]) -> Option<f64>) -> Option<f64> {
        self.described.entry(self.row)?.with_stats(read)
    }
}

impl Subject for RowSubject<'_> {
    fn any_text(&self, field: TextField, test: &mut dyn FnMut(&str) -> bool) -> bool {
        match self.described.column_of(field) {
            TextColumn::Attributes(key) => {
                let texts = self.described.texts();
                self.described.values(self.row, key).any(|value| texts.get(value).is_some_and(&mut *test))
            }
            column => self.described.first_text(self.row, &column).is_some_and(test),
        }
    }

    fn metadata(&self, key: &str) -> Option<&str> {
        self.described.first_text(self.row, &self.described.column_of_note(Notes::Metadata, key))
    }

    fn label(&self, key: &str) -> Option<&str> {
        self.described.first_text(self.row, &self.described.column_of_note(Notes::Labels, key))
    }

    fn number(&self, field: NumberField) -> Option<f64> {
        let number = match field {
            NumberField::CpuUsage => self.hot.cpu_percent(self.row),
            NumberField::MemoryUsage => self.hot.memory_percent(self.row),
            NumberField::DiskUsage => self.hot.disk_percent(self.row),
            NumberField::UptimeSeconds => self.hot.uptime_seconds(self.row),
            NumberField::CpuCores => none_if_zero(self.described.cpu_cores(self.row)),
            NumberField::MemoryMb => self.hot.memory_mb(self.row),
            NumberField::DiskGb => self.hot.disk_gb(self.row),
            NumberField::LoadAverage1m
            | NumberField::LoadAverage5m
            | NumberField::LoadAverage15m
            | NumberField::TemperatureCelsius
            | NumberField::BatteryPercent
            | NumberField::SignalDbm => return self.of_stats(|bytes| stats::number(bytes, field)),
        };
        stats::finite(number)
    }

    fn metric(&self, name: &str) -> Option<f64> {
        self.of_stats(|bytes| stats::metric(bytes, name))
    }

    fn last_seen(&self) -> Option<UnixMillis> {
        self.hot.last_seen(self.row)
    }

    fn registered_at(&self) -> UnixMillis {
        UnixMillis::from_millis_clamped(self.described.registered_at(self.row))
    }

    fn state(&self) -> State {
        self.hot.state(self.row, &self.moment)
    }
}
