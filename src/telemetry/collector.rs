//! A client of OTLP, in both of its forms: a batch of spans, one message, within one time limit.
//!
//! What the collector says of a failure is not repeated, but for its code: it may have heard a token.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, header};
use opentelemetry_proto::{
    tonic::collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse, trace_service_client::TraceServiceClient,
    },
    transform::{common::tonic::ResourceAttributesWithSchema, trace::tonic::group_spans_by_resource_and_scope},
};
use opentelemetry_sdk::{Resource, trace::SpanData};
use prost::Message as _;
use reqwest::Url;
use tokio::time::timeout;
use tonic::{
    Extensions, Request,
    metadata::MetadataMap,
    transport::{Channel, Endpoint},
};

use super::traces::{Config, Hidden, Protocol};
use crate::backend::upstream;

/// Where collectors take traces over HTTP, if the URL has no path of its own.
const HTTP_PATH: &str = "/v1/traces";

/// A collector, connected to when there is something to send.
pub(super) struct Collector {
    client: Client,
    headers: HeaderMap,
    timeout: Duration,
    resource: ResourceAttributesWithSchema,
}

enum Client {
    Grpc(TraceServiceClient<Channel>),
    Http(reqwest::Client, Url),
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The endpoint cannot be used.
    #[error("{0}")]
    Endpoint(&'static str),
    /// A header cannot be sent. Its value is not shown.
    #[error("trace.headers.{0} is no header")]
    Header(String),
    /// TLS cannot be prepared.
    #[error(transparent)]
    Tls(#[from] upstream::StartError),
    /// The HTTP client cannot be built.
    #[error("the HTTP client cannot be built")]
    Client(#[source] reqwest::Error),
}

/// Why a batch was not taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum SendError {
    #[error("no answer within {0:?}")]
    Late(Duration),
    #[error("{}", .0.description())]
    Refused(tonic::Code),
    #[error("it answers {0}")]
    Status(u16),
    #[error("it cannot be reached")]
    Exchange(#[source] reqwest::Error),
    #[error("its answer cannot be read")]
    Answer(#[source] prost::DecodeError),
}

/// What is wrong with an endpoint, if something is.
pub(crate) fn check_endpoint(endpoint: &str, protocol: Protocol) -> Result<(), StartError> {
    parse(endpoint, protocol).map(drop)
}

/// What is wrong with the name or the value of a header, if something is.
pub(crate) fn check_header(name: &str, value: &Hidden) -> Result<(), StartError> {
    entry((&name.to_owned(), value)).map(drop)
}

fn parse(endpoint: &str, protocol: Protocol) -> Result<Url, StartError> {
    let wrong = |what| Err(StartError::Endpoint(what));
    let Ok(url) = Url::parse(endpoint) else { return wrong("wanted a URL such as http://127.0.0.1:4317") };
    if !url.has_host() || !matches!(url.scheme(), "http" | "https") {
        return wrong("wanted an http or https URL such as http://127.0.0.1:4317");
    }
    if !url.username().is_empty() || url.password().is_some() {
        return wrong("credentials do not belong in a URL: put them into trace.headers");
    }
    if protocol == Protocol::Grpc && url.scheme() == "https" {
        return wrong("gRPC is spoken without TLS here: use trace.protocol = \"http\" for https collectors");
    }
    Ok(url)
}

fn entry((name, value): (&String, &Hidden)) -> Result<(HeaderName, HeaderValue), StartError> {
    let wrong = || StartError::Header(name.clone());
    let mut value = HeaderValue::try_from(value.text()).map_err(|_| wrong())?;
    value.set_sensitive(true);
    Ok((HeaderName::try_from(name.as_str()).map_err(|_| wrong())?, value))
}

impl Collector {
    pub(super) fn new(endpoint: &str, config: &Config, resource: &Resource) -> Result<Self, StartError> {
        let mut url = parse(endpoint, config.protocol)?;
        let headers = config.headers.iter().map(entry).collect::<Result<_, _>>()?;
        let client = match config.protocol {
            Protocol::Grpc => {
                let endpoint = Endpoint::from_shared(url.to_string())
                    .map_err(|_| StartError::Endpoint("wanted a URL such as http://127.0.0.1:4317"))?;
                Client::Grpc(TraceServiceClient::new(endpoint.connect_timeout(config.timeout).connect_lazy()))
            }
            Protocol::Http => {
                if url.path() == "/" {
                    url.set_path(HTTP_PATH);
                }
                let client = reqwest::Client::builder()
                    .user_agent(concat!("latentgate/", env!("CARGO_PKG_VERSION")))
                    .redirect(reqwest::redirect::Policy::none())
                    .no_proxy()
                    .connect_timeout(config.timeout)
                    .tls_backend_preconfigured(upstream::tls()?)
                    .build();
                Client::Http(client.map_err(StartError::Client)?, url)
            }
        };
        Ok(Self { client, headers, timeout: config.timeout, resource: resource.into() })
    }

    /// Sends a batch; how many of it the collector does not want.
    pub(super) async fn send(&mut self, batch: Vec<SpanData>) -> Result<u64, SendError> {
        let resource_spans = group_spans_by_resource_and_scope(batch, &self.resource);
        let (request, headers) = (ExportTraceServiceRequest { resource_spans }, self.headers.clone());
        let sent = async {
            match &mut self.client {
                Client::Grpc(client) => grpc(client, request, headers).await,
                Client::Http(client, url) => http(client, url.clone(), &request, headers).await,
            }
        };
        let answer = timeout(self.timeout, sent).await.map_err(|_| SendError::Late(self.timeout))??;
        Ok(answer.partial_success.map_or(0, |partial| partial.rejected_spans.max(0) as u64))
    }
}

async fn grpc(
    client: &mut TraceServiceClient<Channel>,
    request: ExportTraceServiceRequest,
    headers: HeaderMap,
) -> Result<ExportTraceServiceResponse, SendError> {
    let request = Request::from_parts(MetadataMap::from_headers(headers), Extensions::default(), request);
    let answer = client.export(request).await.map_err(|status| SendError::Refused(status.code()))?;
    Ok(answer.into_inner())
}

async fn http(
    client: &reqwest::Client,
    url: Url,
    request: &ExportTraceServiceRequest,
    mut headers: HeaderMap,
) -> Result<ExportTraceServiceResponse, SendError> {
    // The URL may hold a key.
    let lost = |error: reqwest::Error| SendError::Exchange(error.without_url());
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
    let answer = client.post(url).headers(headers).body(request.encode_to_vec()).send().await.map_err(lost)?;
    if !answer.status().is_success() {
        return Err(SendError::Status(answer.status().as_u16()));
    }
    ExportTraceServiceResponse::decode(answer.bytes().await.map_err(lost)?).map_err(SendError::Answer)
}
