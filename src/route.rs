//! The order in which backends are asked for a job, from policy, health and queues.
//!
//! Pure: it decides, the pipeline asks. A backend that cannot do the job or is not well is left out; one with a long
//! queue comes after those without, but is still asked if they fail. What was asked and failed before its first
//! published byte is followed by the next; after that byte there is no other.

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Retry};

/// A backend by its name in the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Name {
    /// The engine in this process.
    Local,
    /// The Hugging Face endpoint.
    Upstream,
}

/// Settings of the routes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Backends in the order they are asked; a model may have its own.
    pub backends: Vec<Name>,
    /// Jobs waiting in a backend's queue from which the others are asked first.
    pub spill_at: usize,
}

/// One backend, as far as the order is concerned.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Its name.
    pub name: &'static str,
    /// Whether it can do such a job at all, or why not.
    pub supported: Result<(), Error>,
    /// Whether it is well, or what is wrong.
    pub well: Result<(), Unwell>,
    /// Jobs waiting in its queue.
    pub waiting: usize,
}

/// What is wrong with a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unwell {
    /// For people.
    pub why: String,
    /// Whether it stays so until somebody changes the configuration.
    pub lasts: bool,
}

/// Whom to ask, by place in the list of candidates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// In this order.
    pub asked: Vec<usize>,
    /// Those of them that were put behind for their queues.
    pub spilled: Vec<usize>,
}

/// What came of the backends that failed.
#[derive(Debug, Default)]
pub struct Failures(Vec<(&'static str, Error)>);

impl Default for Config {
    fn default() -> Self {
        // A CPU takes seconds a picture: with four before it, an endpoint far away is nearer.
        Self { backends: vec![Name::Local, Name::Upstream], spill_at: 4 }
    }
}

impl Name {
    /// The name of the backend.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Upstream => "upstream",
        }
    }
}

/// The order of `candidates`, which come in the order of the policy; or why nobody can answer.
pub fn order(model: &str, candidates: &[Candidate], spill_at: usize) -> Result<Order, Error> {
    let willing = candidates.iter().enumerate().filter(|(_, candidate)| candidate.is_willing());
    let (busy, free): (Vec<_>, Vec<_>) = willing.partition(|(_, candidate)| candidate.waiting >= spill_at);
    let places = |list: Vec<(usize, &Candidate)>| list.into_iter().map(|(place, _)| place).collect::<Vec<_>>();
    let (busy, mut asked) = (places(busy), places(free));
    // Behind others only: with everybody busy, the policy's order stands.
    let spilled = if asked.is_empty() { Vec::new() } else { busy.clone() };
    asked.extend(busy);
    if asked.is_empty() { Err(nobody(model, candidates)) } else { Ok(Order { asked, spilled }) }
}

/// Why nobody can answer: for good, if no backend does such jobs; else for now.
fn nobody(model: &str, candidates: &[Candidate]) -> Error {
    let never = candidates.iter().filter_map(|candidate| candidate.supported.as_ref().err());
    let for_good = never.clone().find(|error| error.kind() != ErrorKind::Unavailable);
    if let Some(error) = for_good.filter(|_| never.count() == candidates.len()) {
        return error.clone();
    }
    let reason = |candidate: &Candidate| match (&candidate.supported, &candidate.well) {
        (Err(error), _) => format!("{}: {error}", candidate.name),
        (Ok(()), Err(Unwell { why, .. })) => format!("{}: {why}", candidate.name),
        (Ok(()), Ok(())) => String::new(),
    };
    let reasons: Vec<_> = candidates.iter().map(reason).collect();
    let why = if reasons.is_empty() { "no backend is configured for it".to_owned() } else { reasons.join("; ") };
    if candidates.iter().all(Candidate::never_can) {
        return Error::new(ErrorKind::Unavailable, format!("model {model} cannot be computed here: {why}")).for_good();
    }
    Error::new(ErrorKind::Unavailable, format!("model {model} cannot be computed now: {why}"))
}

/// Whether another backend may do better after such a failure. Nobody does better than a deadline that has passed or a
/// client that has left.
pub const fn fails_over(kind: ErrorKind) -> bool {
    !matches!(kind, ErrorKind::DeadlineExceeded | ErrorKind::Cancelled)
}

impl Candidate {
    const fn is_willing(&self) -> bool {
        self.supported.is_ok() && self.well.is_ok()
    }

    fn never_can(&self) -> bool {
        let never_does = self.supported.as_ref().is_err_and(|error| error.retry() == Retry::Never);
        never_does || self.well.as_ref().is_err_and(|unwell| unwell.lasts)
    }
}

