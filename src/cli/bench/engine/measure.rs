//! Time, processor time and memory of this process, as the system counts them.

use std::{fs, hint, thread, time::Duration};

use rustix::time::{ClockId, clock_gettime};
use tokio::time::Instant;

use super::input::Size;

/// The allocator gives free memory back after a second; looked at so often, for so long at least and at most.
const REST_STEP: Duration = Duration::from_millis(100);
const REST: Duration = Duration::from_millis(1500);
const REST_LIMIT: Duration = Duration::from_secs(5);

/// What a run took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cost {
    /// On the clock.
    pub(super) wall: Duration,
    /// Of all threads of the process, in the program and in the kernel.
    pub(super) cpu: Duration,
}

/// Memory of this process in bytes; none where the system does not tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Memory {
    /// Resident now.
    pub(super) resident: Option<u64>,
    /// The most that was resident since [`forget_peak`].
    pub(super) peak: Option<u64>,
}

/// The runs of one size.
#[derive(Clone, Debug)]
pub(super) struct Measured {
    pub(super) size: Size,
    /// Pictures of each run.
    pub(super) batch: usize,
    pub(super) first: Cost,
    /// One at least.
    pub(super) later: Vec<Cost>,
    pub(super) before: Memory,
    pub(super) after: Memory,
    /// What the engine said that a run would take besides the weights, in bytes.
    pub(super) foretold: u64,
    /// Whether the peak is that of these runs alone, and not of the process so far.
    pub(super) is_peak_own: bool,
}

// === impl Cost ===

impl Cost {
    /// Runs `work` and tells what it took.
    pub(super) fn of<T>(work: impl FnOnce() -> T) -> (T, Self) {
        let (began, cpu) = (Instant::now(), processor_time());
        let made = work();
        let (wall, cpu) = (began.elapsed(), processor_time().saturating_sub(cpu));
        (made, Self { wall, cpu })
    }

    /// For a line beside the answer.
    pub(super) fn told(self) -> String {
        format!("{:.3} s, {:.3} s of processor time", self.wall.as_secs_f64(), self.cpu.as_secs_f64())
    }
}

// === impl Measured ===

impl Measured {
    /// Of the runs after the first.
    pub(super) fn median(&self) -> Cost {
        let median_of = |time: fn(&Cost) -> Duration| median(self.later.iter().map(time).collect());
        Cost { wall: median_of(|cost| cost.wall), cpu: median_of(|cost| cost.cpu) }
    }

    /// The shortest of each, of the runs after the first.
    pub(super) fn min(&self) -> Cost {
        let min_of = |time: fn(&Cost) -> Duration| self.later.iter().map(time).min().unwrap_or_default();
        Cost { wall: min_of(|cost| cost.wall), cpu: min_of(|cost| cost.cpu) }
    }

    /// Millions of pixels a second, by the median.
    pub(super) fn megapixels_per_second(&self) -> f64 {
        (self.batch * self.size.pixels()) as f64 / 1e6 / self.median().wall.as_secs_f64()
    }
}

/// The middle one, or the mean of the two in the middle; zero of none.
fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    let half = times.len() / 2;
    match times.get(half) {
        None => Duration::ZERO,
        Some(&upper) if times.len() % 2 == 1 => upper,
        Some(&upper) => (times[half - 1] + upper) / 2,
    }
}

/// What all threads of this process have used so far.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.try_into().unwrap_or(0), time.tv_nsec.try_into().unwrap_or(0))
}

// === impl Memory ===

impl Memory {
    /// What Linux tells in `/proc`.
    pub(super) fn now() -> Self {
        Self::parse(&fs::read_to_string("/proc/self/status").unwrap_or_default())
    }

    fn parse(status: &str) -> Self {
        let bytes = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key))?;
            line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
        };
        Self { resident: bytes("VmRSS:"), peak: bytes("VmHWM:") }
    }
}

/// Waits until the allocator has given back what is free, as between the requests of a quiet server: what loading or other
/// runs have left behind would pass for these runs' memory, or hide it.
pub(super) fn rest() {
    let began = Instant::now();
    let mut resident = Memory::now().resident;
    let mut is_still = false;
    while resident.is_some() && began.elapsed() < REST_LIMIT && (began.elapsed() < REST || !is_still) {
        thread::sleep(REST_STEP);
        // It looks for what is due when something is freed.
        drop(hint::black_box(Vec::<u8>::with_capacity(1 << 20)));
        let now = Memory::now().resident;
        is_still = now >= resident;
        resident = now;
    }
}

/// Has the peak of this process's memory begin anew at what is resident now. Whether the system did.
pub(super) fn forget_peak() -> bool {
    // 5 is the kernel's word for it (proc_pid_clear_refs(5)).
    fs::write("/proc/self/clear_refs", "5").is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cost(wall: u64, cpu: u64) -> Cost {
        Cost { wall: Duration::from_millis(wall), cpu: Duration::from_millis(cpu) }
    }

    fn measured(later: &[Cost]) -> Measured {
        let memory = Memory { resident: None, peak: None };
        let size = Size { width: 1000, height: 500 };
        let (before, after) = (memory, memory);
        Measured {
            size,
            batch: 1,
            first: cost(900, 900),
            later: later.to_vec(),
            before,
            after,
            foretold: 1,
            is_peak_own: true,
        }
    }

    #[test]
    fn the_first_run_is_in_no_statistic() {
        let odd = measured(&[cost(30, 50), cost(10, 60), cost(20, 40)]);
        assert_eq!((odd.median(), odd.min()), (cost(20, 50), cost(10, 40)));
        let even = measured(&[cost(40, 80), cost(10, 20), cost(20, 40), cost(30, 60)]);
        assert_eq!((even.median(), even.min()), (cost(25, 50), cost(10, 20)));
        assert!((odd.megapixels_per_second() - 25.0).abs() < 1e-9);
        assert!((Measured { batch: 4, ..odd }.megapixels_per_second() - 100.0).abs() < 1e-9);
        assert_eq!(median(Vec::new()), Duration::ZERO);
    }

    #[test]
    fn memory_is_read_as_linux_writes_it() {
        let status = "Name:\tlatentgate\nVmPeak:\t  900000 kB\nVmHWM:\t   51200 kB\nVmRSS:\t   40960 kB\nThreads:\t3\n";
        let memory = Memory::parse(status);
        assert_eq!((memory.resident, memory.peak), (Some(40 << 20), Some(50 << 20)));
        assert_eq!(Memory::parse("VmRSS:\tmany kB\n"), Memory { resident: None, peak: None });
    }

    #[test]
    fn processor_time_goes_on_while_there_is_work() {
        let (sum, cost) = Cost::of(|| (0..5_000_000u64).fold(0, |sum, i| hint::black_box(sum ^ i)));
        assert!(hint::black_box(sum) < u64::MAX);
        assert!(cost.wall > Duration::ZERO && cost.cpu > Duration::ZERO, "{cost:?}");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_has_memory() {
        let memory = Memory::now();
        assert!(memory.resident.is_some_and(|bytes| bytes > 1 << 20) && memory.peak >= memory.resident, "{memory:?}");
    }
}
