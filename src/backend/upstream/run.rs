//! One job from its turn to its answer: choose an endpoint, wait for a turn, attempt, and again where that is of use.
//!
//! A job keeps its turn while it waits to ask the same endpoint again, so that no more jobs than have turns look at an
//! endpoint that is busy or starting; it gives it back when it goes elsewhere. The request's body lives as long as the
//! turn: a job in a line holds nothing but its input, and one that goes elsewhere makes its body anew. Nothing here is spawned and nothing
//! outlives the future: dropped at any point, the job leaves the line, the connection and the breaker's probe behind.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};
use tracing::{Instrument as _, field::Empty};

use super::{
    Shared,
    attempt::Attempt,
    choice::{Failed, Group},
    deliver::Delivery,
    endpoint::Entry,
    failure::{Failure, Next},
    plan::Plan,
    token::Secret,
    tries::{Facts, NotSent, Tries, Verdict},
};
use crate::{
    backend::{Others, line::Turn},
    error::Error,
    job::Job,
    task,
    trace::TraceContext,
};

/// One job.
pub(super) struct Run<'a> {
    pub(super) shared: &'a Shared,
    pub(super) group: &'a Group,
    pub(super) job: &'a Arc<Job>,
    pub(super) others: Others,
    /// The value of `Via`.
    pub(super) via: &'a str,
    /// The span that the job's request was sent from.
    pub(super) trace: Option<&'a TraceContext>,
}

/// A turn at the endpoint of a number, and what is sent there.
struct Seat {
    number: usize,
    plan: Plan,
    _turn: Turn,
}

/// What is remembered between attempts.
#[derive(Default)]
struct Past {
    tries: Tries,
    failed: Failed,
    seat: Option<Seat>,
    /// Where the next attempt is to go, if its circuit still lets it pass.
    target: Option<usize>,
    last: Option<Error>,
}

impl<'a> Run<'a> {
    /// Until the answer is delivered, or no attempt is of use any more.
    pub(super) async fn complete(&self, delivery: &mut Delivery<'_>) -> Result<(), Error> {
        let mut past = Past::default();
        loop {
            let (seat, entry) = self.enter(&mut past, delivery).await?;
            let endpoint = self.group.get(seat.number);
            let token = self.shared.tokens.of(endpoint.trust());
            let result = self.attempt(&seat, token.as_ref(), delivery).await;
            let result = result.map_err(|failure| past.tries.weigh(failure));
            if entry.end(result.as_ref().map(|&()| ())) {
                self.shared.board.refresh();
            }
            let Err(failure) = result else { return Ok(()) };
            let (upstream, code, error) = (endpoint.label(), failure.code.label(), &failure.error);
            tracing::debug!(upstream, code, error = crate::error::chain(error), "an attempt failed");
            if delivery.is_published() {
                return Err(failure.error);
            }
            let wait = self.next(&mut past, seat, failure, token.as_ref()).await?;
            sleep(wait).await;
        }
    }

    /// A turn at an endpoint, and its leave for one attempt.
    async fn enter(&self, past: &mut Past, delivery: &mut Delivery<'_>) -> Result<(Seat, Entry<'a>), Error> {
        loop {
            let now = Instant::now();
            let target = past.target.take().filter(|&number| self.group.get(number).admits(now));
            let Some(number) = target.or_else(|| self.group.choose(&past.failed, now)) else {
                return Err(past.last.take().unwrap_or_else(|| self.group.refusal()));
            };
            let endpoint = self.group.get(number);
            // One at another endpoint is given back before the wait.
            let seat = match past.seat.take().filter(|seat| seat.number == number) {
                Some(seat) => seat,
                None => self.sit(number, delivery).await?,
            };
            // The circuit may have opened during the wait.
            if let Some(entry) = endpoint.enter() {
                if past.last.is_none() {
                    endpoint.deposit();
                    self.group.take_turns();
                }
                return Ok((seat, entry));
            }
            past.seat = Some(seat);
        }
    }

