//! The tables that are computed from heartbeats, and how far they are.
//!
//! A journal's numbers are cut into ranges that do not overlap. A builder takes a range once all its rows are in
//! ClickHouse, aggregates them with one INSERT … SELECT, and then moves on what [`Coverage`] says. So at any moment a
//! heartbeat is either in a computed table (its number is covered) or still to be read from `heartbeats`, never both: a
//! reader that takes the covered part from the one and the rest from the other is exact, however late rows came.
pub mod coverage;

pub use coverage::{Coverage, Rollup};
