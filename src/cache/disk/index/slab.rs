//! The entries of the index, in slots of one vector, threaded on two queues.
//!
//! A slot is named by its number, so hash table and queues pay 4 bytes a reference. The queues are linked through the
//! slots in both directions: an entry that is removed by order leaves from the middle at once, where a ring would keep a
//! tombstone and need compaction. Free slots are linked too and are taken again before the vector grows. No slot moves:
//! [`Cursor`](super::Cursor) stands on that.

use super::{BLOCK, Entry};
use crate::key::ContentKey;

/// No slot.
const NIL: u32 = u32::MAX;

/// The slots.
pub(super) struct Slab {
    slots: Vec<Slot>,
    /// The first of the free slots, linked by `next`.
    free: u32,
    small: Queue,
    main: Queue,
}

/// One entry, or a free place for one.
pub(super) struct Slot {
    pub(super) key: ContentKey,
    pub(super) blocks: u32,
    pub(super) uses: u8,
    /// None while it is in no queue.
    pub(super) place: Option<Place>,
    previous: u32,
    next: u32,
}

/// The queues.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Small,
    Main,
}

struct Queue {
    front: u32,
    back: u32,
    blocks: u64,
}

// === impl Slab ===

impl Slab {
    /// A new entry, without uses, at the back of a queue.
    pub(super) fn add(&mut self, key: ContentKey, blocks: u32, place: Place) -> u32 {
        let slot = Slot { key, blocks, uses: 0, place: None, previous: NIL, next: NIL };
        let id = if self.free == NIL {
            // To run out takes 16 TiB of one-block files, and 200 GiB of slots before that.
            let id = u32::try_from(self.slots.len()).ok().filter(|&id| id != NIL).expect("fewer slots than ids");
            self.slots.push(slot);
            id
        } else {
            let id = self.free;
            self.free = self.get(id).next;
            *self.get_mut(id) = slot;
            id
        };
        self.link(id, place);
        id
    }

    /// Takes an entry out of its queue and gives its slot to another.
    pub(super) fn free(&mut self, id: u32) {
        self.unlink(id);
        self.get_mut(id).next = self.free;
        self.free = id;
    }

    /// To the back of a queue.
    pub(super) fn link(&mut self, id: u32, place: Place) {
        let blocks = u64::from(self.get(id).blocks);
        let queue = self.queue_mut(place);
        let before = std::mem::replace(&mut queue.back, id);
        queue.blocks += blocks;
        if before == NIL {
            queue.front = id;
        } else {
            self.get_mut(before).next = id;
        }
        let slot = self.get_mut(id);
        (slot.place, slot.previous, slot.next) = (Some(place), before, NIL);
    }

    /// Out of the queue it is in, which is given.
    pub(super) fn unlink(&mut self, id: u32) -> Place {
        let slot = self.get_mut(id);
        let place = slot.place.take().expect("a slot with an entry is in a queue");
        let (blocks, previous, next) = (u64::from(slot.blocks), slot.previous, slot.next);
        if previous == NIL {
            self.queue_mut(place).front = next;
        } else {
            self.get_mut(previous).next = next;
        }
        if next == NIL {
            self.queue_mut(place).back = previous;
        } else {
            self.get_mut(next).previous = previous;
        }
        self.queue_mut(place).blocks -= blocks;
        place
    }

    /// Makes an entry take fewer blocks, where it stands.
    pub(super) fn shrink(&mut self, id: u32, blocks: u32) {
        let slot = self.get_mut(id);
        let less = u64::from(slot.blocks - blocks);
        slot.blocks = blocks;
        let place = slot.place.expect("a slot with an entry is in a queue");
        self.queue_mut(place).blocks -= less;
    }

    /// The entry that has been in a queue longest.
    pub(super) fn front(&self, place: Place) -> Option<u32> {
        Some(self.queue(place).front).filter(|&id| id != NIL)
    }

    /// Blocks of the entries of one queue.
    pub(super) fn blocks_in(&self, place: Place) -> u64 {
        self.queue(place).blocks
    }

    /// Blocks of all entries.
    pub(super) fn blocks(&self) -> u64 {
        self.small.blocks + self.main.blocks
    }

    /// The slot of an id that [`Slab::add`] gave and nobody freed.
    pub(super) fn get(&self, id: u32) -> &Slot {
        &self.slots[id as usize]
    }

    pub(super) fn get_mut(&mut self, id: u32) -> &mut Slot {
        &mut self.slots[id as usize]
    }

    /// Slots from a number on, the free ones too.
    pub(super) fn slots_from(&self, start: u32) -> &[Slot] {
        self.slots.get(start as usize..).unwrap_or_default()
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.slots.capacity() * size_of::<Slot>()
    }

    fn queue(&self, place: Place) -> &Queue {
        match place {
            Place::Small => &self.small,
            Place::Main => &self.main,
        }
    }

    fn queue_mut(&mut self, place: Place) -> &mut Queue {
        match place {
            Place::Small => &mut self.small,
            Place::Main => &mut self.main,
        }
    }
}

impl Default for Slab {
    fn default() -> Self {
        Self { slots: Vec::new(), free: NIL, small: Queue::EMPTY, main: Queue::EMPTY }
    }
}

// === impl Slot ===

impl Slot {
    pub(super) fn entry(&self) -> Entry {
        Entry { key: self.key, bytes: u64::from(self.blocks) * BLOCK }
    }
}

// === impl Queue ===

impl Queue {
    const EMPTY: Self = Self { front: NIL, back: NIL, blocks: 0 };
}
