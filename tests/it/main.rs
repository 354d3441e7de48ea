//! The one integration binary: the real app on ephemeral loopback ports, the real client, gates and conditions instead of sleeps.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::float_cmp,
    clippy::needless_for_each,
    clippy::unnecessary_wraps,
    unreachable_pub,
    reason = "tests: an unwrap is an assertion, counts are whole numbers, and what did not run is said aloud"
)]

mod support;

mod admission;
mod architecture;
mod bad_http;
mod bad_input;
#[cfg(feature = "local")]
mod batching;
#[cfg(feature = "local")]
mod bench;
#[cfg(feature = "local")]
mod cache_admin;
#[cfg(feature = "local")]
mod chain;
#[cfg(feature = "local")]
mod cli;
mod clients;
mod coalescing;
mod connections;
mod dependencies;
#[cfg(feature = "local")]
mod derive;
mod diffusers;
mod digest_first;
mod disk;
#[cfg(feature = "local")]
mod drain;
mod edge;
mod faults;
mod flips;
mod http;
#[cfg(feature = "local")]
mod kill;
#[cfg(feature = "local")]
mod logs;
mod memory;
mod mtls;
mod observability;
mod operations;
#[cfg(feature = "local")]
mod parity;
mod policies;
mod reload;
mod routes;
#[cfg(feature = "local")]
mod secrets;
mod seeds;
#[cfg(feature = "local")]
mod traces;
mod traces_off;
mod unix_socket;
mod upstream;
mod upstream_faults;
mod upstream_trust;
mod video;
mod wire;
