//! Which of a model's endpoints is asked, and what its endpoints together say of the model.
//!
//! The least loaded one whose circuit lets a request pass; equals take turns. For another attempt, those that have not
//! failed this job go first, then those that did not fail it last, and at the end those that would fail it the same way
//! again.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{sync::watch, time::Instant};

use super::{breaker::Refusal, endpoint::Endpoint};
use crate::{
    backend::{Health, ModelState},
    error::{Error, ErrorKind},
    model::ModelId,
};

/// The endpoints that do one task for one model.
pub(super) struct Group {
    endpoints: Vec<Arc<Endpoint>>,
    /// Where a choice begins to look. Moved on by jobs, not by choices: a job that looks in vain for another endpoint must
    /// not send the next one to where it has failed itself.
    rotation: AtomicUsize,
}

/// The endpoints that failed one job.
#[derive(Default)]
pub(super) struct Failed {
    /// The last one last.
    known: Vec<usize>,
    /// Those that would fail it the same way again.
    hopeless: Vec<usize>,
}

/// The health of all models, kept true.
pub(super) struct Board {
    models: BTreeMap<ModelId, Vec<Arc<Endpoint>>>,
    health: watch::Sender<Health>,
}

// === impl Group ===

impl Group {
    pub(super) const fn new(endpoints: Vec<Arc<Endpoint>>) -> Self {
        Self { endpoints, rotation: AtomicUsize::new(0) }
    }

    /// The endpoint of that number.
    pub(super) fn get(&self, number: usize) -> &Endpoint {
        &self.endpoints[number]
    }

    /// The number of the endpoint to ask; none if no circuit lets a request pass.
    pub(super) fn choose(&self, failed: &Failed, now: Instant) -> Option<usize> {
        let count = self.endpoints.len();
        let first = self.rotation.load(Ordering::Relaxed);
        let numbers = (0..count).map(|offset| (first.wrapping_add(offset)) % count);
        let admitted = numbers.filter(|&number| self.endpoints[number].admits(now));
        // Of equals `min_by_key` takes the first.
        admitted.min_by_key(|&number| (failed.rank(number), self.endpoints[number].load()))
    }

    /// Jobs that wait at the endpoint with the fewest.
    pub(super) fn waiting(&self) -> usize {
        self.endpoints.iter().map(|endpoint| endpoint.waiting()).min().unwrap_or_default()
    }

    /// A job has come to an endpoint: the next one begins to look elsewhere.
    pub(super) fn take_turns(&self) {
        self.rotation.fetch_add(1, Ordering::Relaxed);
    }

    /// The error of a job that no circuit lets pass.
    pub(super) fn refusal(&self) -> Error {
        let why = refusal(&self.endpoints).map_or_else(
            || "an upstream endpoint is being probed".to_owned(),
            |refusal| format!("{}; it is left alone for a while after repeated failures", refusal.why),
        );
        Error::new(ErrorKind::Unavailable, why)
    }
}

// === impl Failed ===

impl Failed {
    /// That endpoint failed the job.
    pub(super) fn add(&mut self, number: usize) {
        self.known.retain(|&known| known != number);
        self.known.push(number);
    }

    /// That endpoint failed the job, and would fail it the same way again.
    pub(super) fn add_hopeless(&mut self, number: usize) {
        self.add(number);
        self.hopeless.push(number);
    }

    /// Whether it has failed the job.
    pub(super) fn has(&self, number: usize) -> bool {
        self.known.contains(&number)
    }

    fn rank(&self, number: usize) -> u8 {
        match self.has(number) {
            false => 0,
            true if self.hopeless.contains(&number) => 3,
            true if self.known.last() != Some(&number) => 1,
            true => 2,
        }
    }
}

// === impl Board ===

impl Board {
    /// Of these models, with the endpoints of all their tasks.
    pub(super) fn new(models: BTreeMap<ModelId, Vec<Arc<Endpoint>>>) -> Self {
        let health = models.keys().map(|id| (id.clone(), ModelState::Ready)).collect();
        Self { models, health: watch::Sender::new(health) }
    }

    pub(super) fn watch(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }

