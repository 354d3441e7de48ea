//! What one client may use, and has used. Atomics alone: a request adds tens of nanoseconds.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use super::{ANONYMOUS, Clock, Limits};
use crate::{
    error::{Error, ErrorKind, RETRY_AFTER},
    metrics::{ClientLimit, ClientSeries},
};

const SECOND: u64 = 1_000_000_000;
/// A debt is forgotten beyond this: no client is shut out for longer by one large answer.
const MOST_DEBT: u64 = 600 * SECOND;

/// One client: a named one, or an address.
pub(super) struct Account {
    pub(super) name: Arc<str>,
    pub(super) rates: Rates,
    pub(super) usage: Arc<Usage>,
    pub(super) series: Arc<ClientSeries>,
}

/// Limits as arithmetic wants them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Rates {
    limits: Limits,
    /// Nanoseconds that a request costs, and that may be spent ahead.
    request: Option<(u64, u64)>,
    /// Nanoseconds that a byte costs.
    input: Option<f64>,
    output: Option<f64>,
}

/// What has been used. It outlives a change of limits.
#[derive(Debug, Default)]
pub(super) struct Usage {
    requests: Bucket,
    input: Bucket,
    output: Bucket,
    in_flight: AtomicUsize,
}

/// A token bucket (as GCRA): the time at which it is full again. Later than now is a debt.
#[derive(Debug, Default)]
struct Bucket(AtomicU64);

/// One request that was let in. Dropping it ends the request.
#[must_use = "dropping the visit ends the request"]
pub struct Visit {
    account: Arc<Account>,
    clock: Clock,
}

// === impl Account ===

impl Account {
    /// Lets one request in, or names the limit that it meets.
    pub(super) fn enter(self: Arc<Self>, clock: Clock) -> Result<Visit, Error> {
        let now = clock.now();
        let most = self.rates.limits.in_flight.unwrap_or(usize::MAX);
        let enter = |n: usize| (n < most).then_some(n + 1);
        if self.usage.in_flight.fetch_update(Ordering::AcqRel, Ordering::Acquire, enter).is_err() {
            return Err(self.refused(ClientLimit::InFlight, RETRY_AFTER));
        }
        // From here on a refusal gives the place back.
        let visit = Visit { account: self, clock };
        let Account { rates, usage, .. } = &*visit.account;
        let refused = |limit, wait: u64| Err(visit.account.refused(limit, Duration::from_nanos(wait)));
        if let Some(wait) = rates.input.and_then(|_| usage.input.owes(SECOND, now)) {
            return refused(ClientLimit::Input, wait);
        }
        if let Some(wait) = rates.output.and_then(|_| usage.output.owes(SECOND, now)) {
            return refused(ClientLimit::Output, wait);
        }
        if let Some(wait) = rates.request.and_then(|(cost, ahead)| usage.requests.take(cost, ahead, now).err()) {
            return refused(ClientLimit::Requests, wait);
        }
        visit.account.series.requests.increment(1);
        Ok(visit)
    }

    fn refused(&self, limit: ClientLimit, wait: Duration) -> Error {
        self.series.refused(limit);
        let limits = &self.rates.limits;
        let said = match limit {
            ClientLimit::Requests => limits.requests_per_second.map(|rate| rate.to_string()),
            ClientLimit::Input => limits.input_per_second.map(|bytes| bytes.to_string()),
            ClientLimit::Output => limits.output_per_second.map(|bytes| bytes.to_string()),
            ClientLimit::InFlight => limits.in_flight.map(|most| most.to_string()),
        };
        let (key, said) = (limit.key(), said.unwrap_or_default());
        let who = if &*self.name == ANONYMOUS { "this address" } else { &*self.name };
        let message = format!("{key} = {said} is used up by {who}: try again in {:.1}s", wait.as_secs_f64().max(0.1));
        Error::new(ErrorKind::ClientLimit, message).after(wait)
    }

    /// Whether nobody would miss it: nothing is in progress, and nothing is owed.
    pub(super) fn is_quiet(&self, clock: Clock) -> bool {
        let Usage { requests, input, output, in_flight } = &*self.usage;
        let now = clock.now();
        in_flight.load(Ordering::Acquire) == 0
            && [requests, input, output].iter().all(|bucket| bucket.owes(0, now).is_none())
    }
}

// === impl Rates ===

impl Rates {
    pub(super) fn of(limits: Limits) -> Self {
        let request = limits.requests_per_second.map(|rate| {
            let cost = (SECOND as f64 / rate) as u64;
            let burst = limits.burst.map_or(rate.max(1.0), f64::from);
            (cost, (cost as f64 * burst) as u64)
        });
        let bytes = |size: bytesize::ByteSize| SECOND as f64 / size.as_u64() as f64;
        let (input, output) = (limits.input_per_second.map(bytes), limits.output_per_second.map(bytes));
        Self { limits, request, input, output }
    }

    pub(super) fn is_unlimited(&self) -> bool {
        self.request.is_none() && self.input.is_none() && self.output.is_none() && self.limits.in_flight.is_none()
    }
}

// === impl Bucket ===

impl Bucket {
    /// Spends `cost`, if no more than `ahead` is then owed; otherwise says how long until it could.
    fn take(&self, cost: u64, ahead: u64, now: u64) -> Result<(), u64> {
        let spend = |full_at: u64| {
            let then = full_at.max(now) + cost;
            (then - now <= ahead).then_some(then)
        };
        let taken = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, spend);
        taken.map(drop).map_err(|full_at| full_at.max(now) + cost - now - ahead)
    }

    /// Spends `cost`, whatever is then owed.
    fn spend(&self, cost: u64, now: u64) {
        let then = |full_at: u64| Some(full_at.max(now).saturating_add(cost).min(now + MOST_DEBT));
        // Always some.
        let _ = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, then);
    }

    /// How long until no more than `ahead` is owed; none if that is so now.
    fn owes(&self, ahead: u64, now: u64) -> Option<u64> {
        let debt = self.0.load(Ordering::Acquire).saturating_sub(now);
        (debt > ahead).then(|| debt - ahead)
    }
}

// === impl Visit ===

impl Visit {
    /// The client: a configured name, or `anonymous`.
    pub fn name(&self) -> &Arc<str> {
        &self.account.name
    }

    /// So many bytes of input have come.
    pub fn received(&self, bytes: u64) {
        self.account.series.input.increment(bytes);
        self.spend(&self.account.usage.input, self.account.rates.input, bytes);
    }

    /// So many bytes of the answer have been handed over.
    pub fn sent(&self, bytes: u64) {
        self.account.series.output.increment(bytes);
        self.spend(&self.account.usage.output, self.account.rates.output, bytes);
    }

    fn spend(&self, bucket: &Bucket, rate: Option<f64>, bytes: u64) {
        if let Some(cost) = rate {
            bucket.spend((bytes as f64 * cost) as u64, self.clock.now());
        }
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        self.account.usage.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}
