//! The buffers of a run: reused from layer to layer and from run to run, and counted, so that a rehearsal of the same code
//! without its arithmetic tells the peak before any of it is taken.

use std::{
    ops::{Deref, DerefMut},
    sync::Arc,
};

use memmap2::MmapMut;
use parking_lot::Mutex;

/// Where a run's buffers come from and go back to, kept for the next run. Clones share it.
#[derive(Clone, Default)]
pub struct Arena(Arc<Shared>);

#[derive(Default)]
struct Shared {
    rehearsal: bool,
    pool: Mutex<Pool>,
}

/// Counts are in floats.
#[derive(Default)]
struct Pool {
    /// Buffers of maps that nobody holds.
    free: Vec<Pages>,
    /// Scratch buffers that no thread holds.
    scratch: Vec<Pages>,
    /// What maps hold at this moment, and the most there was.
    live: usize,
    peak: usize,
    /// The most that there was in all, `free` and scratch included; a buffer counts in full, however much of it is used.
    #[cfg(test)]
    most: usize,
    /// What all together may come to, as long as something is free.
    limit: usize,
    /// All scratch buffers, held or not, and the longest.
    scratches: usize,
    widest: usize,
}

/// Floats in memory of their own, which goes back to the system on drop; an allocator would keep it.
#[derive(Default)]
struct Pages(Option<MmapMut>);

/// So many floats of the arena; they go back on drop. A rehearsal's holds none.
pub(in super::super) struct Buffer {
    data: Pages,
    /// What it counts for.
    held: usize,
    len: usize,
    arena: Arena,
}

/// A thread's floats for the time of one task; they go back on drop.
pub(in super::super) struct Scratch<'a> {
    data: Pages,
    len: usize,
    arena: &'a Arena,
}

// === impl Arena ===

impl Arena {
    /// An arena that only counts: its buffers are empty, and kernels leave them alone.
    pub(in super::super) fn rehearsal() -> Self {
        Self(Arc::new(Shared { rehearsal: true, pool: Mutex::default() }))
    }

    /// Whether nothing is to be computed.
    pub(in super::super) fn rehearses(&self) -> bool {
        self.0.rehearsal
    }

    /// Bytes at the widest moment so far, where each of `threads` threads has its scratch buffer.
    pub(in super::super) fn peak_bytes(&self, threads: usize) -> u64 {
        let pool = self.0.pool.lock();
        ((pool.peak + threads * pool.widest) * size_of::<f32>()) as u64
    }

    /// Bytes taken of the system at the widest moment so far.
    #[cfg(test)]
    pub(in super::super) fn taken_bytes(&self) -> u64 {
        (self.0.pool.lock().most * size_of::<f32>()) as u64
    }

    /// Lets buffers of earlier runs and layers stay as long as no more than `bytes` are taken with them.
    pub(in super::super) fn keep_within(&self, bytes: u64) {
        self.0.pool.lock().limit = usize::try_from(bytes).unwrap_or(usize::MAX) / size_of::<f32>();
    }

    /// Gives back to the system what no run holds.
    pub fn release(&self) {
        let mut pool = self.0.pool.lock();
        pool.free = Vec::new();
        pool.drop_scratch();
    }

    /// `len` floats of any value: those of an earlier buffer, or fresh ones.
    pub(in super::super) fn take(&self, len: usize) -> Buffer {
        let mut buffer = Buffer { data: Pages::default(), held: 0, len, arena: self.clone() };
        let mut pool = self.0.pool.lock();
        let found = if self.rehearses() { Some(Pages::default()) } else { pool.find(len) };
        // Counted before it is there: whatever happens from here on, the count goes down with the buffer.
        buffer.held = found.as_ref().map_or(len, |pages| pages.len().max(len));
        pool.hold(buffer.held);
        drop(pool);
        buffer.data = found.unwrap_or_else(|| Pages::new(len));
        buffer
    }

    /// `len` floats of any value for one task of one thread.
    pub(in super::super) fn scratch(&self, len: usize) -> Scratch<'_> {
        let mut pool = self.0.pool.lock();
        pool.widest = pool.widest.max(len);
        let kept = pool.scratch.pop().unwrap_or_default();
        if kept.len() >= len {
            return Scratch { data: kept, len, arena: self };
        }
        pool.scratches -= kept.len();
        drop(kept);
        pool.make_room(len);
        drop(pool);
        let data = Pages::new(len);
        self.0.pool.lock().scratches += len;
        Scratch { data, len, arena: self }
    }

    /// What a rehearsal learns in place of a [`scratch`](Self::scratch).
    pub(in super::super) fn note_scratch(&self, len: usize) {
        let mut pool = self.0.pool.lock();
        pool.widest = pool.widest.max(len);
    }
}

// === impl Pool ===

impl Pool {
    /// The smallest free buffer that is long enough, and longer by an eighth at most, or the peak would not be what was
    /// foretold; if there is none, room is made for a fresh one. Pages that are used again need not be cleared by the
    /// system, which costs as much as a norm.
    fn find(&mut self, len: usize) -> Option<Pages> {
        let fits = |pages: &Pages| (len..=len + len / 8).contains(&pages.len());
        let best = self.free.iter().enumerate().filter(|(_, pages)| fits(pages)).min_by_key(|(_, pages)| pages.len());
        if let Some((at, _)) = best {
            return Some(self.free.swap_remove(at));
        }
        self.make_room(len);
        None
    }

