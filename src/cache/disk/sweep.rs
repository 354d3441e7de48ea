//! Going through everything that is on disk: to look, to prove, to purge. For operators; takes its time.
//!
//! Pages of the index are taken one by one, so lookups and writes go on meanwhile; what comes in during a sweep may be met
//! or not.

use std::ops::ControlFlow;

use super::{Disk, Shared, index::Cursor, read::Refusal};
use crate::{artifact::envelope::Head, key::ContentKey, metrics::TierName};

/// Entries looked at between two looks at the index.
const PAGE: usize = 256;

/// One entry, as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// Whole, as far as was asked: its head, or every byte.
    Whole(Box<Head>),
    /// Damaged, and how.
    Damaged(&'static str),
    /// Not there any more, or of another version.
    Gone,
    /// It could not be read.
    Unreadable(String),
}

/// What is to become of an entry that a sweep has met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Swept {
    /// It stays.
    Stay,
    /// It goes.
    Go,
}

impl Disk {
    /// Meets every entry with its head, or, if `whole`, with every byte of it proved. `meet` says what becomes of each,
    /// and when to end. A damaged entry counts as such. Blocks for as long as it takes.
    pub fn sweep(
        &self,
        whole: bool,
        mut meet: impl FnMut(ContentKey, u64, Found) -> ControlFlow<(), Swept>,
    ) -> ControlFlow<()> {
        let mut cursor: Option<Cursor> = None;
        loop {
            let (page, next) = self.0.state.lock().index.page(cursor, PAGE);
            for entry in page {
                let found = self.0.find(&entry.key, whole);
                if let Found::Damaged(_) = found {
                    self.0.metrics.cache_corrupt(TierName::Disk);
                }
                if meet(entry.key, entry.bytes, found)? == Swept::Go {
                    self.0.remove(&entry.key);
                }
            }
            match next {
                Some(_) => cursor = next,
                None => return ControlFlow::Continue(()),
            }
        }
    }
}

impl Shared {
    fn find(&self, key: &ContentKey, whole: bool) -> Found {
        let found = if whole { self.prove(key) } else { self.folder.head(key) };
        match found {
            Ok(head) => Found::Whole(Box::new(head)),
            Err(Refusal::Absent | Refusal::Foreign(_)) => Found::Gone,
            Err(Refusal::Corrupt(why)) => Found::Damaged(why),
            Err(Refusal::Failed(error)) => Found::Unreadable(error.to_string()),
        }
    }

    fn prove(&self, key: &ContentKey) -> Result<Head, Refusal> {
        let mut opened = self.folder.read(key)?;
        if let Some(rest) = &mut opened.rest {
            while rest.next()?.is_some() {}
        }
        Ok(opened.head)
    }
}
