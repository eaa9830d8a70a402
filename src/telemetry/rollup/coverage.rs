//! Which heartbeats the computed tables have.
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use tokio::sync::watch;
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
pub struct Coverage(Arc<Known>);

#[derive(Debug, Default)]
struct Known {
    covered: RwLock<BTreeMap<(Rollup, Uuid), Seq>>,
    /// Whether ClickHouse was asked since the start.
    is_loaded: watch::Sender<bool>,
}

impl Coverage {
    /// Waits until it is known what the tables covered before this start, at most for so long; whether it is. Before, nothing
    /// seems covered, and heartbeats that a table has may be dropped already: they would be missing in an answer.
    pub async fn is_loaded(&self, within: Duration) -> bool {
        let mut is_loaded = self.0.is_loaded.subscribe();
        let loaded = tokio::time::timeout(within, is_loaded.wait_for(|is_loaded| *is_loaded)).await;
        // Its end comes with the last handle alone, and here is one.
        matches!(loaded, Ok(Ok(_)))
    }

    /// That ClickHouse was asked.
    pub fn set_loaded(&self) {
        self.0.is_loaded.send_replace(true);
    }

    /// The journals that `rollup` covers, each through a number.
    pub fn of(&self, rollup: Rollup) -> Vec<(Uuid, Seq)> {
        let covered = self.0.covered.read();
        covered
            .iter()
            .filter(|((of, _), _)| *of == rollup)
            .map(|((_, journal), through)| (*journal, *through))
            .collect()
    }

    /// Moves on what `rollup` covers of `journal`; never back.
    pub fn advance(&self, rollup: Rollup, journal: Uuid, through: Seq) {
        let mut covered = self.0.covered.write();
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

    #[tokio::test]
    async fn coverage_is_waited_for_until_it_is_loaded() {
        let coverage = Coverage::default();
        assert!(!coverage.is_loaded(Duration::from_millis(1)).await);
        let (waited, ()) = tokio::join!(coverage.is_loaded(Duration::from_secs(20)), async { coverage.set_loaded() });
        assert!(waited && coverage.is_loaded(Duration::ZERO).await);
    }
}
