//! Which tables answer a question, and which part of the time from each.
//!
//! The coarsest table that gives the exact answer is read: rollups hold whole minutes or hours, so the start and the
//! interval must be whole ones too, and they know a device's type and version but not the device, or the device but not
//! its type. What a rollup does not cover yet, and the end of the time where it is in the middle of a window, is read from
//! the rows. So is what no rollup can tell.
use std::collections::BTreeMap;

use uuid::Uuid;

use super::question::{HOUR, MINUTE};
use super::span::Span;
use crate::telemetry::journal::Seq;
use crate::telemetry::rollup::{Coverage, Rollup};

/// The table that every other is computed from.
const HEARTBEATS: &str = "heartbeats";

/// What a table must know to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// Devices one by one: a set of them, or a series for each.
    pub devices: bool,
    /// Types and versions at the time of the report.
    pub kinds: bool,
    pub quantile: bool,
    /// A metric of the fleet's own.
    pub custom: bool,
}

/// A part of the time, read from one table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Milliseconds; included.
    pub from: i64,
    /// Not included; after `from`.
    pub to: i64,
    pub rows: Rows,
}

/// Which rows of which table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rows {
    /// All rows of `heartbeats`.
    Heartbeats,
    /// Rows of `heartbeats` that no computed table has: of a journal those from its number on, and all of journals that are
    /// not named.
    Rest(Vec<(Uuid, Seq)>),
    /// Rows of a computed table.
    Computed(Rollup, Vec<Covered>),
}

/// What is read of a journal: the ranges from `from_seq` on, through `through_seq`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Covered {
    pub journal: Uuid,
    pub from_seq: Seq,
    pub through_seq: Seq,
}

/// Where an answer comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// By time and table; no row of a device is in two of them.
    pub pieces: Vec<Piece>,
}

impl Plan {
    /// Chooses the tables for a gauge.
    pub fn of(needs: Needs, span: &Span, coverage: &Coverage) -> Self {
        let tables: &[(Rollup, i64)] = match needs {
            Needs { devices: false, .. } => &[(Rollup::Hours, HOUR), (Rollup::Minutes, MINUTE)],
            Needs { kinds: false, quantile: false, custom: false, .. } => &[(Rollup::DeviceHours, HOUR)],
            _ => &[],
        };
        let (start, end) = (span.start.as_millis(), span.end.as_millis());
        let is_whole = |window: i64| start.rem_euclid(window) == 0 && span.interval % window == 0;
        // Coarse tables before finer ones, so what is covered by the time that a table ends is never before.
        let usable: Vec<Usable> = tables
            .iter()
            .filter(|(_, window)| is_whole(*window))
            .map(|(rollup, window)| Usable {
                rollup: *rollup,
                to: end - end.rem_euclid(*window),
                covered: coverage.of(*rollup),
            })
            .filter(|table| table.to > start && !table.covered.is_empty())
            .collect();
        let mut pieces = Vec::new();
        let mut from = start;
        for (at, table) in usable.iter().enumerate() {
            pieces.extend(region(from, table.to, &usable[at..]));
            from = from.max(table.to);
        }
        pieces.push(Piece { from, to: end, rows: Rows::Heartbeats });
        pieces.retain(|piece| piece.from < piece.to);
        Self { pieces: joined(pieces) }
    }

    /// All from the rows.
    pub fn of_rows(span: &Span) -> Self {
        let (from, to) = (span.start.as_millis(), span.end.as_millis());
        Self { pieces: vec![Piece { from, to, rows: Rows::Heartbeats }] }
    }

    /// The name of the coarsest table that is read.
    pub fn source(&self) -> &'static str {
        let computed = self.pieces.iter().find_map(|piece| match &piece.rows {
            Rows::Computed(rollup, _) => Some(rollup.table()),
            Rows::Heartbeats | Rows::Rest(_) => None,
        });
        computed.unwrap_or(HEARTBEATS)
    }
}

/// A computed table that can serve a part of the time.
struct Usable {
    rollup: Rollup,
    /// The end of the last whole window.
    to: i64,
    covered: Vec<(Uuid, Seq)>,
}

