//! fleetd takes the heartbeats of very large device fleets, knows every device live, and rolls software out to
//! them without breaking them. ARCHITECTURE.md follows one heartbeat through these modules.
pub mod actors;
pub mod analytics;
pub mod app;
pub mod artifacts;
pub mod auth;
pub mod clock;
pub mod commands;
pub mod config;
pub mod data_dir;
pub mod engine;
pub mod error;
pub mod events;
pub mod fleet;
pub mod health;
pub mod http;
pub mod ids;
pub mod metrics;
pub mod observe;
pub mod parquet;
pub mod presence;
pub mod query;
pub mod rollout;
pub mod sampler;
pub mod store;
pub mod telemetry;
