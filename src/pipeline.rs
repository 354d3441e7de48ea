//! The one path of a request, from a checked spec to the bytes of its answer; both tasks and every front take it.
//!
//! front → [`Pipeline::check`] → [`Pipeline::admit`] → [`Pipeline::find`] (digest first) → [`Pipeline::serve`]: canonical
//! job → content key → memory tier → flight (join, or lead: route → backend) → memory. The steps are LAYOUT's numbered
//! ones (docs/ARCHITECTURE.md), a function each.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::{sync::watch, time::Instant};

use crate::{
    admission::{Gate, Permit, Reservation},
    artifact::Artifact,
    backend::{Backend, ModelState},
    body::BodyReader,
    cache::{
        alias::{Alias, Aliases, InputDigest},
        fill::Fill,
        memory::Memory,
    },
    error::{Error, ErrorKind},
    flight::{Flights, Found, Reach, Start, Store, Waiter, Wish},
    hops::{Hops, Instance},
    job::{CachePolicy, Checked, Job, Limits, Spec},
    key::ContentKey,
    metrics::{Metrics, Outcome},
    model::{ModelSpec, ModelTable},
    preview,
    progress::Progress,
    task,
};

mod derive;
mod lead;
mod read;
mod routes;
mod tiers;

use lead::Order;
use read::{Read, Readers};
pub use routes::{Policy, Routes};

/// What a pipeline is made of.
pub struct Parts {
    /// Every model of this process.
    pub models: ModelTable,
    /// Sizes a request may have.
    pub limits: Limits,
    /// The front gate.
    pub gate: Gate,
    /// The memory tier.
    pub memory: Memory,
    /// The tiers below it, nearest first, each behind its queue.
    pub tiers: Vec<Fill>,
    /// What of a decode is kept.
    pub keep: Keep,
    /// Part of every key: other tenants share nothing.
    pub namespace: String,
    /// Share of its blocks from which a run is finished although nobody waits.
    pub keep_from: f32,
    /// How long a run may take.
    pub flight_deadline: Duration,
    /// What computes misses, model by model.
    pub routes: Routes,
    /// The app's recorder.
    pub metrics: Metrics,
    /// The app's name among all.
    pub instance: Instance,
}

/// What is kept of a decode that is asked for in a form which others can be made of, or can be made of others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Keep {
    /// The form that was asked for.
    #[default]
    Requested,
    /// The decoder's f16 numbers, from which every form is made when it is asked for.
    Pixels,
    /// Both.
    Both,
}

/// The pipeline. Clones share it.
#[derive(Clone)]
pub struct Pipeline(Arc<Shared>);

struct Shared {
    parts: Parts,
    flights: Flights,
    aliases: Aliases,
    readers: Readers,
}

/// A request whose input has arrived.
pub struct Request {
    /// The judged spec.
    pub checked: Checked,
    /// The input as sent, whole.
    pub data: Bytes,
    /// BLAKE3 of `data`, computed here, never the client's claim.
    pub digest: InputDigest,
    /// How it uses the cache.
    pub policy: CachePolicy,
    /// Its place in flight.
    pub permit: Permit,
    /// The memory of `data`.
    pub held: Reservation,
    /// Which latentgates it has passed.
    pub hops: Hops,
}

/// An answer on its way. Dropping it is leaving.
pub struct Reply {
    /// Names the request.
    pub key: ContentKey,
    /// Where the answer comes from, as was known when it was accepted.
    outcome: Outcome,
    /// Its metadata, bytes and seal.
    pub reader: BodyReader,
    /// How far the run is, when there is one.
    pub progress: Option<watch::Receiver<Progress>>,
    /// The job, when there is a run, and its memory, when that is not the flight's: previews are made from it.
    job: Option<(Arc<Job>, Option<Reservation>)>,
    waiter: Option<Waiter>,
    _permit: Permit,
}

/// One backend's view of a model, for lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendState {
    /// Which backend.
    pub backend: &'static str,
    /// What it can do.
    pub state: ModelState,
}

// === impl Pipeline ===

impl Pipeline {
    /// A pipeline of `parts`, with nothing in the air.
    pub fn new(parts: Parts) -> Self {
        let flights = Flights::new(parts.keep_from, parts.metrics.clone());
        Self(Arc::new(Shared { parts, flights, aliases: Aliases::new(), readers: Readers::new() }))
    }

    /// Every model of this process.
    pub fn models(&self) -> &ModelTable {
        &self.0.parts.models
    }

    /// Sizes a request may have.
    pub fn limits(&self) -> &Limits {
        &self.0.parts.limits
    }

    /// What each backend of a model can do for it now, in the order of the policy.
    pub fn backends(&self, model: &ModelSpec) -> Vec<BackendState> {
        let state = |backend: &Arc<dyn Backend>| {
            let state = backend.health().borrow().get(&model.id).cloned()?;
            Some(BackendState { backend: backend.name(), state })
        };
        self.0.parts.routes.now().of(&model.id).iter().filter_map(state).collect()
    }

