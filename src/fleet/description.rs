//! What the registry says of a device, as the index takes it in.
use std::borrow::Cow;
use std::collections::BTreeMap;

use crate::clock::UnixMillis;
use crate::store::{Device, DeviceRow, InvalidMap};

/// A device's record, borrowed from whoever has it.
#[derive(Clone, Debug)]
pub struct Description<'a> {
    pub name: &'a str,
    pub device_type: &'a str,
    /// The version that the device registered with.
    pub version: &'a str,
    pub metadata: Cow<'a, BTreeMap<String, String>>,
    pub labels: Cow<'a, BTreeMap<String, String>>,
    /// An encoded protobuf `SystemInfo`.
    pub system_info: &'a [u8],
    pub registered_at: UnixMillis,
    /// When it was last seen before this start.
    pub last_seen: Option<UnixMillis>,
}

/// A record in which nobody wrote anything.
impl Default for Description<'_> {
    fn default() -> Self {
        Self {
            name: "",
            device_type: "",
            version: "",
            metadata: Cow::default(),
            labels: Cow::default(),
            system_info: &[],
            registered_at: UnixMillis::EPOCH,
            last_seen: None,
        }
    }
}

impl<'a> From<&'a Device> for Description<'a> {
    fn from(device: &'a Device) -> Self {
        Self {
            name: &device.name,
            device_type: &device.device_type,
            version: &device.version,
            metadata: Cow::Borrowed(&device.metadata),
            labels: Cow::Borrowed(&device.labels),
            system_info: &device.system_info,
            registered_at: device.registered_at,
            last_seen: device.last_seen,
        }
    }
}

impl<'a> TryFrom<&DeviceRow<'a>> for Description<'a> {
    type Error = InvalidMap;

    fn try_from(row: &DeviceRow<'a>) -> Result<Self, InvalidMap> {
        let (metadata, labels) = (Cow::Owned(row.metadata.decode()?), Cow::Owned(row.labels.decode()?));
        Ok(Self { metadata, labels, ..Self::without_maps(row) })
    }
}

impl<'a> Description<'a> {
    /// A record whose maps cannot be read.
    pub fn without_maps(row: &DeviceRow<'a>) -> Self {
        Self {
            name: row.name,
            device_type: row.device_type,
            version: row.version,
            metadata: Cow::default(),
            labels: Cow::default(),
            system_info: row.system_info,
            registered_at: row.registered_at,
            last_seen: row.last_seen,
        }
    }
}
