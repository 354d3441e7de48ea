//! One endpoint: where it is, who may see which token there, its turns, its breaker, its retry budget.

use std::{sync::Arc, time::Duration};

use reqwest::Url;
use tokio::time::Instant;

use super::{
    Config, KEY_QUEUE, NAME,
    breaker::{Breaker, Change, Health, Pass, Refusal},
    failure::{Code, Failure},
    retry::Budget,
    token::Trust,
};
use crate::{
    backend::line::{Line, Turn},
    error::Error,
    metrics::Metrics,
};

/// One endpoint. Models that name the same URL share it.
pub(super) struct Endpoint {
    url: Url,
    /// Host and, where it is not the scheme's own, port: metric label and name in messages.
    label: Arc<str>,
    trust: Trust,
    line: Line,
    breaker: Breaker,
    budget: Budget,
    metrics: Metrics,
}

/// Leave for one attempt, counted however it ends.
pub(super) struct Entry<'a> {
    endpoint: &'a Endpoint,
    pass: Option<Pass<'a>>,
    code: Code,
}

/// Why text is no endpoint.
#[derive(Debug, thiserror::Error)]
pub enum UrlError {
    /// No URL at all.
    #[error("not a URL: {0}")]
    Unreadable(String),
    /// Another protocol, or nobody to ask.
    #[error("wanted http:// or https:// with a host")]
    Scheme,
    /// A user or a password in it, which logs would show.
    #[error("a URL bears no user and no password; upstream.token_file holds a token")]
    Credentials,
}

/// Judges text that is to be the URL of an endpoint.
pub fn check_url(text: &str) -> Result<(), UrlError> {
    parse(text).map(drop)
}

fn parse(text: &str) -> Result<Url, UrlError> {
    let mut url = Url::parse(text).map_err(|error| UrlError::Unreadable(error.to_string()))?;
    url.set_fragment(None);
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err(UrlError::Scheme);
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(UrlError::Credentials);
    }
    Ok(url)
}

impl Endpoint {
    /// The endpoint at `text`.
    pub(super) fn new(text: &str, config: &Config, metrics: &Metrics) -> Result<Self, UrlError> {
        let url = parse(text)?;
        let host = url.host_str().unwrap_or_default();
        let label: Arc<str> = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}")).into();
        metrics.upstream_known(&label);
        Ok(Self {
            trust: Trust::of(&url),
            line: Line::new(NAME, KEY_QUEUE, config.concurrency, config.queue, metrics.clone()),
            breaker: Breaker::new(config.breaker, label.clone(), metrics.clone()),
            budget: Budget::new(config.retry_budget, Instant::now()),
            metrics: metrics.clone(),
            url,
            label,
        })
    }

    /// Its name for people.
    pub(super) fn label(&self) -> &str {
        &self.label
    }

    /// Whether it is this URL.
    pub(super) fn is_at(&self, text: &str) -> bool {
        parse(text).is_ok_and(|url| url == self.url)
    }

    /// Which tokens it may see.
    pub(super) const fn trust(&self) -> Trust {
        self.trust
    }

    /// Its URL with parameters behind those it has.
    pub(super) fn target(&self, query: &str) -> Url {
        let mut url = self.url.clone();
        let own = self.url.query().filter(|own| !own.is_empty());
        let joined = match own {
            Some(own) if !query.is_empty() => format!("{own}&{query}"),
            Some(own) => own.to_owned(),
            None => query.to_owned(),
        };
        url.set_query(Some(joined.as_str()).filter(|joined| !joined.is_empty()));
        url
    }

    /// Jobs that have a turn, or wait for one.
    pub(super) fn load(&self) -> usize {
        self.line.load()
    }

    /// Jobs that wait for a turn.
    pub(super) fn waiting(&self) -> usize {
        self.line.waiting()
    }

    /// Waits for a turn, or refuses at once with `Overloaded`; tells how long it took. Cancel-safe.
    pub(super) async fn turn(&self) -> Result<(Turn, Duration), Error> {
        let began = Instant::now();
        let turn = self.line.turn().await?;
        let waited = began.elapsed();
        self.metrics.backend_queue_wait(NAME, waited);
        Ok((turn, waited))
    }

    /// Whether its circuit would let a request pass.
    pub(super) fn admits(&self, now: Instant) -> bool {
        self.breaker.admits(now)
    }

    /// Why its circuit is not closed; none if it is.
    pub(super) fn refusal(&self) -> Option<Refusal> {
        self.breaker.refusal()
    }

    /// Leave for one attempt, if the circuit gives it.
    pub(super) fn enter(&self) -> Option<Entry<'_>> {
        let pass = self.breaker.enter(Instant::now())?;
        Some(Entry { endpoint: self, pass: Some(pass), code: Code::Cancelled })
    }

    /// It has not come to answer in all the time that it was given: the one failure that no single attempt shows. Says
    /// whether that opened the circuit.
    pub(super) fn condemn(&self, why: &str) -> bool {
        self.breaker.enter(Instant::now()).is_some_and(|pass| self.settle(pass, Health::Bad, why))
    }

    fn settle(&self, pass: Pass<'_>, health: Health, why: &str) -> bool {
        let upstream = self.label();
        match pass.settle(health, Instant::now(), why) {
            Change::None => false,
            Change::Opened(time) => {
                let again_in = humantime::format_duration(time);
                tracing::warn!(upstream, why, %again_in, "the circuit to an upstream endpoint opens");
                true
            }
            Change::Closed => {
                tracing::info!(upstream, "the circuit to an upstream endpoint is closed again");
                true
            }
        }
    }

    /// A job comes here first: its retries are paid from that.
    pub(super) fn deposit(&self) {
        self.budget.deposit(Instant::now());
    }

    /// Whether it may be sent a retry.
    pub(super) fn withdraw(&self) -> bool {
        self.budget.withdraw(Instant::now())
    }

    /// Counts a retry that comes here because of `reason`, or one that does not.
    pub(super) fn count_retry(&self, reason: &'static str) {
        self.metrics.upstream_retry(&self.label, reason);
    }
}

