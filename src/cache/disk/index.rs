//! The index of the disk tier: which content keys are on disk, how much room each takes, and who goes when room is needed.
//!
//! Eviction is S3-FIFO (Yang, Zhang, Qiu, Yue, Rashmi: "FIFO queues are all you need for cache eviction", SOSP 2023),
//! counted in bytes. What is new enters a small queue. At its end it moves to the main queue if it has been used
//! meanwhile, and goes otherwise, leaving a ghost: if it comes again while the ghost is remembered, it enters the main
//! queue at once. At the end of the main queue a use buys another round. So a scan of artifacts that nobody asks for again
//! passes through the small queue and leaves the main one alone, and a use costs one counter, not a move in a list.
//!
//! Invariants:
//! - After every call the bytes are at most the capacity.
//! - Every key that leaves is told to the caller once, by the call that removes it. The files are the caller's.
//! - An entry costs at most 200 bytes of memory, and at most one for each [`BLOCK`] of the capacity is held. Memory
//!   follows the most entries there ever were, not how many came and went.
//!
//! Nothing here blocks or knows a disk. A call takes constant time for each entry that it adds or lets go, and what
//! the constant is at worst is `PATIENCE`.

use hashbrown::HashTable;

use crate::key::ContentKey;

mod ghosts;
mod slab;

use ghosts::Ghosts;
use slab::{Place, Slab};

/// What a file is accounted in: file systems give whole blocks of this many bytes.
pub const BLOCK: u64 = 4096;

/// The part of the capacity beyond which the small queue gives way before the main one: one in this many. The paper's,
/// which chose it on real traces. `benches/eviction` would have it smaller (by 0.6 points of hit ratio at one in 50), but
/// its requests come without the bursts in which a new artifact is asked for again: for those it has to stay a while.
const SMALL_PART: u64 = 10;

/// Uses that are remembered of an entry, each worth one round in the main queue.
const MOST_USES: u8 = 3;

/// Entries spared in a row for one that goes; the next goes whatever its uses. Without it, an index whose entries have
/// all been used would visit every one of them, up to three times, within one call.
const PATIENCE: u32 = 1000;

/// The index. Not shared: its owner locks it.
pub struct Index {
    slab: Slab,
    /// Ids of slots by their keys.
    table: HashTable<u32>,
    ghosts: Ghosts,
    /// In blocks.
    capacity: u64,
}

/// A key and the bytes its file takes, in whole blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: ContentKey,
    /// A multiple of [`BLOCK`].
    pub bytes: u64,
}

/// What became of an entry that was to come in.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "the files of what left are still there"]
pub enum Inserted {
    /// It is in.
    Admitted {
        /// What went for it, never itself.
        evicted: Vec<Entry>,
    },
    /// It is larger than the capacity and not in. Nothing else went.
    TooLarge {
        /// What was in under its key, and is not any more.
        replaced: Option<Entry>,
    },
}

/// Where a page ended. Good for as long as the index lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor(u32);

// === impl Index ===

impl Index {
    /// An empty index of files that may take `capacity_bytes` in all. 0 takes in nothing.
    pub fn new(capacity_bytes: u64) -> Self {
        Self {
            slab: Slab::default(),
            table: HashTable::new(),
            ghosts: Ghosts::default(),
            capacity: capacity_bytes / BLOCK,
        }
    }

    /// Takes in what was on disk before a restart. To be called oldest first: what does not fit is then the oldest.
    ///
    /// It goes straight to the main queue, without uses: it was proven or about to be, and the small queue would throw
    /// most of it away for the first new artifacts.
    pub fn load(&mut self, key: ContentKey, bytes: u64) -> Inserted {
        self.admit(key, bytes, Place::Main)
    }

    /// Takes in a file of `bytes` and says what must go for it.
    ///
    /// A key that is in already gets the new size and keeps its place and its uses; if it has grown, it keeps its queue
    /// and goes to the back of it, so that it does not go to make room for itself.
    pub fn insert(&mut self, key: ContentKey, bytes: u64) -> Inserted {
        let place = if self.ghosts.contains(&key) { Place::Main } else { Place::Small };
        self.admit(key, bytes, place)
    }

    /// The bytes of `key`, and a use of it: for a reader that is about to read the file.
    pub fn use_of(&mut self, key: &ContentKey) -> Option<u64> {
        let id = self.find(key)?;
        let slot = self.slab.get_mut(id);
        slot.uses = (slot.uses + 1).min(MOST_USES);
        Some(slot.entry().bytes)
    }

    /// Whether `key` is in. Not a use.
    pub fn contains(&self, key: &ContentKey) -> bool {
        self.find(key).is_some()
    }

    /// Forgets `key`, by order or because its file is gone, and gives the bytes it took.
    pub fn remove(&mut self, key: &ContentKey) -> Option<u64> {
        Some(self.let_go(self.find(key)?).bytes)
    }

    /// Lets go of at least this many bytes, or of all there is: for a file system that runs full below the capacity.
    pub fn evict(&mut self, at_least_bytes: u64) -> Vec<Entry> {
        let target = self.slab.blocks().saturating_sub(at_least_bytes.div_ceil(BLOCK));
        self.shrink_to(target)
    }

