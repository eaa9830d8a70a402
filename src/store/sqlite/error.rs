//! SQLite's result codes, sorted by what a caller can do about them.
use std::path::Path;
use std::sync::Arc;

use rusqlite::{Error, ErrorCode};

use crate::store::StoreError;

/// What `error` means to the caller of `operation` (an infinitive: "register a device").
pub fn classify(operation: &'static str, error: Error) -> StoreError {
    classify_shared(operation, &Arc::new(error))
}

/// [`classify`] for an error that several writes share, because they shared a transaction.
pub fn classify_shared(operation: &'static str, error: &Arc<Error>) -> StoreError {
    let source: Arc<Error> = Arc::clone(error);
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => StoreError::DiskFull { operation, source },
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => StoreError::Locked { operation, source },
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => StoreError::Damaged { operation, source },
        Some(_) => StoreError::Backend { operation, source },
        None => match **error {
            // The tables are STRICT and only this program writes them: such a value was put there by other means.
            Error::FromSqlConversionFailure(..)
            | Error::InvalidColumnType(..)
            | Error::IntegralValueOutOfRange(..)
            | Error::Utf8Error(..) => StoreError::Damaged { operation, source },
            _ => StoreError::Backend { operation, source },
        },
    }
}

/// What `error` means to a server that is starting with the database at `path`.
pub fn open_error(path: &Path, error: Error) -> StoreError {
    match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => {
            StoreError::Foreign { path: path.to_owned(), what: "no database (or one that is encrypted or damaged)" }
        }
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::DiskFull | ErrorCode::DatabaseBusy) => {
            classify("open the registry", error)
        }
        _ => StoreError::Open { operation: "open the registry", path: path.to_owned(), source: Arc::new(error) },
    }
}
