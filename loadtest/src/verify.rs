//! The audit: every acknowledged heartbeat is in ClickHouse exactly once.
//!
//! Ledger and table are walked side by side in the same order (device id, timestamp), a slice of devices a query, so
//! that neither side ever holds more than a slice, and each difference is found as the heartbeat that it is, not as a
//! total in which a lost one and a doubled one cancel out.
use std::cmp::Ordering;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::clickhouse::{bad_row, ClickHouse, Rows};
use crate::error::LoadError;
use crate::ledger::{Entry, Ledger, Trail};

/// Heartbeats that one query is expected to return, some 25 MB of text: bounds what ClickHouse sorts at a time.
const HEARTBEATS_PER_QUERY: u64 = 1_000_000;

/// How many differences are named in the verdict.
const MAX_EXAMPLES: usize = 10;

/// First wait before ClickHouse is asked again whether all is there; doubled up to a second.
const POLL_MIN: Duration = Duration::from_millis(50);
const POLL_MAX: Duration = Duration::from_secs(1);

/// After all is there, the number of rows must stand still for so long before doubles are looked for: the writer's
/// batches wait up to a second, and one sent twice would arrive in the next.
const SETTLE: Duration = Duration::from_millis(1500);

const RANGE: &str = "device_id >= {first:String} AND device_id <= {last:String} \
    AND timestamp >= fromUnixTimestamp64Milli({from_ms:Int64}) AND timestamp <= fromUnixTimestamp64Milli({to_ms:Int64})";

/// What the audit found. Only `acknowledged == present` with nothing missing, doubled or unexpected is clean.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// Heartbeats that the server acknowledged.
    pub acknowledged: u64,
    /// Acknowledged heartbeats that are there, each counted once.
    pub present: u64,
    /// Acknowledged heartbeats that are not there.
    pub missing: u64,
    /// Heartbeats, acknowledged or not, that are there more than once.
    pub doubled: u64,
    /// Heartbeats that were sent and whose answer never came. The generator never sends a heartbeat again (its next has
    /// a new timestamp), so these may be there once or not at all.
    pub unknown_outcome: u64,
    /// Those of them that are there.
    pub unknown_present: u64,
    /// Rows of these devices, between the first and the last heartbeat of each, that were never sent or were refused.
    pub unexpected: u64,
    /// The first differences, for people.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub examples: Vec<String>,
}

impl Verdict {
    pub fn is_clean(&self) -> bool {
        self.missing == 0 && self.doubled == 0 && self.unexpected == 0 && self.present == self.acknowledged
    }

    fn note(&mut self, device: &str, timestamp_ms: i64, what: &str) {
        if self.examples.len() < MAX_EXAMPLES {
            self.examples.push(format!("{device} at {timestamp_ms} ms: {what}"));
        }
    }
}

/// Waits until the acknowledged heartbeats are visible, at most `patience`, then compares them one by one.
///
/// An error says that the audit could not be made; what it found, good or bad, is in the verdict.
pub async fn verify(ledger: &Ledger<'_>, clickhouse: &ClickHouse, patience: Duration) -> Result<Verdict, LoadError> {
    let deadline = Instant::now() + patience;
    let mut poll = POLL_MIN;
    let mut pause = async || {
        tokio::time::sleep(poll).await;
        poll = (poll * 2).min(POLL_MAX);
    };
    loop {
        // Cheap first: as long as rows are too few, something must be missing.
        while count(ledger, clickhouse).await? < ledger.acknowledged() && Instant::now() < deadline {
            pause().await;
        }
        // A batch that is sent twice shows up late.
        let mut before = count(ledger, clickhouse).await?;
        loop {
            tokio::time::sleep(SETTLE.min(patience)).await;
            let now = count(ledger, clickhouse).await?;
            if now == before || Instant::now() >= deadline {
                break;
            }
            before = now;
        }
        let verdict = compare(ledger, clickhouse).await?;
        // Rows of unknown outcome can make up the number while acknowledged ones are still on their way.
        if verdict.missing == 0 || Instant::now() >= deadline {
            return Ok(verdict);
        }
        pause().await;
    }
}

