//! Kernels of the CPU path, in safe Rust: feature maps in f32, in blocks of 16 channels.
//!
//! candle's own CPU convolution spends half of its time filling a 9-fold copy of its input; these kernels read the
//! input where it lies, norm it on the way in, and take what memory they need from one counted [`arena`]. SIMD comes from
//! `pulp`, for the widest instruction set of the machine, so no `unsafe` is needed here.

#![expect(clippy::inline_always, reason = "what is not inlined into the dispatched function loses its instruction set")]

pub(super) mod arena;
pub(super) mod attend;
pub(super) mod convolve;
pub(super) mod moments;
pub(super) mod product;
pub(super) mod simd;
pub(super) mod source;
#[cfg(test)]
mod tests;
pub(super) mod winograd;

use std::ops::Range;

use rayon::prelude::*;

use self::{
    arena::{Arena, Buffer},
    simd::BLOCK,
};
use super::Precision;

/// A feature map in f32, `[n, c / 16, h, w, 16]`: a pixel's channels of one block are one cache line, and a row's lines lie
/// one after the other. Fewer than 16 channels are one block of just those; above, lanes of a last block beyond the
/// channels hold zeros. What a residual block hands on is representable in `precision`.
#[derive(Clone)]
pub(super) struct HostMap {
    pub(super) n: usize,
    pub(super) h: usize,
    pub(super) w: usize,
    pub(super) c: usize,
    pub(super) precision: Precision,
    pub(super) data: Buffer,
}

/// Some pixels of one image: those of each block, in the order of the blocks.
pub(super) type Part<'a> = Vec<&'a mut [f32]>;

/// Channels in memory for `c` of a map.
pub(super) fn stored(c: usize) -> usize {
    if c < BLOCK { c } else { c.next_multiple_of(BLOCK) }
}

// === impl HostMap ===

impl HostMap {
    /// A map of any values.
    pub(super) fn new(arena: &Arena, [n, c, h, w]: [usize; 4], precision: Precision) -> Self {
        Self { n, h, w, c, precision, data: arena.take(n * stored(c) * h * w) }
    }

    /// A map of any values, of other height, width and channels.
    pub(super) fn like(&self, h: usize, w: usize, c: usize) -> Self {
        Self::new(self.arena(), [self.n, c, h, w], self.precision)
    }

    /// Where its buffer came from.
    pub(super) fn arena(&self) -> &Arena {
        self.data.arena()
    }

    /// Channels of a block.
    pub(super) fn lanes(&self) -> usize {
        self.c.min(BLOCK)
    }

    /// Blocks of an image.
    pub(super) fn blocks(&self) -> usize {
        self.c.div_ceil(BLOCK)
    }

    /// Pixels of an image.
    pub(super) fn pixels(&self) -> usize {
        self.h * self.w
    }

    /// One image's numbers.
    pub(super) fn image(&self, n: usize) -> &[f32] {
        let len = stored(self.c) * self.pixels();
        &self.data[n * len..][..len]
    }

    /// Every image cut into parts of `pixels` pixels, `ceil(h w / pixels)` parts an image, images in order.
    pub(super) fn parts(&mut self, pixels: usize) -> Vec<Part<'_>> {
        let (all, lanes, blocks) = (self.pixels(), self.lanes(), self.blocks());
        let count = all.div_ceil(pixels);
        let mut parts: Vec<Part<'_>> = Vec::new();
        parts.resize_with(self.n * count, || Vec::with_capacity(blocks));
        for (index, block) in self.data.chunks_mut(all * lanes).enumerate() {
            let of_image = &mut parts[index / blocks * count..][..count];
            for (part, run) in of_image.iter_mut().zip(block.chunks_mut(pixels * lanes)) {
                part.push(run);
            }
        }
        parts
    }

    /// From row-major `[n, c, h, w]`. An input is not rounded: it is no layer's result, and the first layer reads f32.
    pub(super) fn from_planes(arena: &Arena, planes: &[f32], dims: [usize; 4], precision: Precision) -> Self {
        let mut map = Self::new(arena, dims, precision);
        let (pixels, lanes, blocks, c) = (map.pixels(), map.lanes(), map.blocks(), map.c);
        map.data.par_chunks_mut(pixels * lanes).enumerate().for_each(|(index, block)| {
            let first = index % blocks * lanes;
            let planes = &planes[(index / blocks * c + first) * pixels..][..lanes.min(c - first) * pixels];
            block.fill(0.0);
            for (lane, plane) in planes.chunks_exact(pixels).enumerate() {
                for (pixel, &value) in block.chunks_exact_mut(lanes).zip(plane) {
                    pixel[lane] = value;
                }
            }
        });
        map
    }

    /// To row-major `[n, c, h, w]`.
    pub(super) fn to_planes(&self) -> Vec<f32> {
        let (pixels, lanes, blocks) = (self.pixels(), self.lanes(), self.blocks());
        let mut planes = vec![0.0; if self.arena().rehearses() { 0 } else { self.n * self.c * pixels }];
        planes.par_chunks_mut(pixels).enumerate().for_each(|(plane, values)| {
            let (image, channel) = (plane / self.c, plane % self.c);
            let block = &self.data[(image * blocks + channel / BLOCK) * pixels * lanes..][..pixels * lanes];
            for (value, pixel) in values.iter_mut().zip(block.chunks_exact(lanes)) {
                *value = pixel[channel % BLOCK];
            }
        });
        planes
    }

    /// Some rows, as a map of their own.
    pub(super) fn copy_rows(&self, rows: Range<usize>) -> Self {
        let mut copy = self.like(rows.len(), self.w, self.c);
        let (line, len) = (self.w * self.lanes(), rows.len() * self.w * self.lanes());
        copy.data.par_chunks_mut(len).zip(self.data.par_chunks(self.h * line)).for_each(|(to, from)| {
            to.copy_from_slice(&from[rows.start * line..][..len]);
        });
        copy
    }

    /// Writes `rows` over the rows from `top` on.
    pub(super) fn paste(&mut self, top: usize, rows: &Self) {
        let (line, len) = (self.w * self.lanes(), self.h * self.w * self.lanes());
        self.data.par_chunks_mut(len).zip(rows.data.par_chunks(rows.h * line)).for_each(|(to, from)| {
            to[top * line..][..from.len()].copy_from_slice(from);
        });
    }

    /// The first `c` channels, in the same buffer.
    pub(super) fn narrow(mut self, c: usize) -> Self {
        let (from, to) = (stored(self.c) * self.pixels(), stored(c) * self.pixels());
        if !self.arena().rehearses() {
            for image in 1..self.n {
                self.data.copy_within(image * from..image * from + to, image * to);
            }
        }
        self.data.truncate(self.n * to);
        self.c = c;
        self
    }

    /// The same in a buffer of its size, where the one it has is much longer.
    pub(super) fn trimmed(self) -> Self {
        if self.data.is_loose() { self.clone() } else { self }
    }

    /// Rounds to the map's precision: what storing the layer's result in that type would do.
    pub(super) fn round(&mut self) {
        simd::round(&mut self.data, self.precision);
    }
}
