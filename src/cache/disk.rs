//! The disk tier: one file an artifact, each proved chunk by chunk before it is given out.
//!
//! ```text
//! FOLDER/latentgate.lock    held by the one process that owns the folder
//! FOLDER/v1/ab/cd12..       an artifact: the envelope of artifact/envelope.rs, under its key's hex digits
//! FOLDER/v1/new/            being written; made visible by a rename, emptied at the start
//! FOLDER/v1/aside/          found damaged, the last few of them
//! ```
//!
//! The names are all there is of an index on disk: at the start they are read in the background, oldest files first,
//! while lookups already go to the files themselves. What is written is never seen in part, since it is renamed when
//! whole; so a process that is killed loses what it was writing. What a power failure tears is found out by its proofs.
//!
//! Nothing here is on an async thread but the index, and what a read finds in the system's memory. Reads have a bounded number of turns and a bound on time; a disk that
//! fails is left alone for a while (`condition.rs`) and the answers come from elsewhere.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use bytesize::ByteSize;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::timeout,
};
use tracing::Span;

use super::tier::{Lookup, Refused, Rest, Stored, Tier};
use crate::{
    artifact::Artifact,
    key::ContentKey,
    metrics::{Metrics, TierName},
    task::{self, BoxFuture},
};

mod condition;
mod folder;
pub mod index;
mod read;
mod scan;
mod sweep;
mod write;

use condition::Condition;
use folder::Folder;
pub use folder::{Faults, OpenError, Operation};
use index::Index;
use read::{Opened, Refusal};
pub use sweep::{Depth, Found};

/// Reads at a time: enough to keep a fast disk busy, few enough that a dead one holds few threads.
const READS: usize = 16;

/// Chunks read ahead of whoever takes them: a reader that waits for each to be taken changes threads with each.
const AHEAD: usize = 4;

/// The longest that a chunk may wait to be taken. Flights take theirs at once, an operator's client as fast as it reads;
/// meanwhile one of the turns and a thread wait with it.
const TAKEN_WITHIN: Duration = Duration::from_secs(30);

/// Settings of the disk tier.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The folder; there is no disk tier without one. Made if it is not there. One process owns it at a time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// Bytes of files kept, in whole blocks of 4 KiB.
    pub capacity: ByteSize,
    /// Free space that is left to others on the same file system: artifacts go, or do not come in, to keep it.
    pub min_free: ByteSize,
    /// When what is written is forced to the medium.
    pub sync: Sync,
    /// Bytes that may wait to be written; beyond, artifacts are dropped and counted.
    pub queue: ByteSize,
    /// The longest a lookup may wait for its first bytes, and between two chunks; then the answer comes from elsewhere.
    #[serde(with = "humantime_serde")]
    pub read_time: Duration,
    /// How long a disk that fails is left alone.
    #[serde(with = "humantime_serde")]
    pub rest_time: Duration,
}

/// When a file's bytes are forced to the medium.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sync {
    /// When the system sees fit. The default: a cache can lose what a power failure takes, proofs find out what it tore,
    /// a process that is killed loses nothing, and a sync costs every other program on the machine.
    #[default]
    Never,
    /// Before it is made visible.
    Close,
    /// The same, and its name too.
    Always,
}

/// The tier. Clones share it.
#[derive(Clone)]
pub struct Disk(Arc<Shared>);

struct Shared {
    config: Config,
    folder: Folder,
    /// Locked last, and never across a call that can block.
    state: Mutex<State>,
    /// Held while names change, so that index and names change together. Before `state`.
    names: Mutex<()>,
    turns: Arc<Semaphore>,
    reads: Condition,
    writes: Condition,
    metrics: Metrics,
}

struct State {
    index: Index,
    /// Whether all files that were there at the start are in the index.
    is_scanned: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            path: None,
            capacity: ByteSize::gib(20),
            min_free: ByteSize::gib(1),
            sync: Sync::Never,
            queue: ByteSize::mib(256),
            read_time: Duration::from_secs(1),
            rest_time: Duration::from_secs(5),
        }
    }
}

impl Disk {
    /// Opens the folder at `path`, takes its lock, and begins to read the names in it. Blocks for as long as that takes,
    /// which the reading of names is not part of.
    pub fn open(path: PathBuf, config: &Config, metrics: Metrics) -> Result<Self, OpenError> {
        Self::open_with(path, config, metrics, None)
    }

