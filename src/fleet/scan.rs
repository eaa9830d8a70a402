//! One query over all chunks.
use std::sync::Arc;

use super::bitmap::Bitmap;
use super::chunk::Chunk;
use super::evaluate::{Plan, Rows, Scratch};
use super::queries::{QueryFailure, Run};
use super::top::{After, Top};
use super::FleetIndex;
use crate::actors::entry::DeviceEntry;
use crate::query::{Filter, OrderBy, SortValue};

pub use super::top::Place;

/// A page of a list.
pub struct Page {
    /// In order.
    pub places: Vec<Place>,
    /// Whether there are more after them.
    pub has_next: bool,
    /// Devices that match, on all pages.
    pub total: usize,
}

/// Devices that match a filter, in no particular order.
pub struct Selection {
    /// No more than were asked for.
    pub devices: Vec<Arc<DeviceEntry>>,
    /// How many match, those that are not in `devices` included.
    pub total: usize,
}

impl FleetIndex {
    /// The first `size` (1 or more) devices of `order` after the place `after` that match `filter`. Blocks for the
    /// time that it takes: for the threads of [`super::FleetQueries`].
    pub(super) fn page(
        &self,
        filter: &Filter,
        order: &OrderBy,
        after: Option<(Vec<SortValue>, String)>,
        size: usize,
        run: &Run<'_>,
    ) -> Result<Page, QueryFailure> {
        let after = after.map(|(values, id)| After::new(values, id));
        // One more than asked for tells whether there is a next page.
        let mut top = Top::new(order, after.as_ref(), size + 1);
        let mut total = 0;
        self.scan(filter, run, |rows, selected| {
            total += selected.len();
            let columns = top.columns(rows);
            selected.iter().for_each(|row| top.offer(rows, &columns, row));
        })?;
        let mut places = top.finish();
        let has_next = places.len() > size;
        places.truncate(size);
        Ok(Page { places, has_next, total })
    }

    /// Up to `limit` devices that match `filter`, and how many match. Blocks, as [`Self::page`].
    pub(super) fn select(&self, filter: &Filter, limit: usize, run: &Run<'_>) -> Result<Selection, QueryFailure> {
        let mut selection = Selection { devices: Vec::new(), total: 0 };
        self.scan(filter, run, |rows, selected| {
            selection.total += selected.len();
            let left = limit - selection.devices.len();
            let entries = selected.iter().filter_map(|row| rows.described.entry(row));
            selection.devices.extend(entries.take(left).cloned());
        })?;
        Ok(selection)
    }

    pub(super) fn scan(
        &self,
        filter: &Filter,
        run: &Run<'_>,
        mut each: impl FnMut(Rows<'_>, &Bitmap),
    ) -> Result<(), QueryFailure> {
        let chunks: Vec<Arc<Chunk>> = self.0.chunks.read().clone();
        let (plan, mut scratch) = (Plan::of(filter), Scratch::default());
        for (looked_at, chunk) in scattered(&chunks).enumerate() {
            run.check(looked_at, chunks.len())?;
            let described = chunk.described.read();
            let rows = Rows { described: &described, hot: &chunk.hot, moment: &run.moment };
            each(rows, &plan.select(rows, &mut scratch));
        }
        Ok(())
    }
}

/// Every chunk once, in an order that has nothing to do with the order of registration. Without that, a list of the
/// latest devices would find each chunk better than the last, and keep every row for a while.
fn scattered(chunks: &[Arc<Chunk>]) -> impl Iterator<Item = &Arc<Chunk>> {
    let count = chunks.len();
    // Steps of the golden section spread evenly; no common divisor means that none is left out.
    let step = (count * 618 / 1_000).max(1);
    let step = (step..).find(|step| greatest_common_divisor(*step, count) == 1).unwrap_or(1);
    (0..count).map(move |at| &chunks[at * step % count])
}

fn greatest_common_divisor(a: usize, b: usize) -> usize {
    if b == 0 {
        return a;
    }
    greatest_common_divisor(b, a % b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_chunk_is_looked_at_once() {
        for count in 0..50 {
            let chunks: Vec<_> = (0..count).map(|_| Arc::new(Chunk::new())).collect();
            let mut seen: Vec<_> = scattered(&chunks).map(Arc::as_ptr).collect();
            assert_eq!(seen.len(), count);
            seen.sort_unstable();
            seen.dedup();
            assert_eq!(seen.len(), count);
        }
    }
}
