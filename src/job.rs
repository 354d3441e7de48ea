//! From what a client spelled to what everything after the fronts speaks of.
//!
//! A [`Spec`] is typed but as spelled: defaults left out, latents packed or not, sizes unproven. [`Spec::check`] judges
//! it, before any payload memory is taken, against the model table and the [`Limits`]. With the payload it becomes a
//! [`Job`]: valid and canonical by construction, so that equal requests are equal jobs however they were spelled.

use std::{
    hash::{Hash, Hasher},
    sync::Arc,
};

use crate::{
    error::Error,
    model::{ModelSpec, ModelTable, Scaling, Task},
    picture::Range,
    preview::Projection,
    tensor::{DType, Shape, Tensor},
};

mod canonical;
mod check;
mod predict;
mod rendition;

pub use check::Checked;
pub use predict::Predicted;
pub use rendition::{Rendition, RenditionError};

/// The sizes a request may have. They bound memory and time before any is spent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Pixels of all pictures of a request together, in or out.
    pub max_pixels: u64,
    /// Pictures in a batch.
    pub max_batch: usize,
    /// Bytes of an input as sent.
    pub max_input_bytes: u64,
}

/// The wanted form of decoded pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Output {
    /// Decoder output as it is, `[n, 3, h, w]`, in a floating-point dtype.
    Tensor(DType),
    /// Finished pixels of uint8: `[n, h, w, 3]`, of a video `[frames, h, w, 3]`.
    Uint8,
    /// Finished pixels in 0..1, f16: `[n, 3, h, w]`, of a video `[frames, 3, h, w]`.
    Unit,
    /// 8-bit RGB PNG.
    Png,
    /// Baseline JPEG, 4:2:0, of this quality in 1..=100.
    Jpeg(u8),
    /// Lossless WebP.
    Webp,
    /// MP4 at so many frames a second; video models only.
    Mp4(u32),
}

/// What becomes of a batch whose output has room for one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Batch {
    /// All of it or nothing: refused where the output has room for one.
    #[default]
    Whole,
    /// The first answers for all where there is room for one, as the Hugging Face protocol has it.
    FirstIfOne,
}

/// Which latents of the posterior an encode answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EncodeMode {
    /// Its mean: deterministic, and the default.
    Mean,
    /// One draw, the same for the same seed.
    Sample {
        /// Seed of our own generator.
        seed: u64,
    },
}

/// What a client says about scaling.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ScalingWish {
    /// The model's own numbers.
    ModelDefault,
    /// These numbers.
    Given {
        /// Finite, not zero.
        factor: f64,
        /// Finite.
        shift: f64,
    },
    /// None: the client has done it.
    Applied,
}

/// How a request uses the cache. Never part of the key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CachePolicy {
    /// Answer from it, keep what is computed.
    #[default]
    Default,
    /// Compute even when cached, and refresh it.
    Bypass,
    /// Answer from it, keep nothing.
    NoStore,
    /// Answer from it or not at all.
    OnlyIfCached,
}

/// A decode as spelled.
#[derive(Clone, Debug, PartialEq, Hash)]
pub struct DecodeSpec {
    /// Model id.
    pub model: String,
    /// Dtype of the latents as sent.
    pub dtype: DType,
    /// Shape of the latents as sent: `[n, c, h, w]`, packed `[n, l, 4c]`, of a video `[n, c, f, h, w]`.
    pub shape: Shape,
    /// Height and width of the wanted picture in pixels; packed latents need them, others ignore them.
    pub picture: Option<(u32, u32)>,
    /// Scaling as spelled.
    pub scaling: ScalingWish,
    /// Wanted form.
    pub output: Output,
    /// What if the form has room for one only.
    pub batch: Batch,
}

/// The input of an encode as spelled.
#[derive(Clone, Debug, PartialEq, Hash)]
pub enum EncodeInput {
    /// A PNG, JPEG or WebP file of so many bytes.
    Image {
        /// Bytes of the file.
        length: u64,
    },
    /// A tensor `[n, 3, h, w]`.
    Pixels {
        /// Dtype as sent.
        dtype: DType,
        /// Shape as sent.
        shape: Shape,
        /// What the values mean.
        range: Range,
    },
}

/// An encode as spelled.
#[derive(Clone, Debug, PartialEq, Hash)]
pub struct EncodeSpec {
    /// Model id.
    pub model: String,
    /// What comes in.
    pub input: EncodeInput,
    /// Mean or sample.
    pub mode: EncodeMode,
    /// Scaling as spelled.
    pub scaling: ScalingWish,
    /// Dtype of the answer; floating point.
    pub dtype: DType,
}

/// A request as spelled, without its payload.
#[derive(Clone, Debug, PartialEq, Hash)]
pub enum Spec {
    /// Latents to pixels.
    Decode(DecodeSpec),
    /// Pixels to latents.
    Encode(EncodeSpec),
}

