//! The start: which files are there, in the background.
//!
//! A name says whose a file is and the file system how large and how old, so nothing is opened. Until it is over a lookup
//! that the index knows nothing of goes to the file itself.

use std::{fs, io, time::SystemTime};

use tokio::time::Instant;

use super::{
    Shared,
    folder::Folder,
    index::{Entry, Inserted},
};
use crate::{key::ContentKey, metrics::EvictionReason};

/// Entries that come into the index while it is locked once.
const STEP: usize = 4096;

/// A file that was there at the start.
struct Known {
    modified: SystemTime,
    key: ContentKey,
    bytes: u64,
}

impl Shared {
    /// Brings every file into the index, eldest first, as if they had come in that order.
    pub(super) fn scan(&self) {
        let began = Instant::now();
        let mut known = Vec::new();
        for byte in 0..=u8::MAX {
            if let Err(error) = self.scan_shelf(byte, &mut known) {
                let shelf = self.folder.shelf(byte);
                tracing::warn!(path = %shelf.display(), %error, "a folder of the disk tier cannot be read");
            }
        }
        known.sort_unstable_by_key(|known| known.modified);
        for step in known.chunks(STEP) {
            self.load(step);
        }
        self.state.lock().is_scanned = true;
        let (entries, took) = (known.len(), began.elapsed());
        tracing::info!(path = %self.folder.path().display(), entries, ?took, "the disk tier is known");
    }

    fn scan_shelf(&self, byte: u8, known: &mut Vec<Known>) -> io::Result<()> {
        for entry in fs::read_dir(self.folder.shelf(byte))? {
            let entry = entry?;
            let Some(key) = entry.file_name().to_str().and_then(|name| Folder::key(byte, name)) else { continue };
            match entry.metadata() {
                Ok(file) => known.push(Known { modified: file.modified()?, key, bytes: file.len() }),
                // Evicted or replaced since, or of no use.
                Err(error) => tracing::debug!(?key, %error, "a file of the disk tier cannot be looked at"),
            }
        }
        Ok(())
    }

    fn load(&self, step: &[Known]) {
        let _names = self.names.lock();
        if self.folder.is_closed() {
            return;
        }
        let mut evicted: Vec<Entry> = Vec::new();
        let mut state = self.state.lock();
        for &Known { key, bytes, .. } in step {
            // Written anew since.
            if state.index.contains(&key) {
                continue;
            }
            match state.index.load(key, bytes) {
                Inserted::Admitted { evicted: more } => evicted.extend(more),
                Inserted::TooLarge { .. } => evicted.push(Entry { key, bytes }),
            }
        }
        drop(state);
        self.unlink(&evicted, EvictionReason::Size);
    }
}
