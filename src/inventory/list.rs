//! Listing: what is on disk with its heads, then what is kept elsewhere alone.

use std::{collections::HashMap, ops::ControlFlow};

use super::{
    Inventory, Item, Place, Shared,
    purge::model_id,
    telling::{self, Teller, Telling},
};
use crate::{
    artifact::{Artifact, envelope::Head},
    cache::disk::{Depth, Found},
    error::{Error, ErrorKind},
    key::ContentKey,
    model::ModelId,
};

/// What to list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// Artifacts of this model alone.
    pub model: Option<ModelId>,
    /// Artifacts at most.
    pub limit: Option<u64>,
}

/// A listing on its way.
struct Lister<'a> {
    listing: Listing,
    listed: u64,
    /// What is not on disk, as far as is known by now.
    elsewhere: HashMap<ContentKey, Item>,
    teller: &'a Teller<Item>,
}

// === impl Listing ===

impl Listing {
    /// What a client means by these words. An empty model is any.
    pub fn try_new(model: &str, limit: Option<u64>) -> Result<Self, Error> {
        let model = (!model.is_empty()).then(|| model_id(model)).transpose()?;
        Ok(Self { model, limit })
    }
}

// === impl Inventory ===

impl Inventory {
    /// Tells of every artifact that is meant, wherever it is. A few listings may run at a time.
    pub fn list(&self, listing: Listing) -> Result<Telling<Item>, Error> {
        let turn = self.0.listings.clone().try_acquire_owned();
        let turn = turn.map_err(|_| Error::new(ErrorKind::Overloaded, "other listings run; wait for their end"))?;
        let shared = self.0.clone();
        Ok(telling::begin(shared.stop.clone(), Some(turn), move |teller| shared.list(listing, teller)))
    }
}

impl Shared {
    fn list(&self, listing: Listing, teller: &Teller<Item>) -> ControlFlow<(), Option<Item>> {
        let mut lister = Lister { listing, listed: 0, elsewhere: HashMap::new(), teller };
        self.memory.each(|artifact| lister.note(artifact, Place::Memory));
        self.fills.iter().for_each(|fill| fill.each(|artifact| lister.note(artifact, Place::Queue)));
        if let Some(disk) = &self.disk {
            disk.sweep(Depth::Head, |entry, found| match found {
                Found::Whole(head) => lister.on_disk(*head, entry.bytes),
                // Not given out either; a verification says what is the matter with it.
                _ => lister.teller.goes_on(),
            })?;
        }
        let elsewhere = std::mem::take(&mut lister.elsewhere);
        elsewhere.into_values().try_for_each(|item| lister.tell(item))?;
        ControlFlow::Continue(None)
    }
}

impl Lister<'_> {
    fn is_meant(&self, model: &ModelId) -> bool {
        self.listing.model.as_ref().is_none_or(|meant| meant == model)
    }

    fn note(&mut self, artifact: &Artifact, place: Place) {
        if self.is_meant(&artifact.subject().model) {
            let noted = self.elsewhere.entry(*artifact.key());
            noted.and_modify(|item| item.places.push(place)).or_insert_with(|| Item::of(artifact, place));
        }
    }

    fn on_disk(&mut self, head: Head, disk_bytes: u64) -> ControlFlow<()> {
        if !self.is_meant(&head.subject.model) {
            return self.teller.goes_on();
        }
        let mut places = self.elsewhere.remove(&head.subject.key).map(|item| item.places).unwrap_or_default();
        places.push(Place::Disk);
        self.tell(Item { subject: head.subject, meta: head.meta, disk_bytes, places })
    }

    fn tell(&mut self, item: Item) -> ControlFlow<()> {
        if self.listing.limit.is_some_and(|limit| self.listed >= limit) {
            return ControlFlow::Break(());
        }
        self.listed += 1;
        self.teller.tell(item)
    }
}
