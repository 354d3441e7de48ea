//! latentgate: a gRPC edge proxy and cache for hybrid inference.
//!
//! Generation services hand it the heavy ends of a latent-diffusion pipeline (VAE decode, VAE encode); it answers from
//! memory, from disk, from a computation already in flight, from its own engine or an endpoint's. The rooms, from the
//! ground up; a module imports lower floors and its own room only, and `tests/it/architecture.rs` holds that:
//!
//! ```text
//! 5  main  cli  app  config  telemetry          composition
//! 4  front/{grpc, web, cors, admin, listen, ..} what speaks to clients
//! 3  pipeline  inventory                        the one path of a request; what is kept, for operators
//! 2  admission  clients  flight  route          flow
//! 1  cache/{memory, disk, fill}  backend/local  weights   resources
//! 0  error .. key, body, artifact, render, hf   ground: pure
//! ```
//!
//! Start at [`App`]; the path of a request is [`pipeline`].

// Floor 0: each module imports only modules above it.
pub mod error;
pub mod metrics;
pub mod deadline;
pub mod trace;
pub mod logs;
pub mod hops;
pub mod progress;
pub mod task;
pub mod tensor;
pub mod float;
pub mod latents;
pub mod picture;
pub mod render;
pub mod preview;
pub mod model;
pub mod job;
pub mod key;
pub mod meta;
pub mod body;
pub mod artifact;
pub mod hf;

// Floor 1: resources.
pub mod backend;
pub mod cache;
pub mod weights;

// Floor 2: flow.
pub mod admission;
pub mod clients;
pub mod flight;
pub mod route;

// Floor 3.
pub mod inventory;
pub mod pipeline;

// Floor 4: fronts.
pub mod front;

// Floor 5: composition.
pub mod app;
pub mod cli;
pub mod config;
pub mod telemetry;

/// The wire's messages, clients, and the server of `CacheAdmin`, generated from `proto/`; its comments are the API
/// reference.
#[allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub, unused_qualifications)]
pub mod proto {
    tonic::include_proto!("latentgate.v1");
    include!(concat!(env!("OUT_DIR"), "/cache_admin/latentgate.v1.rs"));

    /// The descriptor set of the data port, for reflection.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/latents.fds"));
    /// The admin port's.
    pub const ADMIN_DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/cache_admin.fds"));
}

pub use app::App;
pub use config::Config;
