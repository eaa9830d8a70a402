//! Questions to the telemetry: metrics over time, health, exports.
//!
//! Every question goes through [`AnalystPool`], which bounds how many run at once and what each may cost, so that an
//! analyst never takes from ingest what ingest needs. Values reach ClickHouse as bound parameters; names of columns,
//! metrics and aggregations are constants of this crate that a request can only choose among.
pub mod counters;
pub mod device_set;
pub mod export;
pub mod health;
pub mod metrics;
pub mod online;
pub mod pacing;
pub mod pool;
pub mod question;
pub mod room;
pub mod series;
mod silence;
pub mod source;
pub mod span;
pub mod sql;

pub use device_set::{Choice, DeviceSet, StagedSet};
pub use online::OnlineCounts;
pub use pacing::Pacer;
pub use pool::{AnalystPool, PoolError};
pub use room::{AnswerRoom, Held};
pub use span::{Bucket, Span};
