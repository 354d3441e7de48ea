//! How far a run is.

/// Steps done of steps in all: blocks of a network, bands of one, parts of an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Steps done.
    pub done: u32,
    /// Steps in all; 0 while nobody knows.
    pub total: u32,
}

impl Progress {
    /// Share of the steps done, 0..=1; 0 while nobody knows.
    pub fn fraction(self) -> f32 {
        if self.total == 0 { 0.0 } else { self.done as f32 / self.total as f32 }
    }

    /// Nothing is left to do. Says whether that is news.
    pub fn complete(&mut self) -> bool {
        let all = self.total.max(1);
        let whole = Self { done: all, total: all };
        std::mem::replace(self, whole) != whole
    }
}
