//! Pillow's 8-bit Lanczos resize of RGB pixels, to the bit.
//!
//! The canonical pixels enter the content key, which must be the same on every machine and in every release, and the
//! reference resizes with Pillow. General resizers differ from it, or between CPUs, by one level here and there, so the
//! few lines of arithmetic are spelled out: weights in f64, then as integers with 22 fractional bits; columns first,
//! then rows, each pass rounded and clamped to 8 bits. (`Resample.c` of Pillow is the model for the numbers.)

use std::f64::consts::PI;

/// Lobes of the kernel on each side.
const LOBES: f64 = 3.0;
/// Fractional bits of a weight: 32, less 8 of the pixel, less 2 for the sum of the weights' magnitudes.
const FRACTION: u32 = 22;

/// The input places of one output place, and their weights.
struct Taps {
    first: usize,
    weights: Vec<i32>,
}

/// Width and height in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) width: usize,
    pub(super) height: usize,
}

/// Resizes interleaved RGB; a side that stays is not touched.
pub(super) fn resize(pixels: Vec<u8>, from: Size, to: Size) -> Vec<u8> {
    debug_assert_eq!(pixels.len(), from.width * from.height * 3);
    let narrow = if from.width == to.width { pixels } else { columns(&pixels, from.width, to.width) };
    if from.height == to.height { narrow } else { rows(&narrow, to.width * 3, taps(from.height, to.height)) }
}

/// Each output pixel of a row from the row's input pixels.
fn columns(pixels: &[u8], from: usize, to: usize) -> Vec<u8> {
    let taps = taps(from, to);
    let mut out = Vec::with_capacity(pixels.len() / from * to);
    for row in pixels.chunks_exact(from * 3) {
        for Taps { first, weights } in &taps {
            let mut sums = [1i32 << (FRACTION - 1); 3];
            for (pixel, weight) in row.as_chunks::<3>().0[*first..].iter().zip(weights) {
                sums.iter_mut().zip(pixel).for_each(|(sum, &p)| *sum += i32::from(p) * weight);
            }
            out.extend(sums.map(level));
        }
    }
    out
}

/// Each output row from whole input rows of `stride` bytes, so that the inner loop runs along memory.
fn rows(pixels: &[u8], stride: usize, taps: Vec<Taps>) -> Vec<u8> {
    let mut out = Vec::with_capacity(stride * taps.len());
    let mut sums = vec![0i32; stride];
    for Taps { first, weights } in taps {
        sums.fill(1 << (FRACTION - 1));
        for (row, weight) in pixels.chunks_exact(stride).skip(first).zip(weights) {
            sums.iter_mut().zip(row).for_each(|(sum, &p)| *sum += i32::from(p) * weight);
        }
        out.extend(sums.iter().map(|&sum| level(sum)));
    }
    out
}

/// A fixed-point sum, whose rounding half is already in it, to 8 bits.
fn level(sum: i32) -> u8 {
    (sum >> FRACTION).clamp(0, 255) as u8
}

/// Where each of `to` output places looks among `from` input places.
fn taps(from: usize, to: usize) -> Vec<Taps> {
    let scale = from as f64 / to as f64;
    // The kernel is stretched when shrinking, which is the antialiasing.
    let stretch = scale.max(1.0);
    let support = LOBES * stretch;
    (0..to)
        .map(|place| {
            let center = (place as f64 + 0.5) * scale;
            let first = (center - support + 0.5).max(0.0) as usize;
            let end = ((center + support + 0.5) as usize).min(from);
            let raw: Vec<f64> = (first..end).map(|i| lanczos((i as f64 - center + 0.5) * (1.0 / stretch))).collect();
            let total: f64 = raw.iter().sum();
            Taps { first, weights: raw.into_iter().map(|w| fixed(w / total)).collect() }
        })
        .collect()
}

/// A weight with [`FRACTION`] fractional bits, rounded half away from zero.
fn fixed(weight: f64) -> i32 {
    let scaled = weight * f64::from(1 << FRACTION);
    (scaled + if weight < 0.0 { -0.5 } else { 0.5 }) as i32
}

fn lanczos(x: f64) -> f64 {
    if (-LOBES..LOBES).contains(&x) { sinc(x) * sinc(x / LOBES) } else { 0.0 }
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 { 1.0 } else { (x * PI).sin() / (x * PI) }
}
