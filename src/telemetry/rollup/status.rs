//! What the builder of the computed tables tells operators and tests about itself.
use super::coverage::Rollup;
use crate::telemetry::journal::Seq;

/// A snapshot; counters are since the start.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RollupStatus {
    /// False after a shutdown, and after a panic of its thread.
    pub is_running: bool,
    /// All heartbeats through this number were in ClickHouse when it was asked last.
    pub committed_seq: Seq,
    /// In the order of [`Rollup::ALL`].
    pub tables: [TableStatus; Rollup::ALL.len()],
    /// The last failure and its causes, kept after it was overcome.
    pub last_error: Option<String>,
}

/// One computed table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableStatus {
    pub through_seq: Seq,
    pub audited_seq: Seq,
    /// Numbers of the journal that wait to be built, at most: they may have gaps.
    pub lag_seqs: u64,
    /// Ranges that were built, repairs left out.
    pub ranges: u64,
    /// Ranges that were compared with their heartbeats.
    pub audits: u64,
    /// Ranges that differed from them and were built again.
    pub repairs: u64,
    /// Statements that failed and were tried again.
    pub failures: u64,
}

impl RollupStatus {
    pub fn of(&self, rollup: Rollup) -> &TableStatus {
        &self.tables[rollup as usize]
    }

    pub(super) fn of_mut(&mut self, rollup: Rollup) -> &mut TableStatus {
        &mut self.tables[rollup as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_table_has_a_place_of_its_own() {
        for (at, rollup) in Rollup::ALL.into_iter().enumerate() {
            assert_eq!(rollup as usize, at);
        }
    }
}