/// A run of devices that one query covers.
struct Slice<'l, 'a> {
    trails: &'l [(&'a str, &'a Trail)],
    first_ms: i64,
    last_ms: i64,
}

impl Slice<'_, '_> {
    async fn select(&self, clickhouse: &ClickHouse, sql: &str) -> Result<Rows, LoadError> {
        let id = |trail: Option<&(&str, &Trail)>| trail.map_or(String::new(), |(id, _)| (*id).to_owned());
        let (first, last) = (id(self.trails.first()), id(self.trails.last()));
        let (from, to) = (self.first_ms.to_string(), self.last_ms.to_string());
        clickhouse.select(sql, &[("first", &first), ("last", &last), ("from_ms", &from), ("to_ms", &to)]).await
    }
}

fn slices<'l, 'a>(ledger: &'l Ledger<'a>, heartbeats_per_slice: u64) -> Vec<Slice<'l, 'a>> {
    let mut slices = Vec::new();
    let mut rest = ledger.trails();
    while !rest.is_empty() {
        let mut heartbeats = 0;
        let fitting = rest.iter().take_while(|(_, trail)| {
            heartbeats += trail.len();
            heartbeats <= heartbeats_per_slice
        });
        let taken = fitting.count().max(1);
        let trails = &rest[..taken];
        let firsts = trails.iter().filter_map(|(_, trail)| trail.entries().next());
        let first_ms = firsts.map(|entry| entry.timestamp_ms).min().unwrap_or(0);
        let last_ms = trails.iter().map(|(_, trail)| trail.last_ms()).max().unwrap_or(0);
        slices.push(Slice { trails, first_ms, last_ms });
        rest = &rest[taken..];
    }
    slices
}

async fn count(ledger: &Ledger<'_>, clickhouse: &ClickHouse) -> Result<u64, LoadError> {
    let sql = format!("SELECT count() FROM heartbeats WHERE {RANGE} FORMAT TabSeparated");
    let mut total = 0;
    // One slice over all: a count sorts nothing.
    for slice in slices(ledger, u64::MAX) {
        let mut rows = slice.select(clickhouse, &sql).await?;
        while let Some(row) = rows.next().await? {
            let count = std::str::from_utf8(&row).ok().and_then(|text| text.parse::<u64>().ok());
            total += count.ok_or_else(|| bad_row(&row))?;
        }
    }
    Ok(total)
}

async fn compare(ledger: &Ledger<'_>, clickhouse: &ClickHouse) -> Result<Verdict, LoadError> {
    let sql = format!(
        "SELECT device_id, toUnixTimestamp64Milli(timestamp) AS ms FROM heartbeats WHERE {RANGE} \
         ORDER BY device_id, ms FORMAT TabSeparated"
    );
    let mut verdict =
        Verdict { acknowledged: ledger.acknowledged(), unknown_outcome: ledger.unknown(), ..Verdict::default() };
    for slice in slices(ledger, HEARTBEATS_PER_QUERY) {
        let mut rows = slice.select(clickhouse, &sql).await?;
        let mut audit = Audit::new(slice.trails, &mut verdict);
        while let Some(row) = rows.next().await? {
            let (id, ms) = parse(&row).ok_or_else(|| bad_row(&row))?;
            audit.row(id, ms);
        }
        audit.finish();
    }
    Ok(verdict)
}

fn parse(row: &[u8]) -> Option<(&str, i64)> {
    let (id, ms) = std::str::from_utf8(row).ok()?.split_once('\t')?;
    Some((id, ms.parse().ok()?))
}

/// The merge of a slice's trails with its sorted rows; pure, and fed one row at a time.
struct Audit<'v, 'l, 'a> {
    verdict: &'v mut Verdict,
    devices: std::slice::Iter<'l, (&'a str, &'a Trail)>,
    device: Option<Cursor<'a>>,
}

