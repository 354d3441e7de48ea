//! The tables: percentiles of each way, and of the difference within pairs, beside the goal.

use std::{fs, time::Duration};

use crate::client::Took;

/// What is wanted of a median.
pub(crate) struct Goal {
    most: Duration,
}

/// What was measured, pair by pair.
#[derive(Default)]
pub(crate) struct Pairs(Vec<Pair>);

struct Pair {
    direct: Took,
    through: Took,
}

/// Milliseconds in ascending order.
struct Sorted(Vec<f64>);

impl Goal {
    /// A picture's added time, to its last byte.
    pub(crate) const PNG_WHOLE: Self = Self { most: Duration::from_millis(1) };
    /// A tensor's added time to its first byte.
    pub(crate) const TENSOR_FIRST: Self = Self { most: Duration::from_millis(2) };
    /// The first byte of the last of many waiters, behind the first one's.
    pub(crate) const WAITERS_FIRST: Self = Self { most: Duration::from_millis(50) };
}

impl Pairs {
    pub(crate) fn add(&mut self, direct: Took, through: Took) {
        self.0.push(Pair { direct, through });
    }

    /// The head of a table.
    pub(crate) fn tell_head(&self, name: &str) {
        tell(&format!("\n{:<56}{:>9}{:>9}{:>9}   ms, {} pairs", name, "median", "p90", "p99", self.0.len()));
    }

    /// To the first byte of the body.
    pub(crate) fn tell_first(&self, goal: Goal) {
        self.rows("first byte", |took| took.first, Some(goal));
    }

    /// To the last byte.
    pub(crate) fn tell_whole(&self, goal: Option<Goal>) {
        self.rows("whole answer", |took| took.whole, goal);
    }

    /// Where the proxy says that the time of its way went.
    pub(crate) fn tell_told(&self) {
        let told: Vec<_> = self.0.iter().filter_map(|pair| pair.through.told).collect();
        if told.is_empty() {
            return;
        }
        Sorted::of(told.iter().map(|told| ms(told.receive))).tell("  through: to the job (Server-Timing receive)", "");
        Sorted::of(told.iter().map(|told| ms(told.compute))).tell("  through: the endpoint's first byte (compute)", "");
    }

    fn rows(&self, what: &str, of: impl Fn(&Took) -> Duration, goal: Option<Goal>) {
        Sorted::of(self.0.iter().map(|pair| ms(of(&pair.direct)))).tell(&format!("{what}, direct"), "");
        Sorted::of(self.0.iter().map(|pair| ms(of(&pair.through)))).tell(&format!("{what}, through latentgate"), "");
        let added = Sorted::of(self.0.iter().map(|pair| ms(of(&pair.through)) - ms(of(&pair.direct))));
        let judged = goal.map(|goal| {
            let verdict = if added.at(0.5) <= ms(goal.most) { "reached" } else { "missed" };
            format!("   goal: median at most {} ms: {verdict}", ms(goal.most))
        });
        added.tell(&format!("{what}, added (within pairs)"), &judged.unwrap_or_default());
    }
}

impl Sorted {
    fn of(milliseconds: impl Iterator<Item = f64>) -> Self {
        let mut all: Vec<_> = milliseconds.collect();
        all.sort_unstable_by(f64::total_cmp);
        Self(all)
    }

    /// The smallest that `share` of all do not exceed.
    fn at(&self, share: f64) -> f64 {
        let rank = (self.0.len() as f64 * share).ceil() as usize;
        self.0.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
    }

    fn tell(&self, name: &str, after: &str) {
        let [p50, p90, p99] = [0.5, 0.9, 0.99].map(|share| self.at(share));
        tell(&format!("{name:<56}{p50:>9.3}{p90:>9.3}{p99:>9.3}{after}"));
    }
}

/// How far behind the first byte of all the others' came, and when the last of them had everything.
pub(crate) fn tell_waiters(behind: impl Iterator<Item = Duration>, end: Duration, goal: &Goal) {
    let sorted = Sorted::of(behind.map(ms));
    let [median, last] = [sorted.at(0.5), sorted.at(1.0)];
    let verdict = if last <= ms(goal.most) { "reached" } else { "missed" };
    let most = ms(goal.most);
    tell(&format!(
        "first bytes behind the first: median {median:.1} ms, last {last:.1} ms   goal: at most {most} ms: {verdict}; \
         all have everything after {:.0} ms",
        ms(end)
    ));
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// On what, and with what else going on.
pub(crate) fn machine() {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpus = read("/proc/cpuinfo");
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or("an unnamed processor", |(_, name)| name);
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let load = read("/proc/loadavg");
    let load: Vec<_> = load.split(' ').take(3).collect();
    tell(&format!("{model}, {cores} cores, load average before: {}", load.join(" ")));
}

#[expect(clippy::print_stdout, reason = "a bench talks to people")]
pub(crate) fn tell(line: &str) {
    println!("{line}");
}
