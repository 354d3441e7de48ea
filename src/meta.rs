//! What the bytes of an answer are, known before the first of them.

use std::{borrow::Cow, time::Duration};

use crate::{
    job::Output,
    tensor::{DType, Shape},
};

/// What the bytes of a body are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    /// Media type.
    pub content_type: ContentType,
    /// Dtype of the tensor; u8 for pictures.
    pub dtype: DType,
    /// Shape of the tensor; `[1, h, w, 3]` for pictures.
    pub shape: Shape,
    /// Bytes in all.
    pub length: u64,
    /// Who made it, and how long that took.
    pub provenance: Provenance,
}

/// Media types of answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentType {
    /// A tensor's raw bytes.
    Tensor,
    /// `image/png`.
    Png,
    /// `image/jpeg`.
    Jpeg,
    /// `image/webp`.
    Webp,
    /// `video/mp4`.
    Mp4,
}

/// Who computed an artifact, and where the time went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provenance {
    /// Name of the backend.
    pub backend: Cow<'static, str>,
    /// Waiting in the backend's queue.
    pub queued: Duration,
    /// Computing.
    pub computed: Duration,
    /// Encoding the picture.
    pub rendered: Duration,
}

// === impl ContentType ===

impl ContentType {
    /// Every media type, in the order of their numbers in stored envelopes: append, never reorder.
    pub const ALL: [Self; 5] = [Self::Tensor, Self::Png, Self::Jpeg, Self::Webp, Self::Mp4];

    /// The media type's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tensor => "application/octet-stream",
            Self::Png => "image/png",
            Self::Jpeg => "image/jpeg",
            Self::Webp => "image/webp",
            Self::Mp4 => "video/mp4",
        }
    }
}

impl From<Output> for ContentType {
    fn from(output: Output) -> Self {
        match output {
            Output::Tensor(_) | Output::Uint8 | Output::Unit => Self::Tensor,
            Output::Png => Self::Png,
            Output::Jpeg(_) => Self::Jpeg,
            Output::Webp => Self::Webp,
            Output::Mp4(_) => Self::Mp4,
        }
    }
}

#[cfg(test)]
impl Meta {
    /// Metadata of a u8 tensor of `length` bytes, for tests that care about bytes alone.
    pub(crate) fn sample(length: u64) -> Self {
        Self {
            content_type: ContentType::Tensor,
            dtype: DType::U8,
            shape: Shape::try_new(&[length.max(1) as usize]).unwrap(),
            length,
            provenance: Provenance::none("test"),
        }
    }
}

impl Provenance {
    /// `backend` made it, in no time worth telling.
    pub const fn none(backend: &'static str) -> Self {
        Self {
            backend: Cow::Borrowed(backend),
            queued: Duration::ZERO,
            computed: Duration::ZERO,
            rendered: Duration::ZERO,
        }
    }
}