    /// Step 2: judges a spec before any memory is taken.
    pub fn check(&self, spec: Spec) -> Result<Checked, Error> {
        spec.check(&self.0.parts.models, &self.0.parts.limits)
    }

    /// Step 1: the way of a request, by the values of its `Via` headers, or a refusal of one that has been here.
    pub fn passed<'a>(&self, via: impl Iterator<Item = &'a str>) -> Result<Hops, Error> {
        let hops = Hops::parse(via);
        hops.check(&self.0.parts.instance)?;
        Ok(hops)
    }

    /// Step 3: one more request, or a refusal at once.
    pub fn admit(&self) -> Result<Permit, Error> {
        self.0.parts.gate.admit()
    }

    /// Step 3: memory for an input, or a refusal at once.
    pub fn reserve(&self, bytes: u64) -> Result<Reservation, Error> {
        self.0.parts.gate.reserve(bytes)
    }

    /// Step 4, digest first: the answer of an input that has not been sent, if it is kept or being computed. Gives the
    /// permit back when it is not. Cancel-safe.
    pub async fn find(
        &self,
        checked: &Checked,
        digest: &InputDigest,
        policy: CachePolicy,
        permit: Permit,
    ) -> Result<Reply, Permit> {
        let alias = Alias::of(checked, digest);
        if let Some((key, artifact)) = self.remembered(&alias, policy) {
            return Ok(Reply::hit(key, &artifact, permit));
        }
        match self.0.aliases.get(&alias) {
            Some(key) if policy != CachePolicy::Bypass => {
                let order = Order::new(key, checked.model().clone(), None, Reach::Tiers);
                self.kept(order, wish_of(policy).store, permit).await
            }
            _ => Err(permit),
        }
    }

    /// What is in memory for a spelling that was seen before: found without decoding the input, which for a picture file
    /// costs more than everything else about a hit.
    fn remembered(&self, alias: &Alias, policy: CachePolicy) -> Option<(ContentKey, Arc<Artifact>)> {
        if policy == CachePolicy::Bypass {
            return None;
        }
        let key = self.0.aliases.get(alias)?;
        Some((key, self.0.parts.memory.get(&key)?))
    }

    /// Steps 6 and 7: the answer of a request whose input has arrived. Returns as soon as it is known where the answer
    /// comes from. Cancel-safe: dropped, it leaves remembered aliases behind, and the reading of a large input that has
    /// begun runs to its end, its memory counted until then.
    pub async fn serve(&self, request: Request) -> Result<Reply, Error> {
        let alias = Alias::of(&request.checked, &request.digest);
        match self.remembered(&alias, request.policy) {
            Some((key, artifact)) => Ok(Reply::hit(key, &artifact, request.permit)),
            // Boxed: a hit would carry the state of all that follows, some KiB, along with every call.
            None => Box::pin(self.serve_unknown(alias, request)).await,
        }
    }

    async fn serve_unknown(&self, alias: Alias, request: Request) -> Result<Reply, Error> {
        let Request { checked, data, digest, policy, permit, held, hops } = request;
        let Read { key, job, held } = self.read(checked, (data, digest), held).await?;
        self.0.aliases.insert(alias, key);
        if policy == CachePolicy::OnlyIfCached {
            let (predicted, model) = (job.predicted()?, job.model.clone());
            let order = Order::new(key, model, Some((Arc::new(job), predicted, hops)), Reach::Tiers);
            let absent = || Error::new(ErrorKind::NotCached, NOT_CACHED);
            return self.kept(order, Store::Refused, permit).await.map_err(|_permit| absent());
        }
        self.answer(key, (Arc::new(job), held, hops), policy, permit).await
    }

    /// The answer if it is kept, can be made of what is kept, or is being computed; the permit if not.
    async fn kept(&self, order: Order, store: Store, permit: Permit) -> Result<Reply, Permit> {
        let (key, memory) = (order.key, &self.0.parts.memory);
        if let Some(artifact) = memory.get(&key) {
            return Ok(Reply::hit(key, &artifact, permit));
        }
        let wish = Wish { reach: order.reach, store };
        let lead = |lead| Ok(self.start(order, lead));
        let (waiter, outcome) = match self.0.flights.look_or_join(key, wish, || memory.get(&key), lead) {
            Ok(Found::Hit(artifact)) => return Ok(Reply::hit(key, &artifact, permit)),
            Ok(Found::Joined(waiter)) => {
                waiter.link();
                (waiter, Outcome::Coalesced)
            }
            Ok(Found::Led(waiter)) => (waiter, Outcome::HitDisk),
            Err(_) => return Err(permit),
        };
        if came_back_empty(&waiter).await {
            return Err(permit);
        }
        Ok(Reply::flight(key, outcome, waiter, None, permit))
    }

    /// Step 7: memory, and the critical section.
    async fn answer(
        &self,
        key: ContentKey,
        (job, own, hops): (Arc<Job>, Reservation, Hops),
        policy: CachePolicy,
        permit: Permit,
    ) -> Result<Reply, Error> {
        let wish = wish_of(policy);
        let probe = || if policy == CachePolicy::Bypass { None } else { self.0.parts.memory.get(&key) };
        loop {
            if let Some(artifact) = probe() {
                return Ok(Reply::hit(key, &artifact, permit));
            }
            match self.look_or_join(key, wish, (&job, &hops))? {
                Found::Hit(artifact) => return Ok(Reply::hit(key, &artifact, permit)),
                Found::Led(waiter) => {
                    return Ok(Reply::flight(key, Outcome::Computed, waiter, Some((job, None)), permit));
                }
                // Somebody who has the input goes on.
                Found::Joined(waiter) if came_back_empty(&waiter).await => {}
                // The leader's job is the flight's memory; a joiner's own is its own, and kept only while it can be of
                // use.
                Found::Joined(waiter) => {
                    waiter.link();
                    let source = job.preview_source().map(|_| (job.clone(), Some(own)));
                    return Ok(Reply::flight(key, Outcome::Coalesced, waiter, source, permit));
                }
            }
        }
    }

    fn look_or_join(
        &self,
        key: ContentKey,
        wish: Wish,
        (job, hops): (&Arc<Job>, &Hops),
    ) -> Result<Found<Arc<Artifact>>, Error> {
        let probe = || if wish.reach == Reach::Backend { None } else { self.0.parts.memory.get(&key) };
        self.0.flights.look_or_join(key, wish, probe, |lead| {
            let predicted = job.predicted()?;
            let reservation = self.reserve(predicted.held_bytes)?;
            let work = Some((job.clone(), predicted, hops.clone()));
            let order = Order::new(key, job.model.clone(), work, wish.reach);
            Ok(Start { held: Box::new(reservation), ..self.start(order, lead) })
        })
    }
}

