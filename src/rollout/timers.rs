//! When to turn to which place: at most one moment for each, in order. Moments come from the records, so the queue is
//! rebuilt from them after a restart. Only places that work or wait for a retry have one.
use std::collections::{BTreeSet, HashMap};

use super::Place;

#[derive(Clone, Debug, Default)]
pub(super) struct Timers {
    order: BTreeSet<(u64, Place)>,
    due: HashMap<Place, u64>,
}

impl Timers {
    /// Sets, moves or (with `None`) forgets the moment of a place.
    pub fn set(&mut self, place: Place, due: Option<u64>) {
        let before = match due {
            Some(due) => self.due.insert(place, due),
            None => self.due.remove(&place),
        };
        if before == due {
            return;
        }
        if let Some(before) = before {
            self.order.remove(&(before, place));
        }
        if let Some(due) = due {
            self.order.insert((due, place));
        }
    }

    #[cfg(test)]
    pub fn get(&self, place: Place) -> Option<u64> {
        self.due.get(&place).copied()
    }

    pub fn first(&self) -> Option<u64> {
        self.order.first().map(|(due, _)| *due)
    }

    /// The first place that is due, taken out.
    pub fn pop_due(&mut self, watched: u64) -> Option<Place> {
        let &(due, place) = self.order.first()?;
        if due > watched {
            return None;
        }
        self.set(place, None);
        Some(place)
    }
}
