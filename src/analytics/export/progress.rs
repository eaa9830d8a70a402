//! How far an export is, shared between its task and whoever asks.
use std::sync::atomic::{AtomicU64, Ordering};

/// Not known.
const UNKNOWN: u64 = u64::MAX;

/// Percent that are shown as long as the file is not whole.
const MOST_BEFORE_THE_END: f64 = 99.0;

/// Written by the export's task.
#[derive(Debug)]
pub struct Progress {
    /// How many rows there were at the start.
    expected: AtomicU64,
    rows: AtomicU64,
    bytes: AtomicU64,
    /// Millionths of what ClickHouse means to read that it has read.
    read: AtomicU64,
}

/// One look at it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// An estimate while a Parquet file is written, whose rows do not show before its end.
    pub rows: u64,
    pub bytes: u64,
    pub percent: f64,
}

impl Default for Progress {
    fn default() -> Self {
        let zero = || AtomicU64::new(0);
        Self { expected: AtomicU64::new(UNKNOWN), rows: zero(), bytes: zero(), read: zero() }
    }
}

impl Progress {
    pub fn expect(&self, rows: Option<u64>) {
        self.expected.store(rows.unwrap_or(UNKNOWN), Ordering::Relaxed);
    }

    pub fn expected(&self) -> Option<u64> {
        Some(self.expected.load(Ordering::Relaxed)).filter(|rows| *rows != UNKNOWN)
    }

    pub fn wrote(&self, rows: Option<u64>, bytes: u64) {
        if let Some(rows) = rows {
            self.rows.store(rows, Ordering::Relaxed);
        }
        self.bytes.store(bytes, Ordering::Relaxed);
    }

    /// ClickHouse has read so many rows of so many.
    pub fn read(&self, rows: u64, of: u64) {
        if of > 0 {
            let millionths = (rows.min(of) as f64 / of as f64 * 1e6) as u64;
            // What it means to read may grow, and what was done is done.
            self.read.fetch_max(millionths, Ordering::Relaxed);
        }
    }

    pub fn snapshot(&self) -> Snapshot {
        let (rows, bytes) = (self.rows.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed));
        let read = self.read.load(Ordering::Relaxed) as f64 / 1e6;
        let (rows, share) = match self.expected() {
            Some(expected) if rows > 0 => (rows, rows as f64 / expected.max(1) as f64),
            Some(expected) => ((expected as f64 * read) as u64, read),
            None => (rows, read),
        };
        Snapshot { rows, bytes, percent: (100.0 * share).clamp(0.0, MOST_BEFORE_THE_END) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percent_follow_the_rows_and_else_what_was_read() {
        let progress = Progress::default();
        assert_eq!(progress.snapshot(), Snapshot::default());
        progress.read(1, 4);
        assert_eq!(progress.snapshot(), Snapshot { rows: 0, bytes: 0, percent: 25.0 });
        progress.expect(Some(1_000));
        progress.wrote(None, 77);
        assert_eq!(progress.snapshot(), Snapshot { rows: 250, bytes: 77, percent: 25.0 });
        progress.read(1, 8);
        assert_eq!(progress.snapshot().percent, 25.0, "never back");
        progress.wrote(Some(500), 99);
        assert_eq!(progress.snapshot(), Snapshot { rows: 500, bytes: 99, percent: 50.0 });
        progress.wrote(Some(2_000), 99);
        assert_eq!(progress.snapshot().percent, 99.0, "more rows came meanwhile; the end is when the file is whole");
    }
}
