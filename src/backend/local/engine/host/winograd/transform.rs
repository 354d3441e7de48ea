//! The two-dimensional transforms: weights once a convolution, inputs and outputs once a block of tiles.

use pulp::{Simd, WithSimd};

use super::super::super::Activation;
use super::super::{
    Part,
    convolve::Finish,
    product::PANEL,
    simd::{BLOCK, activate},
    source::{OUTSIDE, Row, Source},
};
use super::{POINTS, TILE, Tiles, WINDOW, points};

/// One panel's taps, `[9][stored][32]`, to its points, `[36][depth][32]`; depth beyond the stored channels becomes zeros.
pub(super) struct Weights<'a> {
    pub(super) taps: &'a [[f32; PANEL]],
    pub(super) stored: usize,
    pub(super) points: &'a mut [[f32; PANEL]],
}

/// The inputs of some tiles to their points, `[36][depth / 16][tiles][16]` with `stride` floats a point.
pub(super) struct Inputs<'a> {
    pub(super) x: &'a Source<'a>,
    pub(super) upsample: usize,
    pub(super) tiles: Tiles,
    /// For the pixels that the tiles read, of one block of channels.
    pub(super) patch: &'a mut [[f32; BLOCK]],
    pub(super) points: &'a mut [f32],
    pub(super) stride: usize,
}

/// The points of some tiles' outputs, `[36][panels][tiles][32]` with `stride` floats a point, to a part of the output.
pub(super) struct Outputs<'a, 'b> {
    pub(super) points: &'a [f32],
    pub(super) stride: usize,
    pub(super) tiles: Tiles,
    pub(super) finish: Finish<'a>,
    pub(super) out: &'a mut Part<'b>,
}

impl WithSimd for Weights<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { taps, stored, points } = self;
        let depth = points.len() / POINTS;
        for c in 0..stored {
            for v in 0..PANEL / S::F32_LANES {
                // Loops, not closures: what is not inlined loses its instruction set.
                let mut columns = [[simd.splat_f32s(0.0); WINDOW]; 3];
                for (j, column) in columns.iter_mut().enumerate() {
                    let mut three = [simd.splat_f32s(0.0); 3];
                    for (i, tap) in three.iter_mut().enumerate() {
                        *tap = S::as_simd_f32s(&taps[(3 * i + j) * stored + c]).0[v];
                    }
                    *column = points::of_taps(simd, three);
                }
                for i in 0..WINDOW {
                    let row = points::of_taps(simd, [columns[0][i], columns[1][i], columns[2][i]]);
                    for j in 0..WINDOW {
                        S::as_mut_simd_f32s(&mut points[(i * WINDOW + j) * depth + c]).0[v] = row[j];
                    }
                }
            }
        }
        for point in points.chunks_exact_mut(depth) {
            point[stored..].fill([0.0; PANEL]);
        }
    }
}

impl WithSimd for Inputs<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { x, upsample, tiles, patch, points, stride } = self;
        // The window of the first tile begins one row and one column before its outputs.
        let place = |at: usize, extent: usize| match at.wrapping_sub(1) {
            at if at < extent * upsample => at / upsample,
            _ => OUTSIDE,
        };
        let wide = tiles.across * TILE + 2;
        let columns: Vec<usize> = (0..wide).map(|j| place(tiles.left + j, x.map.w)).collect();
        let first = columns.iter().take_while(|&&column| column == OUTSIDE).count();
        let last = columns.iter().rposition(|&column| column != OUTSIDE).map_or(first, |last| last + 1);
        let mut points = points.chunks_exact_mut(stride);
        let mut points: [&mut [[f32; BLOCK]]; POINTS] =
            std::array::from_fn(|_| points.next().unwrap_or_default().as_chunks_mut().0);
        for block in 0..x.map.blocks() {
            for (i, line) in patch.chunks_exact_mut(wide).enumerate() {
                let y = place(tiles.top + i, x.height);
                let row = Row { image: tiles.image, y, columns: &columns, inside: first..last };
                x.read(simd, &row, block, line);
            }
            for t in 0..tiles.count() {
                let corner = t / tiles.across * TILE * wide + t % tiles.across * TILE;
                input_tile(simd, &patch[corner..], wide, &mut points, block * tiles.count() + t);
            }
        }
    }
}

