//! The contract of fleetd: everything that crosses its door.
//!
//! - [`v1`]: the messages of `fleetd/v1/*.proto`, generated at build time.
//! - [`json`]: reads and writes them as protobuf JSON, with errors that name the field.
//! - [`wkt`]: the well-known types that they use, with the JSON that the API reference shows.
//! - [`METHODS`]: every RPC with its shape and its permission; dispatch and the authorization test walk it.
//! - [`FILE_DESCRIPTOR_SET`]: what server reflection serves.

pub mod json;
mod method;
pub mod wkt;

pub use method::{Method, MethodKind, METHODS};
pub use wkt::{Duration, FieldMask, Timestamp};

/// The messages of package `fleetd.v1`; the comments are those of the `.proto` files. `Debug` shows no field that is
/// marked `debug_redact` there.
// The code of this module is written by prost-build and pbjson-build: its style is theirs, and no lint on style can be
// answered here. Its behaviour is tested in `tests/`.
#[allow(clippy::all, rustdoc::invalid_html_tags, rustdoc::broken_intra_doc_links)]
pub mod v1 {
    #[allow(unused_imports)]
    use crate::json::read::NextValueOrDefault as _;

    include!(concat!(env!("OUT_DIR"), "/fleetd.v1.rs"));
    include!(concat!(env!("OUT_DIR"), "/fleetd.v1.serde.rs"));
    include!(concat!(env!("OUT_DIR"), "/redacted.rs"));
}

/// An encoded `google.protobuf.FileDescriptorSet` of all files of the contract and their imports, each after those
/// that it imports, without comments.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
