//! A tiny picture from latents in well under a millisecond, so that a person sees something at once.
//!
//! One pixel a latent: its channels, projected linearly to RGB. It shows composition and rough colour, no detail, and
//! is never cached. The projections are published least-squares fits; which space they were fitted in is stated on
//! each.

mod projections;

pub use projections::{BUILTIN, FLUX_1, FLUX_2, SD_3, SD_V1, SD_XL};

use std::borrow::Cow;

use bytes::Bytes;

use crate::float;
use crate::render::{self, Chroma, RenderError};
use crate::tensor::{DType, Shape, Tensor};

/// High enough that 64x64 pixels blown up on a screen show no blocks, at one to four kilobytes.
const QUALITY: u8 = 85;

/// `rgb = factors^T z + bias`, in -1..1; one for each latent space.
#[derive(Clone, Debug)]
pub struct Projection {
    /// A row of red, green and blue for each latent channel.
    factors: Cow<'static, [[f32; 3]]>,
    /// Added after the projection.
    bias: [f32; 3],
}

/// A tiny picture and its size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preview {
    /// The file.
    pub jpeg: Bytes,
    /// Pixels across: latents across.
    pub width: u32,
    /// Pixels down: latents down.
    pub height: u32,
}

/// Why latents have no preview.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PreviewError {
    /// Another latent space, or no latents.
    #[error(
        "the preview of this latent space takes float32 [n,{channels},h,w] or [n,{channels},f,h,w], got {dtype} {shape}"
    )]
    Latents {
        /// Channels of the projection.
        channels: usize,
        /// The type that came.
        dtype: DType,
        /// The shape that came.
        shape: Shape,
    },
    /// The picture could not be written.
    #[error(transparent)]
    Render(#[from] RenderError),
}

/// Projects the first picture (or first latent frame) of f32 `[n,c,h,w]` or `[n,c,f,h,w]` and encodes it as a JPEG with
/// full chroma; also its width and height, which are those of the latents.
///
/// The projection sees `gain * z + lift`: with them the caller, who knows the numbers, brings the latents to the denoiser's
/// space, `(z - shift_factor) * scaling_factor` of what the autoencoder takes.
pub fn jpeg(latents: &Tensor, space: &Projection, [gain, lift]: [f32; 2]) -> Result<Preview, PreviewError> {
    let channels = space.channels();
    let (h, w, plane) = match (latents.dtype(), latents.shape().dims()) {
        (DType::F32, &[_, c, h, w]) if c == channels => (h, w, h * w),
        (DType::F32, &[_, c, f, h, w]) if c == channels => (h, w, f * h * w),
        (dtype, _) => return Err(PreviewError::Latents { channels, dtype, shape: latents.shape().clone() }),
    };
    let shape = Shape::try_new(&[1, h, w, 3]).expect("fewer bytes than the latents have");
    let pixels = space.moved_by(gain, lift).project(latents.data(), plane, h * w);
    let pixels = Tensor::try_new(DType::U8, shape, pixels.into()).expect("three bytes a pixel");
    Ok(Preview { jpeg: render::jpeg_of(&pixels, QUALITY, Chroma::Full)?, width: w as u32, height: h as u32 })
}

// === impl Projection ===

impl Projection {
    /// Latent channels of the space.
    pub fn channels(&self) -> usize {
        self.factors.len()
    }

    /// The projection of `gain * z + lift`, as one of `z`: linear maps compose.
    fn moved_by(&self, gain: f32, lift: f32) -> Self {
        let total = |colour: usize| self.factors.iter().map(|row| row[colour]).sum::<f32>();
        let bias = std::array::from_fn(|colour| self.bias[colour] + lift * total(colour));
        Self { factors: self.factors.iter().map(|row| row.map(|factor| factor * gain)).collect(), bias }
    }

    /// RGB bytes of the first `area` latents of each channel; channels are `plane` values apart.
    fn project(&self, latents: &[u8], plane: usize, area: usize) -> Vec<u8> {
        let mut rgb = vec![self.bias; area];
        for (factors, channel) in self.factors.iter().zip(latents.chunks_exact(4 * plane)) {
            for (rgb, z) in rgb.iter_mut().zip(float::values(&channel[..4 * area])) {
                rgb.iter_mut().zip(factors).for_each(|(to, factor)| *to += factor * z);
            }
        }
        // `as` saturates, so what lies beyond -1..1 is clamped.
        rgb.as_flattened().iter().map(|v| (v * 127.5 + 127.5).round() as u8).collect()
    }
}

#[cfg(test)]
mod tests;
