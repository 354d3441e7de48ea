//! Fuzzes the parsers of the HTTP protocol. What must hold is in `hf/properties.rs`, which `cargo test` runs on the seeds.

#![no_main]

#[path = "hf/properties.rs"]
mod properties;

libfuzzer_sys::fuzz_target!(|input: &[u8]| properties::hold(input));