/// Where the merge stands in one device's trail.
struct Cursor<'a> {
    id: &'a str,
    entries: Box<dyn Iterator<Item = Entry> + 'a>,
    /// The next heartbeat without a row yet.
    next: Option<Entry>,
    first_ms: i64,
    last_ms: i64,
    /// The heartbeat that the last row was of, and how many rows it has.
    current: Option<(i64, u64)>,
}

impl<'a> Cursor<'a> {
    fn new(id: &'a str, trail: &'a Trail) -> Self {
        let mut entries: Box<dyn Iterator<Item = Entry> + 'a> = Box::new(trail.entries());
        let next = entries.next();
        let first_ms = next.map_or(0, |entry| entry.timestamp_ms);
        Self { id, entries, next, first_ms, last_ms: trail.last_ms(), current: None }
    }

    /// Passes over heartbeats before `until_ms` that have no row.
    fn skip_until(&mut self, until_ms: i64, verdict: &mut Verdict) {
        while let Some(entry) = self.next.filter(|entry| entry.timestamp_ms < until_ms) {
            if entry.acknowledged {
                verdict.missing += 1;
                verdict.note(self.id, entry.timestamp_ms, "acknowledged and missing");
            }
            self.next = self.entries.next();
        }
    }

    fn row(&mut self, ms: i64, verdict: &mut Verdict) {
        // The slice's range may be wider than this device's own: what was there before this ledger is not its business.
        if ms < self.first_ms || ms > self.last_ms {
            return;
        }
        if let Some((current, rows)) = self.current.as_mut().filter(|(current, _)| *current == ms) {
            *rows += 1;
            if *rows == 2 {
                verdict.doubled += 1;
                verdict.note(self.id, *current, "there more than once");
            }
            return;
        }
        self.skip_until(ms, verdict);
        match self.next.filter(|entry| entry.timestamp_ms == ms) {
            Some(entry) => {
                *(if entry.acknowledged { &mut verdict.present } else { &mut verdict.unknown_present }) += 1;
                self.next = self.entries.next();
                self.current = Some((ms, 1));
            }
            None => {
                verdict.unexpected += 1;
                verdict.note(self.id, ms, "there and never sent, or refused");
            }
        }
    }
}

impl<'v, 'l, 'a> Audit<'v, 'l, 'a> {
    fn new(trails: &'l [(&'a str, &'a Trail)], verdict: &'v mut Verdict) -> Self {
        let mut devices = trails.iter();
        let device = devices.next().map(|(id, trail)| Cursor::new(id, trail));
        Self { verdict, devices, device }
    }

    /// Takes the next row; rows come ordered by device id and timestamp.
    fn row(&mut self, id: &str, ms: i64) {
        while let Some(cursor) = &mut self.device {
            match cursor.id.cmp(id) {
                Ordering::Less => self.next_device(),
                Ordering::Equal => return cursor.row(ms, self.verdict),
                // A device that is not of this ledger.
                Ordering::Greater => return,
            }
        }
    }

    fn next_device(&mut self) {
        if let Some(cursor) = &mut self.device {
            cursor.skip_until(i64::MAX, self.verdict);
        }
        self.device = self.devices.next().map(|(id, trail)| Cursor::new(id, trail));
    }

