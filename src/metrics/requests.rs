//! What is recorded of every request, in series that are looked up once: finding five by their labels takes longer than
//! answering a small hit.

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
    time::Duration,
};

use metrics::{Counter, Histogram, Label};
use parking_lot::RwLock;

use super::{Front, Metrics, Outcome, name};

/// Facts of a request that is over.
#[derive(Clone, Debug)]
pub struct RequestFacts {
    /// Through which front.
    pub front: Front,
    /// Label of the task: `decode`, `encode`, ...
    pub task: &'static str,
    /// A configured model's id, or `none` when the request named no known one.
    pub model: Arc<str>,
    /// How it ended.
    pub outcome: Outcome,
    /// First message to last.
    pub duration: Duration,
    /// First message to first byte of the answer, if there was one.
    pub first_byte: Option<Duration>,
    /// Input bytes taken.
    pub bytes_in: u64,
    /// Answer bytes given.
    pub bytes_out: u64,
}

/// The series of every kind of request that there has been. As many as label values, which come from closed sets.
#[derive(Default)]
pub(super) struct Series(RwLock<HashMap<RequestKind, Arc<OfKind>>>);

type RequestKind = (Front, &'static str, Outcome, Arc<str>);

struct OfKind {
    requests: Counter,
    duration: Histogram,
    /// Not there before a request of this kind has had an answer.
    first_byte: OnceLock<Histogram>,
    bytes_in: Counter,
    bytes_out: Counter,
}

impl Metrics {
    /// A request is over.
    pub fn request(&self, facts: &RequestFacts) {
        let series = self.of_kind((facts.front, facts.task, facts.outcome, facts.model.clone()));
        series.requests.increment(1);
        series.duration.record(facts.duration);
        if let Some(first_byte) = facts.first_byte {
            let labels = || short(facts.task, facts.outcome);
            series.first_byte.get_or_init(|| self.histogram(name::FIRST_BYTE, labels())).record(first_byte);
        }
        series.bytes_in.increment(facts.bytes_in);
        series.bytes_out.increment(facts.bytes_out);
    }

    fn of_kind(&self, kind: RequestKind) -> Arc<OfKind> {
        if let Some(known) = self.0.requests.0.read().get(&kind) {
            return known.clone();
        }
        let (front, task, outcome, model) = kind.clone();
        let label = Label::from_static_parts;
        let labels = vec![
            label("front", front.label()),
            label("task", task),
            Label::new("model", model),
            label("outcome", outcome.label()),
        ];
        let series = Arc::new(OfKind {
            requests: self.counter(name::REQUESTS, labels),
            duration: self.histogram(name::REQUEST_DURATION, short(task, outcome)),
            first_byte: OnceLock::new(),
            bytes_in: self.counter(name::REQUEST_BYTES, vec![label("task", task)]),
            bytes_out: self.counter(name::RESPONSE_BYTES, vec![label("task", task)]),
        });
        self.0.requests.0.write().entry(kind).or_insert(series).clone()
    }
}

fn short(task: &'static str, outcome: Outcome) -> Vec<Label> {
    vec![Label::from_static_parts("task", task), Label::from_static_parts("outcome", outcome.label())]
}
