//! Shows how devices are, by what the fleet index and their entries know live: for judgements of health.
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::bitmap::Bitmap;
use super::chunk::Chunk;
use super::described::{Described, Notes, TextColumn};
use super::evaluate::{Plan, Rows, Scratch};
use super::queries::{QueryFailure, Run};
use super::{stats, FleetIndex};
use crate::actors::entry::DeviceEntry;
use crate::clock::UnixMillis;
use crate::health::{HealthRules, Thresholds, Vitals};
use crate::query::{Filter, NumberField};

/// Which devices.
#[derive(Clone, Default)]
pub struct CheckupRequest {
    /// Devices that match; `None` means none.
    pub filter: Option<Filter>,
    /// Devices beside those that match. One that is forgotten is left out.
    pub devices: Vec<Arc<DeviceEntry>>,
}

/// A device as it is now.
pub struct Examined<'a> {
    pub entry: &'a Arc<DeviceEntry>,
    /// Without a history.
    pub vitals: Vitals,
    /// What it is judged by.
    pub thresholds: &'a Thresholds,
    pub registered_at: UnixMillis,
    /// How often it is to report, when the server is not behind.
    pub interval: Duration,
}

impl FleetIndex {
    /// Shows each device once to `see`, until that fails. Blocks for the time that it takes, as [`Self::page`].
    pub(super) fn checkup<E: From<QueryFailure>>(
        &self,
        request: &CheckupRequest,
        rules: &HealthRules,
        run: &Run<'_>,
        see: &mut dyn FnMut(Examined<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let chunks: Vec<Arc<Chunk>> = self.0.chunks.read().clone();
        let plan = request.filter.as_ref().map(Plan::of);
        let mut scratch = Scratch::default();
        let mut named: HashMap<*const Chunk, Vec<&Arc<DeviceEntry>>> = HashMap::new();
        for device in &request.devices {
            if let Some(row) = device.row() {
                named.entry(Arc::as_ptr(&row.chunk)).or_default().push(device);
            }
        }
        for (looked_at, chunk) in chunks.iter().enumerate() {
            let named = named.get(&Arc::as_ptr(chunk));
            if plan.is_none() && named.is_none() {
                continue;
            }
            run.check(looked_at, chunks.len())?;
            let described = chunk.described.read();
            let rows = Rows { described: &described, hot: &chunk.hot, moment: &run.moment };
            let mut selected = plan.as_ref().map_or_else(Bitmap::default, |plan| plan.select(rows, &mut scratch));
            for device in named.into_iter().flatten() {
                if let Some(row) = device.row().filter(|row| row.is_of(&described, device)) {
                    selected.insert(row.slot());
                }
            }
            if selected.is_empty() {
                continue;
            }
            let labels: Vec<_> =
                rules.labels().map(|label| (label, described.column_of_note(Notes::Labels, label))).collect();
            for row in selected.iter() {
                let Some(entry) = described.entry(row) else { continue };
                see(self.examine(rows, row, entry, rules, &labels))?;
            }
        }
        Ok(())
    }

    fn examine<'a>(
        &self,
        rows: Rows<'a>,
        row: usize,
        entry: &'a Arc<DeviceEntry>,
        rules: &'a HealthRules,
        labels: &[(&str, TextColumn)],
    ) -> Examined<'a> {
        let Rows { described, hot, moment } = rows;
        let (restarts, boots, temperature_celsius, battery_percent, interval) = entry.with_live(|live| {
            let number = |field| stats::number(&live.stats, field);
            let interval = live.interval(self.0.default_interval);
            let (temperature, battery) = (number(NumberField::TemperatureCelsius), number(NumberField::BatteryPercent));
            (live.restarts, live.boots, temperature, battery, interval)
        });
        let vitals = Vitals {
            presence: hot.state(row, moment),
            cpu_percent: stats::finite(hot.cpu_percent(row)),
            memory_percent: stats::finite(hot.memory_percent(row)),
            disk_percent: stats::finite(hot.disk_percent(row)),
            temperature_celsius,
            battery_percent,
            restarts,
            boots,
            history: None,
        };
        Examined {
            entry,
            vitals,
            thresholds: rules.of_device(|key| label(described, row, labels, key)),
            registered_at: UnixMillis::from_millis_clamped(described.registered_at(row)),
            interval,
        }
    }
}

fn label<'a>(described: &'a Described, row: usize, labels: &[(&str, TextColumn)], key: &str) -> Option<&'a str> {
    let (_, column) = labels.iter().find(|(name, _)| *name == key)?;
    described.first_text(row, column)
}
