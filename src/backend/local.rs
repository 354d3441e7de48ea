//! The local backend: a handle, a bounded queue, and for each device a thread that takes from it.
//!
//! Async code never sees a tensor operation. A device's thread owns the models there, and the pool of threads on which they
//! run. The queue is first come first served; small pictures that wait for a run like the next one's may share it. A
//! running job is stopped between steps. The picture is encoded on the blocking pool, while the engine starts on the next
//! job. A panic in a run is that run's error; the model it happened in is dropped and loads afresh.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use bytesize::ByteSize;
use serde::{Deserialize, Serialize};
use tokio::{sync::watch, time::Instant};
use tracing::Instrument as _;

use super::{Backend, BoxFuture, Compute, Health, ModelState, count::Count};
use crate::{
    body::BodyWriter,
    error::{Error, ErrorKind},
    job::{Job, Output, Rendition, Work},
    meta::{ContentType, Meta, Provenance},
    metrics::Metrics,
    model::{ModelId, ModelSpec},
    task,
};

mod board;
pub mod devices;
pub mod engine;
mod order;
mod queue;
pub mod threads;
mod worker;

use board::Board;
use devices::Devices;
use engine::{Device, Precision};
use order::{Made, Order};
use queue::Queue;
use threads::Threads;

/// Backend name and metric label.
const NAME: &str = "local";

/// Settings of the local engine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `cpu`, `cuda`, `cuda:N` or `metal`; or several, each with weights of its own, that take jobs from one queue.
    pub device: Devices,
    /// `f32`, `f16` or `bf16`: how activations are kept between layers.
    pub precision: Precision,
    /// Threads that compute on the CPU, divided among several devices; 0: as many as there are processors.
    pub threads: usize,
    /// Jobs that may wait; more are refused with `OVERLOADED`.
    pub queue: usize,
    /// Small pictures that are computed in one run, at most, where they wait for one like it; 1: each job has its own. On a
    /// CPU it saves next to nothing.
    pub batch: usize,
    /// Working memory one run may need; larger jobs are refused with `TOO_LARGE`.
    pub memory: ByteSize,
}

/// One model that the engine may be asked for.
pub struct LocalModel {
    /// What it is.
    pub spec: Arc<ModelSpec>,
    /// Reads its weights, or says why there are none. Called on a device's thread, on first use there.
    pub weights: Result<ReadWeights, String>,
    /// Load it before the first request.
    pub preload: bool,
}

/// Reads a model's weights.
pub type ReadWeights = Box<dyn Fn() -> std::io::Result<Weights> + Send + Sync>;

/// What each of the devices' threads may be asked for.
type Models = Arc<HashMap<ModelId, LocalModel>>;

/// A checkpoint in memory.
pub struct Weights {
    /// Text of `config.json`.
    pub config: String,
    /// Bytes of the safetensors file.
    pub tensors: Bytes,
}

/// The handle. Dropping it ends the devices' threads after the jobs in hand.
pub struct Local {
    queue: Queue,
    health: watch::Receiver<Health>,
    metrics: Metrics,
}

impl Config {
    /// The most pictures of one run that can be asked for.
    pub const MAX_BATCH: usize = 64;
}

impl Default for Config {
    fn default() -> Self {
        Self {
            device: Devices::new([Device::Cpu]),
            precision: Precision::F32,
            threads: 0,
            queue: 128,
            batch: 1,
            memory: ByteSize::gib(8),
        }
    }
}

impl Local {
    /// Starts the threads of each device, of which one opens the device and loads what is to be preloaded. Returns at once;
    /// what cannot be loaded shows in the health.
    pub fn start(config: &Config, models: Vec<LocalModel>, metrics: Metrics) -> Result<Self, Error> {
        let states = models.iter().map(|model| {
            let state = match (&model.weights, model.preload) {
                (Err(why), _) => ModelState::Unavailable(why.clone()),
                (Ok(_), true) => ModelState::Loading,
                (Ok(_), false) => ModelState::Idle,
            };
            (model.spec.id.clone(), state)
        });
        let (board, health) = Board::new(config.device.all(), states.collect(), metrics.clone());
        let models: Models = Arc::new(models.into_iter().map(|model| (model.spec.id.clone(), model)).collect());
        let queue = Queue::new(config.queue, metrics.clone());
        let failed = |error| Error::internal("the engine's threads do not start").caused_by(error);
        for (place, &device) in config.device.all().iter().enumerate() {
            let (models, board, metrics) = (models.clone(), board.clone(), metrics.clone());
            let worker = worker::Worker::new((place, device), config.clone(), models, board, metrics);
            let orders = queue.orders();
            let threads = Threads::start(config.device.share(config.threads)).map_err(failed)?;
            task::thread("engine", move || threads.run(move || worker.run(&orders))).map_err(failed)?;
        }
        Ok(Self { queue, health, metrics })
    }

    /// Waits for the tensor. Cancel-safe: dropped in the queue, the job was never there; dropped afterwards, the run stops at
    /// its next step, unless it is others' too.
    async fn compute(&self, mut compute: Compute) -> Result<Made, Error> {
        // Whoever drops this future, the flight's deadline say, stops the run too.
        compute.cancel = compute.cancel.child_token();
        let _stop_with_me = compute.cancel.clone().drop_guard();
        let (order, answer) = Order::new(compute)?;
        let _place = self.queue.enter(order)?;
        answer.await.unwrap_or_else(|_| Err(Error::new(ErrorKind::Unavailable, "the engine has stopped")))
    }

    async fn answer(&self, compute: Compute, writer: &mut BodyWriter) -> Result<(), Error> {
        let job = compute.job.clone();
        let made = self.compute(compute).await?;
        let (meta, bytes) = task::blocking(move || finish(&job, &made))
            .instrument(tracing::debug_span!("render"))
            .await
            .map_err(|panic| Error::internal("rendering panicked").caused_by(panic))??;
        writer.begin(meta)?;
        writer.append_all(bytes).await
    }
}

impl Backend for Local {
    fn name(&self) -> &'static str {
        NAME
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.health.clone()
    }

    fn supports(&self, job: &Job) -> Result<(), Error> {
        if job.model.family.has_engine() {
            return Ok(());
        }
        let message = format!("{} has no local engine yet", job.model.family.class_name());
        Err(Error::new(ErrorKind::Unavailable, message))
    }

    fn waiting(&self, _: &Job) -> usize {
        self.queue.waiting()
    }

    fn run<'a>(&'a self, compute: Compute, writer: &'a mut BodyWriter) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            let count = Count::begin(&self.metrics, NAME, compute.job.model.id.shared().clone());
            let result = self.answer(compute, writer).await;
            count.end(result)
        })
    }
}

/// From the engine's tensor to the bytes that were asked for. Runs on the blocking pool.
fn finish(job: &Job, made: &Made) -> Result<(Meta, Bytes), Error> {
    let began = Instant::now();
    let output = match job.work {
        Work::Decode { output, .. } => output,
        Work::Encode { dtype, .. } => Output::Tensor(dtype),
    };
    let rendition = output.of_decoded(&made.tensor);
    let Rendition { dtype, shape, bytes } =
        rendition.map_err(|error| Error::internal("the answer does not render").caused_by(error))?;
    let provenance =
        Provenance { backend: NAME.into(), queued: made.queued, computed: made.computed, rendered: began.elapsed() };
    let (content_type, length) = (ContentType::from(output), bytes.len() as u64);
    Ok((Meta { content_type, dtype, shape, length, provenance }, bytes))
}

#[cfg(test)]
mod tests;
