//! What is told about a request when it is over: metrics, and one line of log.

use std::{
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    clients::Visit,
    deadline::Deadline,
    error::{Error, ErrorKind},
    key::ContentKey,
    metrics::{Front, Metrics, Outcome, RequestFacts},
    model::Task,
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
}

/// The model of a request that has named none that is known.
static UNKNOWN: LazyLock<Arc<str>> = LazyLock::new(|| "none".into());

/// Set when an answer is taken back from a client that does not read it: otherwise it looks like one that has left.
#[derive(Clone, Default)]
pub(super) struct Overdue(Arc<AtomicBool>);

impl Record {
    pub(super) fn begin(metrics: Metrics, front: Front, task: Task) -> Self {
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
        let overdue = Overdue::default();
        Self { metrics, facts, began: Instant::now(), visit: None, key: None, ended: false, error: None, overdue }
    }

    /// The request has been let in; it is in progress as long as this record lives.
    pub(super) fn visit(&mut self, visit: Visit) {
        self.visit = Some(visit);
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

    fn log(&self) {
        let RequestFacts { task, model, outcome, bytes_in, bytes_out, duration, .. } = &self.facts;
        let outcome = outcome.label();
        let key = self.key.map(tracing::field::debug);
        let client = self.visit.as_ref().map(|visit| &**visit.name());
        match &self.error {
            None => tracing::debug!(client, task, %model, key, outcome, bytes_in, bytes_out, ?duration, "request"),
            Some(error) => {
                let reason = error.row().reason;
                let source = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
                match error.row().level {
                    tracing::Level::ERROR => {
                        tracing::error!(client, task, %model, key, reason, %error, source, ?duration, "request failed");
                    }
                    tracing::Level::WARN => {
                        tracing::warn!(client, task, %model, key, reason, %error, source, ?duration, "request failed");
                    }
                    _ => tracing::debug!(client, task, %model, key, reason, %error, ?duration, "request failed"),
                }
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
        self.log();
    }
}
