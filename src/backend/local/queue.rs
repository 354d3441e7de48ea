//! The engine's queue: bounded, first come first served, read by the engine's threads.
//!
//! A full one refuses at once. A job that nobody waits for any more leaves it, and gives back its memory, the moment its
//! future is dropped. Who takes a job may take others with it that are like it: they pass those who came before them,
//! so whoever waits behind `n` jobs waits for `n` runs at most, longer ones than without.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use parking_lot::{Condvar, Mutex, MutexGuard};
use tracing::Span;

use super::{NAME, order::Order};
use crate::{
    error::{Error, ErrorKind},
    metrics::{Alive, Metrics},
};

/// The end that jobs come in at. Dropping it closes the queue.
pub(super) struct Queue(Arc<Shared>);

/// An end that jobs are taken from. With the last of them the queue closes, and those who wait are told.
pub(super) struct Orders(Arc<Shared>);

/// A job's place in the queue; left on drop, unless it was taken.
pub(super) struct Place<'a> {
    queue: &'a Shared,
    number: u64,
}

/// Where a job that was taken stood.
#[derive(Clone, Copy)]
pub(super) struct Ticket(u64);

struct Shared {
    state: Mutex<State>,
    /// A job has come, or the queue is closed. All are told: it may not be for the first of them.
    change: Condvar,
    capacity: usize,
    metrics: Metrics,
}

#[derive(Default)]
struct State {
    /// By the order in which they came.
    waiting: BTreeMap<u64, Waiting>,
    next: u64,
    takers: usize,
    /// Of the takers: those who wait for a job, and so are about to take the next one.
    idle: usize,
    closed: bool,
}

/// A job, and what tells that it waits.
struct Waiting {
    order: Order,
    _queued: Alive,
    _span: Span,
}

// === impl Queue ===

impl Queue {
    /// A queue for `capacity` jobs.
    pub(super) fn new(capacity: usize, metrics: Metrics) -> Self {
        metrics.backend_queue_capacity(NAME, capacity);
        let (state, change) = (Mutex::default(), Condvar::new());
        Self(Arc::new(Shared { state, change, capacity, metrics }))
    }

    /// One more end to take jobs from.
    pub(super) fn orders(&self) -> Orders {
        self.0.state.lock().takers += 1;
        Orders(self.0.clone())
    }

    /// How many wait for somebody who is busy.
    pub(super) fn waiting(&self) -> usize {
        let state = self.0.state.lock();
        state.waiting.len().saturating_sub(state.idle)
    }

    /// Joins the queue, or refuses at once: with `Overloaded` if it is full, with `Unavailable` if nobody takes from it any
    /// more.
    pub(super) fn enter(&self, order: Order) -> Result<Place<'_>, Error> {
        let mut state = self.0.state.lock();
        if state.closed || state.takers == 0 {
            return Err(Error::new(ErrorKind::Unavailable, "the engine has stopped"));
        }
        if state.waiting.len() >= self.0.capacity + state.idle {
            let message = format!("the queue of {NAME} is full: {} jobs (engine.queue)", self.0.capacity);
            return Err(Error::new(ErrorKind::Overloaded, message));
        }
        let number = state.next;
        state.next += 1;
        self.0.insert(state, number, order);
        Ok(Place { queue: &self.0, number })
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.0.close();
    }
}

// === impl Orders ===

impl Orders {
    /// Waits for a job that is not for others and takes it; `None` when there will be no more. What others are for is asked
    /// anew after each `patience`. After the first without a job `idle` is done, once.
    pub(super) fn next(
        &self,
        patience: Duration,
        is_others: impl Fn(&Order) -> bool,
        idle: impl FnOnce(),
    ) -> Option<(Ticket, Order)> {
        let (mut state, mut idle) = (self.0.state.lock(), Some(idle));
        loop {
            let ours = state.waiting.iter().find(|(_, one)| !is_others(&one.order)).map(|(&number, _)| number);
            if let Some(one) = ours.and_then(|number| state.waiting.remove_entry(&number)) {
                return Some((Ticket(one.0), one.1.order));
            }
            if state.closed {
                return None;
            }
            state.idle += 1;
            let waited = self.0.change.wait_for(&mut state, patience);
            state.idle -= 1;
            if let Some(idle) = idle.take_if(|_| waited.timed_out()) {
                MutexGuard::unlocked(&mut state, idle);
            }
        }
    }

