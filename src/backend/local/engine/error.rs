//! Why a checkpoint does not load or a run does not end.

use crate::tensor::{Shape, TensorError};

/// The observer's word that nobody wants the result any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cancelled;

/// What goes wrong in the engine.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The observer asked to stop.
    #[error("cancelled")]
    Cancelled,
    /// The checkpoint lacks a tensor that its config.json calls for.
    #[error("the checkpoint has no tensor {name} of shape {want:?}")]
    MissingTensor {
        /// Its full name.
        name: String,
        /// The shape it would have.
        want: Vec<usize>,
    },
    /// A tensor of the checkpoint has another shape than its config.json calls for.
    #[error("tensor {name} has shape {got:?}, wanted {want:?}")]
    Shape {
        /// Its full name.
        name: String,
        /// What config.json calls for.
        want: Vec<usize>,
        /// What the file holds.
        got: Vec<usize>,
    },
    /// A tensor of the checkpoint holds NaN or infinity.
    #[error("tensor {name} holds values that are not finite")]
    NotFinite {
        /// Its full name.
        name: String,
    },
    /// config.json is no description of an autoencoder.
    #[error("config.json: {0}")]
    Config(String),
    /// Something this engine cannot do.
    #[error("not supported: {what}")]
    Unsupported {
        /// What it is.
        what: String,
    },
    /// The input does not fit the model.
    #[error("input of shape {got} does not fit: {want}")]
    Input {
        /// What came.
        got: Shape,
        /// What would fit.
        want: String,
    },
    /// The checkpoint lacks the half that the task needs.
    #[error("the checkpoint has no {0}")]
    NoHalf(&'static str),
    /// Operands of one operation lie on different devices.
    #[error("operands lie on different devices")]
    Place,
    /// The weights are no safetensors file.
    #[error("reading the safetensors file")]
    Weights(#[from] safetensors::SafeTensorError),
    /// The tensor library failed, most likely for want of device memory.
    #[error("computing")]
    Candle(#[from] candle_core::Error),
    /// NVIDIA's libraries failed, most likely for want of device memory.
    #[error("{call} failed")]
    Cuda {
        /// What was called.
        call: &'static str,
        /// What it said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A result whose shape is none.
    #[error("forming the result")]
    Tensor(#[from] TensorError),
}

impl From<Cancelled> for EngineError {
    fn from(Cancelled: Cancelled) -> Self {
        Self::Cancelled
    }
}
