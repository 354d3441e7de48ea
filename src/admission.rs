//! The front gate: requests and bytes in flight. It refuses at once and never queues silently.
//!
//! Two bounds, and no semaphore around everything: a hit or a waiter never waits for an engine. A [`Permit`] rides in the
//! reply and is given back when the last byte has left, not when the head has. A [`Reservation`] is memory that a request
//! or a flight is about to take, counted before it is taken.

use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

use crate::{
    error::{Error, ErrorKind},
    metrics::{Alive, Metrics},
};

/// The gate. Clones share its counters.
#[derive(Clone)]
pub struct Gate(Arc<Shared>);

struct Shared {
    max_requests: usize,
    max_bytes: u64,
    requests: AtomicUsize,
    bytes: AtomicU64,
    metrics: Metrics,
}

/// One admitted request.
#[must_use = "dropping the permit ends the request"]
pub struct Permit {
    gate: Gate,
    _alive: Alive,
}

/// Memory that may be taken now; given back on drop.
#[must_use = "dropping the reservation gives the memory back"]
pub struct Reservation {
    gate: Gate,
    bytes: u64,
    alive: Alive,
}

impl Gate {
    /// A gate for `max_requests` requests and `max_bytes` bytes of payload (inputs, canonical inputs, answers in the
    /// making) at a time.
    pub fn new(max_requests: usize, max_bytes: u64, metrics: Metrics) -> Self {
        metrics.inflight_capacity(max_requests, max_bytes);
        Self(Arc::new(Shared {
            max_requests,
            max_bytes,
            requests: AtomicUsize::new(0),
            bytes: AtomicU64::new(0),
            metrics,
        }))
    }

    /// Lets one request in, or refuses it now.
    pub fn admit(&self) -> Result<Permit, Error> {
        let limit = self.0.max_requests;
        let entered =
            self.0.requests.fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| (n < limit).then_some(n + 1));
        match entered {
            Ok(_) => Ok(Permit { gate: self.clone(), _alive: self.0.metrics.inflight_request() }),
            Err(_) => Err(Error::new(
                ErrorKind::Overloaded,
                format!("{limit} requests are in flight, the most admitted at once"),
            )),
        }
    }

    /// Refuses for good what is more than the whole budget: no waiting would help.
    pub fn check(&self, bytes: u64) -> Result<(), Error> {
        let limit = self.0.max_bytes;
        if bytes <= limit {
            return Ok(());
        }
        let message =
            format!("this request needs {bytes} bytes of payload memory, the budget (admission.memory) is {limit}");
        Err(Error::new(ErrorKind::TooLarge, message))
    }

    /// Counts `bytes` against the budget, or refuses now.
    pub fn reserve(&self, bytes: u64) -> Result<Reservation, Error> {
        self.check(bytes)?;
        self.take(bytes)?;
        Ok(Reservation { gate: self.clone(), bytes, alive: self.0.metrics.inflight_bytes(bytes) })
    }

    fn take(&self, bytes: u64) -> Result<(), Error> {
        let limit = self.0.max_bytes;
        let fits = |used: u64| used.checked_add(bytes).filter(|&sum| sum <= limit);
        match self.0.bytes.fetch_update(Ordering::AcqRel, Ordering::Acquire, fits) {
            Ok(_) => Ok(()),
            Err(used) => {
                let message =
                    format!("payload memory is spent: {used} of {limit} bytes are in use, {bytes} more were asked for");
                Err(Error::new(ErrorKind::Overloaded, message))
            }
        }
    }

    /// Bytes reserved now.
    pub fn bytes(&self) -> u64 {
        self.0.bytes.load(Ordering::Acquire)
    }
}

impl Reservation {
    /// Bytes it counts.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Counts `bytes` in all, if that is more than now, or refuses now and stays as it was.
    pub fn grow_to(&mut self, bytes: u64) -> Result<(), Error> {
        let more = bytes.saturating_sub(self.bytes);
        if more > 0 {
            self.gate.check(bytes)?;
            self.gate.take(more)?;
            self.bytes = bytes;
            self.alive.add(more as f64);
        }
        Ok(())
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.gate.0.requests.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.gate.0.bytes.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gate_refuses_when_full_and_opens_again() {
        let gate = Gate::new(2, 100, Metrics::new());
        let (one, _two) = (gate.admit().unwrap(), gate.admit().unwrap());
        assert_eq!(gate.admit().err().unwrap().kind(), ErrorKind::Overloaded);
        drop(one);
        assert!(gate.admit().is_ok());
    }

    #[test]
    fn bytes_are_counted_and_given_back() {
        let gate = Gate::new(2, 100, Metrics::new());
        let held = gate.reserve(60).unwrap();
        assert_eq!(gate.reserve(41).err().unwrap().kind(), ErrorKind::Overloaded);
        let rest = gate.reserve(40).unwrap();
        assert_eq!(gate.bytes(), 100);
        drop((held, rest));
        assert_eq!(gate.bytes(), 0);
    }

    #[test]
    fn a_reservation_grows_as_far_as_the_budget_goes() {
        let gate = Gate::new(2, 100, Metrics::new());
        let mut held = gate.reserve(10).unwrap();
        held.grow_to(60).unwrap();
        held.grow_to(30).unwrap();
        assert_eq!((held.bytes(), gate.bytes()), (60, 60));
        let _other = gate.reserve(40).unwrap();
        assert_eq!(held.grow_to(61).err().unwrap().kind(), ErrorKind::Overloaded);
        assert_eq!(held.grow_to(101).err().unwrap().kind(), ErrorKind::TooLarge);
        drop(held);
        assert_eq!(gate.bytes(), 40);
    }

    #[test]
    fn what_can_never_fit_is_not_worth_another_try() {
        let gate = Gate::new(2, 100, Metrics::new());
        assert_eq!(gate.reserve(101).err().unwrap().kind(), ErrorKind::TooLarge);
        assert_eq!(gate.reserve(u64::MAX).err().unwrap().kind(), ErrorKind::TooLarge);
    }
}
