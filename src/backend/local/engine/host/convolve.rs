//! A convolution on the CPU: Winograd for the 3x3 ones of stride one, a product of the map as it lies for the 1x1 ones, else
//! taps are gathered and multiplied.
//!
//! The gather makes the matrix of taps for 56 output pixels at a time, at most 1 MiB for 512 channels, instead of for the
//! whole map.

use std::ops::Range;

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::super::{Activation, Precision};
use super::arena::Arena;
use super::product::{PANEL, Packed, product};
use super::simd::{BLOCK, activate, arch};
use super::source::Source;
use super::{HostMap, Part, stored, winograd};

/// Output pixels a task: four register tiles.
const PIXELS: usize = 56;

/// Geometry and weights of one convolution.
pub(in super::super) struct HostConv {
    /// Taps outermost, stored input channels innermost, so that a gather copies whole pixels.
    pub(in super::super) weights: Packed,
    pub(in super::super) bias: Vec<f32>,
    pub(in super::super) inputs: usize,
    pub(in super::super) kernel: usize,
    pub(in super::super) stride: usize,
    /// Zeros before the first row and column.
    pub(in super::super) before: usize,
    /// Zeros after the last row and column.
    pub(in super::super) after: usize,
    /// Each input pixel stands for a square of this side.
    pub(in super::super) upsample: usize,
}

/// What becomes of the sums: the output's channels and what is applied to them.
#[derive(Clone, Copy)]
pub(super) struct Finish<'a> {
    pub(super) bias: &'a [f32],
    /// Whether the sums are added to what the output holds.
    pub(super) onto: bool,
    pub(super) activation: Activation,
}

impl HostConv {
    /// Packs weights `[out, in, k, k]`.
    pub(in super::super) fn pack(weights: &[f32], inputs: usize, outputs: usize, kernel: usize) -> Packed {
        let (taps, stored) = (kernel * kernel, stored(inputs));
        // Weights stay; no run's arena counts them.
        Packed::from_fn(&Arena::default(), taps * stored, outputs, |k, o| match k % stored {
            c if c < inputs => weights[(o * inputs + c) * taps + k / stored],
            _ => 0.0,
        })
    }

    /// This and then a 1x1, as one convolution.
    pub(in super::super) fn then(&self, pointwise: &Self, arena: &Arena) -> Self {
        let bias = if arena.rehearses() {
            vec![0.0; pointwise.outputs()]
        } else {
            let bias = HostMap::from_planes(arena, &self.bias, [1, self.outputs(), 1, 1], Precision::F32);
            pointwise.run(&Source::whole(&bias), None, Activation::None).to_planes()
        };
        Self { weights: self.weights.times(&pointwise.weights, arena), bias, ..*self }
    }

    /// Height or width of the output for one of the input.
    pub(in super::super) fn extent(&self, input: usize) -> usize {
        (input * self.upsample + self.before + self.after - self.kernel) / self.stride + 1
    }

    /// Channels of the output.
    pub(in super::super) fn outputs(&self) -> usize {
        self.weights.columns
    }

    /// The input rows, of `height`, that output rows `rows` are made of.
    pub(in super::super) fn reach(&self, rows: &Range<usize>, height: usize) -> Range<usize> {
        let first = (rows.start * self.stride).saturating_sub(self.before) / self.upsample;
        let last = ((rows.end - 1) * self.stride + self.kernel - 1).saturating_sub(self.before) / self.upsample;
        first..(last + 1).min(height)
    }

    /// `activation(conv(x) + onto)`, in the buffer of `onto` where there is one.
    pub(in super::super) fn run(&self, x: &Source<'_>, onto: Option<HostMap>, activation: Activation) -> HostMap {
        self.run_rows(x, 0..self.extent(x.height), onto, activation)
    }

