//! Decoder output to 8-bit pixels: f16 planes `[n,3,h,w]` to u8 pixels `[n,h,w,3]`.
//!
//! An f16 has only 65536 values, so the formula is evaluated once for each and the work on a picture is one look-up a
//! value, at the speed of memory and without a difference between CPUs. The table is 64 KiB: second-level cache.

use std::sync::LazyLock;

use half::f16;

use super::RenderError;
use crate::tensor::{DType, Shape, Tensor};

/// `unit_to_u8` of every f16, by its bits.
static TABLE: LazyLock<Box<[u8; 1 << 16]>> = LazyLock::new(|| {
    let table: Vec<u8> = (0..=u16::MAX).map(|bits| unit_to_u8(f16::from_bits(bits))).collect();
    table.into_boxed_slice().try_into().expect("one entry for each of the 65536 bit patterns")
});

/// One decoder value to 8 bits, as diffusers' `VaeImageProcessor.denormalize` and `numpy_to_pil` do with f16 tensors:
/// `clamp(y*0.5 + 0.5, 0, 1)` with each operation rounded to f16, then times 255 in f32, rounded half to even.
///
/// NaN gives 0: torch's clamp keeps it and its conversion to an integer is undefined, so any choice is as right.
pub fn unit_to_u8(y: f16) -> u8 {
    let half = f16::from_f32_const(0.5);
    let unit = (y * half + half).to_f32();
    // A float-to-int `as` saturates and takes NaN to 0; the clamp before it takes care of the infinities.
    (unit.clamp(0.0, 1.0) * 255.0).round_ties_even() as u8
}

/// `clamp(y*0.5 + 0.5, 0, 1)` of one decoder value, each operation rounded to f16, as diffusers' `denormalize` does with
/// f16 tensors. NaN gives 0.
fn denormalize(y: f16) -> f16 {
    let half = f16::from_f32_const(0.5);
    let unit = y * half + half;
    if unit > f16::ONE {
        f16::ONE
    } else if unit > f16::ZERO {
        unit
    } else {
        f16::ZERO
    }
}

/// f16 decoder output of any shape to f16 pixels in 0..1 of the same shape.
pub fn unit(pixels: &Tensor) -> Result<Tensor, RenderError> {
    if pixels.dtype() != DType::F16 {
        return Err(RenderError::Input { want: "float16", dtype: pixels.dtype(), shape: pixels.shape().clone() });
    }
    let values = pixels.data().as_chunks::<2>().0.iter();
    let out: Vec<u8> = values.flat_map(|&bits| denormalize(f16::from_le_bytes(bits)).to_le_bytes()).collect();
    Ok(Tensor::try_new(DType::F16, pixels.shape().clone(), out.into()).expect("as many elements as the input"))
}

/// f16 `[n,3,h,w]` decoder output to u8 `[n,h,w,3]`, each value by [`unit_to_u8`].
pub fn uint8(pixels: &Tensor) -> Result<Tensor, RenderError> {
    let (DType::F16, &[n, 3, h, w]) = (pixels.dtype(), pixels.shape().dims()) else {
        return Err(RenderError::Input {
            want: "float16 [n,3,h,w]",
            dtype: pixels.dtype(),
            shape: pixels.shape().clone(),
        });
    };
    let table: &[u8; 1 << 16] = &TABLE;
    let area = h * w;
    let mut out = vec![0u8; n * area * 3];
    let planes = pixels.data().as_chunks::<2>().0;
    for (picture, out) in planes.chunks_exact(3 * area).zip(out.chunks_exact_mut(3 * area)) {
        let (red, rest) = picture.split_at(area);
        let (green, blue) = rest.split_at(area);
        let out = out.as_chunks_mut::<3>().0;
        for (((out, &r), &g), &b) in out.iter_mut().zip(red).zip(green).zip(blue) {
            *out = [r, g, b].map(|bits| table[usize::from(u16::from_le_bytes(bits))]);
        }
    }
    let shape = Shape::try_new(&[n, h, w, 3]).expect("as many elements as the input");
    Ok(Tensor::try_new(DType::U8, shape, out.into()).expect("three bytes a pixel"))
}
