//! The GPU of a build without the feature `cudnn`: there is none, so nothing here is ever called.

use std::{convert::Infallible, sync::Arc};

use super::super::EngineError;
use super::convolve::{ConvShape, Operands, Supported};
use super::{Arg, Launch, Product};

/// No GPU.
pub(in super::super) struct Machine(Infallible);

/// None of its memory.
pub(super) struct Buffer(Infallible);

// === impl Machine ===

impl Machine {
    pub(in super::super) fn open(_: usize) -> Result<Arc<Self>, EngineError> {
        Err(EngineError::Unsupported { what: "cuDNN: this is a build without it".into() })
    }

    pub(super) fn alloc(&self, _: usize) -> Result<Buffer, EngineError> {
        match self.0 {}
    }

    pub(super) fn upload(&self, _: &[u8]) -> Result<Buffer, EngineError> {
        match self.0 {}
    }

    pub(super) fn download(&self, _: &Buffer) -> Result<Vec<u8>, EngineError> {
        match self.0 {}
    }

    pub(super) fn launch(&self, _: Launch, _: &mut [Arg<'_>]) -> Result<(), EngineError> {
        match self.0 {}
    }

    pub(super) fn convolve(&self, _: &ConvShape, _: Operands<'_>) -> Result<Supported, EngineError> {
        match self.0 {}
    }

    pub(super) fn product(&self, _: &Product<'_>, _: (&mut Buffer, usize)) -> Result<(), EngineError> {
        match self.0 {}
    }
}
