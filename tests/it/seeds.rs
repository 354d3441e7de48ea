//! What the fuzz targets check, on their committed seeds: the properties stay in step with the code without a fuzzer, and
//! an input that once broke them is tried for ever.

use std::{fs, path::Path};

#[path = "../../fuzz/fuzz_targets/hf/properties.rs"]
mod hf;

#[test]
fn the_seeds_of_the_protocol_hold() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/hf");
    let seeds: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(seeds.len() >= 12, "{} seeds", seeds.len());
    for seed in seeds {
        hf::hold(&fs::read(&seed).unwrap());
    }
}
