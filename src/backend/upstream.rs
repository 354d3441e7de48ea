//! The upstream backend: asks the configured HTTP endpoints, in the protocol that diffusers speaks to them.
//!
//! A job becomes a request by `plan.rs`; `run.rs` finds an endpoint and a turn, and attempts until there is an answer
//! or no use in another attempt; `attempt.rs` is one exchange, `failure.rs` the table of how it can fail; `check.rs`
//! judges the reply before any of it is published, and `deliver.rs` passes it on as it comes.
//!
//! An endpoint that fails is spared by its breaker, retries by its budget, jobs that wait by its bounded line. Waits have
//! no deadline of their own beyond the configured times: the flight has one, and whoever drops the future at it leaves
//! nothing behind.
//!
//! Memory: the input and the answer are counted where the job was admitted. Not counted is what a turn holds besides: one
//! request body (latents at most as large as the input; one picture as a PNG, at most its pixels; other pixels as f32,
//! four times as large if they came as bytes), and, of a reply that is finished here, what comes in a wider type than
//! was predicted (at most twice the answer). A job that waits for a turn holds neither, so that at most `concurrency`
//! times these exist for an endpoint.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use tokio::sync::watch;

use super::{Backend, BoxFuture, Compute, Health, count::Count};
use crate::{
    body::BodyWriter,
    error::{Error, ErrorKind},
    hops::Instance,
    job::{EncodeMode, Job, Output, Work},
    metrics::Metrics,
    model::{ModelId, ModelSpec, Task},
};

mod attempt;
mod breaker;
mod check;
mod choice;
mod client;
mod config;
mod deliver;
mod endpoint;
mod failure;
mod plan;
mod retry;
mod reuse;
mod run;
mod token;
mod tries;

use choice::{Board, Group};
use deliver::Delivery;
use endpoint::Endpoint;
use run::Run;
use token::Tokens;

pub use config::{BackoffConfig, BreakerConfig, BudgetConfig, Config, Problem};
pub use endpoint::{UrlError, check_url};
pub use token::{Secret, TokenError};

/// How whatever this process asks over https is asked. Blocks: it reads the system's certificates.
pub(crate) fn tls() -> Result<rustls::ClientConfig, StartError> {
    client::tls(None)
}

/// Backend name and metric label.
const NAME: &str = "upstream";

/// The configuration's key of the lines' capacity, which a refusal names.
const KEY_QUEUE: &str = "upstream.queue";

/// The backend.
pub struct Upstream {
    shared: Shared,
    groups: BTreeMap<(ModelId, Task), Group>,
    metrics: Metrics,
}

/// What every job needs.
struct Shared {
    client: reqwest::Client,
    config: Config,
    tokens: Tokens,
    board: Board,
    instance: Instance,
}

