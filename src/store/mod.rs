//! The registry of record: which devices exist and what they were told, apart from what they report.
//!
//! The rest of the server sees [`Store`], an object-safe trait made of one small trait a subject ([`DeviceStore`],
//! [`CommandStore`], [`UpdateStore`], [`BinaryStore`], [`ExportStore`], [`SettingStore`]; keys and webhooks join as traits and migrations
//! of their own).
//! Behind it stands [`sqlite`], the only folder that knows SQL. Heartbeats never come here: a device's `last_seen`
//! is written when it goes offline.
//!
//! A write is acknowledged when it is durable: neither a killed process nor a power cut takes it back (see
//! [`sqlite`] for what that costs). A write that is answered with an error may still have happened if the error is
//! [`StoreError::Backend`]; after all others it has not.
mod binary;
mod command;
mod device;
mod error;
mod export;
pub mod sqlite;
mod update;

use std::future::Future;
use std::pin::Pin;

pub use binary::{BinaryRecord, BinaryStore, NewBinary};
pub use command::{
    Canceled, CommandFailures, CommandPage, CommandPlace, CommandQuery, CommandRecord, CommandStore, Delivery,
    Exchange, NewCommand, Report, Sent, Swept,
};
pub use device::{Device, DeviceRow, InvalidMap, LastSeen, MapText};

pub use crate::clock::UnixMillis;
pub use error::StoreError;
pub use export::{ExportRecord, ExportState, ExportStore, ExportedFile, NewExport};
pub use update::{
    AttemptRecord, DeploymentChange, DeploymentDevice, DeploymentDeviceQuery, DeploymentQuery, DeploymentRecord,
    NewDeployment, NewUpdate, Paged, UpdateRecord, UpdateStore,
};

use crate::auth::KeyHash;
use crate::ids::DeviceId;

/// An answer that is on its way. Dropping it abandons the answer; a write may be done all the same.
pub type Answer<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// An [`Answer`] that may be a failure.
pub type StoreFuture<T> = Answer<Result<T, StoreError>>;

/// What becomes of a device, decided while no other change of it is under way. It runs where all writes wait for it,
/// so it does no more than edit the record.
pub type DeviceChange = Box<dyn FnOnce(&Device) -> Option<Device> + Send>;

/// Everything that the server keeps; share it as `Arc<dyn Store>`.
pub trait Store: DeviceStore + CommandStore + UpdateStore + BinaryStore + ExportStore + SettingStore {
    /// Counters for `/metrics`.
    fn stats(&self) -> StoreStats;
}

/// The devices of the fleet.
pub trait DeviceStore: Send + Sync {
    /// Adds a device.
    ///
    /// # Errors
    /// [`StoreError::AlreadyExists`] when its id is taken; the device there is left as it is.
    fn register(&self, device: Device) -> StoreFuture<()>;

    /// Adds devices in order, each with its own result in the same place; one that is refused stops no other. Not
    /// one transaction: after a crash some of them may be there.
    fn register_many(&self, devices: Vec<Device>) -> Answer<Vec<Result<(), StoreError>>>;

    /// The device with this id.
    fn device(&self, id: &DeviceId) -> StoreFuture<Option<Device>>;

    /// The devices with these ids, in the order of `ids`; those that are not there are left out.
    fn devices(&self, ids: Vec<DeviceId>) -> StoreFuture<Vec<Device>>;

    /// The device whose key has this hash.
    fn device_of_key(&self, key: &KeyHash) -> StoreFuture<Option<DeviceId>>;

    /// Up to `limit` devices whose ids come after `after` (from the first, without it), ordered by the bytes of
    /// their ids.
    fn list(&self, after: Option<&str>, limit: usize) -> StoreFuture<Vec<Device>>;

    /// How many devices there are.
    fn count(&self) -> StoreFuture<u64>;

    /// Changes a device in one transaction: `change` sees it as it is, and gives it back as it shall be, or `None` to
    /// leave it. Returns the device after it, its revision one more if it changed; `None` when there is no such device.
    /// The id, the key, the time of registration and `last_seen` stay, whatever `change` does to them.
    fn update(&self, id: &DeviceId, change: DeviceChange) -> StoreFuture<Option<Device>>;

    /// Removes the device with this id and this key.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when there is none, also when the id was registered anew since.
    fn remove(&self, id: &DeviceId, key: &KeyHash) -> StoreFuture<()>;

    /// Notes when devices were last seen, and whether they are gone since. Never moves a time back, and leaves the revision alone: it is no change
    /// that an operator could conflict with. Devices that are gone are passed over.
    fn touch(&self, seen: Vec<LastSeen>) -> StoreFuture<()>;

    /// Shows every device to `each`, in no particular order, as of one moment; returns how many there were. For
    /// the start of the server: works on the calling thread, and blocks it.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] when the file cannot be read to its end; what was shown until then was true.
    fn for_each_device(&self, each: &mut dyn FnMut(DeviceRow<'_>)) -> Result<u64, StoreError>;
}

/// Small facts of the installation, by name.
pub trait SettingStore: Send + Sync {
    fn setting(&self, name: &str) -> StoreFuture<Option<Vec<u8>>>;

    /// Sets or replaces.
    fn set_setting(&self, name: &str, value: Vec<u8>) -> StoreFuture<()>;
}

/// What the store has done since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreStats {
    /// Transactions that were committed.
    pub transactions: u64,
    /// Writes in them.
    pub writes: u64,
    /// Writes that waited or were under way when this was taken.
    pub writes_queued: u64,
    /// Reads answered.
    pub reads: u64,
    /// Reads and writes that were turned away because a queue was full.
    pub overloaded: u64,
    /// Writes that failed together with their transaction.
    pub writes_failed: u64,
}
