//! The trace that a request belongs to, as W3C Trace Context writes it in `traceparent` and `tracestate`, and the one
//! place where that meets the spans of `tracing`.
//!
//! Where spans are exported, a request's span continues the trace that its client named, and what goes upstream names
//! our own span. Where they are not, the client's words are passed on as they came, so that latentgate never breaks a
//! trace. What is not well formed is taken for absent: a trace is no reason to refuse a request.

use std::{fmt, str::FromStr as _};

use opentelemetry::{
    Context,
    trace::{SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState},
};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// A longer `tracestate` is left out; the specification asks to pass on this much.
const MAX_STATE_BYTES: usize = 512;

/// Bytes of `traceparent` in version 00.
const PARENT_BYTES: usize = 55;

/// Sampled, and random: the flags that are known. Others are not passed on.
const KNOWN_FLAGS: u8 = 0b11;

/// A span of some trace: the one that a request was sent from, or one of ours.
#[derive(Clone, Debug, PartialEq)]
pub struct TraceContext(SpanContext);

/// Which trace, in 32 hex digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Id(TraceId);

impl TraceContext {
    /// What the values of the two headers say; nothing if they are not well formed, or say it twice.
    pub fn parse<'a>(mut parent: impl Iterator<Item = &'a str>, state: impl Iterator<Item = &'a str>) -> Option<Self> {
        let (only, None) = (parent.next()?, parent.next()) else { return None };
        let (trace, span, flags) = parse_parent(only)?;
        Some(Self(SpanContext::new(trace, span, flags, true, parse_state(state))))
    }

    /// The exported span behind a span of `tracing`; none where nothing is exported.
    pub fn of(span: &Span) -> Option<Self> {
        if span.is_disabled() {
            return None;
        }
        let context = span.context().span().span_context().clone();
        context.is_valid().then_some(Self(context))
    }

    /// Makes `span` a child in this trace. It must be new: neither entered nor asked for its context.
    pub fn adopt(&self, span: &Span) {
        // Fails where nothing is exported, and then nobody looks for a parent.
        drop(span.set_parent(Context::new().with_remote_span_context(self.0.clone())));
    }

    /// The trace's id.
    pub fn id(&self) -> Id {
        Id(self.0.trace_id())
    }

    /// The value of `traceparent`.
    pub fn parent(&self) -> String {
        let flags = self.0.trace_flags().to_u8() & KNOWN_FLAGS;
        format!("00-{}-{}-{flags:02x}", self.0.trace_id(), self.0.span_id())
    }

    /// The value of `tracestate`, if there is one.
    pub fn state(&self) -> Option<String> {
        Some(self.0.trace_state().header()).filter(|state| !state.is_empty())
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

fn parse_parent(text: &str) -> Option<(TraceId, SpanId, TraceFlags)> {
    let known = text.get(..PARENT_BYTES)?;
    let mut parts = known.split('-');
    let [version, trace, span, flags] = [parts.next()?, parts.next()?, parts.next()?, parts.next()?];
    let is_shaped = [(version, 2), (trace, 32), (span, 16), (flags, 2)].iter().all(|(part, digits)| {
        part.len() == *digits && part.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
    });
    // A later version may say more, behind another dash.
    let ends = match (version, &text[PARENT_BYTES..]) {
        ("ff", _) => false,
        (_, "") => true,
        ("00", _) => false,
        (_, more) => more.starts_with('-'),
    };
    if !is_shaped || !ends {
        return None;
    }
    let (trace, span) = (TraceId::from_hex(trace).ok()?, SpanId::from_hex(span).ok()?);
    let flags = TraceFlags::new(u8::from_str_radix(flags, 16).ok()? & KNOWN_FLAGS);
    (trace != TraceId::INVALID && span != SpanId::INVALID).then_some((trace, span, flags))
}

fn parse_state<'a>(values: impl Iterator<Item = &'a str>) -> TraceState {
    let values: Vec<_> = values.map(str::trim).filter(|value| !value.is_empty()).collect();
    let state = values.join(",");
    let is_member = |text: &str| text.split_once('=').is_some_and(|(key, value)| !key.is_empty() && !value.is_empty());
    if state.len() > MAX_STATE_BYTES || !state.split(',').all(is_member) {
        return TraceState::default();
    }
    TraceState::from_str(&state).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn parsed(parent: &str, state: &[&str]) -> Option<TraceContext> {
        TraceContext::parse([parent].into_iter(), state.iter().copied())
    }

    #[test]
    fn what_was_read_is_written_again() {
        let context = parsed(PARENT, &["one=1, two=2", "three=3"]).unwrap();
        assert_eq!(context.parent(), PARENT);
        assert_eq!(context.id().to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        let state = context.state().unwrap();
        let members: Vec<_> = state.split(',').map(str::trim).collect();
        assert_eq!(members, ["one=1", "two=2", "three=3"]);
        assert_eq!(parsed(PARENT, &[]).unwrap().state(), None);
    }

    #[test]
    fn later_versions_are_read_as_far_as_they_are_known() {
        let later = format!("cc{}-what-comes", &PARENT[2..]);
        assert_eq!(parsed(&later, &[]).unwrap().parent(), PARENT);
        let unknown_flags = format!("{}ff", &PARENT[..PARENT_BYTES - 2]);
        assert!(parsed(&unknown_flags, &[]).unwrap().parent().ends_with("-03"));
    }

    #[test]
    fn what_is_not_well_formed_is_absent() {
        let wrong = [
            String::new(),
            "00".to_owned(),
            PARENT.to_uppercase(),
            format!("ff{}", &PARENT[2..]),
            format!("{PARENT}-more"),
            format!("{PARENT} "),
            format!("cc{}x", &PARENT[2..]),
            PARENT.replace('-', "_"),
            PARENT.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            PARENT.replace("00f067aa0ba902b7", &"0".repeat(16)),
            PARENT.replace("00f067aa0ba902b7", "00f067aa0ba902bg"),
            "ü".repeat(40),
        ];
        for parent in wrong {
            assert_eq!(parsed(&parent, &[]), None, "{parent}");
        }
        assert_eq!(TraceContext::parse([PARENT, PARENT].into_iter(), [].into_iter()), None, "said twice");
    }

    #[test]
    fn a_bad_state_costs_the_state_alone() {
        for state in ["=", "no member", &"x".repeat(600), &format!("a={}", "b".repeat(600))] {
            let context = parsed(PARENT, &[state]).unwrap();
            assert_eq!((context.parent().as_str(), context.state()), (PARENT, None), "{state}");
        }
    }

    #[test]
    fn without_an_exporter_there_is_no_trace_of_our_own() {
        let span = tracing::debug_span!("request");
        parsed(PARENT, &[]).unwrap().adopt(&span);
        assert_eq!(TraceContext::of(&span), None);
    }
}
