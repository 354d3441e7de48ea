//! The memory tier: a map from content key to artifact, bounded by bytes.
//!
//! moka stores and evicts (TinyLFU admission, so a scan of once-used artifacts does not wash out the loved ones); it does
//! not coalesce: its `get_with` cannot stream and dies with its caller. Concrete, not a trait: it is on the hot path.

use std::{sync::Arc, time::Duration};

use bytesize::ByteSize;
use moka::{notification::RemovalCause, sync::Cache};
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
    map: Cache<ContentKey, Arc<Artifact>>,
    capacity: u64,
    metrics: Metrics,
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
            .weigher(|_, artifact: &Arc<Artifact>| u32::try_from(artifact.weight()).unwrap_or(u32::MAX))
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
        self.map.get(key)
    }

    /// Keeps `artifact`, or not, as the admission policy sees fit. Replaces what was there.
    pub fn insert(&self, key: ContentKey, artifact: Arc<Artifact>) {
        self.map.insert(key, artifact);
    }

    /// Brings the gauges up to date, after moka has done what it put off.
    pub fn report(&self) {
        self.map.run_pending_tasks();
        self.metrics.cache(TierName::Memory, self.map.entry_count(), self.map.weighted_size(), self.capacity);
    }
}

#[cfg(test)]
mod tests;
