//! The circuit breaker of one endpoint: it spares an endpoint that fails, and us the wait for it.
//!
//! ```text
//! closed     --failures in a row-->  open       everything passes; each success starts the count anew
//! open       --its time is over--->  half-open  nothing passes
//! half-open  --the probe succeeds->  closed     exactly one passes, the probe
//! half-open  --the probe fails---->  open       for twice as long as before, up to the longest
//! ```
//!
//! A success closes it from any state: a request sent before it opened may end well after, and proves as much as a
//! probe. A failure that was not the probe's says nothing new once it is open. What says nothing of the endpoint's
//! health, an answer such as 429 or a request that was dropped, changes nothing, but a probe that ends so gives its
//! place to the next request.
//!
//! Requests drive it: there is no task and no timer, and an open circuit costs nothing. Time is an argument.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;

use super::BreakerConfig;
use crate::metrics::{Alive, Metrics};

/// The breaker of one endpoint.
pub(super) struct Breaker {
    config: BreakerConfig,
    metrics: Metrics,
    /// The endpoint's metric label.
    upstream: Arc<str>,
    state: Mutex<State>,
}

enum State {
    Closed { failures: u32 },
    Open(Opened),
    HalfOpen { opened: Opened, is_probing: bool },
}

/// What is remembered until it closes.
struct Opened {
    until: Instant,
    time: Duration,
    why: String,
    _counted: Alive,
}

/// What an attempt says of its endpoint's health.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Health {
    /// It works.
    Good,
    /// It does not.
    Bad,
    /// Nobody knows.
    Unknown,
}

/// Leave for one attempt. Dropped unsettled, it says nothing of the endpoint.
#[must_use = "an attempt settles its pass"]
pub(super) struct Pass<'a> {
    breaker: &'a Breaker,
    is_probe: bool,
}

/// Why nothing passes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    /// The failure that opened it.
    pub(super) why: String,
    /// When the next probe may pass; in the past while one is under way.
    pub(super) again: Instant,
}

/// What settling a pass did to the circuit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// Nothing.
    None,
    /// It opened, for so long.
    Opened(Duration),
    /// It closed.
    Closed,
}

impl Breaker {
    /// A closed one.
    pub(super) fn new(config: BreakerConfig, upstream: Arc<str>, metrics: Metrics) -> Self {
        Self { config, metrics, upstream, state: Mutex::new(State::Closed { failures: 0 }) }
    }

    /// Whether a request would pass.
    pub(super) fn admits(&self, now: Instant) -> bool {
        match &*self.state.lock() {
            State::Closed { .. } | State::HalfOpen { is_probing: false, .. } => true,
            State::Open(opened) => opened.until <= now,
            State::HalfOpen { is_probing: true, .. } => false,
        }
    }

    /// Why the circuit is not closed; none if it is.
    pub(super) fn refusal(&self) -> Option<Refusal> {
        match &*self.state.lock() {
            State::Closed { .. } => None,
            State::Open(opened) | State::HalfOpen { opened, .. } => {
                Some(Refusal { why: opened.why.clone(), again: opened.until })
            }
        }
    }

    /// Leave for one attempt, if there is any. An open circuit whose time is over becomes half-open, and this its probe.
    pub(super) fn enter(&self, now: Instant) -> Option<Pass<'_>> {
        let mut state = self.state.lock();
        let is_probe = match std::mem::replace(&mut *state, State::Closed { failures: 0 }) {
            State::Closed { failures } => {
                *state = State::Closed { failures };
                return Some(Pass { breaker: self, is_probe: false });
            }
            State::Open(opened) if opened.until <= now => {
                *state = State::HalfOpen { opened, is_probing: true };
                true
            }
            State::HalfOpen { opened, is_probing } => {
                *state = State::HalfOpen { opened, is_probing: true };
                !is_probing
            }
            open @ State::Open(_) => {
                *state = open;
                false
            }
        };
        is_probe.then_some(Pass { breaker: self, is_probe })
    }

    fn good(&self) -> Change {
        match std::mem::replace(&mut *self.state.lock(), State::Closed { failures: 0 }) {
            State::Closed { .. } => Change::None,
            State::Open(_) | State::HalfOpen { .. } => Change::Closed,
        }
    }

    fn bad(&self, is_probe: bool, now: Instant, why: &str) -> Change {
        let mut state = self.state.lock();
        let time = match &mut *state {
            State::Closed { failures } => {
                *failures += 1;
                if *failures < self.config.failures {
                    return Change::None;
                }
                self.config.open_time
            }
            State::HalfOpen { opened, .. } if is_probe => opened.time.saturating_mul(2).min(self.config.max_open_time),
            State::Open(_) | State::HalfOpen { .. } => return Change::None,
        };
        let counted = self.metrics.upstream_circuit_open(&self.upstream);
        *state = State::Open(Opened { until: now + time, time, why: why.to_owned(), _counted: counted });
        Change::Opened(time)
    }

    /// A probe ended without a word on the endpoint.
    fn give_up(&self) {
        if let State::HalfOpen { is_probing, .. } = &mut *self.state.lock() {
            *is_probing = false;
        }
    }
}

