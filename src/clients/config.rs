//! `[clients]`.

use std::path::PathBuf;

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

/// Who may ask, and how much.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// File of named clients (TOML): their tokens' hashes, their certificates' names, limits of their own. Without one
    /// there are none, and everybody is served. Read again when it changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// Whether others than the named clients are served, where there are some.
    pub unnamed: Unnamed,
    /// What clients need on the Unix socket.
    pub socket: SocketTrust,
    /// What each named client may use, where the file does not say otherwise.
    pub limits: Limits,
    /// What everybody without a name may use, by address (IPv6: by /64).
    pub per_address: Limits,
}

/// What becomes of a client without a name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unnamed {
    /// Refused, once there are named clients.
    #[default]
    Refused,
    /// Served within `per_address`. A wrong token is refused all the same.
    Served,
}

/// What lets a client in by the Unix socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SocketTrust {
    /// The mode of its file is enough.
    #[default]
    Mode,
    /// A token, as everywhere else.
    Token,
}

/// Bounds on one client. What is left out is not bounded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Requests a second, on average.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests_per_second: Option<f64>,
    /// Requests that may come at once before the average counts; default: those of one second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub burst: Option<u32>,
    /// Bytes of inputs a second, on average.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input_per_second: Option<ByteSize>,
    /// Bytes of answers a second, on average.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_per_second: Option<ByteSize>,
    /// Requests in progress at a time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub in_flight: Option<usize>,
}

/// The slowest rate: one request in a thousand seconds.
const SLOWEST: f64 = 0.001;
/// A faster rate is none.
const FASTEST: f64 = 1e6;

impl Limits {
    /// These, and `others` where these say nothing.
    pub(super) fn or(self, others: Self) -> Self {
        Self {
            requests_per_second: self.requests_per_second.or(others.requests_per_second),
            burst: self.burst.or(others.burst),
            input_per_second: self.input_per_second.or(others.input_per_second),
            output_per_second: self.output_per_second.or(others.output_per_second),
            in_flight: self.in_flight.or(others.in_flight),
        }
    }

    /// What is wrong with them: key, value, remedy.
    pub fn faults(&self) -> impl Iterator<Item = (&'static str, String, &'static str)> {
        let rate = self.requests_per_second.filter(|rate| !(SLOWEST..=FASTEST).contains(rate));
        let rate = rate.map(|rate| ("requests_per_second", rate.to_string(), "must be between 0.001 and 1000000"));
        let burst = self.burst.filter(|burst| *burst == 0 || self.requests_per_second.is_none());
        let burst = burst
            .map(|burst| ("burst", burst.to_string(), "must be at least 1, and stands beside requests_per_second"));
        let bytes = [("input_per_second", self.input_per_second), ("output_per_second", self.output_per_second)];
        let is_slow = |bytes: &ByteSize| bytes.as_u64() < 1 << 10;
        let bytes = bytes.into_iter().filter_map(move |(key, bytes)| Some((key, bytes.filter(is_slow)?)));
        let bytes = bytes.map(|(key, bytes)| (key, bytes.to_string(), "must be at least 1KiB"));
        let in_flight = self.in_flight.filter(|most| *most == 0);
        let in_flight = in_flight.map(|most| ("in_flight", most.to_string(), "must be at least 1"));
        rate.into_iter().chain(burst).chain(bytes).chain(in_flight)
    }
}
