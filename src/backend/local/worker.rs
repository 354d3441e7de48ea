//! A device's thread: owns the models, takes jobs from the queue, and with a job of small pictures those that wait for a
//! run like it.
//!
//! Nobody waits for company: what is not in the queue when a job is taken is not in its run. What a job may wait longer
//! for company is the time of [`BATCH_PIXELS`] at most.

use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use tokio::time::Instant;

use super::{
    Config, Models, NAME, ReadWeights,
    board::Board,
    engine::{Arena, Autoencoder, Cancelled, Checkpoint, Device, EngineError, Foretold, Latents, Observer, Pictures},
    order::{Made, Order},
    queue::Orders,
};
use crate::{
    backend::ModelState,
    error::{Error, ErrorKind, chain},
    float,
    job::Work,
    metrics::Metrics,
    model::ModelId,
    progress::Progress,
    tensor::Tensor,
};

/// After a failure to load, requests are refused for so long before the next one tries again.
const RELOAD_AFTER: Duration = Duration::from_secs(5);

/// Without work for so long, the engine gives back the memory it keeps for the next run.
const IDLE: Duration = Duration::from_secs(5);

/// Pixels of a run's pictures up to which others may join it: eight of 128 x 128. On the CPU, larger ones gain little in
/// company, and what one of them may have to wait longer for it is less than the time of so many pixels.
pub(super) const BATCH_PIXELS: usize = 1 << 17;

/// Everything the thread owns.
pub(super) struct Worker {
    device: Device,
    /// Which of the devices it is.
    place: usize,
    config: Config,
    models: Models,
    loaded: HashMap<ModelId, Autoencoder>,
    /// One for all models: their runs follow each other.
    arena: Arena,
    board: Board,
    metrics: Metrics,
}

/// Tells the waiters of a run's jobs how far it is, and the run when to stop.
struct Watch<'a> {
    batch: &'a [Order],
    progress: Progress,
}

/// What became of a run: what each of its jobs is answered, and how long it took.
type Ran = Result<(Vec<Result<Tensor, Error>>, Duration), Error>;

impl Observer for Watch<'_> {
    fn step_done(&mut self) -> Result<(), Cancelled> {
        self.progress.done += 1;
        for order in self.batch {
            order.compute.progress.send_replace(self.progress);
        }
        let all_left = self.batch.iter().all(|order| order.compute.cancel.is_cancelled());
        if all_left { Err(Cancelled) } else { Ok(()) }
    }
}

impl Worker {
    pub(super) fn new(
        (place, device): (usize, Device),
        config: Config,
        models: Models,
        board: Board,
        metrics: Metrics,
    ) -> Self {
        Self { device, place, config, models, loaded: HashMap::new(), arena: Arena::default(), board, metrics }
    }

    /// Until the handle is dropped.
    pub(super) fn run(mut self, orders: &Orders) {
        let preload: Vec<_> = self.models.values().filter(|m| m.preload).map(|m| m.spec.id.clone()).collect();
        for id in preload {
            self.preload(&id);
        }
        let next = |worker: &Self| {
            let is_others = |order: &Order| worker.board.is_others(worker.place, order.model());
            orders.next(IDLE, is_others, || worker.arena.release())
        };
        while let Some((ticket, first)) = next(&self) {
            let queued = first.queued_at.elapsed();
            if first.is_forsaken() {
                self.metrics.backend_queue_wait(NAME, queued);
                continue;
            }
            match self.load(first.model()) {
                Err(_) if self.board.is_others(self.place, first.model()) => orders.put_back(ticket, first),
                Err(error) => {
                    self.metrics.backend_queue_wait(NAME, queued);
                    drop(first.made.send(Err(error)));
                }
                Ok(()) => self.serve_first(first, queued, orders),
            }
        }
    }

    /// Runs a job whose model is there, and those that may share its run.
    fn serve_first(&mut self, first: Order, queued: Duration, orders: &Orders) {
        let company = self.company(&first, orders).into_iter().map(|order| (order.queued_at.elapsed(), order));
        let taken = std::iter::once((queued, first)).chain(company);
        let waited = taken.inspect(|(queued, _)| self.metrics.backend_queue_wait(NAME, *queued));
        let (queued, batch): (Vec<_>, Vec<_>) = waited.filter(|(_, order)| !order.is_forsaken()).unzip();
        self.serve(batch, &queued);
    }