impl Entry<'_> {
    /// The attempt ended. Says whether that opened or closed the circuit.
    pub(super) fn end(mut self, result: Result<(), &Failure>) -> bool {
        let (code, why) = match result {
            Ok(()) => (Code::Ok, ""),
            Err(failure) => (failure.code, failure.error.message()),
        };
        self.code = code;
        self.pass.take().is_some_and(|pass| self.endpoint.settle(pass, code.health(), why))
    }
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        self.endpoint.metrics.upstream_attempt(&self.endpoint.label, self.code.label());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(url: &str) -> Result<Endpoint, UrlError> {
        Endpoint::new(url, &Config::default(), &Metrics::new())
    }

    #[test]
    fn parameters_are_appended_to_path_and_query() {
        for (base, want) in [
            ("https://vae.example", "https://vae.example/?a=1&b=2"),
            ("https://vae.example/", "https://vae.example/?a=1&b=2"),
            ("http://127.0.0.1:9/v1/decode?key=x%20y", "http://127.0.0.1:9/v1/decode?key=x%20y&a=1&b=2"),
            ("https://vae.example/predict?#top", "https://vae.example/predict?a=1&b=2"),
        ] {
            assert_eq!(endpoint(base).unwrap().target("a=1&b=2").as_str(), want);
        }
        assert_eq!(endpoint("https://vae.example").unwrap().target("").as_str(), "https://vae.example/");
    }

    #[test]
    fn a_label_is_host_and_port() {
        assert_eq!(endpoint("https://vae.example:443/x").unwrap().label(), "vae.example");
        assert_eq!(endpoint("http://[::1]:8080").unwrap().label(), "[::1]:8080");
    }

    #[test]
    fn what_is_no_endpoint_is_refused() {
        assert!(matches!(endpoint("vae.example").err(), Some(UrlError::Unreadable(_))));
        assert!(matches!(endpoint("ftp://vae.example").err(), Some(UrlError::Scheme)));
        assert!(matches!(endpoint("https://me:secret@vae.example").err(), Some(UrlError::Credentials)));
    }

    #[test]
    fn an_attempt_is_counted_however_it_ends() {
        let metrics = Metrics::new();
        let endpoint = Endpoint::new("https://vae.example", &Config::default(), &metrics).unwrap();
        let sample =
            |code: &str| format!(r#"latentgate_upstream_attempts_total{{upstream="vae.example",code="{code}"}} 1"#);
        assert!(!endpoint.enter().unwrap().end(Ok(())));
        drop(endpoint.enter());
        let failure = Failure::status("vae.example", 500, None, None);
        assert!(!endpoint.enter().unwrap().end(Err(&failure)));
        let text = metrics.render();
        for code in ["ok", "cancelled", "5xx"] {
            assert!(text.contains(&sample(code)), "{text}");
        }
    }
}
