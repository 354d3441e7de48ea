//! Weights by name: a safetensors file read one tensor at a time, scoped by the checkpoint's own paths.

use std::cell::Cell;

use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors};

use super::{EngineError, Site};

/// An opened safetensors file, and how much of it was taken.
pub(super) struct Weights<'a> {
    tensors: SafeTensors<'a>,
    site: Site,
    parameters: Cell<u64>,
    bytes: Cell<u64>,
}

/// A path within the checkpoint, as in `decoder.mid_block`.
pub(super) struct Scope<'a> {
    weights: &'a Weights<'a>,
    prefix: String,
}

// === impl Weights ===

impl<'a> Weights<'a> {
    /// Reads the header; the bytes stay where they are.
    pub(super) fn open(bytes: &'a [u8], site: Site) -> Result<Self, EngineError> {
        let tensors = SafeTensors::deserialize(bytes)?;
        Ok(Self { tensors, site, parameters: Cell::new(0), bytes: Cell::new(0) })
    }

    /// The checkpoint's root.
    pub(super) fn root(&self) -> Scope<'_> {
        Scope { weights: self, prefix: String::new() }
    }

    /// Parameters taken, and the bytes they have in the engine.
    pub(super) fn taken(&self) -> (u64, u64) {
        (self.parameters.get(), self.bytes.get())
    }
}

// === impl Scope ===

impl<'a> Scope<'a> {
    /// The scope `name` within this one.
    pub(super) fn pp(&self, name: impl std::fmt::Display) -> Scope<'a> {
        Scope { weights: self.weights, prefix: format!("{}{name}.", self.prefix) }
    }

    /// Where the weights go.
    pub(super) fn site(&self) -> &'a Site {
        &self.weights.site
    }

    /// Whether there is a tensor of this name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.weights.tensors.tensor(&format!("{}{name}", self.prefix)).is_ok()
    }

    /// Whether there is any tensor in this scope.
    pub(super) fn exists(&self) -> bool {
        self.weights.tensors.names().iter().any(|n| n.starts_with(&self.prefix))
    }

    /// A tensor in f32, which must have this shape.
    pub(super) fn take(&self, name: &str, want: &[usize]) -> Result<Vec<f32>, EngineError> {
        self.take_shaped(name, want, |got| got == want)
    }

    /// A convolution's weights; a 1x1 may be stored as a linear layer's `[out, in]`.
    pub(super) fn take_conv(&self, name: &str, want: [usize; 4]) -> Result<Vec<f32>, EngineError> {
        self.take_shaped(name, &want, |got| got == want || (want[2..] == [1, 1] && got == &want[..2]))
    }

    fn take_shaped(
        &self,
        name: &str,
        want: &[usize],
        fits: impl Fn(&[usize]) -> bool,
    ) -> Result<Vec<f32>, EngineError> {
        let name = format!("{}{name}", self.prefix);
        let Ok(view) = self.weights.tensors.tensor(&name) else {
            return Err(EngineError::MissingTensor { name, want: want.to_vec() });
        };
        if !fits(view.shape()) {
            return Err(EngineError::Shape { name, want: want.to_vec(), got: view.shape().to_vec() });
        }
        let data = view.data();
        let values: Vec<f32> = match view.dtype() {
            Dtype::F32 => data.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
            Dtype::F16 => data.as_chunks().0.iter().map(|&b| f16::from_le_bytes(b).to_f32()).collect(),
            Dtype::BF16 => data.as_chunks().0.iter().map(|&b| bf16::from_le_bytes(b).to_f32()).collect(),
            other => return Err(EngineError::Unsupported { what: format!("dtype {other:?} of tensor {name}") }),
        };
        if values.iter().any(|v| !v.is_finite()) {
            return Err(EngineError::NotFinite { name });
        }
        let count = values.len() as u64;
        self.weights.parameters.set(self.weights.parameters.get() + count);
        self.weights.bytes.set(self.weights.bytes.get() + count * self.weights.site.weight_bytes());
        Ok(values)
    }
}
