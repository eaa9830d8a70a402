//! What becomes of a command on one device: the states, and what a heartbeat delivers. Pure; the registry keeps
//! commands and applies these rules in its transactions, so what is decided is durable before a device hears of it.
mod delivery;
mod state;

pub use delivery::{plan, Pending, Plan};
pub use state::{next, Event};

use std::time::Duration;

/// Commands that may wait for one device, delivered and unfinished ones included. A device that is away for its
/// commands' whole life gets so many at its return, not thousands.
pub const MAX_PENDING: usize = 64;

/// Most commands in one reply to a heartbeat; more come with the next one.
pub const MAX_DELIVERED: usize = 16;

/// Most bytes of payloads and parameters in one reply. One command may be larger, and comes alone.
pub const MAX_DELIVERED_BYTES: usize = 256 << 10;

/// A command that was delivered and not acknowledged is delivered again, not sooner than this: heartbeats that
/// overtake each other must not each carry it.
pub const REDELIVER_AFTER: Duration = Duration::from_secs(10);

/// How long a device may work on a command that has no timeout of its own, after which it is given up.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);

/// How long a command stays readable after its life is over.
pub const RETENTION: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// The latest commands of a device that are looked through for failures: one every minute and a half for a day.
pub const REMEMBERED: usize = 1_000;

/// For how long a `request_id` answers for its call.
pub const REQUEST_ID_LIFE: Duration = Duration::from_secs(24 * 60 * 60);
