//! The one growing buffer: one writer appends, many readers follow, each at its own pace.
//!
//! A body has a [`Meta`] before its first byte, then slices of bytes in order, then exactly one end: complete with a
//! [`Seal`], or failed with an error. A writer that is dropped midway fails it, so a short body never looks whole. Bytes
//! are shared slices: appending and reading copy nothing. Readers never block the writer nor each other.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::{error::Error, meta::Meta};

/// Bytes hashed and published at a time: well under a millisecond of an async thread.
const SLICE_BYTES: usize = 1 << 20;

/// Proves the bytes of a whole body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seal {
    /// Bytes in all.
    pub length: u64,
    /// BLAKE3 of all bytes.
    pub digest: [u8; 32],
}

/// What happens to be there of a body, and how it ended.
#[derive(Clone, Debug)]
pub enum End {
    /// Whole, and sealed.
    Complete(Seal),
    /// Never to be whole.
    Failed(Error),
}

/// Shared by one writer and any number of readers. Cloning is cheap.
#[derive(Clone)]
pub struct Body(Arc<Shared>);

struct Shared {
    meta: OnceLock<Meta>,
    grown: Mutex<Grown>,
    /// Wakes readers; carries nothing.
    changed: watch::Sender<()>,
}

#[derive(Default)]
struct Grown {
    slices: Vec<Bytes>,
    end: Option<End>,
}

/// Appends to a body. Dropped without [`BodyWriter::finish`] or [`BodyWriter::fail`], it fails the body.
pub struct BodyWriter {
    body: Body,
    proof: Proof,
    length: u64,
}

/// Where a body's seal comes from.
enum Proof {
    /// From hashing what is appended.
    Hashed(Box<blake3::Hasher>),
    /// It is known; whoever appends has proved each slice against it.
    Known(Seal),
}

/// Reads a body from its first byte, however much of it exists.
pub struct BodyReader {
    body: Body,
    changed: watch::Receiver<()>,
    next: usize,
}

// === impl Body ===

impl Body {
    /// An empty body and the one handle that fills it.
    pub fn channel() -> (BodyWriter, Self) {
        let shared = Shared { meta: OnceLock::new(), grown: Mutex::default(), changed: watch::Sender::new(()) };
        let body = Self(Arc::new(shared));
        (BodyWriter { body: body.clone(), proof: Proof::Hashed(Box::default()), length: 0 }, body)
    }

    /// A reader that begins at the first byte.
    pub fn reader(&self) -> BodyReader {
        BodyReader { body: self.clone(), changed: self.0.changed.subscribe(), next: 0 }
    }

    /// How it ended, if it has.
    pub fn end(&self) -> Option<End> {
        self.0.grown.lock().end.clone()
    }

    /// The metadata, once the writer has set it.
    pub fn meta(&self) -> Option<&Meta> {
        self.0.meta.get()
    }

    /// The slices so far; no copy of their bytes.
    pub fn slices(&self) -> Vec<Bytes> {
        self.0.grown.lock().slices.clone()
    }

    /// Ends the body if it has no end yet, and wakes every reader.
    fn close(&self, end: End) {
        self.0.grown.lock().end.get_or_insert(end);
        self.0.changed.send_replace(());
    }
}

// === impl BodyWriter ===

impl BodyWriter {
    /// Announces what the bytes are. Once, before the first byte.
    pub fn begin(&mut self, meta: Meta) -> Result<(), Error> {
        self.body.0.meta.set(meta).map_err(|_| Error::internal("a body began twice"))?;
        self.body.0.changed.send_replace(());
        Ok(())
    }

    /// The same for bytes whose seal is known: the caller has proved, or will prove, every slice against it before it is
    /// appended, so that nothing is hashed twice.
    pub fn begin_proved(&mut self, meta: Meta, seal: Seal) -> Result<(), Error> {
        self.begin(meta)?;
        self.proof = Proof::Known(seal);
        Ok(())
    }

    /// Whether it has been announced what the bytes are: from then on no other answer can take this one's place.
    pub fn has_begun(&self) -> bool {
        self.body.meta().is_some()
    }

