//! A convolution on the CPU: chooses Winograd for the 3x3 ones of stride one, else gathers and multiplies.
//!
//! The gather makes the matrix of taps for 56 output pixels at a time in a buffer of the thread, at most 1 MiB for
//! 512 channels, instead of for the whole map.

use rayon::prelude::*;

use super::super::Activation;
use super::product::{BLOCK, PANEL, Packed, product};
use super::{HostMap, elementwise, winograd, with_scratch};

/// Output pixels a task: four register tiles.
const PIXELS: usize = 56;

/// Geometry and weights of one convolution.
pub(in super::super) struct HostConv {
    /// Taps outermost, input channels innermost, so that a gather copies whole pixels.
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

impl HostConv {
    /// Packs weights `[out, in, k, k]`.
    pub(in super::super) fn pack(weights: &[f32], inputs: usize, outputs: usize, kernel: usize) -> Packed {
        let taps = kernel * kernel;
        Packed::from_fn(taps * inputs, outputs, |k, o| weights[(o * inputs + k % inputs) * taps + k / inputs])
    }

    /// Height or width of the output for one of the input.
    pub(in super::super) fn extent(&self, input: usize) -> usize {
        (input * self.upsample + self.before + self.after - self.kernel) / self.stride + 1
    }

    /// `activation(conv(x) + onto)`, in the buffer of `onto` where there is one.
    pub(in super::super) fn run(&self, x: &HostMap, onto: Option<HostMap>, activation: Activation) -> HostMap {
        let (h, w) = (self.extent(x.h), self.extent(x.w));
        let ends_block = onto.is_some();
        let mut out = onto.unwrap_or_else(|| x.zeros_like(h, w, self.weights.columns));
        if winograd::suits(self, h, w) {
            winograd::run(self, x, &mut out, activation);
        } else {
            self.gather_and_multiply(x, &mut out, activation);
        }
        // What stays within a block stays in f32: the next layer of it reads f32 as it is.
        if ends_block {
            out.round();
        }
        out
    }

    fn gather_and_multiply(&self, x: &HostMap, out: &mut HostMap, activation: Activation) {
        let (columns, size) = (self.weights.columns, (out.h, out.w));
        out.data.par_chunks_mut(PIXELS * columns).enumerate().for_each(|(task, out)| {
            let rows = out.len() / columns;
            with_scratch(rows * (self.weights.depth + PANEL), |scratch| {
                let (a, c) = scratch.split_at_mut(rows * self.weights.depth);
                a.fill(0.0);
                self.gather(x, size, task * PIXELS, a);
                for (p, panel) in self.weights.panels().enumerate() {
                    product(a, panel, c);
                    let first = p * PANEL;
                    let width = PANEL.min(columns - first);
                    for (sums, pixel) in c.chunks_exact(PANEL).zip(out.chunks_exact_mut(columns)) {
                        let bias = &self.bias[first..first + width];
                        for ((y, &s), &b) in pixel[first..first + width].iter_mut().zip(sums).zip(bias) {
                            *y = elementwise::activate(*y + s + b, activation);
                        }
                    }
                }
            });
        });
    }

    /// Writes the taps of output pixels `first..` as `[depth / 16][rows][16]`; what lies outside stays zero.
    fn gather(&self, x: &HostMap, (h, w): (usize, usize), first: usize, a: &mut [f32]) {
        let rows = a.len() / self.weights.depth;
        let (high, wide) = (x.h * self.upsample, x.w * self.upsample);
        for row in 0..rows {
            let (image, y, column) = ((first + row) / (h * w), (first + row) / w % h, (first + row) % w);
            for tap in 0..self.kernel * self.kernel {
                let sy = (y * self.stride + tap / self.kernel).wrapping_sub(self.before);
                let sx = (column * self.stride + tap % self.kernel).wrapping_sub(self.before);
                if sy >= high || sx >= wide {
                    continue;
                }
                let pixel = (image * x.h + sy / self.upsample) * x.w + sx / self.upsample;
                let pixel = &x.data[pixel * x.c..][..x.c];
                if self.inputs.is_multiple_of(BLOCK) {
                    let block = tap * self.inputs / BLOCK;
                    for (i, part) in pixel.as_chunks::<BLOCK>().0.iter().enumerate() {
                        a[((block + i) * rows + row) * BLOCK..][..BLOCK].copy_from_slice(part);
                    }
                } else {
                    for (k, &value) in (tap * self.inputs..).zip(pixel) {
                        a[(k / BLOCK * rows + row) * BLOCK + k % BLOCK] = value;
                    }
                }
            }
        }
    }
}
