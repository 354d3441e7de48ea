//! Element by element: activations, an exponential that vectorises, rounding to half precision.

use half::{bf16, f16};
use pulp::Arch;
use rayon::prelude::*;

use super::super::{Activation, Precision};

/// Elements a task: 64 KiB, small enough to stay in the first caches, large enough to be worth handing over.
const CHUNK: usize = 16 * 1024;

/// `e^x` to about two units in the last place, for `x` in -87..88; clamped outside. Cephes' polynomial: no table, no
/// branch, so that a loop over it vectorises.
#[inline(always)]
pub(in super::super) fn exp(x: f32) -> f32 {
    // Adding 1.5 * 2^23 leaves no bit for fractions, so the sum is rounded; a call to `floor` would not vectorise.
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-87.0, 88.0);
    let n = (x * std::f32::consts::LOG2_E + ROUND) - ROUND;
    // ln 2 in two parts, the first exact in f32 for every n here.
    let r = x - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = p * r + c;
    }
    let y = p * r * r + r + 1.0;
    y * f32::from_bits((((n as i32) + 127) as u32) << 23)
}

/// Applies `activation`.
#[inline(always)]
pub(in super::super) fn activate(x: f32, activation: Activation) -> f32 {
    match activation {
        Activation::None => x,
        Activation::Relu => x.max(0.0),
        Activation::Silu => x / (1.0 + exp(-x)),
    }
}

/// Rounds to `precision` and back.
pub(in super::super) fn round(data: &mut [f32], precision: Precision) {
    let one: fn(&mut [f32]) = match precision {
        Precision::F32 => return,
        Precision::F16 => |d| d.iter_mut().for_each(|v| *v = f16::from_f32(*v).to_f32()),
        Precision::BF16 => |d| d.iter_mut().for_each(|v| *v = bf16::from_f32(*v).to_f32()),
    };
    data.par_chunks_mut(CHUNK).for_each(one);
}

/// `activation(x * scale[channel] + shift[channel])` over pixels of `scale.len()` channels, in place.
pub(in super::super) fn affine(data: &mut [f32], scale: &[f32], shift: &[f32], activation: Activation) {
    let channels = scale.len();
    let pixels = (CHUNK / channels).max(1);
    data.par_chunks_mut(pixels * channels).for_each(|chunk| {
        Arch::new().dispatch(
            #[inline(always)]
            || match activation {
                Activation::None => affine_loop(
                    chunk,
                    scale,
                    shift,
                    #[inline(always)]
                    |x| x,
                ),
                Activation::Relu => affine_loop(
                    chunk,
                    scale,
                    shift,
                    #[inline(always)]
                    |x| x.max(0.0),
                ),
                Activation::Silu => affine_loop(
                    chunk,
                    scale,
                    shift,
                    #[inline(always)]
                    |x| x / (1.0 + exp(-x)),
                ),
            },
        );
    });
}

#[inline(always)]
fn affine_loop(chunk: &mut [f32], scale: &[f32], shift: &[f32], f: impl Fn(f32) -> f32) {
    for pixel in chunk.chunks_exact_mut(scale.len()) {
        for ((x, &a), &b) in pixel.iter_mut().zip(scale).zip(shift) {
            *x = f(*x * a + b);
        }
    }
}
