//! Why an attempt failed, what that says of the endpoint, and whether another attempt is of use: one table.
//!
//! Texts name the endpoint by its host and nothing else of the request: no query, no token, no payload.

use std::time::Duration;

use super::{breaker::Health, check::WrongReply};
use crate::error::{Error, ErrorKind};

/// How an attempt ended. Metric labels: a closed set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Code {
    /// With the answer.
    Ok,
    /// 400, 413, 422: the endpoint does not take this job.
    Refused,
    /// 401, 403: the endpoint does not take us.
    Denied,
    /// 429.
    Busy,
    /// 503: an endpoint that was scaled to zero says so while it starts.
    Starting,
    /// 3xx: never followed, since a redirected POST may lose its body.
    Redirect,
    /// 404, 410 and whatever else is no 2xx.
    Status4xx,
    /// 500 and what its like says.
    Status5xx,
    /// No connection: refused, unknown host, TLS.
    Connect,
    /// Too late, by one of the configured times.
    Timeout,
    /// The connection broke.
    Cut,
    /// A connection that had been idle was closed just when the request was sent.
    Closed,
    /// A success by its status, and not what was asked for.
    WrongReply,
    /// What was asked for, but for NaN or infinity.
    NonFinite,
    /// Nobody waited any more.
    Cancelled,
    /// Our own fault.
    Internal,
}

/// Whether another attempt is of use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// At the same endpoint at once: nothing has failed yet.
    AtOnce,
    /// Soon, preferably elsewhere.
    Retry,
    /// Not before that time, where the endpoint says one.
    Later(Option<Duration>),
    /// When it has started; a look from time to time.
    Starting(Option<Duration>),
    /// If there is another token by now; else as the next.
    Token,
    /// At another endpoint, if there is one that has not failed the job: this one would fail the same way.
    Elsewhere,
    /// It would fail the same way everywhere.
    Never,
}

/// A failed attempt.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) code: Code,
    pub(super) next: Next,
    /// What the caller gets if this attempt was the last.
    pub(super) error: Error,
}

impl Code {
    /// Metric label.
    pub(super) const fn label(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Refused => "refused",
            Self::Denied => "denied",
            Self::Busy => "busy",
            Self::Starting => "starting",
            Self::Redirect => "3xx",
            Self::Status4xx => "4xx",
            Self::Status5xx => "5xx",
            Self::Connect => "connect",
            Self::Timeout => "timeout",
            Self::Cut => "cut",
            Self::Closed => "closed",
            Self::WrongReply => "wrong_reply",
            Self::NonFinite => "non_finite",
            Self::Cancelled => "cancelled",
            Self::Internal => "internal",
        }
    }

    /// What it says of the endpoint. A refused job says nothing: the protocol's servers answer 400 to bad requests and
    /// to failures of their own alike. Nor does NaN: a job far outside a model's range makes it everywhere, and must not
    /// close an endpoint to all others.
    pub(super) const fn health(self) -> Health {
        match self {
            Self::Ok => Health::Good,
            Self::Refused
            | Self::Busy
            | Self::Starting
            | Self::Closed
            | Self::NonFinite
            | Self::Cancelled
            | Self::Internal => Health::Unknown,
            Self::Denied
            | Self::Redirect
            | Self::Status4xx
            | Self::Status5xx
            | Self::Connect
            | Self::Timeout
            | Self::Cut
            | Self::WrongReply => Health::Bad,
        }
    }
}

impl Failure {
    /// The endpoint cannot be reached, or the connection broke. The library's words become the cause, without the URL.
    pub(super) fn transport(upstream: &str, error: reqwest::Error) -> Self {
        let (code, what) = match () {
            () if error.is_timeout() => (Code::Timeout, "cannot be reached in time"),
            () if error.is_connect() => (Code::Connect, "cannot be reached"),
            () => (Code::Cut, "broke the connection"),
        };
        let error = unavailable(upstream, what).caused_by(error.without_url());
        Self { code, next: Next::Retry, error }
    }

    /// The same, of a connection that broke because it had been idle.
    pub(super) fn into_closed(self) -> Self {
        if self.code == Code::Cut { Self { code: Code::Closed, next: Next::AtOnce, ..self } } else { self }
    }

    /// The same, of a connection that broke once too often for that.
    pub(super) fn into_cut(self) -> Self {
        if self.code == Code::Closed { Self { code: Code::Cut, next: Next::Retry, ..self } } else { self }
    }

