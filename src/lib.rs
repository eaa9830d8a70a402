//! fleetd takes the heartbeats of very large device fleets, knows every device live, and rolls software out to
//! them without breaking them. ARCHITECTURE.md follows one heartbeat through these modules.
pub mod auth;
pub mod error;
pub mod ids;
pub mod store;
