//! A backend's bounded queue: first come first served, and a full one refuses at once.
//!
//! The queue is a line of futures waiting for a turn: work that nobody waits for any more leaves the line, and gives back
//! its memory, the moment its future is dropped.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    error::{Error, ErrorKind},
    metrics::{Alive, Metrics},
};

/// The line of one backend.
pub(super) struct Line {
    backend: &'static str,
    /// The configuration's key of its capacity, which a refusal names.
    key: &'static str,
    turns: Arc<Semaphore>,
    /// Turns in all.
    places: usize,
    waiting: AtomicUsize,
    capacity: usize,
    metrics: Metrics,
}

/// A turn; the next in line gets it on drop.
pub(super) type Turn = OwnedSemaphorePermit;

/// A place in the line; left on drop.
struct Place<'a> {
    line: &'a Line,
    _queued: Alive,
}

impl Line {
    /// A line for `backend`, with `turns` at a time and `capacity` waiting.
    pub(super) fn new(
        backend: &'static str,
        key: &'static str,
        turns: usize,
        capacity: usize,
        metrics: Metrics,
    ) -> Self {
        let (semaphore, waiting) = (Arc::new(Semaphore::new(turns)), AtomicUsize::new(0));
        Self { backend, key, turns: semaphore, places: turns, waiting, capacity, metrics }
    }

    /// How many wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Acquire)
    }

    /// How many wait or have a turn.
    pub(super) fn load(&self) -> usize {
        self.waiting() + self.places.saturating_sub(self.turns.available_permits())
    }

    /// Waits for a turn, or refuses at once with `Overloaded`. Cancel-safe: dropped, it has never been there.
    pub(super) async fn turn(&self) -> Result<Turn, Error> {
        let place = self.enter()?;
        let turn = self.turns.clone().acquire_owned().await;
        drop(place);
        turn.map_err(|closed| Error::internal("a line is never closed").caused_by(closed))
    }

    fn enter(&self) -> Result<Place<'_>, Error> {
        let room = |n: usize| (n < self.capacity).then_some(n + 1);
        if self.waiting.fetch_update(Ordering::AcqRel, Ordering::Acquire, room).is_err() {
            let message = format!("the queue of {} is full: {} jobs ({})", self.backend, self.capacity, self.key);
            return Err(Error::new(ErrorKind::Overloaded, message));
        }
        Ok(Place { line: self, _queued: self.metrics.backend_queued(self.backend) })
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.line.waiting.fetch_sub(1, Ordering::AcqRel);
    }
}
