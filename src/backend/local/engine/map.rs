//! A feature map on its way through a network, on the CPU, on an NVIDIA GPU or on what candle knows.

use candle_core::{DType, Tensor};

use super::cuda::CudaMap;
use super::host::HostMap;
use super::host::arena::Arena;
use super::place::Accelerator;
use super::{EngineError, Precision, Site};

/// Activations between two layers.
pub(super) enum Map {
    /// Ours, in blocks of channels.
    Host(HostMap),
    /// candle's, `[n, c, h, w]`.
    Device(Tensor),
    /// On an NVIDIA GPU, channels last.
    Cuda(CudaMap),
}

/// What follows a layer at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Activation {
    None,
    Relu,
    Silu,
}

/// candle's name of a precision.
pub(super) fn candle_dtype(precision: Precision) -> DType {
    match precision {
        Precision::F32 => DType::F32,
        Precision::F16 => DType::F16,
        Precision::BF16 => DType::BF16,
    }
}

// === impl Map ===

impl Map {
    /// From row-major `[n, c, h, w]` in f32; on an accelerator rounded to the site's precision.
    pub(super) fn from_planes(
        planes: &[f32],
        dims: [usize; 4],
        site: &Site,
        arena: &Arena,
    ) -> Result<Self, EngineError> {
        match &site.device {
            None => Ok(Self::Host(HostMap::from_planes(arena, planes, dims, site.precision))),
            Some(Accelerator::Cuda(machine)) => {
                Ok(Self::Cuda(CudaMap::from_planes(machine, planes, dims, site.precision)?))
            }
            Some(Accelerator::Candle(device)) => {
                let tensor = Tensor::from_slice(planes, dims.as_slice(), device)?;
                Ok(Self::Device(tensor.to_dtype(candle_dtype(site.precision))?))
            }
        }
    }

    /// The same in no more memory than it needs.
    pub(super) fn trimmed(self) -> Self {
        match self {
            Self::Host(map) => Self::Host(map.trimmed()),
            Self::Device(_) | Self::Cuda(_) => self,
        }
    }

    /// Ours, if it is.
    pub(super) fn into_host(self) -> Option<HostMap> {
        match self {
            Self::Host(map) => Some(map),
            Self::Device(_) | Self::Cuda(_) => None,
        }
    }

    /// That of the GPU, if it is.
    pub(super) fn into_cuda(self) -> Option<CudaMap> {
        match self {
            Self::Cuda(map) => Some(map),
            Self::Host(_) | Self::Device(_) => None,
        }
    }

    /// To row-major `[n, c, h, w]` in f32 and these dimensions.
    pub(super) fn into_planes(self) -> Result<(Vec<f32>, [usize; 4]), EngineError> {
        match self {
            Self::Host(map) => Ok((map.to_planes(), [map.n, map.c, map.h, map.w])),
            Self::Device(tensor) => {
                let (n, c, h, w) = tensor.dims4()?;
                Ok((tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?, [n, c, h, w]))
            }
            Self::Cuda(map) => map.to_planes(),
        }
    }
}

// === impl Activation ===

impl Activation {
    /// As kernels know it.
    pub(super) fn code(self) -> i32 {
        match self {
            Self::None => 0,
            Self::Relu => 1,
            Self::Silu => 2,
        }
    }

    /// Applied to a candle tensor.
    pub(super) fn on_device(self, x: Tensor) -> Result<Tensor, EngineError> {
        Ok(match self {
            Self::None => x,
            Self::Relu => x.relu()?,
            Self::Silu => x.silu()?,
        })
    }
}
