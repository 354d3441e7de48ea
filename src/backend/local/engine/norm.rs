//! The one group norm, with the activation that follows it.

use candle_core::{D, DType, Tensor};

use super::EngineError;
use super::checkpoint::Scope;
use super::cuda::{CudaMap, CudaNorm};
use super::host::moments::{self, Moments};
use super::host::source::{Affine, Source};
use super::host::{HostMap, stored};
use super::map::{Activation, Map};
use super::place::Accelerator;

/// Group norm with its weights.
pub(super) struct GroupNorm {
    groups: usize,
    eps: f64,
    scale: Vec<f32>,
    shift: Vec<f32>,
    /// The same on an NVIDIA GPU, if there the model is.
    on_cuda: Option<CudaNorm>,
}

// === impl GroupNorm ===

impl GroupNorm {
    /// Reads `weight` and `bias` of the scope.
    pub(super) fn load(scope: &Scope<'_>, channels: usize, groups: usize, eps: f64) -> Result<Self, EngineError> {
        if groups == 0 || !channels.is_multiple_of(groups) {
            return Err(EngineError::Config(format!("norm_num_groups {groups} does not divide {channels} channels")));
        }
        let (scale, shift) = (scope.take("weight", &[channels])?, scope.take("bias", &[channels])?);
        let on_cuda = match &scope.site().device {
            Some(Accelerator::Cuda(machine)) => Some(CudaNorm::load(machine, (groups, eps), &scale, &shift)?),
            _ => None,
        };
        Ok(Self { groups, eps, scale, shift, on_cuda })
    }

    /// `activation(norm(x))`, as numbers of a map here or as a tensor there.
    pub(super) fn apply(&self, x: &Map, activation: Activation) -> Result<Map, EngineError> {
        match x {
            Map::Host(map) => {
                let affine = self.affine_of(map, activation);
                Ok(Map::Host(Source { affine: Some(&affine), ..Source::whole(map) }.materialise()))
            }
            Map::Device(x) => Ok(Map::Device(self.on_device(x, activation)?)),
            Map::Cuda(x) => Ok(Map::Cuda(self.on_cuda(x, activation)?)),
        }
    }

    /// What the convolution does that reads `activation(norm(x))`: nothing is written, the numbers are made as they are
    /// read.
    pub(super) fn affine_of(&self, x: &HostMap, activation: Activation) -> Affine {
        self.affine(&moments::of_groups(x, self.groups), activation)
    }

    /// The same from the moments `[n][groups]` of an `x` that is nowhere whole.
    pub(super) fn affine(&self, groups: &[Moments], activation: Activation) -> Affine {
        let (stored, width) = (stored(self.scale.len()), self.scale.len() / self.groups);
        let images = groups.len() / self.groups;
        let (mut scale, mut shift) = (vec![0.0; images * stored], vec![0.0; images * stored]);
        for (image, groups) in groups.chunks_exact(self.groups).enumerate() {
            for (channel, (&a, &b)) in self.scale.iter().zip(&self.shift).enumerate() {
                let (mean, inverse) = groups[channel / width].standard(self.eps);
                let at = image * stored + channel;
                scale[at] = a * inverse;
                shift[at] = b - mean * scale[at];
            }
        }
        // Not rounded to the map's precision: what follows is a convolution, which reads f32 as it is.
        Affine { scale, shift, activation }
    }

    /// Groups of the channels.
    pub(super) fn groups(&self) -> usize {
        self.groups
    }

    pub(super) fn on_cuda(&self, x: &CudaMap, activation: Activation) -> Result<CudaMap, EngineError> {
        self.on_cuda.as_ref().ok_or(EngineError::Place)?.apply(x, activation)
    }

    pub(super) fn on_device(&self, x: &Tensor, activation: Activation) -> Result<Tensor, EngineError> {
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
