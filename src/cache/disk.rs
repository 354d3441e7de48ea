//! The disk tier.

pub mod index;
