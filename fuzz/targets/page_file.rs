//! The fuzz target `page_file`: see `holdover_fuzz::TARGETS`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| holdover_fuzz::run("page_file", data));
