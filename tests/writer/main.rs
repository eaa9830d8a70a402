//! The writer against a real ClickHouse: the embedded engine, one database a test, and a proxy that lies.
mod arrival;
mod audit;
mod cluster;
mod fixture;
mod gates;
mod native;
mod poison;
mod proxy;
mod recovery;
mod schema;
