//! What is recorded of clients, and of what is read again while the server runs. Names of clients are the configuration's.

use std::sync::Arc;

use metrics::{Counter, Label};

use super::{ClientLimit, Metrics, Reloadable, name};

/// The series of one client, looked up once.
pub struct ClientSeries {
    /// Requests let in.
    pub requests: Counter,
    /// Input bytes taken.
    pub input: Counter,
    /// Answer bytes given.
    pub output: Counter,
    refused: [Counter; ClientLimit::ALL.len()],
}

impl ClientSeries {
    /// A request met a limit.
    pub fn refused(&self, limit: ClientLimit) {
        self.refused[limit as usize].increment(1);
    }
}

impl Metrics {
    /// A client that is known from now on: its series exist from the start.
    pub fn client(&self, client: &Arc<str>) -> ClientSeries {
        let client = || Label::new("client", client.clone());
        let refused = ClientLimit::ALL.map(|limit| {
            let labels = vec![client(), Label::from_static_parts("limit", limit.key())];
            self.counter(name::CLIENT_REFUSALS, labels)
        });
        let series = ClientSeries {
            requests: self.counter(name::CLIENT_REQUESTS, vec![client()]),
            input: self.counter(name::CLIENT_REQUEST_BYTES, vec![client()]),
            output: self.counter(name::CLIENT_RESPONSE_BYTES, vec![client()]),
            refused,
        };
        for counter in [&series.requests, &series.input, &series.output].into_iter().chain(&series.refused) {
            counter.increment(0);
        }
        series
    }

    /// Something was read again: it is in force, or the one before stays.
    pub fn reloaded(&self, what: Reloadable, is_in_force: bool) {
        let what = || vec![Label::from_static_parts("what", what.label())];
        let mut labels = what();
        labels.push(Label::from_static_parts("result", if is_in_force { "ok" } else { "failed" }));
        self.counter(name::RELOADS, labels).increment(1);
        self.gauge(name::RELOAD_FAILING, what()).set(f64::from(u8::from(!is_in_force)));
    }

    /// Something that can be read again is in force.
    pub fn reloadable(&self, what: Reloadable) {
        let what = || vec![Label::from_static_parts("what", what.label())];
        let mut labels = what();
        labels.push(Label::from_static_parts("result", "failed"));
        self.counter(name::RELOADS, labels).increment(0);
        self.gauge(name::RELOAD_FAILING, what()).set(0.0);
    }

    /// When the certificate in force expires, in seconds since 1970.
    pub fn certificate_expires(&self, at: i64) {
        self.gauge(name::CERTIFICATE_EXPIRY, vec![]).set(at as f64);
    }
}
