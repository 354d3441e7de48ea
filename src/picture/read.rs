//! Picture files to u8 `[1,h,w,3]`.

use std::io::{Cursor, ErrorKind};

use bytes::Bytes;
use image::codecs::jpeg::JpegDecoder;
use image::codecs::png::PngDecoder;
use image::codecs::webp::WebPDecoder;
use image::{ColorType, ImageDecoder, ImageError, Limits};

use super::lanczos::{self, Size};
use super::{Format, PictureError, PictureLimits, cut, header};
use crate::tensor::{DType, Shape, Tensor};

/// Room for a PNG decoder's side data (profiles, rows): compressed chunks must not unfold without end.
const SIDE_DATA_BYTES: u64 = 16 << 20;

/// Bytes of the deepest PNG pixel: four samples of 16 bits.
const MAX_SAMPLE_BYTES: u64 = 8;

/// Decodes a PNG, JPEG or WebP (by magic bytes) to u8 RGB `[1,h,w,3]`.
///
/// Alpha is dropped and not blended, grey and palettes are expanded, EXIF orientation is ignored, as Pillow's
/// `open(..).convert("RGB")` does; profiles are ignored, of an animated PNG the still picture is read. Of 16-bit
/// samples the upper byte counts; so does Pillow with colour, while it clips 16-bit grey to white, which nobody can
/// want. Sides that are no multiples of 8 are resized down by Lanczos. The size is judged by the header before memory
/// is taken. Blocks for as long as decoding takes.
pub fn read(file: &Bytes, limits: &PictureLimits) -> Result<Tensor, PictureError> {
    let size = header::dimensions(file)?;
    limits.check(size)?;
    let format = header::format(file)?;
    let pixels = match format {
        Format::Png => {
            let mut limits = Limits::no_limits();
            limits.max_alloc = Some(u64::from(size.0) * u64::from(size.1) * MAX_SAMPLE_BYTES + SIDE_DATA_BYTES);
            pixels(PngDecoder::with_limits(Cursor::new(file), limits), size)
        }
        Format::Jpeg => {
            header::check_jpeg(file)?;
            pixels(JpegDecoder::new(Cursor::new(file)), size)
        }
        Format::WebP => {
            header::check_webp(file)?;
            pixels(WebPDecoder::new(Cursor::new(file)), size)
        }
    };
    let pixels = pixels.map_err(|e| fault(&e, format, file))?;
    let from = Size { width: size.0 as usize, height: size.1 as usize };
    let to = Size { width: cut(from.width), height: cut(from.height) };
    let shape = Shape::try_new(&[1, to.height, to.width, 3]).expect("within the limits");
    let pixels = lanczos::resize(pixels, from, to);
    Ok(Tensor::try_new(DType::U8, shape, pixels.into()).expect("three bytes a pixel"))
}

/// Runs a decoder whose header was understood as `size` by us, too.
fn pixels<D: ImageDecoder>(decoder: Result<D, ImageError>, size: (u32, u32)) -> Result<Vec<u8>, ImageError> {
    let decoder = decoder?;
    if decoder.dimensions() != size {
        let reason = std::io::Error::new(ErrorKind::InvalidData, "two headers of different sizes");
        return Err(ImageError::IoError(reason));
    }
    let color = decoder.color_type();
    let mut samples = vec![0u8; decoder.total_bytes() as usize];
    decoder.read_image(&mut samples)?;
    Ok(rgb(samples, color))
}

/// Samples of any kind to 8-bit RGB.
fn rgb(samples: Vec<u8>, color: ColorType) -> Vec<u8> {
    let is_deep = color.bytes_per_pixel() > color.channel_count();
    let samples = if is_deep { upper_bytes(&samples) } else { samples };
    match color.channel_count() {
        1 => samples.iter().flat_map(|&grey| [grey; 3]).collect(),
        2 => samples.as_chunks::<2>().0.iter().flat_map(|&[grey, _]| [grey; 3]).collect(),
        4 => samples.as_chunks::<4>().0.iter().flat_map(|&[r, g, b, _]| [r, g, b]).collect(),
        _ => samples,
    }
}

/// The upper halves of 16-bit samples in the machine's byte order, which is how the decoder leaves them.
fn upper_bytes(samples: &[u8]) -> Vec<u8> {
    samples.as_chunks::<2>().0.iter().map(|&sample| (u16::from_ne_bytes(sample) >> 8) as u8).collect()
}

/// A decoder's fault in our words.
fn fault(error: &ImageError, format: Format, file: &Bytes) -> PictureError {
    match error {
        ImageError::IoError(e) if e.kind() == ErrorKind::UnexpectedEof => {
            PictureError::Truncated { format, got: file.len() as u64 }
        }
        e => PictureError::Broken { format, reason: e.to_string() },
    }
}
