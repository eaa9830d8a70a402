//! The columns of a chunk that the registry fills: who the rows are, and what operators wrote of them.
use std::sync::Arc;

use fleetd_proto::v1::SystemInfo;
use prost::Message as _;

use super::bitmap::{Bitmap, ROWS};
use super::chunk::Hot;
use super::description::Description;
use super::texts::{Symbol, Texts};
use crate::actors::entry::DeviceEntry;
use crate::query::TextField;

/// Longest text of `system_info` that can be searched and ordered by, in bytes; what is longer is indexed by its
/// beginning. As for metadata: a page token must have room for one in each of its keys.
pub const MAX_SYSTEM_TEXT_BYTES: usize = 1_024;

/// Columns of texts that few devices have for themselves.
#[derive(Clone, Copy)]
enum Column {
    Name,
    Type,
    Version,
    Os,
    Arch,
    HardwareModel,
}

const COLUMNS: usize = 6;

pub struct Described {
    occupied: Bitmap,
    entries: Box<[Option<Arc<DeviceEntry>>]>,
    /// See [`id_prefix`].
    id_prefixes: Box<[u128]>,
    registered_at: Box<[i64]>,
    cpu_cores: Box<[u32]>,
    texts: Texts,
    columns: Box<[[Symbol; COLUMNS]]>,
    attributes: Box<[Box<[Attribute]>]>,
}

/// A text of a row that is rarely asked for, by what it is.
#[derive(Clone, Copy)]
struct Attribute {
    key: Key,
    value: Symbol,
}

/// What an attribute is: two bits of kind, then a number.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Key(u32);

const KIND_SHIFT: u32 = 30;

impl Key {
    fn system(field: TextField) -> Self {
        Self(field as u32)
    }

    fn label(key: Symbol) -> Self {
        Self(1 << KIND_SHIFT | key.number())
    }

    fn metadata(key: Symbol) -> Self {
        Self(2 << KIND_SHIFT | key.number())
    }

    /// The symbol that the key uses, if it uses one.
    fn symbol(self) -> Symbol {
        match self.0 >> KIND_SHIFT {
            0 => Symbol::NONE,
            _ => Symbol::from_number(self.0 & ((1 << KIND_SHIFT) - 1)),
        }
    }
}

/// The first 16 bytes of an id, so that most pairs of ids are told apart without following two pointers each. Compares
/// as the ids do, unless it is equal.
pub fn id_prefix(id: &str) -> u128 {
    let mut prefix = [0; 16];
    let bytes = id.len().min(16);
    prefix[..bytes].copy_from_slice(&id.as_bytes()[..bytes]);
    u128::from_be_bytes(prefix)
}

/// Where the values of one text field or note lie in a chunk.
pub enum TextColumn {
    Id,
    /// One symbol a row.
    Symbols(usize),
    /// Any number of them a row.
    Attributes(AttributeKey),
    /// No row of the chunk has one.
    Nowhere,
}

/// Which attributes of the rows are meant; good for the chunk that it came from.
#[derive(Clone, Copy)]
pub struct AttributeKey(Key);

/// A note's kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notes {
    Labels,
    Metadata,
}

impl Described {
    pub(super) fn new() -> Self {
        Self {
            occupied: Bitmap::default(),
            entries: vec![None; ROWS].into(),
            id_prefixes: vec![0; ROWS].into(),
            registered_at: vec![0; ROWS].into(),
            cpu_cores: vec![0; ROWS].into(),
            texts: Texts::default(),
            columns: vec![[Symbol::NONE; COLUMNS]; ROWS].into(),
            attributes: (0..ROWS).map(|_| Box::default()).collect(),
        }
    }

    pub fn occupied(&self) -> &Bitmap {
        &self.occupied
    }

    pub fn entry(&self, row: usize) -> Option<&Arc<DeviceEntry>> {
        self.entries[row].as_ref()
    }

