//! Page sizes and tokens: a forged one is refused, a good one leads on.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fleetd_fuzz::page_token(bytes));
