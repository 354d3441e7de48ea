//! Purging: what is meant goes, wherever it is.
//!
//! Queue, disk, memory, in this order: what is read from one place while the purge is there ends in the next, where the
//! purge comes later. An answer that is on its way all the while is kept when it is whole.

use std::{
    ops::ControlFlow,
    time::{Duration, SystemTime},
};

use super::{
    Inventory, Shared,
    telling::{self, Pace, Progress, Teller, Telling},
};
use crate::{
    artifact::{Artifact, Subject},
    cache::disk::{Depth, Disk, Found},
    error::Error,
    key::ContentKey,
    model::ModelId,
};

/// What is to go, as somebody has said it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// Of this model.
    pub model: Option<String>,
    /// Of this key.
    pub key: Option<ContentKey>,
    /// Made at least so long ago.
    pub older_than: Option<Duration>,
    /// Everything.
    pub all: bool,
}

/// What is to go: never nothing, and never everything by accident.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection {
    /// Everything.
    All,
    /// One artifact.
    Key(ContentKey),
    /// What is both, as far as said; one of them is.
    Of {
        /// Of this model.
        model: Option<ModelId>,
        /// Made at least so long ago.
        older_than: Option<Duration>,
    },
}

/// What a purge tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purging {
    /// How far it is on disk.
    Progress(Progress),
    /// The end.
    Done(Purged),
}

/// What has gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Purged {
    /// Out of memory.
    pub memory: u64,
    /// Out of the queues.
    pub queue: u64,
    /// Off the disk.
    pub disk: u64,
    /// Bytes of the files that have gone.
    pub disk_bytes: u64,
    /// Files that could not be judged or removed.
    pub left: u64,
}

// === impl Selection ===

impl TryFrom<Wish> for Selection {
    type Error = Error;

    fn try_from(wish: Wish) -> Result<Self, Error> {
        let Wish { model, key, older_than, all } = wish;
        let is_filtered = model.is_some() || older_than.is_some();
        match (all, key) {
            (true, None) if !is_filtered => Ok(Self::All),
            (true, _) => Err(Error::bad_request("all", "stands alone: leave it out, or leave the filters out")),
            (false, Some(key)) if !is_filtered => Ok(Self::Key(key)),
            (false, Some(_)) => Err(Error::bad_request("key", "names one artifact: leave the other filters out")),
            (false, None) if is_filtered => Ok(Self::Of { model: model.map(model_id).transpose()?, older_than }),
            (false, None) => {
                let message = "nothing is named: say model, key or older_than, or say `all` to purge everything";
                Err(Error::bad_request("filter", message))
            }
        }
    }
}

/// A model by its name. It need not be configured: what an earlier configuration left can be named too.
pub(super) fn model_id(name: impl AsRef<str>) -> Result<ModelId, Error> {
    let name = name.as_ref();
    ModelId::try_new(name).ok_or_else(|| Error::bad_request("model", format!("{name:?} is no model id")))
}

impl Selection {
    /// Whether an artifact is meant at `now`.
    pub(super) fn means(&self, subject: &Subject, now: SystemTime) -> bool {
        match self {
            Self::All => true,
            Self::Key(key) => subject.key == *key,
            Self::Of { model, older_than } => {
                model.as_ref().is_none_or(|model| subject.model == *model)
                    && older_than.is_none_or(|age| subject.is_expired(Some(age), now))
            }
        }
    }
}

// === impl Inventory ===

impl Inventory {
    /// Lets go what is meant, everywhere. One key goes at once; anything else has its turn among the sweeps.
    pub fn purge(&self, selection: Selection) -> Result<Telling<Purging>, Error> {
        let turn = match selection {
            Selection::Key(_) => None,
            Selection::All | Selection::Of { .. } => {
                self.0.check_scanned()?;
                Some(self.sweep_turn()?)
            }
        };
        let shared = self.0.clone();
        Ok(telling::begin(shared.stop.clone(), turn, move |teller| shared.purge(&selection, teller)))
    }
}

impl Shared {
    fn purge(&self, selection: &Selection, teller: &Teller<Purging>) -> ControlFlow<(), Option<Purging>> {
        let now = SystemTime::now();
        let is_meant = |artifact: &Artifact| selection.means(artifact.subject(), now);
        let queue = self.fills.iter().map(|fill| fill.purge(is_meant)).sum();
        let mut purged = Purged { queue, ..Purged::default() };
        if let Some(disk) = &self.disk {
            purge_disk(disk, (selection, now), &mut purged, teller)?;
        }
        purged.memory = self.memory.purge(is_meant);
        tracing::info!(?selection, ?purged, "purged");
        ControlFlow::Continue(Some(Purging::Done(purged)))
    }
}

fn purge_disk(
    disk: &Disk,
    (selection, now): (&Selection, SystemTime),
    purged: &mut Purged,
    teller: &Teller<Purging>,
) -> ControlFlow<()> {
    let depth = match selection {
        Selection::Key(key) => {
            purged.take_out(disk, key);
            return ControlFlow::Continue(());
        }
        Selection::All => Depth::Key,
        Selection::Of { .. } => Depth::Head,
    };
    let [entries, bytes, _] = disk.usage();
    let mut pace = Pace::new(entries, bytes);
    disk.sweep(depth, |entry, found| {
        match found {
            Found::Known => purged.take_out(disk, &entry.key),
            Found::Whole(head) if selection.means(&head.subject, now) => purged.take_out(disk, &entry.key),
            Found::Whole(_) | Found::Gone => {}
            Found::Damaged(_) | Found::Unreadable(_) => purged.left += 1,
        }
        if let Some(progress) = pace.passed(entry.bytes) {
            teller.mention(Purging::Progress(progress));
        }
        teller.goes_on()
    })
}

// === impl Purged ===

impl Purged {
    fn take_out(&mut self, disk: &Disk, key: &ContentKey) {
        match disk.take_out(key) {
            Ok(Some(bytes)) => {
                self.disk += 1;
                self.disk_bytes += bytes;
            }
            // Evicted just before.
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(?key, %error, "a file of the disk tier cannot be removed");
                self.left += 1;
            }
        }
    }
}
