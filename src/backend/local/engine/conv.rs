//! The one convolution: ours on the CPU, cuDNN's on an NVIDIA GPU, candle's elsewhere.

use candle_core::Tensor;

use super::EngineError;
use super::checkpoint::Scope;
use super::cuda::CudaConv;
use super::host::convolve::HostConv;
use super::host::source::Source;
use super::map::{Activation, Map, candle_dtype};
use super::norm::GroupNorm;
use super::place::Accelerator;

/// Geometry of a convolution; padding is by zeros.
#[derive(Clone, Copy, Debug)]
pub(super) struct Geometry {
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    pub(super) kernel: usize,
    pub(super) stride: usize,
    /// Zeros before the first row and column.
    pub(super) before: usize,
    /// Zeros after the last row and column.
    pub(super) after: usize,
    /// Nearest-neighbour upsampling before the convolution; 1 is none.
    pub(super) upsample: usize,
}

/// Whether a convolution has a bias in its checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bias {
    Present,
    Absent,
}

/// A norm before a convolution, and the activation between them.
pub(super) struct Normed {
    pub(super) norm: GroupNorm,
    pub(super) activation: Activation,
}

/// A convolution with its weights.
pub(super) enum Conv {
    Host(HostConv),
    Device { geometry: Geometry, weight: Tensor, bias: Option<Tensor> },
    Cuda(CudaConv),
}

// === impl Geometry ===

impl Geometry {
    /// 3x3 that keeps the size.
    pub(super) fn same(inputs: usize, outputs: usize) -> Self {
        Self { inputs, outputs, kernel: 3, stride: 1, before: 1, after: 1, upsample: 1 }
    }

    /// 1x1.
    pub(super) fn pointwise(inputs: usize, outputs: usize) -> Self {
        Self { kernel: 1, before: 0, after: 0, ..Self::same(inputs, outputs) }
    }

    /// 3x3 that halves the size, padded on both sides.
    pub(super) fn halving(channels: usize) -> Self {
        Self { stride: 2, ..Self::same(channels, channels) }
    }

    /// 3x3 that halves the size, padded on the right and the bottom only, as `AutoencoderKL` does.
    pub(super) fn halving_after(channels: usize) -> Self {
        Self { stride: 2, before: 0, ..Self::same(channels, channels) }
    }

    /// Upsampling by `factor`, then a 3x3.
    pub(super) fn upsampling(channels: usize, factor: usize) -> Self {
        Self { upsample: factor, ..Self::same(channels, channels) }
    }
}

// === impl Conv ===

impl Conv {
    /// Reads `weight` and `bias` of the scope.
    pub(super) fn load(scope: &Scope<'_>, geometry: Geometry, bias: Bias) -> Result<Self, EngineError> {
        let Geometry { inputs, outputs, kernel, .. } = geometry;
        let weight = scope.take_conv("weight", [outputs, inputs, kernel, kernel])?;
        let bias = match bias {
            Bias::Present => Some(scope.take("bias", &[outputs])?),
            Bias::Absent => None,
        };
        let site = scope.site();
        if let Some(Accelerator::Cuda(machine)) = &site.device {
            let place = (geometry, site.precision);
            return Ok(Self::Cuda(CudaConv::load(machine, place, &weight, bias.as_deref())?));
        }
        if let Some(Accelerator::Candle(device)) = &site.device {
            let dtype = candle_dtype(site.precision);
            let weight = Tensor::from_vec(weight, (outputs, inputs, kernel, kernel), device)?.to_dtype(dtype)?;
            let bias = bias.map(|b| Tensor::from_vec(b, (1, outputs, 1, 1), device)?.to_dtype(dtype)).transpose()?;
            return Ok(Self::Device { geometry, weight, bias });
        }
        Ok(Self::Host(HostConv {
            weights: HostConv::pack(&weight, inputs, outputs, kernel),
            bias: bias.unwrap_or_else(|| vec![0.0; outputs]),
            inputs,
            kernel,
            stride: geometry.stride,
            before: geometry.before,
            after: geometry.after,
            upsample: geometry.upsample,
        }))
    }

    /// `activation(conv(x))`.
    pub(super) fn run(&self, x: &Map, activation: Activation) -> Result<Map, EngineError> {
        self.run_onto(x, None, None, activation)
    }

    /// `conv(x)`, in the buffer of `x` where it has room.
    pub(super) fn run_over(&self, x: Map) -> Result<Map, EngineError> {
        match (self, x) {
            (Self::Host(conv), Map::Host(x)) => Ok(Map::Host(conv.run_over(x))),
            (_, x) => self.run(&x, Activation::None),
        }
    }

    /// `activation(conv(norm(x)) + onto)`, with the norm's own activation.
    pub(super) fn run_onto(
        &self,
        x: &Map,
        norm: Option<&Normed>,
        onto: Option<Map>,
        activation: Activation,
    ) -> Result<Map, EngineError> {
        match (self, x, onto) {
            (Self::Host(conv), Map::Host(x), onto @ (None | Some(Map::Host(_)))) => {
                let affine = norm.map(|normed| normed.norm.affine_of(x, normed.activation));
                let source = Source { affine: affine.as_ref(), ..Source::whole(x) };
                let onto = onto.and_then(Map::into_host);
                Ok(Map::Host(conv.run(&source, onto, activation)))
            }
            (Self::Device { geometry, weight, bias }, Map::Device(x), onto @ (None | Some(Map::Device(_)))) => {
                let normed = norm.map(|normed| normed.norm.on_device(x, normed.activation)).transpose()?;
                let mut y = on_device(normed.as_ref().unwrap_or(x), weight, *geometry)?;
                if let Some(bias) = bias {
                    y = y.broadcast_add(bias)?;
                }
                if let Some(Map::Device(onto)) = onto {
                    y = (y + onto)?;
                }
                Ok(Map::Device(activation.on_device(y)?))
            }
            (Self::Cuda(conv), Map::Cuda(x), onto @ (None | Some(Map::Cuda(_)))) => {
                let normed = norm.map(|normed| normed.norm.on_cuda(x, normed.activation)).transpose()?;
                let onto = onto.and_then(Map::into_cuda);
                Ok(Map::Cuda(conv.run(normed.as_ref().unwrap_or(x), onto, activation)?))
            }
            _ => Err(EngineError::Place),
        }
    }

    /// Ours, where it is.
    pub(super) fn host(&self) -> Result<&HostConv, EngineError> {
        match self {
            Self::Host(conv) => Ok(conv),
            Self::Device { .. } | Self::Cuda(_) => Err(EngineError::Place),
        }
    }
}

fn on_device(x: &Tensor, weight: &Tensor, geometry: Geometry) -> Result<Tensor, EngineError> {
    let Geometry { before, after, upsample, stride, .. } = geometry;
    let mut x = x.clone();
    if upsample > 1 {
        let (_, _, h, w) = x.dims4()?;
        x = x.upsample_nearest2d(h * upsample, w * upsample)?;
    }
    if before == after {
        return Ok(x.conv2d(weight, before, stride, 1, 1)?);
    }
    let x = x.pad_with_zeros(2, before, after)?.pad_with_zeros(3, before, after)?;
    Ok(x.conv2d(weight, 0, stride, 1, 1)?)
}
