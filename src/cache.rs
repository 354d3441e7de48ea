//! Places artifacts live, and the map that leads to them from a spelling.

pub mod alias;
pub mod disk;
pub mod fill;
pub mod memory;
pub mod tier;
