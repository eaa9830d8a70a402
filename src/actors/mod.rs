//! The actors, and what each owns.
//!
//! | actor | state it owns | mailbox | restart rule |
//! |---|---|---|---|
//! | [`device::DeviceActor`], one a live device | heartbeats since it was made, boots seen, the device's pace | as many as are let in at the door | by the directory, on the next message, from the device's entry |
//! | the directory's pacer, one | none: it reads the load | unused | none: it ends with the last device's actor and the directory |
//! | [`presence::PresenceKeeper`], one | facts that the registry has yet to take | unused | none: it does not end |
//! | [`deployment`]'s coordinators, one an open deployment, on a thread of their own | the deployment's decisions and devices, as the registry has them or will | actix's default of 16; senders wait | by the keeper of [`deployment::Deployments`] within a second, or by the next message, from the registry |
//! | [`sweeper::CommandSweeper`], one | none | unused | none: it does not end |
//!
//! A device's actor is made on the arbiter of the worker where its device's first message arrived, so that the messages of a
//! device that keeps its connection stay on one thread. One device's messages are handled in order. Nothing outside this
//! module sees an address: [`directory::DeviceDirectory`] is the handle.
pub mod deployment;
pub mod device;
pub mod directory;
pub mod entry;
pub mod lean;
pub mod pace;
pub mod presence;
pub mod sweeper;