/// Whether a flight that goes to the tiers alone has found nothing there.
async fn came_back_empty(waiter: &Waiter) -> bool {
    waiter.reach() == Reach::Tiers && waiter.reader().meta().await.is_err()
}

/// What one hears who asked for what is kept alone.
const NOT_CACHED: &str = "only-if-cached: this answer is neither cached nor being computed";

const fn wish_of(policy: CachePolicy) -> Wish {
    match policy {
        CachePolicy::Default => Wish { reach: Reach::All, store: Store::Allowed },
        CachePolicy::Bypass => Wish { reach: Reach::Backend, store: Store::Allowed },
        CachePolicy::NoStore | CachePolicy::OnlyIfCached => Wish { reach: Reach::All, store: Store::Refused },
    }
}

// === impl Reply ===

impl Reply {
    fn hit(key: ContentKey, artifact: &Arc<Artifact>, permit: Permit) -> Self {
        let reader = artifact.reader();
        Self { key, outcome: Outcome::HitMemory, reader, progress: None, job: None, waiter: None, _permit: permit }
    }

    fn flight(
        key: ContentKey,
        outcome: Outcome,
        waiter: Waiter,
        job: Option<(Arc<Job>, Option<Reservation>)>,
        permit: Permit,
    ) -> Self {
        let (reader, progress) = (waiter.reader(), Some(waiter.progress()));
        Self { key, outcome, reader, progress, job, waiter: Some(waiter), _permit: permit }
    }

    /// Where the answer comes from: exact once its metadata are there, a run's until then.
    pub fn outcome(&self) -> Outcome {
        match (self.outcome, &self.waiter) {
            (Outcome::Coalesced, _) | (_, None) => self.outcome,
            (led, Some(waiter)) => waiter.source().unwrap_or(led),
        }
    }

    /// A tiny picture of the latents, about a millisecond from now; none for encodes, for hits, and for models whose
    /// latents nobody has fitted a projection to.
    pub async fn preview(&self) -> Option<preview::Preview> {
        let job = self.job.as_ref()?.0.clone();
        let began = Instant::now();
        let made = task::blocking(move || {
            let (latents, projection) = job.preview_source()?;
            // To the denoiser's space: through the autoencoder's by the request's numbers, and back by the model's.
            let (asked, own) = (job.scaling, job.model.scaling);
            let moved = [own.factor / asked.factor, (asked.shift - own.shift) * own.factor];
            preview::jpeg(latents, projection, moved).ok()
        });
        let preview = made.await.ok().flatten();
        tracing::trace!(took = ?began.elapsed(), "preview");
        preview
    }
}
