//! The engine's thread: owns the models, takes jobs from the queue one by one.

use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::mpsc,
    time::Duration,
};

use tokio::{sync::watch, time::Instant};

use super::{
    Config, LocalModel, Made, NAME, Order, ReadWeights,
    engine::{Arena, Autoencoder, Cancelled, Checkpoint, EngineError, Observer},
};
use crate::{
    backend::{Compute, Health, ModelState},
    error::{Error, ErrorKind, chain},
    float,
    job::{Job, Work},
    metrics::Metrics,
    model::ModelId,
    progress::Progress,
    tensor::{DType, Tensor},
};

/// After a failure to load, requests are refused for so long before the next one tries again.
const RELOAD_AFTER: Duration = Duration::from_secs(5);

/// Without work for so long, the engine gives back the memory it keeps for the next run.
const IDLE: Duration = Duration::from_secs(5);

/// Everything the thread owns.
pub(super) struct Worker {
    config: Config,
    models: HashMap<ModelId, LocalModel>,
    loaded: HashMap<ModelId, Autoencoder>,
    /// One for all models: their runs follow each other.
    arena: Arena,
    health: watch::Sender<Health>,
    metrics: Metrics,
}

/// Tells a run's waiters how far it is, and the run when to stop.
struct Watch<'a> {
    compute: &'a Compute,
    progress: Progress,
}

impl Observer for Watch<'_> {
    fn block_done(&mut self) -> Result<(), Cancelled> {
        self.progress.done += 1;
        self.compute.progress.send_replace(self.progress);
        self.part_done()
    }

    fn part_done(&mut self) -> Result<(), Cancelled> {
        if self.compute.cancel.is_cancelled() { Err(Cancelled) } else { Ok(()) }
    }
}

impl Worker {
    pub(super) fn new(
        config: Config,
        models: Vec<LocalModel>,
        health: watch::Sender<Health>,
        metrics: Metrics,
    ) -> Self {
        let models = models.into_iter().map(|model| (model.spec.id.clone(), model)).collect();
        Self { config, models, loaded: HashMap::new(), arena: Arena::default(), health, metrics }
    }

    /// Until the handle is dropped.
    pub(super) fn run(mut self, orders: &mpsc::Receiver<Order>) {
        let preload: Vec<_> = self.models.values().filter(|m| m.preload).map(|m| m.spec.id.clone()).collect();
        for id in preload {
            self.preload(&id);
        }
        while let Some(order) = self.next(orders) {
            let Order { compute, span, queued_at, made, _turn } = order;
            let queued = queued_at.elapsed();
            self.metrics.backend_queue_wait(NAME, queued);
            if compute.cancel.is_cancelled() || made.is_closed() {
                continue;
            }
            let (model, task) = (&compute.job.model.id, compute.job.task().label());
            let run = tracing::debug_span!(parent: &span, "compute", %model, task);
            let result = run.in_scope(|| self.compute(&compute));
            drop((run, span));
            // Nobody may be waiting any more, and then nobody minds.
            drop(made.send(result.map(|(tensor, computed)| Made { tensor, queued, computed })));
        }
    }

    /// Waits for an order; `None` when there will be no more.
    fn next(&self, orders: &mpsc::Receiver<Order>) -> Option<Order> {
        match orders.recv_timeout(IDLE) {
            Err(mpsc::RecvTimeoutError::Timeout) => {
                self.arena.release();
                orders.recv().ok()
            }
            order => order.ok(),
        }
    }

    fn compute(&mut self, compute: &Compute) -> Result<(Tensor, Duration), Error> {
        let job = &compute.job;
        self.load(&job.model.id)?;
        let autoencoder = self.loaded.get(&job.model.id).ok_or_else(|| Error::internal("a loaded model is gone"))?;
        check_memory(autoencoder, job, self.config.memory.as_u64())?;
        let began = Instant::now();
        let total = autoencoder.blocks(job.task());
        let mut watch = Watch { compute, progress: Progress { done: 0, total } };
        let ran = catch_unwind(AssertUnwindSafe(|| run(autoencoder, job, &mut watch)));
        let took = began.elapsed();
        match ran {
            Ok(Ok(tensor)) if !float::is_finite(&tensor) => {
                let message = "the answer holds NaN or infinity: input or scaling are far outside the model's range";
                Err(Error::bad_request("scaling", message))
            }
            Ok(Ok(tensor)) => {
                self.metrics.engine_run(job.model.id.shared(), job.task().label(), took);
                Ok((tensor, took))
            }
            Ok(Err(error)) => Err(Self::failure(job, error)),
            Err(_panic) => {
                // Whatever state the panic left behind goes with the model.
                self.unload(&job.model.id);
                self.preload(&job.model.id);
                Err(Error::internal(format!("the engine panicked in {} of {}", job.task().label(), job.model.id)))
            }
        }
    }

