//! From a reply's body to the flight's.
//!
//! Bytes that are the answer's pass as they come: slices of what the connection read, not copied, the first at once.
//! What is still to be finished here, and files whose length nobody has said, are read whole before a byte is
//! published: metadata comes first and holds the length. Until a byte is published, another attempt can still save the
//! job; afterwards a failure is the body's.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::{sync::watch, time::Instant};

use super::{
    NAME,
    attempt::Reply,
    check::{Checker, Pixels, WrongReply},
    failure::Failure,
    plan::{Finish, Unfinished},
};
use crate::{
    body::BodyWriter,
    error::Error,
    meta::{Meta, Provenance},
    progress::Progress,
    task,
};

/// Smaller pieces are joined: each would hold the whole buffer it was read into, which a connection that gives its
/// answer by single bytes could make a thousand times the answer's memory.
const SMALL_BYTES: usize = 8 << 10;

/// Steps in which progress is told.
const STEPS: u32 = 32;

/// Where a job's answer goes.
pub(super) struct Delivery<'a> {
    writer: &'a mut BodyWriter,
    progress: &'a watch::Sender<Progress>,
    /// Waits for turns so far.
    pub(super) queued: Duration,
    is_published: bool,
}

/// Joins small pieces; the first passes at once.
#[derive(Default)]
struct Joiner {
    small: BytesMut,
    has_first: bool,
}

impl<'a> Delivery<'a> {
    pub(super) const fn new(writer: &'a mut BodyWriter, progress: &'a watch::Sender<Progress>) -> Self {
        Self { writer, progress, queued: Duration::ZERO, is_published: false }
    }

    /// Whether a waiter may have seen a part of the answer.
    pub(super) const fn is_published(&self) -> bool {
        self.is_published
    }

    /// Takes a whole reply. Dropped midway, what is published stays, and the body is not whole.
    pub(super) async fn take(&mut self, reply: Reply<'_>) -> Result<(), Failure> {
        match reply.judged.length {
            Some(length) if reply.plan().finish.is_nothing(reply.judged.dtype) => self.pass(reply, length).await,
            _ => self.finish(reply).await,
        }
    }

    /// Publishes the pieces as they come.
    async fn pass(&mut self, mut reply: Reply<'_>, length: u64) -> Result<(), Failure> {
        let plan = reply.plan();
        let mut checker = Checker::new(&plan.form, &reply.judged);
        let (mut joiner, mut held) = (Joiner::default(), Vec::new());
        let mut computed = None;
        while let Some(piece) = reply.next().await? {
            let computed = *computed.get_or_insert_with(|| reply.sent_at.elapsed());
            checker.feed(&piece).map_err(|wrong| reply.wrong(&wrong))?;
            held.push(piece);
            if !checker.is_convinced() {
                continue;
            }
            let is_first = !self.is_published;
            if is_first {
                self.begin(&reply, length, [computed, Duration::ZERO])?;
            }
            for piece in held.drain(..) {
                for slice in joiner.join(piece).into_iter().flatten() {
                    self.append(slice)?;
                }
            }
            if is_first {
                // Readers have waited for this: they come before the pieces that are there already.
                tokio::task::yield_now().await;
            }
            self.tell(checker.seen(), length);
        }
        checker.end().map_err(|wrong| reply.wrong(&wrong))?;
        self.append(joiner.small.freeze())?;
        self.prove(&reply).await
    }

    /// Judges of a whole file what would take longer than anybody should wait for: whether a picture's pixels can be
    /// decoded. Its checksums have shown that every byte is what the endpoint wrote, so its readers may have the end; it
    /// is kept only if it holds.
    async fn prove(&mut self, reply: &Reply<'_>) -> Result<(), Failure> {
        let Some(mut pixels) = Pixels::of(&reply.plan().form) else { return Ok(()) };
        // Kept although its only reader may leave with the end.
        self.progress.send_if_modified(Progress::complete);
        let file = self.writer.seal().map_err(Failure::internal)?;
        let proved = task::blocking(move || {
            file.iter().try_for_each(|slice| pixels.feed(slice))?;
            pixels.end()
        });
        let panicked = |panic| Failure::internal(Error::internal("proving a reply panicked").caused_by(panic));
        proved.await.map_err(panicked)?.map_err(|wrong| reply.wrong(&wrong))
    }

