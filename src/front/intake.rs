//! An input on its way in: gathered into one exact buffer, hashed as it arrives, its memory counted a step ahead.

use bytes::{Bytes, BytesMut};

use crate::{admission::Reservation, cache::alias::InputDigest, error::Error};

/// How long an input is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Length {
    /// Known from the spec.
    Exactly(u64),
    /// Known at its end.
    AtMost(u64),
}

/// What has come so far.
pub(super) struct Intake {
    length: Length,
    /// Memory is counted in steps of this: about what a front holds of an input before it hands it over.
    step: u64,
    hasher: blake3::Hasher,
    /// Input that came in one piece is used where it lies.
    whole: Bytes,
    buffer: BytesMut,
    got: u64,
}

impl Length {
    pub(super) const fn most(self) -> u64 {
        match self {
            Self::Exactly(bytes) | Self::AtMost(bytes) => bytes,
        }
    }
}

impl Intake {
    pub(super) fn new(length: Length, step: u64) -> Self {
        let (whole, buffer) = (Bytes::new(), BytesMut::new());
        Self { length, step, hasher: blake3::Hasher::new(), whole, buffer, got: 0 }
    }

    /// Bytes so far.
    pub(super) const fn got(&self) -> u64 {
        self.got
    }

    /// Takes the next piece. `held` grows as they come, a step at a time: a size that is only claimed takes no budget.
    pub(super) fn take(&mut self, piece: Bytes, held: &mut Reservation) -> Result<(), Error> {
        self.got += piece.len() as u64;
        let most = self.length.most();
        if self.got > most {
            return Err(Error::bad_request("data", format!("{}, {} have come", self.wanted(), self.got)));
        }
        held.grow_to(self.got.next_multiple_of(self.step).min(most))?;
        self.hasher.update(&piece);
        if self.whole.is_empty() && self.buffer.is_empty() {
            self.whole = piece;
            return Ok(());
        }
        if self.buffer.is_empty() {
            if let Length::Exactly(want) = self.length {
                // Address space, which is within the limits; pages are taken as bytes come, and counted then.
                self.buffer.reserve(want as usize);
            }
            self.buffer.extend_from_slice(&std::mem::take(&mut self.whole));
        }
        self.buffer.extend_from_slice(&piece);
        Ok(())
    }

    /// The input, whole, and its digest; refused if it is shorter than the spec says.
    pub(super) fn finish(self) -> Result<(Bytes, InputDigest), Error> {
        if matches!(self.length, Length::Exactly(want) if self.got < want) {
            return Err(Error::bad_request("data", format!("{}, the stream ended after {}", self.wanted(), self.got)));
        }
        let bytes = if self.buffer.is_empty() { self.whole } else { self.buffer.freeze() };
        Ok((bytes, *self.hasher.finalize().as_bytes()))
    }

    fn wanted(&self) -> String {
        match self.length {
            Length::Exactly(want) => format!("wanted {want} bytes"),
            Length::AtMost(most) => format!("wanted at most {most} bytes"),
        }
    }
}
