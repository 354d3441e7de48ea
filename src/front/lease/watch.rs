//! The watch beside all response bodies of a front: one task, woken when the first of them may be overdue.
//!
//! A task and a timer for every body would be more work than the rest of a small hit.

use std::{
    sync::{Arc, OnceLock, Weak},
    time::Duration,
};

use parking_lot::Mutex;
use slab::Slab;
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};
use tracing::Span;

use super::{Frames, Held, Lease, Terms};
use crate::task::{self, Task};

/// A body that gives out a frame at this very moment is looked at again after so long.
const BUSY: Duration = Duration::from_millis(20);

/// The bodies of a front. Clones share them; with the last of those and of the bodies the watch ends.
#[derive(Clone)]
pub(in crate::front) struct Leases(Arc<Shared>);

struct Shared {
    table: Mutex<Table>,
    /// One may be overdue before the watch would look next.
    sooner: Arc<Notify>,
    /// Begins with the first body: there is a runtime by then.
    watch: OnceLock<Task<()>>,
}

#[derive(Default)]
struct Table {
    held: Slab<Arc<Mutex<Held>>>,
    /// When the watch looks next, if it does.
    looks_at: Option<Instant>,
}

/// A body's place under the watch.
pub(super) struct Place {
    leases: Leases,
    at: usize,
}

impl Leases {
    pub(in crate::front) fn new() -> Self {
        let shared = Shared { table: Mutex::default(), sooner: Arc::default(), watch: OnceLock::new() };
        Self(Arc::new(shared))
    }

    /// `frames`, for as long as the terms are kept.
    pub(in crate::front) fn lease(&self, frames: Frames, terms: Terms) -> Lease {
        let taken_back = terms.taken_back;
        let held = Held { frames: Some(frames), waker: None, owed_since: None, terms };
        let due = held.due(Instant::now());
        let held = Arc::new(Mutex::new(held));
        let at = {
            let mut table = self.0.table.lock();
            if table.looks_at.is_none_or(|at| due < at) {
                table.looks_at = Some(due);
                self.0.sooner.notify_one();
            }
            table.held.insert(held.clone())
        };
        self.0.watch.get_or_init(|| task::spawn(Span::none(), watch(Arc::downgrade(&self.0), self.0.sooner.clone())));
        Lease { held, taken_back, is_over: false, _place: Place { leases: self.clone(), at } }
    }
}

impl Table {
    /// Takes back what is overdue, and says when to look next: one body's end or a later frame only moves that on.
    fn look(&mut self, now: Instant) -> Vec<Frames> {
        let mut taken = Vec::new();
        self.looks_at = None;
        for (_, held) in &self.held {
            // Never waited for: whoever has it now is about to give out a frame.
            let due = match held.try_lock() {
                None => now + BUSY,
                Some(held) if held.frames.is_none() => continue,
                Some(mut held) => {
                    let due = held.due(now);
                    if due <= now {
                        taken.extend(held.take_back());
                        continue;
                    }
                    due
                }
            };
            self.looks_at = Some(self.looks_at.map_or(due, |at| at.min(due)));
        }
        taken
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.leases.0.table.lock().held.remove(self.at);
    }
}

async fn watch(leases: Weak<Shared>, sooner: Arc<Notify>) {
    loop {
        let Some(shared) = leases.upgrade() else { return };
        let (taken, next) = {
            let mut table = shared.table.lock();
            (table.look(Instant::now()), table.looks_at)
        };
        drop((taken, shared));
        match next {
            None => sooner.notified().await,
            Some(next) => tokio::select! {
                () = sleep_until(next) => {}
                () = sooner.notified() => {}
            },
        }
    }
}
