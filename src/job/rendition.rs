//! One decode, many forms: which can be made of which, and how.
//!
//! Every form but an explicit f32 or bf16 tensor is made of numbers that were rounded to f16 once, so what is rendered
//! from a kept f16 tensor, or from the 8-bit pixels that were made of one, is bit for bit what a run would have answered.
//! f32 holds the numbers before that rounding, so it gives every form. Nothing else is derived: a rounding cannot be
//! undone, and the same pixels in an endpoint's own PNG are other bytes.

use bytes::Bytes;

use super::Output;
use crate::{
    float, picture, render,
    tensor::{DType, Shape, Tensor},
};

/// A form, made.
pub struct Rendition {
    /// Dtype and shape of the tensor, or of the pixels that a picture shows.
    pub dtype: DType,
    /// See `dtype`.
    pub shape: Shape,
    /// The tensor's bytes, or the file.
    pub bytes: Bytes,
}

/// Why a form cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum RenditionError {
    /// Of that source it cannot.
    #[error("{to:?} is not made of {from:?}")]
    Form {
        /// What there was.
        from: Output,
        /// What was wanted.
        to: Output,
    },
    /// The source is not what its form says.
    #[error("the source does not render")]
    Render(#[from] render::RenderError),
    /// A number is too large for the type that was asked for: no answer of a run either.
    #[error("a number of the source is too large for {0}")]
    TooLarge(DType),
    /// The source is no tensor of floats.
    #[error("the source is no tensor of floats")]
    Float(#[from] float::NotFloat),
    /// The source is no picture.
    #[error("the source is no picture")]
    Picture(#[from] picture::PictureError),
    /// The source is too short or too long for its shape.
    #[error("the source has another length")]
    Length(#[from] crate::tensor::TensorError),
}

impl Output {
    /// The forms of a picture's decode that this one can be made of, bit for bit, cheapest first.
    pub const fn sources(self) -> &'static [Self] {
        const F16: Output = Output::Tensor(DType::F16);
        const F32: Output = Output::Tensor(DType::F32);
        match self {
            Self::Tensor(DType::F16 | DType::BF16) => &[F32],
            Self::Unit => &[F16, F32],
            Self::Uint8 => &[F16, F32, Self::Png, Self::Webp],
            Self::Png => &[Self::Uint8, F16, F32, Self::Webp],
            Self::Webp => &[Self::Uint8, F16, F32, Self::Png],
            Self::Jpeg(_) => &[Self::Uint8, F16, F32, Self::Png, Self::Webp],
            Self::Tensor(_) | Self::Mp4(_) => &[],
        }
    }

    /// Makes this form of a decode whose form `from` is `bytes` of that dtype and shape. Work for a blocking thread.
    pub fn derive(
        self,
        from: Self,
        (dtype, shape): (DType, Shape),
        bytes: &Bytes,
    ) -> Result<Rendition, RenditionError> {
        if !self.sources().contains(&from) {
            return Err(RenditionError::Form { from, to: self });
        }
        match from {
            Self::Png | Self::Webp => {
                let limits = picture::PictureLimits { max_pixels: shape.elements(), max_side: u32::MAX };
                self.of_pixels(&picture::read(bytes, &limits)?)
            }
            Self::Uint8 => self.of_pixels(&Tensor::try_new(dtype, shape, bytes.clone())?),
            _ => self.of_decoded(&Tensor::try_new(dtype, shape, bytes.clone())?),
        }
    }

    /// Makes this form of the decoder's numbers, `[n, 3, h, w]`: f32, or f16 where no f32 is wanted; or of the pixels that the
    /// engine has made of them already, u8 `[n, h, w, 3]`. Blocks.
    pub fn of_decoded(self, numbers: &Tensor) -> Result<Rendition, RenditionError> {
        match self {
            _ if numbers.dtype() == DType::U8 => self.of_pixels(numbers),
            Self::Tensor(dtype) => Ok(Rendition::of(cast(numbers, dtype)?)),
            Self::Unit => Ok(Rendition::of(render::unit(&cast(numbers, DType::F16)?)?)),
            _ => self.of_pixels(&render::uint8(&cast(numbers, DType::F16)?)?),
        }
    }

    /// Makes this form of finished pixels, u8 `[n, h, w, 3]`; a file of one picture. Blocks.
    pub fn of_pixels(self, pixels: &Tensor) -> Result<Rendition, RenditionError> {
        let file = match self {
            Self::Uint8 => return Ok(Rendition::of(pixels.clone())),
            Self::Png => render::png(pixels)?,
            Self::Jpeg(quality) => render::jpeg(pixels, quality)?,
            Self::Webp => render::webp(pixels)?,
            Self::Tensor(_) | Self::Unit | Self::Mp4(_) => {
                return Err(RenditionError::Form { from: Self::Uint8, to: self });
            }
        };
        Ok(Rendition { dtype: pixels.dtype(), shape: pixels.shape().clone(), bytes: file })
    }
}

/// Finite numbers stay finite, or there is no such form.
fn cast(numbers: &Tensor, to: DType) -> Result<Tensor, RenditionError> {
    let cast = float::cast(numbers, to)?;
    if numbers.dtype() == to || float::is_finite(&cast) { Ok(cast) } else { Err(RenditionError::TooLarge(to)) }
}

impl Rendition {
    fn of(tensor: Tensor) -> Self {
        Self { dtype: tensor.dtype(), shape: tensor.shape().clone(), bytes: tensor.into_data() }
    }
}

#[cfg(test)]
mod tests;
