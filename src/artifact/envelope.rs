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
//! All numbers are little-endian. A chunk is [`CHUNK_BYTES`] of payload, the last one what is left. Chunks are whole
//! subtrees of BLAKE3's tree, so their chaining values prove each chunk alone *and* merge into the digest of the whole:
//! a reader hashes every byte once. A payload of one chunk needs no values: the digest is its proof.
//!
//! Every field is there exactly once; a head that says more or less, or whose digest is wrong, is not believed at all.
//! Other versions are somebody else's: a miss, never misread.

use std::time::{Duration, SystemTime};

use blake3::hazmat::{self, HasherExt as _, Mode};
use bytes::{Buf as _, Bytes};

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

/// What is proved, and published, at a time. A power of two times BLAKE3's own chunk.
pub const CHUNK_BYTES: usize = 1 << 20;

/// The longest head there may be: proofs of 32 GiB of payload, far beyond every limit on answers.
pub const MAX_HEAD_BYTES: usize = 1 << 20;

/// Bytes from which the head's own length can be told.
pub const PREAMBLE_BYTES: usize = 24;

/// This format's version.
pub const VERSION: u32 = 1;

const MAGIC: [u8; 8] = *b"\x89LGA\r\n\x1a\n";
const DIGEST_BYTES: usize = 32;
/// BLAKE3's derive-key context of a head's digest.
const HEAD_CONTEXT: &str = "latentgate 2026-11-27 envelope head v1";

/// Everything about a stored artifact but its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Whose result it is.
    pub subject: Subject,
    /// What the bytes are.
    pub meta: Meta,
    /// What proves all of them.
    pub seal: Seal,
    /// What proves each chunk; empty where there is but one.
    chunks: Vec<[u8; 32]>,
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
    /// The head of an artifact. Hashes all of its bytes: work for a blocking thread.
    pub fn of(artifact: &Artifact) -> Self {
        let seal = *artifact.seal();
        let chunks = if chunk_count(seal.length) > 1 { chaining_values(&artifact.slices()) } else { Vec::new() };
        Self { subject: artifact.subject().clone(), meta: artifact.meta().clone(), seal, chunks }
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
        if bytes.len() != self.chunk_bytes(chunk) {
            return false;
        }
        match self.chunks.get(chunk) {
            Some(value) => chaining_value(chunk, bytes) == *value,
            None => self.chunks.is_empty() && *blake3::hash(bytes).as_bytes() == self.seal.digest,
        }
    }

    /// The head's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(512 + self.chunks.len() * 32);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        // Its place; the length is known at the end.
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&self.seal.length.to_le_bytes());
        let Self { subject, meta, seal, chunks } = self;
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
        field(&mut bytes, Tag::Chunks, chunks.as_flattened());
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
        let head = Self { subject, meta: fields.meta(length)?, seal, chunks: fields.chunks()? };
        let wanted = if head.chunk_count() > 1 { head.chunk_count() } else { 0 };
        if head.chunks.len() != wanted || (wanted > 0 && merge(&head.chunks, length) != seal.digest) {
            return Err(Tag::Chunks.damaged());
        }
        Ok(head)
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

    fn chunks(&self) -> Result<Vec<[u8; 32]>, EnvelopeError> {
        match self.bytes(Tag::Chunks)?.as_chunks() {
            (values, []) => Ok(values.to_vec()),
            _ => Err(Tag::Chunks.damaged()),
        }
    }
}

fn chunk_count(length: u64) -> usize {
    length.div_ceil(CHUNK_BYTES as u64).max(1) as usize
}

/// The chaining value of a chunk's subtree.
fn chaining_value(chunk: usize, bytes: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.set_input_offset((chunk * CHUNK_BYTES) as u64).update(bytes);
    hasher.finalize_non_root()
}

/// The same of every chunk of bytes that lie in slices of any length.
fn chaining_values(slices: &[Bytes]) -> Vec<[u8; 32]> {
    let (mut values, mut hasher, mut room) = (Vec::new(), blake3::Hasher::new(), CHUNK_BYTES);
    let mut rest = slices.iter().map(|slice| &slice[..]).filter(|slice| !slice.is_empty()).peekable();
    while let Some(mut slice) = rest.next() {
        while !slice.is_empty() {
            let (taken, left) = slice.split_at(room.min(slice.len()));
            hasher.update(taken);
            (slice, room) = (left, room - taken.len());
            let is_last = left.is_empty() && rest.peek().is_none();
            if room == 0 || is_last {
                values.push(hasher.finalize_non_root());
                (hasher, room) = (blake3::Hasher::new(), CHUNK_BYTES);
                hasher.set_input_offset((values.len() * CHUNK_BYTES) as u64);
            }
        }
    }
    values
}

/// The digest of the whole, from the chaining values of its chunks, of which there are at least two.
fn merge(chunks: &[[u8; 32]], length: u64) -> [u8; 32] {
    let [left, right] = halves(chunks, length);
    *hazmat::merge_subtrees_root(&left, &right, Mode::Hash).as_bytes()
}

fn halves(chunks: &[[u8; 32]], length: u64) -> [[u8; 32]; 2] {
    let left = hazmat::left_subtree_len(length);
    let (first, second) = chunks.split_at((left / CHUNK_BYTES as u64) as usize);
    [subtree(first, left), subtree(second, length - left)]
}

fn subtree(chunks: &[[u8; 32]], length: u64) -> [u8; 32] {
    if let [value] = chunks {
        return *value;
    }
    let [left, right] = halves(chunks, length);
    hazmat::merge_subtrees_non_root(&left, &right, Mode::Hash)
}

#[cfg(test)]
mod tests;
