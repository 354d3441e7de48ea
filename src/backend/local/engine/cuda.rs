//! Feature maps and layers on an NVIDIA GPU: convolutions by cuDNN, products by cuBLAS, all else by kernels of our own.
//!
//! candle's device path gathers nine taps of every value before each convolution and passes over a map once for every term of
//! a norm; it stays for Metal and for the bare feature `cuda`. This room keeps maps as the tensor cores read them, channels last
//! in the precision, and puts together what one pass can do. Everything is queued on one stream of the GPU, in order; the host
//! waits for it once, when a run's answer is fetched.
//!
//! All that touches the driver is in `machine`, which has three forms: the GPU (feature `cudnn`), none at all (without it: the
//! rest is compiled and never reached), and for tests an emulation, on which `tests` runs whole networks with the kernels' own
//! text. Nobody has run the first on a GPU yet.

#![cfg_attr(not(any(feature = "cudnn", test)), expect(dead_code, reason = "no GPU reads it"))]

mod attend;
mod convolve;
mod grid;
#[cfg_attr(all(not(feature = "cudnn"), test), path = "cuda/tests/emulated.rs")]
#[cfg_attr(not(any(feature = "cudnn", test)), path = "cuda/absent.rs")]
mod machine;
mod norm;
#[cfg(test)]
mod tests;
#[cfg(any(feature = "cudnn", test))]
mod ways;

use std::sync::Arc;

use bytes::Bytes;
use half::{bf16, f16};

use self::{
    grid::{octets, stored},
    machine::Buffer,
};
use super::{EngineError, Precision};
use crate::tensor::{DType, Shape, Tensor};

pub(super) use attend::{SCORES, attend};
pub(super) use convolve::CudaConv;
pub(super) use machine::Machine;
pub(super) use norm::CudaNorm;

/// Device memory that cuDNN's algorithms may take to work in. The fastest ones for channels-last tensors take little or none;
/// what asks for more is a transform of the whole map.
pub(super) const WORKSPACE: usize = 256 << 20;

/// A feature map `[n, h, w, stored]` in the precision, channels last; `stored` is `c` rounded up to a multiple of 8, which is
/// what tensor cores want, and what lies beyond `c` is zero.
pub(super) struct CudaMap {
    machine: Arc<Machine>,
    precision: Precision,
    n: usize,
    h: usize,
    w: usize,
    c: usize,
    data: Buffer,
}

/// Whether the numbers of a picture are 0..1 in the network, where others have -1..1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Range {
    Unit,
    Symmetric,
}

/// A kernel on a grid of blocks. Kernels that are there for each precision bear its name.
#[derive(Clone, Copy)]
struct Launch {
    kernel: &'static str,
    precision: Option<Precision>,
    grid: [u32; 3],
}

/// What a kernel is given, in its order.
enum Arg<'a> {
    In(&'a Buffer),
    Out(&'a mut Buffer),
    Null,
    Int(i32),
    Long(i64),
    Double(f64),
}

/// Some pictures' worth of a buffer, from an element on.
#[derive(Clone, Copy)]
struct Span<'a> {
    buffer: &'a Buffer,
    first: usize,
}

/// `out[rows, columns] = scale * a[rows, inner] * b`, where b is `[columns, inner]` if it is transposed and else `[inner, columns]`;
/// all row-major, a and b in `precision`, sums in f32.
struct Product<'a> {
    a: Span<'a>,
    b: Span<'a>,
    is_transposed: bool,
    /// rows, inner, columns
    sizes: [usize; 3],
    scale: f32,
    precision: Precision,
    /// Of the result.
    out: Precision,
}

// === impl CudaMap ===

impl CudaMap {
    /// A map of any values.
    fn new(machine: &Arc<Machine>, precision: Precision, [n, c, h, w]: [usize; 4]) -> Result<Self, EngineError> {
        let data = machine.alloc(n * h * w * stored(c) * precision.bytes())?;
        Ok(Self { machine: machine.clone(), precision, n, h, w, c, data })
    }

    fn like(&self) -> Result<Self, EngineError> {
        Self::new(&self.machine, self.precision, [self.n, self.c, self.h, self.w])
    }

    /// Pixels of one image.
    fn pixels(&self) -> usize {
        self.h * self.w
    }

    /// From row-major `[n, c, h, w]` in f32, each rounded once.
    pub(super) fn from_planes(
        machine: &Arc<Machine>,
        planes: &[f32],
        dims: [usize; 4],
        precision: Precision,
    ) -> Result<Self, EngineError> {
        let mut map = Self::new(machine, precision, dims)?;
        let planes = machine.upload(bytemuck::cast_slice(planes))?;
        let (pixels, c, octets) = (map.pixels(), map.c, octets(map.c));
        machine.launch(
            Launch { kernel: "from_planes", precision: Some(precision), grid: grid::of_pixels(pixels, map.n)? },
            &mut [Arg::In(&planes), Arg::Out(&mut map.data), Arg::Long(pixels as i64), int(c), int(octets)],
        )?;
        Ok(map)
    }

