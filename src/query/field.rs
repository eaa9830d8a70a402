//! The fields that a query can name, and what kind of value each holds.
use std::fmt;

use super::error::{shown, suggestion};

/// A field of a device.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Field {
    Status,
    LastSeen,
    RegisteredAt,
    Text(TextField),
    Number(NumberField),
    /// A measurement of the fleet's own: `metrics.NAME`.
    Metric(Box<str>),
    /// `metadata.KEY`.
    Metadata(Box<str>),
    /// `labels.KEY`.
    Label(Box<str>),
}

/// Fields that hold a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TextField {
    Id,
    Name,
    Type,
    Version,
    Os,
    Arch,
    OsVersion,
    KernelVersion,
    Hostname,
    HardwareModel,
    SerialNumber,
    FirmwareVersion,
    AgentVersion,
    TimeZone,
    /// Several texts; a test holds when it holds for one of them.
    IpAddresses,
}

/// Fields that hold a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NumberField {
    /// Processor load in per cent.
    CpuUsage,
    /// Memory in use in per cent of the total.
    MemoryUsage,
    /// Main file system in use in per cent of its size.
    DiskUsage,
    UptimeSeconds,
    LoadAverage1m,
    LoadAverage5m,
    LoadAverage15m,
    TemperatureCelsius,
    BatteryPercent,
    SignalDbm,
    CpuCores,
    MemoryMb,
    DiskGb,
}

/// What can be asked of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Text,
    /// A text whose order is that of versions.
    Version,
    Number,
    Time,
    State,
    /// A text that may be a number: metadata and labels.
    Note,
}

const NAMED: [(&str, Field); 32] = [
    ("id", Field::Text(TextField::Id)),
    ("name", Field::Text(TextField::Name)),
    ("type", Field::Text(TextField::Type)),
    ("version", Field::Text(TextField::Version)),
    ("status", Field::Status),
    ("last_seen", Field::LastSeen),
    ("registered_at", Field::RegisteredAt),
    ("cpu_usage", Field::Number(NumberField::CpuUsage)),
    ("memory_usage", Field::Number(NumberField::MemoryUsage)),
    ("disk_usage", Field::Number(NumberField::DiskUsage)),
    ("uptime_seconds", Field::Number(NumberField::UptimeSeconds)),
    ("load_average_1m", Field::Number(NumberField::LoadAverage1m)),
    ("load_average_5m", Field::Number(NumberField::LoadAverage5m)),
    ("load_average_15m", Field::Number(NumberField::LoadAverage15m)),
    ("temperature_celsius", Field::Number(NumberField::TemperatureCelsius)),
    ("battery_percent", Field::Number(NumberField::BatteryPercent)),
    ("signal_dbm", Field::Number(NumberField::SignalDbm)),
    ("system_info.os", Field::Text(TextField::Os)),
    ("system_info.arch", Field::Text(TextField::Arch)),
    ("system_info.cpu_cores", Field::Number(NumberField::CpuCores)),
    ("system_info.memory_mb", Field::Number(NumberField::MemoryMb)),
    ("system_info.disk_gb", Field::Number(NumberField::DiskGb)),
    ("system_info.os_version", Field::Text(TextField::OsVersion)),
    ("system_info.kernel_version", Field::Text(TextField::KernelVersion)),
    ("system_info.hostname", Field::Text(TextField::Hostname)),
    ("system_info.hardware_model", Field::Text(TextField::HardwareModel)),
    ("system_info.serial_number", Field::Text(TextField::SerialNumber)),
    ("system_info.firmware_version", Field::Text(TextField::FirmwareVersion)),
    ("system_info.agent_version", Field::Text(TextField::AgentVersion)),
    ("system_info.ip_addresses", Field::Text(TextField::IpAddresses)),
    ("system_info.time_zone", Field::Text(TextField::TimeZone)),
    // The reference spells it so in its metrics; both names mean the same.
    ("uptime", Field::Number(NumberField::UptimeSeconds)),
];

const OPEN: [&str; 3] = ["metrics", "metadata", "labels"];

impl Field {
    /// The field of this name: a fixed one, or `metrics.`, `metadata.` or `labels.` and a key.
    ///
    /// # Errors
    /// A sentence that says which names there are.
    pub fn named(name: &str) -> Result<Self, String> {
        if let Some((_, field)) = NAMED.iter().find(|(known, _)| *known == name) {
            return Ok(field.clone());
        }
        match name.split_once('.') {
            Some((_, "")) => Err(format!("{} ends where a key was expected", shown(name))),
            Some(("metrics", key)) => Ok(Self::Metric(key.into())),
            Some(("metadata", key)) => Ok(Self::Metadata(key.into())),
            Some(("labels", key)) => Ok(Self::Label(key.into())),
            _ if OPEN.contains(&name) => Err(format!("{name} holds many values; name one, such as {name}.KEY")),
            _ => {
                let near = suggestion(name, NAMED.iter().map(|(known, _)| *known).chain(OPEN));
                let known = "id, name, type, version, status, last_seen, registered_at, cpu_usage, memory_usage, \
                             disk_usage, other live metrics by name, system_info.FIELD, metrics.NAME, metadata.KEY \
                             and labels.KEY";
                Err(format!("there is no field {}; fields are {known}{near}", shown(name)))
            }
        }
    }

    pub fn kind(&self) -> Kind {
        match self {
            Self::Status => Kind::State,
            Self::LastSeen | Self::RegisteredAt => Kind::Time,
            Self::Text(
                TextField::Version
                | TextField::OsVersion
                | TextField::KernelVersion
                | TextField::FirmwareVersion
                | TextField::AgentVersion,
            ) => Kind::Version,
            Self::Text(_) => Kind::Text,
            Self::Number(_) | Self::Metric(_) => Kind::Number,
            Self::Metadata(_) | Self::Label(_) => Kind::Note,
        }
    }

    /// All fields that have a name of their own, without aliases.
    pub fn all_named() -> impl Iterator<Item = (&'static str, Field)> {
        NAMED.into_iter().filter(|(name, _)| *name != "uptime")
    }
}

impl fmt::Display for Field {
    /// The name that [`Field::named`] takes, keys quoted where they must be.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (open, key) = match self {
            Self::Metric(key) => ("metrics", key),
            Self::Metadata(key) => ("metadata", key),
            Self::Label(key) => ("labels", key),
            fixed => {
                let name = NAMED.iter().find(|(_, field)| field == fixed).map_or("", |(name, _)| *name);
                return f.write_str(name);
            }
        };
        write!(f, "{open}.")?;
        super::parser::write_word(f, key, super::parser::is_name_character)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_is_found_by_the_name_that_it_shows() {
        for (name, field) in NAMED {
            assert_eq!(Field::named(name).as_ref(), Ok(&field));
        }
        for (name, field) in Field::all_named() {
            assert_eq!(field.to_string(), name);
        }
        assert_eq!(Field::named("labels.a.b"), Ok(Field::Label("a.b".into())));
    }

    #[test]
    fn an_unknown_field_is_named_with_its_nearest() {
        let message = Field::named("cpu_usgae").expect_err("a typing error");
        assert!(message.contains("\"cpu_usgae\"") && message.contains("did you mean cpu_usage?"), "{message}");
        assert!(Field::named("labels").expect_err("no key").contains("labels.KEY"));
        assert!(Field::named("metadata.").expect_err("no key").contains("key was expected"));
        assert!(!Field::named("xyzzy").expect_err("unknown").contains("did you mean"));
    }
}
