use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Semaphore;

use super::*;
use crate::{cache::tier::Lookup, metrics::TierName, task::BoxFuture};

/// A tier that takes in what it is given when it is let, and counts.
#[derive(Default)]
struct Slow {
    gate: Option<Semaphore>,
    taken: Mutex<Vec<Arc<Artifact>>>,
    asked: AtomicUsize,
}

impl Tier for Slow {
    fn name(&self) -> TierName {
        TierName::Disk
    }

    fn get(&self, _: ContentKey) -> BoxFuture<'_, Lookup> {
        Box::pin(async { Lookup::Miss })
    }

    fn put(&self, artifact: Arc<Artifact>) -> BoxFuture<'_, Result<(), Refused>> {
        Box::pin(async move {
            self.asked.fetch_add(1, Ordering::SeqCst);
            if let Some(gate) = &self.gate {
                gate.acquire().await.unwrap().forget();
            }
            self.taken.lock().push(artifact);
            Ok(())
        })
    }

    fn remove(&self, _: ContentKey) -> BoxFuture<'_, bool> {
        Box::pin(async { false })
    }
}

fn artifact(n: u8, bytes: usize) -> Arc<Artifact> {
    Artifact::sample(n, vec![n; bytes])
}

fn start(gate: Option<Semaphore>, capacity: u64) -> (Fill, Arc<Slow>, Metrics) {
    let (tier, metrics) = (Arc::new(Slow { gate, ..Slow::default() }), Metrics::new());
    (Fill::start(tier.clone(), capacity, metrics.clone()), tier, metrics)
}

#[tokio::test]
async fn everything_offered_is_written_in_order_and_readable_until_then() {
    let (fill, tier, _metrics) = start(Some(Semaphore::new(0)), 1 << 20);
    for n in 0..5 {
        fill.offer(artifact(n, 100));
    }
    for n in 0..5 {
        assert!(fill.get(&ContentKey::sample(n)).is_some());
    }
    tier.gate.as_ref().unwrap().add_permits(5);
    fill.drain().await;
    let taken: Vec<_> = tier.taken.lock().iter().map(|artifact| *artifact.key()).collect();
    assert_eq!(taken, (0..5).map(ContentKey::sample).collect::<Vec<_>>());
    assert!(fill.get(&ContentKey::sample(0)).is_none());
}

#[tokio::test]
async fn a_full_queue_drops_and_counts_and_never_waits() {
    let (fill, tier, metrics) = start(Some(Semaphore::new(0)), 10_000);
    for n in 0..10 {
        fill.offer(artifact(n, 2000));
    }
    fill.report();
    let text = metrics.render();
    assert!(text.contains(r#"latentgate_cache_fills_dropped_total{tier="disk"} 7"#), "{text}");
    assert!(text.contains(r#"latentgate_cache_fill_queue_bytes{tier="disk"} 9072"#), "{text}");
    tier.gate.as_ref().unwrap().add_permits(3);
    fill.drain().await;
    assert_eq!(tier.taken.lock().len(), 3);
    fill.offer(artifact(9, 2000));
    assert!(fill.get(&ContentKey::sample(9)).is_some(), "there is room again");
}

#[tokio::test]
async fn a_newer_artifact_takes_the_place_of_one_that_waits_or_is_being_written() {
    let (fill, tier, _metrics) = start(Some(Semaphore::new(0)), 1 << 20);
    fill.offer(artifact(1, 10));
    while tier.asked.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    // The first is being written; the second replaces it, the third the second.
    fill.offer(artifact(1, 20));
    fill.offer(artifact(1, 30));
    assert_eq!(fill.get(&ContentKey::sample(1)).unwrap().meta().length, 30);
    tier.gate.as_ref().unwrap().add_permits(9);
    fill.drain().await;
    let lengths: Vec<_> = tier.taken.lock().iter().map(|artifact| artifact.meta().length).collect();
    assert_eq!(lengths, [10, 30]);
}

#[tokio::test]
async fn what_is_purged_is_not_written() {
    let (fill, tier, _metrics) = start(Some(Semaphore::new(0)), 1 << 20);
    fill.offer(artifact(0, 10));
    while tier.asked.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    fill.offer(artifact(1, 10));
    fill.offer(artifact(2, 10));
    assert_eq!(fill.purge(|artifact| *artifact.key() == ContentKey::sample(1)), 1);
    tier.gate.as_ref().unwrap().add_permits(9);
    fill.drain().await;
    assert_eq!(tier.taken.lock().len(), 2);
}
