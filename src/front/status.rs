//! Renders a row of the error table: as a gRPC status with google.rpc details, or as an HTTP status with the protocol's
//! JSON. No other code names a status.

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::Frame;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::{
    error::{Error, GrpcCode},
    hf,
};

/// `ErrorInfo.domain` of every error.
const DOMAIN: &str = "latentgate";

/// What a client of HTTP has to show, and is told so.
const CHALLENGE: HeaderValue = HeaderValue::from_static("Bearer realm=\"latentgate\"");

/// The status of an error, with its details.
pub(super) fn grpc(error: &Error) -> Status {
    let row = error.row();
    let mut details = ErrorDetails::with_error_info(row.reason, DOMAIN, []);
    if let Some(field) = error.field_name() {
        details.add_bad_request_violation(field, error.message());
    }
    if let Some(wait) = error.retry_after() {
        details.set_retry_info(Some(wait));
    }
    if let Some(resource) = error.resource() {
        details.set_resource_info(resource.sort, &resource.name, "", error.message());
    }
    Status::with_error_details(code(row.grpc), error.message(), details)
}

/// The HTTP response of an error.
pub(super) fn http(error: &Error) -> Response<Body> {
    let row = error.row();
    let mut response =
        json(StatusCode::from_u16(row.http).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), error.message());
    if row.grpc == GrpcCode::Unauthenticated {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, CHALLENGE);
    }
    if let Some(wait) = error.retry_after() {
        // The header knows whole seconds alone, and too early is of no use.
        let seconds = wait.as_secs_f64().ceil().max(1.0) as u64;
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// Nothing is served at this path, or for this host.
pub(super) fn not_found(message: &str) -> Response<Body> {
    json(StatusCode::NOT_FOUND, message)
}

/// The same for whoever may speak gRPC, and hears it in gRPC then: a bare 404 looks like a fault of the transport.
pub(super) fn nowhere(request: &Request<Body>, message: &str) -> Response<Body> {
    if is_grpc(request) {
        let message = format!("nothing is at {}: {message}", request.uri().path());
        return Status::unimplemented(message).into_http();
    }
    not_found(message)
}

/// Whether a request speaks gRPC, or gRPC-web.
pub(super) fn is_grpc<B>(request: &Request<B>) -> bool {
    let content_type = request.headers().get(header::CONTENT_TYPE);
    request.method() == Method::POST
        && content_type.is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

/// The path is served, for these methods.
pub(super) fn method_not_allowed(allowed: &'static str) -> Response<Body> {
    let mut response = json(StatusCode::METHOD_NOT_ALLOWED, &format!("the methods here are {allowed}"));
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allowed));
    response
}

fn json(status: StatusCode, message: &str) -> Response<Body> {
    let mut response = Response::new(Body::from(hf::error_body(message)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// The trailers that end a stream: success, or the status of an error.
pub(super) fn trailers(result: Result<(), &Error>) -> Frame<Bytes> {
    let end = match result {
        Ok(()) => Status::ok(""),
        Err(error) => grpc(error),
    };
    let mut map = HeaderMap::new();
    if end.add_header(&mut map).is_err() {
        // A status that does not fit headers is a bug; the stream still must not end as a success.
        map.clear();
        map.insert("grpc-status", HeaderValue::from_static("13"));
    }
    Frame::trailers(map)
}

const fn code(code: GrpcCode) -> Code {
    match code {
        GrpcCode::Cancelled => Code::Cancelled,
        GrpcCode::InvalidArgument => Code::InvalidArgument,
        GrpcCode::DeadlineExceeded => Code::DeadlineExceeded,
        GrpcCode::NotFound => Code::NotFound,
        GrpcCode::FailedPrecondition => Code::FailedPrecondition,
        GrpcCode::ResourceExhausted => Code::ResourceExhausted,
        GrpcCode::Unimplemented => Code::Unimplemented,
        GrpcCode::Internal => Code::Internal,
        GrpcCode::Unavailable => Code::Unavailable,
        GrpcCode::Unauthenticated => Code::Unauthenticated,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{ErrorKind, RETRY_AFTER, Resource};

    #[test]
    fn codes_are_grpcs_own_numbers() {
        for kind in ErrorKind::ALL {
            let status = grpc(&Error::new(kind, "x"));
            assert_eq!(status.code() as i32, kind.row().grpc as i32, "{kind:?}");
        }
    }

    #[test]
    fn details_name_field_retry_and_resource() {
        let status = grpc(&Error::bad_request("latents.shape", "wanted [n,c,h,w]"));
        let violations = status.get_details_bad_request().unwrap().field_violations;
        assert_eq!(violations[0].field, "latents.shape");
        let status = grpc(&Error::new(ErrorKind::Overloaded, "full"));
        assert_eq!(status.get_details_retry_info().unwrap().retry_delay, Some(RETRY_AFTER));
        assert_eq!(status.get_details_error_info().unwrap().reason, "OVERLOADED");
        let missing = Resource { sort: "model", name: "nope".to_owned() };
        let status = grpc(&Error::missing(ErrorKind::UnknownModel, missing, "no such model"));
        assert_eq!(status.get_details_resource_info().unwrap().resource_name, "nope");
    }
}
