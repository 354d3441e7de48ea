//! What speaks to clients. Fronts use the pipeline; they know no tier and no backend.

use std::time::Duration;

use crate::trace::TraceContext;

pub mod access;
pub mod admin;
pub mod cors;
pub mod drain;
pub mod grpc;
pub mod guard;
pub mod http;
mod intake;
mod lease;
pub mod listen;
pub mod peer;
mod record;
mod status;
pub mod web;

/// What a request's `Via` headers say.
fn via(headers: &::http::HeaderMap) -> impl Iterator<Item = &str> {
    headers.get_all(::http::header::VIA).into_iter().filter_map(|value| value.to_str().ok())
}

/// The trace that a request's headers name. Most name none, and then nothing more is looked for.
fn trace(headers: &::http::HeaderMap) -> Option<TraceContext> {
    if !headers.contains_key("traceparent") {
        return None;
    }
    let values = |name| headers.get_all(name).into_iter().filter_map(|value: &::http::HeaderValue| value.to_str().ok());
    TraceContext::parse(values("traceparent"), values("tracestate"))
}

/// Times that requests are held to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// The longest a request may take, whatever its client allows.
    pub request: Duration,
    /// The longest a client may say nothing while its input is awaited, and read nothing while there is an answer.
    pub stall: Duration,
}
