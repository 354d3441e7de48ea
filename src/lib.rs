//! latentgate
pub mod tensor;
/// Generated.
#[allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub)]
pub mod proto { tonic::include_proto!("latentgate.v1"); }