    /// Gives a job back for others to take, at the place that it had.
    pub(super) fn put_back(&self, ticket: Ticket, order: Order) {
        let state = self.0.state.lock();
        if !state.closed {
            self.0.insert(state, ticket.0, order);
        }
    }

    /// Whether nobody waits at this moment.
    pub(super) fn is_empty(&self) -> bool {
        self.0.state.lock().waiting.is_empty()
    }

    /// Takes those who wait for a run like that of `first`, first come first served, as long as they come to `pictures`
    /// at most.
    pub(super) fn like(&self, first: &Order, mut pictures: usize) -> Vec<Order> {
        let mut state = self.0.state.lock();
        let mut numbers = Vec::new();
        for (&number, Waiting { order, .. }) in &state.waiting {
            if order.size.n <= pictures && order.is_like(first) {
                pictures -= order.size.n;
                numbers.push(number);
            }
        }
        numbers.iter().filter_map(|number| state.waiting.remove(number)).map(|one| one.order).collect()
    }
}

impl Drop for Orders {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.takers -= 1;
        if state.takers == 0 {
            drop(state);
            self.0.close();
        }
    }
}

// === impl Place ===

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let left = self.queue.state.lock().waiting.remove(&self.number);
        // Its input goes after the lock.
        drop(left);
    }
}

// === impl Shared ===

impl Shared {
    /// Has it wait, and tells those who take.
    fn insert(&self, mut state: MutexGuard<'_, State>, number: u64, order: Order) {
        let (queued, span) = (self.metrics.backend_queued(NAME), tracing::debug_span!(parent: &order.span, "queue"));
        state.waiting.insert(number, Waiting { order, _queued: queued, _span: span });
        drop(state);
        self.change.notify_all();
    }

    fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        let left = std::mem::take(&mut state.waiting);
        drop(state);
        self.change.notify_all();
        drop(left);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::watch;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::{
        backend::{Compute, Others},
        hops::Hops,
        job::{Job, Output, Work},
        model::{ModelTable, Scaling},
        progress::Progress,
        tensor::{DType, Shape, Tensor},
    };

    /// `n` latents of `side` x `side`, whose job can be told by its scaling.
    fn order(n: usize, side: usize, mark: f32) -> Order {
        let shape = Shape::try_new(&[n, 4, side, side]).unwrap();
        let latents = Tensor::try_new(DType::F32, shape, vec![0; n * 16 * side * side].into()).unwrap();
        let work = Work::Decode { latents, output: Output::Uint8 };
        let model = ModelTable::known().get("taesd").unwrap().clone();
        let job = Arc::new(Job::new(model, Scaling { factor: mark, shift: 0.0 }, work));
        let (progress, cancel) = (watch::Sender::new(Progress::default()), CancellationToken::new());
        Order::new(Compute { job, progress, cancel, others: Others::None, hops: Hops::default() }).unwrap().0
    }

    fn mark(order: &Order) -> f32 {
        order.compute.job.scaling.factor
    }

    fn next(orders: &Orders) -> Option<f32> {
        orders.next(Duration::from_mins(1), |_| false, || {}).map(|(_, order)| mark(&order))
    }

