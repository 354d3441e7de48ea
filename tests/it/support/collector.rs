//! A collector of OTLP over a real socket, in both of its forms, that keeps what it is sent.

use std::sync::Arc;

use axum::{body::Bytes, extract::State, http::HeaderMap, routing::post};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    trace::v1::Span,
};
use parking_lot::Mutex;
use prost::Message as _;
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};
use tonic::{Request, Response, Status};

use super::PATIENCE;

/// The collector. Dropping it closes its port.
pub struct Collector {
    port: u16,
    kept: Arc<Kept>,
    serving: JoinHandle<()>,
}

struct Kept {
    spans: watch::Sender<Vec<Span>>,
    services: Mutex<Vec<String>>,
    headers: Mutex<Vec<HeaderMap>>,
}

#[derive(Clone)]
struct Service(Arc<Kept>);

impl Kept {
    fn take(&self, request: ExportTraceServiceRequest, headers: HeaderMap) {
        self.headers.lock().push(headers);
        for of_resource in request.resource_spans {
            let attributes = of_resource.resource.map(|resource| resource.attributes).unwrap_or_default();
            let service = attributes.iter().find(|attribute| attribute.key == "service.name");
            self.services.lock().push(format!("{:?}", service.and_then(|attribute| attribute.value.clone())));
            let spans = of_resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
            self.spans.send_modify(|kept| kept.extend(spans));
        }
    }
}

#[tonic::async_trait]
impl TraceService for Service {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        self.0.take(request, metadata.into_headers());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

async fn http(State(Service(kept)): State<Service>, headers: HeaderMap, body: Bytes) -> Vec<u8> {
    assert_eq!(headers["content-type"], "application/x-protobuf");
    kept.take(ExportTraceServiceRequest::decode(body).unwrap(), headers);
    ExportTraceServiceResponse::default().encode_to_vec()
}

impl Collector {
    pub async fn start() -> Self {
        let (spans, services, headers) = (watch::Sender::default(), Mutex::default(), Mutex::default());
        let kept = Arc::new(Kept { spans, services, headers });
        let service = Service(kept.clone());
        let grpc = tonic::service::Routes::new(TraceServiceServer::new(service.clone())).into_axum_router();
        let router = grpc.merge(axum::Router::new().route("/v1/traces", post(http)).with_state(service));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let serving = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { port, kept, serving }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Waits until the spans that have come satisfy `enough`, and gives them.
    pub async fn until(&self, enough: impl FnMut(&Vec<Span>) -> bool) -> Vec<Span> {
        let mut watched = self.kept.spans.subscribe();
        let reached = tokio::time::timeout(PATIENCE, watched.wait_for(enough)).await;
        if let Ok(Ok(spans)) = &reached {
            return (*spans).clone();
        }
        drop(reached);
        let came: Vec<_> = self.kept.spans.borrow().iter().map(|span| span.name.clone()).collect();
        panic!("not the spans that were waited for: {came:?}");
    }

    /// What each batch's `service.name` was.
    pub fn services(&self) -> Vec<String> {
        self.kept.services.lock().clone()
    }

    /// The headers of each batch.
    pub fn headers(&self) -> Vec<HeaderMap> {
        self.kept.headers.lock().clone()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// As hex digits.
pub fn hex(id: &[u8]) -> String {
    id.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}
