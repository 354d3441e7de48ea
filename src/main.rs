//! latentgate
fn main() {}
