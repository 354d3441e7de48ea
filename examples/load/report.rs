//! The table at the end of a run.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write as _},
    time::Duration,
};

use anyhow::Context as _;
use bytesize::ByteSize;
use latentgate::proto::Source;

use crate::exchange::{Answered, Sample};

/// What was measured.
pub(crate) struct Report {
    pub(crate) samples: Vec<Sample>,
    /// Of the whole run.
    pub(crate) took: Duration,
    /// Processor time of this process meanwhile.
    pub(crate) cpu: Duration,
    /// Whether the server is in this process, too.
    pub(crate) with_server: bool,
}

/// Durations in ascending order.
struct Sorted(Vec<Duration>);

impl Report {
    pub(crate) fn print(&self) -> io::Result<()> {
        let answered: Vec<&Answered> = self.samples.iter().filter_map(|sample| sample.outcome.as_ref().ok()).collect();
        let mut errors = BTreeMap::<&str, usize>::new();
        for reason in self.samples.iter().filter_map(|sample| sample.outcome.as_ref().err()) {
            *errors.entry(reason).or_default() += 1;
        }
        let count = |source| answered.iter().filter(|answer| answer.source == source).count();
        let [memory, coalesced, computed] = [Source::Memory, Source::Coalesced, Source::Computed].map(count);
        let whole = self.samples.iter().filter(|sample| sample.outcome.is_ok()).map(|sample| sample.took);
        let (latency, first) = (Sorted::of(whole), Sorted::of(answered.iter().map(|answer| answer.first_byte)));
        let bytes: u64 = answered.iter().map(|answer| answer.bytes).sum();
        let seconds = self.took.as_secs_f64();
        let of_all = |part: f64| part / self.samples.len() as f64;

        let mut out = io::stdout().lock();
        writeln!(out, "requests      {} in {seconds:.2} s", self.samples.len())?;
        writeln!(out, "errors        {}", self.samples.len() - answered.len())?;
        for (reason, times) in errors {
            writeln!(out, "              {times} {reason}")?;
        }
        writeln!(out, "outcomes      memory {memory}, coalesced {coalesced}, computed {computed}")?;
        writeln!(out, "hit ratio     {:.4}", of_all(memory as f64))?;
        let [p50, p90, p99, p999, max] = [0.5, 0.9, 0.99, 0.999, 1.0].map(|share| latency.at(share));
        writeln!(out, "latency       p50 {p50:.3}, p90 {p90:.3}, p99 {p99:.3}, p99.9 {p999:.3}, max {max:.3} ms")?;
        writeln!(out, "first byte    p50 {:.3}, p99 {:.3} ms", first.at(0.5), first.at(0.99))?;
        let each = ByteSize(bytes / answered.len().max(1) as u64).display().iec();
        writeln!(
            out,
            "throughput    {:.0} requests/s, {:.3} GB/s",
            of_s(answered.len(), seconds),
            gb(bytes) / seconds
        )?;
        writeln!(out, "answer        {each} on average")?;
        let whose = if self.with_server { "client and server" } else { "client alone" };
        writeln!(out, "processor     {:.3} ms a request ({whose})", of_all(self.cpu.as_secs_f64() * 1e3))
    }
}

fn of_s(count: usize, seconds: f64) -> f64 {
    count as f64 / seconds
}

fn gb(bytes: u64) -> f64 {
    bytes as f64 / 1e9
}

impl Sorted {
    fn of(durations: impl Iterator<Item = Duration>) -> Self {
        let mut all: Vec<_> = durations.collect();
        all.sort_unstable();
        Self(all)
    }

    /// The smallest duration that `share` of all do not exceed, in milliseconds.
    fn at(&self, share: f64) -> f64 {
        let rank = (self.0.len() as f64 * share).ceil() as usize;
        self.0.get(rank.saturating_sub(1)).map_or(f64::NAN, |duration| duration.as_secs_f64() * 1e3)
    }
}

/// User and system time of this process so far, all threads. From `/proc`, in hundredths of a second: `getrusage` would
/// need unsafe code.
pub(crate) fn cpu_time() -> anyhow::Result<Duration> {
    let stat = fs::read_to_string("/proc/self/stat").context("/proc/self/stat: Linux only")?;
    // Fields 14 and 15; the second one, the program's name, may hold anything and ends with the last parenthesis.
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
    Ok(Duration::from_millis(ticks * 10))
}
