//! Softmax attention of one head, a few queries at a time: the memory is queries x pixels, never pixels x pixels.

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::HostMap;
use super::product::{PANEL, Packed, product};
use super::simd::{BLOCK, arch, exp};

/// Queries a task: four register tiles, so that keys and values are read from memory once for so many.
const QUERIES: usize = 56;

/// `softmax(q k^T / sqrt(c)) v` over all pixels of an image.
pub(in super::super) fn attend(q: &HostMap, k: &HostMap, v: &HostMap) -> HostMap {
    let (pixels, c, lanes) = (q.pixels(), q.c, q.lanes());
    let mut out = q.like(q.h, q.w, c);
    let arena = q.arena().clone();
    let depth = c.next_multiple_of(BLOCK);
    let scratch = QUERIES * (depth + 2 * pixels.next_multiple_of(PANEL) + PANEL);
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
    let padded = pixels.next_multiple_of(PANEL);
    let (scores, rest) = scratch.split_at_mut(rows * padded);
    let (weights, rest) = rest.split_at_mut(rows * padded);
    for (panel, scores) in keys.panels().zip(scores.chunks_exact_mut(rows * PANEL)) {
        product((a, rows), panel, scores);
    }
    let mut sums = Vec::with_capacity(rows);
    for row in 0..rows {
        let scale = 1.0 / (c as f32).sqrt();
        let (scores, weights) = (scores.as_chunks().0, weights.as_chunks_mut().0);
        sums.push(arch().dispatch(Softmax { scores, weights, row, rows, pixels, scale }));
    }
    let tile = &mut rest[..rows * PANEL];
    for (p, panel) in values.panels().enumerate() {
        product((weights, rows), panel, tile);
        for (row, (tile, sum)) in tile.chunks_exact_mut(PANEL).zip(&sums).enumerate() {
            for (channel, seen) in (p * PANEL..c).step_by(BLOCK).zip(tile.chunks_exact_mut(BLOCK)) {
                let seen = &mut seen[..BLOCK.min(c - channel)];
                for x in &mut *seen {
                    *x /= sum;
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

/// Turns row `row` of `rows` rows of scores, in panels, into exponentials in blocks; answers their sum.
struct Softmax<'a> {
    scores: &'a [[f32; PANEL]],
    weights: &'a mut [[f32; BLOCK]],
    row: usize,
    rows: usize,
    pixels: usize,
    scale: f32,
}

impl WithSimd for Softmax<'_> {
    type Output = f32;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f32 {
        let Self { scores, weights, row, rows, pixels, scale } = self;
        let panels = || (0..pixels.div_ceil(PANEL)).map(|p| (p, &scores[p * rows + row]));
        let mut tops = [f32::NEG_INFINITY; PANEL];
        for (p, scores) in panels() {
            let mut scores = *scores;
            // Beyond the last pixel the product of padding stands there: zeros, which may be the largest.
            scores[PANEL.min(pixels - p * PANEL)..].fill(f32::NEG_INFINITY);
            for (top, &score) in S::as_mut_simd_f32s(&mut tops).0.iter_mut().zip(S::as_simd_f32s(&scores).0) {
                *top = simd.max_f32s(*top, score);
            }
        }
        let top = simd.splat_f32s(tops.into_iter().fold(f32::NEG_INFINITY, f32::max));
        let scale = simd.splat_f32s(scale);
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
        sum as f32
    }
}
