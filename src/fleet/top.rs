//! The first few rows of an order, after a place in it, out of any number: no list sorts a million devices.
//!
//! Rows are offered in any order. Up to twice as many as are wanted are kept; then the better half stays, and its last
//! one is the bar that a row must pass from then on. So a row costs one comparison, nearly always of its first key.
use std::cmp::Ordering;
use std::sync::Arc;

use super::chunk::none_if_zero;
use super::described::{id_prefix, Notes, TextColumn};
use super::evaluate::Rows;
use super::stats;
use super::subject::RowSubject;
use crate::actors::entry::DeviceEntry;
use crate::clock::UnixMillis;
use crate::query::{Field, Kind, NumberField, OrderBy, SortValue, Subject as _};

/// A device's place in an order.
pub struct Place {
    /// In the keys of the order, when the query saw it.
    pub values: Vec<SortValue>,
    /// Known to be the device of that row.
    pub entry: Arc<DeviceEntry>,
    id_prefix: u128,
}

/// The place that a page begins after.
pub struct After {
    values: Vec<SortValue>,
    id: String,
    id_prefix: u128,
}

impl After {
    pub fn new(values: Vec<SortValue>, id: String) -> Self {
        Self { values, id_prefix: id_prefix(&id), id }
    }
}

pub struct Top<'a> {
    order: &'a OrderBy,
    after: Option<&'a After>,
    wanted: usize,
    places: Vec<Place>,
    /// Whether `places[wanted - 1]` is the last of the best so far.
    has_bar: bool,
}

/// Where a key's values lie in one chunk.
pub enum KeyColumn {
    Text(TextColumn, Kind),
    Other,
}

impl<'a> Top<'a> {
    /// `wanted` is 1 or more.
    pub fn new(order: &'a OrderBy, after: Option<&'a After>, wanted: usize) -> Self {
        Self { order, after, wanted, places: Vec::with_capacity(2 * wanted), has_bar: false }
    }

    /// Finds the columns of the keys in a chunk, for the calls of [`Self::offer`] for its rows.
    pub fn columns(&self, rows: Rows<'_>) -> Vec<KeyColumn> {
        let described = rows.described;
        let columns = self.order.keys().iter().map(|key| match &key.field {
            Field::Text(field) => KeyColumn::Text(described.column_of(*field), key.field.kind()),
            Field::Label(name) => KeyColumn::Text(described.column_of_note(Notes::Labels, name), Kind::Note),
            Field::Metadata(name) => KeyColumn::Text(described.column_of_note(Notes::Metadata, name), Kind::Note),
            _ => KeyColumn::Other,
        });
        columns.collect()
    }

    pub fn offer(&mut self, rows: Rows<'_>, columns: &[KeyColumn], row: usize) {
        if self.has_bar {
            let bar = &self.places[self.wanted - 1];
            let id = || bar.entry.id.as_str();
            if self.compare(rows, columns, row, &bar.values, bar.id_prefix, id).is_ge() {
                return;
            }
        }
        if let Some(after) = self.after {
            let id = || after.id.as_str();
            if self.compare(rows, columns, row, &after.values, after.id_prefix, id).is_le() {
                return;
            }
        }
        let Some(entry) = rows.described.entry(row) else { return };
        // A number may change between two looks at it, so the row is taken with the values that it is judged by.
        let keys = self.order.keys().iter().zip(columns);
        let values: Vec<_> = keys.map(|(key, column)| owned(value(rows, column, &key.field, row))).collect();
        let id_prefix = rows.described.id_prefix(row);
        if let Some(after) = self.after {
            let by_values = self.compare_values(&values, &after.values);
            let by_id = || id_prefix.cmp(&after.id_prefix).then_with(|| entry.id.as_str().cmp(&after.id));
            if by_values.then_with(by_id).is_le() {
                return;
            }
        }
        self.places.push(Place { values, entry: Arc::clone(entry), id_prefix });
        if self.places.len() == 2 * self.wanted {
            self.prune();
        }
    }

