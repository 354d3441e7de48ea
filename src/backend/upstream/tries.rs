//! What becomes of one job after each failed attempt: another one, after a wait, or none. Pure: time, chance and what the
//! endpoints say are arguments.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    Config,
    failure::{Code, Failure, Next},
};
use crate::backend::Others;

/// The longest wait for a busy endpoint that is worth more than asking another backend.
const PATIENCE: Duration = Duration::from_secs(1);

/// The longest wait for a busy endpoint: whoever is told to wait for longer does so better at the client's.
const LONGEST_BUSY: Duration = Duration::from_mins(1);

/// The shortest wait for a busy or a starting endpoint, whatever it asks for and however chance falls: looks are not
/// counted among the retries, so nothing else keeps them from becoming a loop.
const SHORTEST: Duration = Duration::from_millis(100);

/// The attempts of one job.
#[derive(Default)]
pub(super) struct Tries {
    /// Failures that another attempt may mend.
    failures: u32,
    /// Looks at an endpoint that is starting.
    looks: u32,
    /// Since when it is waited for.
    starting_since: Option<Instant>,
    has_new_token: bool,
    /// Whether an idle connection was closed under it.
    has_lost: bool,
}

/// What is known when an attempt has failed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts {
    /// What the failure says of the next attempt.
    pub(super) next: Next,
    /// Whether the next endpoint is one that has not failed this job.
    pub(super) is_fresh: bool,
    /// Whether there is another token by now.
    pub(super) has_new_token: bool,
    /// Who is asked if this backend fails.
    pub(super) others: Others,
    /// The time of the failure.
    pub(super) now: Instant,
    /// Chance, in 0..1.
    pub(super) jitter: f64,
}

/// Another attempt, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// After a wait, if the budget of the endpoint has room for a retry.
    Retry(Duration),
    /// After a wait, whatever the budget says: it is no retry of something that failed.
    Again(Duration),
    /// None.
    Stop(NotSent),
}

/// Why there is no other attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotSent {
    /// It would fail the same way.
    Use,
    /// The wait would be too long.
    Time,
    /// The endpoint has had all the time that a start may take.
    Start,
    /// There were as many as are configured.
    Attempts,
    /// The endpoint had its share of retries.
    Budget,
    /// No circuit lets it pass.
    Circuit,
}

impl NotSent {
    /// Metric label; none where nobody would have expected another attempt.
    pub(super) const fn label(self) -> Option<&'static str> {
        match self {
            Self::Use => None,
            Self::Time | Self::Start => Some("no_time"),
            Self::Attempts => Some("no_attempts"),
            Self::Budget => Some("no_budget"),
            Self::Circuit => Some("no_circuit"),
        }
    }
}

impl Tries {
    /// Whether the job is waiting for an endpoint to start.
    pub(super) const fn is_starting(&self) -> bool {
        self.starting_since.is_some()
    }

    /// The failure, for what it is to this job: an idle connection is closed under it once; what breaks again is broken.
    pub(super) fn weigh(&mut self, failure: Failure) -> Failure {
        let is_closed = failure.code == Code::Closed;
        if is_closed && std::mem::replace(&mut self.has_lost, true) { failure.into_cut() } else { failure }
    }

    /// What becomes of the job.
    pub(super) fn judge(&mut self, config: &Config, facts: Facts) -> Verdict {
        match facts.next {
            Next::AtOnce => Verdict::Again(Duration::ZERO),
            Next::Token if facts.has_new_token && !self.has_new_token => {
                self.has_new_token = true;
                Verdict::Again(Duration::ZERO)
            }
            Next::Token | Next::Elsewhere if facts.is_fresh => self.retry(config, facts),
            Next::Never | Next::Token | Next::Elsewhere => Verdict::Stop(NotSent::Use),
            Next::Starting(_) if facts.is_fresh => Verdict::Again(Duration::ZERO),
            Next::Starting(_) if facts.others == Others::Follow => Verdict::Stop(NotSent::Time),
            Next::Starting(asked) => self.look_again(config, asked, facts),
            Next::Retry => self.retry(config, facts),
            Next::Later(asked) => {
                let verdict = self.retry(config, facts);
                if facts.is_fresh { verdict } else { verdict.not_before(asked.unwrap_or_default(), facts.others) }
            }
        }
    }

