//! The frames of a journal segment after any damage.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fleetd_fuzz::journal_segment(bytes));
