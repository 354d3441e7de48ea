//! THE catalogue: every metric's name, unit, help and buckets, and the only functions that record them.
//!
//! One [`Metrics`] belongs to one running app, with a recorder of its own: tests that run many apps in one process count
//! exactly, and nothing is global. Label values come from closed sets (enums here, models from the configuration),
//! never from clients.

use std::{sync::Arc, time::Duration};

use metrics::{Counter, Gauge, Histogram, Key, Label, Level, Metadata, Recorder, SharedString};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

mod catalogue;
mod clients;
mod labels;
mod requests;

pub use catalogue::{CATALOGUE, Declared, Kind};
use catalogue::{DURATION_BUCKETS, name};
pub use clients::ClientSeries;
pub use labels::{ClientLimit, EvictionReason, Front, LookupResult, Outcome, Reloadable, SpanFate, TierName};
pub use requests::RequestFacts;

/// The recorder of one app. Clones share it.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    process: metrics_process::Collector,
    inflight_requests: Gauge,
    inflight_bytes: Gauge,
    flights: Gauge,
    flight_waiters: Gauge,
    requests: requests::Series,
}

/// A gauge that counts what is alive: up when made, down when dropped.
#[must_use]
pub struct Alive {
    gauge: Gauge,
    amount: f64,
}

// === impl Metrics ===

const METADATA: Metadata<'static> = Metadata::new(module_path!(), Level::INFO, Some(module_path!()));

impl Metrics {
    /// A recorder that knows the whole catalogue.
    pub fn new() -> Self {
        let mut builder = PrometheusBuilder::new();
        for declared in CATALOGUE.iter().filter(|d| d.kind == Kind::Histogram) {
            builder = builder
                .set_buckets_for_metric(Matcher::Full(declared.name.to_owned()), DURATION_BUCKETS)
                .expect("the bucket list is not empty");
        }
        let recorder = builder.build_recorder();
        for declared in CATALOGUE {
            let help = SharedString::const_str(declared.help);
            match declared.kind {
                Kind::Counter => recorder.describe_counter(declared.name.into(), declared.unit, help),
                Kind::Gauge => recorder.describe_gauge(declared.name.into(), declared.unit, help),
                Kind::Histogram => recorder.describe_histogram(declared.name.into(), declared.unit, help),
            }
        }
        let process = metrics_process::Collector::default();
        metrics::with_local_recorder(&recorder, || process.describe());
        let handle = recorder.handle();
        let gauge = |name: &'static str| recorder.register_gauge(&Key::from_static_name(name), &METADATA);
        let metrics = Self(Arc::new(Inner {
            inflight_requests: gauge(name::INFLIGHT_REQUESTS),
            inflight_bytes: gauge(name::INFLIGHT_BYTES),
            flights: gauge(name::FLIGHTS),
            flight_waiters: gauge(name::FLIGHT_WAITERS),
            requests: requests::Series::default(),
            recorder,
            handle,
            process,
        }));
        // Spans may be lost before the first is exported: the series exist from the start.
        for fate in SpanFate::ALL {
            metrics.trace_spans(fate, 0);
        }
        metrics
    }

    /// The Prometheus text of now.
    pub fn render(&self) -> String {
        metrics::with_local_recorder(&self.0.recorder, || self.0.process.collect());
        self.0.handle.render()
    }

    /// Folds recorded samples into their buckets. To be called every few seconds: samples wait in memory until then.
    pub fn upkeep(&self) {
        self.0.handle.run_upkeep();
    }

    fn counter(&self, name: &'static str, labels: Vec<Label>) -> Counter {
        self.0.recorder.register_counter(&Key::from_parts(name, labels), &METADATA)
    }

    fn gauge(&self, name: &'static str, labels: Vec<Label>) -> Gauge {
        self.0.recorder.register_gauge(&Key::from_parts(name, labels), &METADATA)
    }

    fn histogram(&self, name: &'static str, labels: Vec<Label>) -> Histogram {
        self.0.recorder.register_histogram(&Key::from_parts(name, labels), &METADATA)
    }

    /// Constant 1 with what this binary is.
    pub fn build_info(&self, version: &'static str, commit: &'static str, features: &'static str) {
        let labels = vec![
            Label::from_static_parts("version", version),
            Label::from_static_parts("commit", commit),
            Label::from_static_parts("features", features),
        ];
        self.gauge(name::BUILD_INFO, labels).set(1.0);
    }

    /// A request failed, for the reason of the error table.
    pub fn error(&self, reason: &'static str) {
        self.counter(name::ERRORS, vec![Label::from_static_parts("reason", reason)]).increment(1);
    }

