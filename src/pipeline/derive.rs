//! Step 9: one form of a decode made of another that is at hand, without a run.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;

use super::{Keep, Pipeline, lead::Order};
use crate::{
    body::BodyWriter,
    error::Error,
    flight::{Found, Lead, Reach, Store, Wish},
    job::{Job, Output, Work},
    key::ContentKey,
    meta::{ContentType, Meta, Provenance},
    metrics::Outcome,
    task,
    tensor::DType,
};

/// Bytes hashed and published at a time: well under a millisecond of an async thread.
const SLICE_BYTES: usize = 1 << 20;

/// The decoder's numbers, of which every form of a picture is made.
const PIXELS: Output = Output::Tensor(DType::F16);

impl Pipeline {
    /// Makes the answer of another form of the same decode, if one is kept. A source that turns out to be of no use is
    /// none: the answer is then computed.
    pub(super) async fn derive(&self, order: &Order, lead: &mut Lead) -> Result<bool, Error> {
        let Some((job, ..)) = &order.work else { return Ok(false) };
        let Work::Decode { output, .. } = job.work else { return Ok(false) };
        if job.model.is_video() {
            return Ok(false);
        }
        for &from in output.sources() {
            let Some(source) = job.with_output(from) else { break };
            let key = ContentKey::of(&source, &self.0.parts.namespace);
            let Some((meta, slices)) = self.look(&key, &job.model).await else { continue };
            match render((from, output), meta, slices).await {
                Ok((meta, bytes)) => {
                    lead.source.tell(Outcome::Derived);
                    publish(&mut lead.writer, meta, bytes).await?;
                    return Ok(true);
                }
                Err(error) => tracing::warn!(?from, ?output, %error, "a kept form does not render"),
            }
        }
        Ok(false)
    }

    /// The answer by way of the decoder's numbers, which are computed, or joined, and kept under their own key.
    pub(super) async fn through_pixels(&self, order: &Order, lead: &mut Lead) -> Result<(), Error> {
        debug_assert_ne!(self.0.parts.keep, Keep::Requested);
        let Some((job, _, hops)) = &order.work else { return Err(Error::internal("no job to compute")) };
        let Work::Decode { output, .. } = job.work else { return Err(Error::internal("an encode has no pixels")) };
        let source: Arc<Job> = Arc::new(job.with_output(PIXELS).ok_or_else(|| Error::internal("no other form"))?);
        let key = ContentKey::of(&source, &self.0.parts.namespace);
        let store = if lead.wish.is_allowed() { Store::Allowed } else { Store::Refused };
        let reach = if order.reach == Reach::Backend { Reach::Backend } else { Reach::All };
        let (meta, slices) = match self.look_or_join(key, Wish { reach, store }, (&source, hops))? {
            Found::Hit(artifact) => (artifact.meta().clone(), artifact.slices()),
            Found::Joined(waiter) | Found::Led(waiter) => {
                let (mut reader, mut watched) = (waiter.reader(), waiter.progress());
                let told = async {
                    while watched.changed().await.is_ok() {
                        lead.progress.send_replace(*watched.borrow_and_update());
                    }
                    std::future::pending::<()>().await;
                };
                let read = async {
                    let (meta, mut slices) = (reader.meta().await?, Vec::new());
                    while let Some(slice) = reader.next().await? {
                        slices.push(slice);
                    }
                    Ok::<_, Error>((meta, slices))
                };
                tokio::select! {
                    read = read => read?,
                    () = told => return Err(Error::internal("what never ends has ended")),
                }
            }
        };
        let (meta, bytes) = render((PIXELS, output), meta, slices).await?;
        publish(&mut lead.writer, meta, bytes).await
    }
}

/// One form of another, on the blocking pool.
async fn render((from, to): (Output, Output), source: Meta, slices: Vec<Bytes>) -> Result<(Meta, Bytes), Error> {
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

async fn publish(writer: &mut BodyWriter, meta: Meta, mut bytes: Bytes) -> Result<(), Error> {
    writer.begin(meta)?;
    while !bytes.is_empty() {
        writer.append(bytes.split_to(bytes.len().min(SLICE_BYTES)))?;
        tokio::task::yield_now().await;
    }
    Ok(())
}
