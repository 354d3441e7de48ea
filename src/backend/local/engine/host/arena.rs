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
    /// Buffers of maps that nobody holds, oldest first.
    free: Vec<Pages>,
    /// Scratch buffers that no thread holds.
    scratch: Vec<Pages>,
    /// Held by maps at this moment, and the most there was.
    live: usize,
    peak: usize,
    /// What `live` and `free` together may come to.
    limit: usize,
    /// The longest scratch buffer.
    widest: usize,
}

/// Floats in memory of their own, which goes back to the system on drop; an allocator would keep it.
#[derive(Default)]
struct Pages(Option<MmapMut>);

/// So many floats of the arena; they go back on drop. A rehearsal's holds none.
pub(in super::super) struct Buffer {
    data: Pages,
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

    /// Lets buffers of earlier runs stay as long as maps take no more than `bytes` with them.
    pub(in super::super) fn keep_within(&self, bytes: u64) {
        self.0.pool.lock().limit = usize::try_from(bytes).unwrap_or(usize::MAX) / size_of::<f32>();
    }

    /// Gives back to the system what no run holds.
    pub fn release(&self) {
        let mut pool = self.0.pool.lock();
        pool.free = Vec::new();
        pool.scratch = Vec::new();
    }

    /// `len` floats of any value: those of an earlier buffer of this length, or fresh ones.
    pub(in super::super) fn take(&self, len: usize) -> Buffer {
        let mut pool = self.0.pool.lock();
        pool.live += len;
        pool.peak = pool.peak.max(pool.live);
        let found = if self.rehearses() { Some(Pages::default()) } else { pool.find(len) };
        drop(pool);
        let mut buffer = Buffer { data: Pages::default(), len, arena: self.clone() };
        // Whatever happens from here on, the count goes down with the buffer.
        buffer.data = found.unwrap_or_else(|| Pages::new(len));
        buffer
    }

    /// `len` floats of any value for one task of one thread.
    pub(in super::super) fn scratch(&self, len: usize) -> Scratch<'_> {
        let mut pool = self.0.pool.lock();
        pool.widest = pool.widest.max(len);
        let mut data = pool.scratch.pop().unwrap_or_default();
        drop(pool);
        if data.len() < len {
            data = Pages::new(len);
        }
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
    /// A free buffer of just this length; if there is none, room is made for a fresh one.
    fn find(&mut self, len: usize) -> Option<Pages> {
        if let Some(at) = self.free.iter().rposition(|buffer| buffer.len() == len) {
            return Some(self.free.remove(at));
        }
        let mut kept: usize = self.free.iter().map(|buffer| buffer.len()).sum();
        while self.live + kept > self.limit && !self.free.is_empty() {
            kept -= self.free.remove(0).len();
        }
        None
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
        &self.data
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.data
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut pool = self.arena.0.pool.lock();
        pool.live -= self.len;
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
        let _c = arena.take(20);
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
        // Another length fits beside the free one; a third does not, and the free one goes.
        let b = arena.take(50);
        let again = arena.take(100);
        assert_eq!(address(&again), at);
        drop((b, again));
        let _c = arena.take(30);
        assert!(arena.0.pool.lock().free.iter().map(|buffer| buffer.len()).sum::<usize>() + 30 <= 150);
        arena.release();
        assert!(arena.0.pool.lock().free.is_empty());
        assert_eq!(arena.0.pool.lock().live, 30);
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
