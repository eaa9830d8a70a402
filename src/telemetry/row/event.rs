//! Events as rows: what happened to a device, and what a deployment did.
//!
//! They take the same way as heartbeats, so an event is in ClickHouse exactly once too. Texts are cut, never refused:
//! these rows come from the server itself, which must not fail on its own words.
use super::binary::{prefix, put_string, put_u32};
use super::heartbeat::{put_key, MAX_TEXT_BYTES};
use super::{append_section, Table, UnixMillis};

/// Bytes kept of an event's detail, which may be a JSON object.
pub const MAX_DETAIL_BYTES: usize = 8_192;

/// One row of `device_events`.
#[derive(Clone, Copy, Debug)]
pub struct DeviceEvent<'a> {
    pub received_at: UnixMillis,
    pub device_id: &'a str,
    pub timestamp: UnixMillis,
    /// Such as `status_change` or `registered`.
    pub kind: &'a str,
    /// Empty where the event is no change of state.
    pub from_state: &'a str,
    pub to_state: &'a str,
    pub detail: &'a str,
}

impl DeviceEvent<'_> {
    pub fn encode(&self, record: &mut Vec<u8>) {
        append_section(record, Table::DeviceEvents, |row| {
            put_key(row, self.received_at, self.device_id, self.timestamp);
            for text in [self.kind, self.from_state, self.to_state] {
                put_string(row, prefix(text, MAX_TEXT_BYTES));
            }
            put_string(row, prefix(self.detail, MAX_DETAIL_BYTES));
        });
    }
}

/// One row of `deployment_events`; `device_id` is empty for what concerns the deployment as a whole.
#[derive(Clone, Copy, Debug)]
pub struct DeploymentEvent<'a> {
    pub received_at: UnixMillis,
    pub deployment_id: &'a str,
    pub timestamp: UnixMillis,
    pub device_id: &'a str,
    pub update_id: &'a str,
    pub kind: &'a str,
    pub from_state: &'a str,
    pub to_state: &'a str,
    pub wave: u32,
    pub attempt: u32,
    pub detail: &'a str,
}

impl DeploymentEvent<'_> {
    pub fn encode(&self, record: &mut Vec<u8>) {
        append_section(record, Table::DeploymentEvents, |row| {
            put_key(row, self.received_at, prefix(self.deployment_id, MAX_TEXT_BYTES), self.timestamp);
            for text in [self.device_id, self.update_id, self.kind, self.from_state, self.to_state] {
                put_string(row, prefix(text, MAX_TEXT_BYTES));
            }
            put_u32(row, self.wave);
            put_u32(row, self.attempt);
            put_string(row, prefix(self.detail, MAX_DETAIL_BYTES));
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::Sections;
    use super::*;

    #[test]
    fn events_of_any_length_become_rows_that_read_back() {
        let text = "x".repeat(1 << 20);
        let mut record = Vec::new();
        let at = UnixMillis::from_millis_clamped(9);
        DeviceEvent {
            received_at: at,
            device_id: "rpi-001",
            timestamp: at,
            kind: &text,
            from_state: "ONLINE",
            to_state: "LATE",
            detail: &text,
        }
        .encode(&mut record);
        DeploymentEvent {
            received_at: at,
            deployment_id: &text,
            timestamp: at,
            device_id: "",
            update_id: "u",
            kind: "wave_started",
            from_state: "",
            to_state: "",
            wave: 1,
            attempt: 0,
            detail: "",
        }
        .encode(&mut record);
        let rows: Vec<_> = Sections::of(&record).collect::<Result<_, _>>().expect("well formed");
        assert_eq!([rows[0].table, rows[1].table], [Table::DeviceEvents, Table::DeploymentEvents]);
        assert_eq!((rows[0].key, rows[1].key.len()), (&b"rpi-001"[..], MAX_TEXT_BYTES));
        assert!(record.len() < 16_384);
    }
}