/// A part of the time from `tables`, the coarsest first: from each what those before it lack, and the rest from the rows.
fn region(from: i64, to: i64, tables: &[Usable]) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut had = BTreeMap::<Uuid, Seq>::new();
    for table in tables {
        let mut ranges = Vec::new();
        for (journal, through_seq) in &table.covered {
            let from_seq = had.get(journal).map_or(0, |through| through + 1);
            if from_seq <= *through_seq {
                ranges.push(Covered { journal: *journal, from_seq, through_seq: *through_seq });
                had.insert(*journal, *through_seq);
            }
        }
        if !ranges.is_empty() {
            pieces.push(Piece { from, to, rows: Rows::Computed(table.rollup, ranges) });
        }
    }
    let rest = had.into_iter().map(|(journal, through)| (journal, through + 1)).collect();
    pieces.push(Piece { from, to, rows: Rows::Rest(rest) });
    pieces
}

/// Neighbours that read the same rows become one.
fn joined(pieces: Vec<Piece>) -> Vec<Piece> {
    let mut joined: Vec<Piece> = Vec::new();
    for piece in pieces {
        match joined.iter_mut().find(|known| known.to == piece.from && known.rows == piece.rows) {
            Some(known) => known.to = piece.to,
            None => joined.push(piece),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::UnixMillis;

    const J: Uuid = Uuid::from_u128(1);
    const K: Uuid = Uuid::from_u128(2);
    const KINDS: Needs = Needs { devices: false, kinds: true, quantile: true, custom: true };
    const DEVICES: Needs = Needs { devices: true, kinds: false, quantile: false, custom: false };

    fn span(start: i64, end: i64, interval: i64) -> Span {
        let at = UnixMillis::from_millis_clamped;
        Span { start: at(start), end: at(end), interval }
    }

    fn covering(covered: &[(Rollup, Uuid, Seq)]) -> Coverage {
        let coverage = Coverage::default();
        covered.iter().for_each(|(rollup, journal, through)| coverage.advance(*rollup, *journal, *through));
        coverage
    }

    fn all_of(rollup: Rollup, journal: Uuid, from_seq: Seq, through_seq: Seq) -> Rows {
        Rows::Computed(rollup, vec![Covered { journal, from_seq, through_seq }])
    }

    fn piece(from: i64, to: i64, rows: Rows) -> Piece {
        Piece { from, to, rows }
    }

    #[test]
    fn whole_hours_come_from_hours_then_minutes_then_rows() {
        let coverage = covering(&[(Rollup::Hours, J, 10), (Rollup::Minutes, J, 20)]);
        let end = 3 * HOUR + 5 * MINUTE + 7;
        let plan = Plan::of(KINDS, &span(HOUR, end, HOUR), &coverage);
        let (h, m) = (3 * HOUR, 3 * HOUR + 5 * MINUTE);
        assert_eq!(
            plan.pieces,
            [
                piece(HOUR, h, all_of(Rollup::Hours, J, 0, 10)),
                piece(HOUR, h, all_of(Rollup::Minutes, J, 11, 20)),
                piece(HOUR, m, Rows::Rest(vec![(J, 21)])),
                piece(h, m, all_of(Rollup::Minutes, J, 0, 20)),
                piece(m, end, Rows::Heartbeats),
            ]
        );
        assert_eq!(plan.source(), "rollup_1h");
    }

    #[test]
    fn a_finer_table_that_is_behind_a_coarser_one_is_asked_for_nothing_twice() {
        let coverage = covering(&[(Rollup::Hours, J, 20), (Rollup::Minutes, J, 10), (Rollup::Minutes, K, 5)]);
        let end = 2 * HOUR + MINUTE;
        let plan = Plan::of(KINDS, &span(HOUR, end, HOUR), &coverage);
        let minutes =
            [J, K].map(|journal| Covered { journal, from_seq: 0, through_seq: if journal == J { 10 } else { 5 } });
        assert_eq!(
            plan.pieces,
            [
                piece(HOUR, 2 * HOUR, all_of(Rollup::Hours, J, 0, 20)),
                piece(HOUR, 2 * HOUR, all_of(Rollup::Minutes, K, 0, 5)),
                piece(HOUR, 2 * HOUR, Rows::Rest(vec![(J, 21), (K, 6)])),
                piece(2 * HOUR, end, Rows::Computed(Rollup::Minutes, minutes.into())),
                piece(2 * HOUR, end, Rows::Rest(vec![(J, 11), (K, 6)])),
            ]
        );
    }

    #[test]
    fn what_a_rollup_cannot_tell_is_read_from_the_rows() {
        let coverage = covering(&Rollup::ALL.map(|rollup| (rollup, J, 10)));
        let rows = |needs, span: &Span| Plan::of(needs, span, &coverage).source();
        let (hours, minutes, seconds) =
            (span(0, 5 * HOUR, HOUR), span(30 * MINUTE, 5 * HOUR, 15 * MINUTE), span(0, HOUR, 90_000));
        assert_eq!(
            [&hours, &minutes, &seconds].map(|span| rows(KINDS, span)),
            ["rollup_1h", "rollup_1m", "heartbeats"]
        );
        assert_eq!(rows(KINDS, &span(1, 5 * HOUR, HOUR)), "heartbeats", "no window begins with the span");
        assert_eq!(rows(KINDS, &span(-HOUR, 5 * HOUR, HOUR)), "rollup_1h");
        assert_eq!([&hours, &minutes].map(|span| rows(DEVICES, span)), ["device_1h", "heartbeats"]);
        for needs in
            [Needs { quantile: true, ..DEVICES }, Needs { custom: true, ..DEVICES }, Needs { kinds: true, ..DEVICES }]
        {
            assert_eq!(rows(needs, &hours), "heartbeats", "{needs:?}");
        }
        assert_eq!(rows(KINDS, &span(0, MINUTE, HOUR)), "rollup_1m", "no hour is whole");
        assert_eq!(Plan::of(KINDS, &hours, &Coverage::default()).source(), "heartbeats", "nothing is covered");
        assert_eq!(Plan::of(KINDS, &hours, &covering(&[(Rollup::Minutes, J, 1)])).source(), "rollup_1m");
    }

    /// Every heartbeat of a window must be in one piece, whatever is covered.
    #[test]
    fn every_heartbeat_is_read_once() {
        let spans = [span(0, 3 * HOUR + 61_001, HOUR), span(0, 3 * HOUR, HOUR), span(0, 2 * HOUR, MINUTE)];
        for covered in 0..3_u64.pow(4) {
            // 0 is not covered at all.
            let through = |place: u32| covered / 3_u64.pow(place) % 3 * 5;
            let all = [(Rollup::Hours, J), (Rollup::Hours, K), (Rollup::Minutes, J), (Rollup::Minutes, K)];
            let known: Vec<_> =
                (0..).zip(all).map(|(place, (rollup, journal))| (rollup, journal, through(place))).collect();
            let coverage = covering(&known.into_iter().filter(|(_, _, through)| *through > 0).collect::<Vec<_>>());
            for span in &spans {
                let plan = Plan::of(KINDS, span, &coverage);
                for (journal, seq) in [J, K, Uuid::from_u128(3)].into_iter().flat_map(|j| (1..=12).map(move |s| (j, s)))
                {
                    for at in [0, HOUR + 30_000, span.end.as_millis() - 1] {
                        let holds =
                            |piece: &&Piece| (piece.from..piece.to).contains(&at) && piece.rows.has(journal, seq);
                        let times = plan.pieces.iter().filter(holds).count();
                        assert_eq!(times, 1, "{journal} {seq} at {at} of {plan:?}");
                    }
                }
            }
        }
    }

    impl Rows {
        fn has(&self, journal: Uuid, seq: Seq) -> bool {
            match self {
                Self::Heartbeats => true,
                Self::Rest(rest) => rest.iter().all(|(known, from)| *known != journal || seq >= *from),
                Self::Computed(_, ranges) => ranges
                    .iter()
                    .any(|range| range.journal == journal && (range.from_seq..=range.through_seq).contains(&seq)),
            }
        }
    }
}
