//! The HTTP front: the protocol of diffusers' remote decode and encode, thin over `hf.rs` and the pipeline.
//!
//! `POST /decode/{model}` and `POST /encode/{model}`; `POST /` and `/predict` where the host name stands for a model and
//! a task, so that clients with endpoints wired in work unchanged. What a request asks for stands in its head, so it is
//! judged before a byte of its body is read. A failure is `{"error": "..."}` with the status of the error table; after
//! the first byte of an answer it is a body that breaks off, never a clean short end.

use std::sync::Arc;

use axum::{
    Router,
    body::Body,
    extract::{Path, State, rejection::PathRejection},
    response::IntoResponse as _,
    routing::any,
};
use http::{Method, Request, Response, Version, request::Parts};
use tracing::Instrument as _;

use super::{
    Times,
    guard::Guard,
    lease::Leases,
    peer::Peer,
    record::{Record, Stage},
    status, trace, via,
};
use crate::{
    deadline::Deadline,
    error::{Error, ErrorKind},
    metrics::{Front, Metrics},
    model::Task,
    pipeline::{Pipeline, Request as Asked},
};

mod answer;
mod asked;
mod hosts;
mod input;
mod policy;

use answer::{Answer, Wishes};
use asked::Head;
pub use hosts::{Hosts, Target};
use input::Input;

/// The front. Clones share the pipeline.
#[derive(Clone)]
pub struct HttpFront(Arc<Shared>);

struct Shared {
    pipeline: Pipeline,
    guard: Guard,
    metrics: Metrics,
    times: Times,
    hosts: Hosts,
    leases: Leases,
}

/// What an endpoint answers to `GET`.
const OK: &str = "Ok";

/// What is served, for who asks for something else.
const NOWHERE: &str = "this port has POST /decode/{model}, POST /encode/{model}, and as gRPC latentgate.v1.Latents; \
                       metrics and latentgate.v1.CacheAdmin are on the admin port";

/// Methods of the paths that compute.
const METHODS: &str = "GET, HEAD, POST";

impl HttpFront {
    /// The front of a pipeline.
    pub fn new(pipeline: Pipeline, guard: Guard, metrics: Metrics, times: Times, hosts: Hosts) -> Self {
        Self(Arc::new(Shared { pipeline, guard, metrics, times, hosts, leases: Leases::new() }))
    }

    /// The routes. What is at no path of theirs is a JSON 404.
    pub fn router(self) -> Router {
        Router::new()
            .route("/decode/{model}", any(decode))
            .route("/decode/{model}/", any(decode))
            .route("/encode/{model}", any(encode))
            .route("/encode/{model}/", any(encode))
            .route("/predict", any(by_host))
            .route("/", any(by_host))
            .route("/health", any(health))
            .fallback(|request: Request<Body>| async move { status::nowhere(&request, NOWHERE) })
            .with_state(self)
    }

    async fn serve(&self, task: Task, model: &str, request: Request<Body>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        if parts.method == Method::GET || parts.method == Method::HEAD {
            let found = self.0.guard.authenticate(&parts).and_then(|()| self.0.pipeline.models().find(model, task));
            return match found {
                Ok(_) => OK.into_response(),
                Err(error) => status::http(&error),
            };
        }
        if parts.method != Method::POST {
            return status::method_not_allowed(METHODS);
        }
        let mut record = Record::begin(self.0.metrics.clone(), Front::Http, task, trace(&parts.headers));
        let mut input = Input::new(body, self.0.times.stall);
        let span = record.span();
        match self.answer(task, model, (&parts, &mut input), &mut record).instrument(span).await {
            Ok(answer) => answer.respond(&self.0.leases, record),
            Err(error) => {
                record.failed(&error);
                // Not of a client that has said nothing for too long, nor of one that waits for leave to send.
                let has_stalled = error.kind() == ErrorKind::DeadlineExceeded;
                let waits_for_leave = parts.headers.contains_key(http::header::EXPECT);
                if parts.version < Version::HTTP_2 && !has_stalled && !waits_for_leave {
                    input.discard();
                }
                status::http(&error)
            }
        }
    }

    async fn answer(
        &self,
        task: Task,
        model: &str,
        (parts, input): (&Parts, &mut Input),
        record: &mut Record,
    ) -> Result<Answer, Error> {
        let Shared { pipeline, guard, times, .. } = &*self.0;
        record.visit(guard.admit(&parts.headers, Peer::of(&parts.extensions))?);
        let deadline = Deadline::within(record.began(), None, times.request);
        let hops = pipeline.passed(via(&parts.headers))?.in_trace(record.sent_from());
        let permit = pipeline.admit()?;
        pipeline.models().find(model, task)?;
        let head = Head::parse(task, model, parts)?;
        let (checked, representation, read) = deadline.bound("reading the input", head.read(pipeline, input)).await?;
        record.model(checked.model().id.shared());
        record.received(read.data.len() as u64);
        record.enter(Stage::Lookup);
        let request =
            Asked { checked, data: read.data, digest: read.digest, policy: head.policy, permit, held: read.held, hops };
        let reply = deadline.bound("looking the answer up", pipeline.serve(request)).await?;
        record.accepted(reply.key, reply.outcome());
        record.enter(Stage::Wait);
        let wishes = Wishes { accept: head.accept, representation, policy: head.policy };
        Answer::begin(reply, wishes, (deadline, times.stall), record).await
    }
}

type ModelPath = Result<Path<String>, PathRejection>;

async fn decode(state: State<HttpFront>, model: ModelPath, request: Request<Body>) -> Response<Body> {
    by_path(Task::Decode, state, model, request).await
}

async fn encode(state: State<HttpFront>, model: ModelPath, request: Request<Body>) -> Response<Body> {
    by_path(Task::Encode, state, model, request).await
}

async fn by_path(
    task: Task,
    State(front): State<HttpFront>,
    model: ModelPath,
    request: Request<Body>,
) -> Response<Body> {
    match model {
        Ok(Path(model)) => front.serve(task, &model, request).await,
        Err(_) => status::http(&Error::bad_request("path", "the model's name is not readable")),
    }
}

async fn by_host(State(front): State<HttpFront>, request: Request<Body>) -> Response<Body> {
    match front.0.hosts.target(&request) {
        Some(Target { task, model }) => front.serve(*task, model.as_str(), request).await,
        None if request.method() == Method::GET || request.method() == Method::HEAD => OK.into_response(),
        None if request.method() == Method::POST => status::not_found(
            "this host name stands for no model: POST /decode/{model} or /encode/{model}, or map the name in [hosts]",
        ),
        None => status::method_not_allowed(METHODS),
    }
}

async fn health(request: Request<Body>) -> Response<Body> {
    if request.method() == Method::GET || request.method() == Method::HEAD {
        OK.into_response()
    } else {
        status::method_not_allowed("GET, HEAD")
    }
}
