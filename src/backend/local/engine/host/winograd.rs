//! Winograd's F(4x4, 3x3): 36 products for 16 outputs instead of 144.
//!
//! A band of output rows is one task; its tiles are worked off in blocks whose transformed numbers stay in the caches. The
//! weights are transformed anew for each call: kept, they would take four times the memory of the model, and the work is
//! small beside the rest. In f32 the result differs from the direct sum by a few units in the sixth digit, and is the same
//! however the map is cut.

mod points;
mod transform;

use rayon::prelude::*;

use self::transform::{Inputs, Outputs, Weights};
use super::arena::{Arena, Buffer};
use super::convolve::{Finish, HostConv};
use super::product::{PANEL, product};
use super::simd::{BLOCK, arch};
use super::source::Source;
use super::{HostMap, Part, stored};

/// Outputs along a side of a tile.
pub(in super::super) const TILE: usize = 4;
/// Inputs along a side of a tile, and points of the transform.
const WINDOW: usize = 6;
/// Points of a transformed tile.
const POINTS: usize = WINDOW * WINDOW;
/// Tiles of a block: six register tiles of the product. Fewer read the weights from memory too often, more leave the caches.
const TILES: usize = 84;
/// Bands for each thread that there are at least, if the map has them: what one thread is late the others make up for.
const BANDS: usize = 2;
/// Below this many outputs the transform of the weights costs more than it saves.
const WORTHWHILE: usize = 256;

/// Tiles of one image that are transformed together.
#[derive(Clone, Copy)]
struct Tiles {
    image: usize,
    /// Rows and columns of tiles.
    down: usize,
    across: usize,
    /// The output of the first one, in the whole picture.
    top: usize,
    left: usize,
    /// Size of the part that the outputs go to, of which `top` is the first row.
    rows: usize,
    width: usize,
}

/// Lengths of what a block of tiles needs, in floats.
struct Lengths {
    depth: usize,
    patch: usize,
    /// Of one point of the inputs and of the outputs. A line stands between points: with powers of two all points of a
    /// tile would share one set of the caches.
    inputs: usize,
    outputs: usize,
}

/// How a map is cut: rows of tiles of a band, and columns of tiles of a block.
struct Cut {
    band: usize,
    across: usize,
}

/// Whether this convolution goes this way.
pub(super) fn suits(conv: &HostConv, h: usize, w: usize) -> bool {
    (conv.kernel, conv.stride, conv.before, conv.after) == (3, 1, 1, 1) && h * w >= WORTHWHILE
}

/// `out = activation(out + conv(x))`, or without what `out` held, which are rows `top..` of the whole output.
pub(super) fn run(conv: &HostConv, x: &Source<'_>, top: usize, out: &mut HostMap, finish: Finish<'_>) {
    let cut = Cut::of(out.h, out.w);
    let arena = x.map.arena().clone();
    let weights = transform_weights(conv, &arena);
    let scratch = Lengths::of(conv, cut.band, cut.across).all();
    if arena.rehearses() {
        arena.note_scratch(scratch);
        return;
    }
    let (height, width) = (out.h, out.w);
    let bands = height.div_ceil(cut.band * TILE);
    out.parts(cut.band * TILE * width).into_par_iter().enumerate().for_each(|(task, mut out)| {
        let mut scratch = arena.scratch(scratch);
        let (image, above) = (task / bands, task % bands * cut.band * TILE);
        let (rows, columns) = ((height - above).min(cut.band * TILE), width.div_ceil(TILE));
        for first in (0..columns).step_by(cut.across) {
            let (down, across) = (rows.div_ceil(TILE), cut.across.min(columns - first));
            let tiles = Tiles { image, down, across, top: top + above, left: first * TILE, rows, width };
            let block = Block { conv, x, tiles, finish };
            block.run(&weights, &mut scratch, &mut out);
        }
    });
}

/// `[panels][9 x stored][32]` to `[panels][36][depth][32]`.
fn transform_weights(conv: &HostConv, arena: &Arena) -> Buffer {
    let stored = stored(conv.inputs);
    let panel = POINTS * stored.next_multiple_of(BLOCK) * PANEL;
    let panels: Vec<&[f32]> = conv.weights.panels().collect();
    let mut weights = arena.take(panels.len() * panel);
    weights.par_chunks_mut(panel).zip(panels).for_each(|(points, taps)| {
        arch().dispatch(Weights { taps: taps.as_chunks().0, stored, points: points.as_chunks_mut().0 });
    });
    weights
}

/// Some tiles of one convolution.
struct Block<'a> {
    conv: &'a HostConv,
    x: &'a Source<'a>,
    tiles: Tiles,
    finish: Finish<'a>,
}

// === impl Block ===

impl Block<'_> {
    fn run(&self, weights: &[f32], scratch: &mut [f32], out: &mut Part<'_>) {
        let Self { conv, x, tiles, finish } = *self;
        let count = tiles.count();
        let Lengths { depth, patch, inputs, outputs } = Lengths::of(conv, tiles.down, tiles.across);
        let (patch, rest) = scratch.split_at_mut(patch);
        let (v, rest) = rest.split_at_mut(POINTS * inputs);
        let m = &mut rest[..POINTS * outputs];
        arch().dispatch(Inputs {
            x,
            upsample: conv.upsample,
            tiles,
            patch: patch.as_chunks_mut().0,
            points: v,
            stride: inputs,
        });
        for (point, (v, m)) in v.chunks_exact(inputs).zip(m.chunks_exact_mut(outputs)).enumerate() {
            let panels = weights.chunks_exact(POINTS * depth * PANEL);
            for (u, m) in panels.zip(m.chunks_exact_mut(count * PANEL)) {
                product((v, count), &u[point * depth * PANEL..][..depth * PANEL], m);
            }
        }
        arch().dispatch(Outputs { points: m, stride: outputs, tiles, finish, out });
    }
}

// === impl Tiles ===

impl Tiles {
    fn count(&self) -> usize {
        self.down * self.across
    }
}

// === impl Lengths ===

impl Lengths {
    fn of(conv: &HostConv, down: usize, across: usize) -> Self {
        let depth = stored(conv.inputs).next_multiple_of(BLOCK);
        let (tiles, outputs) = (down * across, conv.weights.columns.next_multiple_of(PANEL));
        Self {
            depth,
            patch: (down * TILE + 2) * (across * TILE + 2) * BLOCK,
            inputs: tiles * depth + BLOCK,
            outputs: tiles * outputs + PANEL,
        }
    }

    fn all(&self) -> usize {
        self.patch + POINTS * (self.inputs + self.outputs)
    }
}

// === impl Cut ===

impl Cut {
    /// The bits of a result do not depend on it, so it may depend on the machine.
    fn of(h: usize, w: usize) -> Self {
        let (tall, wide) = (h.div_ceil(TILE), w.div_ceil(TILE));
        if wide > TILES {
            return Self { band: 1, across: wide.div_ceil(wide.div_ceil(TILES)) };
        }
        let fair = tall.div_ceil(BANDS * rayon::current_num_threads());
        Self { band: (TILES / wide).min(fair).max(1), across: wide }
    }
}
