//! Group norm on the GPU: two kernels for the statistics, one that applies them together with the activation.

use std::sync::Arc;

use super::super::{EngineError, Precision, map::Activation};
use super::grid::{self, OCTET, THREADS, octets, stored};
use super::machine::{Buffer, Machine};
use super::{Arg, CudaMap, Launch, int};

/// A norm's weights.
pub(in super::super) struct CudaNorm {
    groups: usize,
    eps: f64,
    scale: Buffer,
    shift: Buffer,
}

// === impl CudaNorm ===

impl CudaNorm {
    /// Of as many channels as there are weights.
    pub(in super::super) fn load(
        machine: &Arc<Machine>,
        (groups, eps): (usize, f64),
        scale: &[f32],
        shift: &[f32],
    ) -> Result<Self, EngineError> {
        if octets(scale.len()) > THREADS {
            let what = format!("a norm of {} channels on this device, {} are the most", scale.len(), THREADS * OCTET);
            return Err(EngineError::Unsupported { what });
        }
        let upload = |values: &[f32]| machine.upload(bytemuck::cast_slice(values));
        Ok(Self { groups, eps, scale: upload(scale)?, shift: upload(shift)? })
    }

    /// `activation(norm(x))`.
    pub(in super::super) fn apply(&self, x: &CudaMap, activation: Activation) -> Result<CudaMap, EngineError> {
        let affine = self.affine(x)?;
        let mut y = x.like()?;
        let (pixels, octets) = (x.pixels(), octets(x.c));
        x.machine.launch(
            Launch { kernel: "norm_apply", precision: Some(x.precision), grid: grid::of_octets(pixels, octets, x.n)? },
            &mut [
                Arg::In(&x.data),
                Arg::In(&affine),
                Arg::Out(&mut y.data),
                Arg::Long(pixels as i64),
                int(octets),
                Arg::Int(activation.code()),
            ],
        )?;
        Ok(y)
    }

    /// Scale and shift of each channel, f32 `[n][2][stored]`.
    fn affine(&self, x: &CudaMap) -> Result<Buffer, EngineError> {
        let (pixels, octets, width) = (x.pixels(), octets(x.c), x.c / self.groups);
        let (chunks, grid) = grid::of_chunks(pixels, octets, x.n)?;
        let float = Precision::F32.bytes();
        let mut partials = x.machine.alloc(x.n * chunks.count * self.groups * 2 * float)?;
        x.machine.launch(
            Launch { kernel: "group_partials", precision: Some(x.precision), grid },
            &mut [
                Arg::In(&x.data),
                Arg::Out(&mut partials),
                Arg::Long(pixels as i64),
                int(octets),
                int(self.groups),
                int(width),
                int(chunks.pixels),
            ],
        )?;
        let mut affine = x.machine.alloc(x.n * 2 * stored(x.c) * float)?;
        x.machine.launch(
            Launch { kernel: "group_affine", precision: None, grid: grid::of_groups(self.groups, x.n)? },
            &mut [
                Arg::In(&partials),
                Arg::In(&self.scale),
                Arg::In(&self.shift),
                Arg::Out(&mut affine),
                Arg::Long(pixels as i64),
                int(chunks.count),
                int(chunks.pixels),
                int(width),
                int(stored(x.c)),
                Arg::Double(self.eps),
            ],
        )?;
        Ok(affine)
    }
}