    /// Waits for a turn, and then makes the request's body.
    async fn sit(&self, number: usize, delivery: &mut Delivery<'_>) -> Result<Seat, Error> {
        let turn = self.group.get(number).turn().instrument(tracing::debug_span!("queue"));
        let (turn, waited) = turn.await?;
        delivery.queued += waited;
        let job = self.job.clone();
        let plan = if Plan::is_at_hand(&job) {
            Plan::of(&job)?
        } else {
            task::blocking(move || Plan::of(&job))
                .await
                .map_err(|panic| Error::internal("preparing a request panicked").caused_by(panic))??
        };
        Ok(Seat { number, plan, _turn: turn })
    }

    async fn attempt(&self, seat: &Seat, token: Option<&Secret>, delivery: &mut Delivery<'_>) -> Result<(), Failure> {
        let (client, config) = (&self.shared.client, &self.shared.config);
        let (endpoint, plan) = (self.group.get(seat.number), &seat.plan);
        let attempt = Attempt { client, config, endpoint, plan, token, via: self.via, trace: self.trace };
        let span = tracing::debug_span!("attempt", "otel.kind" = "client", upstream = endpoint.label(), code = Empty);
        let exchange = async { delivery.take(attempt.send().await?).await };
        let result = exchange.instrument(span.clone()).await;
        span.record("code", result.as_ref().map_or_else(|failure| failure.code.label(), |()| "ok"));
        result
    }

    /// After a failure: how long to wait before the next attempt, or the error that the job ends with.
    async fn next(
        &self,
        past: &mut Past,
        seat: Seat,
        failure: Failure,
        token: Option<&Secret>,
    ) -> Result<Duration, Error> {
        let Failure { code, next, error } = failure;
        let number = seat.number;
        let has_new_token = next == Next::Token && self.shared.tokens.reread(token).await;
        match next {
            Next::AtOnce => {}
            _ if has_new_token => {}
            Next::Token | Next::Elsewhere => past.failed.add_hopeless(number),
            _ => past.failed.add(number),
        }
        let now = Instant::now();
        let stays = has_new_token || next == Next::AtOnce;
        let stay = (stays && self.group.get(number).admits(now)).then_some(number);
        let target = stay.or_else(|| self.group.choose(&past.failed, now));
        let is_fresh = target.is_some_and(|target| target != number && !past.failed.has(target));
        let facts = Facts { next, is_fresh, has_new_token, others: self.others, now, jitter: fastrand::f64() };
        let was_starting = past.tries.is_starting();
        let verdict = past.tries.judge(&self.shared.config, facts);
        if past.tries.is_starting() && !was_starting {
            let upstream = self.group.get(number).label();
            tracing::info!(upstream, "an upstream endpoint is not running; waiting for it to start");
        }
        let (wait, is_retry) = match verdict {
            Verdict::Stop(reason) => return Err(self.stop(number, reason, error)),
            Verdict::Retry(wait) => (wait, true),
            Verdict::Again(wait) => (wait, false),
        };
        let Some(target) = target else { return Err(self.stop(number, NotSent::Circuit, error)) };
        let endpoint = self.group.get(target);
        if is_retry && !endpoint.withdraw() {
            return Err(self.stop(target, NotSent::Budget, error));
        }
        endpoint.count_retry(code.label());
        past.seat = (target == number).then_some(seat);
        (past.target, past.last) = (Some(target), Some(error));
        Ok(wait)
    }

    fn stop(&self, number: usize, reason: NotSent, error: Error) -> Error {
        let endpoint = self.group.get(number);
        if let Some(label) = reason.label() {
            endpoint.count_retry(label);
        }
        if reason == NotSent::Start && endpoint.condemn(error.message()) {
            self.shared.board.refresh();
        }
        error
    }
}
