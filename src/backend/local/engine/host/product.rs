//! The one matrix product of the CPU path.
//!
//! The left side comes in blocks `[depth / 16][rows][16]`, the right side packed in panels of 32 columns
//! `[depth][32]`, so that the inner loop reads both in order. A tile of rows x 32 columns stays in registers for the
//! whole depth.

use pulp::{Arch, Simd, WithSimd};

/// Columns of a panel: two AVX-512 registers, four of AVX2.
pub(in super::super) const PANEL: usize = 32;
/// Depth of a left-hand block: one cache line.
pub(in super::super) const BLOCK: usize = 16;

/// A right-hand side: `[columns / 32][depth][32]`, both padded with zeros to full blocks.
pub(in super::super) struct Packed {
    /// Rows, a multiple of [`BLOCK`].
    pub(in super::super) depth: usize,
    /// Columns before padding.
    pub(in super::super) columns: usize,
    data: Vec<f32>,
}

/// One product: `c = a b` for one panel.
struct Product<'a> {
    a: &'a [[f32; BLOCK]],
    rows: usize,
    b: &'a [f32],
    c: &'a mut [[f32; PANEL]],
}

/// `c[row] = sum over depth of a[row] b`, where `a` is `[depth / 16][rows][16]` and `b` one panel `[depth][32]`.
pub(in super::super) fn product(a: &[f32], b: &[f32], c: &mut [f32]) {
    let c = c.as_chunks_mut::<PANEL>().0;
    Arch::new().dispatch(Product { a: a.as_chunks::<BLOCK>().0, rows: c.len(), b, c });
}

// === impl Packed ===

impl Packed {
    /// Packs `value(depth, column)`.
    pub(in super::super) fn from_fn(depth: usize, columns: usize, value: impl Fn(usize, usize) -> f32) -> Self {
        let padded = depth.next_multiple_of(BLOCK);
        let mut data = vec![0.0; columns.div_ceil(PANEL) * padded * PANEL];
        for (p, panel) in data.chunks_exact_mut(padded * PANEL).enumerate() {
            for (k, row) in panel.chunks_exact_mut(PANEL).take(depth).enumerate() {
                for (slot, column) in row.iter_mut().zip(p * PANEL..columns) {
                    *slot = value(k, column);
                }
            }
        }
        Self { depth: padded, columns, data }
    }

    /// The panels in order, each `[depth][32]`.
    pub(in super::super) fn panels(&self) -> impl Iterator<Item = &[f32]> {
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
        let tiles = self.rows.div_ceil(most);
        let mut rest = self.c;
        for t in 0..tiles {
            let (start, end) = (t * self.rows / tiles, (t + 1) * self.rows / tiles);
            let (c, tail) = rest.split_at_mut(end - start);
            rest = tail;
            let (a, rows, b) = (&self.a[start..], self.rows, S::as_simd_f32s(self.b).0);
            match c.len() {
                14 => tile::<S, 14, NV>(simd, a, rows, b, c),
                13 => tile::<S, 13, NV>(simd, a, rows, b, c),
                12 => tile::<S, 12, NV>(simd, a, rows, b, c),
                11 => tile::<S, 11, NV>(simd, a, rows, b, c),
                10 => tile::<S, 10, NV>(simd, a, rows, b, c),
                9 => tile::<S, 9, NV>(simd, a, rows, b, c),
                8 => tile::<S, 8, NV>(simd, a, rows, b, c),
                7 => tile::<S, 7, NV>(simd, a, rows, b, c),
                6 => tile::<S, 6, NV>(simd, a, rows, b, c),
                5 => tile::<S, 5, NV>(simd, a, rows, b, c),
                4 => tile::<S, 4, NV>(simd, a, rows, b, c),
                3 => tile::<S, 3, NV>(simd, a, rows, b, c),
                2 => tile::<S, 2, NV>(simd, a, rows, b, c),
                _ => tile::<S, 1, NV>(simd, a, rows, b, c),
            }
        }
    }
}

#[inline(always)]
fn tile<S: Simd, const MR: usize, const NV: usize>(
    simd: S,
    a: &[[f32; BLOCK]],
    rows: usize,
    b: &[S::f32s],
    c: &mut [[f32; PANEL]],
) {
    let mut sums = [[simd.splat_f32s(0.0); NV]; MR];
    for (k, b) in b.chunks_exact(BLOCK * NV).enumerate() {
        let a: &[[f32; BLOCK]; MR] = a[k * rows..].first_chunk().expect("a holds rows for every block of the depth");
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
