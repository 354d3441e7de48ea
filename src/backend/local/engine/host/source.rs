//! What a layer reads: a map, normed on the way in where a norm stands before the layer.

use std::ops::Range;

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::super::Activation;
use super::simd::{BLOCK, activate, arch};
use super::{HostMap, stored};

/// `activation(x * scale + shift)`, channel by channel, both `[n, c]` with a channel for every lane of the map.
pub(in super::super) struct Affine {
    pub(in super::super) scale: Vec<f32>,
    pub(in super::super) shift: Vec<f32>,
    pub(in super::super) activation: Activation,
}

/// A map and what is done to its numbers as they are read. The map may be a window: some rows of a taller one.
pub(in super::super) struct Source<'a> {
    pub(in super::super) map: &'a HostMap,
    /// Row of the taller map that is the window's first.
    pub(in super::super) top: usize,
    /// Rows of the taller map.
    pub(in super::super) height: usize,
    pub(in super::super) affine: Option<&'a Affine>,
}

/// Some pixels of one row, wherever they lie in the map; those outside are zeros.
pub(super) struct Row<'a> {
    pub(super) image: usize,
    /// Of the taller map, or [`OUTSIDE`].
    pub(super) y: usize,
    /// Column of each pixel, [`OUTSIDE`] for those beyond the edges.
    pub(super) columns: &'a [usize],
    /// Those that are not.
    pub(super) inside: Range<usize>,
}

/// No column and no row of any map.
pub(super) const OUTSIDE: usize = usize::MAX;

/// Pixels a task works on when a whole map is read.
const PIXELS: usize = 1024;

// === impl Source ===

impl<'a> Source<'a> {
    /// Reads block `block` of a row into `line`.
    #[inline(always)]
    pub(super) fn read<S: Simd>(&self, simd: S, row: &Row<'_>, block: usize, line: &mut [[f32; BLOCK]]) {
        let map = self.map;
        // A row that only outputs nobody keeps would read is not in the window, and may be anything.
        let Some(y) = row.y.checked_sub(self.top).filter(|&y| y < map.h) else {
            line.fill([0.0; BLOCK]);
            return;
        };
        let lanes = map.lanes();
        let from = ((row.image * map.blocks() + block) * map.h + y) * map.w * lanes;
        let from = &map.data[from..][..map.w * lanes];
        if lanes < BLOCK {
            gather_few(from, lanes, row.columns, line);
        } else {
            gather(from.as_chunks().0, row.columns, line);
        }
        if let Some(affine) = self.affine {
            affine.apply(simd, row.image * stored(map.c) + block * BLOCK, lanes, &mut line[row.inside.clone()]);
        }
    }

    /// A whole map.
    pub(in super::super) fn whole(map: &'a HostMap) -> Self {
        Self { map, top: 0, height: map.h, affine: None }
    }

    /// The map with the affine applied, in a buffer of its own.
    pub(in super::super) fn materialise(&self) -> HostMap {
        let mut map = self.map.clone();
        let Some(affine) = self.affine else { return map };
        let (lanes, blocks) = (map.lanes(), map.blocks());
        let len = map.pixels() * lanes;
        map.data.par_chunks_mut(len).enumerate().for_each(|(index, pixels)| {
            let first = index / blocks * stored(self.map.c) + index % blocks * BLOCK;
            pixels.par_chunks_mut(PIXELS * lanes).for_each(|pixels| {
                arch().dispatch(Apply { affine, first, lanes, pixels });
            });
        });
        map
    }
}

#[inline(always)]
fn gather(from: &[[f32; BLOCK]], columns: &[usize], line: &mut [[f32; BLOCK]]) {
    for (pixel, &column) in line.iter_mut().zip(columns) {
        *pixel = from.get(column).copied().unwrap_or([0.0; BLOCK]);
    }
}

/// The lanes that the map has not are zeros.
#[inline(always)]
fn gather_few(from: &[f32], lanes: usize, columns: &[usize], line: &mut [[f32; BLOCK]]) {
    for (pixel, &column) in line.iter_mut().zip(columns) {
        *pixel = [0.0; BLOCK];
        if column != OUTSIDE {
            pixel[..lanes].copy_from_slice(&from[column * lanes..][..lanes]);
        }
    }
}

/// An affine over pixels of `lanes` channels, one after the other.
struct Apply<'a> {
    affine: &'a Affine,
    first: usize,
    lanes: usize,
    pixels: &'a mut [f32],
}

impl WithSimd for Apply<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { affine, first, lanes, pixels } = self;
        if lanes == BLOCK {
            affine.apply(simd, first, lanes, pixels.as_chunks_mut().0);
            return;
        }
        for pixel in pixels.chunks_exact_mut(lanes) {
            let mut line = [0.0; BLOCK];
            line[..lanes].copy_from_slice(pixel);
            affine.apply(simd, first, lanes, std::slice::from_mut(&mut line));
            pixel.copy_from_slice(&line[..lanes]);
        }
    }
}

// === impl Affine ===

impl Affine {
    /// Applies channels `first..` to pixels of one block, of whose lanes `lanes` are the map's.
    #[inline(always)]
    fn apply<S: Simd>(&self, simd: S, first: usize, lanes: usize, pixels: &mut [[f32; BLOCK]]) {
        let (mut scale, mut shift) = ([0.0; BLOCK], [0.0; BLOCK]);
        scale[..lanes].copy_from_slice(&self.scale[first..][..lanes]);
        shift[..lanes].copy_from_slice(&self.shift[first..][..lanes]);
        // Chosen here, so that no loop over pixels has a branch.
        match self.activation {
            Activation::None => apply_all(simd, [&scale, &shift], Activation::None, pixels),
            Activation::Relu => apply_all(simd, [&scale, &shift], Activation::Relu, pixels),
            Activation::Silu => apply_all(simd, [&scale, &shift], Activation::Silu, pixels),
        }
    }
}

#[inline(always)]
fn apply_all<S: Simd>(
    simd: S,
    [scale, shift]: [&[f32; BLOCK]; 2],
    activation: Activation,
    pixels: &mut [[f32; BLOCK]],
) {
    let (scale, shift) = (S::as_simd_f32s(scale).0, S::as_simd_f32s(shift).0);
    for pixel in pixels {
        for ((x, &scale), &shift) in S::as_mut_simd_f32s(pixel).0.iter_mut().zip(scale).zip(shift) {
            *x = activate(simd, simd.mul_add_e_f32s(*x, scale, shift), activation);
        }
    }
}
