//! Softmax attention of one head, a few queries and a few keys at a time: no pixels x pixels matrix exists, nor a row of one.
//!
//! The softmax goes along ("Online normalizer calculation for softmax", Milakov and Gimelshein 2018): a larger score
//! than any before shrinks what has been summed up so far.

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::HostMap;
use super::product::{PANEL, Packed, product};
use super::simd::{BLOCK, arch, exp};

/// Queries a task: four register tiles, so that keys and values are read from memory once for so many.
const QUERIES: usize = 56;
/// Keys at a time: with as many queries their scores stay in the second cache.
const KEYS: usize = 1024;

/// `softmax(q k^T / sqrt(c)) v` over all pixels of an image.
pub(in super::super) fn attend(q: &HostMap, k: &HostMap, v: &HostMap) -> HostMap {
    let (pixels, c, lanes) = (q.pixels(), q.c, q.lanes());
    let mut out = q.like(q.h, q.w, c);
    let arena = q.arena().clone();
    let depth = c.next_multiple_of(BLOCK);
    let keys_at_once = pixels.next_multiple_of(PANEL).min(KEYS);
    let scratch = QUERIES * (depth + 2 * keys_at_once + c.next_multiple_of(PANEL) + PANEL);
    let tasks = pixels.div_ceil(QUERIES);
    for (image, parts) in out.parts(QUERIES).chunks_mut(tasks).enumerate() {
        let value = |map: &HostMap, pixel: usize, channel: usize| {
            map.image(image)[(channel / BLOCK * pixels + pixel) * lanes + channel % BLOCK]
        };
        let keys = Packed::from_fn(&arena, c, pixels, |channel, pixel| value(k, pixel, channel));
        let values = Packed::from_fn(&arena, pixels, c, |pixel, channel| value(v, pixel, channel));
        if arena.rehearses() {
            arena.note_scratch(scratch);
            break;
        }
        parts.par_iter_mut().enumerate().for_each(|(task, out)| {
            let rows = out[0].len() / lanes;
            let mut scratch = arena.scratch(scratch);
            let (a, rest) = scratch.split_at_mut(rows * depth);
            block(q.image(image), (pixels, lanes), task * QUERIES, a);
            attend_some(a, [&keys, &values], rest, |row, channel, seen| {
                out[channel / BLOCK][row * lanes..][..seen.len()].copy_from_slice(seen);
            });
        });
    }
    out
}

/// Queries `[depth / 16][rows][16]`; `put` takes each row's answers, a block of channels at a time.
fn attend_some(
    a: &[f32],
    [keys, values]: [&Packed; 2],
    scratch: &mut [f32],
    mut put: impl FnMut(usize, usize, &[f32]),
) {
    let (rows, pixels, c) = (a.len() / keys.depth, keys.columns, values.columns);
    let at_once = pixels.next_multiple_of(PANEL).min(KEYS);
    let (scores, rest) = scratch.split_at_mut(rows * at_once);
    let (weights, rest) = rest.split_at_mut(rows * at_once);
    let (sums, rest) = rest.split_at_mut(rows * c.next_multiple_of(PANEL));
    let tile = &mut rest[..rows * PANEL];
    sums.fill(0.0);
    let mut softmax = [Running::default(); QUERIES];
    let scale = 1.0 / (c as f32).sqrt();
    for first in (0..pixels).step_by(KEYS) {
        let count = KEYS.min(pixels - first);
        let padded = count.next_multiple_of(PANEL);
        let panels = keys.panels().skip(first / PANEL).take(padded / PANEL);
        for (panel, scores) in panels.zip(scores.chunks_exact_mut(rows * PANEL)) {
            product((a, rows), panel, scores);
        }
        for (row, running) in softmax[..rows].iter_mut().enumerate() {
            let (scores, weights) = (scores.as_chunks().0, weights.as_chunks_mut().0);
            arch().dispatch(Softmax { scores, weights, row, rows, pixels: count, scale, running });
        }
        for (panel, sums) in values.panels().zip(sums.chunks_exact_mut(rows * PANEL)) {
            // The depth of the values is the pixels to the next block of 16, beyond which the weights are zeros.
            let depth = padded.min(values.depth - first);
            product((weights, rows), &panel[first * PANEL..][..depth * PANEL], tile);
            for ((sums, tile), running) in sums.chunks_exact_mut(PANEL).zip(tile.chunks_exact(PANEL)).zip(&softmax) {
                for (sum, seen) in sums.iter_mut().zip(tile) {
                    *sum = *sum * running.shrink + seen;
                }
            }
        }
    }
    for (panel, sums) in sums.chunks_exact_mut(rows * PANEL).enumerate() {
        for (row, (sums, running)) in sums.chunks_exact_mut(PANEL).zip(&softmax).enumerate() {
            for (channel, sums) in (panel * PANEL..c).step_by(BLOCK).zip(sums.chunks_exact_mut(BLOCK)) {
                let seen = &mut sums[..BLOCK.min(c - channel)];
                for x in &mut *seen {
                    *x /= running.sum as f32;
                }
                put(row, channel, seen);
            }
        }
    }
}

