//! Whether a disk that failed is asked again.
//!
//! After a few failures in a row it is left alone for a while; then one call is let through, and if that fails too, for
//! another while. The change is logged, not each failure: a dead disk fails thousands of times a minute.

use std::{io, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;

use super::folder::Folder;

/// Failures in a row that are no accident any more.
const PATIENCE: u32 = 3;

/// The condition of one direction.
pub(super) struct Condition {
    /// `read`, `written`: for the log.
    what: &'static str,
    rest: Duration,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// In a row.
    failures: u32,
    rests_until: Option<Instant>,
}

impl Condition {
    pub(super) fn new(what: &'static str, rest: Duration) -> Self {
        Self { what, rest, state: Mutex::default() }
    }

    /// Whether it is to be left alone now. The first to ask after a rest is told no, and tries for all.
    pub(super) fn is_resting(&self) -> bool {
        let now = Instant::now();
        let mut state = self.state.lock();
        match state.rests_until {
            Some(until) if now < until => true,
            Some(_) => {
                state.rests_until = Some(now + self.rest);
                false
            }
            None => false,
        }
    }

    /// Whether it has failed too often to be relied on.
    pub(super) fn is_bad(&self) -> bool {
        self.state.lock().rests_until.is_some()
    }

    pub(super) fn failed(&self, error: &io::Error, folder: &Folder) {
        let mut state = self.state.lock();
        state.failures = state.failures.saturating_add(1);
        if state.failures < PATIENCE && !is_lasting(error) {
            return;
        }
        let was_well = state.rests_until.replace(Instant::now() + self.rest).is_none();
        drop(state);
        if was_well {
            let (path, rest) = (folder.path().display(), self.rest);
            tracing::warn!(%path, %error, ?rest, "the disk tier cannot be {}; it is left alone, and tried again", self.what);
        }
    }

    /// Says whether this is news.
    pub(super) fn succeeded(&self, folder: &Folder) -> bool {
        let mut state = self.state.lock();
        state.failures = 0;
        let was_bad = state.rests_until.take().is_some();
        drop(state);
        if was_bad {
            tracing::info!(path = %folder.path().display(), "the disk tier can be {} again", self.what);
        }
        was_bad
    }
}

/// Failures that the next call would meet too.
fn is_lasting(error: &io::Error) -> bool {
    use io::ErrorKind::{PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | ReadOnlyFilesystem | PermissionDenied)
}
