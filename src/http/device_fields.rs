//! What the fields of a device may hold, for all RPCs that set them. The limits are the contract's
//! (`proto/fleetd/v1/device.proto`).
use std::collections::BTreeMap;
use std::time::Duration;

use fleetd_proto::v1::SystemInfo;
use prost::Message as _;

use crate::error::ApiError;
use crate::store::Device;

const MAX_NAME_BYTES: usize = 256;
const MAX_TYPE_BYTES: usize = 64;
const MAX_VERSION_BYTES: usize = 128;
/// Entries of `metadata`, and of `labels`.
const MAX_ENTRIES: usize = 64;
const MAX_KEY_BYTES: usize = 64;
pub(super) const MAX_METADATA_BYTES: usize = 1_024;
const MAX_LABEL_BYTES: usize = 256;
/// Bytes of an encoded `system_info`: 14 fields of some words, and a few addresses.
const MAX_SYSTEM_INFO_BYTES: usize = 8_192;
/// Shortest and longest `heartbeat_interval`.
const MIN_INTERVAL: Duration = Duration::from_secs(1);
const MAX_INTERVAL: Duration = Duration::from_secs(24 * 60 * 60);

/// How a request calls the fields that are named differently in different messages.
pub struct Names {
    pub name: &'static str,
    pub device_type: &'static str,
}

/// Checks everything that a caller can set.
///
/// # Errors
/// INVALID_ARGUMENT that names the field, its value's fault and the limit.
pub fn check(device: &Device, names: &Names) -> Result<(), ApiError> {
    check_text(names.name, &device.name, MAX_NAME_BYTES)?;
    check_text(names.device_type, &device.device_type, MAX_TYPE_BYTES)?;
    check_text("version", &device.version, MAX_VERSION_BYTES)?;
    check_entries("metadata", &device.metadata, MAX_METADATA_BYTES)?;
    check_entries("labels", &device.labels, MAX_LABEL_BYTES)?;
    let bytes = device.system_info.len();
    if bytes > MAX_SYSTEM_INFO_BYTES {
        let message = format!("system_info has {bytes} bytes; at most {MAX_SYSTEM_INFO_BYTES} are kept");
        return Err(ApiError::invalid_argument(message));
    }
    Ok(())
}

/// `heartbeat_interval` as it is kept.
///
/// # Errors
/// INVALID_ARGUMENT outside 1 s to 24 h.
pub fn interval(given: fleetd_proto::Duration) -> Result<Duration, ApiError> {
    Duration::try_from(given)
        .ok()
        .filter(|interval| (MIN_INTERVAL..=MAX_INTERVAL).contains(interval))
        .map(|interval| Duration::from_millis(interval.as_millis() as u64))
        .ok_or_else(|| ApiError::invalid_argument(format!("heartbeat_interval is {given}; give 1s to 86400s")))
}

pub fn encode_system_info(info: Option<&SystemInfo>) -> bytes::Bytes {
    info.map(|info| info.encode_to_vec()).unwrap_or_default().into()
}

pub(super) fn check_text(field: &str, value: &str, max_bytes: usize) -> Result<(), ApiError> {
    if value.len() > max_bytes {
        let message = format!("{field} has {} bytes; at most {max_bytes} are kept", value.len());
        return Err(ApiError::invalid_argument(message));
    }
    match value.chars().find(|character| character.is_control()) {
        Some(character) => Err(ApiError::invalid_argument(format!("{field} has the control character {character:?}"))),
        None => Ok(()),
    }
}

pub(super) fn check_entries(field: &str, entries: &BTreeMap<String, String>, max_bytes: usize) -> Result<(), ApiError> {
    if entries.len() > MAX_ENTRIES {
        let message = format!("{field} has {} entries; at most {MAX_ENTRIES} are kept", entries.len());
        return Err(ApiError::invalid_argument(message));
    }
    for (key, value) in entries {
        if key.is_empty() {
            return Err(ApiError::invalid_argument(format!("{field} has an entry with an empty key")));
        }
        check_text(&format!("a key of {field}"), key, MAX_KEY_BYTES)?;
        if value.len() > max_bytes {
            let message = format!("{field}.{key} has {} bytes; at most {max_bytes} are kept", value.len());
            return Err(ApiError::invalid_argument(message));
        }
    }
    Ok(())
}
