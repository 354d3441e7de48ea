//! The leader's part of the path: tiers, derive, route, compute, judge, keep.

use std::{
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime},
};

use tokio::time::Instant;
use tracing::{Instrument as _, Span};

use super::{Keep, Pipeline};
use crate::{
    admission::Reservation,
    artifact::{Artifact, Subject},
    backend::{Backend, Compute, ModelState, Others},
    body::{Body, BodyWriter},
    cache::tier::Tier,
    deadline::Deadline,
    error::{Error, ErrorKind},
    flight::{Lead, Reach, Start},
    hops::Hops,
    job::{Job, Output, Predicted, Work},
    key::ContentKey,
    meta::{ContentType, Meta},
    metrics::Outcome,
    model::{ModelSpec, Task},
    progress::Progress,
    route::{self, Candidate, Failures, Unwell},
    task,
    trace::TraceContext,
};

/// What a leader is to do.
pub(super) struct Order {
    pub(super) key: ContentKey,
    pub(super) model: Arc<ModelSpec>,
    /// The job, what its answer will be, and the way of its request; none where the input has not been sent.
    pub(super) work: Option<(Arc<Job>, Predicted, Hops)>,
    pub(super) reach: Reach,
    /// Memory that is reserved when it is known how much it takes. Kept until the last waiter is gone.
    pub(super) later: Arc<OnceLock<Reservation>>,
}

/// What is left to do with an answer that is there.
pub(super) enum Made {
    /// It is in the tiers; memory gets it too.
    Stored(Subject),
    /// It is new, of numbers that were computed then.
    Anew(SystemTime),
}

impl Order {
    pub(super) fn new(
        key: ContentKey,
        model: Arc<ModelSpec>,
        work: Option<(Arc<Job>, Predicted, Hops)>,
        reach: Reach,
    ) -> Self {
        Self { key, model, work, reach, later: Arc::default() }
    }
}

impl Pipeline {
    /// A leader that is ready to go.
    pub(super) fn start(&self, order: Order, lead: Lead) -> Start<impl Future<Output = ()> + Send + use<>> {
        let span = tracing::debug_span!(parent: None, "flight", key = ?order.key, model = %order.model.id);
        // A child in the trace of the request that leads, which neither waits for it nor is kept open by it.
        if let Some(request) = TraceContext::of(&Span::current()) {
            request.adopt(&span);
        }
        Start { span, held: Box::new(order.later.clone()), leader: self.clone().lead(order, lead) }
    }

    /// Steps 8 to 11. Ends the body on every path; memory is filled before a reader can see the end.
    pub(super) async fn lead(self, order: Order, mut lead: Lead) {
        let deadline = Deadline::within(Instant::now(), None, self.0.parts.flight_deadline);
        let made = match deadline.bound("computing", self.make(&order, &mut lead)).await {
            Ok(made) => made,
            Err(error) => return lead.writer.fail(error),
        };
        let Lead { writer, wish, progress, .. } = lead;
        // What is left is worth finishing, though the last reader may leave with its last byte.
        progress.send_if_modified(Progress::complete);
        let (mut fresh, mut dropped) = (None, Vec::new());
        let kept = writer.finish(|meta, seal, body| match made {
            Made::Stored(subject) => {
                let life = life(&subject, &order.model);
                self.0.parts.memory.restore(Artifact::of(subject, meta, seal, body), life);
            }
            Made::Anew(made) if wish.is_allowed() && self.keeps(&order) => {
                let task = order.work.as_ref().map_or(Task::Decode, |(job, ..)| job.task());
                let (key, model) = (order.key, order.model.id.clone());
                let artifact = Artifact::of(Subject { key, model, task, made }, meta, seal, body);
                dropped = self.keep(&artifact, &order.model);
                fresh = Some(artifact);
            }
            Made::Anew(_) => {}
        });
        if let Err(error) = kept {
            tracing::error!(%error, model = %order.model.id, "an answer is not whole");
        }
        if order.reach == Reach::Backend {
            // What this one was to refresh is not to outlive it.
            for tier in dropped {
                tier.remove(order.key).await;
            }
        }
        if let Some(artifact) = fresh.filter(|artifact| artifact.is_fragmented()) {
            self.compact(artifact).await;
        }
    }

    /// Readers have the answer by now, and memory has it as it came. From here on it is kept in as few pieces as it takes.
    async fn compact(&self, artifact: Arc<Artifact>) {
        let fragmented = artifact.clone();
        // Failing that it is whole as it is.
        if let Ok(Ok(compacted)) = task::blocking(move || fragmented.compacted()).await {
            self.0.parts.memory.replace(&artifact, compacted);
        }
    }

    async fn make(&self, order: &Order, lead: &mut Lead) -> Result<Made, Error> {
        if order.reach != Reach::Backend {
            if let Some(made) = self.ask_tiers(order, lead).instrument(tracing::debug_span!("tiers")).await? {
                return Ok(made);
            }
            if let Some(made) = self.derive(order, lead).instrument(tracing::debug_span!("derive")).await? {
                return Ok(made);
            }
        }
        let (Some((job, predicted, hops)), Reach::All | Reach::Backend) = (&order.work, order.reach) else {
            return Err(Error::new(ErrorKind::NotCached, super::NOT_CACHED));
        };
        lead.source.tell(Outcome::Computed);
        let made = if self.wants_pixels(job) {
            self.through_pixels(order, lead).await?
        } else {
            self.route(Self::compute(job, hops, lead), &mut lead.writer).await?;
            SystemTime::now()
        };
        judge(lead.body.meta(), predicted)?;
        Ok(Made::Anew(made))
    }

