//! Exports: telemetry written into a file that can be downloaded.
//!
//! `fields` and `form` say what ClickHouse is asked for, [`Job`] carries its answer into the object store, piece by piece, and
//! makes sure that it is whole; [`Exports`] decides what runs and when files end. The order is that of uploads: bytes
//! first, registry second, so that a file that can be found is always whole.
mod fields;
mod form;
mod job;
mod keeper;
mod progress;

pub use fields::{Columns, InvalidFields, Subject, MAX_FIELDS};
pub use form::Form;
pub use job::{Job, JobError};
pub use keeper::{ExportCounters, Exports, ExportsError, Parts};
pub use progress::{Progress, Snapshot};
