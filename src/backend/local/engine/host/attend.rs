//! Softmax attention of one head, a few queries at a time: the memory is queries x pixels, never pixels x pixels.

use pulp::Arch;
use rayon::prelude::*;

use super::elementwise::exp;
use super::product::{BLOCK, PANEL, Packed, product};
use super::{HostMap, with_scratch};

/// Queries a task: two register tiles.
const QUERIES: usize = 28;

/// `softmax(q k^T / sqrt(c)) v` over all pixels of an image.
pub(in super::super) fn attend(q: &HostMap, k: &HostMap, v: &HostMap) -> HostMap {
    let (pixels, c) = (q.h * q.w, q.c);
    let mut out = q.zeros_like(q.h, q.w, c);
    for (image, out) in out.data.chunks_exact_mut(pixels * c).enumerate() {
        let (q, k, v) = (&q.data[image * pixels * c..], &k.data[image * pixels * c..], &v.data[image * pixels * c..]);
        let keys = Packed::from_fn(c, pixels, |d, pixel| k[pixel * c + d]);
        let values = Packed::from_fn(pixels, c, |pixel, d| v[pixel * c + d]);
        out.par_chunks_mut(QUERIES * c).enumerate().for_each(|(task, out)| {
            attend_some(&q[task * QUERIES * c..], &keys, &values, out);
        });
    }
    out
}

/// The queries whose answers `out` holds, `[queries][c]`.
fn attend_some(q: &[f32], keys: &Packed, values: &Packed, out: &mut [f32]) {
    let c = values.columns;
    let (rows, pixels) = (out.len() / c, keys.columns);
    let padded = pixels.next_multiple_of(PANEL);
    with_scratch(rows * (keys.depth + 2 * padded + PANEL), |scratch| {
        let (a, rest) = scratch.split_at_mut(rows * keys.depth);
        let (scores, rest) = rest.split_at_mut(rows * padded);
        let (weights, tile) = rest.split_at_mut(rows * padded);
        block(q, c, a);
        for (panel, scores) in keys.panels().zip(scores.chunks_exact_mut(rows * PANEL)) {
            product(a, panel, scores);
        }
        let sums: Vec<f32> = (0..rows).map(|row| softmax(scores, weights, (row, rows), pixels, c)).collect();
        let weights = &weights[..rows * values.depth];
        for (p, panel) in values.panels().enumerate() {
            product(weights, panel, tile);
            let width = PANEL.min(c - p * PANEL);
            for ((tile, out), sum) in tile.chunks_exact(PANEL).zip(out.chunks_exact_mut(c)).zip(&sums) {
                for (y, x) in out[p * PANEL..][..width].iter_mut().zip(tile) {
                    *y = x / sum;
                }
            }
        }
    });
}

/// `[rows][c]` to `[c / 16][rows][16]`, padded with zeros.
fn block(q: &[f32], c: usize, a: &mut [f32]) {
    let rows = a.len() / c.next_multiple_of(BLOCK);
    a.fill(0.0);
    for (row, q) in q.chunks_exact(c).take(rows).enumerate() {
        for (k, &value) in q.iter().enumerate() {
            a[(k / BLOCK * rows + row) * BLOCK + k % BLOCK] = value;
        }
    }
}

/// Turns one row of scores, in panels, into exponentials in blocks; answers their sum.
fn softmax(scores: &[f32], weights: &mut [f32], (row, rows): (usize, usize), pixels: usize, c: usize) -> f32 {
    let scale = 1.0 / (c as f32).sqrt();
    Arch::new().dispatch(
        #[inline(always)]
        || {
            let panels = pixels.div_ceil(PANEL);
            let part = |p: usize| &scores[(p * rows + row) * PANEL..][..PANEL.min(pixels - p * PANEL)];
            let mut top = f32::NEG_INFINITY;
            for p in 0..panels {
                top = part(p).iter().fold(top, |m, &x| m.max(x));
            }
            let mut sum = 0.0f64;
            for p in 0..panels {
                let mut values = [0.0f32; PANEL];
                for (y, &x) in values.iter_mut().zip(part(p)) {
                    *y = exp((x - top) * scale);
                }
                sum += f64::from(values.iter().sum::<f32>());
                for (half, values) in values.as_chunks::<BLOCK>().0.iter().enumerate() {
                    let at = ((p * PANEL / BLOCK + half) * rows + row) * BLOCK;
                    weights[at..at + BLOCK].copy_from_slice(values);
                }
            }
            sum as f32
        },
    )
}
