//! Exact counts with gates: no sleeps, no clock.

use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use tokio::sync::oneshot;

use super::*;
use crate::{admission::Gate, error::ErrorKind, meta::Meta};

const KEPT: Wish = Wish { reach: Reach::All, store: Store::Allowed };

/// A key that says `n`.
fn key(n: u8) -> ContentKey {
    ContentKey::sample(n)
}

/// What a test's leader does when its gate opens.
enum Then {
    Finish,
    Fail,
    Panic,
    Hang,
}

struct Bench {
    flights: Flights,
    gate: Gate,
    runs: Arc<AtomicUsize>,
}

impl Bench {
    fn new(keep_from: f32) -> Self {
        let metrics = Metrics::new();
        let gate = Gate::new(1000, 1000, metrics.clone());
        Self { flights: Flights::new(keep_from, metrics), gate, runs: Arc::default() }
    }

    /// Joins, and never leads.
    fn join(&self, wish: Wish) -> Option<Waiter> {
        let refuse = |_lead| -> Result<Start<std::future::Ready<()>>, _> { Err(Error::internal("nobody is to lead")) };
        match self.flights.look_or_join(key(1), wish, || None::<()>, refuse) {
            Ok(Found::Joined(waiter)) => Some(waiter),
            _ => None,
        }
    }

    /// Joins or leads; a leader begins, reports half of its blocks if told to, waits for `go`, then does `then`.
    fn enter(&self, progress: Progress, go: oneshot::Receiver<()>, then: Then) -> Found<()> {
        let runs = self.runs.clone();
        let reservation = || self.gate.reserve(100);
        self.flights
            .look_or_join(
                key(1),
                KEPT,
                || None,
                |lead| {
                    let held = Box::new(reservation()?);
                    let leader = async move {
                        runs.fetch_add(1, Ordering::SeqCst);
                        let Lead { mut writer, progress: told, .. } = lead;
                        writer.begin(Meta::sample(3)).unwrap();
                        told.send_replace(progress);
                        writer.append(Bytes::from_static(b"a")).unwrap();
                        go.await.ok();
                        match then {
                            Then::Finish => {
                                writer.append(Bytes::from_static(b"bc")).unwrap();
                                writer.finish(|_, _, _| {}).unwrap();
                            }
                            Then::Fail => {
                                writer.fail(Error::new(ErrorKind::Unavailable, "no"));
                                // Those who wait may know of it before the leader is gone.
                                settle().await;
                            }
                            Then::Panic => panic!("a leader panics on purpose"),
                            Then::Hang => std::future::pending().await,
                        }
                    };
                    Ok(Start { span: Span::none(), held, leader })
                },
            )
            .unwrap()
    }

    fn runs(&self) -> usize {
        self.runs.load(Ordering::SeqCst)
    }
}

fn waiter(found: Found<()>) -> Waiter {
    match found {
        Found::Joined(waiter) | Found::Led(waiter) => waiter,
        Found::Hit(()) => panic!("nothing was in memory"),
    }
}

async fn read(waiter: &Waiter) -> Result<Vec<u8>, Error> {
    let mut reader = waiter.reader();
    let mut all = Vec::new();
    while let Some(slice) = reader.next().await? {
        all.extend_from_slice(&slice);
    }
    Ok(all)
}

/// Lets every task that can run, run.
async fn settle() {
    for _ in 0..16 {
        tokio::task::yield_now().await;
    }
}

const BEGUN: Progress = Progress { done: 1, total: 10 };
const HALF: Progress = Progress { done: 5, total: 10 };

#[tokio::test]
async fn one_run_answers_all_who_ask_before_and_during_it() {
    let bench = Bench::new(0.5);
    let (go, gate) = oneshot::channel();
    let first = waiter(bench.enter(BEGUN, gate, Then::Finish));
    let early: Vec<_> = (0..63).map(|_| waiter(bench.enter(BEGUN, oneshot::channel().1, Then::Fail))).collect();
    settle().await;
    let late = waiter(bench.enter(BEGUN, oneshot::channel().1, Then::Fail));
    go.send(()).unwrap();
    for waiter in early.iter().chain([&first, &late]) {
        assert_eq!(read(waiter).await.unwrap(), b"abc");
    }
    assert_eq!(bench.runs(), 1);
    settle().await;
    assert!(bench.flights.is_empty(), "a landed flight has left the table");
}

