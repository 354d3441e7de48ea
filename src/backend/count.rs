//! One run of a backend, counted when it is over: the dropped ones too.

use std::sync::Arc;

use tokio::time::Instant;

use crate::{
    error::{Error, ErrorKind},
    metrics::Metrics,
};

/// A run in progress.
pub(super) struct Count<'a> {
    metrics: &'a Metrics,
    backend: &'static str,
    model: Arc<str>,
    began: Instant,
    code: &'static str,
}

impl<'a> Count<'a> {
    pub(super) fn begin(metrics: &'a Metrics, backend: &'static str, model: Arc<str>) -> Self {
        Self { metrics, backend, model, began: Instant::now(), code: ErrorKind::Cancelled.label() }
    }

    /// It ended by itself.
    pub(super) fn end(mut self, result: Result<(), Error>) -> Result<(), Error> {
        self.code = result.as_ref().map_or_else(|error| error.kind().label(), |()| "ok");
        result
    }
}

impl Drop for Count<'_> {
    fn drop(&mut self) {
        self.metrics.backend(self.backend, &self.model, self.code, self.began.elapsed());
    }
}
