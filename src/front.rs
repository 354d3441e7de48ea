//! What speaks to clients. Fronts use the pipeline; they know no tier and no backend.

pub mod admin;
pub mod drain;
pub mod grpc;
pub mod listen;
mod record;
mod status;