#[tokio::test]
async fn the_first_to_ask_may_leave_without_hurting_the_others() {
    let bench = Bench::new(0.5);
    let (go, gate) = oneshot::channel();
    let first = waiter(bench.enter(BEGUN, gate, Then::Finish));
    let second = waiter(bench.enter(BEGUN, oneshot::channel().1, Then::Fail));
    settle().await;
    drop(first);
    settle().await;
    go.send(()).unwrap();
    assert_eq!(read(&second).await.unwrap(), b"abc");
    assert_eq!(bench.runs(), 1);
}

#[tokio::test]
async fn when_the_last_leaves_the_run_stops_and_its_memory_comes_back() {
    let bench = Bench::new(0.5);
    let (mut go, gate) = oneshot::channel();
    let waiters = [bench.enter(BEGUN, gate, Then::Hang), bench.enter(BEGUN, oneshot::channel().1, Then::Fail)];
    settle().await;
    assert_eq!(bench.gate.bytes(), 100);
    drop(waiters.map(waiter));
    assert!(bench.flights.is_empty(), "out of the table at once: nobody joins a run that is being stopped");
    go.closed().await;
    settle().await;
    assert_eq!(bench.gate.bytes(), 0);
}

#[tokio::test]
async fn a_newcomer_after_the_last_has_left_starts_afresh() {
    let bench = Bench::new(0.5);
    drop(waiter(bench.enter(BEGUN, oneshot::channel().1, Then::Hang)));
    let (go, gate) = oneshot::channel();
    let found = bench.enter(BEGUN, gate, Then::Finish);
    assert!(matches!(found, Found::Led(_)));
    settle().await;
    assert_eq!(bench.flights.len(), 1, "the stopped run's end does not take the new entry away");
    go.send(()).unwrap();
    assert_eq!(read(&waiter(found)).await.unwrap(), b"abc");
}

#[tokio::test]
async fn a_run_past_half_is_finished_although_nobody_waits() {
    let bench = Bench::new(0.5);
    let (go, gate) = oneshot::channel();
    let first = waiter(bench.enter(HALF, gate, Then::Finish));
    settle().await;
    drop(first);
    assert_eq!(bench.flights.len(), 1);
    let rejoined = bench.enter(HALF, oneshot::channel().1, Then::Fail);
    assert!(matches!(rejoined, Found::Joined(_)));
    go.send(()).unwrap();
    assert_eq!(read(&waiter(rejoined)).await.unwrap(), b"abc");
    settle().await;
    assert!(bench.flights.is_empty());
}

#[tokio::test]
async fn a_failure_reaches_everybody_present_and_nobody_later() {
    let bench = Bench::new(0.5);
    let (go, gate) = oneshot::channel();
    let waiters =
        [bench.enter(BEGUN, gate, Then::Fail), bench.enter(BEGUN, oneshot::channel().1, Then::Finish)].map(waiter);
    go.send(()).unwrap();
    for waiter in &waiters {
        assert_eq!(read(waiter).await.unwrap_err().kind(), ErrorKind::Unavailable);
    }
    assert_eq!(bench.flights.len(), 1, "the leader has failed and is still there");
    assert!(bench.join(KEPT).is_none());
    let (go, gate) = oneshot::channel();
    let next = bench.enter(BEGUN, gate, Then::Finish);
    assert!(matches!(next, Found::Led(_)), "a failure is not remembered");
    go.send(()).unwrap();
    assert_eq!(read(&waiter(next)).await.unwrap(), b"abc");
}

#[tokio::test]
async fn a_panic_in_a_run_is_an_error_not_a_hang() {
    let bench = Bench::new(0.5);
    let (go, gate) = oneshot::channel();
    let only = waiter(bench.enter(BEGUN, gate, Then::Panic));
    go.send(()).unwrap();
    assert_eq!(read(&only).await.unwrap_err().kind(), ErrorKind::Internal);
    settle().await;
    assert!(bench.flights.is_empty());
}

#[tokio::test]
async fn a_refused_start_leaves_nothing_behind() {
    let bench = Bench::new(0.5);
    let _all = bench.gate.reserve(1000).unwrap();
    let refused = bench.flights.look_or_join(
        key(1),
        KEPT,
        || None::<()>,
        |_lead| bench.gate.reserve(1).map(|held| Start { span: Span::none(), held: Box::new(held), leader: async {} }),
    );
    assert_eq!(refused.err().unwrap().kind(), ErrorKind::Overloaded);
    assert!(bench.flights.is_empty());
}

