//! The actors, and what each owns.
//!
//! | actor | state it owns | mailbox | restart rule |
//! |---|---|---|---|
//! | [`device::DeviceActor`], one a live device | heartbeats since it was made, boots seen, the device's pace | actix's default of 16; senders wait | by the directory, on the next message, from the device's entry |
//!
//! Actors run on *shards*: arbiters of their own, chosen by a hash of the device id, so that one device's messages
//! are handled in order and two devices rarely wait for each other. Nothing outside this module sees an address:
//! [`directory::DeviceDirectory`] is the handle.
pub mod device;
pub mod directory;
pub mod entry;
