//! What can go wrong in the journal, one type an operation, each saying what to do.
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use std::time::Duration;

use super::Seq;
use crate::error::{ApiError, ErrorCode};

/// A full journal drains in batches of a second; the fleet's jitter spreads the rest.
const RETRY_WHEN_FULL: Duration = Duration::from_secs(5);

/// A stalled disk or a failed write is often over by then.
const RETRY_WHEN_BUSY: Duration = Duration::from_secs(1);

/// Why the journal could not be opened. The server does not start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("journal option {name} is {value}; it must be at least {least}")]
    Option { name: &'static str, value: u64, least: u64 },
    #[error("cannot {operation} {}", path.display())]
    Io {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "{} has journal format {version}, this build reads up to {supported}; run the newer fleetd, or let it drain the journal first",
        path.display()
    )]
    NewerFormat { path: PathBuf, version: u32, supported: u32 },
    #[error("{} belongs to journal {found}, this folder is journal {expected}; move the file away", path.display())]
    Foreign { path: PathBuf, found: uuid::Uuid, expected: uuid::Uuid },
    #[error("{} holds the segment that starts with {first_seq}; give the file its name back", path.display())]
    Misnamed { path: PathBuf, first_seq: Seq },
    #[error(
        "{} is damaged and no segment is left to restore it from; move the folder away to start a new journal",
        path.display()
    )]
    Unidentified { path: PathBuf },
}

/// Why a record was not taken. Nothing was stored; all but `TooLarge` are UNAVAILABLE to a client.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AppendError {
    #[error("the journal holds {bytes} bytes of its {capacity}; it drains as ClickHouse takes rows, send again later")]
    Full { bytes: u64, capacity: u64 },
    #[error("{bytes} bytes wait for a slow disk, the limit is {limit}; send again later")]
    Backlogged { bytes: u64, limit: u64 },
    #[error("{bytes} bytes are more than one append may hold ({limit}); send less at once")]
    TooLarge { bytes: u64, limit: u64 },
    #[error("the disk did not yet confirm the next block of sequence numbers; send again later")]
    Unreserved,
    #[error("the journal is read-only since an fsync failed and its records could not be moved; check the disk, then restart")]
    ReadOnly(#[source] Arc<io::Error>),
    #[error("the journal is closed, the server is stopping")]
    Closed,
}

/// Why records that were taken are not acknowledged.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CommitError {
    /// The group was cut off again: none of it is stored, none of it appears after a restart.
    #[error("cannot {operation} {}; the record was not stored, send it again later", path.display())]
    Write {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: Arc<io::Error>,
    },
    /// Only with `sync = "always"`: written, but not proven durable, so it may or may not be there after a restart.
    #[error("cannot fsync {}; the journal is read-only now, check the disk, then restart", path.display())]
    Sync {
        path: PathBuf,
        #[source]
        source: Arc<io::Error>,
    },
    #[error("the journal is read-only since an fsync failed; check the disk, then restart")]
    ReadOnly(#[source] Arc<io::Error>),
    #[error("the disk did not store the record within {} s; it may or may not be stored", waited.as_secs())]
    Slow { waited: Duration },
}

/// Why a batch could not be read. The reader stays where it was: the same call may succeed later.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {}", path.display())]
pub struct ReadError {
    pub operation: &'static str,
    pub path: PathBuf,
    #[source]
    pub source: io::Error,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TrimError {
    /// A mistake of the caller: what was never written cannot have been delivered.
    #[error("asked to trim through {asked}, but only {written} is written")]
    Unwritten { asked: Seq, written: Seq },
}

impl From<AppendError> for ApiError {
    fn from(error: AppendError) -> Self {
        let retry_after = match &error {
            AppendError::TooLarge { .. } => return Self::new(ErrorCode::InvalidArgument, error.to_string()),
            AppendError::Full { .. } | AppendError::ReadOnly(_) => RETRY_WHEN_FULL,
            AppendError::Backlogged { .. } | AppendError::Unreserved | AppendError::Closed => RETRY_WHEN_BUSY,
        };
        Self::unavailable(error.to_string(), retry_after).with_source(error)
    }
}

impl From<CommitError> for ApiError {
    /// A client gets no paths of the server; the log has them.
    fn from(error: CommitError) -> Self {
        let message = "the heartbeat could not be stored on the server's disk; send it again later";
        Self::unavailable(message, RETRY_WHEN_BUSY).with_source(error)
    }
}

impl OpenError {
    pub(super) fn io(operation: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { operation, path, source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_told_to_come_back_and_never_sees_a_path() {
        let source = Arc::new(io::Error::from_raw_os_error(libc::ENOSPC));
        let commit = CommitError::Write { operation: "write", path: "/secret".into(), source: source.clone() };
        let errors: [ApiError; 3] =
            [AppendError::Full { bytes: 9, capacity: 8 }.into(), AppendError::ReadOnly(source).into(), commit.into()];
        for error in errors {
            assert_eq!(error.code, ErrorCode::Unavailable);
            assert!(error.retry_after.is_some() && !error.message.contains("secret"), "{error}");
        }
        let error = ApiError::from(AppendError::TooLarge { bytes: 9, limit: 8 });
        assert_eq!((error.code, error.retry_after), (ErrorCode::InvalidArgument, None));
    }
}
