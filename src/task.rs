//! The only spawner. Every task has an owner that joins or aborts it, a name for the log, and its creator's span.
//!
//! The ground's one impure module: everything else down here neither spawns nor blocks.

use std::{
    future::Future,
    io,
    ops::ControlFlow,
    pin::Pin,
    sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
};

use tokio::task::{AbortHandle, JoinError, JoinHandle};
use tracing::{Instrument as _, Span};

/// A boxed future, behind the traits whose implementations are chosen at run time.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A running task. Dropping it aborts the task, so that nothing outlives its owner by accident.
#[must_use = "a dropped task is aborted"]
#[derive(Debug)]
pub struct Task<T> {
    handle: JoinHandle<T>,
    abort_on_drop: bool,
}

/// Starts `work` on the runtime, inside `span`.
pub fn spawn<T: Send + 'static>(span: Span, work: impl Future<Output = T> + Send + 'static) -> Task<T> {
    #[expect(clippy::disallowed_methods, reason = "this is the spawner")]
    let handle = tokio::spawn(work.instrument(span));
    Task { handle, abort_on_drop: true }
}

/// Runs `work` on the blocking pool, inside the current span. It cannot be aborted once it runs, so it has to be short:
/// rendering, hashing, decoding a picture. A panic in it comes back as the error.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, JoinError> {
    let span = Span::current();
    #[expect(clippy::disallowed_methods, reason = "this is the spawner")]
    let handle = tokio::task::spawn_blocking(move || span.in_scope(work));
    handle.await
}

/// Starts an operating-system thread for work that owns it for life, such as an engine.
pub fn thread(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<thread::JoinHandle<()>> {
    thread::Builder::new().name(name.to_owned()).spawn(work)
}

/// Works `items` off on so many threads, and takes the results here, one by one, in the order they come. Ends when all are
/// taken, or when `take` says so and what was begun is done. Blocks.
pub fn share_out<T: Sync, R: Send>(
    threads: usize,
    items: &[T],
    work: impl Fn(&T) -> R + Sync,
    mut take: impl FnMut(&T, R) -> ControlFlow<()>,
) -> ControlFlow<()> {
    if threads <= 1 || items.len() <= 1 {
        return items.iter().try_for_each(|item| take(item, work(item)));
    }
    let next = AtomicUsize::new(0);
    let (sender, receiver) = mpsc::sync_channel(threads);
    thread::scope(|scope| {
        for _ in 0..threads.min(items.len()) {
            let (sender, next, work) = (sender.clone(), &next, &work);
            scope.spawn(move || {
                while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                    // Whoever takes the results has heard enough.
                    if sender.send((item, work(item))).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        receiver.into_iter().try_for_each(|(item, result)| take(item, result))
    })
}

impl<T> Task<T> {
    /// Waits for the end. A panic in the task comes back as the error.
    pub async fn join(mut self) -> Result<T, JoinError> {
        (&mut self.handle).await
    }

    /// Lets the task run to its end without an owner. For work that watches its own reasons to stop.
    pub fn detach(mut self) -> AbortHandle {
        self.abort_on_drop = false;
        self.handle.abort_handle()
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        if self.abort_on_drop {
            self.handle.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shared_out_is_done_once_each_and_ends_when_it_is_to() {
        for threads in [1, 3, 200] {
            let items: Vec<u32> = (0..100).collect();
            let mut taken = Vec::new();
            let end = share_out(
                threads,
                &items,
                |item| item * 2,
                |&item, double| {
                    assert_eq!(double, item * 2);
                    taken.push(item);
                    ControlFlow::Continue(())
                },
            );
            taken.sort_unstable();
            assert!(end.is_continue() && taken == items, "{threads} threads");

            let mut taken = 0;
            let end = share_out(
                threads,
                &items,
                |_| (),
                |_, ()| {
                    taken += 1;
                    if taken == 7 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                },
            );
            assert!(end.is_break() && taken == 7, "{threads} threads: {taken}");
        }
    }
}
