//! What the process says of itself while it works: log lines, and traces for a collector.
//!
//! One subscriber a process. The lines have a filter of their own, which can be changed at run time ([`Logs`]); spans
//! are exported whatever that filter says, if there is a collector. Without one the spans of a request are disabled at
//! their places in the code, unless the log's filter wants them: a request pays for a look at a flag.

pub mod log;
pub mod traces;

mod collector;

use std::time::Duration;

use tracing_subscriber::{layer::SubscriberExt as _, util::SubscriberInitExt as _};

use crate::{
    logs::{FilterError, Logs},
    metrics::Metrics,
};
use traces::Traces;

/// The process's voice.
pub struct Telemetry {
    logs: Logs,
    traces: Option<Traces>,
}

/// Why it has none.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter of the log cannot be read.
    #[error("log.filter")]
    Filter(#[from] FilterError),
    /// The way to the collector cannot be prepared.
    #[error("trace.endpoint")]
    Collector(#[from] collector::StartError),
    /// There is a subscriber already.
    #[error("the log cannot be set up")]
    Installed(#[from] tracing_subscriber::util::TryInitError),
}

impl Telemetry {
    /// Installs the subscriber: once a process; later calls say so. Within a runtime, on which spans are exported.
    pub fn install(log: &log::Config, trace: &traces::Config, metrics: &Metrics) -> Result<Self, TelemetryError> {
        let (logs, lines) = log::lines(log)?;
        let registry = tracing_subscriber::registry().with(lines);
        // Two arms, since a layer that is there and does nothing would still be asked about every span.
        let traces = match traces::start(trace, metrics)? {
            None => {
                registry.try_init()?;
                None
            }
            Some((traces, tracer)) => {
                registry.with(traces::layer(tracer)).try_init()?;
                Some(traces)
            }
        };
        Ok(Self { logs, traces })
    }

    /// The log's filter, to be looked at and changed.
    pub fn logs(&self) -> &Logs {
        &self.logs
    }

    /// The end: what waits for the collector is sent, for at most `grace`.
    pub async fn flush(self, grace: Duration) {
        if let Some(traces) = self.traces {
            traces.flush(grace).await;
        }
    }
}