    /// Rows `rows` of [`run`](Self::run), as a map of their own, from a window that has what they [reach](Self::reach).
    pub(in super::super) fn run_rows(
        &self,
        x: &Source<'_>,
        rows: Range<usize>,
        onto: Option<HostMap>,
        activation: Activation,
    ) -> HostMap {
        let w = self.extent(x.map.w);
        let finish = Finish { bias: &self.bias, onto: onto.is_some(), activation };
        let mut out = onto.unwrap_or_else(|| x.map.like(rows.len(), w, self.outputs()));
        if winograd::suits(self, self.extent(x.height), w) {
            winograd::run(self, x, rows.start, &mut out, finish);
        } else if x.affine.is_some() {
            // Small maps, or the convolutions around attention: a normed copy is cheaper than norming each tap.
            let normed = x.materialise();
            self.multiply(&Source { map: &normed, affine: None, ..*x }, rows.start, &mut out, finish);
        } else {
            self.multiply(x, rows.start, &mut out, finish);
        }
        // What stays within a block stays in f32: the next layer of it reads f32 as it is.
        if finish.onto {
            out.round();
        }
        out
    }

    /// [`run`](Self::run) into the buffer of what is read, where a pixel's result has room in what the pixel was: for a 1x1
    /// that makes no more channels than it reads.
    pub(in super::super) fn run_over(&self, mut x: HostMap) -> HostMap {
        let narrows = self.is_plain(&x) && (BLOCK..=stored(self.inputs)).contains(&stored(self.outputs()));
        if !narrows {
            return self.run(&Source::whole(&x), None, Activation::None);
        }
        let finish = Finish { bias: &self.bias, onto: false, activation: Activation::None };
        let (arena, blocks) = (x.arena().clone(), self.outputs().div_ceil(BLOCK));
        let scratch = PIXELS * (self.weights.depth + PANEL);
        arena.note_scratch(scratch);
        if !arena.rehearses() {
            x.parts(PIXELS).into_par_iter().for_each(|mut part| {
                let rows = part[0].len() / BLOCK;
                let mut scratch = arena.scratch(scratch);
                let (a, sums) = scratch.split_at_mut(rows * self.weights.depth);
                for (to, from) in a.chunks_exact_mut(rows * BLOCK).zip(&part) {
                    to.copy_from_slice(from);
                }
                part.truncate(blocks);
                self.products((a, rows), &mut sums[..rows * PANEL], &mut part, finish);
            });
        }
        x.narrow(self.outputs())
    }

    /// Whether the map as it lies is the left side of the product.
    fn is_plain(&self, x: &HostMap) -> bool {
        (self.kernel, self.stride, self.upsample) == (1, 1, 1) && x.lanes() == BLOCK
    }

    /// Rows `top..` of the output, from a source without an affine.
    fn multiply(&self, x: &Source<'_>, top: usize, out: &mut HostMap, finish: Finish<'_>) {
        let (width, tasks) = (out.w, out.pixels().div_ceil(PIXELS));
        let (map, above) = (x.map, top.saturating_sub(x.top) * out.w);
        let plain = self.is_plain(map);
        let taps = if plain { 0 } else { PIXELS * self.weights.depth };
        let (arena, scratch) = (map.arena().clone(), taps + PIXELS * PANEL);
        if arena.rehearses() {
            arena.note_scratch(scratch);
            return;
        }
        out.parts(PIXELS).into_par_iter().enumerate().for_each(|(task, mut out)| {
            let (image, first) = (task / tasks, task % tasks * PIXELS);
            let rows = out[0].len() / self.outputs().min(BLOCK);
            let mut scratch = arena.scratch(scratch);
            let (taps, sums) = scratch.split_at_mut(taps);
            let (a, stride) = if plain {
                (&map.image(image)[(above + first) * BLOCK..], map.pixels())
            } else {
                let taps = &mut taps[..rows * self.weights.depth];
                taps.fill(0.0);
                self.gather(x, image, (top * width + first, width), taps);
                (&*taps, rows)
            };
            self.products((a, stride), &mut sums[..rows * PANEL], &mut out, finish);
        });
    }

