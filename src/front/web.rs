//! gRPC-web: the gRPC services for browsers, whose scripts see neither HTTP/2 frames nor trailers.
//!
//! Requests that say they are gRPC-web are translated to gRPC and their answers back (trailers become a last frame of the
//! body, `-text` becomes base64), over HTTP/1.1 as over HTTP/2. Browsers send a request whole before they read, so a call
//! is one message up and a stream down. All other requests go by untouched: tonic-web would answer 400 to any other
//! HTTP/1.1 request, and payloads of gRPC itself have nothing to gain here.

use std::convert::Infallible;

use axum::{
    Router,
    body::Body,
    extract::Request,
    middleware::{Next, from_fn},
    response::{IntoResponse as _, Response},
};
use http::{HeaderMap, StatusCode, header::CONTENT_TYPE};
use tonic_web::GrpcWebLayer;
use tower::{Layer as _, ServiceExt as _, service_fn};

/// How the content type of every kind of gRPC-web begins.
const GRPC_WEB: &[u8] = b"application/grpc-web";
/// The messages that are spoken here, bare and as base64; not JSON, not Thrift.
const SPOKEN: [&[u8]; 4] =
    [GRPC_WEB, b"application/grpc-web+proto", b"application/grpc-web-text", b"application/grpc-web-text+proto"];

/// The same gRPC routes, which speak gRPC-web too.
pub fn over(grpc: Router) -> Router {
    grpc.layer(from_fn(translate))
}

async fn translate(request: Request, next: Next) -> Response {
    match content_type(request.headers()) {
        Some(kind) if SPOKEN.contains(&kind) => {}
        // Not gRPC's either, although it begins like it.
        Some(kind) if kind.starts_with(GRPC_WEB) => return StatusCode::UNSUPPORTED_MEDIA_TYPE.into_response(),
        _ => return next.run(request).await,
    }
    let grpc = service_fn(move |request: http::Request<tonic::body::Body>| {
        let next = next.clone();
        async move { Ok::<_, Infallible>(next.run(request.map(Body::new)).await) }
    });
    let answer = GrpcWebLayer::new().layer(grpc).oneshot(request).await;
    answer.map_or_else(|never| match never {}, |response| response.map(Body::new))
}

fn content_type(headers: &HeaderMap) -> Option<&[u8]> {
    headers.get(CONTENT_TYPE).map(http::HeaderValue::as_bytes)
}