    #[test]
    fn first_come_first_served_and_whoever_leaves_was_never_there() {
        let metrics = Metrics::new();
        let queue = Queue::new(3, metrics.clone());
        let orders = queue.orders();
        let [a, b, c] = [1.0, 2.0, 3.0].map(|mark| queue.enter(order(1, 8, mark)).unwrap());
        let refused = queue.enter(order(1, 8, 4.0)).err().unwrap();
        assert_eq!(refused.kind(), ErrorKind::Overloaded);
        assert!(metrics.render().contains(r#"latentgate_backend_queue_depth{backend="local"} 3"#));
        drop(b);
        assert_eq!(queue.waiting(), 2);
        assert_eq!([next(&orders), next(&orders)], [Some(1.0), Some(3.0)]);
        assert!(metrics.render().contains(r#"latentgate_backend_queue_depth{backend="local"} 0"#));
        // They were taken already.
        drop((a, c));
        drop(queue);
        assert_eq!(next(&orders), None);
    }

    #[test]
    fn what_an_idle_end_is_about_to_take_fills_no_place() {
        let queue = Queue::new(1, Metrics::new());
        let _orders = queue.orders();
        queue.0.state.lock().idle = 1;
        let _first = queue.enter(order(1, 8, 1.0)).unwrap();
        assert_eq!(queue.waiting(), 0);
        let _second = queue.enter(order(1, 8, 2.0)).unwrap();
        assert_eq!(queue.waiting(), 1);
        assert!(queue.enter(order(1, 8, 3.0)).is_err());
        // It has taken none, and is busy.
        queue.0.state.lock().idle = 0;
        assert_eq!(queue.waiting(), 2);
        assert!(queue.enter(order(1, 8, 3.0)).is_err());
    }

    #[test]
    fn those_like_the_first_come_along_as_far_as_there_is_room() {
        let queue = Queue::new(9, Metrics::new());
        let orders = queue.orders();
        let shapes = [(1, 8, 1.0), (1, 16, 2.0), (1, 8, 3.0), (3, 8, 4.0), (1, 8, 5.0), (1, 8, 6.0)];
        let _places = shapes.map(|(n, side, mark)| queue.enter(order(n, side, mark)).unwrap());
        let (_, first) = orders.next(Duration::ZERO, |_| false, || {}).unwrap();
        let marks: Vec<f32> = orders.like(&first, 2).iter().map(mark).collect();
        assert_eq!(marks, [3.0, 5.0]);
        assert!(orders.like(&first, 0).is_empty());
        assert_eq!([next(&orders), next(&orders), next(&orders)], [Some(2.0), Some(4.0), Some(6.0)]);
    }

    #[test]
    fn an_idle_end_says_so_once_and_takes_what_comes_then() {
        let queue = Queue::new(1, Metrics::new());
        let orders = queue.orders();
        let entered = queue.orders();
        let (sender, idle) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let taking = scope.spawn(move || orders.next(Duration::ZERO, |_| false, || sender.send(()).unwrap()));
            idle.recv().unwrap();
            let _place = queue.enter(order(1, 8, 1.0)).unwrap();
            assert_eq!(taking.join().unwrap().map(|(_, order)| mark(&order)), Some(1.0));
            assert!(idle.recv().is_err());
        });
        drop(entered);
    }

    #[test]
    fn what_is_for_others_is_left_to_them_and_given_back_in_its_place() {
        let queue = Queue::new(3, Metrics::new());
        let (one, other) = (queue.orders(), queue.orders());
        let [_a, _b, c] = [1.0, 2.0, 3.0].map(|mark| queue.enter(order(1, 8, mark)).unwrap());
        let (ticket, first) = one.next(Duration::ZERO, |_| false, || {}).unwrap();
        assert_eq!((mark(&first), queue.waiting()), (1.0, 2));
        one.put_back(ticket, first);
        let (_, second) = one.next(Duration::ZERO, |order| mark(order) < 1.5, || {}).unwrap();
        assert_eq!((mark(&second), next(&other), queue.waiting()), (2.0, Some(1.0), 1));
        // A taker that nothing is for waits until something is.
        let (taken, left) = std::thread::scope(|scope| {
            let (sender, idle) = std::sync::mpsc::channel();
            let taking = scope.spawn(|| {
                let idle = move || sender.send(()).unwrap();
                one.next(Duration::ZERO, |order| mark(order) < 3.5, idle).map(|(_, order)| mark(&order))
            });
            idle.recv().unwrap();
            drop(c);
            let _place = queue.enter(order(1, 8, 4.0)).unwrap();
            (taking.join().unwrap(), queue.waiting())
        });
        assert_eq!((taken, left), (Some(4.0), 0));
    }

    #[test]
    fn with_the_last_end_the_queue_closes_and_those_who_wait_are_told() {
        let queue = Queue::new(2, Metrics::new());
        let (one, other) = (queue.orders(), queue.orders());
        let (waiting, mut answer) = {
            let order = order(1, 8, 1.0);
            let (again, answer) = Order::new(order.compute).unwrap();
            (queue.enter(again).unwrap(), answer)
        };
        drop(one);
        assert!(answer.try_recv().is_err_and(|error| error == tokio::sync::oneshot::error::TryRecvError::Empty));
        drop(other);
        assert!(answer.try_recv().is_err_and(|error| error == tokio::sync::oneshot::error::TryRecvError::Closed));
        drop(waiting);
        let refused = queue.enter(order(1, 8, 2.0)).err().unwrap();
        assert_eq!(refused.kind(), ErrorKind::Unavailable);
    }
}
