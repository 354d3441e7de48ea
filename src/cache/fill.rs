//! Write-back: what waits to be written to a tier.
//!
//! Answers never wait for a tier to take them in: they are offered here and a task writes them one by one. The queue is
//! bounded by bytes; beyond, an artifact is dropped and counted, since it can always be made again. What waits can still
//! be read. When the product ends, what waits is written within the grace period.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tracing::Span;

use super::tier::{Refused, Tier};
use crate::{
    artifact::Artifact,
    key::ContentKey,
    metrics::Metrics,
    task::{self, Task},
};

/// One tier's queue. Clones share it; the task behind it ends with the last.
#[derive(Clone)]
pub struct Fill(Arc<Handle>);

struct Handle {
    shared: Arc<Shared>,
    _writing: Task<()>,
}

struct Shared {
    tier: Arc<dyn Tier>,
    /// In bytes.
    capacity: u64,
    queue: Mutex<Queue>,
    /// Something has come.
    offered: Notify,
    /// Nothing waits any more.
    emptied: Notify,
    metrics: Metrics,
}

/// Whether what was written is still to be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Written {
    /// It is.
    Meant,
    /// It has been purged while it was being written.
    Purged,
}

#[derive(Default)]
struct Queue {
    order: VecDeque<ContentKey>,
    /// What waits, and what is being written.
    waiting: HashMap<ContentKey, Arc<Artifact>>,
    bytes: u64,
}

impl Fill {
    /// A queue of `capacity` bytes before `tier`, and the task that empties it.
    pub fn start(tier: Arc<dyn Tier>, capacity: u64, metrics: Metrics) -> Self {
        let shared = Arc::new(Shared {
            tier,
            capacity,
            queue: Mutex::default(),
            offered: Notify::new(),
            emptied: Notify::new(),
            metrics,
        });
        let writing = task::spawn(Span::none(), shared.clone().write());
        Self(Arc::new(Handle { shared, _writing: writing }))
    }

    /// The tier behind it.
    pub fn tier(&self) -> &Arc<dyn Tier> {
        &self.0.shared.tier
    }

    /// Has `artifact` written, in place of one that waits under its key; or drops and counts it, and says so. Never waits.
    pub fn offer(&self, artifact: Arc<Artifact>) -> bool {
        let shared = &self.0.shared;
        let mut queue = shared.queue.lock();
        if queue.bytes + artifact.weight() > shared.capacity {
            shared.metrics.cache_fill_dropped(shared.tier.name());
            return false;
        }
        let key = *artifact.key();
        queue.bytes += artifact.weight();
        match queue.waiting.insert(key, artifact) {
            // Its place in the order is the one it has, or the end if it is just being written.
            Some(before) => {
                queue.bytes -= before.weight();
                if !queue.order.contains(&key) {
                    queue.order.push_back(key);
                }
            }
            None => queue.order.push_back(key),
        }
        drop(queue);
        shared.offered.notify_one();
        true
    }

    /// What waits under `key`.
    pub fn get(&self, key: &ContentKey) -> Option<Arc<Artifact>> {
        self.0.shared.queue.lock().waiting.get(key).cloned()
    }

    /// Meets everything that waits, with the queue locked.
    pub fn each(&self, mut meet: impl FnMut(&Artifact)) {
        self.0.shared.queue.lock().waiting.values().for_each(|artifact| meet(artifact));
    }

    /// Takes out of the queue what is meant, and says how many those were. What is just being written is taken out of the
    /// tier when it is.
    pub fn purge(&self, is_meant: impl Fn(&Artifact) -> bool) -> u64 {
        let mut queue = self.0.shared.queue.lock();
        let queue = &mut *queue;
        let before = queue.waiting.len();
        queue.waiting.retain(|_, artifact| {
            let stays = !is_meant(artifact);
            if !stays {
                queue.bytes -= artifact.weight();
            }
            stays
        });
        (before - queue.waiting.len()) as u64
    }

    /// Waits until nothing waits to be written. Cancel-safe.
    pub async fn drain(&self) {
        loop {
            let emptied = self.0.shared.emptied.notified();
            if self.0.shared.queue.lock().waiting.is_empty() {
                return;
            }
            emptied.await;
        }
    }

    /// How much waits, and may: bytes, bytes at most.
    pub fn usage(&self) -> [u64; 2] {
        [self.0.shared.queue.lock().bytes, self.0.shared.capacity]
    }

    /// Brings the gauges up to date.
    pub fn report(&self) {
        let shared = &self.0.shared;
        let [bytes, capacity] = self.usage();
        shared.metrics.cache_fill_queue(shared.tier.name(), bytes, capacity);
    }
}

impl Shared {
    async fn write(self: Arc<Self>) {
        loop {
            let next = self.next();
            let Some(artifact) = next else {
                self.emptied.notify_waiters();
                self.offered.notified().await;
                continue;
            };
            let put = self.tier.put(artifact.clone()).await;
            let is_refused = put.is_err();
            if let Err(refused) = put {
                self.metrics.cache_write_failed(self.tier.name());
                let (tier, key) = (self.tier.name().label(), artifact.key());
                match refused {
                    // The tier has said so, once.
                    Refused::Resting | Refused::Failed(_) => tracing::trace!(tier, ?key, %refused, "not kept"),
                    Refused::NoRoom { .. } => tracing::debug!(tier, ?key, %refused, "not kept"),
                }
            }
            // Nor is an older one to outlive a newer that was not taken in.
            if self.written(&artifact) == Written::Purged || is_refused {
                self.tier.remove(*artifact.key()).await;
            }
        }
    }

    fn next(&self) -> Option<Arc<Artifact>> {
        let mut queue = self.queue.lock();
        loop {
            let key = queue.order.pop_front()?;
            // Purged since, if it is not there.
            if let Some(artifact) = queue.waiting.get(&key) {
                return Some(artifact.clone());
            }
        }
    }

    fn written(&self, artifact: &Arc<Artifact>) -> Written {
        let mut queue = self.queue.lock();
        match queue.waiting.get(artifact.key()) {
            Some(waiting) if Arc::ptr_eq(waiting, artifact) => {
                queue.waiting.remove(artifact.key());
                queue.bytes -= artifact.weight();
                Written::Meant
            }
            // Another has come in its place meanwhile, and waits.
            Some(_) => Written::Meant,
            None => Written::Purged,
        }
    }
}

#[cfg(test)]
mod tests;
