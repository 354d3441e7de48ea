//! Step 9: one form of a decode made of another that is at hand, without a run.

use std::{sync::Arc, time::SystemTime};

use bytes::{Bytes, BytesMut};
use tokio::{sync::watch, time::Instant};

use super::{
    Pipeline, came_back_empty,
    lead::{Made, Order},
    tiers::Whole,
};
use crate::{
    error::Error,
    flight::{Found, Lead, Reach, Store, Waiter, Wish},
    job::{Job, Output, Work},
    key::ContentKey,
    meta::{ContentType, Meta, Provenance},
    metrics::Outcome,
    progress::Progress,
    task,
    tensor::DType,
};

/// The decoder's numbers, of which every form of a picture is made.
const PIXELS: Output = Output::Tensor(DType::F16);

impl Pipeline {
    /// Makes the answer of another form of the same decode, if one is kept. A source that turns out to be of no use is
    /// none: the answer is then computed.
    pub(super) async fn derive(&self, order: &Order, lead: &mut Lead) -> Result<Option<Made>, Error> {
        let Some((job, predicted, _)) = &order.work else { return Ok(None) };
        let Work::Decode { output, .. } = job.work else { return Ok(None) };
        if job.model.is_video() {
            return Ok(None);
        }
        for &from in output.sources() {
            let Some(source) = job.with_output(from) else { break };
            let key = ContentKey::of(&source, &self.0.parts.namespace);
            let Some((whole, held)) = self.look(&key, &job.model).await else { continue };
            // Who does not go on to a backend has not reserved the answer's memory yet.
            if order.reach == Reach::Tiers {
                let Ok(held) = self.reserve(predicted.held_bytes) else { continue };
                order.later.get_or_init(|| held);
            }
            let made = whole.made;
            let rendered = render((from, output), whole).await;
            drop(held);
            match rendered {
                Ok((meta, bytes)) => {
                    lead.source.tell(Outcome::Derived);
                    lead.writer.begin(meta)?;
                    lead.writer.append_all(bytes).await?;
                    // As old as what it is made of: a form of a form is not to live longer.
                    return Ok(Some(Made::Anew(made)));
                }
                Err(error) => tracing::debug!(?from, ?output, %error, "a kept form does not render"),
            }
        }
        Ok(None)
    }

    /// The answer by way of the decoder's numbers, which are computed, or joined, and kept under their own key. Gives when
    /// those were made.
    pub(super) async fn through_pixels(&self, order: &Order, lead: &mut Lead) -> Result<SystemTime, Error> {
        let Some((job, _, hops)) = &order.work else { return Err(Error::internal("no job to compute")) };
        let Work::Decode { output, .. } = job.work else { return Err(Error::internal("an encode has no pixels")) };
        let source: Arc<Job> = Arc::new(job.with_output(PIXELS).ok_or_else(|| Error::internal("no other form"))?);
        let key = ContentKey::of(&source, &self.0.parts.namespace);
        let store = if lead.wish.is_allowed() { Store::Allowed } else { Store::Refused };
        let wish = Wish { reach: order.reach, store };
        let whole = loop {
            match self.look_or_join(key, wish, (&source, hops))? {
                Found::Hit(artifact) => break Whole::of(&artifact),
                Found::Joined(waiter) if came_back_empty(&waiter).await => {}
                Found::Joined(waiter) | Found::Led(waiter) => break follow(&waiter, &lead.progress).await?,
            }
        };
        let made = whole.made;
        let (meta, bytes) = render((PIXELS, output), whole).await?;
        lead.writer.begin(meta)?;
        lead.writer.append_all(bytes).await?;
        Ok(made)
    }
}

/// All that a flight makes; tells on the way how far it is.
async fn follow(waiter: &Waiter, progress: &watch::Sender<Progress>) -> Result<Whole, Error> {
    let (mut reader, mut watched) = (waiter.reader(), waiter.progress());
    let told = async {
        while watched.changed().await.is_ok() {
            progress.send_replace(*watched.borrow_and_update());
        }
        // The run is over, and the reader is about to find out.
        std::future::pending().await
    };
    let read = async {
        let (meta, mut slices) = (reader.meta().await?, Vec::new());
        while let Some(slice) = reader.next().await? {
            slices.push(slice);
        }
        Ok(Whole { meta, slices, made: SystemTime::now() })
    };
    tokio::select! {
        read = read => read,
        never = told => never,
    }
}

/// One form of another, on the blocking pool.
async fn render((from, to): (Output, Output), source: Whole) -> Result<(Meta, Bytes), Error> {
    let Whole { meta: source, slices, .. } = source;
    let rendered = task::blocking(move || {
        let began = Instant::now();
        let made = to.derive(from, (source.dtype, source.shape), &join(slices))?;
        let provenance = Provenance { rendered: began.elapsed(), ..source.provenance };
        let (content_type, length) = (ContentType::from(to), made.bytes.len() as u64);
        Ok((Meta { content_type, dtype: made.dtype, shape: made.shape, length, provenance }, made.bytes))
    });
    let failed = |error: crate::job::RenditionError| Error::internal("a form does not render").caused_by(error);
    rendered.await.map_err(|panic| Error::internal("rendering panicked").caused_by(panic))?.map_err(failed)
}

/// One buffer; no copy of what is one already.
fn join(mut slices: Vec<Bytes>) -> Bytes {
    if slices.len() == 1 {
        return slices.remove(0);
    }
    let mut joined = BytesMut::with_capacity(slices.iter().map(Bytes::len).sum());
    for slice in slices {
        joined.extend_from_slice(&slice);
    }
    joined.freeze()
}
