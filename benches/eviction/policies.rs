//! Who stays: the index of the disk tier, and what it is compared to.

use std::collections::BTreeSet;

use latentgate::cache::disk::index::Index;

use crate::trace::Trace;

/// A cache that is asked for the artifacts of a trace, in order, and takes in what it has not.
pub(crate) trait Policy {
    /// Whether the artifact of request `at` was in.
    fn request(&mut self, at: usize) -> bool;
}

/// The index.
pub(crate) struct Ours<'a> {
    trace: &'a Trace,
    index: Index,
}

/// A cache in which every request gives its artifact a rank, and the highest ranks go first.
pub(crate) struct Ranked<'a> {
    trace: &'a Trace,
    capacity: u64,
    /// By request.
    ranks: Vec<usize>,
    /// By artifact, of those that are in.
    held: Vec<Option<usize>>,
    /// Ranks and numbers of those that are in.
    order: BTreeSet<(usize, u32)>,
    bytes: u64,
}

/// The rank of what is never asked for again.
const NEVER: usize = usize::MAX;

// === impl Ours ===

impl<'a> Ours<'a> {
    pub(crate) fn new(trace: &'a Trace, capacity: u64) -> Self {
        Self { trace, index: Index::new(capacity) }
    }
}

impl Policy for Ours<'_> {
    fn request(&mut self, at: usize) -> bool {
        let artifact = self.trace.artifact(at);
        let is_hit = self.index.use_of(&artifact.key).is_some();
        if !is_hit {
            // There are no files to delete.
            let _ = self.index.insert(artifact.key, artifact.bytes);
        }
        is_hit
    }
}

// === impl Ranked ===

impl<'a> Ranked<'a> {
    /// The least recently used goes: the later the request, the lower the rank.
    pub(crate) fn lru(trace: &'a Trace, capacity: u64) -> Self {
        Self::new(trace, capacity, (0..trace.requests.len()).rev().collect())
    }

    /// Belady's MIN: what is asked for again last goes, or does not come in. With sizes this is not quite the optimum,
    /// which is hard to compute: it takes no account of how much room the artifact takes meanwhile.
    pub(crate) fn optimum(trace: &'a Trace, capacity: u64) -> Self {
        let mut next = vec![NEVER; trace.artifacts()];
        let again = |(at, &number): (usize, &u32)| std::mem::replace(&mut next[number as usize], at);
        let mut ranks: Vec<_> = trace.requests.iter().enumerate().rev().map(again).collect();
        ranks.reverse();
        Self::new(trace, capacity, ranks)
    }

    fn new(trace: &'a Trace, capacity: u64, ranks: Vec<usize>) -> Self {
        Self { trace, capacity, ranks, held: vec![None; trace.artifacts()], order: BTreeSet::new(), bytes: 0 }
    }

    fn shrink(&mut self) {
        while self.bytes > self.capacity {
            let (_, number) = self.order.pop_last().expect("what takes bytes has a rank");
            self.held[number as usize] = None;
            self.bytes -= self.trace.bytes_of(number);
        }
    }
}

impl Policy for Ranked<'_> {
    fn request(&mut self, at: usize) -> bool {
        let (number, rank) = (self.trace.requests[at], self.ranks[at]);
        let before = self.held[number as usize].replace(rank);
        match before {
            Some(before) => {
                self.order.remove(&(before, number));
            }
            None => self.bytes += self.trace.bytes_of(number),
        }
        self.order.insert((rank, number));
        self.shrink();
        before.is_some()
    }
}
