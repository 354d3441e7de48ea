//! Flights: exactly one computation a key, and everybody who waits for it.
//!
//! The leader is a task of its own, never the first client, so a client that leaves hurts nobody and a slow client paces
//! nobody. Looking in memory and joining or leading happen in one critical section of the key's shard; the leader fills
//! memory before its entry leaves the table, so between the two no request can slip through and compute again.
//!
//! Invariants, each held by a type:
//! - an entry is in the table while, and only while, its leader runs for somebody (`Landing` takes it out on every path,
//!   a panic included; the last [`Waiter`] to leave takes it out early);
//! - a body ends exactly once ([`BodyWriter`] fails it when the leader is dropped);
//! - memory reserved for a flight lives until its last waiter is gone, however the leader ended.
//!
//! Generic over the leader's future: knows neither cache nor engine.

use std::{
    any::Any,
    collections::HashMap,
    future::Future,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{Span, span};

use crate::{
    body::{Body, BodyReader, BodyWriter, End},
    error::Error,
    key::ContentKey,
    metrics::{Alive, Metrics, Outcome},
    progress::Progress,
    task,
};

/// Enough that two keys seldom share a lock at a few thousand requests in flight; a power of two.
const SHARDS: usize = 64;

/// The table of flights. Clones share it.
#[derive(Clone)]
pub struct Flights(Arc<Table>);

/// The flights whose keys share a lock.
type Shard = HashMap<ContentKey, Arc<Flight>>;

struct Table {
    shards: Box<[Mutex<Shard>]>,
    /// A run that is this far along is kept when its last waiter leaves.
    keep_from: f32,
    metrics: Metrics,
}

struct Flight {
    key: ContentKey,
    body: Body,
    progress: watch::Receiver<Progress>,
    cancel: CancellationToken,
    /// Changed under the shard lock only.
    waiters: AtomicUsize,
    store: AtomicBool,
    reach: Reach,
    source: OnceLock<Outcome>,
    /// The leader's span, by its id: holding the span itself would keep it open for as long as somebody reads.
    span: OnceLock<Option<span::Id>>,
    held: OnceLock<Held>,
}

/// What a flight keeps until its last waiter is gone: reserved memory. The table does not care what it is.
pub type Held = Box<dyn Any + Send + Sync>;

/// What look-or-join came to.
pub enum Found<H> {
    /// It was in memory after all.
    Hit(H),
    /// Attached to a run in progress.
    Joined(Waiter),
    /// A run was started.
    Led(Waiter),
}

/// How far a leader goes for the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// To the tiers and no further: who only wants what is kept, or has not brought the input.
    Tiers,
    /// To the tiers, then to a backend.
    All,
    /// To a backend at once.
    Backend,
}

/// What a request wants of a flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wish {
    /// How far it goes if it leads. It joins a flight that goes less far, too: that may be enough; but who wants a fresh
    /// answer joins none that can come out of a tier.
    pub reach: Reach,
    /// Whether the answer may be kept for its sake.
    pub store: Store,
}

/// Whether what a run makes may be kept. A run's answer is kept if any waiter allows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// Keep it.
    Allowed,
    /// Not for me.
    Refused,
}

/// One request attached to a flight. Dropping it is leaving.
#[must_use = "dropping the waiter leaves the flight"]
pub struct Waiter {
    flight: Arc<Flight>,
    table: Flights,
    _alive: Alive,
}

/// What a leader works with.
pub struct Lead {
    /// Fills the body that every waiter reads.
    pub writer: BodyWriter,
    /// The body being filled.
    pub body: Body,
    /// Tells every waiter how far the run is.
    pub progress: watch::Sender<Progress>,
    /// Cancelled when nobody waits any more.
    pub cancel: CancellationToken,
    /// To be asked at the end of the run.
    pub wish: StoreWish,
    /// To be told where the answer comes from, before it begins.
    pub source: Source,
}

/// A run that is ready to go.
pub struct Start<F> {
    /// The leader's span.
    pub span: Span,
    /// Kept until the last waiter is gone.
    pub held: Held,
    /// The run. It owns the body's writer and ends the body on every path.
    pub leader: F,
}

/// Whether some waiter, present or gone, allowed the answer to be kept.
#[derive(Clone)]
pub struct StoreWish(Arc<Flight>);

/// Tells a flight's waiters where its answer comes from.
#[derive(Clone)]
pub struct Source(Arc<Flight>);

/// Takes a flight out of the table, whatever ends it.
struct Landing {
    flight: Arc<Flight>,
    table: Flights,
    _alive: Alive,
}

// === impl Flights ===

