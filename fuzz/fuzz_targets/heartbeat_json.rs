//! A heartbeat as protobuf JSON: what is read can be written, and reads the same.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fleetd_fuzz::heartbeat_json(bytes));
