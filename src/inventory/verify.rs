//! Verifying: every file of the disk tier is read and every byte of it proved.

use std::{ops::ControlFlow, time::Duration};

use tokio::time::Instant;

use super::{
    Inventory,
    telling::{self, Pace, Progress, Teller, Telling},
};
use crate::{
    cache::disk::{Depth, Disk, Found, index::Entry},
    error::{Error, ErrorKind},
    key::ContentKey,
};

/// What becomes of what is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repair {
    /// It stays, and is set aside when somebody asks for it.
    Leave,
    /// It is removed.
    Remove,
}

/// What a verification tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verifying {
    /// How far it is.
    Progress(Progress),
    /// An entry that is not what was stored.
    Finding(Finding),
    /// The end.
    Done(Verified),
}

/// An entry that is not what was stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Whose.
    pub key: ContentKey,
    /// Bytes of its file.
    pub bytes: u64,
    /// What is wrong.
    pub fault: Fault,
    /// The same for people.
    pub detail: String,
    /// Whether it has been removed.
    pub is_removed: bool,
}

/// What can be wrong with an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Its bytes are not what was stored.
    Damaged,
    /// The disk does not give them out. Never removed: it may be the cable.
    Unreadable,
}

/// What has been found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Entries looked at.
    pub entries: u64,
    /// Bytes of their files.
    pub bytes: u64,
    /// Entries that are damaged.
    pub damaged: u64,
    /// Entries that cannot be read.
    pub unreadable: u64,
    /// Evicted or replaced meanwhile, or of another version of this program.
    pub gone: u64,
    /// Of the damaged ones.
    pub removed: u64,
    /// What it took.
    pub took: Duration,
}

impl Inventory {
    /// Proves everything that is on disk.
    pub fn verify(&self, repair: Repair) -> Result<Telling<Verifying>, Error> {
        let Some(disk) = self.0.disk.clone() else {
            let message = "no disk tier is configured, so there is nothing to verify; cache.disk.path names its folder";
            return Err(Error::new(ErrorKind::NoDiskTier, message));
        };
        self.0.check_scanned()?;
        let turn = self.sweep_turn()?;
        Ok(telling::begin(self.0.stop.clone(), Some(turn), move |teller| verify(&disk, repair, teller)))
    }
}

fn verify(disk: &Disk, repair: Repair, teller: &Teller<Verifying>) -> ControlFlow<(), Option<Verifying>> {
    let began = Instant::now();
    let mut verified = Verified::default();
    let [entries, bytes, _] = disk.usage();
    let mut pace = Pace::new(entries, bytes);
    disk.sweep(Depth::Whole, |entry, found| {
        if let Some(finding) = verified.judge(disk, entry, found, repair) {
            teller.tell(Verifying::Finding(finding))?;
        }
        if let Some(progress) = pace.passed(entry.bytes) {
            teller.mention(Verifying::Progress(progress));
        }
        teller.goes_on()
    })?;
    let Progress { entries, bytes, .. } = pace.progress();
    let verified = Verified { entries, bytes, took: began.elapsed(), ..verified };
    tracing::info!(?verified, "the disk tier is verified");
    ControlFlow::Continue(Some(Verifying::Done(verified)))
}

impl Verified {
    fn judge(&mut self, disk: &Disk, entry: Entry, found: Found, repair: Repair) -> Option<Finding> {
        let Entry { key, bytes } = entry;
        match found {
            Found::Known | Found::Whole(_) => None,
            Found::Gone => {
                self.gone += 1;
                None
            }
            Found::Damaged(why) => {
                self.damaged += 1;
                // If it cannot be removed, the finding says so.
                let is_removed = repair == Repair::Remove && disk.take_out(&key).is_ok();
                self.removed += u64::from(is_removed);
                Some(Finding { key, bytes, fault: Fault::Damaged, detail: why.to_owned(), is_removed })
            }
            Found::Unreadable(detail) => {
                self.unreadable += 1;
                Some(Finding { key, bytes, fault: Fault::Unreadable, detail, is_removed: false })
            }
        }
    }
}
