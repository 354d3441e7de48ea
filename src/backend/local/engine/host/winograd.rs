//! Winograd's F(4x4, 3x3): 36 products for 16 outputs instead of 144.
//!
//! A band of output rows is cut into blocks of 4x4 tiles small enough for the second cache. The weights are transformed
//! anew for each call: kept, they would take four times the memory of the model, and the work is small beside the rest.
//! In f32 the result differs from the direct sum by a few units in the sixth digit.

use std::cell::RefCell;

use pulp::Arch;
use rayon::prelude::*;

use super::super::Activation;
use super::convolve::HostConv;
use super::product::{BLOCK, PANEL, product};
use super::{HostMap, elementwise, with_scratch};

/// Outputs along a side of a tile.
const TILE: usize = 4;
/// Inputs along a side of a tile, and points of the transform.
const WINDOW: usize = 6;
/// Points of a transformed tile.
const POINTS: usize = WINDOW * WINDOW;
/// Tiles of a block: four register tiles of the product.
const TILES: usize = 56;
/// Below this many outputs the transform of the weights costs more than it saves.
const WORTHWHILE: usize = 256;

thread_local! {
    static WEIGHTS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Whether this convolution goes this way.
pub(in super::super) fn suits(conv: &HostConv, h: usize, w: usize) -> bool {
    let geometry = (conv.kernel, conv.stride, conv.before, conv.after) == (3, 1, 1, 1);
    geometry && conv.inputs.is_multiple_of(BLOCK) && conv.weights.columns >= BLOCK && h * w >= WORTHWHILE
}

/// `out = activation(out + conv(x))`.
pub(in super::super) fn run(conv: &HostConv, x: &HostMap, out: &mut HostMap, activation: Activation) {
    let mut weights = WEIGHTS.take();
    transform_weights(conv, &mut weights);
    let (row, columns) = (out.w * conv.weights.columns, out.w.div_ceil(TILE));
    let band = (TILES / columns).max(1) * TILE * row;
    let images = out.data.chunks_mut(out.h * row).enumerate();
    let bands: Vec<_> = images.flat_map(|(n, image)| image.chunks_mut(band).enumerate().map(move |b| (n, b))).collect();
    bands.into_par_iter().for_each(|(image, (index, out))| {
        let task = Band { conv, x, image, first: index * band / row, width: row / conv.weights.columns, activation };
        task.run(&weights, out);
    });
    WEIGHTS.set(weights);
}

/// Some rows of one output image.
struct Band<'a> {
    conv: &'a HostConv,
    x: &'a HostMap,
    image: usize,
    first: usize,
    width: usize,
    activation: Activation,
}

/// `[panels][taps x inputs][32]` to `[panels][36][inputs][32]`.
fn transform_weights(conv: &HostConv, weights: &mut Vec<f32>) {
    let inputs = conv.inputs;
    let panel_len = POINTS * inputs * PANEL;
    let panels: Vec<&[f32]> = conv.weights.panels().collect();
    if weights.len() < panels.len() * panel_len {
        weights.resize(panels.len() * panel_len, 0.0);
    }
    weights.par_chunks_mut(panel_len).zip(panels).for_each(|(to, from)| {
        let (from, to) = (from.as_chunks::<PANEL>().0, to.as_chunks_mut::<PANEL>().0);
        Arch::new().dispatch(
            #[inline(always)]
            || {
                for c in 0..inputs {
                    let mut half = [[[0.0; PANEL]; 3]; WINDOW];
                    for j in 0..3 {
                        for l in 0..PANEL {
                            let column = kernel_points(
                                from[j * inputs + c][l],
                                from[(3 + j) * inputs + c][l],
                                from[(6 + j) * inputs + c][l],
                            );
                            for i in 0..WINDOW {
                                half[i][j][l] = column[i];
                            }
                        }
                    }
                    for (i, half) in half.iter().enumerate() {
                        for l in 0..PANEL {
                            let row = kernel_points(half[0][l], half[1][l], half[2][l]);
                            for j in 0..WINDOW {
                                to[(i * WINDOW + j) * inputs + c][l] = row[j];
                            }
                        }
                    }
                }
            },
        );
    });
}

/// Three taps at the six points.
#[inline(always)]
fn kernel_points(a: f32, b: f32, c: f32) -> [f32; WINDOW] {
    let (s, t) = (a + c, a / 24.0 + c / 6.0);
    [a / 4.0, (s + b) / -6.0, (s - b) / -6.0, t + b / 12.0, t - b / 12.0, c]
}

/// Six inputs at the six points.
#[inline(always)]
fn input_points(d: [f32; WINDOW]) -> [f32; WINDOW] {
    let (a, b, c, e) = (d[4] - 4.0 * d[2], d[3] - 4.0 * d[1], d[4] - d[2], 2.0 * (d[3] - d[1]));
    [4.0 * d[0] - 5.0 * d[2] + d[4], a + b, a - b, c + e, c - e, 4.0 * d[1] - 5.0 * d[3] + d[5]]
}

/// Six points to four outputs.
#[inline(always)]
fn outputs(m: [f32; WINDOW]) -> [f32; TILE] {
    let (a, b, c, d) = (m[1] + m[2], m[1] - m[2], m[3] + m[4], m[3] - m[4]);
    [m[0] + a + c, b + 2.0 * d, a + 4.0 * c, b + 8.0 * d + m[5]]
}

