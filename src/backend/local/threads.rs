//! The threads that an engine computes on: a pool of its own, so that a configured number holds and nobody else's work
//! stands in it.

use std::io;

use rayon::{ThreadPool, ThreadPoolBuilder};

/// Threads of an engine. Dropping them ends them.
pub struct Threads(ThreadPool);

impl Threads {
    /// The most that can be asked for: more is no configuration but a slip.
    pub const MAX: usize = 1024;

    /// Starts so many; 0: as many as there are processors for this process.
    pub fn start(count: usize) -> io::Result<Self> {
        let builder = ThreadPoolBuilder::new().num_threads(count).thread_name(|index| format!("engine-{index}"));
        builder.build().map(Self).map_err(io::Error::other)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.current_num_threads()
    }

    /// Does `work` on one of them while the caller waits; what the engine does in it is spread over all of them. A panic
    /// in it is the caller's.
    pub fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.0.install(work)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_runs_on_as_many_threads_as_were_asked_for() {
        let threads = Threads::start(3).unwrap();
        assert_eq!(threads.count(), 3);
        let (seen, name) = threads.run(|| {
            let name = std::thread::current().name().map(str::to_owned);
            (rayon::current_num_threads(), name)
        });
        assert_eq!(seen, 3);
        assert!(name.is_some_and(|name| name.starts_with("engine-")));
        assert!(Threads::start(0).unwrap().count() >= 1);
    }
}
