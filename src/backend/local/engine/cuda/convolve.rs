//! A convolution on the GPU: weights laid out once, the map brought into the form that cuDNN takes, and what cuDNN does not do.

use std::sync::Arc;

use super::super::{EngineError, Precision, conv::Geometry, map::Activation};
use super::grid::{self, octets, slabs, stored};
use super::machine::{Buffer, Machine};
use super::{Arg, CudaMap, Launch, int, rounded};

/// Values of a tensor that cuDNN's older calls are given at most: strides are 32 bits wide there.
const VALUES: usize = i32::MAX as usize;

/// A convolution with its weights.
pub(in super::super) struct CudaConv {
    geometry: Geometry,
    /// `[outputs, kernel, kernel, inputs]`, both widths as stored.
    weight: Buffer,
    /// As many as outputs are stored, zero where the checkpoint has none.
    bias: Buffer,
}

/// What cuDNN is to do besides the convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Tail {
    /// Nothing.
    Plain,
    /// Bias, what the result is added to, and ReLU or nothing.
    Fused { relu: bool },
}

/// One convolution as cuDNN sees it, widths as stored. What has been found out for one is kept by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct ConvShape {
    pub(super) precision: Precision,
    pub(super) n: usize,
    pub(super) h: usize,
    pub(super) w: usize,
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    pub(super) kernel: usize,
    pub(super) stride: usize,
    /// Zeros on all four sides.
    pub(super) pad: usize,
    pub(super) tail: Tail,
}

/// What a convolution works on; `first` elements of x and y lie before the images that are meant.
pub(super) struct Operands<'a> {
    pub(super) x: (&'a Buffer, usize),
    pub(super) weight: &'a Buffer,
    pub(super) bias: &'a Buffer,
    pub(super) y: (&'a mut Buffer, usize),
    /// Whether y holds what the result is added to.
    pub(super) is_onto: bool,
}

/// Whether there is such a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Supported {
    Yes,
    No,
}

// === impl ConvShape ===

impl ConvShape {
    /// Height or width of the result.
    pub(super) fn extent(&self, side: usize) -> usize {
        (side + 2 * self.pad - self.kernel) / self.stride + 1
    }
}

// === impl CudaConv ===

impl CudaConv {
    /// From `[outputs, inputs, kernel, kernel]`.
    pub(in super::super) fn load(
        machine: &Arc<Machine>,
        (geometry, precision): (Geometry, Precision),
        weight: &[f32],
        bias: Option<&[f32]>,
    ) -> Result<Self, EngineError> {
        let (inputs, outputs, kernel) = (geometry.inputs, geometry.outputs, geometry.kernel);
        let (width, taps) = (stored(inputs), kernel * kernel);
        let mut packed = vec![0.0; stored(outputs) * taps * width];
        for (filter, taps_of) in weight.chunks_exact(inputs * taps).zip(packed.chunks_exact_mut(taps * width)) {
            for (input, plane) in filter.chunks_exact(taps).enumerate() {
                for (tap, &value) in plane.iter().enumerate() {
                    taps_of[tap * width + input] = value;
                }
            }
        }
        let mut biases = bias.map_or_else(Vec::new, <[f32]>::to_vec);
        biases.resize(stored(outputs), 0.0);
        let upload = |values: &[f32]| machine.upload(&rounded(values, precision));
        Ok(Self { geometry, weight: upload(&packed)?, bias: upload(&biases)? })
    }

    /// `activation(conv(x) + onto)`.
    pub(in super::super) fn run(
        &self,
        x: &CudaMap,
        mut onto: Option<CudaMap>,
        activation: Activation,
    ) -> Result<CudaMap, EngineError> {
        let spread = self.spread(x)?;
        let x = spread.as_ref().unwrap_or(x);
        let plain = self.shape(x);
        let dims = [x.n, self.geometry.outputs, plain.extent(x.h), plain.extent(x.w)];
        if let Some(tail) = fused(activation) {
            let is_onto = onto.is_some();
            let mut y = match onto.take() {
                Some(onto) => onto,
                None => CudaMap::new(&x.machine, x.precision, dims)?,
            };
            if self.convolve(ConvShape { tail, ..plain }, x, (&mut y, is_onto))? == Supported::Yes {
                return Ok(y);
            }
            // Refused before anything was written.
            onto = is_onto.then_some(y);
        }
        let mut y = CudaMap::new(&x.machine, x.precision, dims)?;
        if self.convolve(plain, x, (&mut y, false))? == Supported::No {
            return Err(EngineError::Unsupported { what: format!("by cuDNN: {plain:?}") });
        }
        self.finish(&mut y, onto.as_ref(), activation)?;
        Ok(y)
    }

