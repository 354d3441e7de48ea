//! Finished pixels to picture files: PNG, JPEG, WebP.
//!
//! Pixels are u8 `[1,h,w,3]`: a file has room for one picture, so a batch is the caller's to refuse or to cut. Files
//! carry no profile, no EXIF and no date: equal pixels make equal files.

use bytes::Bytes;
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::codecs::webp::WebPEncoder;
use image::{ExtendedColorType, ImageEncoder};
use jpeg_encoder::{ChromaSubsamplingMethod, ColorType, Encoder, SamplingFactor};

use super::RenderError;
use crate::tensor::{DType, Tensor};

/// Measured on a 512x512 and a 640x424 photo, one core of a 2-core cloud machine: the encoder's own fast deflate with
/// adaptive filters takes 1.4 and 1.5 ms for 425 and 336 KiB; level 1 takes 5 ms for 442 and 368, level 6 (libpng's
/// default) 34 and 42 ms for 435 and 320. Whoever misses waits for this, so 25 times the time buys nothing worth
/// having.
const PNG_COMPRESSION: CompressionType = CompressionType::Fast;
const PNG_FILTER: FilterType = FilterType::Adaptive;

/// The longest side a JPEG can express: 16 bits.
const JPEG_SIDE: usize = 65535;
/// The longest side that WebP's libraries agree on. The lossless format itself has room for one more, which its
/// decoders refuse.
const WEBP_SIDE: usize = 16383;

/// How the colour of a JPEG is sampled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Chroma {
    /// 4:2:0, averaged over 2x2 pixels as libjpeg does.
    Quarter,
    /// 4:4:4.
    Full,
}

/// A picture's bytes and size in pixels.
struct Rgb<'a> {
    data: &'a [u8],
    width: usize,
    height: usize,
}

/// An 8-bit RGB PNG, not interlaced.
pub fn png(pixels: &Tensor) -> Result<Bytes, RenderError> {
    let rgb = picture(pixels)?;
    let (width, height) = rgb.sides("png", i32::MAX as usize)?;
    let mut file = Vec::with_capacity(rgb.data.len() / 2);
    PngEncoder::new_with_quality(&mut file, PNG_COMPRESSION, PNG_FILTER)
        .write_image(rgb.data, width, height, ExtendedColorType::Rgb8)
        .map_err(|e| RenderError::Encoder { format: "png", reason: e.to_string() })?;
    Ok(exact(file))
}

/// A baseline JFIF JPEG with 4:2:0 chroma and the standard tables scaled by `quality`, 1 to 100, as Pillow writes it.
pub fn jpeg(pixels: &Tensor, quality: u8) -> Result<Bytes, RenderError> {
    jpeg_of(pixels, quality, Chroma::Quarter)
}

/// [`jpeg`] with a choice of chroma sampling.
pub(crate) fn jpeg_of(pixels: &Tensor, quality: u8, chroma: Chroma) -> Result<Bytes, RenderError> {
    if !(1..=100).contains(&quality) {
        return Err(RenderError::Quality(quality));
    }
    let rgb = picture(pixels)?;
    let (width, height) = rgb.sides("jpeg", JPEG_SIDE)?;
    let mut file = Vec::with_capacity(rgb.data.len() / 8);
    let mut encoder = Encoder::new(&mut file, quality);
    // The encoder's own default depends on the quality, and drops three of four chroma samples instead of averaging.
    encoder.set_sampling_factor(match chroma {
        Chroma::Quarter => SamplingFactor::R_4_2_0,
        Chroma::Full => SamplingFactor::R_4_4_4,
    });
    encoder.set_chroma_subsampling_method(ChromaSubsamplingMethod::Average);
    encoder
        .encode(rgb.data, width as u16, height as u16, ColorType::Rgb)
        .map_err(|e| RenderError::Encoder { format: "jpeg", reason: e.to_string() })?;
    Ok(exact(file))
}

/// A lossless WebP.
pub fn webp(pixels: &Tensor) -> Result<Bytes, RenderError> {
    let rgb = picture(pixels)?;
    let (width, height) = rgb.sides("webp", WEBP_SIDE)?;
    let mut file = Vec::with_capacity(rgb.data.len() / 2);
    WebPEncoder::new_lossless(&mut file)
        .write_image(rgb.data, width, height, ExtendedColorType::Rgb8)
        .map_err(|e| RenderError::Encoder { format: "webp", reason: e.to_string() })?;
    Ok(exact(file))
}

/// Without the room that the encoder did not use: a cached file is kept for long, and counted by its length.
fn exact(file: Vec<u8>) -> Bytes {
    file.into_boxed_slice().into()
}

/// Takes a tensor as one picture, if it is one.
fn picture(pixels: &Tensor) -> Result<Rgb<'_>, RenderError> {
    match (pixels.dtype(), pixels.shape().dims()) {
        (DType::U8, &[1, height, width, 3]) => Ok(Rgb { data: pixels.data(), width, height }),
        (dtype, _) => {
            Err(RenderError::Input { want: "one picture, uint8 [1,h,w,3]", dtype, shape: pixels.shape().clone() })
        }
    }
}

// === impl Rgb ===

impl Rgb<'_> {
    /// Width and height, if the format can express them.
    fn sides(&self, format: &'static str, most: usize) -> Result<(u32, u32), RenderError> {
        if self.width.max(self.height) > most {
            return Err(RenderError::Side { format, most, width: self.width, height: self.height });
        }
        Ok((self.width as u32, self.height as u32))
    }
}
