//! The tables that rows go to: their number in a record, their name, their columns in the order rows are encoded.
use super::column::{self, Column};

/// A telemetry table. Its number and columns are part of the journal's format, because a journal may still hold rows of
/// an earlier version: never reuse a number; add columns at the end only, which older rows then have at their defaults
/// ([`Table::trailing`]); give a table whose columns change otherwise a new number beside the old.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Table {
    Heartbeats = 1,
    Processes = 2,
    DeviceEvents = 3,
    DeploymentEvents = 4,
    ServerMetrics = 5,
}

impl Table {
    pub const ALL: [Self; 5] =
        [Self::Heartbeats, Self::Processes, Self::DeviceEvents, Self::DeploymentEvents, Self::ServerMetrics];

    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|table| *table as u8 == number)
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::Heartbeats => "heartbeats",
            Self::Processes => "processes",
            Self::DeviceEvents => "device_events",
            Self::DeploymentEvents => "deployment_events",
            Self::ServerMetrics => "server_metrics",
        }
    }

    /// Position in [`Table::ALL`], for counters with one slot a table.
    pub const fn index(self) -> usize {
        self as usize - 1
    }

    /// The columns of a row, in the order of its bytes. The first three are the writer's prefix.
    ///
    /// All tables have `row_index`: the row's ordinal among the rows of its record for that table. Together with
    /// `journal_id` and `seq` it names a row, which is how the writer asks what is there and what is missing.
    pub const fn columns(self) -> &'static [Column] {
        match self {
            Self::Heartbeats => column::HEARTBEATS,
            Self::Processes => column::PROCESSES,
            Self::DeviceEvents => column::DEVICE_EVENTS,
            Self::DeploymentEvents => column::DEPLOYMENT_EVENTS,
            Self::ServerMetrics => column::SERVER_METRICS,
        }
    }

    /// How many of the last columns came later than the table: rows of an earlier version end before them.
    pub const fn trailing(self) -> usize {
        match self {
            // device_type
            Self::Heartbeats => 1,
            Self::Processes | Self::DeviceEvents | Self::DeploymentEvents | Self::ServerMetrics => 0,
        }
    }

    /// The names of [`Self::columns`], as an insert lists them.
    pub fn column_list(self) -> String {
        self.columns().iter().map(|column| column.name).collect::<Vec<_>>().join(", ")
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
