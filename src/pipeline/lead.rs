//! The leader's part of the path: route, compute, judge, keep.

use std::sync::Arc;

use tokio::time::Instant;

use super::Pipeline;
use crate::{
    artifact::Artifact,
    backend::{Backend, Compute, ModelState},
    body::BodyWriter,
    deadline::Deadline,
    error::{Error, ErrorKind},
    flight::Lead,
    job::{Job, Predicted},
    key::ContentKey,
    meta::{ContentType, Meta},
};

impl Pipeline {
    /// Steps 8 to 11. Ends the body on every path; memory is filled before a reader can see the end.
    pub(super) async fn lead(self, key: ContentKey, job: Arc<Job>, predicted: Predicted, lead: Lead) {
        let Lead { mut writer, body, progress, cancel, wish } = lead;
        let compute = Compute { job: job.clone(), progress, cancel };
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

    /// Step 10: the first backend that can answer.
    async fn route(&self, compute: Compute, writer: &mut BodyWriter) -> Result<(), Error> {
        let mut reasons = Vec::new();
        for backend in &self.0.parts.backends {
            match willing(&**backend, &compute) {
                Ok(()) => return backend.run(compute, writer).await,
                Err(why) => reasons.push(format!("{}: {why}", backend.name())),
            }
        }
        let why = if reasons.is_empty() { "no backend is configured".to_owned() } else { reasons.join("; ") };
        let message = format!("model {} cannot be computed now: {why}", compute.job.model.id);
        Err(Error::new(ErrorKind::Unavailable, message))
    }
}

fn willing(backend: &dyn Backend, compute: &Compute) -> Result<(), String> {
    match backend.health().borrow().get(&compute.job.model.id) {
        None => Err("not one of its models".to_owned()),
        Some(ModelState::Unavailable(why)) => Err(why.clone()),
        Some(ModelState::Failed { why, again }) if Instant::now() < *again => Err(why.clone()),
        Some(ModelState::Ready | ModelState::Idle | ModelState::Loading | ModelState::Failed { .. }) => Ok(()),
    }
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