// === impl Band ===

impl Band<'_> {
    fn run(&self, weights: &[f32], out: &mut [f32]) {
        let (inputs, columns) = (self.conv.inputs, self.width.div_ceil(TILE));
        let all = out.len() / (self.width * self.conv.weights.columns);
        let all = all.div_ceil(TILE) * columns;
        for start in (0..all).step_by(TILES) {
            let tiles = TILES.min(all - start);
            with_scratch(POINTS * tiles * (inputs + PANEL), |scratch| {
                let (v, m) = scratch.split_at_mut(POINTS * tiles * inputs);
                Arch::new().dispatch(
                    #[inline(always)]
                    || self.transform_inputs(start, tiles, v),
                );
                let panels =
                    weights.chunks_exact(POINTS * inputs * PANEL).take(self.conv.weights.columns.div_ceil(PANEL));
                for (p, u) in panels.enumerate() {
                    let (v, u) = (v.chunks_exact(tiles * inputs), u.chunks_exact(inputs * PANEL));
                    for ((v, u), m) in v.zip(u).zip(m.chunks_exact_mut(tiles * PANEL)) {
                        product(v, u, m);
                    }
                    Arch::new().dispatch(
                        #[inline(always)]
                        || self.transform_outputs(start, p, m, out),
                    );
                }
            });
        }
    }

    /// Writes `[36][inputs / 16][tiles][16]`.
    #[inline(always)]
    fn transform_inputs(&self, start: usize, tiles: usize, v: &mut [f32]) {
        let (x, up, columns) = (self.x, self.conv.upsample, self.width.div_ceil(TILE));
        let blocks = self.conv.inputs / BLOCK;
        let v = v.as_chunks_mut::<BLOCK>().0;
        for t in 0..tiles {
            let (top, left) = (self.first + (start + t) / columns * TILE, (start + t) % columns * TILE);
            for block in 0..blocks {
                let mut window = [[[0.0; BLOCK]; WINDOW]; WINDOW];
                for (i, row) in window.iter_mut().enumerate() {
                    let y = (top + i).wrapping_sub(1);
                    for (j, pixel) in row.iter_mut().enumerate() {
                        let column = (left + j).wrapping_sub(1);
                        if y < x.h * up && column < x.w * up {
                            let at = ((self.image * x.h + y / up) * x.w + column / up) * x.c + block * BLOCK;
                            pixel.copy_from_slice(&x.data[at..at + BLOCK]);
                        }
                    }
                }
                let mut half = [[[0.0; BLOCK]; WINDOW]; WINDOW];
                for j in 0..WINDOW {
                    for l in 0..BLOCK {
                        let points = input_points(std::array::from_fn(|i| window[i][j][l]));
                        for i in 0..WINDOW {
                            half[i][j][l] = points[i];
                        }
                    }
                }
                for (i, half) in half.iter().enumerate() {
                    let mut points = [[0.0; BLOCK]; WINDOW];
                    for l in 0..BLOCK {
                        let row = input_points(std::array::from_fn(|j| half[j][l]));
                        for j in 0..WINDOW {
                            points[j][l] = row[j];
                        }
                    }
                    for (j, points) in points.iter().enumerate() {
                        v[((i * WINDOW + j) * blocks + block) * tiles + t] = *points;
                    }
                }
            }
        }
    }

    /// Adds `[36][tiles][32]` of panel `p` and the bias to the output.
    #[inline(always)]
    fn transform_outputs(&self, start: usize, p: usize, m: &[f32], out: &mut [f32]) {
        let (channels, columns) = (self.conv.weights.columns, self.width.div_ceil(TILE));
        let (rows, lanes) = (out.len() / (self.width * channels), PANEL.min(channels - p * PANEL));
        let bias = &self.conv.bias[p * PANEL..][..lanes];
        let m = m.as_chunks::<PANEL>().0;
        let tiles = m.len() / POINTS;
        for t in 0..tiles {
            let (top, left) = ((start + t) / columns * TILE, (start + t) % columns * TILE);
            let mut half = [[[0.0; PANEL]; WINDOW]; TILE];
            for j in 0..WINDOW {
                let column: [&[f32; PANEL]; WINDOW] = std::array::from_fn(|i| &m[(i * WINDOW + j) * tiles + t]);
                for l in 0..PANEL {
                    let points = outputs(std::array::from_fn(|i| column[i][l]));
                    for i in 0..TILE {
                        half[i][j][l] = points[i];
                    }
                }
            }
            for (i, half) in half.iter().enumerate().take(rows - top.min(rows)) {
                let mut pixels = [[0.0; PANEL]; TILE];
                for l in 0..PANEL {
                    let points = outputs(std::array::from_fn(|j| half[j][l]));
                    for j in 0..TILE {
                        pixels[j][l] = points[j];
                    }
                }
                for (j, pixel) in pixels.iter().enumerate().take(self.width - left) {
                    let at = ((top + i) * self.width + left + j) * channels + p * PANEL;
                    for ((y, &v), &b) in out[at..at + lanes].iter_mut().zip(pixel).zip(bias) {
                        *y = elementwise::activate(*y + v + b, self.activation);
                    }
                }
            }
        }
    }
}
