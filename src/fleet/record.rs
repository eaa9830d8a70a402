//! A device's record as the query language sees it, for a device that has no row any more.
use fleetd_proto::v1::device_status::State;
use fleetd_proto::v1::SystemInfo;
use prost::Message as _;

use crate::clock::UnixMillis;
use crate::query::{NumberField, Subject, TextField};
use crate::store::Device;

/// What the registry knows: no measurements, and no presence.
impl Subject for Device {
    fn any_text(&self, field: TextField, test: &mut dyn FnMut(&str) -> bool) -> bool {
        let info = || SystemInfo::decode(&self.system_info[..]).unwrap_or_default();
        // What a device does not have is empty in its record.
        let mut has = |text: &str| !text.is_empty() && test(text);
        match field {
            TextField::Id => has(self.id.as_str()),
            TextField::Name => has(&self.name),
            TextField::Type => has(&self.device_type),
            TextField::Version => has(&self.version),
            TextField::Os => has(&info().os),
            TextField::Arch => has(&info().arch),
            TextField::OsVersion => has(&info().os_version),
            TextField::KernelVersion => has(&info().kernel_version),
            TextField::Hostname => has(&info().hostname),
            TextField::HardwareModel => has(&info().hardware_model),
            TextField::SerialNumber => has(&info().serial_number),
            TextField::FirmwareVersion => has(&info().firmware_version),
            TextField::AgentVersion => has(&info().agent_version),
            TextField::TimeZone => has(&info().time_zone),
            TextField::IpAddresses => info().ip_addresses.iter().any(|address| has(address)),
        }
    }

    fn metadata(&self, key: &str) -> Option<&str> {
        self.metadata.get(key).map(String::as_str)
    }

    fn label(&self, key: &str) -> Option<&str> {
        self.labels.get(key).map(String::as_str)
    }

    fn number(&self, field: NumberField) -> Option<f64> {
        let info = SystemInfo::decode(&self.system_info[..]).unwrap_or_default();
        let number = match field {
            NumberField::CpuCores => f64::from(info.cpu_cores),
            NumberField::MemoryMb => info.memory_mb as f64,
            NumberField::DiskGb => info.disk_gb,
            _ => 0.0,
        };
        Some(number).filter(|number| *number != 0.0)
    }

    fn metric(&self, _: &str) -> Option<f64> {
        None
    }

    fn last_seen(&self) -> Option<UnixMillis> {
        self.last_seen
    }

    fn registered_at(&self) -> UnixMillis {
        self.registered_at
    }

    fn state(&self) -> State {
        State::Unknown
    }
}
