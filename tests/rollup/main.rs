//! The computed tables against a real ClickHouse: what they say is what their heartbeats say, whatever dies in between.
mod cost;
mod exact;
mod fixture;
mod kill;
mod repair;
mod resume;
#[path = "../support/mod.rs"]
mod support;
