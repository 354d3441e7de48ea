//! The stored form of an artifact: a head that says what it is and proves every chunk, then the payload.
//!
//! ```text
//! offset 0   8  magic, like a PNG's: a text-mode copy or a cut eighth bit shows at once
//!        8   4  version of this format
//!       12   4  bytes of the head, H: all before the payload
//!       16   8  bytes of the payload
//!       24   .  fields: tag u8, length u32, content
//!     H-32  32  BLAKE3 of the head before it, in derive-key mode
//!        H   .  payload: the artifact's bytes
//! ```
//!
//! All numbers are little-endian. A chunk is [`CHUNK_BYTES`] of payload, the last one what is left. Each has a checksum of
//! its own, XXH3-128: what has to be found at every read is damage, and it finds that nine times as fast as BLAKE3, whose
//! digest of the whole (the seal) stands beside it for whoever wants the stronger proof: clients, and `cache verify`.
//!
//! Every field is there exactly once; a head that says more or less, or whose digest is wrong, is not believed at all.
//! Other versions are somebody else's: a miss, never misread.

use std::time::{Duration, SystemTime};

use bytes::{Buf as _, Bytes};
use twox_hash::XxHash3_128;

use super::{Artifact, Subject};
use crate::{
    body::Seal,
    key::ContentKey,
    meta::{ContentType, Meta, Provenance},
    model::{ModelId, Task},
    tensor::{DType, Shape},
};

mod fields;

use fields::{Fields, Tag, field};

/// What is proved, and published, at a time.
pub const CHUNK_BYTES: usize = 1 << 20;

/// The longest head there may be: checksums of 64 GiB of payload, far beyond every limit on answers.
pub const MAX_HEAD_BYTES: usize = 1 << 20;

/// Bytes from which the head's own length can be told.
pub const PREAMBLE_BYTES: usize = 24;

/// This format's version.
pub const VERSION: u32 = 1;

const MAGIC: [u8; 8] = *b"\x89LGA\r\n\x1a\n";
const DIGEST_BYTES: usize = 32;
/// BLAKE3's derive-key context of a head's digest.
const HEAD_CONTEXT: &str = "latentgate 2026-11-27 envelope head v1";

/// XXH3-128 of a chunk, little-endian. <https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md>
type Checksum = [u8; 16];

/// Everything about a stored artifact but its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Whose result it is.
    pub subject: Subject,
    /// What the bytes are.
    pub meta: Meta,
    /// What proves all of them.
    pub seal: Seal,
    /// Of each chunk.
    checksums: Vec<Checksum>,
}

/// Why bytes are no head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// Not one of ours.
    #[error("it does not begin like an artifact")]
    Magic,
    /// Of another version of this program.
    #[error("it is of format version {0}")]
    Version(u32),
    /// Ours, and damaged.
    #[error("its head is damaged: {0}")]
    Damaged(&'static str),
}

// === impl Head ===

impl Head {
    /// The head of an artifact. Reads all of its bytes: work for a blocking thread.
    pub fn of(artifact: &Artifact) -> Self {
        let (subject, meta) = (artifact.subject().clone(), artifact.meta().clone());
        Self { subject, meta, seal: *artifact.seal(), checksums: checksums(&artifact.slices()) }
    }

    /// Chunks of the payload.
    pub fn chunk_count(&self) -> usize {
        chunk_count(self.seal.length)
    }

    /// Bytes of a chunk.
    pub fn chunk_bytes(&self, chunk: usize) -> usize {
        let before = (chunk * CHUNK_BYTES) as u64;
        (self.seal.length.saturating_sub(before)).min(CHUNK_BYTES as u64) as usize
    }

    /// Whether `bytes` are that chunk.
    pub fn proves(&self, chunk: usize, bytes: &[u8]) -> bool {
        bytes.len() == self.chunk_bytes(chunk) && self.checksums.get(chunk) == Some(&checksum(bytes))
    }

