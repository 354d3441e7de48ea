//! The fields of a head: each a tag, a length, its content; each there once.

use super::EnvelopeError;

/// Tags. Numbers are part of the format: append with a new version, never renumber.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Tag {
    /// 32 bytes.
    Key = 1,
    /// UTF-8.
    Model = 2,
    /// `decode`, `encode`.
    Task = 3,
    /// Milliseconds since 1970 as u64.
    Made = 4,
    /// Number in the list of media types.
    ContentType = 5,
    /// `float32`, ...
    DType = 6,
    /// One u64 a dimension.
    Shape = 7,
    /// Name of the backend, UTF-8.
    Backend = 8,
    /// Queued, computed, rendered: microseconds as u64.
    Times = 9,
    /// BLAKE3 of the payload.
    Digest = 10,
    /// 16 bytes a chunk.
    Checksums = 11,
}

const COUNT: usize = 11;

/// Tag and length before a field's content.
const OVERHEAD_BYTES: usize = 5;

/// The contents, by tag.
pub(super) struct Fields<'a>([Option<&'a [u8]>; COUNT]);

/// Appends a field.
pub(super) fn field(bytes: &mut Vec<u8>, tag: Tag, content: &[u8]) {
    bytes.push(tag as u8);
    bytes.extend_from_slice(&(content.len() as u32).to_le_bytes());
    bytes.extend_from_slice(content);
}

impl Tag {
    pub(super) const fn damaged(self) -> EnvelopeError {
        EnvelopeError::Damaged(match self {
            Self::Key => "its key",
            Self::Model => "its model",
            Self::Task => "its task",
            Self::Made => "its time",
            Self::ContentType => "its content type",
            Self::DType => "its dtype",
            Self::Shape => "its shape",
            Self::Backend => "its backend",
            Self::Times => "its times",
            Self::Digest => "its payload's digest",
            Self::Checksums => "the checksums of its chunks",
        })
    }
}

impl<'a> Fields<'a> {
    pub(super) fn parse(mut bytes: &'a [u8]) -> Result<Self, EnvelopeError> {
        const DAMAGED: EnvelopeError = EnvelopeError::Damaged("its fields");
        let mut fields = [None; COUNT];
        while let Some((start, rest)) = bytes.split_first_chunk::<OVERHEAD_BYTES>() {
            let [tag, length @ ..] = *start;
            let (content, rest) = rest.split_at_checked(u32::from_le_bytes(length) as usize).ok_or(DAMAGED)?;
            let slot = usize::from(tag).checked_sub(1).and_then(|at| fields.get_mut(at)).ok_or(DAMAGED)?;
            if slot.replace(content).is_some() {
                return Err(DAMAGED);
            }
            bytes = rest;
        }
        if bytes.is_empty() { Ok(Self(fields)) } else { Err(DAMAGED) }
    }

    pub(super) fn bytes(&self, tag: Tag) -> Result<&'a [u8], EnvelopeError> {
        self.0[tag as usize - 1].ok_or(tag.damaged())
    }

    pub(super) fn text(&self, tag: Tag) -> Result<&'a str, EnvelopeError> {
        std::str::from_utf8(self.bytes(tag)?).map_err(|_| tag.damaged())
    }

    pub(super) fn digest(&self, tag: Tag) -> Result<[u8; 32], EnvelopeError> {
        self.bytes(tag)?.try_into().map_err(|_| tag.damaged())
    }

    pub(super) fn numbers<const N: usize>(&self, tag: Tag) -> Result<[u64; N], EnvelopeError> {
        match self.bytes(tag)?.as_chunks() {
            (numbers, []) => {
                let numbers: [[u8; 8]; N] = numbers.try_into().map_err(|_| tag.damaged())?;
                Ok(numbers.map(u64::from_le_bytes))
            }
            _ => Err(tag.damaged()),
        }
    }
}
