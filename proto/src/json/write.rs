//! Writes a message as JSON text.

use serde::Serialize;

/// Writes `message` without blanks.
pub(super) fn to_vec<T: Serialize>(message: &T) -> Result<Vec<u8>, serde_json::Error> {
    serde_json::to_vec(message)
}