    /// The places, in order; at most as many as were wanted.
    pub fn finish(mut self) -> Vec<Place> {
        let order = self.order;
        self.places.sort_unstable_by(|a, b| compare_places(order, a, b));
        self.places.truncate(self.wanted);
        self.places
    }

    fn prune(&mut self) {
        let order = self.order;
        self.places.select_nth_unstable_by(self.wanted - 1, |a, b| compare_places(order, a, b));
        self.places.truncate(self.wanted);
        self.has_bar = true;
    }

    /// Orders a row against a place, without copying its texts.
    fn compare<'i>(
        &self,
        rows: Rows<'_>,
        columns: &[KeyColumn],
        row: usize,
        values: &[SortValue],
        prefix: u128,
        id: impl FnOnce() -> &'i str,
    ) -> Ordering {
        for ((key, column), other) in self.order.keys().iter().zip(columns).zip(values) {
            match key.compare(&value(rows, column, &key.field, row), other) {
                Ordering::Equal => {}
                unequal => return unequal,
            }
        }
        rows.described.id_prefix(row).cmp(&prefix).then_with(|| rows.described.id(row).cmp(id()))
    }

    fn compare_values(&self, a: &[SortValue], b: &[SortValue]) -> Ordering {
        let by_key = self.order.keys().iter().zip(a.iter().zip(b)).map(|(key, (a, b))| key.compare(a, b));
        by_key.into_iter().find(|ordering| ordering.is_ne()).unwrap_or(Ordering::Equal)
    }
}

fn compare_places(order: &OrderBy, a: &Place, b: &Place) -> Ordering {
    let keys = order.keys().iter().zip(a.values.iter().zip(&b.values));
    let by_key = keys.map(|(key, (a, b))| key.compare(a, b)).find(|ordering| ordering.is_ne());
    by_key.unwrap_or_else(|| a.id_prefix.cmp(&b.id_prefix).then_with(|| a.entry.id.cmp(&b.entry.id)))
}

/// What a row has in a key.
fn value<'a>(rows: Rows<'a>, column: &KeyColumn, field: &Field, row: usize) -> SortValue<&'a str> {
    let Rows { described, hot, moment } = rows;
    let number = |number: f64| stats::finite(number).map_or(SortValue::Missing, SortValue::Number);
    let subject = || RowSubject::new(described, hot, row, *moment);
    match (field, column) {
        (_, KeyColumn::Text(column, kind)) => match (described.first_text(row, column), kind) {
            (None, _) => SortValue::Missing,
            (Some(text), Kind::Version) => SortValue::Version(text),
            (Some(text), _) => SortValue::Text(text),
        },
        (Field::Status, _) => SortValue::State(hot.state(row, moment)),
        (Field::LastSeen, _) => hot.last_seen(row).map_or(SortValue::Missing, SortValue::Time),
        (Field::RegisteredAt, _) => SortValue::Time(UnixMillis::from_millis_clamped(described.registered_at(row))),
        (Field::Number(NumberField::CpuUsage), _) => number(hot.cpu_percent(row)),
        (Field::Number(NumberField::MemoryUsage), _) => number(hot.memory_percent(row)),
        (Field::Number(NumberField::DiskUsage), _) => number(hot.disk_percent(row)),
        (Field::Number(NumberField::CpuCores), _) => number(none_if_zero(described.cpu_cores(row))),
        (Field::Number(field), _) => subject().number(*field).map_or(SortValue::Missing, SortValue::Number),
        (Field::Metric(name), _) => subject().metric(name).map_or(SortValue::Missing, SortValue::Number),
        // Their columns are `KeyColumn::Text`.
        (Field::Text(_) | Field::Metadata(_) | Field::Label(_), KeyColumn::Other) => SortValue::Missing,
    }
}

fn owned(value: SortValue<&str>) -> SortValue {
    match value {
        SortValue::Missing => SortValue::Missing,
        SortValue::Text(text) => SortValue::Text(text.to_owned()),
        SortValue::Version(text) => SortValue::Version(text.to_owned()),
        SortValue::Number(number) => SortValue::Number(number),
        SortValue::Time(at) => SortValue::Time(at),
        SortValue::State(state) => SortValue::State(state),
    }
}