    /// A configured time has passed.
    pub(super) fn timeout(upstream: &str, what: &str, limit: Duration) -> Self {
        let what = format!("{what} within {}", humantime::format_duration(limit));
        Self { code: Code::Timeout, next: Next::Retry, error: unavailable(upstream, &what) }
    }

    /// A success by its status, and not what was asked for.
    pub(super) fn wrong_reply(upstream: &str, wrong: &WrongReply) -> Self {
        let mut what = format!("sent a wrong reply: {wrong}");
        if let WrongReply::Undecodable(why) = wrong {
            what = format!("{what}: {why}");
        }
        let code = if *wrong == WrongReply::NonFinite { Code::NonFinite } else { Code::WrongReply };
        Self { code, next: Next::Retry, error: unavailable(upstream, &what) }
    }

    /// A status that is no success, with the endpoint's own text if it gave one.
    pub(super) fn status(upstream: &str, status: u16, text: Option<String>, wait: Option<Duration>) -> Self {
        let said = text.map(|text| format!(": {text}")).unwrap_or_default();
        let error = |kind, what: &str| Error::new(kind, format!("upstream {upstream} {what} ({status}){said}"));
        let (code, next, kind, what) = match status {
            400 | 422 => (Code::Refused, Next::Never, ErrorKind::BadRequest, "refuses the request"),
            413 => (Code::Refused, Next::Never, ErrorKind::TooLarge, "finds the request too large"),
            401 => (Code::Denied, Next::Token, ErrorKind::Unavailable, DENIED),
            403 => (Code::Denied, Next::Elsewhere, ErrorKind::Unavailable, DENIED),
            429 => (Code::Busy, Next::Later(wait), ErrorKind::Overloaded, "is busy"),
            503 => (Code::Starting, Next::Starting(wait), ErrorKind::Unavailable, "is not running, or starting"),
            500 | 502 | 504 => (Code::Status5xx, Next::Retry, ErrorKind::Unavailable, "failed"),
            300..=399 => (Code::Redirect, Next::Elsewhere, ErrorKind::Unavailable, "redirects, which is not followed"),
            404 | 410 => (Code::Status4xx, Next::Elsewhere, ErrorKind::Unavailable, "is not there any more"),
            508 => (Code::Refused, Next::Never, ErrorKind::LoopDetected, "leads back to where the request was"),
            500.. => (Code::Status5xx, Next::Elsewhere, ErrorKind::Unavailable, "failed"),
            _ => (Code::Status4xx, Next::Elsewhere, ErrorKind::Unavailable, "answered something unknown"),
        };
        Self { code, next, error: error(kind, what) }
    }

    /// Our own fault.
    pub(super) fn internal(error: Error) -> Self {
        Self { code: Code::Internal, next: Next::Never, error }
    }
}

const DENIED: &str = "wants a token that it knows: set HF_TOKEN or upstream.token_file";

fn unavailable(upstream: &str, what: &str) -> Error {
    Error::new(ErrorKind::Unavailable, format!("upstream {upstream} {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_classified() {
        use ErrorKind::{BadRequest, Overloaded, TooLarge, Unavailable};
        let wait = Some(Duration::from_secs(1));
        for (status, code, next, kind) in [
            (307, Code::Redirect, Next::Elsewhere, Unavailable),
            (400, Code::Refused, Next::Never, BadRequest),
            (401, Code::Denied, Next::Token, Unavailable),
            (403, Code::Denied, Next::Elsewhere, Unavailable),
            (404, Code::Status4xx, Next::Elsewhere, Unavailable),
            (410, Code::Status4xx, Next::Elsewhere, Unavailable),
            (413, Code::Refused, Next::Never, TooLarge),
            (418, Code::Status4xx, Next::Elsewhere, Unavailable),
            (422, Code::Refused, Next::Never, BadRequest),
            (429, Code::Busy, Next::Later(wait), Overloaded),
            (500, Code::Status5xx, Next::Retry, Unavailable),
            (501, Code::Status5xx, Next::Elsewhere, Unavailable),
            (502, Code::Status5xx, Next::Retry, Unavailable),
            (503, Code::Starting, Next::Starting(wait), Unavailable),
            (504, Code::Status5xx, Next::Retry, Unavailable),
            (508, Code::Refused, Next::Never, ErrorKind::LoopDetected),
        ] {
            let failure = Failure::status("vae.example", status, None, wait);
            assert_eq!((failure.code, failure.next, failure.error.kind()), (code, next, kind), "{status}");
        }
        let failure = Failure::status("vae.example", 400, Some("wrong shape".to_owned()), None);
        assert_eq!(failure.error.message(), "upstream vae.example refuses the request (400): wrong shape");
    }
}