/// What is to be computed, with its canonical input.
#[derive(Clone, Debug, PartialEq)]
pub enum Work {
    /// Latents to pixels.
    Decode {
        /// `[n, c, h, w]` or `[n, c, f, h, w]`, f32, finite, unpacked, scaling not yet applied.
        latents: Tensor,
        /// Wanted form.
        output: Output,
    },
    /// Pixels to latents.
    Encode {
        /// u8 `[n, h, w, 3]`, or f32 `[n, 3, h, w]` in -1..1; sides are multiples of 8.
        pixels: Tensor,
        /// Mean or sample.
        mode: EncodeMode,
        /// Dtype of the answer.
        dtype: DType,
    },
}

/// One validated request in canonical form.
#[derive(Clone, Debug)]
pub struct Job {
    /// Whose weights.
    pub model: Arc<ModelSpec>,
    /// The map between the request's latents and the autoencoder's.
    pub scaling: Scaling,
    /// What is to be computed.
    pub work: Work,
    input_digest: [u8; 32],
    narrow: Option<Tensor>,
}

// === impl Output ===

impl Output {
    /// JPEG quality when none is said: Pillow's, and so the endpoints'.
    pub const DEFAULT_JPEG_QUALITY: u8 = 75;

    /// Frames a second when none are said: the endpoints' writer's default.
    pub const DEFAULT_FPS: u32 = 10;

    /// The longest side its file format can express, in pixels.
    pub const fn max_side(self) -> usize {
        match self {
            Self::Jpeg(_) => 65_535,
            Self::Webp => 16_383,
            // PNG's limit is 31 bits, beyond any limit on pixels.
            Self::Png | Self::Tensor(_) | Self::Uint8 | Self::Unit | Self::Mp4(_) => i32::MAX as usize,
        }
    }

    /// Whether it is a picture file, which has room for one picture.
    pub const fn is_picture(self) -> bool {
        matches!(self, Self::Png | Self::Jpeg(_) | Self::Webp)
    }

    /// Whether it has room for the first of a batch only: files, and the frames of one video.
    pub const fn holds_one(self, is_video: bool) -> bool {
        match self {
            Self::Png | Self::Jpeg(_) | Self::Webp | Self::Mp4(_) => true,
            Self::Uint8 | Self::Unit => is_video,
            Self::Tensor(_) => false,
        }
    }
}

// === impl ScalingWish ===

impl Hash for ScalingWish {
    /// By the bits of its numbers; the two zeros are one.
    fn hash<H: Hasher>(&self, state: &mut H) {
        std::mem::discriminant(self).hash(state);
        if let Self::Given { factor, shift } = self {
            [factor + 0.0, shift + 0.0].map(f64::to_bits).hash(state);
        }
    }
}

// === impl Spec ===

impl Spec {
    /// Which task it is.
    pub const fn task(&self) -> Task {
        match self {
            Self::Decode(_) => Task::Decode,
            Self::Encode(_) => Task::Encode,
        }
    }

    /// The model it names.
    pub fn model(&self) -> &str {
        match self {
            Self::Decode(spec) => &spec.model,
            Self::Encode(spec) => &spec.model,
        }
    }

    /// Judges everything that can be judged without the payload: model, task, dtypes, channels, sizes, output.
    pub fn check(self, models: &ModelTable, limits: &Limits) -> Result<Checked, Error> {
        let model = models.find(self.model(), self.task())?.clone();
        Checked::new(self, model, *limits)
    }
}

// === impl Work ===

impl Work {
    /// The canonical input.
    pub const fn input(&self) -> &Tensor {
        match self {
            Self::Decode { latents, .. } => latents,
            Self::Encode { pixels, .. } => pixels,
        }
    }
}

// === impl Job ===

impl Job {
    /// A job of canonical work, whose input is hashed here.
    pub fn new(model: Arc<ModelSpec>, scaling: Scaling, work: Work) -> Self {
        let input_digest = *blake3::hash(work.input().data()).as_bytes();
        Self { model, scaling, work, input_digest, narrow: None }
    }

    /// BLAKE3 of the canonical input's bytes.
    pub const fn input_digest(&self) -> &[u8; 32] {
        &self.input_digest
    }

    /// The latents in the 16-bit type that they came in, where they did: the same numbers in half the bytes, for whoever
    /// sends them on.
    pub const fn narrow_latents(&self) -> Option<&Tensor> {
        self.narrow.as_ref()
    }

    /// The same decode in another form; none for encodes.
    pub fn with_output(&self, output: Output) -> Option<Self> {
        let Work::Decode { latents, .. } = &self.work else { return None };
        Some(Self { work: Work::Decode { latents: latents.clone(), output }, ..self.clone() })
    }

    /// Which task it is.
    pub const fn task(&self) -> Task {
        match self.work {
            Work::Decode { .. } => Task::Decode,
            Work::Encode { .. } => Task::Encode,
        }
    }

    /// What a preview is made from; none for encodes, and for latent spaces that nobody has fitted a projection to.
    pub fn preview_source(&self) -> Option<(&Tensor, &'static Projection)> {
        match &self.work {
            Work::Decode { latents, .. } => Some((latents, self.model.preview?)),
            Work::Encode { .. } => None,
        }
    }

    /// The canonical input.
    pub const fn input(&self) -> &Tensor {
        self.work.input()
    }
}

#[cfg(test)]
mod tests;
