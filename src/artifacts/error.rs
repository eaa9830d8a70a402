//! What can go wrong with the bytes of a file, and what the caller of an RPC is told about it.
use std::time::Duration;

use super::checksum::Checksum;
use super::upload::MAX_BINARY_BYTES;
use crate::error::{ApiError, ErrorCode};

/// When to come back to a disk that is full: somebody has to make room first.
const DISK_FULL_RETRY: Duration = Duration::from_secs(30);
/// When to come back to a store that did not answer.
const STORE_RETRY: Duration = Duration::from_secs(5);

/// Why bytes were not taken or not given.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// Taken back; works again as soon as there is room.
    #[error("could not {operation}: the disk is full; make room in the data directory")]
    DiskFull { operation: &'static str, source: Option<object_store::Error> },

    #[error("the bytes received are {received}, not {expected} as the metadata says; upload the file again")]
    WrongChecksum { expected: Checksum, received: Checksum },

    #[error("{received} bytes were received, but the metadata says {expected}; upload the file again")]
    WrongSize { expected: u64, received: u64 },

    #[error("the file has more than {MAX_BINARY_BYTES} bytes, the limit")]
    TooLarge,

    /// The registry knows it and the store does not have it.
    #[error("the bytes of {0} are gone from the artifact store; upload the file again")]
    Gone(Checksum),

    #[error("the bytes of {checksum} are damaged: {found} of {expected} bytes are there; upload the file again")]
    Damaged { checksum: Checksum, expected: u64, found: u64 },

    #[error("could not {operation}")]
    Store { operation: &'static str, source: object_store::Error },

    #[error("could not {operation}")]
    Io { operation: &'static str, source: std::io::Error },
}

impl BlobError {
    /// Sorts out what the store says.
    pub(super) fn of_store(operation: &'static str, source: object_store::Error) -> Self {
        if is_no_room(&source) {
            Self::DiskFull { operation, source: Some(source) }
        } else {
            Self::Store { operation, source }
        }
    }
}

/// Whether somewhere in the chain of causes the system says that there is no room.
fn is_no_room(error: &(dyn std::error::Error + 'static)) -> bool {
    use std::io::ErrorKind;
    let mut cause = Some(error);
    while let Some(error) = cause {
        let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        if matches!(kind, Some(ErrorKind::StorageFull | ErrorKind::QuotaExceeded)) {
            return true;
        }
        cause = error.source();
    }
    false
}

impl From<BlobError> for ApiError {
    fn from(error: BlobError) -> Self {
        let message = error.to_string();
        let (code, retry_after) = match &error {
            BlobError::WrongChecksum { .. } | BlobError::WrongSize { .. } | BlobError::TooLarge => {
                return Self::invalid_argument(message)
            }
            BlobError::DiskFull { .. } => (ErrorCode::Unavailable, Some(DISK_FULL_RETRY)),
            BlobError::Gone(_) | BlobError::Damaged { .. } => (ErrorCode::DataLoss, None),
            BlobError::Store { .. } => (ErrorCode::Unavailable, Some(STORE_RETRY)),
            BlobError::Io { .. } => (ErrorCode::Internal, None),
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
    fn a_full_disk_is_found_wherever_the_store_hides_it() {
        let full = std::io::Error::from_raw_os_error(libc::ENOSPC);
        let wrapped = object_store::Error::Generic { store: "LocalFileSystem", source: Box::new(full) };
        let api = ApiError::from(BlobError::of_store("keep the file", wrapped));
        assert_eq!((api.code, api.retry_after), (ErrorCode::Unavailable, Some(DISK_FULL_RETRY)));
        let other = object_store::Error::Generic { store: "s3", source: Box::new(std::io::Error::other("x")) };
        assert!(matches!(BlobError::of_store("keep the file", other), BlobError::Store { .. }));
    }

    #[test]
    fn a_mismatch_names_both_sides() {
        let (expected, received) = (Checksum::from_bytes([1; 32]), Checksum::from_bytes([2; 32]));
        let api = ApiError::from(BlobError::WrongChecksum { expected, received });
        assert_eq!(api.code, ErrorCode::InvalidArgument);
        assert!(api.message.contains(&expected.to_string()) && api.message.contains(&received.to_string()), "{api}");
    }
}