    /// Gives back what nobody holds where `len` more are too many. The smallest go first: a network's maps grow or shrink
    /// on its way, and the large ones are dear.
    fn make_room(&mut self, len: usize) {
        self.free.sort_by_key(|pages| std::cmp::Reverse(pages.len()));
        while self.taken() + len > self.limit && self.free.pop().is_some() {}
    }

    fn hold(&mut self, len: usize) {
        self.live += len;
        self.peak = self.peak.max(self.live);
        #[cfg(test)]
        {
            self.most = self.most.max(self.taken());
        }
    }

    fn taken(&self) -> usize {
        self.live + self.free() + self.scratches
    }

    fn free(&self) -> usize {
        self.free.iter().map(|pages| pages.len()).sum()
    }

    fn drop_scratch(&mut self) {
        self.scratches -= self.scratch.drain(..).map(|pages| pages.len()).sum::<usize>();
    }
}

// === impl Pages ===

impl Pages {
    /// Zeros.
    ///
    /// # Panics
    ///
    /// Where the system refuses: a run's memory is judged before it begins, so this is the system's last word, and that
    /// run's error.
    fn new(len: usize) -> Self {
        if len == 0 {
            return Self::default();
        }
        let bytes = len * size_of::<f32>();
        let pages = MmapMut::map_anon(bytes).unwrap_or_else(|why| panic!("no memory for {bytes} bytes: {why}"));
        // A fault every 2 MiB in place of one every 4 KiB; where there are none of these, small ones do.
        #[cfg(target_os = "linux")]
        let _ = pages.advise(memmap2::Advice::HugePage);
        Self(Some(pages))
    }
}

impl Deref for Pages {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        self.0.as_ref().map_or(&[], |pages| bytemuck::cast_slice(pages))
    }
}

impl DerefMut for Pages {
    fn deref_mut(&mut self) -> &mut [f32] {
        self.0.as_mut().map_or(&mut [], |pages| bytemuck::cast_slice_mut(pages))
    }
}

// === impl Buffer ===

impl Buffer {
    /// Where it came from.
    pub(in super::super) fn arena(&self) -> &Arena {
        &self.arena
    }

    /// Whether it counts for much more than it holds.
    pub(in super::super) fn is_loose(&self) -> bool {
        self.held > self.len + self.len / 8
    }

    /// Holds the first `len` floats from now on; it counts for as much as before.
    pub(in super::super) fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }
}

impl Clone for Buffer {
    fn clone(&self) -> Self {
        let mut copy = self.arena.take(self.len);
        copy.copy_from_slice(self);
        copy
    }
}

impl Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        // A rehearsal's holds none.
        &self.data[..self.len.min(self.data.len())]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        let len = self.len.min(self.data.len());
        &mut self.data[..len]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut pool = self.arena.0.pool.lock();
        pool.live -= self.held;
        if !self.data.is_empty() {
            pool.free.push(std::mem::take(&mut self.data));
        }
    }
}

// === impl Scratch ===

impl Deref for Scratch<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.data[..self.len]
    }
}

impl DerefMut for Scratch<'_> {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.data[..self.len]
    }
}

impl Drop for Scratch<'_> {
    fn drop(&mut self) {
        self.arena.0.pool.lock().scratch.push(std::mem::take(&mut self.data));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rehearsal_counts_the_widest_moment_and_takes_nothing() {
        let arena = Arena::rehearsal();
        let (a, b) = (arena.take(100), arena.take(50));
        assert!(a.is_empty() && b.is_empty());
        drop(a);
        let _c = arena.take(15);
        arena.note_scratch(7);
        assert_eq!(arena.peak_bytes(3), 4 * (150 + 3 * 7));
    }

    #[test]
    fn buffers_come_back_and_no_more_is_kept_than_allowed() {
        let arena = Arena::default();
        arena.keep_within(4 * 150);
        let address = |buffer: &Buffer| buffer.as_ptr();
        let a = arena.take(100);
        let at = address(&a);
        drop(a);
        // One that is too small for the free one to serve fits beside it; what is a little smaller gets it.
        let b = arena.take(40);
        let again = arena.take(95);
        assert_eq!((address(&again), again.len()), (at, 95));
        drop((b, again));
        // Of two that are free the smaller one goes to make room.
        let _c = arena.take(15);
        let _d = arena.take(30);
        let pool = arena.0.pool.lock();
        assert_eq!((pool.free(), pool.live, pool.most), (100, 45, 145));
        drop(pool);
        arena.release();
        assert!(arena.0.pool.lock().free.is_empty());
    }

    #[test]
    fn a_run_that_panics_gives_its_buffers_back() {
        let arena = Arena::default();
        let shared = arena.clone();
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
            let _held = shared.take(10);
            panic!("in the middle of a run");
        }));
        assert!(panicked.is_err());
        let pool = arena.0.pool.lock();
        assert_eq!((pool.live, pool.free.len()), (0, 1));
    }
}