    /// Reads the reply whole, makes the answer of it, and publishes that.
    async fn finish(&mut self, mut reply: Reply<'_>) -> Result<(), Failure> {
        let plan = reply.plan();
        let mut checker = Checker::new(&plan.form, &reply.judged);
        let mut body = BytesMut::with_capacity(reply.judged.length.unwrap_or_default() as usize);
        let mut computed = None;
        while let Some(piece) = reply.next().await? {
            computed.get_or_insert_with(|| reply.sent_at.elapsed());
            checker.feed(&piece).map_err(|wrong| reply.wrong(&wrong))?;
            body.extend_from_slice(&piece);
            self.tell(checker.seen(), reply.judged.most);
        }
        checker.end().map_err(|wrong| reply.wrong(&wrong))?;
        let began = Instant::now();
        let (finish, dtype, shape) = (plan.finish, reply.judged.dtype, plan.predicted.shape.clone());
        let body = body.freeze();
        let made = if finish.is_nothing(dtype) {
            Ok(body)
        } else {
            task::blocking(move || finish.apply(dtype, body, &shape)).await.unwrap_or_else(|panic| {
                Err(Unfinished::Internal(Error::internal("finishing a reply panicked").caused_by(panic)))
            })
        };
        let bytes = made.map_err(|unfinished| match unfinished {
            Unfinished::Picture(why) => reply.wrong(&WrongReply::Undecodable(Box::new(why))),
            Unfinished::NonFinite => reply.wrong(&WrongReply::NonFinite),
            Unfinished::Internal(error) => Failure::internal(error),
        })?;
        self.begin(&reply, bytes.len() as u64, [computed.unwrap_or_default(), began.elapsed()])?;
        self.writer.append_all(bytes).await.map_err(Failure::internal)?;
        if finish == Finish::None { self.prove(&reply).await } else { Ok(()) }
    }

    fn begin(&mut self, reply: &Reply<'_>, length: u64, [computed, rendered]: [Duration; 2]) -> Result<(), Failure> {
        let (plan, queued) = (reply.plan(), self.queued);
        let meta = Meta {
            content_type: plan.content_type_of_answer,
            dtype: plan.predicted.dtype,
            shape: plan.predicted.shape.clone(),
            length,
            provenance: Provenance { backend: NAME.into(), queued, computed, rendered },
        };
        self.is_published = true;
        self.writer.begin(meta).map_err(Failure::internal)
    }

    fn append(&mut self, slice: Bytes) -> Result<(), Failure> {
        self.writer.append(slice).map_err(Failure::internal)
    }

    /// Tells how far the reply is, in steps: a flight past its half is worth finishing.
    fn tell(&self, seen: u64, length: u64) {
        let done = (seen * u64::from(STEPS) / length.max(1)).min(u64::from(STEPS)) as u32;
        let told = Progress { done, total: STEPS };
        self.progress.send_if_modified(|progress| std::mem::replace(progress, told) != told);
    }
}

impl Joiner {
    /// What is to be published now that `piece` has come, in order.
    fn join(&mut self, piece: Bytes) -> [Option<Bytes>; 2] {
        if !self.has_first {
            self.has_first = true;
            return [Some(piece), None];
        }
        if piece.len() >= SMALL_BYTES {
            let before = (!self.small.is_empty()).then(|| self.small.split().freeze());
            return [before, Some(piece)];
        }
        self.small.extend_from_slice(&piece);
        let is_enough = self.small.len() >= SMALL_BYTES;
        [is_enough.then(|| self.small.split().freeze()), None]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_first_piece_and_large_ones_are_not_copied() {
        let mut joiner = Joiner::default();
        let [tiny, large] = [Bytes::from(vec![1; 10]), Bytes::from(vec![2; SMALL_BYTES])];
        let address = |slice: &Option<Bytes>| slice.as_ref().map(|slice| slice.as_ptr());
        assert_eq!(address(&joiner.join(tiny.clone())[0]), Some(tiny.as_ptr()));
        assert_eq!(joiner.join(tiny.clone()), [None, None]);
        let [before, itself] = joiner.join(large.clone());
        assert_eq!((before, address(&itself)), (Some(tiny), Some(large.as_ptr())));
    }

    proptest! {
        #[test]
        fn joining_changes_no_byte(lengths in prop::collection::vec(0usize..20_000, 0..30)) {
            let (mut joiner, mut joined, mut whole) = (Joiner::default(), Vec::new(), Vec::new());
            for (n, length) in lengths.into_iter().enumerate() {
                let piece = Bytes::from(vec![n as u8; length]);
                whole.extend_from_slice(&piece);
                joined.extend(joiner.join(piece).into_iter().flatten().flatten());
                prop_assert!(whole.len() - joined.len() < SMALL_BYTES);
            }
            joined.extend_from_slice(&joiner.small);
            prop_assert_eq!(joined, whole);
        }
    }
}
