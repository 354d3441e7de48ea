//! Settings of the upstream backend, with their defaults and what is impossible about them.

use std::{path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

use super::token::Secret;

/// More at once is no configuration but a slip.
const MAX_COUNT: usize = 1_000_000;

/// No attempt is worth waiting for longer, and clocks can add this without overflow.
const MAX_TIME: Duration = Duration::from_hours(24);

/// Settings of the upstream backend.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// How long opening a connection may take, TLS included.
    #[serde(with = "humantime_serde")]
    pub connect_time: Duration,
    /// How long one attempt may take, head and body.
    #[serde(with = "humantime_serde")]
    pub attempt_time: Duration,
    /// How long an answer may pause between two pieces of its body.
    #[serde(with = "humantime_serde")]
    pub idle_time: Duration,
    /// Attempts after the first.
    pub retries: u32,
    /// How long an endpoint that answers 503 is taken for one that is starting, and waited for. Where another backend
    /// can be asked, nobody waits.
    #[serde(with = "humantime_serde")]
    pub cold_start_time: Duration,
    /// Requests at a time, at each endpoint.
    pub concurrency: usize,
    /// Jobs that may wait for a turn, at each endpoint; more are refused with `OVERLOADED`.
    pub queue: usize,
    /// A file with the token of the endpoints. It goes to every endpoint that is https or on this machine, and is read
    /// again when an endpoint refuses it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// A PEM file with certificates of authorities to trust beside the system's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// What `HF_TOKEN` holds. It goes to https endpoints of Hugging Face only, and to none if there is a `token_file`.
    #[serde(skip)]
    pub token: Option<Secret>,
    /// The waits between attempts.
    pub backoff: BackoffConfig,
    /// The share of retries among all requests.
    pub retry_budget: BudgetConfig,
    /// When an endpoint is left alone.
    pub breaker: BreakerConfig,
}

/// Waits between attempts: a random part of a time that doubles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BackoffConfig {
    /// The longest first wait.
    #[serde(with = "humantime_serde")]
    pub base: Duration,
    /// The longest wait.
    #[serde(with = "humantime_serde")]
    pub cap: Duration,
}

/// How many retries an endpoint gets within ten seconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BudgetConfig {
    /// So many retries a request.
    pub ratio: f64,
    /// And so many besides, for proxies with little to do.
    pub floor: u32,
}

/// When the circuit to an endpoint opens, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BreakerConfig {
    /// Failures in a row that open it.
    pub failures: u32,
    /// How long it is open at first; twice as long after each probe that fails.
    #[serde(with = "humantime_serde")]
    pub open_time: Duration,
    /// The longest it is open before the next probe.
    #[serde(with = "humantime_serde")]
    pub max_open_time: Duration,
}

/// One impossible value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Dotted name below the section.
    pub key: &'static str,
    /// What it is set to.
    pub value: String,
    /// What would be right.
    pub remedy: &'static str,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            connect_time: Duration::from_secs(5),
            attempt_time: Duration::from_mins(5),
            idle_time: Duration::from_secs(30),
            retries: 3,
            cold_start_time: Duration::from_mins(5),
            concurrency: 16,
            queue: 128,
            token_file: None,
            ca_file: None,
            token: None,
            backoff: BackoffConfig::default(),
            retry_budget: BudgetConfig::default(),
            breaker: BreakerConfig::default(),
        }
    }
}

impl Default for BackoffConfig {
    fn default() -> Self {
        Self { base: Duration::from_millis(100), cap: Duration::from_secs(5) }
    }
}

impl Default for BudgetConfig {
    fn default() -> Self {
        Self { ratio: 0.2, floor: 10 }
    }
}

impl Default for BreakerConfig {
    fn default() -> Self {
        Self { failures: 5, open_time: Duration::from_secs(5), max_open_time: Duration::from_mins(1) }
    }
}

impl Config {
    /// Every value that cannot be. Files are looked at when the backend starts.
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut check = |holds: bool, key: &'static str, value: String, remedy: &'static str| {
            if !holds {
                problems.push(Problem { key, value, remedy });
            }
        };
        let (backoff, breaker) = (&self.backoff, &self.breaker);
        for (key, time) in [
            ("connect_time", self.connect_time),
            ("attempt_time", self.attempt_time),
            ("idle_time", self.idle_time),
            ("backoff.base", backoff.base),
            ("backoff.cap", backoff.cap),
            ("breaker.open_time", breaker.open_time),
            ("breaker.max_open_time", breaker.max_open_time),
        ] {
            let value = humantime::format_duration(time).to_string();
            check(!time.is_zero() && time <= MAX_TIME, key, value, "must be longer than 0s and at most 1day");
        }
        let cold = self.cold_start_time;
        let value = humantime::format_duration(cold).to_string();
        check(cold <= MAX_TIME, "cold_start_time", value, "must be at most 1day; 0s never waits");
        for (key, count) in [("concurrency", self.concurrency), ("queue", self.queue)] {
            check((1..=MAX_COUNT).contains(&count), key, count.to_string(), "must be between 1 and 1000000");
        }
        check(self.retries <= 100, "retries", self.retries.to_string(), "must be at most 100");
        check(breaker.failures > 0, "breaker.failures", "0".to_owned(), "must be at least 1");
        let ratio = self.retry_budget.ratio;
        check((0.0..=10.0).contains(&ratio), "retry_budget.ratio", ratio.to_string(), "must be between 0 and 10");
        let ordered = |key, [low, high]: [Duration; 2]| (low <= high, key, humantime::format_duration(low).to_string());
        let (holds, key, value) = ordered("backoff.base", [backoff.base, backoff.cap]);
        check(holds, key, value, "must be at most backoff.cap");
        let (holds, key, value) = ordered("breaker.open_time", [breaker.open_time, breaker.max_open_time]);
        check(holds, key, value, "must be at most breaker.max_open_time");
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_have_no_problem_and_survive_a_file() {
        let config = Config::default();
        assert_eq!(config.problems(), []);
        let text = toml::to_string_pretty(&config).unwrap();
        assert_eq!(toml::from_str::<Config>(&text).unwrap(), config);
    }

    #[test]
    fn every_impossible_value_is_named() {
        let config = Config {
            attempt_time: Duration::ZERO,
            queue: 0,
            backoff: BackoffConfig { base: Duration::from_secs(9), cap: Duration::from_secs(1) },
            retry_budget: BudgetConfig { ratio: f64::NAN, floor: 0 },
            breaker: BreakerConfig { failures: 0, ..BreakerConfig::default() },
            ..Config::default()
        };
        let keys: Vec<_> = config.problems().into_iter().map(|problem| problem.key).collect();
        assert_eq!(keys, ["attempt_time", "queue", "breaker.failures", "retry_budget.ratio", "backoff.base"]);
    }

    #[test]
    fn a_token_is_neither_shown_nor_written() {
        let config = Config { token: Some(Secret::new("hf_abc")), ..Config::default() };
        assert!(!format!("{config:?}").contains("hf_abc"));
        assert!(!toml::to_string_pretty(&config).unwrap().contains("hf_abc"));
    }
}
