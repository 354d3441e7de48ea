//! Going through everything that is on disk: to look, to prove, to purge. For operators; takes its time.
//!
//! Pages of the index are taken one by one, so lookups and writes go on meanwhile; what comes in during a sweep may be met
//! or not. Files are read by several threads: one alone waits for a fast disk most of the time, and for its own hashing
//! the rest. Everything here blocks.

use std::{io, ops::ControlFlow};

use super::{
    Disk, Shared,
    index::{Cursor, Entry},
    read::{Opened, Refusal},
};
use crate::{artifact::envelope::Head, key::ContentKey, metrics::TierName, task};

/// Entries looked at between two looks at the index.
const PAGE: usize = 256;

/// Files read at a time. Each thread proves what it reads, at about 2 GB/s: enough for the disks there are.
const READERS: usize = 4;

/// How much of each entry a sweep looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Its key. No file is opened.
    Key,
    /// Its head.
    Head,
    /// Every byte, proved.
    Whole,
}

/// One entry, as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// Nothing but its key was looked at.
    Known,
    /// Whole, as far as was looked.
    Whole(Box<Head>),
    /// Damaged, and how.
    Damaged(&'static str),
    /// Not there any more, or of another version.
    Gone,
    /// It could not be read.
    Unreadable(String),
}

impl Disk {
    /// Meets every entry, looked at to some depth, until `meet` says that it is enough. In no particular order. What a sweep
    /// of everything finds damaged counts as such.
    pub fn sweep(&self, depth: Depth, mut meet: impl FnMut(Entry, Found) -> ControlFlow<()>) -> ControlFlow<()> {
        let readers = if depth == Depth::Key { 1 } else { READERS };
        let mut pages = self.pages();
        pages.try_for_each(|page| {
            let find = |entry: &Entry| self.0.find(&entry.key, depth);
            task::share_out(readers, &page, find, |entry, found| meet(*entry, found))
        })
    }

    /// Takes an entry out, and says how many bytes its file had in the index; none if it was not there. An entry whose file
    /// cannot be removed stays.
    pub fn take_out(&self, key: &ContentKey) -> io::Result<Option<u64>> {
        let _names = self.0.names.lock();
        if self.0.folder.is_closed() {
            return Err(io::Error::other("the folder has been given up"));
        }
        let was_there = match self.0.folder.remove(key) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(error),
        };
        let bytes = self.0.state.lock().index.remove(key);
        Ok(was_there.then(|| bytes.unwrap_or_default()))
    }

    fn pages(&self) -> impl Iterator<Item = Vec<Entry>> + '_ {
        let mut at: Option<Option<Cursor>> = Some(None);
        std::iter::from_fn(move || {
            let (page, next) = self.0.state.lock().index.page(at?, PAGE);
            at = next.map(Some);
            Some(page)
        })
    }
}

impl Shared {
    fn find(&self, key: &ContentKey, depth: Depth) -> Found {
        let found = match depth {
            Depth::Key => return Found::Known,
            Depth::Head => self.folder.head(key),
            Depth::Whole => self.prove(key),
        };
        match found {
            Ok(head) => Found::Whole(Box::new(head)),
            Err(Refusal::Absent | Refusal::Foreign(_)) => Found::Gone,
            Err(Refusal::Corrupt(why)) => {
                if depth == Depth::Whole {
                    self.metrics.cache_corrupt(TierName::Disk);
                }
                Found::Damaged(why)
            }
            Err(Refusal::Failed(error)) => Found::Unreadable(error.to_string()),
        }
    }

    /// By the checksum of each chunk, as every read does, and by the digest of the whole.
    fn prove(&self, key: &ContentKey) -> Result<Head, Refusal> {
        let Opened { head, first, mut rest } = self.folder.read(key)?;
        let mut hasher = blake3::Hasher::new();
        for chunk in &first {
            hasher.update(chunk);
        }
        if let Some(rest) = &mut rest {
            while let Some(chunk) = rest.next()? {
                hasher.update(&chunk);
            }
        }
        if *hasher.finalize().as_bytes() == head.seal.digest { Ok(head) } else { Err(Refusal::Corrupt("its digest")) }
    }
}
