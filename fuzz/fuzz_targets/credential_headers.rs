//! The headers that carry keys: no panic, and no key in an error.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fleetd_fuzz::credential_headers(bytes));
