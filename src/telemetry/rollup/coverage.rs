//! Which heartbeats the computed tables have.
use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::RwLock;
use uuid::Uuid;

use crate::telemetry::journal::Seq;

/// A computed table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rollup {
    /// `rollup_1m`
    Minutes,
    /// `rollup_1h`
    Hours,
    /// `device_1h`
    DeviceHours,
    /// `device_latest`
    Latest,
}

impl Rollup {
    pub const ALL: [Self; 4] = [Self::Minutes, Self::Hours, Self::DeviceHours, Self::Latest];

    /// The table's name, which is also its name in `rollup_progress`.
    pub const fn table(self) -> &'static str {
        match self {
            Self::Minutes => "rollup_1m",
            Self::Hours => "rollup_1h",
            Self::DeviceHours => "device_1h",
            Self::Latest => "device_latest",
        }
    }
}

/// What each table covers, by journal: all heartbeats through a number. A journal that is not named is not covered at
/// all. Cheap to clone; the builder writes it, questions read it.
#[derive(Clone, Debug, Default)]
pub struct Coverage(Arc<RwLock<BTreeMap<(Rollup, Uuid), Seq>>>);

impl Coverage {
    /// The journals that `rollup` covers, each through a number.
    pub fn of(&self, rollup: Rollup) -> Vec<(Uuid, Seq)> {
        let covered = self.0.read();
        covered
            .iter()
            .filter(|((of, _), _)| *of == rollup)
            .map(|((_, journal), through)| (*journal, *through))
            .collect()
    }

    /// Moves on what `rollup` covers of `journal`; never back.
    pub fn advance(&self, rollup: Rollup, journal: Uuid, through: Seq) {
        let mut covered = self.0.write();
        let known = covered.entry((rollup, journal)).or_insert(through);
        *known = (*known).max(through);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coverage_never_goes_back_and_is_of_one_table() {
        let coverage = Coverage::default();
        let journal = Uuid::from_u128(1);
        coverage.advance(Rollup::Minutes, journal, 10);
        coverage.advance(Rollup::Minutes, journal, 5);
        assert_eq!(coverage.of(Rollup::Minutes), [(journal, 10)]);
        assert_eq!(coverage.of(Rollup::Hours), []);
    }
}
