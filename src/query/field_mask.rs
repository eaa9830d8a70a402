//! Which fields of a device an update changes.
use fleetd_proto::FieldMask;

use super::error::{shown, suggestion};

/// Most paths of a mask. A device has some 30 fields, 64 metadata keys and 64 labels.
pub const MAX_PATHS: usize = 256;

/// Longest path: a field's name and a key of 64 bytes, with room for a key that is refused with its own message.
pub const MAX_PATH_BYTES: usize = 256;

/// The fields that a mask names, each once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceMask {
    paths: Vec<DevicePath>,
}

/// One path that an update may change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DevicePath {
    Name,
    Type,
    Version,
    /// MAINTENANCE, or ONLINE to leave it.
    Status,
    HeartbeatInterval,
    /// All metadata: what is not given is removed.
    Metadata,
    /// One key: removed when it is not given.
    MetadataKey(String),
    Labels,
    Label(String),
    SystemInfo,
    /// One field of it, by its name in the contract.
    SystemInfoField(&'static str),
}

/// Why a mask is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MaskError {
    #[error("{count} paths are too many; give at most {MAX_PATHS}")]
    TooMany { count: usize },
    #[error("there is no path {path}{suggestion}")]
    Unknown { path: String, suggestion: String },
    #[error("{path} is output only, and cannot be changed")]
    OutputOnly { path: String },
    #[error("{path} ends where a key was expected")]
    NoKey { path: String },
}

/// The fields of `system_info`, by their names in the contract.
pub const SYSTEM_INFO_FIELDS: [&str; 14] = [
    "os",
    "arch",
    "cpu_cores",
    "memory_mb",
    "disk_gb",
    "os_version",
    "kernel_version",
    "hostname",
    "hardware_model",
    "serial_number",
    "firmware_version",
    "agent_version",
    "ip_addresses",
    "time_zone",
];

const CHANGEABLE: [&str; 8] =
    ["name", "type", "version", "status", "heartbeat_interval", "metadata", "labels", "system_info"];

const OUTPUT_ONLY: [&str; 4] = ["id", "last_seen", "registered_at", "etag"];

impl DeviceMask {
    /// # Errors
    /// For a path that no device has, or that only the server sets, or for too many.
    pub fn parse(mask: &FieldMask) -> Result<Self, MaskError> {
        if mask.paths.len() > MAX_PATHS {
            return Err(MaskError::TooMany { count: mask.paths.len() });
        }
        let mut paths = Vec::with_capacity(mask.paths.len());
        for path in &mask.paths {
            let path = DevicePath::parse(path)?;
            if !paths.contains(&path) {
                paths.push(path);
            }
        }
        Ok(Self { paths })
    }

    pub fn paths(&self) -> &[DevicePath] {
        &self.paths
    }

    pub fn is_empty(&self) -> bool {
        self.paths.is_empty()
    }
}

impl FromIterator<DevicePath> for DeviceMask {
    fn from_iter<I: IntoIterator<Item = DevicePath>>(paths: I) -> Self {
        Self { paths: paths.into_iter().collect() }
    }
}

impl DevicePath {
    fn parse(path: &str) -> Result<Self, MaskError> {
        let unknown = |suggestion| MaskError::Unknown { path: shown(path), suggestion };
        if path.len() > MAX_PATH_BYTES {
            return Err(unknown(format!("; a path has at most {MAX_PATH_BYTES} bytes")));
        }
        // All that follows the first dot of a map is one key, dots included.
        let (field, key) = path.split_once('.').map_or((path, None), |(field, key)| (field, Some(key)));
        Ok(match (field, key) {
            ("metadata" | "labels" | "system_info", Some("")) => return Err(MaskError::NoKey { path: shown(path) }),
            ("name", None) => Self::Name,
            ("type", None) => Self::Type,
            ("version", None) => Self::Version,
            ("status", None) => Self::Status,
            ("heartbeat_interval", None) => Self::HeartbeatInterval,
            ("metadata", None) => Self::Metadata,
            ("metadata", Some(key)) => Self::MetadataKey(key.to_owned()),
            ("labels", None) => Self::Labels,
            ("labels", Some(key)) => Self::Label(key.to_owned()),
            ("system_info", None) => Self::SystemInfo,
            ("system_info", Some(name)) => match SYSTEM_INFO_FIELDS.iter().find(|known| **known == name) {
                Some(known) => Self::SystemInfoField(known),
                None => return Err(unknown(suggestion(name, SYSTEM_INFO_FIELDS))),
            },
            (field, _) if OUTPUT_ONLY.contains(&field) => {
                return Err(MaskError::OutputOnly { path: shown(path) });
            }
            (field, _) => return Err(unknown(suggestion(field, CHANGEABLE))),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(paths: &[&str]) -> Result<DeviceMask, MaskError> {
        DeviceMask::parse(&FieldMask { paths: paths.iter().map(|path| (*path).to_owned()).collect() })
    }

    #[test]
    fn the_paths_of_the_reference_are_understood() {
        let mask = parse(&["name", "metadata.location", "status"]).expect("the reference's mask");
        let expected = [DevicePath::Name, DevicePath::MetadataKey("location".into()), DevicePath::Status];
        assert_eq!(mask.paths(), expected);
    }

    #[test]
    fn a_key_may_hold_dots_and_a_path_counts_once() {
        let mask = parse(&["labels.a.b", "labels.a.b", "system_info.os"]).expect("valid");
        assert_eq!(mask.paths(), [DevicePath::Label("a.b".into()), DevicePath::SystemInfoField("os")]);
    }

    #[test]
    fn a_path_that_cannot_be_changed_is_refused_with_its_name() {
        for (path, part) in [
            ("id", "\"id\" is output only"),
            ("last_seen", "output only"),
            ("etag", "output only"),
            ("nmae", "\"nmae\"; did you mean name?"),
            ("system_info.hostnam", "did you mean hostname?"),
            ("name.first", "\"name.first\""),
            ("metadata.", "key was expected"),
            ("", "no path \"\""),
            ("*", "no path \"*\""),
        ] {
            let message = parse(&[path]).expect_err(path).to_string();
            assert!(message.contains(part), "{path}: {message}");
        }
    }

    #[test]
    fn a_mask_from_hell_is_refused_with_a_short_message() {
        let long = "x".repeat(10 << 20);
        assert!(parse(&[&long]).expect_err("too long").to_string().len() < 200);
        let many = vec!["name"; 1_000_000];
        assert_eq!(parse(&many), Err(MaskError::TooMany { count: 1_000_000 }));
    }
}