    /// One more request in flight, for as long as the answer lives.
    pub fn inflight_request(&self) -> Alive {
        Alive::new(self.0.inflight_requests.clone(), 1.0)
    }

    /// Bytes reserved by requests and flights, for as long as the answer lives.
    pub fn inflight_bytes(&self, bytes: u64) -> Alive {
        Alive::new(self.0.inflight_bytes.clone(), bytes as f64)
    }

    /// The limits that the two gauges above run into.
    pub fn inflight_capacity(&self, requests: usize, bytes: u64) {
        self.gauge(name::INFLIGHT_REQUESTS_CAPACITY, vec![]).set(requests as f64);
        self.gauge(name::INFLIGHT_CAPACITY_BYTES, vec![]).set(bytes as f64);
    }

    /// What a tier holds, and may hold.
    pub fn cache(&self, tier: TierName, entries: u64, bytes: u64, capacity: u64) {
        let labels = || vec![Label::from_static_parts("tier", tier.label())];
        self.gauge(name::CACHE_ENTRIES, labels()).set(entries as f64);
        self.gauge(name::CACHE_BYTES, labels()).set(bytes as f64);
        self.gauge(name::CACHE_CAPACITY, labels()).set(capacity as f64);
    }

    /// A tier let an artifact go.
    pub fn cache_evicted(&self, tier: TierName, reason: EvictionReason) {
        let labels =
            vec![Label::from_static_parts("tier", tier.label()), Label::from_static_parts("reason", reason.label())];
        self.counter(name::CACHE_EVICTIONS, labels).increment(1);
    }

    /// A tier that is in use: its series exist from the start.
    pub fn cache_known(&self, tier: TierName) {
        self.tier_counter(name::CACHE_CORRUPTIONS, tier).increment(0);
        self.tier_counter(name::CACHE_WRITE_FAILURES, tier).increment(0);
        self.tier_counter(name::CACHE_FILLS_DROPPED, tier).increment(0);
        self.cache_degraded(tier, false);
    }

    /// A tier was asked.
    pub fn cache_lookup(&self, tier: TierName, result: LookupResult) {
        let labels =
            vec![Label::from_static_parts("tier", tier.label()), Label::from_static_parts("result", result.label())];
        self.counter(name::CACHE_LOOKUPS, labels).increment(1);
    }

    /// A tier had something else than what was stored.
    pub fn cache_corrupt(&self, tier: TierName) {
        self.tier_counter(name::CACHE_CORRUPTIONS, tier).increment(1);
    }

    /// A tier could not take an artifact in.
    pub fn cache_write_failed(&self, tier: TierName) {
        self.tier_counter(name::CACHE_WRITE_FAILURES, tier).increment(1);
    }

    /// An artifact was not offered to a tier, whose queue is full.
    pub fn cache_fill_dropped(&self, tier: TierName) {
        self.tier_counter(name::CACHE_FILLS_DROPPED, tier).increment(1);
    }

    /// What waits to be written to a tier, and may.
    pub fn cache_fill_queue(&self, tier: TierName, bytes: u64, capacity: u64) {
        let labels = || vec![Label::from_static_parts("tier", tier.label())];
        self.gauge(name::CACHE_FILL_QUEUE, labels()).set(bytes as f64);
        self.gauge(name::CACHE_FILL_QUEUE_CAPACITY, labels()).set(capacity as f64);
    }

    /// Whether a tier is left alone because it fails.
    pub fn cache_degraded(&self, tier: TierName, is_degraded: bool) {
        let labels = vec![Label::from_static_parts("tier", tier.label())];
        self.gauge(name::CACHE_DEGRADED, labels).set(f64::from(u8::from(is_degraded)));
    }

    fn tier_counter(&self, name: &'static str, tier: TierName) -> Counter {
        self.counter(name, vec![Label::from_static_parts("tier", tier.label())])
    }

    /// One more flight, for as long as it is in the air.
    pub fn flight(&self) -> Alive {
        Alive::new(self.0.flights.clone(), 1.0)
    }

    /// One more request attached to a flight.
    pub fn flight_waiter(&self) -> Alive {
        Alive::new(self.0.flight_waiters.clone(), 1.0)
    }

    /// A backend finished, refused or failed a run. `code` is `ok` or a label of the error table.
    pub fn backend(&self, backend: &'static str, model: &Arc<str>, code: &'static str, took: Duration) {
        let (backend, model) = (Label::from_static_parts("backend", backend), Label::new("model", model.clone()));
        let labels = vec![backend.clone(), model.clone(), Label::from_static_parts("code", code)];
        self.counter(name::BACKEND_REQUESTS, labels).increment(1);
        self.histogram(name::BACKEND_DURATION, vec![backend, model]).record(took);
    }

