//! The access line: one for each request, when it is over, whatever came of it.
//!
//! Its target is [`TARGET`], so that a filter can have more or less of it than of everything else. Times are milliseconds
//! with three decimals, sizes are bytes, both numbers in JSON. Nothing is formatted before somebody wants the line: where
//! nobody does, it costs one look at a flag.

use std::time::Duration;

use tracing::{Level, field};

use crate::{error::Error, key::ContentKey, meta::Provenance, metrics::RequestFacts, trace::TraceContext};

/// What filters call these lines.
pub const TARGET: &str = "latentgate::access";

/// What is told of a request.
pub(super) struct Line<'a> {
    pub(super) facts: &'a RequestFacts,
    /// The client's configured name, if it was let in.
    pub(super) client: Option<&'a str>,
    pub(super) key: Option<ContentKey>,
    /// Of the run that made the answer, where there was one.
    pub(super) made: Option<&'a Provenance>,
    pub(super) error: Option<&'a Error>,
}

/// One event: the macro wants level and message to be constants.
macro_rules! event {
    ($level:ident, $message:literal, $line:expr, $trace:expr) => {{
        let Line { facts, client, key, made, error } = $line;
        let run = |time: fn(&Provenance) -> Duration| made.map(|made| milliseconds(time(made)));
        let source = error.and_then(std::error::Error::source).map(field::display);
        tracing::event!(
            target: TARGET,
            parent: None,
            Level::$level,
            outcome = %facts.outcome.label(),
            task = %facts.task,
            model = %facts.model,
            duration_ms = milliseconds(facts.duration),
            first_byte_ms = facts.first_byte.map(milliseconds),
            queue_ms = run(|made| made.queued),
            compute_ms = run(|made| made.computed),
            render_ms = run(|made| made.rendered),
            bytes_in = facts.bytes_in,
            bytes_out = facts.bytes_out,
            front = %facts.front.label(),
            client = client.map(field::display),
            key = key.map(field::debug),
            trace_id = $trace.map(|trace| field::display(trace.id())),
            reason = error.map(|error| field::display(error.row().reason)),
            error = error.map(field::display),
            source,
            $message
        );
    }};
}

impl Line<'_> {
    /// Writes the line, in the trace that `trace` finds. Failures that an operator has to know of keep the level of the
    /// error table; all others are their clients' business, and told like successes.
    pub(super) fn write(&self, trace: impl FnOnce() -> Option<TraceContext>) {
        match self.error.map(|error| error.row().level) {
            Some(Level::ERROR) => event!(ERROR, "request failed", self, trace()),
            Some(Level::WARN) => event!(WARN, "request failed", self, trace()),
            Some(_) => event!(INFO, "request failed", self, trace()),
            None => event!(INFO, "request", self, trace()),
        }
    }
}

/// With the precision of a microsecond.
fn milliseconds(time: Duration) -> f64 {
    time.as_micros() as f64 / 1000.0
}