    pub fn id_prefix(&self, row: usize) -> u128 {
        self.id_prefixes[row]
    }

    pub fn id(&self, row: usize) -> &str {
        self.entries[row].as_ref().map_or("", |entry| entry.id.as_str())
    }

    pub fn registered_at(&self, row: usize) -> i64 {
        self.registered_at[row]
    }

    /// 0 is not known.
    pub fn cpu_cores(&self, row: usize) -> f64 {
        f64::from(self.cpu_cores[row])
    }

    pub fn texts(&self) -> &Texts {
        &self.texts
    }

    /// Makes the row that of `entry`.
    pub fn occupy(&mut self, row: usize, entry: Arc<DeviceEntry>) {
        self.id_prefixes[row] = id_prefix(entry.id.as_str());
        self.entries[row] = Some(entry);
        self.occupied.insert(row);
    }

    /// Makes the row nobody's.
    pub fn vacate(&mut self, row: usize) -> Option<Arc<DeviceEntry>> {
        self.occupied.remove(row);
        for symbol in std::mem::replace(&mut self.columns[row], [Symbol::NONE; COLUMNS]) {
            self.texts.release(symbol);
        }
        let attributes = std::mem::take(&mut self.attributes[row]);
        self.release(&attributes);
        self.entries[row].take()
    }

    /// Takes over a record; `version` is the one that the device reported, if it did.
    pub fn describe(&mut self, hot: &Hot, row: usize, record: &Description<'_>, version: Option<&str>) {
        // Bytes that this server encoded itself; should they not decode, the rest is still indexed.
        let system = SystemInfo::decode(record.system_info).unwrap_or_default();
        self.registered_at[row] = record.registered_at.as_millis();
        self.cpu_cores[row] = system.cpu_cores;
        hot.set_totals(row, system.memory_mb, if system.disk_gb.is_finite() { system.disk_gb } else { 0.0 });
        for (column, text) in [
            (Column::Name, record.name),
            (Column::Type, record.device_type),
            (Column::Version, version.unwrap_or(record.version)),
            (Column::Os, &system.os),
            (Column::Arch, &system.arch),
            (Column::HardwareModel, &system.hardware_model),
        ] {
            self.set(row, column, beginning(text));
        }
        let attributes = self.intern_attributes(record, &system);
        let before = std::mem::replace(&mut self.attributes[row], attributes);
        self.release(&before);
    }

    /// The version that the device reported.
    pub fn set_version(&mut self, row: usize, version: &str) {
        self.set(row, Column::Version, version);
    }

    fn set(&mut self, row: usize, column: Column, text: &str) {
        let symbol = self.texts.intern_unless_empty(text);
        let before = std::mem::replace(&mut self.columns[row][column as usize], symbol);
        self.texts.release(before);
    }

    fn intern_attributes(&mut self, record: &Description<'_>, system: &SystemInfo) -> Box<[Attribute]> {
        let texts = &mut self.texts;
        let singles = [
            (TextField::OsVersion, &system.os_version),
            (TextField::KernelVersion, &system.kernel_version),
            (TextField::Hostname, &system.hostname),
            (TextField::SerialNumber, &system.serial_number),
            (TextField::FirmwareVersion, &system.firmware_version),
            (TextField::AgentVersion, &system.agent_version),
            (TextField::TimeZone, &system.time_zone),
        ];
        let addresses = system.ip_addresses.iter().map(|address| (TextField::IpAddresses, address));
        let system_texts = singles.into_iter().chain(addresses).filter(|(_, text)| !text.is_empty());
        let mut attributes: Vec<Attribute> = system_texts
            .map(|(field, text)| Attribute { key: Key::system(field), value: texts.intern(beginning(text)) })
            .collect();
        attributes.reserve_exact(record.labels.len() + record.metadata.len());
        for (key, value) in record.labels.iter() {
            attributes.push(Attribute { key: Key::label(texts.intern(key)), value: texts.intern(value) });
        }
        for (key, value) in record.metadata.iter() {
            attributes.push(Attribute { key: Key::metadata(texts.intern(key)), value: texts.intern(value) });
        }
        attributes.into()
    }