impl Flights {
    /// An empty table. A run that has done at least `keep_from` (0..=1) of its blocks is finished and kept even when its
    /// last waiter leaves.
    pub fn new(keep_from: f32, metrics: Metrics) -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Self(Arc::new(Table { shards, keep_from, metrics }))
    }

    fn shard(&self, key: &ContentKey) -> MutexGuard<'_, Shard> {
        self.0.shards[usize::from(key.as_bytes()[0]) % SHARDS].lock()
    }

    /// Looks in memory once more, joins the key's flight, or starts one: a single critical section, so that exactly one
    /// of any number of equal requests leads. `probe` and `start` run inside it and must neither block nor take locks of
    /// this table; the future that `start` returns runs as a task of its own. If `start` refuses, nothing has happened.
    pub fn look_or_join<H, F>(
        &self,
        key: ContentKey,
        wish: Wish,
        probe: impl FnOnce() -> Option<H>,
        start: impl FnOnce(Lead) -> Result<Start<F>, Error>,
    ) -> Result<Found<H>, Error>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let mut shard = self.shard(&key);
        if let Some(hit) = probe() {
            return Ok(Found::Hit(hit));
        }
        if let Some(flight) = shard.get(&key).filter(|flight| flight.takes(wish.reach)) {
            return Ok(Found::Joined(self.attach(flight, wish.store)));
        }
        let (flight, lead) = Flight::new(key, wish.reach);
        let Start { span, held, leader } = start(lead)?;
        flight.held.get_or_init(|| held);
        flight.span.get_or_init(|| span.id());
        shard.insert(key, flight.clone());
        let waiter = self.attach(&flight, wish.store);
        let landing = Landing { flight, table: self.clone(), _alive: self.0.metrics.flight() };
        // A runtime that is shutting down drops the task within `spawn`, and landing takes the lock.
        drop(shard);
        // Nobody owns a leader but its flight: the last waiter cancels it, and it watches for that itself.
        task::spawn(span, landing.fly(leader)).detach();
        Ok(Found::Led(waiter))
    }

    /// Flights in the air.
    pub fn len(&self) -> usize {
        self.0.shards.iter().map(|shard| shard.lock().len()).sum()
    }

    /// Whether no flight is in the air.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Only under the shard lock of the flight's key.
    fn attach(&self, flight: &Arc<Flight>, store: Store) -> Waiter {
        flight.waiters.fetch_add(1, Ordering::Relaxed);
        if store == Store::Allowed {
            flight.store.store(true, Ordering::Release);
        }
        Waiter { flight: flight.clone(), table: self.clone(), _alive: self.0.metrics.flight_waiter() }
    }

    fn remove(&self, flight: &Arc<Flight>) {
        let mut shard = self.shard(&flight.key);
        // Another flight of the same key may have taken the place since: only this one's entry goes.
        if shard.get(&flight.key).is_some_and(|present| Arc::ptr_eq(present, flight)) {
            shard.remove(&flight.key);
        }
    }
}

// === impl Flight ===

impl Flight {
    fn new(key: ContentKey, reach: Reach) -> (Arc<Self>, Lead) {
        let (writer, body) = Body::channel();
        let (progress, watched) = watch::channel(Progress::default());
        let cancel = CancellationToken::new();
        let flight = Arc::new(Self {
            key,
            body: body.clone(),
            progress: watched,
            cancel: cancel.clone(),
            waiters: AtomicUsize::new(0),
            store: AtomicBool::new(false),
            reach,
            source: OnceLock::new(),
            span: OnceLock::new(),
            held: OnceLock::new(),
        });
        let (wish, source) = (StoreWish(flight.clone()), Source(flight.clone()));
        let lead = Lead { writer, body, progress, cancel, wish, source };
        (flight, lead)
    }

    /// Whether who wants to go that far may join. One that has failed is about to leave the table: who comes now comes
    /// after the failure.
    fn takes(&self, reach: Reach) -> bool {
        match self.body.end() {
            Some(End::Failed(_)) => false,
            // Made before it was asked for.
            Some(End::Complete(_)) => reach != Reach::Backend,
            None => {
                let is_fresh = self.reach == Reach::Backend || self.source.get() == Some(&Outcome::Computed);
                is_fresh || reach != Reach::Backend
            }
        }
    }

    fn is_worth_finishing(&self, keep_from: f32) -> bool {
        // What may not be kept is of no use to anybody.
        self.store.load(Ordering::Acquire) && self.progress.borrow().fraction() >= keep_from
    }
}

impl Landing {
    /// Runs the leader until it is done or nobody waits for it; leaves the table in any case.
    async fn fly(self, leader: impl Future<Output = ()>) {
        tokio::select! {
            biased;
            () = self.flight.cancel.cancelled() => {}
            () = leader => {}
        }
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        self.table.remove(&self.flight);
    }
}

// === impl StoreWish ===

impl StoreWish {
    /// Whether any waiter so far allowed it.
    pub fn is_allowed(&self) -> bool {
        self.0.store.load(Ordering::Acquire)
    }
}

// === impl Source ===

impl Source {
    /// The answer comes from there. The first word counts.
    pub fn tell(&self, outcome: Outcome) {
        self.0.source.get_or_init(|| outcome);
    }
}

// === impl Waiter ===

impl Waiter {
    /// Where the answer comes from, once that is known: before it begins.
    pub fn source(&self) -> Option<Outcome> {
        self.flight.source.get().copied()
    }

    /// Notes in the current span, a request's, that it follows from this flight.
    pub fn link(&self) {
        if let Some(Some(leader)) = self.flight.span.get() {
            Span::current().follows_from(leader);
        }
    }

    /// How far the leader goes.
    pub fn reach(&self) -> Reach {
        self.flight.reach
    }

    /// A reader of the whole body, from its first byte.
    pub fn reader(&self) -> BodyReader {
        self.flight.body.reader()
    }

    /// How far the run is; latest only.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.flight.progress.clone()
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let mut shard = self.table.shard(&self.flight.key);
        let last = self.flight.waiters.fetch_sub(1, Ordering::Relaxed) == 1;
        if !last || self.flight.is_worth_finishing(self.table.0.keep_from) {
            return;
        }
        if shard.get(&self.flight.key).is_some_and(|present| Arc::ptr_eq(present, &self.flight)) {
            // Out of the table at once: a newcomer starts afresh instead of joining a run that is being stopped.
            shard.remove(&self.flight.key);
        }
        // Also where another has taken its place: nobody can join it any more.
        self.flight.cancel.cancel();
    }
}

#[cfg(test)]
mod tests;
