//! What can go wrong in the registry, and what the caller of an RPC is told about it.
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{ApiError, ErrorCode};
use crate::ids::DeviceId;

/// A source whose type belongs to one kind of store; shared, because writes that share a transaction share its fate.
pub type SharedError = Arc<dyn std::error::Error + Send + Sync>;

/// When to come back to a queue that is full: it drains within about this time.
const OVERLOADED_RETRY: Duration = Duration::from_secs(1);
/// When to come back to a disk that is full: somebody has to make room first.
const DISK_FULL_RETRY: Duration = Duration::from_secs(30);

/// Why the registry did not do as asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    #[error("device {0} is already registered")]
    AlreadyExists(DeviceId),

    #[error("device {0} is not registered")]
    NotFound(DeviceId),

    #[error("update {name} {version} exists already, as {id}")]
    UpdateExists { id: String, name: String, version: String },

    #[error("{what} is still under way; try again in a second")]
    InProgress { what: &'static str },

    /// Turned away before anything was done.
    #[error("the registry has more {work} waiting than it can take; try again in a second")]
    Overloaded { work: &'static str },

    /// Rolled back; works again as soon as there is room.
    #[error("could not {operation}: the disk is full; make room in the data directory")]
    DiskFull {
        operation: &'static str,
        #[source]
        source: SharedError,
    },

    #[error("could not {operation}: the registry is closed, the server is stopping")]
    Closed { operation: &'static str },

    /// Another process holds the database, such as a backup; nothing was done.
    #[error("could not {operation}: another process holds the registry's database")]
    Locked {
        operation: &'static str,
        #[source]
        source: SharedError,
    },

    #[error("could not {operation}: the registry's database is damaged; restore it from a backup")]
    Damaged {
        operation: &'static str,
        #[source]
        source: SharedError,
    },

    /// The file at the database's place is not fleetd's.
    #[error("{} is {what}, not fleetd's registry; move it away, or choose another data directory", path.display())]
    Foreign { path: PathBuf, what: &'static str },

    #[error(
        "{} was written by a newer fleetd (schema {found}; this one knows up to {supported}); start that version, or restore a backup from before it",
        path.display()
    )]
    Newer { path: PathBuf, found: i64, supported: i64 },

    #[error("could not {operation} {}", path.display())]
    Open {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: SharedError,
    },

    /// Anything else, such as a failing disk. A write may have happened.
    #[error("could not {operation}")]
    Backend {
        operation: &'static str,
        #[source]
        source: SharedError,
    },
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        let message = error.to_string();
        let (code, retry_after) = match &error {
            StoreError::AlreadyExists(_) | StoreError::UpdateExists { .. } => {
                return Self::new(ErrorCode::AlreadyExists, message)
            }
            StoreError::NotFound(_) => return Self::new(ErrorCode::NotFound, message),
            // UNAVAILABLE, not RESOURCE_EXHAUSTED: the caller did nothing too often, the server is behind.
            StoreError::InProgress { .. }
            | StoreError::Overloaded { .. }
            | StoreError::Locked { .. }
            | StoreError::Closed { .. } => (ErrorCode::Unavailable, Some(OVERLOADED_RETRY)),
            StoreError::DiskFull { .. } => (ErrorCode::Unavailable, Some(DISK_FULL_RETRY)),
            StoreError::Damaged { .. }
            | StoreError::Foreign { .. }
            | StoreError::Newer { .. }
            | StoreError::Open { .. }
            | StoreError::Backend { .. } => (ErrorCode::Internal, None),
        };
        let mut api = Self::new(code, message).with_source(error);
        api.retry_after = retry_after;
        api
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_id_is_already_exists_and_names_the_device() {
        let error = ApiError::from(StoreError::AlreadyExists(DeviceId::parse("rpi-001").unwrap()));
        assert_eq!(error.code, ErrorCode::AlreadyExists);
        assert_eq!(error.message, "device rpi-001 is already registered");
    }

    #[test]
    fn a_taken_name_and_version_is_already_exists_and_names_the_update() {
        let (id, name, version) = ("update-007".to_owned(), "firmware".to_owned(), "2.1.0".to_owned());
        let error = ApiError::from(StoreError::UpdateExists { id, name, version });
        assert_eq!(error.code, ErrorCode::AlreadyExists);
        assert_eq!(error.message, "update firmware 2.1.0 exists already, as update-007");
    }

    #[test]
    fn what_passes_by_itself_is_unavailable_with_a_time_to_retry() {
        let source = || Arc::new(std::io::Error::other("x"));
        for error in [
            StoreError::Overloaded { work: "writes" },
            StoreError::Closed { operation: "register a device" },
            StoreError::Locked { operation: "register a device", source: source() },
            StoreError::DiskFull { operation: "register a device", source: source() },
        ] {
            let api = ApiError::from(error);
            assert_eq!(api.code, ErrorCode::Unavailable, "{api}");
            assert!(api.retry_after.is_some(), "{api}");
        }
    }

    #[test]
    fn a_failing_database_is_internal_and_keeps_its_source_out_of_the_message() {
        let source = Arc::new(std::io::Error::other("disk I/O error"));
        let api = ApiError::from(StoreError::Backend { operation: "register a device", source });
        assert_eq!(api.code, ErrorCode::Internal);
        assert_eq!(api.message, "could not register a device");
        assert!(std::error::Error::source(&api).is_some());
    }
}
