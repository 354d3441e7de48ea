//! Single kernels of the CPU path on noise, for `benches/kernels.rs`; no part of what the engine offers.

use std::hint::black_box;

use super::gaussian;
use super::host::arena::Arena;
use super::host::attend::attend;
use super::host::convolve::HostConv;
use super::host::source::{Affine, Source};
use super::host::{HostMap, moments, stored};
use super::{Activation, Precision};

/// Groups of a norm.
const GROUPS: usize = 32;

/// A kernel as the networks use it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// 3x3 that keeps the size.
    Same,
    /// The same of a normed map, with SiLU between, added to another.
    Residual,
    /// Nearest upsampling by 2, then 3x3.
    Upsampling,
    /// 3x3 that halves the size.
    Halving,
    /// 1x1.
    Pointwise,
    /// Mean and variance of 32 groups.
    Moments,
    /// Attention of one head, keys and values as they come from their convolutions.
    Attention,
}

/// One kernel, ready to run.
pub struct Kernel {
    kind: Kind,
    x: HostMap,
    conv: HostConv,
    affine: Affine,
}

impl Kernel {
    /// For a map of `inputs` channels and `side` x `side` pixels.
    pub fn new(kind: Kind, [inputs, outputs]: [usize; 2], side: usize) -> Self {
        let [kernel, stride, around, upsample] = match kind {
            Kind::Upsampling => [3, 1, 1, 2],
            Kind::Halving => [3, 2, 1, 1],
            Kind::Pointwise => [1, 1, 0, 1],
            _ => [3, 1, 1, 1],
        };
        let weights = gaussian::normals(1, outputs * inputs * kernel * kernel);
        let (weights, bias) = (HostConv::pack(&weights, inputs, outputs, kernel), gaussian::normals(2, outputs));
        let conv = HostConv { weights, bias, inputs, kernel, stride, before: around, after: around, upsample };
        let planes = gaussian::normals(3, inputs * side * side);
        let x = HostMap::from_planes(&Arena::default(), &planes, [1, inputs, side, side], Precision::F32);
        let (scale, shift) = (vec![0.5; stored(inputs)], vec![0.1; stored(inputs)]);
        Self { kind, x, conv, affine: Affine { scale, shift, activation: Activation::Silu } }
    }

    /// Once.
    pub fn run(&self) {
        let Self { kind, x, conv, affine } = self;
        match kind {
            Kind::Moments => drop(black_box(moments::of_groups(x, GROUPS))),
            Kind::Attention => drop(black_box(attend(x, x, x))),
            Kind::Residual => {
                let source = Source { affine: Some(affine), ..Source::whole(x) };
                let onto = x.like(x.h, x.w, conv.outputs());
                drop(black_box(conv.run(&source, Some(onto), Activation::None)));
            }
            _ => drop(black_box(conv.run(&Source::whole(x), None, Activation::None))),
        }
    }

    /// Multiplications of the sums as they are defined, however they are computed; of [`Kind::Moments`] one a number.
    pub fn multiplications(&self) -> u64 {
        let (x, conv) = (&self.x, &self.conv);
        let count = match self.kind {
            Kind::Moments => x.pixels() * x.c,
            Kind::Attention => 2 * x.pixels().pow(2) * x.c,
            _ => conv.extent(x.h) * conv.extent(x.w) * conv.kernel.pow(2) * conv.inputs * conv.outputs(),
        };
        count as u64
    }
}
