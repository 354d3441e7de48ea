//! Streams that never end by themselves, such as a health watch, end with the drain.
//!
//! The server waits for open exchanges before it stops, so one client that watches the health would make every stop take
//! the whole grace period.

use std::convert::Infallible;

use axum::{Router, body::Body, middleware::map_response, response::Response};
use bytes::Bytes;
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use tokio_util::sync::CancellationToken;

use super::status;
use crate::error::{Error, ErrorKind};

/// The same routes, whose responses end with UNAVAILABLE, as gRPC trailers, when `stop` is cancelled before their own end.
pub fn end_with(router: Router, stop: CancellationToken) -> Router {
    router.layer(map_response(move |response: Response| {
        let stop = stop.clone();
        async move { response.map(|body| Body::new(StreamBody::new(until(body, stop)))) }
    }))
}

fn until(
    mut body: Body,
    stop: CancellationToken,
) -> impl futures_util::Stream<Item = Result<Frame<Bytes>, Infallible>> {
    async_stream::stream! {
        loop {
            let frame = tokio::select! {
                biased;
                frame = body.frame() => frame,
                () = stop.cancelled() => {
                    let error = Error::new(ErrorKind::Unavailable, "the server is draining");
                    yield Ok(status::trailers(Err(&error)));
                    return;
                }
            };
            match frame {
                Some(Ok(frame)) => yield Ok(frame),
                Some(Err(error)) => {
                    tracing::debug!(%error, "a stream ended badly");
                    return;
                }
                None => return,
            }
        }
    }
}
