//! A line a second while it runs, and the memory of the server meanwhile.

use std::{io::Write as _, sync::Arc, time::Duration};

use latentgate::task::{self, Task};
use parking_lot::Mutex;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::Span;

use crate::{exchange::Sample, metrics::Scraped, tally::Tally};

const TICK: Duration = Duration::from_secs(1);
/// Resident memory is asked for this often.
const MEMORY_EVERY: u32 = 10;

/// Resident bytes, by the time since the start.
pub(crate) type Memory = Vec<(Duration, f64)>;

/// What has happened since the last line. Clones share it.
#[derive(Clone)]
pub(crate) struct Live(Option<Arc<Shared>>);

struct Shared {
    window: Mutex<Tally>,
    stop: CancellationToken,
    ticking: Mutex<Option<Task<Memory>>>,
}

impl Live {
    pub(crate) const fn silent() -> Self {
        Self(None)
    }

    pub(crate) fn start(is_told: bool, admin: Option<String>) -> Self {
        let shared =
            Arc::new(Shared { window: Mutex::default(), stop: CancellationToken::new(), ticking: Mutex::new(None) });
        let ticking = task::spawn(Span::none(), tick(shared.clone(), is_told, admin));
        *shared.ticking.lock() = Some(ticking);
        Self(Some(shared))
    }

    pub(crate) fn note(&self, sample: &Sample) {
        if let Some(shared) = &self.0 {
            shared.window.lock().note(sample);
        }
    }

    pub(crate) fn note_crowded_out(&self) {
        if let Some(shared) = &self.0 {
            shared.window.lock().crowded_out += 1;
        }
    }

    /// Ends the lines.
    pub(crate) async fn stop(self) -> Memory {
        let Some(shared) = self.0 else { return Vec::new() };
        shared.stop.cancel();
        let ticking = shared.ticking.lock().take();
        match ticking {
            Some(ticking) => ticking.join().await.unwrap_or_default(),
            None => Vec::new(),
        }
    }
}

async fn tick(shared: Arc<Shared>, is_told: bool, admin: Option<String>) -> Memory {
    let (began, mut memory) = (Instant::now(), Vec::new());
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await;
    for count in 0_u32.. {
        if count.is_multiple_of(MEMORY_EVERY)
            && let Ok(Some(scraped)) = Scraped::of(admin.as_deref()).await
        {
            memory.push((began.elapsed(), scraped.resident_bytes));
        }
        if is_told && count.is_multiple_of(20) {
            tell(
                "    time     sent/s answered/s  errors  not sent   hits      p50 ms     p99 ms     max ms       MB/s   resident MiB",
            );
        }
        tokio::select! {
            () = shared.stop.cancelled() => break,
            _ = ticks.tick() => {}
        }
        let window = std::mem::take(&mut *shared.window.lock());
        if is_told {
            let resident = memory.last().map_or(f64::NAN, |(_, bytes)| bytes / f64::from(1 << 20));
            tell(&line(began.elapsed(), &window, resident));
        }
    }
    memory
}

fn line(at: Duration, window: &Tally, resident: f64) -> String {
    let errors: u64 = window.errors.values().sum();
    let [p50, p99, max] = [0.5, 0.99, 1.0].map(|share| window.latency.at(share));
    format!(
        "{:>7}s {:>10} {:>10} {errors:>7} {:>9} {:>6.3} {p50:>11.3} {p99:>10.3} {max:>10.3} {:>10.1} {resident:>14.1}",
        at.as_secs(),
        window.sent,
        window.answered,
        window.crowded_out,
        window.hit_ratio(),
        window.bytes as f64 / 1e6,
    )
}

fn tell(line: &str) {
    // Whoever closed the pipe has seen enough.
    drop(writeln!(std::io::stderr(), "{line}"));
}