/// Transforms one window of a patch and writes its points at `at`.
#[inline(always)]
fn input_tile<S: Simd>(
    simd: S,
    patch: &[[f32; BLOCK]],
    wide: usize,
    points: &mut [&mut [[f32; BLOCK]]; POINTS],
    at: usize,
) {
    let row = |i: usize| patch[i * wide..].first_chunk::<WINDOW>().expect("the patch has the rows of a window");
    let rows = [row(0), row(1), row(2), row(3), row(4), row(5)];
    for lane in 0..BLOCK / S::F32_LANES {
        let mut half = [[simd.splat_f32s(0.0); WINDOW]; WINDOW];
        for j in 0..WINDOW {
            let mut column = [simd.splat_f32s(0.0); WINDOW];
            for i in 0..WINDOW {
                column[i] = S::as_simd_f32s(&rows[i][j]).0[lane];
            }
            let column = points::of_inputs(simd, column);
            for i in 0..WINDOW {
                half[i][j] = column[i];
            }
        }
        for i in 0..WINDOW {
            let row = points::of_inputs(simd, half[i]);
            for j in 0..WINDOW {
                S::as_mut_simd_f32s(&mut points[i * WINDOW + j][at]).0[lane] = row[j];
            }
        }
    }
}

impl WithSimd for Outputs<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        // Chosen here, so that no loop over pixels has a branch.
        match self.finish.activation {
            Activation::None => self.store_as(simd, Activation::None),
            Activation::Relu => self.store_as(simd, Activation::Relu),
            Activation::Silu => self.store_as(simd, Activation::Silu),
        }
    }
}

impl Outputs<'_, '_> {
    #[inline(always)]
    fn store_as<S: Simd>(self, simd: S, activation: Activation) {
        if self.finish.onto {
            self.store::<S, true>(simd, activation);
        } else {
            self.store::<S, false>(simd, activation);
        }
    }

    #[inline(always)]
    fn store<S: Simd, const ONTO: bool>(self, simd: S, activation: Activation) {
        let Self { points, stride, tiles, finish, out } = self;
        let lanes = finish.bias.len().min(BLOCK);
        let mut points = points.chunks_exact(stride);
        let points: [&[[f32; PANEL]]; POINTS] =
            std::array::from_fn(|_| points.next().unwrap_or_default().as_chunks().0);
        for (block, out) in out.iter_mut().enumerate() {
            let bias = finish.bias_of(block);
            let panel = block * BLOCK / PANEL * tiles.count();
            for lane in 0..lanes.div_ceil(S::F32_LANES) {
                let bias = S::as_simd_f32s(&bias).0[lane];
                let vector = block * BLOCK % PANEL / S::F32_LANES + lane;
                for t in 0..tiles.count() {
                    let half = output_columns(simd, &points, panel + t, vector);
                    let (y, x) = (t / tiles.across * TILE, tiles.left + t % tiles.across * TILE);
                    let whole = lanes == BLOCK && y + TILE <= tiles.rows && x + TILE <= tiles.width;
                    for i in 0..TILE.min(tiles.rows - y) {
                        let values = points::to_outputs(simd, half[i]);
                        let values = values.map(
                            #[inline(always)]
                            |value| simd.add_f32s(value, bias),
                        );
                        let row = &mut out[((y + i) * tiles.width + x) * lanes..];
                        if whole {
                            let row: &mut [[f32; BLOCK]; TILE] =
                                row.as_chunks_mut().0.first_chunk_mut().expect("a whole tile lies within its row");
                            for j in 0..TILE {
                                let held = &mut S::as_mut_simd_f32s(&mut row[j]).0[lane];
                                let onto = if ONTO { simd.add_f32s(values[j], *held) } else { values[j] };
                                *held = activate(simd, onto, activation);
                            }
                        } else {
                            for (pixel, value) in row.chunks_exact_mut(lanes).zip(values).take(tiles.width - x) {
                                let held = &mut pixel[lane * S::F32_LANES..lanes.min((lane + 1) * S::F32_LANES)];
                                let onto =
                                    if ONTO { simd.add_f32s(value, simd.partial_load_f32s(held)) } else { value };
                                simd.partial_store_f32s(held, activate(simd, onto, activation));
                            }
                        }
                    }
                }
            }
        }
    }
}

/// One tile's points to the columns of its outputs, whose rows are still to be transformed.
#[inline(always)]
fn output_columns<S: Simd>(
    simd: S,
    points: &[&[[f32; PANEL]]; POINTS],
    tile: usize,
    vector: usize,
) -> [[S::f32s; WINDOW]; TILE] {
    let mut half = [[simd.splat_f32s(0.0); WINDOW]; TILE];
    for j in 0..WINDOW {
        let mut column = [simd.splat_f32s(0.0); WINDOW];
        for i in 0..WINDOW {
            column[i] = S::as_simd_f32s(&points[i * WINDOW + j][tile]).0[vector];
        }
        let column = points::to_outputs(simd, column);
        for i in 0..TILE {
            half[i][j] = column[i];
        }
    }
    half
}
