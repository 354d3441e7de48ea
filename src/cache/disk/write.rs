//! Writing one artifact: room first, then a file that nobody sees, then its name.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::Path,
};

use super::{
    Shared, Sync,
    folder::Operation,
    index::{BLOCK, Entry, Inserted},
};
use crate::{
    artifact::{Artifact, envelope::Head},
    cache::tier::Refused,
    metrics::{EvictionReason, TierName},
};

impl Shared {
    /// Writes an artifact and makes it visible. Whatever fails on the way, what was there before stays, and nothing of
    /// the new file does. A file system that is full, whatever it says of its free bytes, is met once by letting others go.
    pub(super) fn write(&self, artifact: &Artifact) -> io::Result<Result<(), Refused>> {
        let head = Head::of(artifact);
        let encoded = head.encode();
        let bytes = (encoded.len() as u64 + head.seal.length).next_multiple_of(BLOCK);
        if let Err(refused) = self.make_room(bytes)? {
            return Ok(Err(refused));
        }
        let written = match self.try_write(&encoded, bytes, artifact) {
            Err(error) if is_full(&error) => {
                self.evict(bytes, EvictionReason::Space);
                self.try_write(&encoded, bytes, artifact)
            }
            written => written,
        };
        written.map(Ok)
    }

    fn try_write(&self, head: &[u8], bytes: u64, artifact: &Artifact) -> io::Result<()> {
        let (new, file) = self.folder.create()?;
        let written = self.fill(file, head, artifact);
        let published = written.and_then(|()| self.publish(&new, bytes, artifact));
        if published.is_err() {
            // Gone already if it was the name that failed; at the next start at the latest.
            drop(fs::remove_file(&new));
        }
        published
    }

    /// Lets others go until `bytes` fit, into the capacity and above the free space that is to stay.
    fn make_room(&self, bytes: u64) -> io::Result<Result<(), Refused>> {
        let no_room = |why| Ok(Err(Refused::NoRoom { bytes, why }));
        if bytes > self.config.capacity.as_u64() {
            return no_room("cache.disk.capacity is less");
        }
        let over = {
            let state = self.state.lock();
            (state.index.bytes() + bytes).saturating_sub(state.index.capacity())
        };
        self.evict(over, EvictionReason::Size);
        let wanted = self.config.min_free.as_u64().saturating_add(bytes);
        let missing = wanted.saturating_sub(self.folder.free_bytes()?);
        self.evict(missing, EvictionReason::Space);
        if missing > 0 && self.folder.free_bytes()? < wanted {
            return no_room("the file system has too little left (cache.disk.min_free)");
        }
        Ok(Ok(()))
    }

    fn evict(&self, bytes: u64, reason: EvictionReason) {
        if bytes > 0 {
            let _names = self.names.lock();
            if self.folder.is_closed() {
                return;
            }
            let evicted = self.state.lock().index.evict(bytes);
            self.unlink(&evicted, reason);
        }
    }

    /// Removes the files of what has left the index. The caller holds the names.
    pub(super) fn unlink(&self, evicted: &[Entry], reason: EvictionReason) {
        for entry in evicted {
            self.metrics.cache_evicted(TierName::Disk, reason);
            if let Err(error) = self.folder.remove(&entry.key) {
                tracing::debug!(key = ?entry.key, %error, "an evicted file cannot be removed");
            }
        }
    }

    fn fill(&self, mut file: File, head: &[u8], artifact: &Artifact) -> io::Result<()> {
        reserve(&file, head.len() as u64 + artifact.seal().length)?;
        self.folder.before(Operation::Write)?;
        file.write_all(head)?;
        for slice in artifact.slices() {
            self.folder.before(Operation::Write)?;
            file.write_all(&slice)?;
        }
        if self.config.sync != Sync::Never {
            self.folder.before(Operation::Sync)?;
            file.sync_data()?;
        }
        Ok(())
    }

    fn publish(&self, new: &Path, bytes: u64, artifact: &Artifact) -> io::Result<()> {
        let key = artifact.key();
        let _names = self.names.lock();
        if self.folder.is_closed() {
            return Err(io::Error::other("the folder has been given up"));
        }
        self.folder.publish(new, key)?;
        let inserted = self.state.lock().index.insert(*key, bytes);
        match inserted {
            Inserted::Admitted { evicted } => self.unlink(&evicted, EvictionReason::Size),
            // Looked at before; and a file that the index does not know is nobody's.
            Inserted::TooLarge { .. } => self.folder.remove(key)?,
        }
        if self.config.sync == Sync::Always {
            self.folder.sync_name(key)?;
        }
        Ok(())
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Takes the room before a byte is written, where the file system can: a disk that is full says so now.
fn reserve(file: &File, bytes: u64) -> io::Result<()> {
    use rustix::{
        fs::{FallocateFlags, fallocate},
        io::Errno,
    };
    match fallocate(file, FallocateFlags::KEEP_SIZE, 0, bytes) {
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
