//! The gRPC front: `latentgate.v1.Latents`.
//!
//! The server half is written by hand, on tonic's request decoding and our own response frames: payload chunks leave as
//! slices of the artifact. A response's head waits until the request is accepted or has failed, so that a refusal is
//! trailers-only and clients' retry policies apply; only digest-first has to open the response early, to say `need_data`.
//! Dropping the response body is leaving: permit, waiter and reader go with it.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use tonic::{body::Body, codec::Streaming, server::NamedService};
use tonic_prost::ProstDecoder;
use tower::Service;
use tracing::Instrument as _;

use super::{Times, guard::Guard, lease::Leases, peer::Peer, record::Record, status, trace, via};
use crate::{
    deadline::Deadline,
    error::{Error, ErrorKind},
    metrics::{Front, Metrics},
    pipeline::Pipeline,
    proto,
};

mod answer;
mod cache_admin;
mod convert;
mod framing;
mod input;
mod timeout;

use answer::Exchange;
pub use cache_admin::CacheAdminService;
use convert::RequestMessage;
use input::Input;

/// Largest request message: every language's default.
const MAX_MESSAGE_BYTES: usize = 4 << 20;

/// The service. Clones share the pipeline.
#[derive(Clone)]
pub struct LatentsService {
    pipeline: Pipeline,
    guard: Guard,
    metrics: Metrics,
    times: Times,
    leases: Leases,
}

type Response = http::Response<Body>;

impl LatentsService {
    /// The service of a pipeline.
    pub fn new(pipeline: Pipeline, guard: Guard, metrics: Metrics, times: Times) -> Self {
        Self { pipeline, guard, metrics, times, leases: Leases::new() }
    }

    /// Decode and Encode: they differ in their messages alone.
    async fn converse<M: RequestMessage>(self, request: http::Request<Body>) -> Response {
        let mut record = Record::begin(self.metrics.clone(), Front::Grpc, M::TASK, trace(request.headers()));
        let span = record.span();
        let work = async {
            match self.open::<M>(request, &mut record).await {
                Ok(exchange) => exchange.respond(record).await,
                Err(error) => {
                    record.failed(&error);
                    status::grpc(&error).into_http()
                }
            }
        };
        work.instrument(span).await
    }

    async fn open<M: RequestMessage>(
        &self,
        request: http::Request<Body>,
        record: &mut Record,
    ) -> Result<Exchange<M>, Error> {
        record.visit(self.guard.admit(request.headers(), Peer::of(request.extensions()))?);
        let hops = self.pipeline.passed(via(request.headers()))?.in_trace(record.sent_from());
        let wished = timeout::of(request.headers())?;
        check_encoding(request.headers())?;
        let deadline = Deadline::within(record.began(), wished, self.times.request);
        let stream =
            Streaming::new_request(ProstDecoder::<M>::default(), request.into_body(), None, Some(MAX_MESSAGE_BYTES));
        // Admitted before its first message is read: what is read of it is held.
        let permit = self.pipeline.admit()?;
        let opening = Input::open(stream, self.times.stall);
        let (opening, input) = deadline.bound("waiting for the spec", opening).await?;
        let checked = self.pipeline.check(opening.spec)?;
        record.model(checked.model().id.shared());
        Ok(Exchange {
            pipeline: self.pipeline.clone(),
            deadline,
            stall: self.times.stall,
            input,
            checked,
            policy: opening.policy,
            claimed: opening.claimed,
            wants: opening.wants,
            permit,
            hops,
            leases: self.leases.clone(),
        })
    }

    async fn list_models(self, request: http::Request<Body>) -> Response {
        struct ListModels(Pipeline);
        impl tonic::server::UnaryService<proto::ListModelsRequest> for ListModels {
            type Response = proto::ListModelsResponse;
            type Future = std::future::Ready<Result<tonic::Response<Self::Response>, tonic::Status>>;

            fn call(&mut self, _: tonic::Request<proto::ListModelsRequest>) -> Self::Future {
                let table = self.0.models();
                let model = |spec: &std::sync::Arc<crate::model::ModelSpec>| {
                    let aliases = table.aliases_of(&spec.id).map(str::to_owned).collect();
                    convert::model(spec, aliases, self.0.backends(spec))
                };
                let models = table.iter().map(model).collect();
                std::future::ready(Ok(tonic::Response::new(proto::ListModelsResponse { models })))
            }
        }
        let peer = Peer::of(request.extensions());
        let _visit = match self.guard.admit(request.headers(), peer) {
            Ok(visit) => visit,
            Err(error) => return status::grpc(&error).into_http(),
        };
        let mut grpc = tonic::server::Grpc::new(tonic_prost::ProstCodec::default());
        grpc.unary(ListModels(self.pipeline), request).await
    }
}

/// Payloads are noise to a compressor, so messages are taken as they are; what is compressed is refused by name.
fn check_encoding(headers: &http::HeaderMap) -> Result<(), Error> {
    match headers.get("grpc-encoding").map(http::HeaderValue::as_bytes) {
        None | Some(b"identity") => Ok(()),
        Some(_) => Err(Error::field(
            ErrorKind::EncodingUnsupported,
            "grpc-encoding",
            "messages are read uncompressed only: leave the compression out",
        )),
    }
}

/// What the gRPC specification says to those who do not speak it.
fn not_grpc() -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = http::StatusCode::UNSUPPORTED_MEDIA_TYPE;
    response
}

impl NamedService for LatentsService {
    const NAME: &'static str = "latentgate.v1.Latents";
}

impl Service<http::Request<Body>> for LatentsService {
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let service = self.clone();
        Box::pin(async move {
            if !status::is_grpc(&request) {
                return Ok(not_grpc());
            }
            Ok(match request.uri().path() {
                "/latentgate.v1.Latents/Decode" => service.converse::<proto::DecodeRequest>(request).await,
                "/latentgate.v1.Latents/Encode" => service.converse::<proto::EncodeRequest>(request).await,
                "/latentgate.v1.Latents/ListModels" => service.list_models(request).await,
                path => tonic::Status::unimplemented(format!("no method {path}")).into_http(),
            })
        })
    }
}
