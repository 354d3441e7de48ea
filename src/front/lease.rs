//! A response that is taken back from a client who does not read it.
//!
//! hyper asks a body for its next frame only when the client has room for it, so nothing inside the body can notice a
//! client that has stopped reading: the reply, with its permit, would be held for as long as the connection lives, and a
//! connection lives as long as the peer's kernel answers. A watch beside the bodies drops the frames of one at its
//! request's deadline, or when a frame was handed out and none was asked for within the stall time. What the client then
//! finds at the end of what it was sent is `DEADLINE_EXCEEDED` in gRPC's trailers, and a broken body over plain HTTP:
//! never a clean short end.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use futures_util::Stream;
use http_body::{Body, Frame};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::{
    deadline::Deadline,
    error::Error,
    front::{record::Overdue, status},
};

mod watch;

pub(super) use watch::Leases;

/// The frames of a response, in order. An error breaks the body off.
pub(super) type Frames = Pin<Box<dyn Stream<Item = Result<Frame<Bytes>, Error>> + Send>>;

/// How the client is told that the rest was taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TakenBack {
    /// By the trailers of gRPC.
    Trailers,
    /// By a body that breaks off.
    BrokenOff,
}

/// What a response is held to.
pub(super) struct Terms {
    /// When its time is over.
    pub(super) deadline: Deadline,
    /// The longest its client may leave a frame unread.
    pub(super) stall: Duration,
    /// Told when the frames are taken back.
    pub(super) overdue: Overdue,
    pub(super) taken_back: TakenBack,
}

/// A response body under watch.
pub(super) struct Lease {
    held: Arc<Mutex<Held>>,
    taken_back: TakenBack,
    is_over: bool,
    _place: watch::Place,
}

struct Held {
    /// Gone once they were taken back.
    frames: Option<Frames>,
    /// Who waits for the next frame while the answer is being made.
    waker: Option<Waker>,
    /// Since when the client owes the next read; none while the answer is being made.
    owed_since: Option<Instant>,
    terms: Terms,
}

impl Held {
    /// When the frames are to be taken back if nothing happens until then.
    fn due(&self, now: Instant) -> Instant {
        let stalls_at = self.owed_since.unwrap_or(now) + self.terms.stall;
        stalls_at.min(now + self.terms.deadline.remaining(now))
    }

    /// Takes the frames back. What is given back is to be dropped outside the lock: a reply's end takes other locks.
    fn take_back(&mut self) -> Option<Frames> {
        self.terms.overdue.set();
        let frames = self.frames.take();
        // With the frames went what would have woken their reader.
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
        frames
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // The client has left, and so does the waiter: now, whoever else holds the lease still.
        let frames = self.held.lock().frames.take();
        drop(frames);
    }
}

impl Body for Lease {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        let polled = {
            let mut held = self.held.lock();
            held.owed_since = None;
            let polled = held.frames.as_mut().map(|frames| frames.as_mut().poll_next(cx));
            match polled {
                Some(Poll::Ready(Some(Ok(_)))) => held.owed_since = Some(Instant::now()),
                Some(Poll::Pending) => held.waker = Some(cx.waker().clone()),
                _ => {}
            }
            polled
        };
        match polled {
            Some(Poll::Ready(Some(Ok(frame)))) => Poll::Ready(Some(Ok(frame))),
            Some(Poll::Ready(Some(Err(error)))) => {
                self.is_over = true;
                Poll::Ready(Some(Err(error)))
            }
            Some(Poll::Ready(None)) => {
                self.is_over = true;
                Poll::Ready(None)
            }
            Some(Poll::Pending) => Poll::Pending,
            None => {
                self.is_over = true;
                let error = Overdue::error();
                Poll::Ready(Some(match self.taken_back {
                    TakenBack::Trailers => Ok(status::trailers(Err(&error))),
                    TakenBack::BrokenOff => Err(error),
                }))
            }
        }
    }
}
