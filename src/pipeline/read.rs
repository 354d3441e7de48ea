//! Step 6: from an input as sent to its canonical form and content key.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::Semaphore;

use super::Pipeline;
use crate::{
    admission::Reservation,
    cache::alias::InputDigest,
    error::Error,
    job::{Checked, Job, Spec},
    key::ContentKey,
    task,
};

/// Inputs below this are hashed and checked on the async thread: it takes less time than handing them over.
const INLINE_BYTES: usize = 64 << 10;

/// Turns for reading large inputs: as many as processors. What runs cannot be stopped, so what has not begun must not:
/// a request that is cancelled while it waits for its turn takes its memory with it.
pub(super) struct Readers(Arc<Semaphore>);

/// An input, read.
pub(super) struct Read {
    pub(super) key: ContentKey,
    pub(super) job: Job,
    /// The job's memory, until a flight accounts for it.
    pub(super) held: Reservation,
}

impl Readers {
    pub(super) fn new() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self(Arc::new(Semaphore::new(processors)))
    }
}

impl Pipeline {
    /// Off the async threads unless it is tiny; a picture file always, since its size says nothing about its pixels. The
    /// memory of the input as sent, `sent`, and of what is made of it is counted until the work is over, also when nobody
    /// waits for it any more.
    pub(super) async fn read(
        &self,
        checked: Checked,
        (data, digest): (Bytes, InputDigest),
        sent: Reservation,
    ) -> Result<Read, Error> {
        let inline = data.len() <= INLINE_BYTES && matches!(checked.spec(), Spec::Decode(_));
        let (gate, namespace) = (self.0.parts.gate.clone(), self.0.parts.namespace.clone());
        let work = move || {
            let needed = checked.canonical_bytes(&data)?;
            gate.check(sent.bytes().saturating_add(needed))?;
            let held = gate.reserve(needed)?;
            let job = checked.canonicalise_hashed(data, digest)?;
            Ok(Read { key: ContentKey::of(&job, &namespace), job, held })
        };
        if inline {
            return work();
        }
        let turn = self.0.readers.0.clone().acquire_owned().await;
        let turn = turn.map_err(|closed| Error::internal("the readers are gone").caused_by(closed))?;
        let read = task::blocking(move || {
            let _turn = turn;
            work()
        });
        read.await.map_err(|panic| Error::internal("reading the input panicked").caused_by(panic))?
    }
}