    /// The same on a disk that fails as `faults` say.
    pub fn open_with(
        path: PathBuf,
        config: &Config,
        metrics: Metrics,
        faults: Option<Faults>,
    ) -> Result<Self, OpenError> {
        let folder = Folder::open(path, faults)?;
        metrics.cache_known(TierName::Disk);
        let shared = Arc::new(Shared {
            folder,
            state: Mutex::new(State { index: Index::new(config.capacity.as_u64()), is_scanned: false }),
            names: Mutex::default(),
            turns: Arc::new(Semaphore::new(READS)),
            reads: Condition::new("read", config.rest_time),
            writes: Condition::new("written", config.rest_time),
            config: config.clone(),
            metrics,
        });
        let scanned = shared.clone();
        task::thread("disk-scan", move || scanned.scan()).map_err(OpenError::Thread)?;
        Ok(Self(shared))
    }

    /// Gives the folder up. Lookups find nothing from now on, and nothing is taken in. Whoever is moving names is let
    /// finish, unless the disk hangs.
    pub fn close(&self) {
        let _names = self.0.names.try_lock_for(self.0.config.read_time);
        self.0.folder.close();
    }

    /// Brings the gauges up to date.
    pub fn report(&self) {
        let [entries, bytes, capacity] = self.usage();
        self.0.metrics.cache(TierName::Disk, entries, bytes, capacity);
    }

    /// How much is held, and may be: entries, bytes, bytes at most.
    pub fn usage(&self) -> [u64; 3] {
        let state = self.0.state.lock();
        [state.index.len() as u64, state.index.bytes(), state.index.capacity()]
    }

    /// Whether everything that was there at the start is known by now.
    pub fn is_scanned(&self) -> bool {
        self.0.state.lock().is_scanned
    }

    /// Whether it has failed lately, and is left alone for a while.
    pub fn is_degraded(&self) -> bool {
        self.0.reads.is_bad() || self.0.writes.is_bad()
    }

    /// The folder, for people.
    pub fn path(&self) -> &std::path::Path {
        self.0.folder.path()
    }

    async fn look(&self, key: ContentKey) -> Lookup {
        let shared = &self.0;
        if !shared.expects(&key) {
            return Lookup::Miss;
        }
        if shared.folder.is_closed() || shared.reads.is_resting() {
            return Lookup::Throttled;
        }
        if let Some(Opened { head, first, .. }) = shared.folder.read_cached(&key) {
            return Lookup::Hit(Box::new(Stored::new(head, first, None)));
        }
        let reader = self.clone();
        let turns = shared.turns.clone();
        // Others' reading is no fault of the disk's.
        let Ok(Ok(turn)) = timeout(shared.config.read_time, turns.acquire_owned()).await else {
            return Lookup::Throttled;
        };
        // The turn is kept until the thread is done with the disk, however long ago its reader has left.
        let read = move || {
            let opened = reader.0.folder.read(&key);
            let was_known = match &opened {
                Ok(_) => true,
                Err(refusal) => reader.note(&key, refusal),
            };
            (opened, was_known, turn)
        };
        let Ok(Ok((opened, was_known, turn))) = timeout(shared.config.read_time, task::blocking(read)).await else {
            self.failed_to_read(&io::Error::from(io::ErrorKind::TimedOut));
            return Lookup::Throttled;
        };
        if !matches!(opened, Err(Refusal::Failed(_))) {
            self.read_well();
        }
        match opened {
            Ok(opened) => Lookup::Hit(Box::new(self.stream(key, opened, turn))),
            Err(Refusal::Absent) if !was_known => Lookup::Miss,
            Err(Refusal::Absent | Refusal::Foreign(_)) => Lookup::Stale,
            Err(Refusal::Corrupt(_)) => Lookup::Corrupt,
            Err(Refusal::Failed(_)) => Lookup::Throttled,
        }
    }

