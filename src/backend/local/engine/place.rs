//! Where the engine computes, and in what precision.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

use super::EngineError;
use super::cuda::Machine;

/// Where computing happens: `cpu`, `cuda`, `cuda:1`, `metal`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Device {
    /// This machine's processors, through the kernels here.
    Cpu,
    /// An NVIDIA GPU by its ordinal; needs the cargo feature `cudnn`, or `cuda` to compute through candle.
    Cuda(usize),
    /// Apple's GPU, through candle; needs the cargo feature `metal`.
    Metal,
}

/// Type of the activations between layers.
///
/// On the CPU layers compute in f32 and each residual or attention block rounds its result to this type; sums in norms
/// and attention are f32 or wider on every device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// IEEE 754 single.
    F32,
    /// IEEE 754 half.
    F16,
    /// Upper half of a single.
    BF16,
}

/// No name of a device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no device: cpu, cuda, cuda:N or metal")]
pub struct ParseDeviceError(String);

/// An opened device other than the CPU.
#[derive(Clone)]
pub(super) enum Accelerator {
    /// Whatever candle computes on.
    Candle(candle_core::Device),
    /// An NVIDIA GPU, through the kernels here and cuDNN.
    Cuda(Arc<Machine>),
}

/// An opened device and the precision of a model on it; without one the CPU kernels here are meant.
#[derive(Clone)]
pub(super) struct Site {
    pub(super) device: Option<Accelerator>,
    pub(super) precision: Precision,
}

// === impl Device ===

impl Device {
    /// Opens the device where it is not the CPU.
    pub(super) fn open(self) -> Result<Option<Accelerator>, EngineError> {
        Ok(match self {
            Self::Cpu => None,
            Self::Cuda(ordinal) if cfg!(feature = "cudnn") => Some(Accelerator::Cuda(Machine::open(ordinal)?)),
            Self::Cuda(ordinal) => Some(Accelerator::Candle(candle_core::Device::new_cuda(ordinal)?)),
            Self::Metal => Some(Accelerator::Candle(candle_core::Device::new_metal(0)?)),
        })
    }
}

impl FromStr for Device {
    type Err = ParseDeviceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            "metal" => Ok(Self::Metal),
            _ => match text.strip_prefix("cuda:").map(str::parse) {
                Some(Ok(ordinal)) => Ok(Self::Cuda(ordinal)),
                _ => Err(ParseDeviceError(text.to_owned())),
            },
        }
    }
}

impl TryFrom<String> for Device {
    type Error = ParseDeviceError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Device> for String {
    fn from(device: Device) -> Self {
        device.to_string()
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
            Self::Metal => f.write_str("metal"),
        }
    }
}

// === impl Precision ===

impl Precision {
    /// Bytes of one value.
    pub(super) fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
        }
    }
}

// === impl Site ===

impl Site {
    /// Bytes of one weight: the CPU kernels keep f32.
    pub(super) fn weight_bytes(&self) -> u64 {
        let kept = if self.device.is_none() { Precision::F32 } else { self.precision };
        kept.bytes() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_have_names() {
        for (text, device) in [("cpu", Device::Cpu), ("cuda:0", Device::Cuda(0)), ("cuda:3", Device::Cuda(3))] {
            assert_eq!(text.parse(), Ok(device));
            assert_eq!(device.to_string(), text);
        }
        assert_eq!("cuda".parse(), Ok(Device::Cuda(0)));
        assert_eq!("metal".parse(), Ok(Device::Metal));
        for text in ["", "gpu", "cuda:", "cuda:x", "CPU"] {
            assert!(text.parse::<Device>().unwrap_err().to_string().contains("is no device"), "{text}");
        }
    }
}
