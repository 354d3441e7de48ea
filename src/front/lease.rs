//! A response that is taken back from a client who does not read it.
//!
//! hyper asks a body for its next frame only when the client has room for it, so nothing inside the body can notice a
//! client that has stopped reading: the reply, with its permit, would be held for as long as the connection lives, and a
//! connection lives as long as the peer's kernel answers. A watch beside the body drops the frames at the request's
//! deadline, or when a frame was handed out and none was asked for within the stall time. What the client then finds at
//! the end of what it was sent is `DEADLINE_EXCEEDED` in gRPC's trailers, and a broken body over plain HTTP: never a clean
//! short end.

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
use tokio::time::{Instant, sleep_until};
use tracing::Span;

use crate::{
    deadline::Deadline,
    error::Error,
    front::{record::Overdue, status},
    task::{self, Task},
};

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

/// A response body under watch.
pub(super) struct Lease {
    shared: Arc<Mutex<Held>>,
    taken_back: TakenBack,
    is_over: bool,
    _watch: Task<()>,
}

struct Held {
    /// Gone once they were taken back.
    frames: Option<Frames>,
    /// Who waits for the next frame while the answer is being made.
    waker: Option<Waker>,
    /// Since when the client owes the next read; none while the answer is being made.
    owed_since: Option<Instant>,
}

impl Lease {
    /// `frames` until their deadline, and only while they are asked for within the stall time.
    pub(super) fn new(
        frames: Frames,
        taken_back: TakenBack,
        overdue: Overdue,
        (deadline, stall): (Deadline, Duration),
    ) -> Self {
        let shared = Arc::new(Mutex::new(Held { frames: Some(frames), waker: None, owed_since: None }));
        let watch = task::spawn(Span::none(), watch(shared.clone(), overdue, deadline, stall));
        Self { shared, taken_back, is_over: false, _watch: watch }
    }
}

/// Until the body is dropped, which drops this task, or there is reason to take the frames back.
async fn watch(shared: Arc<Mutex<Held>>, overdue: Overdue, deadline: Deadline, stall: Duration) {
    loop {
        let now = Instant::now();
        let owed_since = shared.lock().owed_since;
        let stalls_at = owed_since.map_or(now + stall, |since| since + stall);
        let until = stalls_at.min(now + deadline.remaining(now));
        if until <= now {
            break;
        }
        sleep_until(until).await;
    }
    overdue.set();
    let (frames, waker) = {
        let mut held = shared.lock();
        (held.frames.take(), held.waker.take())
    };
    // Outside the lock: dropping a reply takes other locks. With the frames went what would have woken their reader.
    drop(frames);
    if let Some(waker) = waker {
        waker.wake();
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // Now, and not when the runtime gets round to the aborted watch: the client has left, and so does the waiter.
        let frames = self.shared.lock().frames.take();
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
            let mut held = self.shared.lock();
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