    /// The next entries after a page, and where to go on; the first ones without a cursor.
    ///
    /// What stays in from the first page to the last is on exactly one of them; what comes or goes meanwhile may be on
    /// one. The order is that of the slots, roughly that of arrival: the order of eviction changes between pages and could
    /// promise neither. It looks at `limit` slots, so that a lock is held shortly, and those may be empty: a page may be
    /// short or empty and not the last.
    pub fn page(&self, after: Option<Cursor>, limit: usize) -> (Vec<Entry>, Option<Cursor>) {
        let start = after.map_or(0, |Cursor(next)| next);
        let slots = self.slab.slots_from(start);
        let looked_at = limit.clamp(1, slots.len().max(1));
        let page = slots.iter().take(looked_at).filter(|slot| slot.place.is_some()).map(slab::Slot::entry).collect();
        let more = (looked_at < slots.len()).then_some(Cursor(start + looked_at as u32));
        (page, more)
    }

    /// Bytes of all entries, in whole blocks.
    pub fn bytes(&self) -> u64 {
        self.slab.blocks() * BLOCK
    }

    /// The most [`Index::bytes`] may be.
    pub fn capacity(&self) -> u64 {
        self.capacity * BLOCK
    }

    /// Entries.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// Bytes of memory that the index has allocated.
    pub fn memory_bytes(&self) -> usize {
        self.slab.memory_bytes() + self.table.allocation_size() + self.ghosts.memory_bytes()
    }

    fn find(&self, key: &ContentKey) -> Option<u32> {
        self.table.find(hash(key), |&id| self.slab.get(id).key == *key).copied()
    }

    fn admit(&mut self, key: ContentKey, bytes: u64, place: Place) -> Inserted {
        let blocks = bytes.div_ceil(BLOCK).max(1);
        let (true, Ok(blocks)) = (blocks <= self.capacity, u32::try_from(blocks)) else {
            return Inserted::TooLarge { replaced: self.find(&key).map(|id| self.let_go(id)) };
        };
        let evicted = match self.find(&key) {
            Some(id) => self.resize(id, blocks),
            None => self.add(key, blocks, place),
        };
        Inserted::Admitted { evicted }
    }

    fn add(&mut self, key: ContentKey, blocks: u32, place: Place) -> Vec<Entry> {
        let evicted = self.make_room(blocks);
        let id = self.slab.add(key, blocks, place);
        self.table.insert_unique(hash(&key), id, |&id| hash(&self.slab.get(id).key));
        evicted
    }

    fn resize(&mut self, id: u32, blocks: u32) -> Vec<Entry> {
        if blocks <= self.slab.get(id).blocks {
            self.slab.shrink(id, blocks);
            return Vec::new();
        }
        // Out of its queue, where the eviction does not find it.
        let place = self.slab.unlink(id);
        let evicted = self.make_room(blocks);
        self.slab.get_mut(id).blocks = blocks;
        self.slab.link(id, place);
        evicted
    }

    fn make_room(&mut self, blocks: u32) -> Vec<Entry> {
        self.shrink_to(self.capacity - u64::from(blocks))
    }

    fn shrink_to(&mut self, blocks: u64) -> Vec<Entry> {
        let mut evicted = Vec::new();
        while self.slab.blocks() > blocks {
            evicted.extend(self.evict_one());
        }
        evicted
    }

    fn evict_one(&mut self) -> Option<Entry> {
        for spared in 0.. {
            let place = self.next_place();
            let id = self.slab.front(place)?;
            if self.slab.get(id).uses == 0 || spared == PATIENCE {
                if place == Place::Small {
                    self.ghosts.remember(&self.slab.get(id).key, self.table.len());
                }
                return Some(self.let_go(id));
            }
            self.spare(id);
        }
        None
    }

    /// The queue whose front is next to go: the small one while it has more than its part, or all there is.
    fn next_place(&self) -> Place {
        let small = self.slab.blocks_in(Place::Small);
        let is_over = small > self.capacity / SMALL_PART;
        if is_over || small == self.slab.blocks() { Place::Small } else { Place::Main }
    }

    /// Moves a used entry to the back of the main queue. It brings no uses from the small one: they were its admission.
    fn spare(&mut self, id: u32) {
        let place = self.slab.unlink(id);
        let slot = self.slab.get_mut(id);
        slot.uses = if place == Place::Small { 0 } else { slot.uses - 1 };
        self.slab.link(id, Place::Main);
    }

    fn let_go(&mut self, id: u32) -> Entry {
        let entry = self.slab.get(id).entry();
        if let Ok(found) = self.table.find_entry(hash(&entry.key), |&other| other == id) {
            found.remove();
        }
        self.slab.free(id);
        entry
    }
}

/// A content key is a uniform digest: any eight bytes of it are a hash.
fn hash(key: &ContentKey) -> u64 {
    let (words, _) = key.as_bytes().as_chunks::<8>();
    u64::from_le_bytes(words[0])
}

#[cfg(test)]
mod tests;