    /// Appends a slice. Hashes it on the calling thread: callers keep slices near a megabyte on async threads.
    pub fn append(&mut self, slice: Bytes) -> Result<(), Error> {
        let announced = self.body.meta().ok_or_else(|| Error::internal("bytes before metadata"))?.length;
        self.length += slice.len() as u64;
        if self.length > announced {
            return Err(Error::internal(format!("{} bytes made, {announced} announced", self.length)));
        }
        if !slice.is_empty() {
            if let Proof::Hashed(hasher) = &mut self.proof {
                hasher.update(&slice);
            }
            self.body.0.grown.lock().slices.push(slice);
            self.body.0.changed.send_replace(());
        }
        Ok(())
    }

    /// Appends bytes that are there as a whole, a slice at a time, so that readers get the first before the last is hashed
    /// and nobody waits long for the thread. Dropped midway, it leaves a body that has not ended.
    pub async fn append_all(&mut self, mut bytes: Bytes) -> Result<(), Error> {
        while !bytes.is_empty() {
            self.append(bytes.split_to(bytes.len().min(SLICE_BYTES)))?;
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    /// Ends the body as whole for its readers, while the writer goes on to judge whether it is to be kept: what comes
    /// after, [`BodyWriter::finish`] or [`BodyWriter::fail`], decides that alone. Gives the slices.
    pub fn seal(&self) -> Result<Vec<Bytes>, Error> {
        let (_, seal) = self.whole()?;
        self.body.close(End::Complete(seal));
        Ok(self.body.slices())
    }

    /// Ends the body as whole. `fill` runs before any reader can see the end, unless it has been sealed before: whoever
    /// has the whole answer can count on finding it where `fill` put it. Fewer bytes than announced are a failure, not a
    /// short success.
    pub fn finish(self, fill: impl FnOnce(&Meta, Seal, &Body)) -> Result<Seal, Error> {
        match self.whole() {
            Ok((meta, seal)) => {
                fill(meta, seal, &self.body);
                self.body.close(End::Complete(seal));
                Ok(seal)
            }
            Err(error) => {
                self.fail(error.clone());
                Err(error)
            }
        }
    }

    /// Ends the body with an error that every reader gets, unless it has been sealed.
    pub fn fail(self, error: Error) {
        self.body.close(End::Failed(error));
    }

    /// What seals the body, if all that was announced is there.
    fn whole(&self) -> Result<(&Meta, Seal), Error> {
        let seal = match &self.proof {
            Proof::Hashed(hasher) => Seal { length: self.length, digest: *hasher.finalize().as_bytes() },
            Proof::Known(seal) => *seal,
        };
        match self.body.meta() {
            Some(meta) if meta.length == self.length => Ok((meta, seal)),
            announced => {
                let wanted = announced.map_or(0, |meta| meta.length);
                Err(Error::internal(format!("{} bytes made, {wanted} announced", self.length)))
            }
        }
    }
}

impl Drop for BodyWriter {
    fn drop(&mut self) {
        if self.body.end().is_none() {
            self.body.close(End::Failed(Error::internal("the run ended without an answer")));
        }
    }
}

// === impl BodyReader ===

impl BodyReader {
    /// Waits for the metadata, or for the failure that came instead. Cancel-safe.
    pub async fn meta(&mut self) -> Result<Meta, Error> {
        loop {
            if let Some(meta) = self.body.meta() {
                return Ok(meta.clone());
            }
            if let Some(End::Failed(error)) = self.body.end() {
                return Err(error);
            }
            self.wait().await;
        }
    }

    /// The next slice as the writer appended it; `None` after the last, and only when the body is whole. Cancel-safe.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            let (slice, end) = {
                let grown = self.body.0.grown.lock();
                (grown.slices.get(self.next).cloned(), grown.end.clone())
            };
            match (slice, end) {
                (Some(slice), _) => {
                    self.next += 1;
                    return Ok(Some(slice));
                }
                (None, Some(End::Complete(_))) => return Ok(None),
                (None, Some(End::Failed(error))) => return Err(error),
                (None, None) => self.wait().await,
            }
        }
    }

    /// The seal. Waits for the end. Cancel-safe.
    pub async fn seal(&mut self) -> Result<Seal, Error> {
        loop {
            match self.body.end() {
                Some(End::Complete(seal)) => return Ok(seal),
                Some(End::Failed(error)) => return Err(error),
                None => self.wait().await,
            }
        }
    }

    async fn wait(&mut self) {
        // The sender lives in the body that this reader holds, so the channel cannot be closed.
        self.changed.changed().await.expect("a reader holds its body");
    }
}

#[cfg(test)]
mod tests;
