//! The table at the end of a run, and the same as JSON.

use std::{
    fs,
    io::{self, Write as _},
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use bytesize::ByteSize;
use serde_json::{Value, json};

use crate::{
    metrics::Scraped,
    tally::{Tally, Times},
};

/// What was measured.
pub(crate) struct Report {
    pub(crate) tally: Tally,
    /// Processor time of this process meanwhile.
    pub(crate) cpu: Duration,
    /// Whether the server is in this process, too.
    pub(crate) with_server: bool,
    /// Wanted requests a second, of an open loop.
    pub(crate) rate: Option<f64>,
    /// The server's own numbers, before and after.
    pub(crate) counted: Option<(Scraped, Scraped)>,
    /// Its resident bytes, by the time since the start.
    pub(crate) memory: Vec<(Duration, f64)>,
}

/// The shares of all that latencies are told at.
const SHARES: [(&str, f64); 5] = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999), ("max", 1.0)];

impl Report {
    pub(crate) fn print(&self) -> io::Result<()> {
        let Tally { sent, answered, bytes, errors, sources, crowded_out, .. } = &self.tally;
        let seconds = self.tally.took.as_secs_f64();
        let of_all = |part: f64| part / (*sent).max(1) as f64;
        let mut out = io::stdout().lock();
        writeln!(out, "requests      {sent} in {seconds:.2} s")?;
        if let Some(rate) = self.rate {
            writeln!(out, "arrivals      {rate} a second wanted; {crowded_out} not sent, too many were under way")?;
        }
        writeln!(out, "errors        {}", sent - answered)?;
        for (reason, times) in errors {
            writeln!(out, "              {times} {reason}")?;
        }
        let outcomes: Vec<_> = sources.iter().map(|(source, times)| format!("{source} {times}")).collect();
        writeln!(out, "outcomes      {}", outcomes.join(", "))?;
        writeln!(out, "hit ratio     {:.4}", self.tally.hit_ratio())?;
        writeln!(out, "latency       {} ms", told(&self.tally.latency))?;
        writeln!(out, "first byte    {} ms", told(&self.tally.first_byte))?;
        let (each_second, gb) = (*answered as f64 / seconds, *bytes as f64 / 1e9 / seconds);
        writeln!(out, "throughput    {each_second:.0} requests/s, {gb:.3} GB/s")?;
        writeln!(out, "answer        {} on average", ByteSize(bytes / (*answered).max(1)).display().iec())?;
        let whose = if self.with_server { "client and server" } else { "client alone" };
        writeln!(out, "processor     {:.3} ms a request ({whose})", of_all(self.cpu.as_secs_f64() * 1e3))?;
        if let Some(counted) = self.counted() {
            writeln!(out, "accounts      {sent} sent, {counted} counted by the server")?;
        }
        if let (Some((_, first)), Some((_, last)), Some(slope)) =
            (self.memory.first(), self.memory.last(), self.slope())
        {
            let mib = |bytes: f64| bytes / f64::from(1 << 20);
            let (first, last, slope) = (mib(*first), mib(*last), mib(slope * 3600.0));
            writeln!(
                out,
                "memory        {first:.1} to {last:.1} MiB resident; {slope:+.1} MiB an hour by its second half"
            )?;
        }
        Ok(())
    }

    pub(crate) fn write_json(&self, path: &Path) -> anyhow::Result<()> {
        let at = |times: &Times| -> Value {
            SHARES
                .map(|(name, share)| (name.to_owned(), json!(times.at(share))))
                .into_iter()
                .collect::<serde_json::Map<_, _>>()
                .into()
        };
        let Tally { sent, answered, bytes, errors, sources, crowded_out, took, .. } = &self.tally;
        let memory: Vec<_> = self.memory.iter().map(|(at, bytes)| json!([at.as_secs_f64(), bytes])).collect();
        let value = json!({
            "requests": sent,
            "seconds": took.as_secs_f64(),
            "rate": self.rate,
            "not_sent": crowded_out,
            "answered": answered,
            "errors": errors,
            "outcomes": sources,
            "hit_ratio": self.tally.hit_ratio(),
            "latency_ms": at(&self.tally.latency),
            "first_byte_ms": at(&self.tally.first_byte),
            "bytes": bytes,
            "cpu_seconds": self.cpu.as_secs_f64(),
            "counted_by_server": self.counted(),
            "resident_bytes": memory,
        });
        fs::write(path, format!("{value:#}\n")).with_context(|| format!("--json {}", path.display()))
    }

    /// Fails where the server and this program have not counted the same requests.
    pub(crate) fn judge(&self) -> anyhow::Result<()> {
        let sent = self.tally.sent;
        if let Some(counted) = self.counted() {
            ensure!(counted == sent, "{sent} requests were sent, the server counted {counted}");
        }
        Ok(())
    }

    /// Requests that the server counted meanwhile.
    fn counted(&self) -> Option<u64> {
        let (before, after) = self.counted?;
        Some((after.outcomes - before.outcomes) as u64)
    }

    /// Bytes a second that resident memory grows by, least squares over the second half: warm by then.
    fn slope(&self) -> Option<f64> {
        let half = &self.memory[self.memory.len() / 2..];
        let count = half.len() as f64;
        let (x, y): (Vec<f64>, Vec<f64>) = half.iter().map(|(at, bytes)| (at.as_secs_f64(), *bytes)).unzip();
        let (mean_x, mean_y) = (x.iter().sum::<f64>() / count, y.iter().sum::<f64>() / count);
        let spread: f64 = x.iter().map(|x| (x - mean_x).powi(2)).sum();
        let together: f64 = x.iter().zip(&y).map(|(x, y)| (x - mean_x) * (y - mean_y)).sum();
        (spread > 0.0).then(|| together / spread)
    }
}

fn told(times: &Times) -> String {
    SHARES.map(|(name, share)| format!("{name} {:.3}", times.at(share))).join(", ")
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
