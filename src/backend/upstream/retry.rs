//! When another attempt is made, and how long is waited before it.
//!
//! A largest number of attempts bounds one job, but not the load on an endpoint: with three retries, an endpoint that
//! begins to fail under its load gets four times that load, just then. So retries draw on a [`Budget`] besides, in the
//! manner of tower's: within ten seconds an endpoint gets a share of its requests as retries (a fifth), so that the load
//! of a failing one grows by that fifth at most, plus a fixed few, without which a proxy with one request a minute
//! could never retry. The endpoint that would receive the retry pays, since it is the one to be spared.
//!
//! Waits double and are drawn at random from zero up ("full jitter"): clients that failed together must not come back
//! together. What the endpoint itself says in `Retry-After` goes before that.

use std::time::{Duration, SystemTime};

use http::HeaderMap;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{BackoffConfig, BudgetConfig};

/// Seconds that a budget looks back.
const WINDOW: usize = 10;

/// No `Retry-After` is taken for longer.
const MAX_RETRY_AFTER: Duration = Duration::from_hours(24);

/// The retries that one endpoint may get.
pub(super) struct Budget {
    config: BudgetConfig,
    window: Mutex<Window>,
}

/// Counts of the last seconds, one place a second.
struct Window {
    began: Instant,
    /// The second, since `began`, that is being counted.
    second: u64,
    requests: [u32; WINDOW],
    retries: [u32; WINDOW],
}

impl Budget {
    /// A fresh one.
    pub(super) fn new(config: BudgetConfig, now: Instant) -> Self {
        let window = Window { began: now, second: 0, requests: [0; WINDOW], retries: [0; WINDOW] };
        Self { config, window: Mutex::new(window) }
    }

    /// A request came: it pays in.
    pub(super) fn deposit(&self, now: Instant) {
        let mut window = self.window.lock();
        let place = window.turn_to(now);
        window.requests[place] = window.requests[place].saturating_add(1);
    }

    /// Takes a retry out, if there is one.
    pub(super) fn withdraw(&self, now: Instant) -> bool {
        let mut window = self.window.lock();
        let place = window.turn_to(now);
        let sum = |counts: &[u32; WINDOW]| counts.iter().map(|&n| f64::from(n)).sum::<f64>();
        let allowed = f64::from(self.config.floor) + self.config.ratio * sum(&window.requests);
        let is_there = sum(&window.retries) + 1.0 <= allowed;
        window.retries[place] += u32::from(is_there);
        is_there
    }
}

impl Window {
    /// Forgets what is too long ago, and returns the place of now.
    fn turn_to(&mut self, now: Instant) -> usize {
        let second = now.saturating_duration_since(self.began).as_secs().max(self.second);
        for passed in (self.second + 1..=second).rev().take(WINDOW) {
            let place = (passed % WINDOW as u64) as usize;
            (self.requests[place], self.retries[place]) = (0, 0);
        }
        self.second = second;
        (second % WINDOW as u64) as usize
    }
}

impl BackoffConfig {
    /// The wait after `failures` failures in a row, at least one; `jitter` is in 0..1.
    pub(super) fn wait(&self, failures: u32, jitter: f64) -> Duration {
        let doubled = self.base.saturating_mul(1 << failures.saturating_sub(1).min(31));
        doubled.min(self.cap).mul_f64(jitter.clamp(0.0, 1.0))
    }
}

/// What `Retry-After` says: seconds, or the date at which to come back. None if it is absent or neither.
pub(super) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(http::header::RETRY_AFTER)?.to_str().ok()?.trim();
    let is_number = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let wait = if is_number {
        // More digits than a number has are a long time.
        text.parse().map_or(MAX_RETRY_AFTER, Duration::from_secs)
    } else {
        // A date that has passed is now.
        httpdate::parse_http_date(text).ok()?.duration_since(now).unwrap_or_default()
    };
    Some(wait.min(MAX_RETRY_AFTER))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::time::advance;

    use super::*;

    fn after(text: &str) -> Option<Duration> {
        let mut headers = HeaderMap::new();
        headers.insert(http::header::RETRY_AFTER, text.parse().unwrap());
        // Sun, 06 Nov 1994 08:49:37 GMT.
        retry_after(&headers, SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777))
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        assert_eq!(after("7"), Some(Duration::from_secs(7)));
        assert_eq!(after(" 0 "), Some(Duration::ZERO));
        assert_eq!(after("Sun, 06 Nov 1994 08:49:57 GMT"), Some(Duration::from_secs(20)));
        assert_eq!(after("Sun, 06 Nov 1994 08:00:00 GMT"), Some(Duration::ZERO));
        assert_eq!(after("Fri, 01 Jan 2100 00:00:00 GMT"), Some(MAX_RETRY_AFTER));
        assert_eq!(after("99999999999999999999999999"), Some(MAX_RETRY_AFTER));
        for nonsense in ["", "-1", "soon", "1.5"] {
            assert_eq!(after(nonsense), None, "{nonsense:?}");
        }
        assert_eq!(retry_after(&HeaderMap::new(), SystemTime::UNIX_EPOCH), None);
    }

    #[tokio::test(start_paused = true)]
    async fn retries_are_a_share_of_requests_and_a_few_besides() {
        let budget = Budget::new(BudgetConfig { ratio: 0.2, floor: 2 }, Instant::now());
        let granted = |n: usize| (0..n).filter(|_| budget.withdraw(Instant::now())).count();
        assert_eq!(granted(5), 2);
        (0..10).for_each(|_| budget.deposit(Instant::now()));
        assert_eq!(granted(5), 2);
        // What was paid in and taken out is forgotten together, ten seconds later.
        advance(Duration::from_secs(9)).await;
        assert_eq!(granted(5), 0);
        advance(Duration::from_secs(1)).await;
        assert_eq!(granted(5), 2);
        advance(Duration::from_hours(1000)).await;
        assert_eq!(granted(5), 2);
    }

    proptest! {
        #[test]
        fn waits_double_up_to_the_cap_and_jitter_reaches_down_to_zero(failures in 1u32..200, jitter in 0.0f64..1.0) {
            let backoff = BackoffConfig { base: Duration::from_millis(100), cap: Duration::from_secs(5) };
            let longest = backoff.wait(failures, 1.0);
            let doubled = Duration::from_millis(100 << (failures - 1).min(6)).min(Duration::from_secs(5));
            prop_assert_eq!(longest, doubled);
            prop_assert!(backoff.wait(failures, jitter) <= longest);
            prop_assert_eq!(backoff.wait(failures, 0.0), Duration::ZERO);
        }

        #[test]
        fn no_ten_seconds_see_more_retries_than_allowed(
            events in prop::collection::vec((0u64..2500, prop::bool::ANY), 1..300),
        ) {
            let began = Instant::now();
            let budget = Budget::new(BudgetConfig { ratio: 0.5, floor: 3 }, began);
            let (mut now, mut requests, mut retries) = (began, Vec::new(), Vec::new());
            for (millis, is_retry) in events {
                now += Duration::from_millis(millis);
                if !is_retry {
                    budget.deposit(now);
                    requests.push(now);
                } else if budget.withdraw(now) {
                    retries.push(now);
                    // Whole seconds are counted: a window reaches back at least nine of them.
                    let recent = |times: &[Instant]| times.iter().filter(|&&t| now - t < Duration::from_secs(9)).count();
                    let older = requests.iter().filter(|&&t| now - t <= Duration::from_secs(10)).count();
                    prop_assert!(recent(&retries) as f64 <= 3.0 + 0.5 * older as f64);
                }
            }
        }
    }
}