    /// Those who wait for a run like that of `first` and may join it: as far as its model is there, the configuration, the
    /// bound on a batch and the memory allow.
    fn company(&self, first: &Order, orders: &Orders) -> Vec<Order> {
        let size = first.size;
        let mut pictures = self.config.batch.min(BATCH_PIXELS / size.pixels().max(1));
        let Some(autoencoder) = self.loaded.get(first.model()).filter(|_| pictures > size.n && !orders.is_empty())
        else {
            return Vec::new();
        };
        while pictures > size.n && !autoencoder.runs_whole(first.task(), pictures, size.height, size.width) {
            pictures -= 1;
        }
        orders.like(first, pictures.saturating_sub(size.n))
    }

    /// Runs jobs that are like each other, and answers each. If that fails, each is run alone: none fails for another.
    fn serve(&mut self, batch: Vec<Order>, queued: &[Duration]) {
        let spans: Vec<_> = batch.iter().map(|order| compute_span(order, batch.len())).collect();
        let Some(span) = spans.first() else { return };
        let ran = span.in_scope(|| self.compute(&batch));
        drop(spans);
        if batch.len() > 1 && ran.as_ref().is_err_and(|error| error.kind() != ErrorKind::Cancelled) {
            tracing::warn!(jobs = batch.len(), "a run of several jobs failed; each is run alone");
            for (order, &queued) in batch.into_iter().zip(queued) {
                self.serve(vec![order], &[queued]);
            }
            return;
        }
        let (answers, computed) = match ran {
            Ok(ran) => ran,
            Err(error) if batch.len() == 1 => (vec![Err(error)], Duration::ZERO),
            Err(_cancelled) => (batch.iter().map(|_| Err(cancelled())).collect(), Duration::ZERO),
        };
        for ((order, answer), &queued) in batch.into_iter().zip(answers).zip(queued) {
            // Nobody may be waiting any more, and then nobody minds.
            drop(order.made.send(answer.map(|tensor| Made { tensor, queued, computed })));
        }
    }

