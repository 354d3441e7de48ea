//! Which latentgates a request has passed on its way: one that comes back to where it was would wait for itself.
//!
//! A hosts file that brings clients here (docs/HOSTS.md) also brings our own upstream requests here, if it is this
//! machine's. Every process has a name of its own, upstream requests carry the names they passed in `Via` (RFC 9110,
//! 7.6.3), and a request that bears our name is refused. The trace that a request belongs to goes the same way.

use std::fmt::{self, Write as _};

use crate::{
    error::{Error, ErrorKind},
    trace::TraceContext,
};

/// What every name begins with.
const PREFIX: &str = "latentgate-";

/// More on one way is no chain but a mistake.
const MAX_HOPS: usize = 8;

/// The name of this process among all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance(String);

/// The names a request has passed, in order, and the span it was sent from, if its sender named one.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Hops {
    names: Vec<String>,
    trace: Option<TraceContext>,
}

impl Instance {
    /// The name made of a number that nobody else has: a random one.
    pub fn new(number: u64) -> Self {
        Self(format!("{PREFIX}{number:016x}"))
    }
}

impl Hops {
    /// The names in the values of `Via` headers. Proxies of other kinds are none of ours.
    pub fn parse<'a>(values: impl Iterator<Item = &'a str>) -> Self {
        let entries = values.flat_map(|value| value.split(','));
        let names = entries.filter_map(|entry| entry.split_whitespace().nth(1)).filter(|name| name.starts_with(PREFIX));
        // One more than may be is enough to tell.
        Self { names: names.take(MAX_HOPS + 1).map(str::to_owned).collect(), trace: None }
    }

    /// The same way, in a trace.
    #[must_use]
    pub fn in_trace(self, trace: Option<TraceContext>) -> Self {
        Self { trace, ..self }
    }

    /// The span that the request was sent from.
    pub const fn trace(&self) -> Option<&TraceContext> {
        self.trace.as_ref()
    }

    /// Refuses a request that has been here, or nearly everywhere.
    pub fn check(&self, own: &Instance) -> Result<(), Error> {
        let message = if self.names.contains(&own.0) {
            "this request has come from here: an upstream endpoint leads back to this latentgate"
        } else if self.names.len() > MAX_HOPS {
            "this request has passed too many latentgates: their upstream endpoints lead in a circle"
        } else {
            return Ok(());
        };
        Err(Error::new(ErrorKind::LoopDetected, message))
    }

    /// The value of `Via` for the next.
    pub fn through(&self, own: &Instance) -> String {
        let mut via = String::new();
        for name in self.names.iter().chain([&own.0]) {
            let separator = if via.is_empty() { "" } else { ", " };
            let _ = write!(via, "{separator}1.1 {name}");
        }
        via
    }
}

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_that_was_here_is_known_by_its_way() {
        let (here, there) = (Instance::new(1), Instance::new(2));
        let via = Hops::default().through(&here);
        let hops = Hops::parse([via.as_str()].into_iter());
        assert_eq!(hops.check(&here).unwrap_err().kind(), ErrorKind::LoopDetected);
        hops.check(&there).unwrap();
        let further = hops.through(&there);
        assert_eq!(further, format!("1.1 {here}, 1.1 {there}"));
        assert!(Hops::parse([further.as_str()].into_iter()).check(&here).is_err());
    }

    #[test]
    fn other_proxies_do_not_count_and_circles_of_strangers_end() {
        let hops = Hops::parse(["1.1 varnish, HTTP/2 edge.example:8080 (x)", "", "garbage"].into_iter());
        assert_eq!(hops, Hops::default());
        let mut way = Hops::default();
        for number in 0..=MAX_HOPS as u64 {
            way.check(&Instance::new(99)).unwrap();
            let via = way.through(&Instance::new(number));
            way = Hops::parse([via.as_str()].into_iter());
        }
        assert_eq!(way.check(&Instance::new(99)).unwrap_err().kind(), ErrorKind::LoopDetected);
        assert_eq!(Hops::parse(std::iter::repeat_n("1.1 latentgate-x", 10_000)).names.len(), MAX_HOPS + 1);
    }
}
