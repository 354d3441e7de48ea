//! From decoder output to what is handed out: finished bytes of pixels, and picture files.
//!
//! Pure functions on tensors at rest, so a rendition can be derived from cached f16 pixels at any time and is bit-equal
//! to one made beside the computation. Every rendition starts from the same f16 numbers, as the upstream's does.
//! All of it is work for a blocking thread: a 512x512 PNG costs milliseconds.

mod bound;
mod file;
mod rgb8;

pub use bound::{jpeg_bound, png_bound, webp_bound};
pub(crate) use file::{Chroma, jpeg_of};
pub use file::{jpeg, png, webp};
pub use rgb8::{uint8, unit, unit_to_u8};

use crate::tensor::{DType, Shape};

/// Why a tensor cannot be rendered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RenderError {
    /// Neither decoder output nor finished pixels.
    #[error("wanted {want}, got {dtype} {shape}")]
    Input {
        /// The layout that can be rendered.
        want: &'static str,
        /// The type that came.
        dtype: DType,
        /// The shape that came.
        shape: Shape,
    },
    /// A side that the file format cannot express.
    #[error("a {format} is at most {most} pixels a side, got {width}x{height}")]
    Side {
        /// The file format.
        format: &'static str,
        /// The longest side it can express.
        most: usize,
        /// Width in pixels.
        width: usize,
        /// Height in pixels.
        height: usize,
    },
    /// A quality outside 1 to 100.
    #[error("jpeg quality is 1 to 100, got {0}")]
    Quality(u8),
    /// The encoder refused pixels that meet all its stated conditions.
    #[error("the {format} encoder failed: {reason}")]
    Encoder {
        /// The file format.
        format: &'static str,
        /// What the encoder says.
        reason: String,
    },
}

#[cfg(test)]
mod tests;