    fn failure(job: &Job, error: EngineError) -> Error {
        match error {
            EngineError::Cancelled => Error::new(ErrorKind::Cancelled, "nobody waits for this run any more"),
            error => Error::internal(format!("the engine failed in {} of {}", job.task().label(), job.model.id))
                .caused_by(error),
        }
    }

    /// Brings a model into the engine if it is not there.
    fn load(&mut self, id: &ModelId) -> Result<(), Error> {
        if self.loaded.contains_key(id) {
            return Ok(());
        }
        let unavailable = |why: String| Error::new(ErrorKind::Unavailable, format!("model {id}: {why}"));
        let model = self.models.get(id).ok_or_else(|| unavailable("not a model of the local engine".to_owned()))?;
        let read = model.weights.as_ref().map_err(|why| unavailable(why.clone()))?;
        self.tell(id, ModelState::Loading);
        let began = Instant::now();
        let loaded = catch_unwind(AssertUnwindSafe(|| open(read, &self.config)));
        match loaded.unwrap_or_else(|_panic| Err("loading its weights panicked".to_owned())) {
            Ok(autoencoder) => {
                tracing::info!(model = %id, took = ?began.elapsed(), device = %self.config.device, "model loaded");
                self.metrics.engine_model_loaded(id.shared(), true);
                let autoencoder = autoencoder.with_arena(self.arena.clone()).with_memory(self.config.memory.as_u64());
                self.loaded.insert(id.clone(), autoencoder);
                self.tell(id, ModelState::Ready);
                Ok(())
            }
            Err(why) => {
                let again = Instant::now() + RELOAD_AFTER;
                self.tell(id, ModelState::Failed { why: why.clone(), again });
                Err(unavailable(why))
            }
        }
    }

    /// Loads a model that readiness waits for; others wait for their first request.
    fn preload(&mut self, id: &ModelId) {
        if !self.models.get(id).is_some_and(|model| model.preload) {
            return;
        }
        if let Err(error) = self.load(id) {
            tracing::error!(model = %id, %error, "a model that should be preloaded cannot be loaded");
        }
    }

    fn unload(&mut self, id: &ModelId) {
        self.loaded.remove(id);
        self.metrics.engine_model_loaded(id.shared(), false);
        self.tell(id, ModelState::Idle);
    }

    fn tell(&self, id: &ModelId, state: ModelState) {
        self.health.send_modify(|health| {
            health.insert(id.clone(), state);
        });
    }
}

impl Drop for Worker {
    /// However the thread ends, nobody is to wait for it.
    fn drop(&mut self) {
        self.health.send_modify(|health| {
            for state in health.values_mut() {
                *state = ModelState::Unavailable("the engine has stopped".to_owned());
            }
        });
    }
}

fn open(read: &ReadWeights, config: &Config) -> Result<Autoencoder, String> {
    let weights = read().map_err(|error| chain(&error))?;
    let checkpoint = Checkpoint { config: &weights.config, weights: &weights.tensors };
    Autoencoder::load(&checkpoint, &config.device, config.precision).map_err(|error| chain(&error))
}

/// Refuses a run whose working memory is beyond the configured one, before any of it is taken.
fn check_memory(autoencoder: &Autoencoder, job: &Job, limit: u64) -> Result<(), Error> {
    let (n, h, w) = match (&job.work, job.input().dtype(), job.input().shape().dims()) {
        (Work::Decode { .. }, _, &[n, _, h, w]) => (n, h * job.model.spatial_scale, w * job.model.spatial_scale),
        (Work::Encode { .. }, DType::U8, &[n, h, w, _]) | (Work::Encode { .. }, _, &[n, _, h, w]) => (n, h, w),
        _ => return Err(Error::internal("canonical input has an unknown layout")),
    };
    let needs = autoencoder.working_set_bytes(job.task(), n, h, w);
    if needs > limit {
        let message = format!(
            "{n} x {h} x {w} pixels of model {} need about {needs} bytes of working memory, engine.memory is {limit}",
            job.model.id
        );
        return Err(Error::new(ErrorKind::TooLarge, message));
    }
    Ok(())
}

fn run(autoencoder: &Autoencoder, job: &Job, watch: &mut Watch<'_>) -> Result<Tensor, EngineError> {
    match &job.work {
        Work::Decode { latents, output } => {
            autoencoder.decode(latents, job.scaling, autoencoder.decoded_dtype(*output), watch)
        }
        Work::Encode { pixels, mode, dtype } => autoencoder.encode(pixels, (*mode, job.scaling), *dtype, watch),
    }
}