    /// cuDNN's part, in as many calls as its bound on tensors takes.
    fn convolve(
        &self,
        shape: ConvShape,
        x: &CudaMap,
        (y, is_onto): (&mut CudaMap, bool),
    ) -> Result<Supported, EngineError> {
        let (from, to) = (x.pixels() * shape.inputs, y.pixels() * shape.outputs);
        let images = VALUES / from.max(to);
        if images == 0 {
            return Err(EngineError::Unsupported { what: format!("maps of {} values", from.max(to)) });
        }
        for first in (0..x.n).step_by(images) {
            let operands = Operands {
                x: (&x.data, first * from),
                weight: &self.weight,
                bias: &self.bias,
                y: (&mut y.data, first * to),
                is_onto,
            };
            let shape = ConvShape { n: images.min(x.n - first), ..shape };
            match x.machine.convolve(&shape, operands)? {
                Supported::Yes => {}
                Supported::No if first == 0 => return Ok(Supported::No),
                Supported::No => return Err(EngineError::Unsupported { what: format!("by cuDNN: {shape:?}") }),
            }
        }
        Ok(Supported::Yes)
    }

    /// The map that cuDNN reads, where it is not x: larger by the upsampling, and padded where the sides differ, since cuDNN
    /// pads both alike.
    fn spread(&self, x: &CudaMap) -> Result<Option<CudaMap>, EngineError> {
        let Geometry { before, after, upsample, .. } = self.geometry;
        let (first, last) = if before == after { (0, 0) } else { (before, after) };
        if upsample == 1 && before == after {
            return Ok(None);
        }
        let [h, w] = [x.h, x.w].map(|side| side * upsample + first + last);
        let mut y = CudaMap::new(&x.machine, x.precision, [x.n, x.c, h, w])?;
        let octets = octets(x.c);
        x.machine.launch(
            Launch { kernel: "spread", precision: Some(x.precision), grid: grid::of_rows([x.n, h, w], octets)? },
            &mut [
                Arg::In(&x.data),
                Arg::Out(&mut y.data),
                int(x.h),
                int(x.w),
                int(h),
                int(w),
                int(octets),
                int(slabs(octets)),
                int(upsample),
                int(first),
            ],
        )?;
        Ok(Some(y))
    }

    /// The convolution of a map that `spread` has seen.
    fn shape(&self, x: &CudaMap) -> ConvShape {
        let Geometry { inputs, outputs, kernel, stride, before, after, .. } = self.geometry;
        let pad = if before == after { before } else { 0 };
        let (inputs, outputs) = (stored(inputs), stored(outputs));
        ConvShape {
            precision: x.precision,
            n: x.n,
            h: x.h,
            w: x.w,
            inputs,
            outputs,
            kernel,
            stride,
            pad,
            tail: Tail::Plain,
        }
    }

    /// `y = activation(y + bias + onto)`.
    fn finish(&self, y: &mut CudaMap, onto: Option<&CudaMap>, activation: Activation) -> Result<(), EngineError> {
        let (pixels, octets) = (y.n * y.pixels(), octets(y.c));
        let grid = grid::of_octets(pixels, octets, 1)?;
        y.machine.launch(
            Launch { kernel: "finish", precision: Some(y.precision), grid },
            &mut [
                Arg::Out(&mut y.data),
                Arg::In(&self.bias),
                onto.map_or(Arg::Null, |onto| Arg::In(&onto.data)),
                Arg::Long(pixels as i64),
                int(octets),
                Arg::Int(activation.code()),
            ],
        )
    }
}

/// What the fused call can do of it.
fn fused(activation: Activation) -> Option<Tail> {
    match activation {
        Activation::None => Some(Tail::Fused { relu: false }),
        Activation::Relu => Some(Tail::Fused { relu: true }),
        Activation::Silu => None,
    }
}
