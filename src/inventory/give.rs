//! Giving out one artifact by its key, from wherever it is.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;

use super::{Inventory, Item, Place};
use crate::{
    artifact::Artifact,
    body::Seal,
    cache::{
        disk::index::BLOCK,
        tier::{Lookup, Stored, Tier as _},
    },
    error::{Error, ErrorKind, Resource},
    key::ContentKey,
};

/// An artifact on its way out.
pub struct Given {
    /// What it is, and where it comes from.
    pub item: Item,
    /// What proves the whole of it.
    pub seal: Seal,
    bytes: Source,
}

enum Source {
    /// In memory, whole.
    Whole(VecDeque<Bytes>),
    /// On disk; each chunk is proved.
    Stored(Box<Stored>),
}

impl Inventory {
    /// The artifact of `key`: out of memory, a queue, or the disk, of which it is a use. Cancel-safe.
    pub async fn give(&self, key: ContentKey) -> Result<Given, Error> {
        let shared = &self.0;
        if let Some(artifact) = shared.memory.get(&key) {
            return Ok(Given::whole(&artifact, Place::Memory));
        }
        if let Some(artifact) = shared.fills.iter().find_map(|fill| fill.get(&key)) {
            return Ok(Given::whole(&artifact, Place::Queue));
        }
        let found = match &shared.disk {
            Some(disk) => disk.get(key).await,
            None => Lookup::Miss,
        };
        match found {
            Lookup::Hit(stored) => Ok(Given::stored(stored)),
            Lookup::Throttled => {
                let why = "the disk is busy or has failed lately, and may have it; try again";
                Err(Error::new(ErrorKind::Unavailable, why))
            }
            Lookup::Corrupt => Err(unknown(key, "what was on disk is damaged, and has been set aside")),
            Lookup::Miss | Lookup::Stale => Err(unknown(key, "nothing is kept under this key")),
        }
    }
}

fn unknown(key: ContentKey, why: &str) -> Error {
    Error::missing(ErrorKind::UnknownKey, Resource { sort: "content", name: key.to_string() }, why)
}

// === impl Given ===

impl Given {
    fn whole(artifact: &Arc<Artifact>, place: Place) -> Self {
        let (item, seal) = (Item::of(artifact, place), *artifact.seal());
        Self { item, seal, bytes: Source::Whole(artifact.slices().into()) }
    }

    fn stored(stored: Box<Stored>) -> Self {
        let head = stored.head.clone();
        let disk_bytes = (head.encode().len() as u64 + head.seal.length).next_multiple_of(BLOCK);
        let item = Item { subject: head.subject, meta: head.meta, disk_bytes, places: vec![Place::Disk] };
        Self { item, seal: head.seal, bytes: Source::Stored(stored) }
    }

    /// The next slice; none after the last. Cancel-safe.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        match &mut self.bytes {
            Source::Whole(slices) => Ok(slices.pop_front()),
            Source::Stored(stored) => stored.next().await.map_err(|fault| {
                Error::new(ErrorKind::Unavailable, format!("what is on disk broke off ({fault})")).caused_by(fault)
            }),
        }
    }
}
