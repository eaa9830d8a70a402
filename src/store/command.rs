//! Commands as the registry keeps them.
use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use fleetd_proto::v1::command::State;

use super::{Answer, StoreError, StoreFuture};
use crate::clock::UnixMillis;
use crate::ids::DeviceId;

/// A command to be queued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewCommand {
    /// A UUID, the same on all its devices.
    pub id: String,
    /// Makes a repeat of the call harmless for [`crate::commands::REQUEST_ID_LIFE`]; empty means none.
    pub request_id: String,
    /// Who sent it; part of the name that `request_id` is.
    pub created_by: String,
    pub kind: String,
    pub parameters: BTreeMap<String, String>,
    pub payload: Bytes,
    pub created_at: UnixMillis,
    pub expires_at: UnixMillis,
    pub timeout: Option<Duration>,
}

/// What became of a command that was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    /// Of the first call, when this one was a repeat of it.
    pub id: String,
    /// Devices that have it waiting.
    pub targets: u32,
    /// Devices that had too many waiting already.
    pub refused: u32,
    pub created_at: UnixMillis,
    pub expires_at: UnixMillis,
}

/// What a device says of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    pub command_id: String,
    /// ACKED, SUCCEEDED or FAILED.
    pub state: State,
    /// An encoded `CommandResult`, which the store does not look into.
    pub result: Bytes,
}

/// What one heartbeat did to its device's commands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exchange {
    /// To deliver, in order; `attempt` is counted already.
    pub commands: Vec<Delivery>,
    /// Whether any are pending still, these included.
    pub has_pending: bool,
    /// Reports that changed something.
    pub applied: u64,
    /// Reports of commands that are unknown, over, or another device's.
    pub ignored: u64,
    pub expired: u64,
}

/// A command on its way to a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    pub id: String,
    pub kind: String,
    pub parameters: BTreeMap<String, String>,
    pub payload: Bytes,
    pub created_at: UnixMillis,
    pub expires_at: UnixMillis,
    pub timeout: Option<Duration>,
    /// 1 for the first delivery.
    pub attempt: u32,
}

/// Which commands to list; what is set narrows the list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommandQuery {
    pub device: Option<String>,
    pub command_id: Option<String>,
    pub state: Option<State>,
    /// Place of the last item of the page before.
    pub after: Option<CommandPlace>,
    pub limit: usize,
}

/// Where a command on a device stands in the list: newest command first, then by device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommandPlace {
    pub command: i64,
    pub device: i64,
}

/// One command on one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandRecord {
    pub place: CommandPlace,
    pub device_id: String,
    /// `attempt` is the number of deliveries so far.
    pub command: Delivery,
    pub created_by: String,
    pub state: State,
    pub delivered_at: Option<UnixMillis>,
    pub finished_at: Option<UnixMillis>,
    /// An encoded `CommandResult`; empty when the device has said nothing.
    pub result: Bytes,
}

/// One page of a list, and how many there are on all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommandPage {
    pub records: Vec<CommandRecord>,
    pub total: u64,
}

/// What became of a cancellation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Canceled {
    pub canceled: u64,
    /// Devices that have it, or where it is over.
    pub too_late: u64,
}

/// What a sweep did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    pub expired: u64,
    /// Rows of commands that nobody reads any more.
    pub pruned: u64,
    /// Whether the sweep stopped at its bound, and there may be more to do.
    pub has_more: bool,
}

/// Commands that came to nothing on a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CommandFailures {
    pub failed: u32,
    pub expired: u32,
}

/// The commands of the fleet. All decisions on one command's state are made in the registry's transactions, by the
/// rules of [`crate::commands`].
pub trait CommandStore: Send + Sync {
    /// Queues a command for devices, all or none; devices that are not registered are passed over. A repeat of a
    /// `request_id` queues nothing and answers as the first call did, if that queued something. More than a few thousand devices take several
    /// transactions, and no device sees the command before the last.
    ///
    /// # Errors
    /// [`StoreError::InProgress`] when the first call with this `request_id` is not over yet.
    fn send_command(&self, command: NewCommand, devices: Vec<DeviceId>) -> Answer<Result<Sent, StoreError>>;

    /// Applies what a device says of its commands, gives up those whose time ran out, and marks what is to be
    /// delivered now as delivered.
    fn exchange_commands(&self, device: &DeviceId, reports: Vec<Report>, now: UnixMillis) -> StoreFuture<Exchange>;

    fn list_commands(&self, query: CommandQuery) -> StoreFuture<CommandPage>;

    /// Takes a command back where it was not delivered yet; on one device or on all. `None` when there is no such
    /// command.
    fn cancel_command(
        &self,
        command_id: &str,
        device: Option<&DeviceId>,
        now: UnixMillis,
    ) -> Answer<Result<Option<Canceled>, StoreError>>;

    /// Gives up commands whose time ran out, and deletes those that are over since long; a bounded number at a time.
    fn sweep_commands(&self, now: UnixMillis) -> StoreFuture<Swept>;

    /// For each of some thousand devices at most, in their order, how many of its last
    /// [`crate::commands::REMEMBERED`] commands failed or expired since a moment. A device that is not registered has none.
    fn command_failures(&self, devices: Vec<DeviceId>, since: UnixMillis) -> StoreFuture<Vec<CommandFailures>>;

    /// Names every device with pending commands, in no order. For the start of the server: blocks.
    fn for_each_commanded_device(&self, each: &mut dyn FnMut(&str)) -> Result<(), StoreError>;
}
