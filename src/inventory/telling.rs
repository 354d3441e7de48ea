//! Sweeps and those who listen to them.
//!
//! A sweep blocks, so it has a thread of the blocking pool, and a bounded channel leads out of it. Results wait for the
//! listener; progress does not, and is left out where the listener lags.

use std::{ops::ControlFlow, time::Duration};

use tokio::{
    sync::{
        OwnedSemaphorePermit,
        mpsc::{self, Receiver, Sender},
    },
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::Span;

use crate::{
    error::{Error, ErrorKind},
    task,
};

/// Messages that may wait for the listener.
const AHEAD: usize = 64;

/// Between two reports: often enough for a bar to move, seldom enough to cost nothing.
const PACE: Duration = Duration::from_millis(200);

/// What a sweep tells. Dropped, the sweep stops at the next entry.
pub struct Telling<T>(Receiver<Result<T, Error>>);

/// How far a sweep is. Bytes are those of files, in whole blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Entries looked at.
    pub entries: u64,
    /// Entries there were at the beginning.
    pub entries_in_all: u64,
    /// Bytes looked at.
    pub bytes: u64,
    /// Bytes there were at the beginning.
    pub bytes_in_all: u64,
}

/// The sweep's end of a [`Telling`].
pub(super) struct Teller<T> {
    sender: Sender<Result<T, Error>>,
    stop: CancellationToken,
}

/// Says when it is time to report.
pub(super) struct Pace {
    progress: Progress,
    next: Instant,
}

/// Starts a sweep. `work` breaks off when its teller says so, or ends with a last word, if it has one. That is told when the
/// turn has been given back: whoever has heard it may start another sweep.
pub(super) fn begin<T: Send + 'static>(
    stop: CancellationToken,
    turn: Option<OwnedSemaphorePermit>,
    work: impl FnOnce(&Teller<T>) -> ControlFlow<(), Option<T>> + Send + 'static,
) -> Telling<T> {
    let (sender, receiver) = mpsc::channel(AHEAD);
    let last_words = sender.clone();
    let teller = Teller { sender, stop: stop.clone() };
    // Ends with the sweep, which watches its own reasons to stop.
    task::spawn(Span::current(), async move {
        let swept = task::blocking(move || {
            let end = work(&teller);
            drop(turn);
            end
        });
        let last = match swept.await {
            Ok(ControlFlow::Continue(last)) => last.map(Ok),
            Ok(ControlFlow::Break(())) => stop.is_cancelled().then(|| Err(draining())),
            Err(panic) => Some(Err(Error::internal("a sweep panicked").caused_by(panic))),
        };
        if let Some(last) = last {
            // Nobody may listen any more.
            drop(last_words.send(last).await);
        }
    })
    .detach();
    Telling(receiver)
}

fn draining() -> Error {
    Error::new(ErrorKind::Unavailable, "the server is draining; the sweep has been broken off")
}

// === impl Telling ===

impl<T> Telling<T> {
    /// The next message; none after the last. Cancel-safe.
    pub async fn next(&mut self) -> Option<Result<T, Error>> {
        self.0.recv().await
    }
}

// === impl Teller ===

impl<T> Teller<T> {
    /// Tells, and waits for the listener if it lags.
    pub(super) fn tell(&self, news: T) -> ControlFlow<()> {
        // Whoever has left is noticed right after.
        drop(self.sender.blocking_send(Ok(news)));
        self.goes_on()
    }

    /// Tells if the listener keeps up.
    pub(super) fn mention(&self, news: T) {
        // Left out where nobody has room for it.
        drop(self.sender.try_send(Ok(news)));
    }

    /// Breaks when nobody listens any more, or the server drains.
    pub(super) fn goes_on(&self) -> ControlFlow<()> {
        if self.sender.is_closed() || self.stop.is_cancelled() {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }
}

// === impl Pace ===

impl Pace {
    /// At the beginning of a sweep over so many entries and bytes.
    pub(super) fn new(entries_in_all: u64, bytes_in_all: u64) -> Self {
        Self { progress: Progress { entries_in_all, bytes_in_all, ..Progress::default() }, next: Instant::now() }
    }

    /// Counts an entry, and says how far the sweep is if it is time to.
    pub(super) fn passed(&mut self, bytes: u64) -> Option<Progress> {
        self.progress.entries += 1;
        self.progress.bytes += bytes;
        let now = Instant::now();
        (now >= self.next).then(|| {
            self.next = now + PACE;
            self.progress
        })
    }

    pub(super) const fn progress(&self) -> Progress {
        self.progress
    }
}
