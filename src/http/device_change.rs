//! What an update does to a device: the record, the mask and the new values in, the changed record out. Pure.
use fleetd_proto::v1::device_status::State;
use fleetd_proto::v1::{Device as Given, SystemInfo};
use prost::Message as _;

use super::device_fields::{self, Names};
use crate::error::ApiError;
use crate::query::{DeviceMask, DevicePath};
use crate::store::Device;

const NAMES: Names = Names { name: "device.name", device_type: "device.type" };

/// The mask that stands for "all set fields". Of the status only what can be set counts: a client that sends back a
/// device as it read it asks for no change of it.
pub fn mask_of_set_fields(given: &Given) -> DeviceMask {
    let is_settable_status = matches!(given.status(), State::Maintenance | State::Online);
    [
        (!given.name.is_empty(), DevicePath::Name),
        (!given.r#type.is_empty(), DevicePath::Type),
        (!given.version.is_empty(), DevicePath::Version),
        (is_settable_status, DevicePath::Status),
        (given.heartbeat_interval.is_some(), DevicePath::HeartbeatInterval),
        (!given.metadata.is_empty(), DevicePath::Metadata),
        (!given.labels.is_empty(), DevicePath::Labels),
        (given.system_info.is_some(), DevicePath::SystemInfo),
    ]
    .into_iter()
    .filter_map(|(is_set, path)| is_set.then_some(path))
    .collect()
}

/// `device` with the fields that `mask` names taken from `given`. A named field that is not given is emptied.
///
/// # Errors
/// INVALID_ARGUMENT for a value that a device cannot have.
pub fn apply(device: &Device, mask: &DeviceMask, given: &Given) -> Result<Device, ApiError> {
    let mut changed = device.clone();
    for path in mask.paths() {
        match path {
            DevicePath::Name if given.name.is_empty() => changed.name = device.id.to_string(),
            DevicePath::Name => changed.name.clone_from(&given.name),
            DevicePath::Type => changed.device_type.clone_from(&given.r#type),
            DevicePath::Version => changed.version.clone_from(&given.version),
            DevicePath::Status => changed.maintenance = maintenance(given)?,
            DevicePath::HeartbeatInterval => {
                changed.heartbeat_interval = given.heartbeat_interval.map(device_fields::interval).transpose()?;
            }
            DevicePath::Metadata => changed.metadata.clone_from(&given.metadata),
            DevicePath::MetadataKey(key) => set_key(&mut changed.metadata, &given.metadata, key),
            DevicePath::Labels => changed.labels.clone_from(&given.labels),
            DevicePath::Label(key) => set_key(&mut changed.labels, &given.labels, key),
            DevicePath::SystemInfo => {
                changed.system_info = device_fields::encode_system_info(given.system_info.as_ref());
            }
            DevicePath::SystemInfoField(name) => {
                let mut info = SystemInfo::decode(&changed.system_info[..]).unwrap_or_default();
                set_system_info_field(&mut info, name, given.system_info.clone().unwrap_or_default());
                changed.system_info = device_fields::encode_system_info(Some(&info));
            }
        }
    }
    device_fields::check(&changed, &NAMES)?;
    Ok(changed)
}

fn maintenance(given: &Given) -> Result<bool, ApiError> {
    match State::try_from(given.status) {
        Ok(State::Maintenance) => Ok(true),
        Ok(State::Online) => Ok(false),
        other => {
            let name = other.map_or_else(|_| given.status.to_string(), |state| state.as_str_name().to_owned());
            let message = format!(
                "device.status is {name}; MAINTENANCE takes the device out of service, ONLINE ends that, and the \
                 server sets all others"
            );
            Err(ApiError::invalid_argument(message))
        }
    }
}

fn set_key(
    entries: &mut std::collections::BTreeMap<String, String>,
    given: &std::collections::BTreeMap<String, String>,
    key: &str,
) {
    match given.get(key) {
        Some(value) => {
            entries.insert(key.to_owned(), value.clone());
        }
        None => {
            entries.remove(key);
        }
    }
}

/// `name` is one of the mask's own list, which a test holds against the contract.
fn set_system_info_field(info: &mut SystemInfo, name: &str, given: SystemInfo) {
    match name {
        "os" => info.os = given.os,
        "arch" => info.arch = given.arch,
        "cpu_cores" => info.cpu_cores = given.cpu_cores,
        "memory_mb" => info.memory_mb = given.memory_mb,
        "disk_gb" => info.disk_gb = given.disk_gb,
        "os_version" => info.os_version = given.os_version,
        "kernel_version" => info.kernel_version = given.kernel_version,
        "hostname" => info.hostname = given.hostname,
        "hardware_model" => info.hardware_model = given.hardware_model,
        "serial_number" => info.serial_number = given.serial_number,
        "firmware_version" => info.firmware_version = given.firmware_version,
        "agent_version" => info.agent_version = given.agent_version,
        "ip_addresses" => info.ip_addresses = given.ip_addresses,
        "time_zone" => info.time_zone = given.time_zone,
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use fleetd_proto::FieldMask;

    use super::*;
    use crate::auth::KeyHash;
    use crate::clock::UnixMillis;
    use crate::ids::DeviceId;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn device() -> Device {
        let info = SystemInfo { os: "Linux".into(), cpu_cores: 4, ..SystemInfo::default() };
        Device {
            id: DeviceId::parse("rpi-001").expect("valid"),
            name: "Raspberry Pi 001".into(),
            device_type: "raspberry-pi".into(),
            version: "1.0.0".into(),
            metadata: map(&[("location", "lab"), ("rack", "7")]),
            labels: map(&[("ring", "1")]),
            system_info: info.encode_to_vec().into(),
            registered_at: UnixMillis::EPOCH,
            last_seen: None,
            key_hash: KeyHash::of("key"),
            revision: 3,
            maintenance: false,
            heartbeat_interval: None,
        }
    }

    fn mask(paths: &[&str]) -> DeviceMask {
        DeviceMask::parse(&FieldMask { paths: paths.iter().map(|path| (*path).to_owned()).collect() }).expect("valid")
    }

    fn info(device: &Device) -> SystemInfo {
        SystemInfo::decode(&device.system_info[..]).expect("encoded here")
    }

    #[test]
    fn only_what_the_mask_names_changes() {
        let given = Given {
            name: "New Name".into(),
            r#type: "esp32".into(),
            metadata: map(&[("location", "Building A"), ("rack", "8")]),
            status: State::Maintenance.into(),
            ..Given::default()
        };
        let changed = apply(&device(), &mask(&["name", "metadata.location", "status"]), &given).expect("valid");
        let metadata = map(&[("location", "Building A"), ("rack", "7")]);
        assert_eq!(changed, Device { name: "New Name".into(), metadata, maintenance: true, ..device() });
    }

    #[test]
    fn a_named_field_that_is_not_given_is_emptied() {
        let paths = ["name", "version", "metadata.rack", "labels", "system_info.os", "heartbeat_interval"];
        let with_interval = Device { heartbeat_interval: Some(Duration::from_secs(5)), ..device() };
        let changed = apply(&with_interval, &mask(&paths), &Given::default()).expect("valid");
        assert_eq!((changed.name.as_str(), changed.version.as_str()), ("rpi-001", ""));
        assert_eq!((changed.metadata, changed.labels), (map(&[("location", "lab")]), map(&[])));
        assert_eq!(changed.heartbeat_interval, None);
        assert_eq!((info(&device()).os.as_str(), !changed.system_info.is_empty()), ("Linux", true));
        let emptied = apply(&device(), &mask(&["system_info.os"]), &Given::default()).expect("valid");
        assert_eq!((info(&emptied).os.as_str(), info(&emptied).cpu_cores), ("", 4));
    }

    #[test]
    fn without_a_mask_all_set_fields_change() {
        let given = Given {
            version: "2.0.0".into(),
            labels: map(&[("ring", "2")]),
            // As read from a device that is there: no wish to change it.
            status: State::Late.into(),
            ..Given::default()
        };
        let changed = apply(&device(), &mask_of_set_fields(&given), &given).expect("valid");
        assert_eq!(changed, Device { version: "2.0.0".into(), labels: map(&[("ring", "2")]), ..device() });
        let empty = mask_of_set_fields(&Given::default());
        assert!(empty.is_empty());
        let back = Given { status: State::Online.into(), ..Given::default() };
        let out = Device { maintenance: true, ..device() };
        assert!(!apply(&out, &mask_of_set_fields(&back), &back).expect("valid").maintenance);
    }

    #[test]
    fn every_field_of_the_system_info_can_be_changed_alone() {
        let given = SystemInfo {
            os: "o".into(),
            arch: "a".into(),
            cpu_cores: 8,
            memory_mb: 9,
            disk_gb: 1.5,
            os_version: "ov".into(),
            kernel_version: "k".into(),
            hostname: "h".into(),
            hardware_model: "m".into(),
            serial_number: "s".into(),
            firmware_version: "f".into(),
            agent_version: "ag".into(),
            ip_addresses: vec!["10.0.0.1".into()],
            time_zone: "Europe/Zurich".into(),
        };
        let given = Given { system_info: Some(given.clone()), ..Given::default() };
        let mut device = Device { system_info: bytes::Bytes::new(), ..device() };
        for name in crate::query::SYSTEM_INFO_FIELDS {
            device = apply(&device, &mask(&[&format!("system_info.{name}")]), &given).expect(name);
        }
        assert_eq!(Some(info(&device)), given.system_info);
    }

    #[test]
    fn a_value_that_a_device_cannot_have_is_refused_with_its_field() {
        let text = |bytes: usize| "x".repeat(bytes);
        for (path, given, part) in [
            ("name", Given { name: text(257), ..Given::default() }, "device.name has 257 bytes"),
            ("type", Given { r#type: text(65), ..Given::default() }, "device.type has 65 bytes"),
            ("version", Given { version: "1\n".into(), ..Given::default() }, "version has the control character"),
            ("status", Given { status: State::Offline.into(), ..Given::default() }, "device.status is OFFLINE"),
            ("status", Given { status: 77, ..Given::default() }, "device.status is 77"),
            ("status", Given::default(), "device.status is UNKNOWN"),
            ("labels.ring", Given { labels: map(&[("ring", &text(257))]), ..Given::default() }, "labels.ring has 257"),
            (
                "heartbeat_interval",
                Given { heartbeat_interval: Some(fleetd_proto::Duration { seconds: 0, nanos: 5 }), ..Given::default() },
                "give 1s to 86400s",
            ),
        ] {
            let error = apply(&device(), &mask(&[path]), &given).expect_err(path);
            assert!(error.message.contains(part), "{path}: {error}");
        }
    }
}
