//! The embedded ClickHouse: a real one, loaded as a shared library, behind ClickHouse's own HTTP interface.
//!
//! `fleetd serve` without `--clickhouse-url` starts `fleetd clickhouse` as a child (`process`). The child finds
//! the library (`locate`), loads it (`library`) and answers HTTP on loopback (`server`). The rest of fleetd
//! talks to it as to any ClickHouse, so there is one client path and one wire protocol, and a crash inside
//! ClickHouse's 500 MB of C++ cannot take the heartbeats with it.
//!
//! One request goes: `server` accepts it, `admission` lets it in or answers 503, `request` reads its URL and
//! headers, `statement` runs it on a thread of its own, reading the body and writing the answer through `body`. Native
//! for clients that name a protocol's revision passes `native_revision`.
mod admission;
mod body;
mod column_shape;
mod compression;
mod config;
mod data_lock;
mod exception;
mod forms;
mod framing;
mod input;
mod library;
mod locate;
mod native_blocks;
mod native_revision;
mod process;
mod request;
mod respond;
mod server;
mod sql;
mod statement;

pub use library::LibraryError;
pub use locate::{locate, LocateError, ENGINE_VERSION};
pub use process::{EngineMonitor, EngineOptions, EngineProcess};
pub use server::{run, ServerOptions};

use std::net::SocketAddr;
use std::path::PathBuf;

/// Why the embedded ClickHouse could not start or could not stay up.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error(transparent)]
    Locate(#[from] LocateError),
    #[error(transparent)]
    Library(#[from] LibraryError),
    #[error("cannot prepare the engine's data directory {}; check that it exists and is writable", path.display())]
    DataDir {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(
        "the engine's data directory {} is in use by {holder}; stop that server or choose another --data-dir",
        path.display()
    )]
    DataDirHeld { path: PathBuf, holder: String },
    #[error("cannot listen on {address} for ClickHouse's HTTP interface; choose another port or 0 for a free one")]
    Listen {
        address: SocketAddr,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot run the HTTP interface of the engine")]
    Runtime(#[source] std::io::Error),
    #[error("the engine did not answer its first statement: {0}")]
    FirstStatement(String),
    #[error("cannot start the engine as a child process from {}", executable.display())]
    Spawn {
        executable: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the engine stopped before it was ready ({status}); its last lines were:\n{last_lines}")]
    DiedAtStart { status: String, last_lines: String },
    #[error("the engine was not ready after {seconds} s; its last lines were:\n{last_lines}")]
    SlowStart { seconds: u64, last_lines: String },
}
