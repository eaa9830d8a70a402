//! The index against a plain model of a fleet, with and without writers beside the reader.
mod checkup;
mod model;
mod oracle;
mod pages;
mod queries;
mod rows;
mod targets;

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::queries::Run;
use super::scan::Page;
use super::FleetIndex;
use crate::actors::entry::DeviceEntry;
use crate::clock::UnixMillis;
use crate::presence::Moment;
use crate::query::{Filter, OrderBy, SortValue};
use model::Model;

const INTERVAL: Duration = Duration::from_secs(60);
/// When queries are asked: long after the start, so that devices can have been silent for long.
const MOMENT: Moment = Moment { now: 1_000_000_000_000_000, began: 0, listening_since: 0, default_interval: INTERVAL };
/// What `-1h` counts from.
const NOW: UnixMillis = UnixMillis::EPOCH;

/// Puts a device into the index as the server does: from its record, then its report.
fn put(index: &FleetIndex, model: &Model) -> Arc<DeviceEntry> {
    let record = &model.record;
    let entry = DeviceEntry::new(record.id.clone(), record.key_hash, record.into());
    let entry = index.insert(entry, &record.into());
    if let Some(report) = &model.report {
        entry.update_live(|live| report.apply(live));
    }
    entry
}

fn page(index: &FleetIndex, filter: &str, order: &str, after: Option<(Vec<SortValue>, String)>, size: usize) -> Page {
    let filter = Filter::parse(filter, NOW).expect("a valid filter");
    let order = OrderBy::parse(order).expect("a valid order");
    let run = Run { moment: MOMENT, until: Instant::now() + Duration::from_secs(60), is_abandoned: &|| false };
    index.page(&filter, &order, after, size, &run).expect("time enough")
}

/// All pages of a list, one after the other: the ids, and the total of each page.
fn walk(index: &FleetIndex, filter: &str, order: &str, size: usize) -> (Vec<String>, Vec<usize>) {
    let (mut ids, mut totals, mut after) = (Vec::new(), Vec::new(), None);
    loop {
        let mut page = page(index, filter, order, after, size);
        assert!(page.places.len() <= size);
        totals.push(page.total);
        ids.extend(page.places.iter().map(|place| place.entry.id.to_string()));
        match page.places.pop() {
            Some(last) if page.has_next => after = Some((last.values, last.entry.id.to_string())),
            _ => return (ids, totals),
        }
    }
}
