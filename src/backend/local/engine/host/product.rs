//! The one matrix product of the CPU path.
//!
//! The left side comes in blocks `[depth / 16][rows][16]`, which is how a feature map lies, the right side packed in panels
//! of 32 columns `[depth][32]`, so that the inner loop reads both in order. A tile of rows x 32 columns stays in registers
//! for the whole depth.

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::arena::{Arena, Buffer};
use super::simd::{BLOCK, arch};

/// Columns of a panel: two AVX-512 registers, four of AVX2.
pub(in super::super) const PANEL: usize = 32;

/// A right-hand side: `[columns / 32][depth][32]`, both padded with zeros to full blocks.
pub(in super::super) struct Packed {
    /// Rows, a multiple of [`BLOCK`].
    pub(in super::super) depth: usize,
    /// Columns before padding.
    pub(in super::super) columns: usize,
    data: Buffer,
}

/// One product: `c = a b` for one panel.
struct Product<'a> {
    a: &'a [[f32; BLOCK]],
    /// Rows of a block of `a`, of which the first as many as `c` has are multiplied.
    stride: usize,
    b: &'a [f32],
    c: &'a mut [[f32; PANEL]],
}

/// `c[row] = sum over depth of a[row] b`, where `a` is `[depth / 16][stride][16]`, `b` one panel `[depth][32]`, and `c`
/// has `stride` rows at most.
pub(in super::super) fn product((a, stride): (&[f32], usize), b: &[f32], c: &mut [f32]) {
    arch().dispatch(Product { a: a.as_chunks::<BLOCK>().0, stride, b, c: c.as_chunks_mut::<PANEL>().0 });
}

// === impl Packed ===

impl Packed {
    /// Packs `value(depth, column)`.
    pub(in super::super) fn from_fn(
        arena: &Arena,
        depth: usize,
        columns: usize,
        value: impl Fn(usize, usize) -> f32 + Sync,
    ) -> Self {
        let padded = depth.next_multiple_of(BLOCK);
        let mut data = arena.take(columns.div_ceil(PANEL) * padded * PANEL);
        data.par_chunks_exact_mut(padded * PANEL).enumerate().for_each(|(p, panel)| {
            panel.fill(0.0);
            for (k, row) in panel.chunks_exact_mut(PANEL).take(depth).enumerate() {
                for (slot, column) in row.iter_mut().zip(p * PANEL..columns) {
                    *slot = value(k, column);
                }
            }
        });
        Self { depth: padded, columns, data }
    }

    /// Their product, where the columns here are the rows there.
    pub(in super::super) fn times(&self, right: &Self, arena: &Arena) -> Self {
        let rows = self.depth;
        let mut left = arena.take(right.depth * rows);
        let blocks = self.panels().flat_map(|panel| (0..PANEL / BLOCK).map(move |half| (panel, half * BLOCK)));
        for (block, (panel, first)) in left.chunks_exact_mut(rows * BLOCK).zip(blocks) {
            for (to, from) in block.chunks_exact_mut(BLOCK).zip(panel.chunks_exact(PANEL)) {
                to.copy_from_slice(&from[first..][..BLOCK]);
            }
        }
        let mut data = arena.take(right.columns.div_ceil(PANEL) * rows * PANEL);
        data.par_chunks_exact_mut(rows * PANEL)
            .zip(right.data.par_chunks_exact(right.depth * PANEL))
            .for_each(|(product_of_panel, panel)| product((&left, rows), panel, product_of_panel));
        Self { depth: rows, columns: right.columns, data }
    }

    /// The panels in order, each `[depth][32]`.
    pub(in super::super) fn panels(&self) -> std::slice::ChunksExact<'_, f32> {
        self.data.chunks_exact(self.depth * PANEL)
    }
}

// === impl Product ===

impl WithSimd for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        // The largest tile whose sums, one row of `b` and one broadcast fit the registers.
        match S::F32_LANES {
            16 => self.split::<S, 2>(simd, 14),
            8 => self.split::<S, 4>(simd, 3),
            4 => self.split::<S, 8>(simd, 3),
            _ => self.split::<S, 32>(simd, 1),
        }
    }
}

impl Product<'_> {
    /// Cuts the rows into tiles of nearly equal height of at most `most`.
    #[inline(always)]
    fn split<S: Simd, const NV: usize>(self, simd: S, most: usize) {
        let rows = self.c.len();
        let tiles = rows.div_ceil(most);
        let mut rest = self.c;
        for t in 0..tiles {
            let (start, end) = (t * rows / tiles, (t + 1) * rows / tiles);
            let (c, tail) = rest.split_at_mut(end - start);
            rest = tail;
            let (a, stride, b) = (&self.a[start..], self.stride, S::as_simd_f32s(self.b).0);
            match c.len() {
                14 => tile::<S, 14, NV>(simd, a, stride, b, c),
                13 => tile::<S, 13, NV>(simd, a, stride, b, c),
                12 => tile::<S, 12, NV>(simd, a, stride, b, c),
                11 => tile::<S, 11, NV>(simd, a, stride, b, c),
                10 => tile::<S, 10, NV>(simd, a, stride, b, c),
                9 => tile::<S, 9, NV>(simd, a, stride, b, c),
                8 => tile::<S, 8, NV>(simd, a, stride, b, c),
                7 => tile::<S, 7, NV>(simd, a, stride, b, c),
                6 => tile::<S, 6, NV>(simd, a, stride, b, c),
                5 => tile::<S, 5, NV>(simd, a, stride, b, c),
                4 => tile::<S, 4, NV>(simd, a, stride, b, c),
                3 => tile::<S, 3, NV>(simd, a, stride, b, c),
                2 => tile::<S, 2, NV>(simd, a, stride, b, c),
                _ => tile::<S, 1, NV>(simd, a, stride, b, c),
            }
        }
    }
}

#[inline(always)]
fn tile<S: Simd, const MR: usize, const NV: usize>(
    simd: S,
    a: &[[f32; BLOCK]],
    stride: usize,
    b: &[S::f32s],
    c: &mut [[f32; PANEL]],
) {
    let mut sums = [[simd.splat_f32s(0.0); NV]; MR];
    for (k, b) in b.chunks_exact(BLOCK * NV).enumerate() {
        let a: &[[f32; BLOCK]; MR] =
            a[k * stride..].first_chunk().expect("a holds the rows for every block of the depth");
        for (j, b) in b.as_chunks::<NV>().0.iter().enumerate() {
            for r in 0..MR {
                let x = simd.splat_f32s(a[r][j % BLOCK]);
                for v in 0..NV {
                    sums[r][v] = simd.mul_add_e_f32s(x, b[v], sums[r][v]);
                }
            }
        }
    }
    for (sums, row) in sums.iter().zip(c) {
        S::as_mut_simd_f32s(row).0.copy_from_slice(sums);
    }
}
