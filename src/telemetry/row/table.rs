//! The tables that rows go to: their number in a record, their name, their columns in the order rows are encoded.

/// A telemetry table. The number is part of the journal's format: never reuse one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Table {
    Heartbeats = 1,
    Processes = 2,
    DeviceEvents = 3,
    DeploymentEvents = 4,
}

impl Table {
    pub const ALL: [Self; 4] = [Self::Heartbeats, Self::Processes, Self::DeviceEvents, Self::DeploymentEvents];

    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|table| *table as u8 == number)
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::Heartbeats => "heartbeats",
            Self::Processes => "processes",
            Self::DeviceEvents => "device_events",
            Self::DeploymentEvents => "deployment_events",
        }
    }

    /// Position in [`Table::ALL`], for counters with one slot a table.
    pub const fn index(self) -> usize {
        self as usize - 1
    }

    /// The columns of an insert, in the order of the row's bytes. The first three are the writer's prefix.
    ///
    /// All tables have `row_index`: the row's ordinal among the rows of its record for that table. Together with
    /// `journal_id` and `seq` it names a row, which is how the writer asks what is there and what is missing.
    pub const fn columns(self) -> &'static str {
        match self {
            Self::Heartbeats => {
                "journal_id, seq, row_index, received_at, device_id, timestamp, state, uptime_seconds, last_boot, \
                 boot_id, restart_count, message, version, cpu_percent, memory_used_mb, disk_used_gb, \
                 memory_total_mb, disk_total_gb, load_average_1m, load_average_5m, load_average_15m, \
                 temperature_celsius, network_rx_bytes, network_tx_bytes, disk_read_bytes, disk_write_bytes, \
                 swap_used_mb, battery_percent, signal_dbm, metrics"
            }
            Self::Processes => {
                "journal_id, seq, row_index, received_at, device_id, timestamp, pid, name, state, cpu_percent, \
                 memory_used_mb, uptime_seconds, restart_count, version, exit_code"
            }
            Self::DeviceEvents => {
                "journal_id, seq, row_index, received_at, device_id, timestamp, kind, from_state, to_state, detail"
            }
            Self::DeploymentEvents => {
                "journal_id, seq, row_index, received_at, deployment_id, timestamp, device_id, update_id, kind, \
                 from_state, to_state, wave, attempt, detail"
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tables_number_leads_back_to_it_and_other_numbers_lead_nowhere() {
        for table in Table::ALL {
            assert_eq!(Table::from_number(table as u8), Some(table));
            assert_eq!(Table::ALL[table.index()], table);
        }
        assert_eq!(Table::from_number(0), None);
        assert_eq!(Table::from_number(255), None);
    }
}
