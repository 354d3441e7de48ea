//! Names, units, help texts and buckets. README's table is compared with this list by a test.

use metrics::Unit;

/// What a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Distribution over buckets of seconds.
    Histogram,
}

/// One metric.
#[derive(Clone, Copy, Debug)]
pub struct Declared {
    /// With prefix and unit.
    pub name: &'static str,
    /// Counter, gauge or histogram.
    pub kind: Kind,
    /// Unit, where there is one.
    pub unit: Option<Unit>,
    /// Label names, in order.
    pub labels: &'static [&'static str],
    /// What it says.
    pub help: &'static str,
}

/// Seconds: a memory hit is tens of microseconds, a large decode on a CPU a minute; about two buckets a factor of ten.
pub(super) const DURATION_BUCKETS: &[f64] = &[
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
    60.0, 120.0,
];

pub(super) mod name {
    pub(in crate::metrics) const BUILD_INFO: &str = "latentgate_build_info";
    pub(in crate::metrics) const REQUESTS: &str = "latentgate_requests_total";
    pub(in crate::metrics) const ERRORS: &str = "latentgate_errors_total";
    pub(in crate::metrics) const REQUEST_DURATION: &str = "latentgate_request_duration_seconds";
    pub(in crate::metrics) const FIRST_BYTE: &str = "latentgate_time_to_first_byte_seconds";
    pub(in crate::metrics) const REQUEST_BYTES: &str = "latentgate_request_bytes_total";
    pub(in crate::metrics) const RESPONSE_BYTES: &str = "latentgate_response_bytes_total";
    pub(in crate::metrics) const CLIENT_REQUESTS: &str = "latentgate_client_requests_total";
    pub(in crate::metrics) const CLIENT_REQUEST_BYTES: &str = "latentgate_client_request_bytes_total";
    pub(in crate::metrics) const CLIENT_RESPONSE_BYTES: &str = "latentgate_client_response_bytes_total";
    pub(in crate::metrics) const CLIENT_REFUSALS: &str = "latentgate_client_refusals_total";
    pub(in crate::metrics) const RELOADS: &str = "latentgate_reloads_total";
    pub(in crate::metrics) const RELOAD_FAILING: &str = "latentgate_reload_failing";
    pub(in crate::metrics) const CERTIFICATE_EXPIRY: &str = "latentgate_tls_certificate_expiry_seconds";
    pub(in crate::metrics) const INFLIGHT_REQUESTS: &str = "latentgate_inflight_requests";
    pub(in crate::metrics) const INFLIGHT_REQUESTS_CAPACITY: &str = "latentgate_inflight_requests_capacity";
    pub(in crate::metrics) const INFLIGHT_BYTES: &str = "latentgate_inflight_bytes";
    pub(in crate::metrics) const INFLIGHT_CAPACITY_BYTES: &str = "latentgate_inflight_capacity_bytes";
    pub(in crate::metrics) const CACHE_ENTRIES: &str = "latentgate_cache_entries";
    pub(in crate::metrics) const CACHE_BYTES: &str = "latentgate_cache_bytes";
    pub(in crate::metrics) const CACHE_CAPACITY: &str = "latentgate_cache_capacity_bytes";
    pub(in crate::metrics) const CACHE_LOOKUPS: &str = "latentgate_cache_lookups_total";
    pub(in crate::metrics) const CACHE_CORRUPTIONS: &str = "latentgate_cache_corruptions_total";
    pub(in crate::metrics) const CACHE_WRITE_FAILURES: &str = "latentgate_cache_write_failures_total";
    pub(in crate::metrics) const CACHE_FILLS_DROPPED: &str = "latentgate_cache_fills_dropped_total";
    pub(in crate::metrics) const CACHE_FILL_QUEUE: &str = "latentgate_cache_fill_queue_bytes";
    pub(in crate::metrics) const CACHE_FILL_QUEUE_CAPACITY: &str = "latentgate_cache_fill_queue_capacity_bytes";
    pub(in crate::metrics) const CACHE_DEGRADED: &str = "latentgate_cache_degraded";
    pub(in crate::metrics) const CACHE_EVICTIONS: &str = "latentgate_cache_evictions_total";
    pub(in crate::metrics) const FLIGHTS: &str = "latentgate_flights";
    pub(in crate::metrics) const FLIGHT_WAITERS: &str = "latentgate_flight_waiters";
    pub(in crate::metrics) const BACKEND_REQUESTS: &str = "latentgate_backend_requests_total";
    pub(in crate::metrics) const BACKEND_DURATION: &str = "latentgate_backend_duration_seconds";
    pub(in crate::metrics) const BACKEND_QUEUE_DEPTH: &str = "latentgate_backend_queue_depth";
    pub(in crate::metrics) const BACKEND_QUEUE_CAPACITY: &str = "latentgate_backend_queue_capacity";
    pub(in crate::metrics) const BACKEND_QUEUE_WAIT: &str = "latentgate_backend_queue_wait_seconds";
    pub(in crate::metrics) const UPSTREAM_CIRCUIT: &str = "latentgate_upstream_circuit_open";
    pub(in crate::metrics) const UPSTREAM_ATTEMPTS: &str = "latentgate_upstream_attempts_total";
    pub(in crate::metrics) const UPSTREAM_RETRIES: &str = "latentgate_upstream_retries_total";
    pub(in crate::metrics) const FAILOVERS: &str = "latentgate_failovers_total";
    pub(in crate::metrics) const ENGINE_RUN: &str = "latentgate_engine_run_seconds";
    pub(in crate::metrics) const ENGINE_JOBS: &str = "latentgate_engine_jobs_total";
    pub(in crate::metrics) const ENGINE_FAILING: &str = "latentgate_engine_failing";
    pub(in crate::metrics) const ENGINE_MODEL_LOADED: &str = "latentgate_engine_model_loaded";
    pub(in crate::metrics) const TRACE_SPANS: &str = "latentgate_trace_spans_total";
}

