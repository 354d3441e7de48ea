//! The routes, as hyper calls them for one connection: each request is told who its peer is, and is in progress until the
//! last of its answer has been handed over. A panic is that request's error: of a connection that carries others nothing
//! else ends.

use std::{
    convert::Infallible,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use axum::{Router, body::Body};
use bytes::Bytes;
use http::{HeaderValue, Request, Response, header};
use http_body::{Frame, SizeHint};
use hyper::{body::Incoming, service::Service};
use hyper_util::service::{TowerToHyperService, TowerToHyperServiceFuture};
use pin_project_lite::pin_project;

use super::conversation::{Busy, InProgress};
use crate::{
    error::Error,
    front::{peer::Peer, status},
};

/// The service of one connection.
#[derive(Clone)]
pub(super) struct Served {
    router: TowerToHyperService<Router>,
    peer: Arc<Peer>,
    busy: Arc<Busy>,
    /// Whether an answer is the last of its connection, and says so.
    is_parting: Option<Arc<AtomicBool>>,
}

pin_project! {
    /// An answer in the making.
    pub(super) struct Answering {
        #[pin]
        answer: TowerToHyperServiceFuture<Router, Request<Incoming>>,
        is_grpc: bool,
        in_progress: Option<InProgress>,
        is_parting: Option<Arc<AtomicBool>>,
    }
}

pin_project! {
    /// The body of an answer. With it ends the request.
    pub(super) struct Counted {
        #[pin]
        body: Body,
        in_progress: Option<InProgress>,
    }
}

impl Served {
    pub(super) fn new(router: Router, peer: Peer, is_parting: Option<Arc<AtomicBool>>) -> Self {
        Self { router: TowerToHyperService::new(router), peer: Arc::new(peer), busy: Busy::new(), is_parting }
    }

    pub(super) fn busy(&self) -> &Arc<Busy> {
        &self.busy
    }
}

impl Service<Request<Incoming>> for Served {
    type Response = Response<Counted>;
    type Error = Infallible;
    type Future = Answering;

    fn call(&self, mut request: Request<Incoming>) -> Answering {
        request.extensions_mut().insert(self.peer.clone());
        let (in_progress, is_parting) = (Some(self.busy.begin()), self.is_parting.clone());
        let is_grpc = status::is_grpc(&request);
        Answering { answer: self.router.call(request), is_grpc, in_progress, is_parting }
    }
}

impl Future for Answering {
    type Output = Result<Response<Counted>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut answer = match catch_unwind(AssertUnwindSafe(|| this.answer.poll(cx))) {
            Ok(polled) => {
                let Ok(answer) = ready!(polled);
                answer
            }
            Err(_panic) => panicked(*this.is_grpc),
        };
        if this.is_parting.as_ref().is_some_and(|is_parting| is_parting.load(Ordering::Relaxed)) {
            answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        let in_progress = this.in_progress.take();
        Poll::Ready(Ok(answer.map(|body| Counted { body, in_progress })))
    }
}

impl http_body::Body for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let body = self.project().body;
        catch_unwind(AssertUnwindSafe(|| body.poll_frame(cx))).unwrap_or_else(|_panic| {
            let error = Error::internal("making the answer panicked");
            tracing::error!(%error, "an answer broke off");
            Poll::Ready(Some(Err(axum::Error::new(error))))
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The answer to a request whose handling has panicked. What the panic said is on standard error already.
fn panicked(is_grpc: bool) -> Response<Body> {
    let error = Error::internal("handling the request panicked");
    tracing::error!(%error, "a request broke off");
    if is_grpc { status::grpc(&error).into_http() } else { status::http(&error) }
}
