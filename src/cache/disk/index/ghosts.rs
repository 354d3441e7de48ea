//! Ghosts: keys that left the small queue without a use, remembered by fingerprint.
//!
//! 4 bytes of the digest stand for a key. Among a million ghosts a key that never was here is taken for one of them once
//! in 4,000 times, and what that costs is a place in the main queue for one round.

use std::collections::VecDeque;

use hashbrown::HashTable;

use crate::key::ContentKey;

/// As many of the latest as the caller wants. A fingerprint is in both or in neither, once.
#[derive(Default)]
pub(super) struct Ghosts {
    order: VecDeque<u32>,
    known: HashTable<u32>,
}

// === impl Ghosts ===

impl Ghosts {
    /// Remembers a key, and at most `most` in all. One that is remembered already keeps its place.
    pub(super) fn remember(&mut self, key: &ContentKey, most: usize) {
        if self.contains(key) {
            return;
        }
        while self.order.len() >= most.max(1) {
            self.forget_oldest();
        }
        let print = fingerprint(key);
        self.order.push_back(print);
        self.known.insert_unique(spread(print), print, |&print| spread(print));
    }

    /// Whether a key is remembered.
    pub(super) fn contains(&self, key: &ContentKey) -> bool {
        let print = fingerprint(key);
        self.known.find(spread(print), |&other| other == print).is_some()
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.order.capacity() * size_of::<u32>() + self.known.allocation_size()
    }

    fn forget_oldest(&mut self) {
        let Some(print) = self.order.pop_front() else { return };
        if let Ok(found) = self.known.find_entry(spread(print), |&other| other == print) {
            found.remove();
        }
    }
}

/// The last bytes of the digest: the table of the entries hashes by the first.
fn fingerprint(key: &ContentKey) -> u32 {
    let (words, _) = key.as_bytes().as_chunks::<4>();
    u32::from_le_bytes(words[7])
}

/// A hash of a fingerprint: the table takes the place from the low bits and a tag from the high ones.
fn spread(print: u32) -> u64 {
    u64::from(print) << 32 | u64::from(print)
}
