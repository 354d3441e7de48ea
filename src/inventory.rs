//! What is kept, for operators: counted, listed, given out, purged, proved.
//!
//! It stands beside the pipeline and not in it: no request comes through here, and nothing here makes an answer. Both
//! faces of the admin port use it, so that each of its rules is written once.
//!
//! What takes long (a listing, a purge, a verification) goes through the disk on a blocking thread and tells how it is
//! getting on ([`Telling`]). It stops at the next entry when nobody listens any more, or when the server drains. One
//! purge or verification runs at a time, since two would only share one disk's speed.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::{
    artifact::{Artifact, Subject},
    cache::{disk::Disk, fill::Fill, memory::Memory},
    error::{Error, ErrorKind},
    meta::Meta,
    metrics::TierName,
};

mod give;
mod list;
mod purge;
mod telling;
mod verify;

pub use give::Given;
pub use list::Listing;
pub use purge::{Purged, Purging, Selection, Wish};
pub use telling::{Progress, Telling};
pub use verify::{Fault, Finding, Repair, Verified, Verifying};

/// Listings at a time: each holds a thread, and an operator needs one.
const LISTINGS: usize = 4;

/// Everything that is kept. Clones share it.
#[derive(Clone)]
pub struct Inventory(Arc<Shared>);

struct Shared {
    memory: Memory,
    disk: Option<Disk>,
    fills: Vec<Fill>,
    /// Cancelled when the server drains.
    stop: CancellationToken,
    sweeps: Arc<Semaphore>,
    listings: Arc<Semaphore>,
}

/// Where an artifact can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The memory tier.
    Memory,
    /// The queue before the disk tier.
    Queue,
    /// The disk tier.
    Disk,
}

/// One artifact that is kept, without its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Whose result it is.
    pub subject: Subject,
    /// What the bytes are.
    pub meta: Meta,
    /// Bytes of its file; 0 if it is not on disk.
    pub disk_bytes: u64,
    /// Where it is.
    pub places: Vec<Place>,
}

/// How full a tier is, and how it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TierStats {
    /// Memory or disk.
    pub place: Place,
    /// Artifacts.
    pub entries: u64,
    /// Bytes they take.
    pub bytes: u64,
    /// Bytes they may take.
    pub capacity_bytes: u64,
    /// Bytes that wait to be written to it.
    pub queue_bytes: u64,
    /// Bytes that may wait.
    pub queue_capacity_bytes: u64,
    /// Whether it has failed lately and is left alone.
    pub is_degraded: bool,
    /// Whether all that was there at the start is known.
    pub is_scanned: bool,
    /// Its folder.
    pub path: String,
}

// === impl Inventory ===

impl Inventory {
    /// The inventory of these tiers. Sweeps end when `stop` is cancelled.
    pub fn new(memory: Memory, disk: Option<Disk>, fills: Vec<Fill>, stop: CancellationToken) -> Self {
        let (sweeps, listings) = (Arc::new(Semaphore::new(1)), Arc::new(Semaphore::new(LISTINGS)));
        Self(Arc::new(Shared { memory, disk, fills, stop, sweeps, listings }))
    }

    /// Brings the gauges of all tiers up to date.
    pub fn report(&self) {
        self.0.memory.report();
        self.0.disk.iter().for_each(Disk::report);
        self.0.fills.iter().for_each(Fill::report);
    }

    /// How full each tier is, nearest first.
    pub fn stats(&self) -> Vec<TierStats> {
        let shared = &self.0;
        let [entries, bytes, capacity_bytes] = shared.memory.usage();
        let memory = TierStats {
            place: Place::Memory,
            entries,
            bytes,
            capacity_bytes,
            queue_bytes: 0,
            queue_capacity_bytes: 0,
            is_degraded: false,
            is_scanned: true,
            path: String::new(),
        };
        std::iter::once(memory).chain(shared.disk.as_ref().map(|disk| shared.disk_stats(disk))).collect()
    }

    /// The turn of a sweep, or why there is none.
    fn sweep_turn(&self) -> Result<OwnedSemaphorePermit, Error> {
        let turn = self.0.sweeps.clone().try_acquire_owned();
        turn.map_err(|_| Error::new(ErrorKind::Overloaded, "another purge or verification runs; wait for its end"))
    }
}

impl Shared {
    fn disk_stats(&self, disk: &Disk) -> TierStats {
        let [entries, bytes, capacity_bytes] = disk.usage();
        let fill = self.fills.iter().find(|fill| fill.tier().name() == TierName::Disk);
        let [queue_bytes, queue_capacity_bytes] = fill.map(Fill::usage).unwrap_or_default();
        TierStats {
            place: Place::Disk,
            entries,
            bytes,
            capacity_bytes,
            queue_bytes,
            queue_capacity_bytes,
            is_degraded: disk.is_degraded(),
            is_scanned: disk.is_scanned(),
            path: disk.path().display().to_string(),
        }
    }

    /// A sweep that does not know of every file would promise more than it does.
    fn check_scanned(&self) -> Result<(), Error> {
        match &self.disk {
            Some(disk) if !disk.is_scanned() => Err(Error::new(
                ErrorKind::Unavailable,
                "what is on disk is still being read after the start; try again when the stats say `scanned`",
            )),
            _ => Ok(()),
        }
    }
}

// === impl Item ===

impl Item {
    fn of(artifact: &Artifact, place: Place) -> Self {
        Self { subject: artifact.subject().clone(), meta: artifact.meta().clone(), disk_bytes: 0, places: vec![place] }
    }
}

#[cfg(test)]
mod tests;