    /// The chunks behind the first ones, read a little ahead of whoever takes them.
    fn stream(&self, key: ContentKey, opened: Opened, turn: OwnedSemaphorePermit) -> Stored {
        let Opened { head, first, rest } = opened;
        let Some(mut rest) = rest else { return Stored::new(head, first, None) };
        let (sender, receiver) = mpsc::channel(AHEAD);
        let (disk, runtime) = (self.clone(), Handle::current());
        let read = move || {
            let _turn = turn;
            loop {
                let chunk = match rest.next() {
                    Ok(None) => return,
                    Ok(Some(chunk)) => Ok(chunk),
                    Err(refusal) => {
                        disk.note(&key, &refusal);
                        Err(refusal.fault())
                    }
                };
                let is_last = chunk.is_err();
                // Nobody takes the chunks any more if it cannot be sent.
                let sent = runtime.block_on(sender.send_timeout(chunk, TAKEN_WITHIN));
                if sent.is_err() || is_last {
                    return;
                }
            }
        };
        // Ends with the file, or with its reader. A panic drops the sender, and the reader finds a short artifact.
        task::spawn(Span::current(), async move { drop(task::blocking(read).await) }).detach();
        Stored::new(head, first, Some(Rest { chunks: receiver, patience: self.0.config.read_time }))
    }

    /// Counts what is wrong with a file, and takes a damaged one out of the way. Says whether the index knew it. Blocks.
    fn note(&self, key: &ContentKey, refusal: &Refusal) -> bool {
        match refusal {
            Refusal::Corrupt(why) => {
                self.0.metrics.cache_corrupt(TierName::Disk);
                tracing::warn!(
                    ?key,
                    why,
                    "a file of the disk tier is damaged; it is set aside, and its artifact made anew"
                );
                self.0.set_aside(key);
            }
            Refusal::Failed(error) => self.failed_to_read(error),
            // Left where it is: its own version may come back.
            Refusal::Foreign(why) => tracing::debug!(?key, %why, "a file of the disk tier is of another version"),
            Refusal::Absent => return self.0.forget(key),
        }
        true
    }

    fn failed_to_read(&self, error: &io::Error) {
        self.0.reads.failed(error, &self.0.folder);
        self.tell_condition();
    }

    fn read_well(&self) {
        if self.0.reads.succeeded(&self.0.folder) {
            self.tell_condition();
        }
    }

    fn tell_condition(&self) {
        self.0.metrics.cache_degraded(TierName::Disk, self.is_degraded());
    }

    async fn write(&self, artifact: Arc<Artifact>) -> Result<(), Refused> {
        if self.0.folder.is_closed() || self.0.writes.is_resting() {
            return Err(Refused::Resting);
        }
        let shared = self.0.clone();
        let written = task::blocking(move || shared.write(&artifact)).await;
        let written = written.unwrap_or_else(|panic| Err(io::Error::other(panic)));
        let result = match written {
            Ok(Ok(())) => {
                self.0.writes.succeeded(&self.0.folder);
                Ok(())
            }
            Ok(Err(refused)) => Err(refused),
            Err(error) => {
                self.0.writes.failed(&error, &self.0.folder);
                Err(Refused::Failed(error.to_string()))
            }
        };
        self.tell_condition();
        result
    }
}

impl Tier for Disk {
    fn name(&self) -> TierName {
        TierName::Disk
    }

    fn get(&self, key: ContentKey) -> BoxFuture<'_, Lookup> {
        Box::pin(async move {
            let found = self.look(key).await;
            self.0.metrics.cache_lookup(TierName::Disk, found.result());
            found
        })
    }

    fn put(&self, artifact: Arc<Artifact>) -> BoxFuture<'_, Result<(), Refused>> {
        Box::pin(self.write(artifact))
    }

    fn remove(&self, key: ContentKey) -> BoxFuture<'_, bool> {
        let disk = self.clone();
        Box::pin(async move {
            let taken = task::blocking(move || disk.take_out(&key)).await;
            matches!(taken, Ok(Ok(Some(_))))
        })
    }
}

impl Shared {
    /// Whether a file may be there. Counts a use.
    fn expects(&self, key: &ContentKey) -> bool {
        let mut state = self.state.lock();
        state.index.use_of(key).is_some() || !state.is_scanned
    }

    /// Says whether it was known. What has been written meanwhile stays.
    fn forget(&self, key: &ContentKey) -> bool {
        if !self.state.lock().index.contains(key) {
            return false;
        }
        let _names = self.names.lock();
        let is_gone = matches!(self.folder.place(key).try_exists(), Ok(false));
        is_gone && self.state.lock().index.remove(key).is_some()
    }

    fn set_aside(&self, key: &ContentKey) {
        let _names = self.names.lock();
        if self.folder.is_closed() {
            return;
        }
        self.state.lock().index.remove(key);
        if let Err(error) = self.folder.set_aside(key) {
            tracing::debug!(?key, %error, "a damaged file stays where it is");
        }
    }
}

#[cfg(test)]
mod tests;