/// Pixels `first..` of a map's image to `[depth / 16][rows][16]`, padded with zeros.
fn block(image: &[f32], (pixels, lanes): (usize, usize), first: usize, a: &mut [f32]) {
    let rows = a.len() / (image.len() / pixels).next_multiple_of(BLOCK);
    for (to, from) in a.chunks_exact_mut(rows * BLOCK).zip(image.chunks_exact(pixels * lanes)) {
        for (to, from) in to.chunks_exact_mut(BLOCK).zip(from[first * lanes..].chunks_exact(lanes)) {
            to.fill(0.0);
            to[..lanes].copy_from_slice(from);
        }
    }
}

/// The softmax of one query over the keys so far.
#[derive(Clone, Copy)]
struct Running {
    /// The largest score.
    top: f32,
    /// Of the exponentials, relative to the largest score.
    sum: f64,
    /// What the last keys made of sums over those before them.
    shrink: f32,
}

impl Default for Running {
    fn default() -> Self {
        Self { top: f32::NEG_INFINITY, sum: 0.0, shrink: 0.0 }
    }
}

/// Turns row `row` of `rows` rows of scores, in panels, into exponentials in blocks.
struct Softmax<'a> {
    scores: &'a [[f32; PANEL]],
    weights: &'a mut [[f32; BLOCK]],
    row: usize,
    rows: usize,
    pixels: usize,
    scale: f32,
    running: &'a mut Running,
}

impl WithSimd for Softmax<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { scores, weights, row, rows, pixels, scale, running } = self;
        let panels = || (0..pixels.div_ceil(PANEL)).map(|p| (p, &scores[p * rows + row]));
        let mut tops = [running.top; PANEL];
        for (p, scores) in panels() {
            let mut scores = *scores;
            // Beyond the last pixel the product of padding stands there: zeros, which may be the largest.
            scores[PANEL.min(pixels - p * PANEL)..].fill(f32::NEG_INFINITY);
            for (top, &score) in S::as_mut_simd_f32s(&mut tops).0.iter_mut().zip(S::as_simd_f32s(&scores).0) {
                *top = simd.max_f32s(*top, score);
            }
        }
        let highest = tops.into_iter().fold(f32::NEG_INFINITY, f32::max);
        running.shrink = libm::expf((running.top - highest) * scale);
        running.top = highest;
        let (top, scale) = (simd.splat_f32s(highest), simd.splat_f32s(scale));
        let mut sum = 0.0f64;
        for (p, scores) in panels() {
            let mut values = *scores;
            for x in S::as_mut_simd_f32s(&mut values).0 {
                *x = exp(simd, simd.mul_f32s(simd.sub_f32s(*x, top), scale));
            }
            values[PANEL.min(pixels - p * PANEL)..].fill(0.0);
            sum += f64::from(values.iter().sum::<f32>());
            for (half, values) in values.as_chunks::<BLOCK>().0.iter().enumerate() {
                weights[(p * PANEL / BLOCK + half) * rows + row] = *values;
            }
        }
        running.sum = running.sum * f64::from(running.shrink) + sum;
    }
}