const fn counter(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Declared {
    Declared { name, kind: Kind::Counter, unit: None, labels, help }
}

const fn gauge(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Declared {
    Declared { name, kind: Kind::Gauge, unit: None, labels, help }
}

const fn seconds(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Declared {
    Declared { name, kind: Kind::Histogram, unit: Some(Unit::Seconds), labels, help }
}

const fn in_bytes(declared: Declared) -> Declared {
    Declared { unit: Some(Unit::Bytes), ..declared }
}

/// Every metric there is.
pub const CATALOGUE: &[Declared] = &[
    gauge(name::BUILD_INFO, &["version", "commit", "features"], "Constant 1; what this binary is"),
    counter(name::REQUESTS, &["front", "task", "model", "outcome"], "Requests that are over"),
    counter(name::ERRORS, &["reason"], "Requests that failed, by the reason of the error table"),
    seconds(name::REQUEST_DURATION, &["task", "outcome"], "First message to last message"),
    seconds(name::FIRST_BYTE, &["task", "outcome"], "First message to first byte of the answer"),
    in_bytes(counter(name::REQUEST_BYTES, &["task"], "Input bytes taken from clients")),
    in_bytes(counter(name::RESPONSE_BYTES, &["task"], "Answer bytes given to clients")),
    counter(name::CLIENT_REQUESTS, &["client"], "Requests let in, by who asked"),
    in_bytes(counter(name::CLIENT_REQUEST_BYTES, &["client"], "Input bytes taken, by who asked")),
    in_bytes(counter(name::CLIENT_RESPONSE_BYTES, &["client"], "Answer bytes given, by who asked")),
    counter(name::CLIENT_REFUSALS, &["client", "limit"], "Requests refused because a client's limit was used up"),
    counter(name::RELOADS, &["what", "result"], "Times something was read again while running"),
    gauge(name::RELOAD_FAILING, &["what"], "1 while what was read last cannot be used and the one before it stays"),
    Declared {
        unit: Some(Unit::Seconds),
        ..gauge(name::CERTIFICATE_EXPIRY, &[], "When the data port's certificate expires, in seconds since 1970")
    },
    gauge(name::INFLIGHT_REQUESTS, &[], "Requests between admission and the end of their answer"),
    gauge(name::INFLIGHT_REQUESTS_CAPACITY, &[], "Requests admitted at once, at most"),
    in_bytes(gauge(name::INFLIGHT_BYTES, &[], "Bytes reserved by requests and flights")),
    in_bytes(gauge(name::INFLIGHT_CAPACITY_BYTES, &[], "Bytes reserved at once, at most")),
    gauge(name::CACHE_ENTRIES, &["tier"], "Artifacts held"),
    in_bytes(gauge(name::CACHE_BYTES, &["tier"], "Bytes held")),
    in_bytes(gauge(name::CACHE_CAPACITY, &["tier"], "Bytes held, at most")),
    counter(name::CACHE_EVICTIONS, &["tier", "reason"], "Artifacts let go"),
    counter(name::CACHE_LOOKUPS, &["tier", "result"], "Times a tier below memory was asked, by what it answered"),
    counter(name::CACHE_CORRUPTIONS, &["tier"], "Artifacts found damaged, and never served"),
    counter(name::CACHE_WRITE_FAILURES, &["tier"], "Artifacts a tier could not take in"),
    counter(name::CACHE_FILLS_DROPPED, &["tier"], "Artifacts not offered to a tier, its queue being full"),
    in_bytes(gauge(name::CACHE_FILL_QUEUE, &["tier"], "Bytes waiting to be written")),
    in_bytes(gauge(name::CACHE_FILL_QUEUE_CAPACITY, &["tier"], "Bytes waiting to be written, at most")),
    gauge(name::CACHE_DEGRADED, &["tier"], "1 while a tier is left alone because it fails"),
    gauge(name::FLIGHTS, &[], "Computations in progress"),
    gauge(name::FLIGHT_WAITERS, &[], "Requests attached to a computation in progress"),
    counter(name::BACKEND_REQUESTS, &["backend", "model", "code"], "Runs asked of a backend, by how they ended"),
    seconds(name::BACKEND_DURATION, &["backend", "model"], "A backend's run, queue and rendering included"),
    gauge(name::BACKEND_QUEUE_DEPTH, &["backend"], "Jobs waiting in a backend's queue"),
    gauge(name::BACKEND_QUEUE_CAPACITY, &["backend"], "Jobs a backend's queue takes"),
    seconds(name::BACKEND_QUEUE_WAIT, &["backend"], "A job's wait in a backend's queue"),
    gauge(name::UPSTREAM_CIRCUIT, &["upstream"], "1 while the circuit to an endpoint is open or half-open"),
    counter(name::UPSTREAM_ATTEMPTS, &["upstream", "code"], "Requests to an endpoint, by how they ended"),
    counter(name::UPSTREAM_RETRIES, &["upstream", "reason"], "Retries, by what failed before; `no_...`: not sent"),
    counter(
        name::FAILOVERS,
        &["backend", "reason"],
        "Jobs that went from this backend to the next, for its queue or an error",
    ),
    seconds(name::ENGINE_RUN, &["model", "task"], "Computing alone, without queue and rendering"),
    counter(name::ENGINE_JOBS, &["model", "task"], "Jobs the engine answered; those of one run share it"),
    gauge(name::ENGINE_MODEL_LOADED, &["model"], "1 while a model's weights are in the engine, on one device at least"),
    gauge(name::ENGINE_FAILING, &["device", "model"], "Not 0 while a device does not load a model"),
    counter(name::TRACE_SPANS, &["result"], "Spans for the collector, by what became of them"),
];
