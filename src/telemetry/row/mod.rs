//! What a journal record holds: finished RowBinary rows, encoded once, straight from the decoded message.
//!
//! Pure: no runtime, no ClickHouse. The writer puts `journal_id`, `seq` and `row_index` in front of each row and turns
//! many rows into one block of columns ([`native`]) by the lengths of their values alone.
//!
//! A record is a sequence of sections, one row each:
//!
//! ```text
//! table: u8 | row length: varint | RowBinary of the row's own columns
//! ```
//!
//! Every row begins with `received_at` (Int64, milliseconds), the string its table is ordered by (`device_id`,
//! `deployment_id` or `name`) and `timestamp` (Int64, milliseconds), so that the writer can bound and sort rows of any table.
pub mod binary;
mod column;
pub mod event;
pub mod heartbeat;
pub mod native;
mod section;
mod server_metric;
mod table;

pub use crate::clock::UnixMillis;
pub use column::{Column, ColumnType};
pub use event::{DeploymentEvent, DeviceEvent};
pub use heartbeat::{encode_heartbeat, KnownDevice};
pub use section::{append_section, MalformedRecord, Section, Sections, MAX_ROW_BYTES};
pub use server_metric::ServerMetric;
pub use table::Table;

/// A message that cannot become a row; the field's path is the one the client sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidField {
    #[error("{field} has {count} entries; at most {limit} are taken: send the most important ones, or less often")]
    TooMany { field: &'static str, count: usize, limit: usize },
    #[error("{field} has {bytes} bytes; at most {limit} are taken")]
    TooLong { field: &'static str, bytes: usize, limit: usize },
    #[error("stats.metrics has the name {name:?}; names are 1 to 64 of A-Z a-z 0-9 _ .")]
    MetricName { name: String },
}

impl From<InvalidField> for crate::error::ApiError {
    fn from(invalid: InvalidField) -> Self {
        Self::invalid_argument(invalid.to_string())
    }
}
