//! What the disk tier's eviction is worth: the hit ratio of its index on a trace with a scan in it, beside LRU and the
//! optimum.
//!
//! 100,000 artifacts of the sizes that are stored here are asked for by Zipf's law, 2,000,000 times, as often as their
//! rank says and with no other order. Half way comes a scan: artifacts that nobody asked for before or after, twice as
//! many bytes as the cache holds. All is drawn from fixed seeds, so every run prints the same ratios; the times below
//! them are the machine's. Not criterion: a ratio needs no statistics.

mod costs;
mod policies;
mod trace;

use policies::{Ours, Policy, Ranked};
use trace::Trace;

/// Shares of the bytes of all artifacts, the scan's not counted, that the cache holds; in percent.
const CAPACITIES: [u64; 3] = [1, 5, 10];

/// What a scan brings, in capacities.
const SCAN: u64 = 2;

/// Requests after the scan that are looked at alone. LRU needs about as many to get back what the scan took from it.
const AFTERMATH: usize = 20_000;

/// Hits in percent: of all requests, the scan's too, and of those right after the scan.
struct Ratios {
    whole: f64,
    after_scan: f64,
}

fn main() {
    tell(&format!("{:<24}{:>16}{:>16}", "hit ratio, percent", "whole trace", "after the scan"));
    for percent in CAPACITIES {
        let capacity = Trace::popular_bytes() * percent / 100;
        let trace = Trace::new(SCAN * capacity);
        tell(&format!("\ncache of {percent} % of the bytes: {:.2} GB, {}", capacity as f64 / 1e9, trace.describe()));
        tell_row("S3-FIFO (ours)", &ratios(&trace, &mut Ours::new(&trace, capacity)));
        tell_row("LRU", &ratios(&trace, &mut Ranked::lru(&trace, capacity)));
        tell_row("optimum", &ratios(&trace, &mut Ranked::optimum(&trace, capacity)));
    }
    costs::tell_all();
}

fn ratios(trace: &Trace, policy: &mut impl Policy) -> Ratios {
    let hits: Vec<bool> = (0..trace.requests.len()).map(|at| policy.request(at)).collect();
    let after_scan = trace.scan.end..trace.scan.end + AFTERMATH;
    Ratios { whole: share(&hits), after_scan: share(&hits[after_scan]) }
}

fn share(hits: &[bool]) -> f64 {
    hits.iter().filter(|&&hit| hit).count() as f64 * 100.0 / hits.len() as f64
}

fn tell_row(name: &str, Ratios { whole, after_scan }: &Ratios) {
    tell(&format!("  {name:<22}{whole:>16.1}{after_scan:>16.1}"));
}

#[expect(clippy::print_stdout, reason = "a bench talks to people")]
fn tell(line: &str) {
    println!("{line}");
}
