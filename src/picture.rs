//! What a client sends to be encoded, a picture file or a tensor of pixels, to the encoder's canonical input.
//!
//! The content key is made of the canonical input, so the same pixels in another file, or in another float type, must
//! end as the same bytes: u8 `[n,h,w,3]` for 8-bit pixels, f32 `[n,3,h,w]` in -1..1 for floats, sides multiples of 8.
//! PNG and lossless WebP get there exactly; what a lossy file means is up to its decoder's arithmetic.
//!
//! A file is not trusted: its own header reader (`picture/header.rs`) judges the size before anything is allocated, and
//! the decoder must then agree with it.

mod header;
mod lanczos;
mod read;
mod tensor;

pub use header::dimensions;
pub use read::read;
pub use tensor::{Range, from_tensor};

use crate::tensor::{DType, Shape};

/// Pixels a side of the square that one latent covers: sides are cut to multiples of it.
const LATENT_PIXELS: usize = 8;

/// The largest picture taken in, before it is resized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PictureLimits {
    /// Width times height.
    pub max_pixels: u64,
    /// Width, and height.
    pub max_side: u32,
}

/// Picture file formats taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Portable network graphics.
    Png,
    /// JPEG, in a JFIF or EXIF file or bare.
    Jpeg,
    /// WebP, lossy or lossless.
    WebP,
}

/// Why bytes are no picture, or a tensor is no pixels.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PictureError {
    /// None of the formats' first bytes.
    #[error("not a PNG, JPEG or WebP file")]
    Format,
    /// The file ends before it should.
    #[error("the {format} file is cut short after {got} bytes")]
    Truncated {
        /// The file's format.
        format: Format,
        /// Bytes of the file.
        got: u64,
    },
    /// The file contradicts its format.
    #[error("the {format} file is broken: {reason}")]
    Broken {
        /// The file's format.
        format: Format,
        /// What is wrong.
        reason: String,
    },
    /// A kind of file that is deliberately not taken.
    #[error("{what} is not taken")]
    Unsupported {
        /// The kind.
        what: &'static str,
    },
    /// Larger than the limits.
    #[error("a picture is at most {max_side} pixels a side and {max_pixels} in all, got {width}x{height}")]
    TooLarge {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
        /// The limit of either.
        max_side: u32,
        /// The limit of their product.
        max_pixels: u64,
    },
    /// A side below one latent.
    #[error("a picture is at least 8 pixels a side, got {width}x{height}")]
    TooSmall {
        /// Width in pixels.
        width: u64,
        /// Height in pixels.
        height: u64,
    },
    /// Not pixels by shape.
    #[error("pixel tensors are [n,3,h,w], got {dtype} {shape}")]
    Shape {
        /// The type that came.
        dtype: DType,
        /// The shape that came.
        shape: Shape,
    },
    /// A NaN or an infinity.
    #[error("pixels must be finite, got {got} at index {index}")]
    NotFinite {
        /// Flat index of the first one.
        index: u64,
        /// What is there.
        got: f32,
    },
}

// === impl PictureLimits ===

impl PictureLimits {
    /// Refuses a picture that is larger than the limits, or too small to have a latent.
    fn check(&self, (width, height): (u32, u32)) -> Result<(), PictureError> {
        let &Self { max_pixels, max_side } = self;
        if width.max(height) > max_side || u64::from(width) * u64::from(height) > max_pixels {
            return Err(PictureError::TooLarge { width, height, max_side, max_pixels });
        }
        at_least_one_latent(width as usize, height as usize)
    }
}

// === impl Format ===

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Png => "PNG",
            Self::Jpeg => "JPEG",
            Self::WebP => "WebP",
        })
    }
}

/// Refuses sides that would be cut to nothing.
fn at_least_one_latent(width: usize, height: usize) -> Result<(), PictureError> {
    if width.min(height) < LATENT_PIXELS {
        return Err(PictureError::TooSmall { width: width as u64, height: height as u64 });
    }
    Ok(())
}

/// The largest multiple of [`LATENT_PIXELS`] that is not above `side`.
fn cut(side: usize) -> usize {
    side - side % LATENT_PIXELS
}

#[cfg(test)]
mod tests;
