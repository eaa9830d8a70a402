//! Deployments as operators watch them: the real program, a simulated fleet that takes updates well or badly, and what
//! must come of each.
//!
//! In every scenario the devices are witnesses too: none of them may be commanded twice for one attempt, or offered two
//! updates at once, and never may more of them be at work than `max_parallel` allows.
#[path = "../support/mod.rs"]
mod support;

mod door;
mod fleet;
mod harm;
mod kill;
mod plain;
mod rig;
