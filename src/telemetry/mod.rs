//! Heartbeats and events on their way into ClickHouse: encoded once into a row, held by the journal, written by the
//! writer, checked by its audit.
pub mod analysis;
pub mod clickhouse;
pub mod journal;
pub mod metric;
pub mod rollup;
pub mod row;
pub mod schema;
pub mod writer;