    /// From bytes `[n, h, w, c]`, three a pixel; `dims` is `[n, c, h, w]`.
    pub(super) fn from_bytes(
        machine: &Arc<Machine>,
        bytes: &[u8],
        dims: [usize; 4],
        (precision, range): (Precision, Range),
    ) -> Result<Self, EngineError> {
        let mut map = Self::new(machine, precision, dims)?;
        let bytes = machine.upload(bytes)?;
        let (pixels, c, octets) = (map.n * map.pixels(), map.c, octets(map.c));
        machine.launch(
            Launch { kernel: "from_bytes", precision: Some(precision), grid: grid::of_pixels(pixels, 1)? },
            &mut [
                Arg::In(&bytes),
                Arg::Out(&mut map.data),
                Arg::Long(pixels as i64),
                int(c),
                int(octets),
                int(usize::from(range == Range::Unit)),
            ],
        )?;
        Ok(map)
    }

    /// To row-major `[n, c, h, w]` in f32 and these dimensions.
    pub(super) fn to_planes(&self) -> Result<(Vec<f32>, [usize; 4]), EngineError> {
        let bytes = self.planes(Range::Symmetric, DType::F32)?;
        let planes = bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
        Ok((planes, [self.n, self.c, self.h, self.w]))
    }

    /// A decoder's map as what is answered: floats `[n, c, h, w]` in -1..1, or bytes `[n, h, w, 3]` as `render::uint8` makes them of
    /// f16. Where a number is not finite it has no byte, and the floats are answered instead, in f16.
    pub(super) fn to_pictures(&self, range: Range, dtype: DType) -> Result<Tensor, EngineError> {
        if dtype == DType::U8 {
            if let Some(bytes) = self.bytes(range)? {
                let shape = Shape::try_new(&[self.n, self.h, self.w, 3])?;
                return Ok(Tensor::try_new(dtype, shape, Bytes::from(bytes))?);
            }
            return self.to_pictures(range, DType::F16);
        }
        let shape = Shape::try_new(&[self.n, self.c, self.h, self.w])?;
        Ok(Tensor::try_new(dtype, shape, Bytes::from(self.planes(range, dtype)?))?)
    }

    fn planes(&self, range: Range, dtype: DType) -> Result<Vec<u8>, EngineError> {
        let kernel = match dtype {
            DType::F32 => "to_f32",
            DType::F16 => "to_f16",
            DType::BF16 => "to_bf16",
            DType::U8 => return Err(EngineError::Unsupported { what: "planes of bytes".into() }),
        };
        let mut planes = self.machine.alloc(self.n * self.c * self.pixels() * dtype.size())?;
        self.machine.launch(
            Launch { kernel, precision: Some(self.precision), grid: grid::of_pixels(self.pixels(), self.n)? },
            &mut [
                Arg::In(&self.data),
                Arg::Out(&mut planes),
                Arg::Long(self.pixels() as i64),
                int(self.c),
                int(octets(self.c)),
                int(usize::from(range == Range::Unit)),
            ],
        )?;
        self.machine.download(&planes)
    }

    /// Nothing where a number is not finite in f16.
    fn bytes(&self, range: Range) -> Result<Option<Vec<u8>>, EngineError> {
        if self.c != 3 {
            return Err(EngineError::Unsupported { what: format!("pixels of {} channels", self.c) });
        }
        let pixels = self.n * self.pixels();
        let mut bytes = self.machine.alloc(3 * pixels)?;
        let mut flaw = self.machine.upload(&0i32.to_le_bytes())?;
        self.machine.launch(
            Launch { kernel: "to_bytes", precision: Some(self.precision), grid: grid::of_pixels(pixels, 1)? },
            &mut [
                Arg::In(&self.data),
                Arg::Out(&mut bytes),
                Arg::Out(&mut flaw),
                Arg::Long(pixels as i64),
                int(octets(self.c)),
                int(usize::from(range == Range::Unit)),
            ],
        )?;
        let is_finite = self.machine.download(&flaw)? == 0i32.to_le_bytes();
        is_finite.then(|| self.machine.download(&bytes)).transpose()
    }
}

/// A size as a kernel takes it; sizes are checked where grids are made.
fn int(size: usize) -> Arg<'static> {
    Arg::Int(size as i32)
}

/// These numbers in the precision, each rounded once.
fn rounded(values: &[f32], precision: Precision) -> Vec<u8> {
    match precision {
        Precision::F32 => bytemuck::cast_slice(values).to_vec(),
        Precision::F16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
        Precision::BF16 => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
    }
}
