//! The fuzz target `walk`: see `holdover_fuzz::TARGETS`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| holdover_fuzz::run("walk", data));
