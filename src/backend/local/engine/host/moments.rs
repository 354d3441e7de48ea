//! Mean and variance of groups of channels, in one look at a map.
//!
//! Sums in f32 are exact enough over the few pixels of a run; runs are joined in f64, in their order, whichever thread was
//! first: equal maps give equal bits.

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::HostMap;
use super::simd::{BLOCK, arch};

/// Pixels of a run: 16 KiB, in the first cache for the second look.
const PIXELS: usize = 256;
/// Runs a task.
const RUNS: usize = 16;

/// Count, mean and sum of squared deviations of some values; two of them can be joined exactly (Chan's formula).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(in super::super) struct Moments {
    pub(in super::super) count: f64,
    pub(in super::super) mean: f64,
    pub(in super::super) deviations: f64,
}

/// Of each group of every image, `[n][groups]`, where a group is `c / groups` channels. A rehearsal's are of no values.
pub(in super::super) fn of_groups(map: &HostMap, groups: usize) -> Vec<Moments> {
    let (lanes, blocks, width) = (map.lanes(), map.blocks(), map.c / groups);
    let block_len = map.pixels() * lanes;
    let channels: Vec<[Moments; BLOCK]> = map.data.par_chunks(block_len).map(|block| of_block(block, lanes)).collect();
    let mut result = vec![Moments::default(); map.n * groups];
    for (index, channels) in channels.iter().enumerate() {
        let first = index % blocks * BLOCK;
        for (channel, moments) in (first..map.c).zip(channels) {
            let group = &mut result[index / blocks * groups + channel / width];
            *group = group.join(*moments);
        }
    }
    result
}

/// Of each channel of a block.
fn of_block(block: &[f32], lanes: usize) -> [Moments; BLOCK] {
    let parts: Vec<[Moments; BLOCK]> =
        block.par_chunks(RUNS * PIXELS * lanes).map(|part| of_part(part, lanes)).collect();
    parts.iter().fold([Moments::default(); BLOCK], |sums, part| join_all(&sums, part))
}

fn of_part(part: &[f32], lanes: usize) -> [Moments; BLOCK] {
    let mut sums = [Moments::default(); BLOCK];
    for run in part.chunks(PIXELS * lanes) {
        let moments = if lanes == BLOCK {
            arch().dispatch(Run(run.as_chunks().0))
        } else {
            let mut wide = vec![[0.0; BLOCK]; run.len() / lanes];
            for (wide, pixel) in wide.iter_mut().zip(run.chunks_exact(lanes)) {
                wide[..lanes].copy_from_slice(pixel);
            }
            arch().dispatch(Run(&wide))
        };
        sums = join_all(&sums, &moments);
    }
    sums
}

fn join_all(a: &[Moments; BLOCK], b: &[Moments; BLOCK]) -> [Moments; BLOCK] {
    std::array::from_fn(|lane| a[lane].join(b[lane]))
}

/// The pixels of one run.
struct Run<'a>(&'a [[f32; BLOCK]]);

impl WithSimd for Run<'_> {
    type Output = [Moments; BLOCK];

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Self::Output {
        let count = self.0.len() as f64;
        let (mut means, mut squares, mut rests) = ([0.0; BLOCK], [0.0; BLOCK], [0.0; BLOCK]);
        for lane in 0..BLOCK / S::F32_LANES {
            let mut sum = simd.splat_f32s(0.0);
            for pixel in self.0 {
                sum = simd.add_f32s(sum, S::as_simd_f32s(pixel).0[lane]);
            }
            let mean = simd.mul_f32s(sum, simd.splat_f32s(1.0 / count as f32));
            S::as_mut_simd_f32s(&mut means).0[lane] = mean;
            let (mut square, mut rest) = (simd.splat_f32s(0.0), simd.splat_f32s(0.0));
            for pixel in self.0 {
                let apart = simd.sub_f32s(S::as_simd_f32s(pixel).0[lane], mean);
                square = simd.mul_add_e_f32s(apart, apart, square);
                rest = simd.add_f32s(rest, apart);
            }
            S::as_mut_simd_f32s(&mut squares).0[lane] = square;
            S::as_mut_simd_f32s(&mut rests).0[lane] = rest;
        }
        std::array::from_fn(|lane| {
            // The mean was rounded to f32; what is left of the sum corrects both moments.
            let rest = f64::from(rests[lane]) / count;
            let deviations = f64::from(squares[lane]) - count * rest * rest;
            Moments { count, mean: f64::from(means[lane]) + rest, deviations: deviations.max(0.0) }
        })
    }
}

// === impl Moments ===

impl Moments {
    /// What is taken off, and what is multiplied, to bring the values to mean 0 and variance 1.
    pub(in super::super) fn standard(&self, eps: f64) -> (f32, f32) {
        (self.mean as f32, (1.0 / (self.deviations / self.count + eps).sqrt()) as f32)
    }

    /// Of both together.
    pub(in super::super) fn join(self, other: Self) -> Self {
        if self.count == 0.0 {
            return other;
        }
        if other.count == 0.0 {
            return self;
        }
        let count = self.count + other.count;
        let apart = other.mean - self.mean;
        Self {
            count,
            mean: self.mean + apart * other.count / count,
            deviations: self.deviations + other.deviations + apart * apart * self.count * other.count / count,
        }
    }
}
