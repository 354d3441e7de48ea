//! What computes a miss. The seam between the pipeline and anything that can answer: the engine in this process, an
//! upstream endpoint.

use std::{collections::BTreeMap, sync::Arc};

use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{body::BodyWriter, error::Error, hops::Hops, job::Job, model::ModelId, progress::Progress};

mod count;
mod line;
pub mod upstream;
#[cfg(feature = "local")]
pub mod local;

pub use crate::task::BoxFuture;

/// One miss to compute.
#[derive(Clone)]
pub struct Compute {
    /// What to compute, with its input.
    pub job: Arc<Job>,
    /// Where to tell how far it is.
    pub progress: watch::Sender<Progress>,
    /// Cancelled when nobody waits any more.
    pub cancel: CancellationToken,
    /// Whether another backend is asked if this one fails: no reason then to wait long for better times.
    pub others: Others,
    /// Which latentgates the request that leads this run has passed.
    pub hops: Hops,
}

/// Who is asked after a backend that fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Others {
    /// Another backend.
    Follow,
    /// Nobody: this one is the last.
    None,
}

/// What a backend can do for one model now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelState {
    /// Answers now.
    Ready,
    /// Will answer: its weights load on first use.
    Idle,
    /// Its weights are being read.
    Loading,
    /// Its weights could not be loaded; they are tried again for a request after `again`.
    Failed {
        /// What went wrong.
        why: String,
        /// Not before.
        again: Instant,
    },
    /// Cannot answer; why, and what to do.
    Unavailable(String),
}

/// What a backend can do now, model by model. A model that is not in it is not this backend's.
pub type Health = BTreeMap<ModelId, ModelState>;

/// Computes misses.
///
/// A backend owns its queue, its retries and its breaker. It is not asked twice for one flight after it published a byte.
/// One conformance suite runs on every implementation.
pub trait Backend: Send + Sync {
    /// Metric label and name in `ListModels`.
    fn name(&self) -> &'static str;

    /// What it can do now; changes wake the receiver.
    fn health(&self) -> watch::Receiver<Health>;

    /// Whether it can do this job at all, or why not, as the client is told if nobody else can either. Says nothing of
    /// its state.
    fn supports(&self, job: &Job) -> Result<(), Error>;

    /// Jobs waiting where `job` would wait: from some number on, others are asked first.
    fn waiting(&self, job: &Job) -> usize;

    /// Computes `compute` into `writer`: metadata, then bytes in order; or an error. Does not finish the body: the caller
    /// does, once it has judged the answer.
    ///
    /// Refuses at once with `Overloaded` when its queue is full. Stops when `compute.cancel` is cancelled. Cancel-safe:
    /// dropping the future abandons the run, and the work behind it stops at its next cancellation point.
    fn run<'a>(&'a self, compute: Compute, writer: &'a mut BodyWriter) -> BoxFuture<'a, Result<(), Error>>;
}
