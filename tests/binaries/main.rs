//! The files of updates, up and down, on the real server by every protocol that serves them.
#[path = "../support/mod.rs"]
mod support;

mod full_disk;
mod http;
mod interrupted;
mod memory;
mod refused;
mod round_trip;
mod transfer;

use sha2::{Digest as _, Sha256};
pub use support::artifacts;
use support::{Options, Server};

/// A server without rate limits.
pub fn server() -> Server {
    Server::with(Options::default().unlimited())
}

/// Bytes that look like nothing, the same ones for the same seed.
pub fn content(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// As the contract writes it.
pub fn checksum(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(bytes)))
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