    fn release(&mut self, attributes: &[Attribute]) {
        for attribute in attributes {
            self.texts.release(attribute.key.symbol());
            self.texts.release(attribute.value);
        }
    }

    /// Where `field` lies.
    pub fn column_of(&self, field: TextField) -> TextColumn {
        TextColumn::Symbols(match field {
            TextField::Id => return TextColumn::Id,
            TextField::Name => Column::Name,
            TextField::Type => Column::Type,
            TextField::Version => Column::Version,
            TextField::Os => Column::Os,
            TextField::Arch => Column::Arch,
            TextField::HardwareModel => Column::HardwareModel,
            TextField::OsVersion
            | TextField::KernelVersion
            | TextField::Hostname
            | TextField::SerialNumber
            | TextField::FirmwareVersion
            | TextField::AgentVersion
            | TextField::TimeZone
            | TextField::IpAddresses => return TextColumn::Attributes(AttributeKey(Key::system(field))),
        } as usize)
    }

    /// Where the notes named `key` lie.
    pub fn column_of_note(&self, notes: Notes, key: &str) -> TextColumn {
        match (self.texts.find(key), notes) {
            (None, _) => TextColumn::Nowhere,
            (Some(key), Notes::Labels) => TextColumn::Attributes(AttributeKey(Key::label(key))),
            (Some(key), Notes::Metadata) => TextColumn::Attributes(AttributeKey(Key::metadata(key))),
        }
    }

    /// The symbol of a row in a column of [`TextColumn::Symbols`].
    pub fn symbol(&self, row: usize, column: usize) -> Symbol {
        self.columns[row][column]
    }

    /// The row's values of an attribute, in their order.
    pub fn values(&self, row: usize, key: AttributeKey) -> impl Iterator<Item = Symbol> + '_ {
        self.attributes[row].iter().filter(move |attribute| attribute.key == key.0).map(|attribute| attribute.value)
    }

    /// The device's type, and its version: reported, else registered. Empty where there is none.
    pub fn type_and_version(&self, row: usize) -> (&str, &str) {
        let text = |column| self.texts.get(self.symbol(row, column as usize)).unwrap_or_default();
        (text(Column::Type), text(Column::Version))
    }

    /// The first text of a row in a column.
    pub fn first_text(&self, row: usize, column: &TextColumn) -> Option<&str> {
        match column {
            TextColumn::Id => Some(self.id(row)),
            TextColumn::Symbols(column) => self.texts.get(self.symbol(row, *column)),
            TextColumn::Attributes(key) => self.values(row, *key).next().and_then(|value| self.texts.get(value)),
            TextColumn::Nowhere => None,
        }
    }
}

/// `text`, or as much of its beginning as is indexed.
fn beginning(text: &str) -> &str {
    let end = (0..=MAX_SYSTEM_TEXT_BYTES.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
    &text[..end.unwrap_or(0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_order_as_ids_do_or_are_equal() {
        let ids = ["1", "A", "a", "a-", "a.", "aa", "device-0000000000000001", "device-0000000000000002", "z"];
        let mut sorted = ids;
        sorted.sort_unstable();
        for (a, b) in sorted.iter().zip(&sorted[1..]) {
            assert!(id_prefix(a) <= id_prefix(b), "{a} and {b}");
        }
        assert_eq!(id_prefix(ids[6]), id_prefix(ids[7]));
        assert!(id_prefix("a") < id_prefix("a-"));
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        let long = "é".repeat(600);
        assert_eq!(beginning(&long).len(), MAX_SYSTEM_TEXT_BYTES);
        assert_eq!(beginning(&format!("x{long}")).len(), MAX_SYSTEM_TEXT_BYTES - 1);
        assert_eq!(beginning("short"), "short");
    }
}
