//! One HTTP exchange with one endpoint: the request, the head of the reply, its body piece by piece.
//!
//! Every wait has a limit: one attempt from its first byte out to its last byte in, and the pauses within a body. A
//! status that is no success becomes a [`Failure`] with the endpoint's own words, which are short, on one line, and
//! left out should they repeat the token.

use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode, header};
use reqwest::Response;
use tokio::time::{Instant, timeout_at};
use tracing::Span;

use super::{
    Config,
    check::{Judged, WrongReply},
    endpoint::Endpoint,
    failure::Failure,
    plan::Plan,
    retry, reuse,
    token::Secret,
};
use crate::{hf, trace::TraceContext};

/// What is read of the body of a failure.
const MAX_FAILURE_BYTES: usize = 64 << 10;

/// How long the body of a failure may take: its status has said most of it.
const FAILURE_TIME: Duration = Duration::from_secs(5);

/// A used connection that breaks so soon was closed while the request was on its way; later, the request broke it.
const SOON: Duration = Duration::from_secs(1);

/// What an attempt needs.
#[derive(Clone, Copy)]
pub(super) struct Attempt<'a> {
    pub(super) client: &'a reqwest::Client,
    pub(super) config: &'a Config,
    pub(super) endpoint: &'a Endpoint,
    pub(super) plan: &'a Plan,
    pub(super) token: Option<&'a Secret>,
    /// Which latentgates the job has passed, this one last.
    pub(super) via: &'a str,
    /// The span that the job's request was sent from: named upstream where we have no span of our own.
    pub(super) trace: Option<&'a TraceContext>,
}

/// A reply whose head fits.
pub(super) struct Reply<'a> {
    attempt: Attempt<'a>,
    response: Response,
    /// What its head said.
    pub(super) judged: Judged,
    /// When the request was sent.
    pub(super) sent_at: Instant,
    until: Instant,
}

impl<'a> Attempt<'a> {
    /// Sends the request and judges the head of the reply. Cancel-safe: dropped, the connection is given up.
    pub(super) async fn send(self) -> Result<Reply<'a>, Failure> {
        let sent_at = Instant::now();
        let until = sent_at + self.config.attempt_time;
        let label = self.endpoint.label();
        let (sent, is_reused) = reuse::watch(timeout_at(until, self.request().send())).await;
        let is_lost = is_reused && sent_at.elapsed() < SOON;
        let response = sent
            .map_err(|_| Failure::timeout(label, "does not answer", self.config.attempt_time))?
            .map_err(|error| Failure::transport(label, error))
            .map_err(|failure| if is_lost { failure.into_closed() } else { failure })?;
        if !response.status().is_success() {
            return Err(self.failed(response, until).await);
        }
        // 206 and the like are no whole answer, however right what there is of it.
        if response.status() != StatusCode::OK {
            return Err(self.wrong(&WrongReply::Status(response.status().as_u16())));
        }
        let judged = self.plan.form.judge(response.headers(), response.content_length());
        let judged = judged.map_err(|wrong| self.wrong(&wrong))?;
        Ok(Reply { attempt: self, response, judged, sent_at, until })
    }

    /// A reply that is not what was asked for.
    pub(super) fn wrong(self, wrong: &WrongReply) -> Failure {
        Failure::wrong_reply(self.endpoint.label(), wrong)
    }

    fn request(self) -> reqwest::RequestBuilder {
        let plan = self.plan;
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, header::HeaderValue::from_static(plan.accept.name()));
        if let Some(content_type) = plan.content_type {
            headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
        }
        if let Some(token) = self.token.and_then(Secret::header) {
            headers.insert(header::AUTHORIZATION, token);
        }
        if let Ok(via) = header::HeaderValue::from_str(self.via) {
            headers.insert(header::VIA, via);
        }
        if let Some(trace) = TraceContext::of(&Span::current()).as_ref().or(self.trace) {
            let texts = [("traceparent", Some(trace.parent())), ("tracestate", trace.state())];
            for (name, text) in texts {
                if let Some(value) = text.and_then(|text| header::HeaderValue::try_from(text).ok()) {
                    headers.insert(name, value);
                }
            }
        }
        // The body is shared with every other attempt.
        self.client.post(self.endpoint.target(&plan.query)).headers(headers).body(plan.body.clone())
    }

    async fn failed(self, mut response: Response, until: Instant) -> Failure {
        let status = response.status().as_u16();
        let wait = retry::retry_after(response.headers(), SystemTime::now());
        let mut body = BytesMut::new();
        let read = async {
            while let Ok(Some(piece)) = response.chunk().await {
                let room = MAX_FAILURE_BYTES - body.len();
                body.extend_from_slice(&piece[..piece.len().min(room)]);
                if body.len() == MAX_FAILURE_BYTES {
                    break;
                }
            }
        };
        // However much came: the status alone would do.
        let _ = timeout_at(until.min(Instant::now() + FAILURE_TIME), read).await;
        let repeats = |text: &str| self.token.is_some_and(|token| token.is_in(text));
        let text = hf::error_text(&body).filter(|text| !repeats(text) && !repeats(&String::from_utf8_lossy(&body)));
        Failure::status(self.endpoint.label(), status, text.filter(|text| !text.trim().is_empty()), wait)
    }
}

impl<'a> Reply<'a> {
    /// The next piece of the body; none after the last. Cancel-safe: no piece is lost.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        let (label, config) = (self.attempt.endpoint.label(), self.attempt.config);
        let pause = Instant::now() + config.idle_time;
        let next = timeout_at(pause.min(self.until), self.response.chunk()).await;
        let late = |_| {
            if pause < self.until {
                Failure::timeout(label, "sends no more of its reply", config.idle_time)
            } else {
                Failure::timeout(label, "does not end its reply", config.attempt_time)
            }
        };
        next.map_err(late)?.map_err(|error| Failure::transport(label, error))
    }

    /// What it answers.
    pub(super) const fn plan(&self) -> &'a Plan {
        self.attempt.plan
    }

    /// A body that is not what was asked for.
    pub(super) fn wrong(&self, wrong: &WrongReply) -> Failure {
        self.attempt.wrong(wrong)
    }
}