    pub(super) fn compute(job: &Arc<Job>, hops: &Hops, lead: &Lead) -> Compute {
        let (progress, cancel) = (lead.progress.clone(), lead.cancel.clone());
        Compute { job: job.clone(), progress, cancel, others: Others::None, hops: hops.clone() }
    }

    /// Whether the answer itself is to be kept: a form that is made of kept pixels may not be.
    fn keeps(&self, order: &Order) -> bool {
        let is_made_of_pixels = order.work.as_ref().is_some_and(|(job, ..)| has_pixels(job));
        self.0.parts.keep != Keep::Pixels || !is_made_of_pixels
    }

    /// Whether the decoder's numbers are computed, and kept, before the form that is asked for is made of them.
    fn wants_pixels(&self, job: &Job) -> bool {
        self.0.parts.keep != Keep::Requested && has_pixels(job)
    }

    /// Memory and every tier get a new artifact. Gives the tiers whose queue had no room for it.
    pub(super) fn keep(&self, artifact: &Arc<Artifact>, model: &ModelSpec) -> Vec<Arc<dyn Tier>> {
        self.0.parts.memory.insert(artifact.clone(), life(artifact.subject(), model));
        let full = self.0.parts.tiers.iter().filter(|tier| !tier.offer(artifact.clone()));
        full.map(|fill| fill.tier().clone()).collect()
    }

    /// Step 10: the first backend that answers, in the order of policy, health and queues. The next is asked only as
    /// long as nothing has been published.
    pub(super) async fn route(&self, mut compute: Compute, writer: &mut BodyWriter) -> Result<(), Error> {
        let model = compute.job.model.id.clone();
        let routes = self.0.parts.routes.now();
        let backends = routes.of(&model);
        let candidates: Vec<_> = backends.iter().map(|backend| candidate(&**backend, &compute.job)).collect();
        let order = route::order(model.as_str(), &candidates, routes.spill_at)?;
        for &place in &order.spilled {
            self.0.parts.metrics.failover(backends[place].name(), "spill");
        }
        let mut failures = Failures::default();
        for (turn, &place) in order.asked.iter().enumerate() {
            let backend = &backends[place];
            let is_last = turn + 1 == order.asked.len();
            compute.others = if is_last { Others::None } else { Others::Follow };
            let span = tracing::debug_span!("backend", backend = backend.name(), %model);
            let Err(error) = backend.run(compute.clone(), writer).instrument(span).await else { return Ok(()) };
            if writer.has_begun() || !route::fails_over(error.kind()) {
                return Err(error);
            }
            if !is_last {
                tracing::debug!(backend = backend.name(), %model, %error, "another backend is asked");
                self.0.parts.metrics.failover(backend.name(), error.kind().label());
            }
            failures.add(backend.name(), error);
        }
        Err(failures.into_error())
    }

    /// The same into a body of its own, judged and whole. It is `key`'s answer.
    pub(super) async fn route_apart(
        &self,
        key: ContentKey,
        compute: Compute,
        predicted: &Predicted,
    ) -> Result<Arc<Artifact>, Error> {
        let (mut writer, body) = Body::channel();
        let (model, task) = (compute.job.model.id.clone(), compute.job.task());
        self.route(compute, &mut writer).await?;
        judge(body.meta(), predicted)?;
        let subject = Subject { key, model, task, made: SystemTime::now() };
        let mut made = None;
        writer.finish(|meta, seal, body| made = Some(Artifact::of(subject, meta, seal, body)))?;
        made.ok_or_else(|| Error::internal("a whole body is no artifact"))
    }
}

/// How long an artifact may still be kept.
fn life(subject: &Subject, model: &ModelSpec) -> Option<Duration> {
    let age = SystemTime::now().duration_since(subject.made).unwrap_or_default();
    model.time_to_live.map(|most| most.saturating_sub(age))
}

/// Whether a job's answer can be made of the decoder's f16 numbers.
fn has_pixels(job: &Job) -> bool {
    match &job.work {
        Work::Decode { output, .. } => {
            !job.model.is_video() && output.sources().contains(&Output::Tensor(crate::tensor::DType::F16))
        }
        Work::Encode { .. } => false,
    }
}

fn candidate(backend: &dyn Backend, job: &Job) -> Candidate {
    let supported = backend.supports(job);
    let well = match backend.health().borrow().get(&job.model.id) {
        None => Err(Unwell { why: "not one of its models".to_owned(), lasts: true }),
        Some(ModelState::Unavailable(why)) => Err(Unwell { why: why.clone(), lasts: true }),
        Some(ModelState::Failed { why, again }) if Instant::now() < *again => {
            Err(Unwell { why: why.clone(), lasts: false })
        }
        Some(ModelState::Ready | ModelState::Idle | ModelState::Loading | ModelState::Failed { .. }) => Ok(()),
    };
    Candidate { name: backend.name(), supported, well, waiting: backend.waiting(job) }
}

/// An answer must be what was predicted, or it is a bug and never cached.
pub(super) fn judge(meta: Option<&Meta>, predicted: &Predicted) -> Result<(), Error> {
    let meta = meta.ok_or_else(|| Error::internal("an answer without metadata"))?;
    let exact = meta.content_type == ContentType::Tensor;
    let fits = if exact { meta.length == predicted.bytes } else { meta.length <= predicted.bytes };
    if fits && meta.dtype == predicted.dtype && meta.shape == predicted.shape {
        return Ok(());
    }
    Err(Error::internal(format!(
        "an answer is {} {} of {} bytes, predicted were {} {} of {} bytes",
        meta.dtype, meta.shape, meta.length, predicted.dtype, predicted.shape, predicted.bytes
    )))
}