    fn finish(mut self) {
        while self.device.is_some() {
            self.next_device();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trail(entries: &[(i64, bool)]) -> Trail {
        let mut trail = Trail::default();
        for (timestamp_ms, acknowledged) in entries {
            trail.push(Entry { timestamp_ms: *timestamp_ms, acknowledged: *acknowledged });
        }
        trail
    }

    fn audit(fleet: &[(&str, &[(i64, bool)])], rows: &[(&str, i64)]) -> Verdict {
        let trails: Vec<_> = fleet.iter().map(|(id, entries)| (*id, trail(entries))).collect();
        let ledger = Ledger::new(trails.iter().map(|(id, trail)| (*id, trail)));
        let mut verdict =
            Verdict { acknowledged: ledger.acknowledged(), unknown_outcome: ledger.unknown(), ..Verdict::default() };
        for slice in slices(&ledger, u64::MAX) {
            let mut audit = Audit::new(slice.trails, &mut verdict);
            rows.iter().for_each(|(id, ms)| audit.row(id, *ms));
            audit.finish();
        }
        verdict
    }

    #[test]
    fn a_fleet_whose_heartbeats_are_all_there_once_is_clean() {
        let verdict = audit(
            &[("a", &[(1, true), (2, true)]), ("b", &[(1, true)]), ("silent", &[])],
            &[("a", 1), ("a", 2), ("b", 1)],
        );
        assert!(verdict.is_clean(), "{verdict:?}");
        assert_eq!((verdict.acknowledged, verdict.present), (3, 3));
    }

    #[test]
    fn a_lost_and_a_doubled_heartbeat_do_not_cancel_out() {
        let verdict = audit(&[("a", &[(1, true), (2, true), (3, true)])], &[("a", 1), ("a", 1), ("a", 3)]);
        assert_eq!((verdict.present, verdict.missing, verdict.doubled), (2, 1, 1));
        assert!(!verdict.is_clean());
        assert_eq!(verdict.examples, ["a at 1 ms: there more than once", "a at 2 ms: acknowledged and missing"]);
    }

    #[test]
    fn a_whole_device_can_be_missing_at_the_start_in_the_middle_and_at_the_end() {
        let one: &[(i64, bool)] = &[(5, true)];
        for gone in ["a", "b", "c"] {
            let rows: Vec<_> = ["a", "b", "c"].into_iter().filter(|id| *id != gone).map(|id| (id, 5)).collect();
            let verdict = audit(&[("a", one), ("b", one), ("c", one)], &rows);
            assert_eq!((verdict.present, verdict.missing), (2, 1), "{gone}");
        }
        assert_eq!(audit(&[("a", one)], &[]).missing, 1);
    }

    #[test]
    fn an_unknown_outcome_may_be_there_or_not_but_not_twice() {
        let sent: &[(i64, bool)] = &[(1, true), (2, false), (3, false), (4, true)];
        let verdict = audit(&[("a", sent)], &[("a", 1), ("a", 3), ("a", 4)]);
        assert!(verdict.is_clean(), "{verdict:?}");
        assert_eq!((verdict.unknown_outcome, verdict.unknown_present), (2, 1));
        let verdict = audit(&[("a", sent)], &[("a", 1), ("a", 2), ("a", 2), ("a", 4)]);
        assert_eq!(verdict.doubled, 1);
    }

    #[test]
    fn three_copies_are_one_doubled_heartbeat() {
        assert_eq!(audit(&[("a", &[(1, true)])], &[("a", 1), ("a", 1), ("a", 1)]).doubled, 1);
    }

    #[test]
    fn rows_that_were_never_sent_are_told_and_those_of_others_or_of_earlier_runs_are_not() {
        let verdict = audit(
            &[("b", &[(10, true), (20, true)])],
            &[("a", 10), ("b", 1), ("b", 10), ("b", 15), ("b", 15), ("b", 20), ("b", 30), ("c", 10)],
        );
        assert_eq!((verdict.present, verdict.missing, verdict.unexpected), (2, 0, 2));
        assert!(!verdict.is_clean());
    }

    #[test]
    fn slices_cover_every_device_once_and_stay_below_their_bound() {
        let trails: Vec<_> = (0..10).map(|n| (format!("d{n}"), trail(&[(1, true), (2 + n, true)]))).collect();
        let ledger = Ledger::new(trails.iter().map(|(id, trail)| (id.as_str(), trail)));
        let cut = slices(&ledger, 5);
        assert_eq!(cut.iter().map(|slice| slice.trails.len()).collect::<Vec<_>>(), [2, 2, 2, 2, 2]);
        assert_eq!((cut[4].first_ms, cut[4].last_ms), (1, 11));
        assert_eq!(slices(&ledger, 1).len(), 10, "a device that is larger than a slice has one of its own");
    }
}