    /// Looks at every circuit again. To be called when one opened or closed.
    ///
    /// A half-open circuit is not ready yet: its model stays `Failed`, with a time that has passed, so that requests
    /// come and probe it, while readiness does not flicker with every probe that fails.
    pub(super) fn refresh(&self) {
        self.health.send_if_modified(|health| {
            let mut is_new = false;
            for (id, endpoints) in &self.models {
                let state = refusal(endpoints).map_or(ModelState::Ready, |Refusal { why, again }| {
                    let why = format!("{why}; its circuit is open");
                    ModelState::Failed { why, again }
                });
                is_new |= health.insert(id.clone(), state.clone()) != Some(state);
            }
            is_new
        });
    }
}

/// Why all of them are left alone, by the one that is probed first; none if the circuit of any is closed.
fn refusal(endpoints: &[Arc<Endpoint>]) -> Option<Refusal> {
    let refusals: Option<Vec<_>> = endpoints.iter().map(|endpoint| endpoint.refusal()).collect();
    refusals?.into_iter().min_by_key(|refusal| refusal.again)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::advance;

    use super::*;
    use crate::{
        backend::upstream::{BreakerConfig, Config, failure::Failure},
        metrics::Metrics,
    };

    fn endpoints(count: usize) -> Vec<Arc<Endpoint>> {
        let breaker = BreakerConfig { failures: 1, ..BreakerConfig::default() };
        let config = Config { breaker, concurrency: 2, ..Config::default() };
        let make = |n| Arc::new(Endpoint::new(&format!("http://127.0.0.1:{n}"), &config, &Metrics::new()).unwrap());
        (1..=count).map(make).collect()
    }

    fn fail(endpoint: &Endpoint) {
        let failure = Failure::status(endpoint.label(), 500, None, None);
        assert!(endpoint.enter().unwrap().end(Err(&failure)));
    }

    #[tokio::test(start_paused = true)]
    async fn equals_take_turns_and_the_least_loaded_goes_first() {
        let group = Group::new(endpoints(3));
        let none = Failed::default();
        let job = |_| {
            let chosen = group.choose(&none, Instant::now());
            // A look by itself moves nothing.
            assert_eq!(group.choose(&none, Instant::now()), chosen);
            group.take_turns();
            chosen
        };
        let mut chosen: Vec<_> = (0..3).filter_map(job).collect();
        chosen.sort_unstable();
        assert_eq!(chosen, [0, 1, 2]);
        let _turns = [group.get(0).turn().await.unwrap(), group.get(2).turn().await.unwrap()];
        for _ in 0..4 {
            assert_eq!(group.choose(&none, Instant::now()), Some(1));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn another_attempt_goes_elsewhere_first() {
        let group = Group::new(endpoints(3));
        let mut failed = Failed::default();
        failed.add(1);
        failed.add(0);
        assert_eq!(group.choose(&failed, Instant::now()), Some(2));
        failed.add(2);
        assert!(failed.has(1));
        for _ in 0..6 {
            group.take_turns();
            assert_ne!(group.choose(&failed, Instant::now()), Some(2));
        }
        let mut hopeless = Failed::default();
        hopeless.add_hopeless(0);
        hopeless.add_hopeless(1);
        hopeless.add(2);
        assert_eq!(group.choose(&hopeless, Instant::now()), Some(2));
        fail(group.get(0));
        fail(group.get(1));
        assert_eq!(group.choose(&failed, Instant::now()), Some(2));
        fail(group.get(2));
        assert_eq!(group.choose(&failed, Instant::now()), None);
        assert!(group.refusal().message().contains("upstream 127.0.0.1:"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_model_fails_when_all_its_circuits_are_open_and_says_until_when() {
        let endpoints = endpoints(2);
        let id = ModelId::try_new("sd-v1").unwrap();
        let board = Board::new(BTreeMap::from([(id.clone(), endpoints.clone())]));
        let mut watched = board.watch();
        fail(&endpoints[0]);
        board.refresh();
        assert_eq!((watched.has_changed().unwrap(), watched.borrow()[&id].clone()), (false, ModelState::Ready));

        let again = Instant::now() + BreakerConfig::default().open_time;
        advance(Duration::from_secs(1)).await;
        fail(&endpoints[1]);
        board.refresh();
        let why = "upstream 127.0.0.1:1 failed (500); its circuit is open".to_owned();
        assert_eq!(watched.borrow_and_update()[&id], ModelState::Failed { why, again });

        advance(Duration::from_secs(5)).await;
        assert!(endpoints[0].enter().unwrap().end(Ok(())));
        board.refresh();
        assert_eq!(watched.borrow_and_update()[&id], ModelState::Ready);
    }
}
