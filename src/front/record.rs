//! What is told about a request: metrics and one line of log when it is over, and its span while it lives.
//!
//! The span is on level DEBUG. Where neither the log nor an exporter wants it, it is none, and all that is done with it is
//! a look at that: nothing is formatted, nothing allocated.

use std::{
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;
use tracing::{
    Span,
    field::{Empty, debug, display},
};

use super::access::Line;
use crate::{
    clients::Visit,
    deadline::Deadline,
    error::{Error, ErrorKind, Side},
    key::ContentKey,
    meta::{Meta, Provenance},
    metrics::{Front, Metrics, Outcome, RequestFacts},
    model::Task,
    trace::TraceContext,
};

/// Collects facts while a request lives; tells them when dropped. A request that is dropped before its end is one whose
/// client has left.
pub(super) struct Record {
    metrics: Metrics,
    facts: RequestFacts,
    began: Instant,
    /// None until the request has been let in.
    visit: Option<Visit>,
    key: Option<ContentKey>,
    ended: bool,
    error: Option<Error>,
    overdue: Overdue,
    made: Option<Provenance>,
    span: Span,
    /// What is being done now.
    stage: Span,
    /// The span it was sent from.
    sent_from: Option<TraceContext>,
}

/// What a request goes through, in order; after `need_data` once more from the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Its spec and its input come in.
    Receive,
    /// Its job and key are made; it is looked for, joined or led.
    Lookup,
    /// Its answer is awaited.
    Wait,
    /// Its answer goes out.
    Send,
}

/// The model of a request that has named none that is known.
static UNKNOWN: LazyLock<Arc<str>> = LazyLock::new(|| "none".into());

/// Set when an answer is taken back from a client that does not read it: otherwise it looks like one that has left.
#[derive(Clone, Default)]
pub(super) struct Overdue(Arc<AtomicBool>);

impl Record {
    pub(super) fn begin(metrics: Metrics, front: Front, task: Task, sent_from: Option<TraceContext>) -> Self {
        let facts = RequestFacts {
            front,
            task: task.label(),
            model: UNKNOWN.clone(),
            outcome: Outcome::Error,
            duration: Duration::ZERO,
            first_byte: None,
            bytes_in: 0,
            bytes_out: 0,
        };
        let (front, task, overdue) = (front.label(), task.label(), Overdue::default());
        let span = tracing::debug_span!(
            parent: None, "request", "otel.kind" = "server", "otel.status_code" = Empty, front, task, model = Empty,
            key = Empty, output = Empty, outcome = Empty, bytes_in = Empty, bytes_out = Empty, reason = Empty,
        );
        if let Some(sent_from) = &sent_from {
            sent_from.adopt(&span);
        }
        let (visit, key, ended, error, made, stage) = (None, None, false, None, None, Span::none());
        let began = Instant::now();
        let mut record =
            Self { metrics, facts, began, visit, key, ended, error, overdue, made, span, stage, sent_from };
        record.enter(Stage::Receive);
        record
    }

    /// The request has been let in; it is in progress as long as this record lives.
    pub(super) fn visit(&mut self, visit: Visit) {
        self.visit = Some(visit);
    }

    /// The request's span, for what is done on its behalf.
    pub(super) fn span(&self) -> Span {
        self.span.clone()
    }

    /// The span that the request was sent from.
    pub(super) fn sent_from(&self) -> Option<TraceContext> {
        self.sent_from.clone()
    }

    /// What was done before is over.
    pub(super) fn enter(&mut self, stage: Stage) {
        if self.span.is_disabled() {
            return;
        }
        self.stage = Span::none();
        self.stage = match stage {
            Stage::Receive => tracing::debug_span!(parent: &self.span, "receive"),
            Stage::Lookup => tracing::debug_span!(parent: &self.span, "lookup"),
            Stage::Wait => tracing::debug_span!(parent: &self.span, "wait"),
            Stage::Send => tracing::debug_span!(parent: &self.span, "send"),
        };
    }

    /// The model is known and configured: a closed set of label values.
    pub(super) fn model(&mut self, model: &Arc<str>) {
        self.facts.model = model.clone();
    }

    pub(super) fn received(&mut self, bytes: u64) {
        self.facts.bytes_in = bytes;
        if let Some(visit) = &self.visit {
            visit.received(bytes);
        }
    }

    pub(super) fn accepted(&mut self, key: ContentKey, outcome: Outcome) {
        self.key = Some(key);
        self.facts.outcome = outcome;
    }

    /// The answer begins: what it is, and what it took to make.
    pub(super) fn begins(&mut self, meta: &Meta) {
        self.enter(Stage::Send);
        if !self.span.is_disabled() {
            self.span.record("output", meta.content_type.name());
        }
        if !self.facts.outcome.is_hit() {
            self.made = Some(meta.provenance.clone());
        }
    }

    pub(super) fn sent(&mut self, bytes: usize) {
        self.facts.first_byte.get_or_insert_with(|| self.began.elapsed());
        self.facts.bytes_out += bytes as u64;
        if let Some(visit) = &self.visit {
            visit.sent(bytes as u64);
        }
    }

    pub(super) fn began(&self) -> Instant {
        self.began
    }

    pub(super) fn first_byte(&self) -> Duration {
        self.facts.first_byte.unwrap_or_default()
    }

    pub(super) fn overdue(&self) -> Overdue {
        self.overdue.clone()
    }

    /// The whole answer has been handed to the connection.
    pub(super) fn done(&mut self) {
        self.ended = true;
    }

    /// The request fails with `error`.
    pub(super) fn failed(&mut self, error: &Error) {
        self.ended = true;
        self.error = Some(error.clone());
    }

    /// What the span has to say, now that it is known.
    fn describe(&self) {
        let (facts, span) = (&self.facts, &self.span);
        span.record("model", display(&facts.model)).record("outcome", facts.outcome.label());
        span.record("bytes_in", facts.bytes_in).record("bytes_out", facts.bytes_out);
        if let Some(key) = self.key {
            span.record("key", debug(key));
        }
        if let Some(row) = self.error.as_ref().map(Error::row) {
            span.record("reason", row.reason);
            // A request that asks for what cannot be is no failure of the server's.
            if row.side == Side::Internal {
                span.record("otel.status_code", "ERROR");
            }
        }
    }
}

impl Overdue {
    pub(super) fn set(&self) {
        self.0.store(true, Ordering::Release);
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// What the client finds at the end of what it was sent.
    pub(super) fn error() -> Error {
        Deadline::passed("the client was to read the answer")
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if !self.ended {
            self.error = Some(if self.overdue.is_set() {
                Overdue::error()
            } else if std::thread::panicking() {
                Error::internal("handling the request panicked")
            } else {
                Error::new(ErrorKind::Cancelled, "the client left before the end of the answer")
            });
        }
        if let Some(error) = &self.error {
            self.facts.outcome = Outcome::Error;
            self.metrics.error(error.kind().label());
        }
        self.facts.duration = self.began.elapsed();
        self.metrics.request(&self.facts);
        self.stage = Span::none();
        if !self.span.is_disabled() {
            self.describe();
        }
        let client = self.visit.as_ref().map(|visit| &**visit.name());
        let line =
            Line { facts: &self.facts, client, key: self.key, made: self.made.as_ref(), error: self.error.as_ref() };
        line.write(|| TraceContext::of(&self.span).or_else(|| self.sent_from.clone()));
    }
}