#[tokio::test]
async fn memory_is_looked_at_again_inside_the_critical_section() {
    let bench = Bench::new(0.5);
    let found = bench.flights.look_or_join(
        key(1),
        KEPT,
        || Some(7),
        |_lead| -> Result<Start<std::future::Ready<()>>, _> { panic!("a hit leads nowhere") },
    );
    assert!(matches!(found, Ok(Found::Hit(7))));
}

#[tokio::test]
async fn one_who_allows_it_is_enough_to_keep_the_answer() {
    let bench = Bench::new(0.5);
    let wish = Arc::new(Mutex::new(None));
    let told = wish.clone();
    let start = move |lead: Lead| {
        *told.lock() = Some(lead.wish.clone());
        let leader = async move {
            let _lead = lead;
            std::future::pending::<()>().await;
        };
        Ok(Start { span: Span::none(), held: Box::new(()), leader })
    };
    let selfish = Wish { store: Store::Refused, ..KEPT };
    let _selfish = bench.flights.look_or_join(key(1), selfish, || None::<()>, start).unwrap();
    let wish = wish.lock().take().unwrap();
    assert!(!wish.is_allowed());
    let joined = bench.join(KEPT);
    assert!(joined.is_some() && wish.is_allowed());
}

#[tokio::test]
async fn who_wants_a_fresh_answer_joins_none_that_may_come_out_of_a_tier() {
    let bench = Bench::new(0.5);
    let (told, kept) = (Arc::new(Mutex::new(None)), Arc::new(Mutex::new(Vec::new())));
    let lead = |reach| {
        let told = told.clone();
        let start = move |lead: Lead| {
            *told.lock() = Some(lead.source.clone());
            let leader = async move {
                let _lead = lead;
                std::future::pending::<()>().await;
            };
            Ok(Start { span: Span::none(), held: Box::new(()), leader })
        };
        let found = bench.flights.look_or_join(key(1), Wish { reach, ..KEPT }, || None::<()>, start).unwrap();
        let has_led = matches!(found, Found::Led(_));
        kept.lock().push(found);
        has_led
    };
    let fresh = Wish { reach: Reach::Backend, ..KEPT };
    assert!(lead(Reach::All));
    assert!(bench.join(KEPT).is_some() && bench.join(fresh).is_none());
    told.lock().take().unwrap().tell(Outcome::Computed);
    assert!(bench.join(fresh).is_some(), "by now it is computed");
    assert!(!lead(Reach::Backend));
    kept.lock().clear();
    assert!(lead(Reach::All));
    told.lock().take().unwrap().tell(Outcome::HitDisk);
    assert!(bench.join(fresh).is_none());
    assert!(lead(Reach::Backend), "a run of its own, in the place of the other");
    assert!(bench.join(fresh).is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn coming_and_going_on_two_threads_never_runs_two_at_once() {
    let bench = Arc::new(Bench::new(1.1));
    let alive = Arc::new(AtomicUsize::new(0));
    let tasks: Vec<_> = (0..200)
        .map(|n| {
            let (bench, alive) = (bench.clone(), alive.clone());
            task::spawn(Span::none(), async move {
                let alive = alive.clone();
                let found = bench.flights.look_or_join(
                    key(1),
                    KEPT,
                    || None::<()>,
                    |lead| {
                        let leader = async move {
                            assert_eq!(alive.fetch_add(1, Ordering::SeqCst), 0, "two leaders of one key at once");
                            let Lead { mut writer, .. } = lead;
                            writer.begin(Meta::sample(0)).unwrap();
                            alive.fetch_sub(1, Ordering::SeqCst);
                            writer.finish(|_, _, _| {}).unwrap();
                        };
                        Ok(Start { span: Span::none(), held: Box::new(()), leader })
                    },
                );
                let waiter = waiter(found.unwrap());
                if n % 3 != 0 {
                    read(&waiter).await.ok();
                }
            })
        })
        .collect();
    for task in tasks {
        task.join().await.unwrap();
    }
    while !bench.flights.is_empty() {
        tokio::task::yield_now().await;
    }
}
