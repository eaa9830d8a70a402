//! The first few rows of an order, after a place in it, out of any number: no list sorts a million devices.
//!
//! Rows are offered in any order. Up to twice as many as are wanted are kept; then the better half stays, and its last
//! one is the bar that a row must pass from then on. So a row costs one comparison, nearly always of its first key.
use std::cell::RefCell;
use std::cmp::Ordering;
use std::sync::Arc;

use super::chunk::none_if_zero;
use super::described::{id_prefix, Notes, TextColumn};
use super::evaluate::Rows;
use super::stats;
use super::subject::RowSubject;
use super::texts::Symbol;
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
    /// How often `places[wanted - 1]` became the last of the best so far, which is the bar; 0 is not yet.
    bars: usize,
}

/// Where a key's values lie in one chunk.
pub enum KeyColumn {
    Text(TextColumn, Kind),
    /// Versions: dear to compare and few, so each is compared with the bar once.
    Versions {
        column: usize,
        against_bar: RefCell<AgainstBar>,
    },
    Other,
}

/// How the versions of a chunk stand to the bar's.
#[derive(Default)]
pub struct AgainstBar {
    /// Which bar they were compared with.
    bar: usize,
    known: Vec<Option<Ordering>>,
}

impl AgainstBar {
    fn ordering(&mut self, bar: usize, symbol: Symbol, compare: impl FnOnce() -> Ordering) -> Ordering {
        if self.bar != bar {
            self.bar = bar;
            self.known.clear();
        }
        if self.known.len() <= symbol.index() {
            self.known.resize(symbol.index() + 1, None);
        }
        *self.known[symbol.index()].get_or_insert_with(compare)
    }
}

impl<'a> Top<'a> {
    /// `wanted` is 1 or more.
    pub fn new(order: &'a OrderBy, after: Option<&'a After>, wanted: usize) -> Self {
        Self { order, after, wanted, places: Vec::with_capacity(2 * wanted), bars: 0 }
    }

    /// Finds the columns of the keys in a chunk, for the calls of [`Self::offer`] for its rows.
    pub fn columns(&self, rows: Rows<'_>) -> Vec<KeyColumn> {
        let described = rows.described;
        let columns = self.order.keys().iter().map(|key| match &key.field {
            Field::Text(field) => match (described.column_of(*field), key.field.kind()) {
                (TextColumn::Symbols(column), Kind::Version) => {
                    KeyColumn::Versions { column, against_bar: RefCell::default() }
                }
                (column, kind) => KeyColumn::Text(column, kind),
            },
            Field::Label(name) => KeyColumn::Text(described.column_of_note(Notes::Labels, name), Kind::Note),
            Field::Metadata(name) => KeyColumn::Text(described.column_of_note(Notes::Metadata, name), Kind::Note),
            _ => KeyColumn::Other,
        });
        columns.collect()
    }

    pub fn offer(&mut self, rows: Rows<'_>, columns: &[KeyColumn], row: usize) {
        if self.bars > 0 && self.compare_with_bar(rows, columns, row).is_ge() {
            return;
        }
        if let Some(after) = self.after {
            if self.compare_with_after(rows, columns, row, after).is_le() {
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
        self.bars += 1;
    }

    fn compare_with_bar(&self, rows: Rows<'_>, columns: &[KeyColumn], row: usize) -> Ordering {
        let bar = &self.places[self.wanted - 1];
        for ((key, column), other) in self.order.keys().iter().zip(columns).zip(&bar.values) {
            let compare = || key.compare(&value(rows, column, &key.field, row), other);
            let ordering = match column {
                KeyColumn::Versions { column, against_bar } => match rows.described.symbol(row, *column) {
                    Symbol::NONE => compare(),
                    symbol => against_bar.borrow_mut().ordering(self.bars, symbol, compare),
                },
                _ => compare(),
            };
            if ordering.is_ne() {
                return ordering;
            }
        }
        compare_ids(rows, row, bar.id_prefix, || bar.entry.id.as_str())
    }

    fn compare_with_after(&self, rows: Rows<'_>, columns: &[KeyColumn], row: usize, after: &After) -> Ordering {
        for ((key, column), other) in self.order.keys().iter().zip(columns).zip(&after.values) {
            match key.compare(&value(rows, column, &key.field, row), other) {
                Ordering::Equal => {}
                unequal => return unequal,
            }
        }
        compare_ids(rows, row, after.id_prefix, || after.id.as_str())
    }

    fn compare_values(&self, a: &[SortValue], b: &[SortValue]) -> Ordering {
        let by_key = self.order.keys().iter().zip(a.iter().zip(b)).map(|(key, (a, b))| key.compare(a, b));
        by_key.into_iter().find(|ordering| ordering.is_ne()).unwrap_or(Ordering::Equal)
    }
}

fn compare_ids<'i>(rows: Rows<'_>, row: usize, prefix: u128, id: impl FnOnce() -> &'i str) -> Ordering {
    rows.described.id_prefix(row).cmp(&prefix).then_with(|| rows.described.id(row).cmp(id()))
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
        (_, KeyColumn::Versions { column, .. }) => {
            described.texts().get(described.symbol(row, *column)).map_or(SortValue::Missing, SortValue::Version)
        }
        (Field::Status, _) => SortValue::State(hot.state(row, moment)),
        (Field::LastSeen, _) => hot.last_seen(row).map_or(SortValue::Missing, SortValue::Time),
        (Field::RegisteredAt, _) => SortValue::Time(UnixMillis::from_millis_clamped(described.registered_at(row))),
        (Field::Number(NumberField::CpuUsage), _) => number(hot.cpu_percent(row)),
        (Field::Number(NumberField::MemoryUsage), _) => number(hot.memory_percent(row)),
        (Field::Number(NumberField::DiskUsage), _) => number(hot.disk_percent(row)),
        (Field::Number(NumberField::CpuCores), _) => number(none_if_zero(described.cpu_cores(row))),
        (Field::Number(field), _) => subject().number(*field).map_or(SortValue::Missing, SortValue::Number),
        (Field::Metric(name), _) => subject().metric(name).map_or(SortValue::Missing, SortValue::Number),
        // Their columns are the two kinds above.
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
