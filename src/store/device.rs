//! A device as the registry knows it: what it was registered with, not what it reports.
use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;

use crate::auth::KeyHash;
use crate::clock::UnixMillis;
use crate::ids::DeviceId;

/// A registered device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    pub id: DeviceId,
    pub name: String,
    pub device_type: String,
    /// The software version that the device registered with.
    pub version: String,
    pub metadata: BTreeMap<String, String>,
    pub labels: BTreeMap<String, String>,
    /// An encoded protobuf `SystemInfo`; the store does not look inside.
    pub system_info: Bytes,
    pub registered_at: UnixMillis,
    /// When it was last seen before it went offline; `None` if it never was.
    pub last_seen: Option<UnixMillis>,
    pub key_hash: KeyHash,
    /// Counts the changes of this record, from 1; becomes the etag.
    pub revision: u64,
    /// An operator took it out of service.
    pub maintenance: bool,
    /// How often it is expected to report; `None` as the server's configuration says.
    pub heartbeat_interval: Option<Duration>,
}

/// When a device was last seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastSeen {
    pub device: DeviceId,
    pub at: UnixMillis,
    /// Whether it is late since.
    pub is_late: bool,
    /// Whether it is gone since.
    pub is_offline: bool,
}

/// One device while it is read, borrowed from the database's page: what a loader does not keep is never copied.
#[derive(Clone, Copy, Debug)]
pub struct DeviceRow<'a> {
    /// A valid [`DeviceId`].
    pub id: &'a str,
    pub key_hash: KeyHash,
    pub name: &'a str,
    pub device_type: &'a str,
    pub version: &'a str,
    pub metadata: MapText<'a>,
    pub labels: MapText<'a>,
    pub system_info: &'a [u8],
    pub registered_at: UnixMillis,
    pub last_seen: Option<UnixMillis>,
    pub revision: u64,
    pub maintenance: bool,
    pub heartbeat_interval: Option<Duration>,
    /// Whether it was last known to be late.
    pub is_late: bool,
    /// Whether it was last known to be gone.
    pub is_offline: bool,
}

/// A map of strings as it is stored, decoded when asked for.
#[derive(Clone, Copy, Debug)]
pub struct MapText<'a>(pub(super) &'a str);

/// A stored map that is not one.
#[derive(Debug, thiserror::Error)]
#[error("a map of strings was expected")]
pub struct InvalidMap(#[source] serde_json::Error);

impl MapText<'_> {
    /// Whether the map is empty, without decoding it.
    pub fn is_empty(&self) -> bool {
        self.0 == EMPTY_MAP
    }

    /// # Errors
    /// When the text was altered by somebody else than the store.
    pub fn decode(&self) -> Result<BTreeMap<String, String>, InvalidMap> {
        if self.is_empty() {
            return Ok(BTreeMap::new());
        }
        serde_json::from_str(self.0).map_err(InvalidMap)
    }
}

const EMPTY_MAP: &str = "{}";

/// A map as it is stored: JSON, so that `sqlite3` and its `->>` can read it.
pub(super) fn encode_map(map: &BTreeMap<String, String>) -> String {
    if map.is_empty() {
        return EMPTY_MAP.to_owned();
    }
    serde_json::to_string(map).expect("a map of strings is always valid JSON")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_come_back_as_they_were() {
        let map: BTreeMap<_, _> = [("location", "datacenter-1"), ("quote", "\"'\\\n\0"), ("ü", "☃"), ("", "")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into();
        assert_eq!(MapText(&encode_map(&map)).decode().unwrap(), map);
        assert_eq!(encode_map(&BTreeMap::new()), "{}");
        assert!(MapText("{}").is_empty());
        assert!(MapText("[1]").decode().is_err());
    }
}
