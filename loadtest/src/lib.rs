//! A simulated fleet of devices: load, latency, and an audit of what the server acknowledged.
//!
//! The binary `fleetd-loadtest` drives a running server; the server's own tests use the same parts as a library:
//!
//! - [`Client`] makes single calls over Connect, Connect JSON or gRPC.
//! - [`Fleet`] registers simulated devices and [`Run`]s their heartbeats on threads of their own, through restarts of
//!   the server, while a ledger remembers what was acknowledged.
//! - [`UpdateFleet`] lets a fleet take updates, well or badly, and watches what the server tells it; [`updater`] is how
//!   one of its devices does.
//! - [`verify()`] compares that [`Ledger`] with ClickHouse, heartbeat by heartbeat.
//!
//! It knows the contract (`fleetd-proto`) and nothing of the server: wire formats, status codes and the audit are its
//! own, so that it cannot repeat the server's mistakes.
mod clickhouse;
mod client;
mod code;
pub mod compare;
mod device;
mod drift;
mod error;
mod fleet;
mod keys;
mod latency;
mod ledger;
mod link;
mod model;
mod random;
mod report;
mod run;
mod schedule;
mod slot;
mod target;
mod transport;
pub mod update_fleet;
pub mod updater;
mod updating;
mod verify;
mod wire;

pub use clickhouse::ClickHouse;
pub use client::{Client, Reply};
pub use code::Code;
pub use drift::{Drift, Extras};
pub use error::LoadError;
pub use fleet::{Fleet, FleetOptions};
pub use keys::default_keys_path;
pub use ledger::{Entry, Ledger, Trail};
pub use report::Report;
pub use run::{Load, Progress, Run};
pub use target::Target;
pub use update_fleet::{Pick, Snapshot, UpdateFleet, UpdateFleetOptions};
pub use updater::{Behaviour, Violations};
pub use verify::{verify, Verdict};
pub use wire::{CallError, Protocol, Refusal};
