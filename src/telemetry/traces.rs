//! Spans on their way to a collector: which are taken, where they wait, what becomes of those that find no room.
//!
//! A span that ends goes into a bounded queue, or is dropped and counted if that is full; nothing that a request does
//! waits for a collector. One task empties the queue in batches. A batch that the collector does not take in time is
//! dropped and counted too: what is newer is worth more than what is late, and memory stays bounded.

use std::{collections::BTreeMap, fmt, time::Duration};

use opentelemetry::{KeyValue, trace::TracerProvider as _};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    trace::{Sampler, SdkTracerProvider, Span, SpanData, SpanProcessor, Tracer},
};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tracing::{Subscriber, level_filters::LevelFilter};
use tracing_subscriber::{Layer, filter::filter_fn, registry::LookupSpan};

use super::collector::{self, Collector, StartError};
use crate::{
    config::Fault,
    metrics::{Metrics, SpanFate},
    task::{self, Task},
};

/// Spans in one message to the collector: some hundred KiB.
const BATCH: usize = 512;

/// How long a batch waits for more.
const LINGER: Duration = Duration::from_secs(1);

/// More at once is no configuration but a slip.
const MAX_QUEUE: usize = 1_000_000;

/// Longer, and whatever waits is lost long before.
const MAX_TIMEOUT: Duration = Duration::from_hours(1);

/// What is shown of what nobody is to see.
const HIDDEN: &str = "***";

/// What every span of ours has as its target's first part.
const OURS: &str = env!("CARGO_CRATE_NAME");

/// Settings of the traces.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The collector's URL: `http://127.0.0.1:4317` and the like. Without one nothing is exported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// How it is spoken to.
    pub protocol: Protocol,
    /// Headers of every message to it. They may hold tokens, so they are never printed.
    #[serde(skip_serializing)]
    pub headers: BTreeMap<String, Hidden>,
    /// How long it may take to take a message.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// Share of the traces that begin here which is exported, 0 to 1. Those that begin elsewhere go as was decided there.
    pub sample: f64,
    /// What the collector calls this process: `service.name`.
    pub service: String,
    /// Spans that may wait; more are dropped.
    pub queue: usize,
}

/// Forms of OTLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// gRPC, without TLS.
    Grpc,
    /// Protobuf in HTTP posts.
    Http,
}

/// Text that nobody is to see.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Hidden(String);

/// The export. Dropping it ends it.
pub(super) struct Traces {
    stop: CancellationToken,
    work: Task<()>,
}

/// Where spans wait.
struct Queue {
    spans: mpsc::Sender<SpanData>,
    metrics: Metrics,
}

/// What empties the queue.
struct Export {
    spans: mpsc::Receiver<SpanData>,
    collector: Collector,
    metrics: Metrics,
    /// Whether the last batch was lost: the log says when that changes.
    is_failing: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            endpoint: None,
            protocol: Protocol::Grpc,
            headers: BTreeMap::new(),
            timeout: Duration::from_secs(5),
            sample: 1.0,
            service: "latentgate".to_owned(),
            // About 4 MiB, and some hundred requests.
            queue: 4096,
        }
    }
}

impl Config {
    /// Values that cannot be. That of an endpoint is not repeated: it may hold a key.
    pub(crate) fn faults(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        let mut check = |holds: bool, key: &str, value: String, remedy: &str| {
            if !holds {
                faults.push(Fault { key: format!("trace.{key}"), value, remedy: remedy.to_owned() });
            }
        };
        if let Some(Err(why)) = self.endpoint.as_ref().map(|url| collector::check_endpoint(url, self.protocol)) {
            check(false, "endpoint", HIDDEN.to_owned(), &why.to_string());
        }
        for (name, value) in &self.headers {
            let holds = collector::check_header(name, value).is_ok();
            check(holds, &format!("headers.{name}"), HIDDEN.to_owned(), "must be a header's name and visible ASCII");
        }
        let timeout = humantime::format_duration(self.timeout).to_string();
        let is_bearable = !self.timeout.is_zero() && self.timeout <= MAX_TIMEOUT;
        check(is_bearable, "timeout", timeout, "must be longer than 0s and at most 1h");
        check((0.0..=1.0).contains(&self.sample), "sample", self.sample.to_string(), "must be between 0 and 1");
        check(!self.service.trim().is_empty(), "service", self.service.clone(), "must be a name");
        let is_queue = (1..=MAX_QUEUE).contains(&self.queue);
        check(is_queue, "queue", self.queue.to_string(), "must be between 1 and 1000000");
        faults
    }
}