impl Failures {
    /// One more.
    pub fn add(&mut self, backend: &'static str, error: Error) {
        self.0.push((backend, error));
    }

    /// The error for the client: a single failure as it is; of several one that is worth another try, if any is, with
    /// what the others said.
    pub fn into_error(mut self) -> Error {
        if self.0.len() == 1
            && let Some((_, error)) = self.0.pop()
        {
            return error;
        }
        let text: Vec<_> = self.0.iter().map(|(backend, error)| format!("{backend}: {error}")).collect();
        let is_load = |error: &Error| matches!(error.kind(), ErrorKind::Overloaded | ErrorKind::Unavailable);
        let chosen = self.0.iter().find(|(_, error)| is_load(error)).or(self.0.last());
        match chosen {
            Some((_, error)) => Error::new(error.kind(), text.join("; ")).caused_by(error.clone()),
            None => Error::internal("no backend was asked"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(name: &'static str, well: Result<(), &str>, waiting: usize) -> Candidate {
        let well = well.map_err(|why| Unwell { why: why.to_owned(), lasts: why == "no weights" });
        Candidate { name, supported: Ok(()), well, waiting }
    }

    fn asked(candidates: &[Candidate]) -> Vec<&'static str> {
        let order = order("m", candidates, 4).unwrap();
        order.asked.into_iter().map(|place| candidates[place].name).collect()
    }

    #[test]
    fn the_policys_order_stands_while_queues_are_short() {
        assert_eq!(asked(&[candidate("local", Ok(()), 3), candidate("upstream", Ok(()), 0)]), ["local", "upstream"]);
    }

    #[test]
    fn a_long_queue_comes_after_the_others_and_is_still_asked() {
        let both = [candidate("local", Ok(()), 4), candidate("upstream", Ok(()), 0)];
        assert_eq!(asked(&both), ["upstream", "local"]);
        assert_eq!(order("m", &both, 4).unwrap().spilled, [0]);
    }

    #[test]
    fn with_everybody_busy_the_order_stands() {
        let both = [candidate("local", Ok(()), 9), candidate("upstream", Ok(()), 5)];
        assert_eq!(asked(&both), ["local", "upstream"]);
        assert_eq!(order("m", &both, 4).unwrap().spilled, [0; 0]);
    }

    #[test]
    fn the_unwilling_are_left_out_and_nobody_is_an_error_that_says_why() {
        assert_eq!(asked(&[candidate("local", Err("no weights"), 0), candidate("upstream", Ok(()), 9)]), ["upstream"]);
        let nobody = [candidate("local", Err("no weights"), 0), candidate("upstream", Err("circuit open"), 0)];
        let error = order("m", &nobody, 4).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert_eq!(error.message(), "model m cannot be computed now: local: no weights; upstream: circuit open");
        assert_eq!(error.retry(), Retry::Later, "the circuit closes again");
        let error = order("m", &nobody[..1], 4).unwrap_err();
        assert_eq!(error.message(), "model m cannot be computed here: local: no weights");
        assert_eq!(error.retry(), Retry::Never);
        assert!(order("m", &[], 4).unwrap_err().message().ends_with("no backend is configured for it"));
    }

    #[test]
    fn what_no_backend_ever_does_is_no_matter_of_waiting() {
        let cannot = |name, kind| Candidate { supported: Err(Error::new(kind, "no")), ..candidate(name, Ok(()), 0) };
        let kind = |candidates: &[Candidate]| order("m", candidates, 4).unwrap_err().kind();
        let (upstream, local) =
            (cannot("upstream", ErrorKind::OutputUnsupported), cannot("local", ErrorKind::Unavailable));
        assert_eq!(kind(&[local.clone(), upstream.clone()]), ErrorKind::OutputUnsupported);
        assert_eq!(kind(&[local]), ErrorKind::Unavailable);
        assert_eq!(kind(&[candidate("local", Err("loading"), 0), upstream]), ErrorKind::Unavailable);
    }

    #[test]
    fn of_several_failures_one_worth_another_try_is_told() {
        let mut failures = Failures::default();
        failures.add("local", Error::new(ErrorKind::Overloaded, "full"));
        failures.add("upstream", Error::new(ErrorKind::BadRequest, "too large for it"));
        let error = failures.into_error();
        assert_eq!((error.kind(), error.message()), (ErrorKind::Overloaded, "local: full; upstream: too large for it"));
        let mut one = Failures::default();
        one.add("upstream", Error::new(ErrorKind::BadRequest, "no"));
        assert_eq!(one.into_error().message(), "no");
    }
}
