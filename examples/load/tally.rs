//! What is counted of the answers, in memory that does not grow with them.

use std::{collections::BTreeMap, time::Duration};

use hdrhistogram::Histogram;
use latentgate::proto::Source;

use crate::exchange::Sample;

/// Microseconds, to three digits.
pub(crate) struct Times(Histogram<u64>);

/// Ten minutes; what takes longer counts as that.
const MOST: u64 = 600_000_000;

/// Of some answers.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) sent: u64,
    pub(crate) answered: u64,
    pub(crate) bytes: u64,
    pub(crate) latency: Times,
    pub(crate) first_byte: Times,
    pub(crate) sources: BTreeMap<&'static str, u64>,
    pub(crate) errors: BTreeMap<String, u64>,
    /// Due, and not sent: too many were under way.
    pub(crate) crowded_out: u64,
    /// Of the whole run.
    pub(crate) took: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self(Histogram::new_with_bounds(1, MOST, 3).expect("bounds and digits are allowed"))
    }
}

impl Times {
    fn record(&mut self, time: Duration) {
        self.0.saturating_record(time.as_micros() as u64);
    }

    /// The time that `share` of all do not exceed, in milliseconds; NaN of none.
    pub(crate) fn at(&self, share: f64) -> f64 {
        if self.0.is_empty() { f64::NAN } else { self.0.value_at_quantile(share) as f64 / 1e3 }
    }
}

impl Tally {
    pub(crate) fn note(&mut self, sample: &Sample) {
        self.sent += 1;
        match &sample.outcome {
            Ok(answer) => {
                self.answered += 1;
                self.bytes += answer.bytes;
                self.latency.record(sample.took);
                self.first_byte.record(answer.first_byte);
                *self.sources.entry(name(answer.source)).or_default() += 1;
            }
            Err(reason) => *self.errors.entry(reason.clone()).or_default() += 1,
        }
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.sent += other.sent;
        self.answered += other.answered;
        self.bytes += other.bytes;
        self.crowded_out += other.crowded_out;
        self.latency.0 += &other.latency.0;
        self.first_byte.0 += &other.first_byte.0;
        other.sources.iter().for_each(|(name, times)| *self.sources.entry(name).or_default() += times);
        other.errors.iter().for_each(|(name, times)| *self.errors.entry(name.clone()).or_default() += times);
    }

    pub(crate) fn over(self, took: Duration) -> Self {
        Self { took, ..self }
    }

    /// Answers out of a tier, of all that were sent.
    pub(crate) fn hit_ratio(&self) -> f64 {
        let hits: u64 = ["memory", "disk", "shared"].iter().filter_map(|name| self.sources.get(name)).sum();
        hits as f64 / self.sent.max(1) as f64
    }
}

fn name(source: Source) -> &'static str {
    match source {
        Source::Memory => "memory",
        Source::Disk => "disk",
        Source::Shared => "shared",
        Source::Derived => "derived",
        Source::Coalesced => "coalesced",
        Source::Computed => "computed",
        Source::Unspecified => "unspecified",
    }
}