    fn compute(&mut self, batch: &[Order]) -> Ran {
        let first = &batch[0];
        let (id, task) = (first.model(), first.task());
        self.load(id)?;
        let autoencoder = self.loaded.get(id).ok_or_else(|| Error::internal("a loaded model is gone"))?;
        let Foretold { steps: total, .. } = foretell(autoencoder, batch, self.config.memory.as_u64())?;
        let began = Instant::now();
        let mut watch = Watch { batch, progress: Progress { done: 0, total } };
        let ran = catch_unwind(AssertUnwindSafe(|| run(autoencoder, batch, &mut watch)));
        let took = began.elapsed();
        match ran {
            Ok(Ok(tensors)) => {
                let answers: Vec<_> = tensors.into_iter().map(judged).collect();
                let well = answers.iter().filter(|answer| answer.is_ok()).count();
                if well > 0 {
                    self.metrics.engine_run(id.shared(), task.label(), well, took);
                }
                Ok((answers, took))
            }
            Ok(Err(EngineError::Cancelled)) => Err(cancelled()),
            Ok(Err(error)) => {
                Err(Error::internal(format!("the engine failed in {} of {id}", task.label())).caused_by(error))
            }
            Err(_panic) => {
                // Whatever state the panic left behind goes with the model.
                self.unload(id);
                self.preload(id);
                Err(Error::internal(format!("the engine panicked in {} of {id}", task.label())))
            }
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
        self.board.tell(self.place, id, ModelState::Loading);
        let began = Instant::now();
        let loaded = catch_unwind(AssertUnwindSafe(|| open(read, self.device, &self.config)));
        match loaded.unwrap_or_else(|_panic| Err("loading its weights panicked".to_owned())) {
            Ok(autoencoder) => {
                tracing::info!(model = %id, took = ?began.elapsed(), device = %self.device, "model loaded");
                let autoencoder = autoencoder.with_arena(self.arena.clone()).with_memory(self.config.memory.as_u64());
                self.loaded.insert(id.clone(), autoencoder);
                self.board.tell(self.place, id, ModelState::Ready);
                Ok(())
            }
            Err(why) => {
                let again = Instant::now() + RELOAD_AFTER;
                self.board.tell(self.place, id, ModelState::Failed { why: why.clone(), again });
                if self.board.is_others(self.place, id) {
                    tracing::warn!(model = %id, device = %self.device, %why, "a model is left to other devices");
                }
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
            tracing::error!(model = %id, device = %self.device, %error, "a model that should be preloaded cannot be loaded");
        }
    }

    fn unload(&mut self, id: &ModelId) {
        self.loaded.remove(id);
        self.board.tell(self.place, id, ModelState::Idle);
    }
}

impl Drop for Worker {
    /// However the thread ends, nobody is to wait for it.
    fn drop(&mut self) {
        self.board.leave(self.place, "the engine has stopped");
    }
}

fn open(read: &ReadWeights, device: Device, config: &Config) -> Result<Autoencoder, String> {
    let weights = read().map_err(|error| chain(&error))?;
    let checkpoint = Checkpoint { config: &weights.config, weights: &weights.tensors };
    Autoencoder::load(&checkpoint, &device, config.precision).map_err(|error| chain(&error))
}

fn compute_span(order: &Order, jobs: usize) -> tracing::Span {
    let (model, task) = (order.model(), order.task().label());
    tracing::debug_span!(parent: &order.span, "compute", %model, task, jobs)
}

fn cancelled() -> Error {
    Error::new(ErrorKind::Cancelled, "nobody waits for this run any more")
}

/// An answer that is one.
fn judged(tensor: Tensor) -> Result<Tensor, Error> {
    if float::is_finite(&tensor) {
        return Ok(tensor);
    }
    let message = "the answer holds NaN or infinity: input or scaling are far outside the model's range";
    Err(Error::bad_request("scaling", message))
}

/// What the run will take. Refuses one whose working memory is beyond the configured one, before any of it is taken.
fn foretell(autoencoder: &Autoencoder, batch: &[Order], limit: u64) -> Result<Foretold, Error> {
    let (first, n) = (&batch[0], batch.iter().map(|order| order.size.n).sum());
    let (h, w) = (first.size.height, first.size.width);
    let foretold = autoencoder.foretell(first.task(), [n, h, w]);
    if foretold.bytes > limit {
        let message = format!(
            "{n} x {h} x {w} pixels of model {} need about {} bytes of working memory, engine.memory is {limit}",
            first.model(),
            foretold.bytes
        );
        return Err(Error::new(ErrorKind::TooLarge, message));
    }
    Ok(foretold)
}

/// An answer for each job, in one run of the network.
fn run(autoencoder: &Autoencoder, batch: &[Order], watch: &mut Watch<'_>) -> Result<Vec<Tensor>, EngineError> {
    let (mut decodes, mut encodes) = (Vec::new(), Vec::new());
    for job in batch.iter().map(|order| &*order.compute.job) {
        let scaling = job.scaling;
        match &job.work {
            Work::Decode { latents, output } => {
                let dtype = autoencoder.decoded_dtype(*output);
                decodes.push(Latents { latents, scaling, dtype });
            }
            &Work::Encode { ref pixels, mode, dtype } => {
                encodes.push(Pictures { pictures: pixels, mode, scaling, dtype });
            }
        }
    }
    // One of the two is empty.
    let mut tensors = autoencoder.decode_all(&decodes, watch)?;
    tensors.extend(autoencoder.encode_all(&encodes, watch)?);
    Ok(tensors)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::watch;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::{
        backend::{Compute, Others},
        hops::Hops,
        job::{Job, Output},
        model::{ModelTable, Scaling},
        tensor::{DType, Shape},
    };

    #[test]
    fn a_run_stops_when_the_last_of_its_jobs_is_left_and_tells_them_all_how_far_it_is() {
        let order = || {
            let shape = Shape::try_new(&[1, 4, 2, 2]).unwrap();
            let latents = Tensor::try_new(DType::F32, shape, vec![0; 64].into()).unwrap();
            let model = ModelTable::known().get("builtin").unwrap().clone();
            let work = Work::Decode { latents, output: Output::Uint8 };
            let job = Arc::new(Job::new(model, Scaling::NONE, work));
            let (progress, cancel) = (watch::Sender::new(Progress::default()), CancellationToken::new());
            Order::new(Compute { job, progress, cancel, others: Others::None, hops: Hops::default() }).unwrap().0
        };
        let batch = [order(), order()];
        let mut watch = Watch { batch: &batch, progress: Progress { done: 0, total: 9 } };
        assert!(watch.step_done().is_ok());
        batch[0].compute.cancel.cancel();
        assert!(watch.step_done().is_ok());
        for order in &batch {
            assert_eq!(*order.compute.progress.borrow(), Progress { done: 2, total: 9 });
        }
        batch[1].compute.cancel.cancel();
        assert!(watch.step_done().is_err());
    }
}
