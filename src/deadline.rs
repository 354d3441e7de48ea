//! Remaining time. A deadline is made once, where a request or a flight begins, and only asked afterwards.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    task::Poll,
    time::Duration,
};

use tokio::time::{Instant, error::Elapsed, timeout_at};

use crate::error::{Error, ErrorKind};

/// A point in time after which nobody wants the answer. Runs on tokio's clock, which tests can pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(Instant);

impl Deadline {
    /// `wished` from now, but no later than `limit` from now.
    pub fn within(now: Instant, wished: Option<Duration>, limit: Duration) -> Self {
        Self(now + wished.unwrap_or(limit).min(limit))
    }

    /// Time left; zero when it has passed.
    pub fn remaining(self, now: Instant) -> Duration {
        self.0.saturating_duration_since(now)
    }

    /// Whether it has passed.
    pub fn has_passed(self, now: Instant) -> bool {
        self.0 <= now
    }

    /// Runs `work` until it ends or the deadline passes. `doing` completes "the deadline passed while ...".
    /// As cancel-safe as `work` is: it is dropped at the deadline.
    pub async fn bound<T>(self, doing: &'static str, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        // tokio's timeout gives work one chance even when it is too late; a deadline in the past has none to give.
        if self.has_passed(Instant::now()) {
            return Err(Self::passed(doing));
        }
        until(self.0, work).await.unwrap_or_else(|_| Err(Self::passed(doing)))
    }

    /// The error of a deadline that passed while `doing`.
    pub fn passed(doing: &'static str) -> Error {
        Error::new(ErrorKind::DeadlineExceeded, format!("the deadline passed while {doing}"))
    }
}

/// What `work` comes to, if it ends by `limit`. Work that is done already, as most of a hit is, costs no timer. As
/// cancel-safe as `work` is.
pub async fn until<T>(limit: Instant, work: impl Future<Output = T>) -> Result<T, Elapsed> {
    let mut work = pin!(work);
    if let Poll::Ready(done) = poll_fn(|cx| Poll::Ready(work.as_mut().poll(cx))).await {
        return Ok(done);
    }
    timeout_at(limit, work).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_nearer_of_wish_and_limit_counts() {
        let now = Instant::now();
        let (second, minute) = (Duration::from_secs(1), Duration::from_mins(1));
        assert_eq!(Deadline::within(now, Some(minute), second).remaining(now), second);
        assert_eq!(Deadline::within(now, Some(second), minute).remaining(now), second);
        assert_eq!(Deadline::within(now, None, minute).remaining(now), minute);
    }

    #[tokio::test(start_paused = true)]
    async fn work_that_is_done_already_is_too_late_for_a_deadline_in_the_past() {
        let past = Deadline::within(Instant::now(), Some(Duration::ZERO), Duration::from_secs(1));
        assert!(past.bound("testing", std::future::ready(Ok(()))).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn work_that_outlasts_it_is_dropped_with_an_error_that_says_when() {
        let deadline = Deadline::within(Instant::now(), None, Duration::from_secs(1));
        let error =
            deadline.bound("waiting for the engine", std::future::pending::<Result<(), _>>()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
        assert_eq!(error.message(), "the deadline passed while waiting for the engine");
    }
}
