//! The leader's part of the path: route, compute, judge, keep.

use std::sync::Arc;

use tokio::time::Instant;

use super::Pipeline;
use crate::{
    artifact::Artifact,
    backend::{Backend, Compute, ModelState, Others},
    body::BodyWriter,
    deadline::Deadline,
    error::Error,
    flight::Lead,
    hops::Hops,
    job::{Job, Predicted},
    key::ContentKey,
    meta::{ContentType, Meta},
    route::{self, Candidate, Failures},
};

impl Pipeline {
    /// Steps 8 to 11. Ends the body on every path; memory is filled before a reader can see the end.
    pub(super) async fn lead(self, key: ContentKey, (job, predicted, hops): (Arc<Job>, Predicted, Hops), lead: Lead) {
        let Lead { mut writer, body, progress, cancel, wish } = lead;
        let compute = Compute { job: job.clone(), progress, cancel, others: Others::None, hops };
        let deadline = Deadline::within(Instant::now(), None, self.0.parts.flight_deadline);
        let ran = deadline.bound("computing", self.route(compute, &mut writer)).await;
        let judged = ran.and_then(|()| judge(body.meta(), &predicted));
        if let Err(error) = judged {
            return writer.fail(error);
        }
        let kept = writer.finish(|meta, seal, body| {
            if wish.is_allowed() {
                self.0.parts.memory.insert(key, Artifact::of(meta, seal, body));
            }
        });
        if let Err(error) = kept {
            tracing::error!(%error, model = %job.model.id, "a backend's answer is not whole");
        }
    }

    /// Step 10: the first backend that answers, in the order of policy, health and queues. The next is asked only as
    /// long as nothing has been published.
    async fn route(&self, mut compute: Compute, writer: &mut BodyWriter) -> Result<(), Error> {
        let model = compute.job.model.id.clone();
        let backends = self.0.parts.routes.of(&model);
        let candidates: Vec<_> = backends.iter().map(|backend| candidate(&**backend, &compute.job)).collect();
        let order = route::order(model.as_str(), &candidates, self.0.parts.routes.spill_at)?;
        for &place in &order.spilled {
            self.0.parts.metrics.failover(backends[place].name(), "spill");
        }
        let mut failures = Failures::default();
        for (turn, &place) in order.asked.iter().enumerate() {
            let backend = &backends[place];
            let is_last = turn + 1 == order.asked.len();
            compute.others = if is_last { Others::None } else { Others::Follow };
            let Err(error) = backend.run(compute.clone(), writer).await else { return Ok(()) };
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
}

fn candidate(backend: &dyn Backend, job: &Job) -> Candidate {
    let supported = backend.supports(job);
    let well = match backend.health().borrow().get(&job.model.id) {
        None => Err("not one of its models".to_owned()),
        Some(ModelState::Unavailable(why)) => Err(why.clone()),
        Some(ModelState::Failed { why, again }) if Instant::now() < *again => Err(why.clone()),
        Some(ModelState::Ready | ModelState::Idle | ModelState::Loading | ModelState::Failed { .. }) => Ok(()),
    };
    Candidate { name: backend.name(), supported, well, waiting: backend.waiting(job) }
}

/// A backend's answer must be what was predicted, or it is a bug and never cached.
fn judge(meta: Option<&Meta>, predicted: &Predicted) -> Result<(), Error> {
    let meta = meta.ok_or_else(|| Error::internal("a backend answered without metadata"))?;
    let exact = meta.content_type == ContentType::Tensor;
    let fits = if exact { meta.length == predicted.bytes } else { meta.length <= predicted.bytes };
    if fits && meta.dtype == predicted.dtype && meta.shape == predicted.shape {
        return Ok(());
    }
    Err(Error::internal(format!(
        "a backend answered {} {} of {} bytes, predicted were {} {} of {} bytes",
        meta.dtype, meta.shape, meta.length, predicted.dtype, predicted.shape, predicted.bytes
    )))
}
