//! Filters and orders: refused with a place, or written as they were read.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fleetd_fuzz::query(bytes));
