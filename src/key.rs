//! Content keys: a digest that names a job's result.
//!
//! A key names the *request* (REAPI's action key, not its content address): two jobs have equal keys if and only if
//! task, model id and revision, parameters, output and canonical input are equal. It proves nothing about bytes; the
//! [`Seal`](crate::body::Seal) does. Keys are stable across restarts, releases and machines until `CONTEXT` is
//! raised; a golden test pins them.

use std::fmt;

use crate::{
    job::{EncodeMode, Job, Output, Work},
    model::Scaling,
    tensor::{DType, Tensor},
};

/// BLAKE3's derive-key context. Raise the number with any change of the encoding below: old entries become misses.
const CONTEXT: &str = "latentgate 2026-11-27 content key v2";

/// The digest that names a job's result.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContentKey([u8; 32]);

/// Hashes fields so that no two different lists of fields give the same bytes: each is a tag, a length, its content.
struct Encoder(blake3::Hasher);

/// Tags of the fields. Numbers are part of the key: append, never renumber.
#[derive(Clone, Copy)]
#[repr(u8)]
enum Tag {
    Task = 1,
    Model = 2,
    Revision = 3,
    Scaling = 4,
    Output = 5,
    Mode = 6,
    InputType = 7,
    InputShape = 8,
    Input = 9,
    Namespace = 10,
}

// === impl ContentKey ===

impl ContentKey {
    /// The key of a job. The input enters by its digest, so keys of other forms of one decode cost next to nothing.
    /// Keys of different namespaces are never equal; most programs have one, without a name.
    pub fn of(job: &Job, namespace: &str) -> Self {
        let mut key = Encoder(blake3::Hasher::new_derive_key(CONTEXT));
        if !namespace.is_empty() {
            key.field(Tag::Namespace, namespace.as_bytes());
        }
        key.field(Tag::Task, job.task().label().as_bytes());
        key.field(Tag::Model, job.model.id.as_str().as_bytes());
        key.field(Tag::Revision, job.model.revision.as_bytes());
        key.scaling(job.scaling);
        match &job.work {
            Work::Decode { output, .. } => key.output(*output),
            Work::Encode { mode, dtype, .. } => {
                key.output(Output::Tensor(*dtype));
                key.mode(*mode);
            }
        }
        key.input(job.input(), job.input_digest());
        Self(*key.0.finalize().as_bytes())
    }

    /// The key with this digest, which somebody wrote down: a file's name, an envelope.
    pub const fn from_bytes(digest: [u8; 32]) -> Self {
        Self(digest)
    }

    /// A key by its 64 hex digits, in lower case.
    pub fn from_hex(digits: &str) -> Option<Self> {
        let nibble = |digit: u8| match digit {
            b'0'..=b'9' => Some(digit - b'0'),
            b'a'..=b'f' => Some(digit - b'a' + 10),
            _ => None,
        };
        let mut digest = [0; 32];
        let (pairs, rest) = digits.as_bytes().as_chunks::<2>();
        if pairs.len() != digest.len() || !rest.is_empty() {
            return None;
        }
        for (byte, &[high, low]) in digest.iter_mut().zip(pairs) {
            *byte = nibble(high)? << 4 | nibble(low)?;
        }
        Some(Self(digest))
    }

    /// The digest.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for ContentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&blake3::Hash::from_bytes(self.0).to_hex())
    }
}

impl fmt::Debug for ContentKey {
    /// The first 16 hex digits: enough to find it in a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&blake3::Hash::from_bytes(self.0).to_hex()[..16])
    }
}

// === impl Encoder ===

impl Encoder {
    fn field(&mut self, tag: Tag, content: &[u8]) {
        self.0.update(&[tag as u8]).update(&(content.len() as u64).to_le_bytes()).update(content);
    }

    fn scaling(&mut self, Scaling { factor, shift }: Scaling) {
        let [a, b] = [factor.to_le_bytes(), shift.to_le_bytes()];
        self.field(Tag::Scaling, &[a, b].concat());
    }

    fn output(&mut self, output: Output) {
        let (form, detail) = match output {
            Output::Tensor(dtype) => (0u8, u32::from(dtype_code(dtype))),
            Output::Uint8 => (1, 0),
            Output::Png => (2, 0),
            Output::Jpeg(quality) => (3, u32::from(quality)),
            Output::Webp => (4, 0),
            Output::Mp4(fps) => (5, fps),
            Output::Unit => (6, 0),
        };
        let mut content = [form, 0, 0, 0, 0];
        content[1..].copy_from_slice(&detail.to_le_bytes());
        self.field(Tag::Output, &content);
    }

    fn mode(&mut self, mode: EncodeMode) {
        match mode {
            EncodeMode::Mean => self.field(Tag::Mode, &[]),
            EncodeMode::Sample { seed } => self.field(Tag::Mode, &seed.to_le_bytes()),
        }
    }

    fn input(&mut self, input: &Tensor, digest: &[u8; 32]) {
        self.field(Tag::InputType, &[dtype_code(input.dtype())]);
        let dims: Vec<u8> = input.shape().dims().iter().flat_map(|&d| (d as u64).to_le_bytes()).collect();
        self.field(Tag::InputShape, &dims);
        self.field(Tag::Input, digest);
    }
}

/// Codes of dtypes inside keys: part of the key, never renumbered.
const fn dtype_code(dtype: DType) -> u8 {
    match dtype {
        DType::F32 => 0,
        DType::F16 => 1,
        DType::BF16 => 2,
        DType::U8 => 3,
    }
}

#[cfg(test)]
mod tests;
