//! The columns of a row as types: what a journal's RowBinary holds at which place.

/// The type of a column, as its table declares it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ColumnType {
    /// Any type whose values all have this many bytes in RowBinary and in Native alike.
    Fixed { name: &'static str, width: usize },
    /// The same, or NULL: a byte before the value says which.
    Nullable { name: &'static str, width: usize },
    /// `String`
    Text,
    /// `LowCardinality(String)`
    Dictionary,
    /// `Map(LowCardinality(String), Float64)`
    Metrics,
}

impl ColumnType {
    /// As ClickHouse spells it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fixed { name, .. } | Self::Nullable { name, .. } => name,
            Self::Text => "String",
            Self::Dictionary => "LowCardinality(String)",
            Self::Metrics => "Map(LowCardinality(String), Float64)",
        }
    }

    /// Appends the type's default (0, NULL, empty) in RowBinary: what a row has in a column that it was written without.
    pub(super) fn put_default(self, row: &mut Vec<u8>) {
        match self {
            Self::Fixed { width, .. } => row.resize(row.len() + width, 0),
            Self::Nullable { .. } => row.push(1),
            // No bytes; no entries.
            Self::Text | Self::Dictionary | Self::Metrics => row.push(0),
        }
    }
}

/// One column of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    pub name: &'static str,
    pub of: ColumnType,
}

const fn fixed(name: &'static str, type_name: &'static str, width: usize) -> Column {
    Column { name, of: ColumnType::Fixed { name: type_name, width } }
}

const fn nullable(name: &'static str, type_name: &'static str, width: usize) -> Column {
    Column { name, of: ColumnType::Nullable { name: type_name, width } }
}

const fn text(name: &'static str) -> Column {
    Column { name, of: ColumnType::Text }
}

const fn dictionary(name: &'static str) -> Column {
    Column { name, of: ColumnType::Dictionary }
}

const fn time(name: &'static str) -> Column {
    fixed(name, "DateTime64(3, 'UTC')", 8)
}

const fn u64(name: &'static str) -> Column {
    fixed(name, "UInt64", 8)
}

const fn u32(name: &'static str) -> Column {
    fixed(name, "UInt32", 4)
}

const fn reading(name: &'static str) -> Column {
    nullable(name, "Nullable(Float64)", 8)
}

const JOURNAL_ID: Column = fixed("journal_id", "UUID", 16);
const SEQ: Column = u64("seq");
const ROW_INDEX: Column = fixed("row_index", "UInt16", 2);

const DEVICE_STATE: &str = "Enum8('UNKNOWN' = 0, 'ONLINE' = 1, 'LATE' = 2, 'OFFLINE' = 3, 'MAINTENANCE' = 4)";
const PROCESS_STATE: &str =
    "Enum8('UNSPECIFIED' = 0, 'RUNNING' = 1, 'SLEEPING' = 2, 'STOPPED' = 3, 'ZOMBIE' = 4, 'FAILED' = 5)";

pub(super) const HEARTBEATS: &[Column] = &[
    JOURNAL_ID,
    SEQ,
    ROW_INDEX,
    time("received_at"),
    text("device_id"),
    time("timestamp"),
    fixed("state", DEVICE_STATE, 1),
    u64("uptime_seconds"),
    time("last_boot"),
    text("boot_id"),
    u32("restart_count"),
    text("message"),
    dictionary("version"),
    reading("cpu_percent"),
    nullable("memory_used_mb", "Nullable(UInt64)", 8),
    reading("disk_used_gb"),
    u64("memory_total_mb"),
    fixed("disk_total_gb", "Float64", 8),
    reading("load_average_1m"),
    reading("load_average_5m"),
    reading("load_average_15m"),
    reading("temperature_celsius"),
    u64("network_rx_bytes"),
    u64("network_tx_bytes"),
    u64("disk_read_bytes"),
    u64("disk_write_bytes"),
    u64("swap_used_mb"),
    reading("battery_percent"),
    nullable("signal_dbm", "Nullable(Int32)", 4),
    Column { name: "metrics", of: ColumnType::Metrics },
    dictionary("device_type"),
];

pub(super) const PROCESSES: &[Column] = &[
    JOURNAL_ID,
    SEQ,
    ROW_INDEX,
    time("received_at"),
    text("device_id"),
    time("timestamp"),
    u32("pid"),
    dictionary("name"),
    fixed("state", PROCESS_STATE, 1),
    reading("cpu_percent"),
    u64("memory_used_mb"),
    u64("uptime_seconds"),
    u32("restart_count"),
    dictionary("version"),
    nullable("exit_code", "Nullable(Int32)", 4),
];

pub(super) const DEVICE_EVENTS: &[Column] = &[
    JOURNAL_ID,
    SEQ,
    ROW_INDEX,
    time("received_at"),
    text("device_id"),
    time("timestamp"),
    dictionary("kind"),
    dictionary("from_state"),
    dictionary("to_state"),
    text("detail"),
];

pub(super) const SERVER_METRICS: &[Column] =
    &[JOURNAL_ID, SEQ, ROW_INDEX, time("received_at"), text("name"), time("timestamp"), fixed("value", "Float64", 8)];

pub(super) const DEPLOYMENT_EVENTS: &[Column] = &[
    JOURNAL_ID,
    SEQ,
    ROW_INDEX,
    time("received_at"),
    text("deployment_id"),
    time("timestamp"),
    text("device_id"),
    text("update_id"),
    dictionary("kind"),
    dictionary("from_state"),
    dictionary("to_state"),
    u32("wave"),
    u32("attempt"),
    text("detail"),
];