/// Why it does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The token's file is not usable.
    #[error("upstream.token_file = {}", path.display())]
    TokenFile {
        /// The file.
        path: PathBuf,
        /// Why.
        source: TokenError,
    },
    /// The environment's token is not usable.
    #[error("HF_TOKEN")]
    Token(#[source] TokenError),
    /// The file of authorities is not usable.
    #[error("upstream.ca_file = {}: {why}", path.display())]
    CaFile {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// Something that a model names is no endpoint.
    #[error("models.{model}.upstream.{}: {url}", task.label())]
    Url {
        /// Whose.
        model: ModelId,
        /// For what.
        task: Task,
        /// What it names.
        url: String,
        /// Why.
        source: UrlError,
    },
    /// The TLS library refuses its own defaults.
    #[error("TLS")]
    Tls(#[source] rustls::Error),
    /// The HTTP client cannot be made.
    #[error("the HTTP client")]
    Client(#[source] reqwest::Error),
}

impl Upstream {
    /// Prepares to ask the endpoints of `models`; those without any are left out. Nothing is connected yet. Blocks: it
    /// reads the token's file and the authorities' certificates.
    pub fn start<'a>(
        config: &Config,
        models: impl IntoIterator<Item = &'a Arc<ModelSpec>>,
        instance: Instance,
        metrics: Metrics,
    ) -> Result<Self, StartError> {
        let tokens = Tokens::start(config)?;
        let client = client::build(config)?;
        let mut endpoints: Vec<Arc<Endpoint>> = Vec::new();
        let (mut groups, mut of_models) = (BTreeMap::new(), BTreeMap::<ModelId, Vec<_>>::new());
        for spec in models {
            for task in Task::ALL {
                let mut group: Vec<Arc<Endpoint>> = Vec::new();
                for url in spec.endpoints(task) {
                    let known = endpoints.iter().find(|known| known.is_at(url)).cloned();
                    let endpoint = known.map_or_else(|| Endpoint::new(url, config, &metrics).map(Arc::new), Ok);
                    let endpoint = endpoint.map_err(|source| StartError::Url {
                        model: spec.id.clone(),
                        task,
                        url: url.clone(),
                        source,
                    })?;
                    if !endpoints.iter().any(|known| Arc::ptr_eq(known, &endpoint)) {
                        endpoints.push(endpoint.clone());
                    }
                    if !group.iter().any(|known| Arc::ptr_eq(known, &endpoint)) {
                        group.push(endpoint);
                    }
                }
                if !group.is_empty() {
                    of_models.entry(spec.id.clone()).or_default().extend(group.iter().cloned());
                    groups.insert((spec.id.clone(), task), Group::new(group));
                }
            }
        }
        for endpoint in endpoints.iter().filter(|endpoint| tokens.is_kept_from(endpoint.trust())) {
            let upstream = endpoint.label();
            tracing::warn!(upstream, "an endpoint on plain http is not told the token of upstream.token_file");
        }
        metrics.backend_queue_capacity(NAME, endpoints.len() * config.queue);
        let shared = Shared { client, config: config.clone(), tokens, board: Board::new(of_models), instance };
        Ok(Self { shared, groups, metrics })
    }

    fn group(&self, job: &Job) -> Result<&Group, Error> {
        let (id, task) = (job.model.id.clone(), job.task());
        let absent = || {
            let message = format!("model {id} has no upstream endpoint to {}", task.label());
            Error::new(ErrorKind::Unavailable, message)
        };
        self.groups.get(&(id.clone(), task)).ok_or_else(absent)
    }

    async fn answer(&self, compute: Compute, writer: &mut BodyWriter) -> Result<(), Error> {
        self.supports(&compute.job)?;
        let group = self.group(&compute.job)?;
        let via = compute.hops.through(&self.shared.instance);
        let (job, others, trace) = (&compute.job, compute.others, compute.hops.trace());
        let run = Run { shared: &self.shared, group, job, others, via: &via, trace };
        let mut delivery = Delivery::new(writer, &compute.progress);
        tokio::select! {
            biased;
            () = compute.cancel.cancelled() => {
                Err(Error::new(ErrorKind::Cancelled, "nobody waits for this run any more"))
            }
            result = run.complete(&mut delivery) => result,
        }
    }
}

impl Backend for Upstream {
    fn name(&self) -> &'static str {
        NAME
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.shared.board.watch()
    }

    fn supports(&self, job: &Job) -> Result<(), Error> {
        self.group(job)?;
        match job.work {
            Work::Decode { output: Output::Mp4(fps), .. } if fps != Output::DEFAULT_FPS => {
                let message = format!("endpoints write {} frames a second, asked for are {fps}", Output::DEFAULT_FPS);
                Err(Error::field(ErrorKind::OutputUnsupported, "output.mp4.fps", message))
            }
            Work::Encode { mode: EncodeMode::Sample { .. }, .. } => {
                Err(Error::field(ErrorKind::OutputUnsupported, "sample", "endpoints take no seed to sample with"))
            }
            Work::Decode { .. } | Work::Encode { .. } => Ok(()),
        }
    }

    fn waiting(&self, job: &Job) -> usize {
        self.group(job).map_or(0, Group::waiting)
    }

    fn run<'a>(&'a self, compute: Compute, writer: &'a mut BodyWriter) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            let count = Count::begin(&self.metrics, NAME, compute.job.model.id.shared().clone());
            let result = self.answer(compute, writer).await;
            count.end(result)
        })
    }
}
