//! Telemetry: the way of a heartbeat from its acknowledgement to ClickHouse.
pub mod journal;
