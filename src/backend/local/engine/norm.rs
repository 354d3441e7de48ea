//! The one group norm, with the activation that follows it.

use candle_core::{D, DType, Tensor};
use rayon::prelude::*;

use super::EngineError;
use super::checkpoint::Scope;
use super::host::{HostMap, elementwise};
use super::map::{Activation, Map};

/// Pixels whose statistics are taken together: few enough to be in the first cache for the second look.
const PIXELS: usize = 64;

/// Group norm with its weights.
pub(super) struct GroupNorm {
    groups: usize,
    eps: f64,
    scale: Vec<f32>,
    shift: Vec<f32>,
}

/// Count, mean and sum of squared deviations of some values; two of them can be joined exactly (Chan's formula).
#[derive(Clone, Copy, Default)]
struct Moments {
    count: f64,
    mean: f64,
    deviations: f64,
}

// === impl GroupNorm ===

impl GroupNorm {
    /// Reads `weight` and `bias` of the scope.
    pub(super) fn load(scope: &Scope<'_>, channels: usize, groups: usize, eps: f64) -> Result<Self, EngineError> {
        if groups == 0 || !channels.is_multiple_of(groups) {
            return Err(EngineError::Config(format!("norm_num_groups {groups} does not divide {channels} channels")));
        }
        Ok(Self { groups, eps, scale: scope.take("weight", &[channels])?, shift: scope.take("bias", &[channels])? })
    }

    /// `activation(norm(x))`, in the buffer of `x` where that is ours.
    pub(super) fn run(&self, x: Map, activation: Activation) -> Result<Map, EngineError> {
        match x {
            Map::Host(mut x) => {
                self.on_host(&mut x, activation);
                Ok(Map::Host(x))
            }
            Map::Device(x) => Ok(Map::Device(self.on_device(&x, activation)?)),
        }
    }

    fn on_host(&self, x: &mut HostMap, activation: Activation) {
        let (c, width) = (x.c, x.c / self.groups);
        for image in x.data.chunks_exact_mut(x.h * x.w * c) {
            // Joined in the order of the chunks, whichever thread was first: equal runs give equal bits.
            let chunks: Vec<_> = image.par_chunks(PIXELS * c).map(|chunk| chunk_moments(chunk, c, width)).collect();
            let none = vec![Moments::default(); self.groups];
            let groups = chunks.iter().fold(none, |groups, chunk| join_all(groups, chunk));
            let (mut scale, mut shift) = (self.scale.clone(), self.shift.clone());
            for (channel, (a, b)) in scale.iter_mut().zip(&mut shift).enumerate() {
                let group = groups[channel / width];
                let inverse = 1.0 / (group.deviations / group.count + self.eps).sqrt();
                *a *= inverse as f32;
                *b -= group.mean as f32 * *a;
            }
            // Not rounded to the map's precision: what follows is a convolution, which reads f32 as it is.
            elementwise::affine(image, &scale, &shift, activation);
        }
    }

    fn on_device(&self, x: &Tensor, activation: Activation) -> Result<Tensor, EngineError> {
        let (n, c, h, w) = x.dims4()?;
        // Statistics in f32 whatever the precision: a sum over a whole map does not fit half precision.
        let grouped = x.to_dtype(DType::F32)?.reshape((n, self.groups, c / self.groups * h * w))?;
        let centred = grouped.broadcast_sub(&grouped.mean_keepdim(D::Minus1)?)?;
        let deviation = (centred.sqr()?.mean_keepdim(D::Minus1)? + self.eps)?.sqrt()?;
        let normed = centred.broadcast_div(&deviation)?.reshape((n, c, h, w))?;
        let scale = Tensor::from_slice(&self.scale, (1, c, 1, 1), x.device())?;
        let shift = Tensor::from_slice(&self.shift, (1, c, 1, 1), x.device())?;
        let y = normed.broadcast_mul(&scale)?.broadcast_add(&shift)?;
        Ok(activation.on_device(y)?.to_dtype(x.dtype())?)
    }
}

fn join_all(mut groups: Vec<Moments>, more: &[Moments]) -> Vec<Moments> {
    for (a, b) in groups.iter_mut().zip(more) {
        *a = a.join(*b);
    }
    groups
}

/// Moments of every group over a few pixels: sums in f32 are exact enough over so few, the joins are in f64.
fn chunk_moments(chunk: &[f32], c: usize, width: usize) -> Vec<Moments> {
    let mut sums = vec![0.0f32; c];
    for pixel in chunk.chunks_exact(c) {
        for (s, &x) in sums.iter_mut().zip(pixel) {
            *s += x;
        }
    }
    let count = (chunk.len() / c * width) as f64;
    let mut means = vec![0.0f32; c];
    for (means, sums) in means.chunks_exact_mut(width).zip(sums.chunks_exact(width)) {
        means.fill((sums.iter().map(|&s| f64::from(s)).sum::<f64>() / count) as f32);
    }
    let mut squares = vec![0.0f32; c];
    let mut rests = vec![0.0f32; c];
    for pixel in chunk.chunks_exact(c) {
        for (((s, r), &x), &m) in squares.iter_mut().zip(&mut rests).zip(pixel).zip(&means) {
            *s += (x - m) * (x - m);
            *r += x - m;
        }
    }
    let sum = |part: &[f32]| part.iter().map(|&s| f64::from(s)).sum::<f64>();
    (0..c / width)
        .map(|g| {
            let part = g * width..(g + 1) * width;
            // The mean was rounded to f32; what is left of the sum corrects both moments.
            let rest = sum(&rests[part.clone()]) / count;
            let mean = f64::from(means[part.start]) + rest;
            Moments { count, mean, deviations: (sum(&squares[part]) - count * rest * rest).max(0.0) }
        })
        .collect()
}

// === impl Moments ===

impl Moments {
    fn join(self, other: Self) -> Self {
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