impl Pass<'_> {
    /// Tells what the attempt said of the endpoint; `why` is kept for those who are refused.
    pub(super) fn settle(mut self, health: Health, now: Instant, why: &str) -> Change {
        let change = match health {
            Health::Good => self.breaker.good(),
            Health::Bad => self.breaker.bad(self.is_probe, now, why),
            // What follows is the drop.
            Health::Unknown => return Change::None,
        };
        self.is_probe = false;
        change
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if self.is_probe {
            self.breaker.give_up();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::time::advance;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn breaker(metrics: &Metrics) -> Breaker {
        let config = BreakerConfig { failures: 3, open_time: 5 * SECOND, max_open_time: 15 * SECOND };
        Breaker::new(config, "vae.example".into(), metrics.clone())
    }

    fn fail(breaker: &Breaker) -> Change {
        breaker.enter(Instant::now()).unwrap().settle(Health::Bad, Instant::now(), "it answered 500")
    }

    fn open_gauge(metrics: &Metrics) -> bool {
        metrics.render().contains(r#"latentgate_upstream_circuit_open{upstream="vae.example"} 1"#)
    }

    #[tokio::test(start_paused = true)]
    async fn transitions() {
        let metrics = Metrics::new();
        let breaker = breaker(&metrics);
        // Closed: a success starts the count anew.
        assert_eq!((fail(&breaker), fail(&breaker)), (Change::None, Change::None));
        let good = breaker.enter(Instant::now()).unwrap();
        assert_eq!(good.settle(Health::Good, Instant::now(), ""), Change::None);
        assert_eq!((fail(&breaker), fail(&breaker)), (Change::None, Change::None));
        assert!(!open_gauge(&metrics) && breaker.refusal().is_none());

        // The third in a row opens it; nothing passes.
        assert_eq!(fail(&breaker), Change::Opened(5 * SECOND));
        assert!(open_gauge(&metrics));
        let again = Instant::now() + 5 * SECOND;
        assert_eq!(breaker.refusal(), Some(Refusal { why: "it answered 500".to_owned(), again }));
        advance(Duration::from_millis(4_999)).await;
        assert!(!breaker.admits(Instant::now()) && breaker.enter(Instant::now()).is_none());

        // Half-open: exactly one passes.
        advance(Duration::from_millis(1)).await;
        assert!(breaker.admits(Instant::now()));
        let probe = breaker.enter(Instant::now()).unwrap();
        assert!(!breaker.admits(Instant::now()) && breaker.enter(Instant::now()).is_none());
        assert!(open_gauge(&metrics));

        // A probe that fails opens it for twice as long, up to the longest.
        assert_eq!(probe.settle(Health::Bad, Instant::now(), "again"), Change::Opened(10 * SECOND));
        advance(10 * SECOND).await;
        assert_eq!(fail(&breaker), Change::Opened(15 * SECOND));
        advance(15 * SECOND).await;
        assert_eq!(fail(&breaker), Change::Opened(15 * SECOND));
        assert!(open_gauge(&metrics));

        // A probe that succeeds closes it, and the next time it opens for as long as the first.
        advance(15 * SECOND).await;
        let probe = breaker.enter(Instant::now()).unwrap();
        assert_eq!(probe.settle(Health::Good, Instant::now(), ""), Change::Closed);
        assert!(!open_gauge(&metrics));
        fail(&breaker);
        fail(&breaker);
        assert_eq!(fail(&breaker), Change::Opened(5 * SECOND));
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_is_dropped_or_says_nothing_leaves_its_place_to_the_next() {
        let breaker = breaker(&Metrics::new());
        for _ in 0..3 {
            fail(&breaker);
        }
        advance(5 * SECOND).await;
        drop(breaker.enter(Instant::now()).unwrap());
        let probe = breaker.enter(Instant::now()).unwrap();
        assert_eq!(probe.settle(Health::Unknown, Instant::now(), ""), Change::None);
        assert!(breaker.admits(Instant::now()));
        assert_eq!(fail(&breaker), Change::Opened(10 * SECOND));
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_under_way_when_it_opened_can_close_it_but_not_open_it_further() {
        let breaker = breaker(&Metrics::new());
        let [late, later] = [0, 1].map(|_| breaker.enter(Instant::now()).unwrap());
        for _ in 0..3 {
            fail(&breaker);
        }
        assert_eq!(late.settle(Health::Bad, Instant::now(), ""), Change::None);
        assert_eq!(breaker.refusal().map(|refusal| refusal.why), Some("it answered 500".to_owned()));
        assert_eq!(later.settle(Health::Good, Instant::now(), ""), Change::Closed);
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Enter,
        Settle(Health),
        Wait(u32),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => Just(Step::Enter),
            1 => Just(Step::Settle(Health::Good)),
            4 => Just(Step::Settle(Health::Bad)),
            1 => Just(Step::Settle(Health::Unknown)),
            2 => (0u32..8).prop_map(Step::Wait),
        ]
    }

    proptest! {
        /// However attempts overlap: never two probes at a time, and an open circuit lets nothing pass before its time.
        #[test]
        fn a_circuit_that_is_not_closed_has_at_most_one_probe(steps in prop::collection::vec(step(), 1..120)) {
            let breaker = breaker(&Metrics::new());
            let mut now = Instant::now();
            let mut passes: Vec<Pass<'_>> = Vec::new();
            for step in steps {
                match step {
                    Step::Enter => {
                        let refusal = breaker.refusal();
                        let admits = breaker.admits(now);
                        let pass = breaker.enter(now);
                        prop_assert_eq!(admits, pass.is_some());
                        if let (Some(_), Some(refusal)) = (&pass, refusal) {
                            prop_assert!(refusal.again <= now);
                        }
                        passes.extend(pass);
                    }
                    Step::Settle(health) if !passes.is_empty() => {
                        let _: Change = passes.remove(0).settle(health, now, "why");
                    }
                    Step::Settle(_) => {}
                    Step::Wait(seconds) => now += seconds * SECOND,
                }
                let probes = passes.iter().filter(|pass| pass.is_probe).count();
                prop_assert!(probes <= 1 || breaker.refusal().is_none());
            }
        }
    }
}
