//! The fuzz target `radix`: see `holdover_fuzz::TARGETS`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| holdover_fuzz::run("radix", data));