    fn look_again(&mut self, config: &Config, asked: Option<Duration>, facts: Facts) -> Verdict {
        let since = *self.starting_since.get_or_insert(facts.now);
        self.looks += 1;
        let backoff = config.backoff.wait(self.looks, facts.jitter);
        let wait = asked.unwrap_or_default().max(backoff).max(SHORTEST);
        let left = config.cold_start_time.saturating_sub(facts.now.saturating_duration_since(since));
        if wait < left { Verdict::Again(wait) } else { Verdict::Stop(NotSent::Start) }
    }

    fn retry(&mut self, config: &Config, facts: Facts) -> Verdict {
        if self.failures == config.retries {
            return Verdict::Stop(NotSent::Attempts);
        }
        self.failures += 1;
        let backoff = config.backoff.wait(self.failures, facts.jitter);
        Verdict::Retry(if facts.is_fresh { Duration::ZERO } else { backoff })
    }
}

impl Verdict {
    /// The same, with a wait that a busy endpoint asks for; none if nobody wants to wait for so long.
    fn not_before(self, asked: Duration, others: Others) -> Self {
        let Self::Retry(backoff) = self else { return self };
        let wait = asked.max(backoff).max(SHORTEST);
        let longest = if others == Others::Follow { PATIENCE } else { LONGEST_BUSY };
        if wait <= longest { Self::Retry(wait) } else { Self::Stop(NotSent::Time) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn facts(next: Next) -> Facts {
        Facts { next, is_fresh: false, has_new_token: false, others: Others::None, now: Instant::now(), jitter: 1.0 }
    }

    fn judge(tries: &mut Tries, facts: Facts) -> Verdict {
        tries.judge(&Config::default(), facts)
    }

    #[tokio::test(start_paused = true)]
    async fn failures_are_retried_after_doubling_waits_and_so_often() {
        let mut tries = Tries::default();
        for millis in [100, 200, 400] {
            assert_eq!(judge(&mut tries, facts(Next::Retry)), Verdict::Retry(Duration::from_millis(millis)));
        }
        assert_eq!(judge(&mut tries, facts(Next::Retry)), Verdict::Stop(NotSent::Attempts));
        let fresh = Facts { is_fresh: true, ..facts(Next::Retry) };
        assert_eq!(judge(&mut Tries::default(), fresh), Verdict::Retry(Duration::ZERO));
        assert_eq!(judge(&mut Tries::default(), facts(Next::Never)), Verdict::Stop(NotSent::Use));
    }

    #[tokio::test(start_paused = true)]
    async fn an_endpoints_own_fault_is_retried_at_another_one_only() {
        for next in [Next::Elsewhere, Next::Token] {
            let mut tries = Tries::default();
            let fresh = Facts { is_fresh: true, ..facts(next) };
            for _ in 0..3 {
                assert_eq!(judge(&mut tries, fresh), Verdict::Retry(Duration::ZERO));
            }
            assert_eq!(judge(&mut tries, fresh), Verdict::Stop(NotSent::Attempts));
            assert_eq!(judge(&mut Tries::default(), facts(next)), Verdict::Stop(NotSent::Use));
        }
        let fresh = Facts { is_fresh: true, ..facts(Next::Never) };
        assert_eq!(judge(&mut Tries::default(), fresh), Verdict::Stop(NotSent::Use));
    }

    #[tokio::test(start_paused = true)]
    async fn a_busy_endpoint_is_waited_for_unless_another_backend_follows() {
        let later = |seconds| facts(Next::Later(Some(seconds * SECOND)));
        assert_eq!(judge(&mut Tries::default(), later(7)), Verdict::Retry(7 * SECOND));
        assert_eq!(judge(&mut Tries::default(), later(61)), Verdict::Stop(NotSent::Time));
        let follow = |seconds| Facts { others: Others::Follow, ..later(seconds) };
        assert_eq!(judge(&mut Tries::default(), follow(1)), Verdict::Retry(SECOND));
        assert_eq!(judge(&mut Tries::default(), follow(2)), Verdict::Stop(NotSent::Time));
        let fresh = Facts { is_fresh: true, ..follow(2) };
        assert_eq!(judge(&mut Tries::default(), fresh), Verdict::Retry(Duration::ZERO));
        let unsaid = judge(&mut Tries::default(), facts(Next::Later(None)));
        assert_eq!(unsaid, Verdict::Retry(Duration::from_millis(100)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_starting_endpoint_is_waited_for_outside_the_count_and_up_to_its_time() {
        let mut tries = Tries::default();
        let began = Instant::now();
        let (mut now, mut looks) = (began, 0);
        while let Verdict::Again(wait) = judge(&mut tries, Facts { now, ..facts(Next::Starting(None)) }) {
            assert!(wait <= 5 * SECOND && tries.is_starting());
            now += wait;
            looks += 1;
        }
        assert!(looks > 50 && now - began > 290 * SECOND && now - began < 300 * SECOND, "{looks}");
        // The attempts that a failure has are all left.
        assert_eq!(judge(&mut tries, facts(Next::Retry)), Verdict::Retry(Duration::from_millis(100)));
        let asked = facts(Next::Starting(Some(20 * SECOND)));
        assert_eq!(judge(&mut Tries::default(), asked), Verdict::Again(20 * SECOND));
        let follow = Facts { others: Others::Follow, ..asked };
        assert_eq!(judge(&mut Tries::default(), follow), Verdict::Stop(NotSent::Time));
        let never = Config { cold_start_time: Duration::ZERO, ..Config::default() };
        assert_eq!(Tries::default().judge(&never, facts(Next::Starting(None))), Verdict::Stop(NotSent::Start));
    }

    #[tokio::test(start_paused = true)]
    async fn looks_are_bounded_whatever_the_endpoint_asks_for() {
        for (asked, jitter) in [(Some(Duration::ZERO), 1.0), (Some(Duration::ZERO), 0.0), (None, 0.0)] {
            let mut tries = Tries::default();
            let (began, mut looks) = (Instant::now(), 0);
            while began.elapsed() < 10 * SECOND {
                let now = Instant::now();
                let verdict = judge(&mut tries, Facts { now, jitter, ..facts(Next::Starting(asked)) });
                let Verdict::Again(wait) = verdict else { panic!("{verdict:?}") };
                tokio::time::sleep(wait).await;
                looks += 1;
            }
            assert!(looks <= 100, "{looks}");
            let busy = judge(&mut Tries::default(), Facts { jitter, ..facts(Next::Later(asked)) });
            assert_eq!(busy, Verdict::Retry(SHORTEST));
        }
        // One that asks for less than the doubling waits gets those.
        let (mut tries, now) = (Tries::default(), facts(Next::Starting(Some(Duration::ZERO))));
        let waits = [(); 3].map(|()| judge(&mut tries, now));
        assert_eq!(waits, [100, 200, 400].map(|millis| Verdict::Again(Duration::from_millis(millis))));
    }

    #[tokio::test(start_paused = true)]
    async fn another_token_gives_one_more_attempt() {
        let mut tries = Tries::default();
        assert_eq!(judge(&mut tries, facts(Next::Token)), Verdict::Stop(NotSent::Use));
        let new = Facts { has_new_token: true, ..facts(Next::Token) };
        assert_eq!(judge(&mut tries, new), Verdict::Again(Duration::ZERO));
        assert_eq!(judge(&mut tries, new), Verdict::Stop(NotSent::Use));
    }
}
