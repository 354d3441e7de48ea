//! Pixel tensors to the canonical encoder input, as diffusers' `VaeImageProcessor.preprocess` treats them.

use bytes::Bytes;

use super::{PictureError, at_least_one_latent, cut};
use crate::float;
use crate::tensor::{DType, Shape, Tensor};

/// What the numbers of a float tensor mean.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Range {
    /// As diffusers guesses: in -1..1 if any value that is kept is negative, else in 0..1.
    #[default]
    Auto,
    /// 0..1: mapped by `2x - 1`.
    Unit,
    /// -1..1: taken as it is.
    Signed,
}

/// `[n,3,h,w]` pixels to canonical: u8 becomes u8 `[n,h,w,3]`, for which `range` says nothing; floats become f32
/// `[n,3,h,w]` in -1..1. NaN and infinity are refused. Sides that are no multiples of 8 are cut by taking nearest
/// pixels.
pub fn from_tensor(pixels: &Tensor, range: Range) -> Result<Tensor, PictureError> {
    let &[n, 3, h, w] = pixels.shape().dims() else {
        return Err(PictureError::Shape { dtype: pixels.dtype(), shape: pixels.shape().clone() });
    };
    at_least_one_latent(w, h)?;
    let size = Size { n, h, w };
    if pixels.dtype() == DType::U8 { Ok(bytes(pixels, size)) } else { floats(pixels, size, range) }
}

/// Batch and sides before cutting.
#[derive(Clone, Copy)]
struct Size {
    n: usize,
    h: usize,
    w: usize,
}

/// Planes of bytes to interleaved pixels.
fn bytes(pixels: &Tensor, Size { n, h, w }: Size) -> Tensor {
    let (rows, columns) = (nearest(h, cut(h)), nearest(w, cut(w)));
    let mut out = Vec::with_capacity(n * rows.len() * columns.len() * 3);
    for picture in pixels.data().chunks_exact(3 * h * w) {
        for &row in &rows {
            let [red, green, blue] = [0, 1, 2].map(|c| &picture[(c * h + row) * w..][..w]);
            out.extend(columns.iter().flat_map(|&x| [red[x], green[x], blue[x]]));
        }
    }
    let shape = Shape::try_new(&[n, rows.len(), columns.len(), 3]).expect("not more elements than the input");
    Tensor::try_new(DType::U8, shape, out.into()).expect("three bytes a pixel kept")
}

/// Planes of floats to f32 planes in -1..1.
fn floats(pixels: &Tensor, size: Size, range: Range) -> Result<Tensor, PictureError> {
    let wide = float::cast(pixels, DType::F32).expect("every dtype but u8 is a float");
    if let Some((index, got)) = float::first_non_finite(wide.data()) {
        return Err(PictureError::NotFinite { index, got });
    }
    let kept = keep(wide, size);
    // diffusers resizes first and looks for negative values after it.
    let is_signed = match range {
        Range::Auto => float::values(kept.data()).fold(0f32, f32::min) < 0.0,
        Range::Unit => false,
        Range::Signed => true,
    };
    if is_signed {
        return Ok(kept);
    }
    let mapped: Vec<u8> = float::values(kept.data()).flat_map(|x| (x * 2.0 - 1.0).to_le_bytes()).collect();
    Ok(Tensor::try_new(DType::F32, kept.shape().clone(), mapped.into()).expect("as many values as before"))
}

/// Cuts f32 planes to multiples of 8; what needs no cutting is shared.
fn keep(wide: Tensor, Size { n, h, w }: Size) -> Tensor {
    if (h, w) == (cut(h), cut(w)) {
        return wide;
    }
    let (rows, columns) = (nearest(h, cut(h)), nearest(w, cut(w)));
    let mut out = Vec::with_capacity(n * 3 * rows.len() * columns.len() * 4);
    for plane in wide.data().as_chunks::<4>().0.chunks_exact(h * w) {
        for &row in &rows {
            let line = &plane[row * w..][..w];
            out.extend(columns.iter().flat_map(|&x| line[x]));
        }
    }
    let shape = Shape::try_new(&[n, 3, rows.len(), columns.len()]).expect("not more elements than the input");
    Tensor::try_new(DType::F32, shape, Bytes::from(out)).expect("four bytes a value kept")
}

/// Which of `from` places each of `to` places takes, in f32 as torch's `interpolate(mode="nearest")` computes it: the
/// rounding of the scale decides at the edges.
pub(super) fn nearest(from: usize, to: usize) -> Vec<usize> {
    let scale = from as f32 / to as f32;
    (0..to).map(|place| ((place as f32 * scale) as usize).min(from - 1)).collect()
}