    /// The head's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(512 + self.checksums.as_flattened().len());
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        // Its place; the length is known at the end.
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&self.seal.length.to_le_bytes());
        let Self { subject, meta, seal, checksums } = self;
        field(&mut bytes, Tag::Key, subject.key.as_bytes());
        field(&mut bytes, Tag::Model, subject.model.as_str().as_bytes());
        field(&mut bytes, Tag::Task, subject.task.label().as_bytes());
        let made = subject.made.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        field(&mut bytes, Tag::Made, &(made.as_millis() as u64).to_le_bytes());
        let content_type = ContentType::ALL.iter().position(|known| *known == meta.content_type).unwrap_or_default();
        field(&mut bytes, Tag::ContentType, &[content_type as u8]);
        field(&mut bytes, Tag::DType, meta.dtype.name().as_bytes());
        let dims: Vec<u8> = meta.shape.dims().iter().flat_map(|&dim| (dim as u64).to_le_bytes()).collect();
        field(&mut bytes, Tag::Shape, &dims);
        field(&mut bytes, Tag::Backend, meta.provenance.backend.as_bytes());
        let times = [meta.provenance.queued, meta.provenance.computed, meta.provenance.rendered];
        let times: Vec<u8> = times.iter().flat_map(|time| (time.as_micros() as u64).to_le_bytes()).collect();
        field(&mut bytes, Tag::Times, &times);
        field(&mut bytes, Tag::Digest, &seal.digest);
        field(&mut bytes, Tag::Checksums, checksums.as_flattened());
        let length = (bytes.len() + DIGEST_BYTES) as u32;
        bytes[12..16].copy_from_slice(&length.to_le_bytes());
        let digest = blake3::derive_key(HEAD_CONTEXT, &bytes);
        bytes.extend_from_slice(&digest);
        bytes
    }

    /// How long the head is, by its first [`PREAMBLE_BYTES`]. Nothing is proved yet.
    pub fn length(preamble: &[u8; PREAMBLE_BYTES]) -> Result<usize, EnvelopeError> {
        let mut rest = &preamble[..];
        if rest.copy_to_bytes(MAGIC.len()) != MAGIC[..] {
            return Err(EnvelopeError::Magic);
        }
        match (rest.get_u32_le(), rest.get_u32_le() as usize) {
            (VERSION, length) if (PREAMBLE_BYTES + DIGEST_BYTES..=MAX_HEAD_BYTES).contains(&length) => Ok(length),
            (VERSION, _) => Err(EnvelopeError::Damaged("its length")),
            (version, _) => Err(EnvelopeError::Version(version)),
        }
    }

    /// Reads a whole head.
    pub fn decode(bytes: &[u8]) -> Result<Self, EnvelopeError> {
        let preamble = bytes.first_chunk().ok_or(EnvelopeError::Damaged("its length"))?;
        let length = Self::length(preamble)?;
        let head = bytes.get(..length).ok_or(EnvelopeError::Damaged("its length"))?;
        let (proved, digest) = head.split_at(length - DIGEST_BYTES);
        if blake3::derive_key(HEAD_CONTEXT, proved) != digest {
            return Err(EnvelopeError::Damaged("its digest"));
        }
        let payload = (&preamble[16..]).get_u64_le();
        Self::from_fields(&proved[PREAMBLE_BYTES..], payload)
    }

    fn from_fields(bytes: &[u8], length: u64) -> Result<Self, EnvelopeError> {
        let fields = Fields::parse(bytes)?;
        let model = ModelId::try_new(fields.text(Tag::Model)?).ok_or(Tag::Model.damaged())?;
        let task = fields.text(Tag::Task)?;
        let task = Task::ALL.into_iter().find(|known| known.label() == task).ok_or(Tag::Task.damaged())?;
        let [made] = fields.numbers(Tag::Made)?;
        let made = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(made)).ok_or(Tag::Made.damaged())?;
        let subject = Subject { key: ContentKey::from_bytes(fields.digest(Tag::Key)?), model, task, made };
        let seal = Seal { length, digest: fields.digest(Tag::Digest)? };
        let head = Self { subject, meta: fields.meta(length)?, seal, checksums: fields.checksums()? };
        if head.checksums.len() == head.chunk_count() { Ok(head) } else { Err(Tag::Checksums.damaged()) }
    }
}

impl Fields<'_> {
    fn meta(&self, length: u64) -> Result<Meta, EnvelopeError> {
        let &[content_type] = self.bytes(Tag::ContentType)? else { return Err(Tag::ContentType.damaged()) };
        let content_type = *ContentType::ALL.get(usize::from(content_type)).ok_or(Tag::ContentType.damaged())?;
        let dtype = self.text(Tag::DType)?;
        let dtype = DType::ALL.into_iter().find(|known| known.name() == dtype).ok_or(Tag::DType.damaged())?;
        let dims: Vec<i64> = self.bytes(Tag::Shape)?.as_chunks().0.iter().map(|&dim| i64::from_le_bytes(dim)).collect();
        let shape = Shape::try_from_wire(&dims).map_err(|_| Tag::Shape.damaged())?;
        let [queued, computed, rendered] = self.numbers(Tag::Times)?.map(Duration::from_micros);
        let backend = self.text(Tag::Backend)?.to_owned().into();
        let provenance = Provenance { backend, queued, computed, rendered };
        Ok(Meta { content_type, dtype, shape, length, provenance })
    }

    fn checksums(&self) -> Result<Vec<Checksum>, EnvelopeError> {
        match self.bytes(Tag::Checksums)?.as_chunks() {
            (checksums, []) => Ok(checksums.to_vec()),
            _ => Err(Tag::Checksums.damaged()),
        }
    }
}

fn chunk_count(length: u64) -> usize {
    length.div_ceil(CHUNK_BYTES as u64).max(1) as usize
}

fn checksum(bytes: &[u8]) -> Checksum {
    XxHash3_128::oneshot(bytes).to_le_bytes()
}

/// The checksum of every chunk of bytes that lie in slices of any length. No bytes are one chunk of none.
fn checksums(slices: &[Bytes]) -> Vec<Checksum> {
    let (mut checksums, mut hasher, mut room) = (Vec::new(), XxHash3_128::new(), CHUNK_BYTES);
    for mut slice in slices.iter().map(|slice| &slice[..]) {
        while !slice.is_empty() {
            if room == 0 {
                checksums.push(std::mem::take(&mut hasher).finish_128().to_le_bytes());
                room = CHUNK_BYTES;
            }
            let (taken, left) = slice.split_at(room.min(slice.len()));
            hasher.write(taken);
            (slice, room) = (left, room - taken.len());
        }
    }
    checksums.push(hasher.finish_128().to_le_bytes());
    checksums
}

#[cfg(test)]
mod tests;