    /// A job went to another backend than the policy's first, for `reason`: `spill` or a label of the error table.
    pub fn failover(&self, backend: &'static str, reason: &'static str) {
        let labels = vec![Label::from_static_parts("backend", backend), Label::from_static_parts("reason", reason)];
        self.counter(name::FAILOVERS, labels).increment(1);
    }

    /// One more job waiting in a backend's queue.
    pub fn backend_queued(&self, backend: &'static str) -> Alive {
        Alive::new(self.gauge(name::BACKEND_QUEUE_DEPTH, vec![Label::from_static_parts("backend", backend)]), 1.0)
    }

    /// How many jobs a backend's queue takes.
    pub fn backend_queue_capacity(&self, backend: &'static str, jobs: usize) {
        let labels = vec![Label::from_static_parts("backend", backend)];
        self.gauge(name::BACKEND_QUEUE_CAPACITY, labels).set(jobs as f64);
    }

    /// How long a job waited in a backend's queue.
    pub fn backend_queue_wait(&self, backend: &'static str, waited: Duration) {
        let labels = vec![Label::from_static_parts("backend", backend)];
        self.histogram(name::BACKEND_QUEUE_WAIT, labels).record(waited);
    }

    /// An upstream endpoint that is configured: its series exist from the start.
    pub fn upstream_known(&self, upstream: &Arc<str>) {
        self.upstream_circuit(upstream).increment(0.0);
        self.upstream_attempts(upstream, "ok").increment(0);
        self.upstream_retries(upstream, "no_budget").increment(0);
    }

    /// The circuit to an upstream endpoint is not closed, for as long as this lives.
    pub fn upstream_circuit_open(&self, upstream: &Arc<str>) -> Alive {
        Alive::new(self.upstream_circuit(upstream), 1.0)
    }

    /// An attempt at an upstream endpoint ended.
    pub fn upstream_attempt(&self, upstream: &Arc<str>, code: &'static str) {
        self.upstream_attempts(upstream, code).increment(1);
    }

    /// An attempt is made again, or is not, for a reason.
    pub fn upstream_retry(&self, upstream: &Arc<str>, reason: &'static str) {
        self.upstream_retries(upstream, reason).increment(1);
    }

    fn upstream_circuit(&self, upstream: &Arc<str>) -> Gauge {
        self.gauge(name::UPSTREAM_CIRCUIT, vec![Label::new("upstream", upstream.clone())])
    }

    fn upstream_attempts(&self, upstream: &Arc<str>, code: &'static str) -> Counter {
        let labels = vec![Label::new("upstream", upstream.clone()), Label::from_static_parts("code", code)];
        self.counter(name::UPSTREAM_ATTEMPTS, labels)
    }

    fn upstream_retries(&self, upstream: &Arc<str>, reason: &'static str) -> Counter {
        let labels = vec![Label::new("upstream", upstream.clone()), Label::from_static_parts("reason", reason)];
        self.counter(name::UPSTREAM_RETRIES, labels)
    }

    /// The engine computed the answers of so many jobs in one run, start to end, without queue and rendering.
    pub fn engine_run(&self, model: &Arc<str>, task: &'static str, jobs: usize, took: Duration) {
        let labels = vec![Label::new("model", model.clone()), Label::from_static_parts("task", task)];
        self.histogram(name::ENGINE_RUN, labels.clone()).record(took);
        self.counter(name::ENGINE_JOBS, labels).increment(jobs as u64);
    }

    /// What became of so many spans.
    pub fn trace_spans(&self, fate: SpanFate, count: u64) {
        self.counter(name::TRACE_SPANS, vec![Label::from_static_parts("result", fate.label())]).increment(count);
    }

    /// How many times a device stands in the configuration and does not load a model.
    pub fn engine_failing(&self, device: String, model: &Arc<str>, count: usize) {
        let labels = vec![Label::new("device", device), Label::new("model", model.clone())];
        self.gauge(name::ENGINE_FAILING, labels).set(count as f64);
    }

    /// Whether a model's weights are in the engine.
    pub fn engine_model_loaded(&self, model: &Arc<str>, loaded: bool) {
        let labels = vec![Label::new("model", model.clone())];
        self.gauge(name::ENGINE_MODEL_LOADED, labels).set(f64::from(u8::from(loaded)));
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

// === impl Alive ===

impl Alive {
    fn new(gauge: Gauge, amount: f64) -> Self {
        gauge.increment(amount);
        Self { gauge, amount }
    }

    /// Counts more, until it is dropped.
    pub fn add(&mut self, amount: f64) {
        self.gauge.increment(amount);
        self.amount += amount;
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.gauge.decrement(self.amount);
    }
}

#[cfg(test)]
mod tests;
