//! A registration as protobuf JSON: what is let in fits every bound.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fleetd_fuzz::register_json(bytes));