    /// All output channels of some pixels, of which `sums` holds 32 at a time.
    fn products(&self, a: (&[f32], usize), sums: &mut [f32], out: &mut Part<'_>, finish: Finish<'_>) {
        for (p, panel) in self.weights.panels().enumerate() {
            product(a, panel, sums);
            arch().dispatch(Store { finish, panel: p, sums: sums.as_chunks().0, out });
        }
    }

    /// Writes the taps of output pixels `first..`, in rows of `width`, as `[depth / 16][rows][16]`; what lies outside stays
    /// zero.
    fn gather(&self, x: &Source<'_>, image: usize, (first, width): (usize, usize), a: &mut [f32]) {
        let (rows, map) = (a.len() / self.weights.depth, x.map);
        let (high, wide) = (x.height * self.upsample, map.w * self.upsample);
        let (image, pixels, lanes) = (map.image(image), map.pixels(), map.lanes());
        for row in 0..rows {
            let (y, column) = ((first + row) / width, (first + row) % width);
            for tap in 0..self.kernel * self.kernel {
                let sy = (y * self.stride + tap / self.kernel).wrapping_sub(self.before);
                let sx = (column * self.stride + tap % self.kernel).wrapping_sub(self.before);
                if sy >= high || sx >= wide {
                    continue;
                }
                let pixel = (sy / self.upsample - x.top) * map.w + sx / self.upsample;
                if lanes == BLOCK {
                    let lines = image.as_chunks::<BLOCK>().0;
                    for block in 0..map.blocks() {
                        let to = (tap * map.blocks() + block) * rows + row;
                        a[to * BLOCK..][..BLOCK].copy_from_slice(&lines[block * pixels + pixel]);
                    }
                } else {
                    for (k, &value) in (tap * lanes..).zip(&image[pixel * lanes..][..lanes]) {
                        a[(k / BLOCK * rows + row) * BLOCK + k % BLOCK] = value;
                    }
                }
            }
        }
    }
}

/// The sums of one panel, `[rows][32]`, on their way to the output's blocks.
struct Store<'a, 'b> {
    finish: Finish<'a>,
    panel: usize,
    sums: &'a [[f32; PANEL]],
    out: &'a mut Part<'b>,
}

impl WithSimd for Store<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let lanes = self.finish.bias.len().min(BLOCK);
        for (half, out) in self.out.iter_mut().skip(self.panel * (PANEL / BLOCK)).take(PANEL / BLOCK).enumerate() {
            let bias = self.finish.bias_of(self.panel * (PANEL / BLOCK) + half);
            for (pixel, sums) in out.chunks_exact_mut(lanes).zip(self.sums) {
                let mut line: [f32; BLOCK] = std::array::from_fn(|lane| sums[half * BLOCK + lane]);
                self.finish.apply(simd, &mut line, &bias, pixel);
                pixel.copy_from_slice(&line[..lanes]);
            }
        }
    }
}

// === impl Finish ===

impl Finish<'_> {
    /// The bias of a block's lanes; zero for those that are no channels.
    #[inline(always)]
    pub(super) fn bias_of(&self, block: usize) -> [f32; BLOCK] {
        let mut bias = [0.0; BLOCK];
        for (to, from) in bias.iter_mut().zip(&self.bias[block * BLOCK..]) {
            *to = *from;
        }
        bias
    }

    /// Finishes one pixel's sums of one block, where `held` is what the output holds.
    #[inline(always)]
    fn apply<S: Simd>(&self, simd: S, sums: &mut [f32; BLOCK], bias: &[f32; BLOCK], held: &[f32]) {
        let mut onto = [0.0; BLOCK];
        if self.onto {
            onto[..held.len()].copy_from_slice(held);
        }
        let (bias, onto) = (S::as_simd_f32s(bias).0, S::as_simd_f32s(&onto).0);
        for ((x, &bias), &onto) in S::as_mut_simd_f32s(sums).0.iter_mut().zip(bias).zip(onto) {
            *x = activate(simd, simd.add_f32s(simd.add_f32s(*x, bias), onto), self.activation);
        }
    }
}
