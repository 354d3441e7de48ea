//! The memory tier: a map from content key to artifact, bounded by bytes.
//!
//! moka stores and evicts (TinyLFU admission, so a scan of once-used artifacts does not wash out the loved ones); it does
//! not coalesce: its `get_with` cannot stream and dies with its caller. Concrete, not a trait: it is on the hot path.

use std::{sync::Arc, time::Duration};

use bytesize::ByteSize;
use moka::{Expiry, notification::RemovalCause, ops::compute::Op, sync::Cache};
use serde::{Deserialize, Serialize};

use crate::{
    artifact::Artifact,
    key::ContentKey,
    metrics::{EvictionReason, Metrics, TierName},
};

/// Settings of the memory tier.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Bytes of artifacts kept, their bookkeeping included. 0 keeps nothing.
    pub capacity: ByteSize,
    /// How long an artifact is kept at most; none is as long as there is room.
    #[serde(with = "humantime_serde", skip_serializing_if = "Option::is_none")]
    pub time_to_live: Option<Duration>,
}

/// The tier. Clones share it.
#[derive(Clone)]
pub struct Memory {
    map: Cache<ContentKey, Held>,
    capacity: u64,
    metrics: Metrics,
}

/// An artifact, and how long it may still be kept.
#[derive(Clone)]
struct Held {
    artifact: Arc<Artifact>,
    life: Option<Duration>,
}

/// Lets artifacts go at the end of their own lives.
struct Lives;

#[expect(clippy::disallowed_types, reason = "the trait's own, and not read")]
impl Expiry<ContentKey, Held> for Lives {
    fn expire_after_create(&self, _: &ContentKey, held: &Held, _: std::time::Instant) -> Option<Duration> {
        held.life
    }

    fn expire_after_update(
        &self,
        _: &ContentKey,
        held: &Held,
        _: std::time::Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        held.life
    }
}

impl Default for Config {
    fn default() -> Self {
        Self { capacity: ByteSize::gib(1), time_to_live: None }
    }
}

impl Memory {
    /// An empty tier.
    pub fn new(config: &Config, metrics: Metrics) -> Self {
        let counted = metrics.clone();
        let mut builder = Cache::builder()
            .max_capacity(config.capacity.as_u64())
            // moka weighs in u32: an artifact beyond 4 GiB counts as 4 GiB, and request limits are far below.
            .weigher(|_, held: &Held| u32::try_from(held.artifact.weight()).unwrap_or(u32::MAX))
            .expire_after(Lives)
            .eviction_listener(move |_, _, cause| match cause {
                RemovalCause::Size => counted.cache_evicted(TierName::Memory, EvictionReason::Size),
                RemovalCause::Expired => counted.cache_evicted(TierName::Memory, EvictionReason::Expired),
                RemovalCause::Explicit | RemovalCause::Replaced => {}
            });
        if let Some(time) = config.time_to_live {
            builder = builder.time_to_live(time);
        }
        Self { map: builder.build(), capacity: config.capacity.as_u64(), metrics }
    }

    /// The artifact of `key`: no copy, no lock held afterwards.
    pub fn get(&self, key: &ContentKey) -> Option<Arc<Artifact>> {
        self.map.get(key).map(|held| held.artifact)
    }

    /// Keeps `artifact` for at most `life`, or not, as the admission policy sees fit. Replaces what was there.
    pub fn insert(&self, artifact: Arc<Artifact>, life: Option<Duration>) {
        self.map.insert(*artifact.key(), Held { artifact, life });
    }

    /// Keeps `artifact`, which comes out of another tier, unless something is there: that can only be newer.
    pub fn restore(&self, artifact: Arc<Artifact>, life: Option<Duration>) {
        self.map.entry(*artifact.key()).or_insert(Held { artifact, life });
    }

    /// Keeps `better` in place of `artifact`, whose bytes it has, if that is still there.
    pub fn replace(&self, artifact: &Arc<Artifact>, better: Arc<Artifact>) {
        self.map.entry(*artifact.key()).and_compute_with(|entry| match entry {
            Some(entry) if Arc::ptr_eq(&entry.value().artifact, artifact) => {
                Op::Put(Held { artifact: better, life: entry.value().life })
            }
            _ => Op::Nop,
        });
    }

    /// Lets go what is in question, and says how many those were. Goes through the whole map.
    pub fn purge(&self, is_meant: impl Fn(&Artifact) -> bool) -> u64 {
        let meant = self.map.iter().filter(|(_, held)| is_meant(&held.artifact)).map(|(key, _)| *key);
        meant.map(|key| self.map.invalidate(&key)).count() as u64
    }

    /// Meets everything that is held. Not a use. Goes through the whole map.
    pub fn each(&self, mut meet: impl FnMut(&Artifact)) {
        self.map.iter().for_each(|(_, held)| meet(&held.artifact));
    }

    /// How much is held, and may be: entries, bytes, bytes at most.
    pub fn usage(&self) -> [u64; 3] {
        self.map.run_pending_tasks();
        [self.map.entry_count(), self.map.weighted_size(), self.capacity]
    }

    /// Brings the gauges up to date, after moka has done what it put off.
    pub fn report(&self) {
        let [entries, bytes, capacity] = self.usage();
        self.metrics.cache(TierName::Memory, entries, bytes, capacity);
    }
}

#[cfg(test)]
mod tests;
