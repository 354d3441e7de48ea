//! Step 8: the tiers below memory.
//!
//! What waits to be written to a tier is still in memory and comes first. A tier's chunks are published as they are
//! proved. If one turns out damaged after others were published, the answer is computed beside: bytes with the same seal
//! are the same bytes, and take over where the damaged ones ended, so that nobody notices. If they differ, which two
//! backends may, the readers fail and the new answer is kept for who comes next.

use std::{sync::Arc, time::SystemTime};

use bytes::Bytes;

use super::{
    Pipeline,
    lead::{Made, Order, judge},
};
use crate::{
    admission::Reservation,
    artifact::{Artifact, Subject},
    body::{BodyWriter, Seal},
    cache::tier::{Fault, Lookup, Stored},
    error::{Error, ErrorKind},
    flight::{Lead, Reach},
    key::ContentKey,
    meta::Meta,
    metrics::Outcome,
    model::ModelSpec,
};

/// Everything of an artifact that another form can be made of.
pub(super) struct Whole {
    pub(super) meta: Meta,
    pub(super) slices: Vec<Bytes>,
    pub(super) made: SystemTime,
}

impl Whole {
    pub(super) fn of(artifact: &Artifact) -> Self {
        Self { meta: artifact.meta().clone(), slices: artifact.slices(), made: artifact.subject().made }
    }
}

impl Pipeline {
    /// The answer out of the nearest tier that has it.
    pub(super) async fn ask_tiers(&self, order: &Order, lead: &mut Lead) -> Result<Option<Made>, Error> {
        for tier in &self.0.parts.tiers {
            if let Some(artifact) = tier.get(&order.key)
                && is_good(order, artifact.subject(), artifact.meta())
            {
                lead.source.tell(Outcome::HitDisk);
                lead.writer.begin_proved(artifact.meta().clone(), *artifact.seal())?;
                publish(&mut lead.writer, artifact.slices())?;
                return Ok(Some(Made::Stored(artifact.subject().clone())));
            }
            let Lookup::Hit(stored) = tier.tier().get(order.key).await else { continue };
            if !is_good(order, &stored.head.subject, &stored.head.meta) {
                continue;
            }
            // Who does not go on to a backend has not reserved the answer's memory either.
            if order.reach == Reach::Tiers {
                let Ok(held) = self.reserve(stored.head.meta.length) else { continue };
                order.later.get_or_init(|| held);
            }
            return self.read_from(order, *stored, lead).await.map(Some);
        }
        Ok(None)
    }

    async fn read_from(&self, order: &Order, mut stored: Stored, lead: &mut Lead) -> Result<Made, Error> {
        lead.source.tell(Outcome::HitDisk);
        let (subject, seal) = (stored.head.subject.clone(), stored.head.seal);
        lead.writer.begin_proved(stored.head.meta.clone(), seal)?;
        let mut published = 0;
        loop {
            match stored.next().await {
                Ok(Some(chunk)) => {
                    published += chunk.len() as u64;
                    lead.writer.append(chunk)?;
                }
                Ok(None) => return Ok(Made::Stored(subject)),
                Err(fault) => return self.take_over(order, (seal, published, fault), lead).await,
            }
        }
    }

    /// The rest of an answer whose stored form ends in a fault after so many published bytes.
    async fn take_over(
        &self,
        order: &Order,
        (seal, published, fault): (Seal, u64, Fault),
        lead: &mut Lead,
    ) -> Result<Made, Error> {
        let broken = || {
            let message = format!("the stored answer broke off ({fault}); it is made anew for who asks again");
            Error::new(ErrorKind::Unavailable, message)
        };
        let (Some((job, predicted, hops)), Reach::All | Reach::Backend) = (&order.work, order.reach) else {
            return Err(broken());
        };
        let _held = self.reserve(predicted.held_bytes)?;
        let anew = self.route_apart(order.key, Self::compute(job, hops, lead), predicted).await?;
        if *anew.seal() != seal {
            if lead.wish.is_allowed() {
                self.keep(&anew, &order.model);
            }
            return Err(broken());
        }
        publish(&mut lead.writer, after(anew.slices(), published))?;
        // Kept like any other: the damaged one has been set aside.
        Ok(Made::Anew(anew.subject().made))
    }

    /// An artifact of another key, whole, wherever it is kept, and memory for it and what it is made into on the way. No
    /// memory is as good as no artifact.
    pub(super) async fn look(&self, key: &ContentKey, model: &ModelSpec) -> Option<(Whole, Reservation)> {
        let is_fresh = |subject: &Subject| !subject.is_expired(model.time_to_live, SystemTime::now());
        let held = |length: u64| self.reserve(length.saturating_mul(2)).ok();
        let whole = |artifact: &Arc<Artifact>| Some((Whole::of(artifact), held(artifact.meta().length)?));
        if let Some(artifact) = self.0.parts.memory.get(key) {
            return whole(&artifact);
        }
        for tier in &self.0.parts.tiers {
            if let Some(artifact) = tier.get(key).filter(|artifact| is_fresh(artifact.subject())) {
                return whole(&artifact);
            }
            let Lookup::Hit(mut stored) = tier.tier().get(*key).await else { continue };
            if !is_fresh(&stored.head.subject) {
                continue;
            }
            let (mut slices, held) = (Vec::new(), held(stored.head.meta.length)?);
            while let Ok(Some(chunk)) = stored.next().await {
                slices.push(chunk);
            }
            if slices.iter().map(|slice| slice.len() as u64).sum::<u64>() == stored.head.meta.length {
                let (meta, made) = (stored.head.meta, stored.head.subject.made);
                return Some((Whole { meta, slices, made }, held));
            }
        }
        None
    }
}

/// Whether what is stored may answer: not past its time, and what was predicted, if anything was.
fn is_good(order: &Order, subject: &Subject, meta: &Meta) -> bool {
    let is_fresh = !subject.is_expired(order.model.time_to_live, SystemTime::now());
    let fits = order.work.as_ref().is_none_or(|(_, predicted, _)| judge(Some(meta), predicted).is_ok());
    is_fresh && fits
}

fn publish(writer: &mut BodyWriter, slices: Vec<Bytes>) -> Result<(), Error> {
    slices.into_iter().try_for_each(|slice| writer.append(slice))
}

/// What is left of `slices` behind so many bytes.
fn after(slices: Vec<Bytes>, mut bytes: u64) -> Vec<Bytes> {
    let cut = |mut slice: Bytes| {
        let gone = bytes.min(slice.len() as u64);
        bytes -= gone;
        slice.split_off(gone as usize)
    };
    slices.into_iter().map(cut).filter(|slice| !slice.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_behind_some_bytes_begins_right_there() {
        let slices = || vec![Bytes::from_static(b"abc"), Bytes::from_static(b"de"), Bytes::from_static(b"f")];
        for (bytes, rest) in [(0, "abcdef"), (2, "cdef"), (3, "def"), (5, "f"), (6, "")] {
            assert_eq!(after(slices(), bytes).concat(), rest.as_bytes());
        }
    }
}
