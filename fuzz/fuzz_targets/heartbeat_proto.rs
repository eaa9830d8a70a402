//! A heartbeat as protobuf: decode, encode its rows, read them back.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fleetd_fuzz::heartbeat_proto(bytes));