/// Starts the export, if there is somebody to export to.
pub(super) fn start(config: &Config, metrics: &Metrics) -> Result<Option<(Traces, Tracer)>, StartError> {
    let Some(endpoint) = &config.endpoint else { return Ok(None) };
    let resource = Resource::builder_empty()
        .with_attributes([
            KeyValue::new("service.name", config.service.clone()),
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("service.instance.id", format!("{:016x}", fastrand::u64(..))),
        ])
        .build();
    let collector = Collector::new(endpoint, config, &resource)?;
    let (sender, spans) = mpsc::channel(config.queue);
    let (stop, metrics) = (CancellationToken::new(), metrics.clone());
    let export = Export { spans, collector, metrics: metrics.clone(), is_failing: false };
    let work = task::spawn(tracing::Span::none(), export.run(stop.clone()));
    let provider = SdkTracerProvider::builder()
        .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(config.sample))))
        .with_resource(resource)
        .with_span_processor(Queue { spans: sender, metrics })
        .build();
    Ok(Some((Traces { stop, work }, provider.tracer(OURS))))
}

/// Makes our spans the collector's. Events are the log's, and other crates' spans are nobody's.
pub(super) fn layer<S: Subscriber + for<'a> LookupSpan<'a>>(tracer: Tracer) -> impl Layer<S> {
    let is_ours = filter_fn(|meta| meta.is_span() && meta.target().starts_with(OURS));
    tracing_opentelemetry::layer()
        .with_tracer(tracer)
        .with_location(false)
        .with_threads(false)
        .with_target(false)
        .with_tracked_inactivity(false)
        .with_context_activation(false)
        .with_filter(is_ours.with_max_level_hint(LevelFilter::DEBUG))
}

// === impl Queue ===

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Queue")
    }
}

impl SpanProcessor for Queue {
    fn on_start(&self, _: &mut Span, _: &opentelemetry::Context) {}

    /// Where a request ends: it does not wait.
    fn on_end(&self, span: SpanData) {
        if self.spans.try_send(span).is_err() {
            self.metrics.trace_spans(SpanFate::QueueFull, 1);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

// === impl Export ===

impl Export {
    /// Until `stop`; then what waits is sent, and no more taken.
    async fn run(mut self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            let mut batch = Vec::new();
            tokio::select! {
                () = stop.cancelled() => {}
                () = self.gather(&mut batch) => {}
            }
            self.send(batch).await;
        }
        self.spans.close();
        loop {
            let mut batch = Vec::new();
            if self.spans.recv_many(&mut batch, BATCH).await == 0 {
                return;
            }
            self.send(batch).await;
        }
    }

    /// A batch: the first span there is, and what comes soon after. Dropped, it leaves in `batch` what it has taken.
    async fn gather(&mut self, batch: &mut Vec<SpanData>) {
        batch.extend(self.spans.recv().await);
        let until = Instant::now() + LINGER;
        while batch.len() < BATCH {
            match timeout_at(until, self.spans.recv()).await {
                Ok(Some(span)) => batch.push(span),
                Ok(None) | Err(_) => return,
            }
        }
    }

    async fn send(&mut self, batch: Vec<SpanData>) {
        if batch.is_empty() {
            return;
        }
        let count = batch.len() as u64;
        let lost = match self.collector.send(batch).await {
            Ok(rejected) => {
                if std::mem::take(&mut self.is_failing) {
                    tracing::info!("the collector takes spans again");
                }
                rejected.min(count)
            }
            Err(error) => {
                if !std::mem::replace(&mut self.is_failing, true) {
                    let error = crate::error::chain(&error);
                    tracing::warn!(error, "the collector takes no spans; they are dropped until it does");
                }
                count
            }
        };
        self.metrics.trace_spans(SpanFate::ExportFailed, lost);
        self.metrics.trace_spans(SpanFate::Exported, count - lost);
    }
}

// === impl Traces ===

impl Traces {
    /// Sends what waits, for at most `grace`.
    pub(super) async fn flush(self, grace: Duration) {
        self.stop.cancel();
        if timeout(grace, self.work.join()).await.is_err() {
            tracing::warn!(?grace, "spans that the collector did not take in time are lost");
        }
    }
}

// === impl Hidden ===

impl Hidden {
    /// Hides `text`.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    pub(super) fn text(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}
