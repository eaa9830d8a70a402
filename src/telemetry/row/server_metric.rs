//! A reading of the server itself as a row of `server_metrics`.
use super::binary::{prefix, put_f64};
use super::heartbeat::{put_key, MAX_TEXT_BYTES};
use super::{append_section, Table, UnixMillis};

/// One row of `server_metrics`.
#[derive(Clone, Copy, Debug)]
pub struct ServerMetric<'a> {
    pub received_at: UnixMillis,
    /// With its labels, as Prometheus prints them: `fleetd_heartbeats_total{outcome="acked"}`.
    pub name: &'a str,
    pub timestamp: UnixMillis,
    /// Finite.
    pub value: f64,
}

impl ServerMetric<'_> {
    pub fn encode(&self, record: &mut Vec<u8>) {
        append_section(record, Table::ServerMetrics, |row| {
            put_key(row, self.received_at, prefix(self.name, MAX_TEXT_BYTES), self.timestamp);
            put_f64(row, self.value);
        });
    }
}
