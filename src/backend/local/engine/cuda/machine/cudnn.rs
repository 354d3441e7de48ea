//! Convolutions by cuDNN: descriptors, the choice of an algorithm, and the calls.
//!
//! The calls are those of cuDNN 7 and 8, which cuDNN 9 still has and calls deprecated (`cudnn_cnn.h` of 9.20 marks each with
//! `CUDNN_DEPRECATED`); they are what cudarc binds. PyTorch's `Conv_v7.cpp` does the same for channels-last tensors: all three of map,
//! weights and result as `CUDNN_TENSOR_NHWC`, weights in memory as `[outputs, kernel, kernel, inputs]`, sums in f32 (the compute type
//! of the descriptor), `CUDNN_TENSOR_OP_MATH` for half precisions. f32 gets `CUDNN_FMA_MATH`: the default would round its operands to
//! TF32, 10 bits, from Ampere on.
//!
//! The fused call is documented for map, weights, bias and result of one type with f32 sums and scales, ReLU or nothing as the
//! activation, and a result that may lie where what it is added to lay (z and y are one buffer, as PyTorch has them). Whether a given
//! GPU has it for a given type is found out by asking; `ways` says what follows from the answer.

#![expect(unsafe_code, reason = "cuDNN is reached through C")]

use std::{collections::HashMap, ffi::c_void, ptr, sync::Arc};

use candle_core::cuda_backend::cudarc::{
    cudnn::{result, sys},
    driver::{CudaSlice, CudaStream, DevicePtrMut as _},
};

use super::super::super::{EngineError, Precision};
use super::super::WORKSPACE;
use super::super::convolve::{ConvShape, Operands, Supported, Tail};
use super::super::ways::{Ranked, Refusal, algorithms, first_that_runs, is_unsupported};
use super::{address, address_mut, failed};

/// Convolutions that are remembered. A model has some twenty to a size of picture; whoever asks for so many sizes has the table
/// begun anew.
const REMEMBERED: usize = 4096;
/// Algorithms that there are.
const ALGORITHMS: usize = sys::cudnnConvolutionFwdAlgo_t::CUDNN_CONVOLUTION_FWD_ALGO_COUNT as usize;

/// A handle, and what was found out with it.
pub(super) struct Cudnn {
    handle: sys::cudnnHandle_t,
    /// Nothing for a convolution that cuDNN does not have.
    known: HashMap<ConvShape, Option<Known>>,
    /// Shared by all convolutions, as they follow each other.
    workspace: Option<CudaSlice<u8>>,
}

/// How a convolution runs.
struct Known {
    plan: Plan,
    algorithm: sys::cudnnConvolutionFwdAlgo_t,
    workspace: usize,
}

/// A convolution's descriptors.
struct Plan {
    x: sys::cudnnTensorDescriptor_t,
    y: sys::cudnnTensorDescriptor_t,
    bias: sys::cudnnTensorDescriptor_t,
    weight: sys::cudnnFilterDescriptor_t,
    conv: sys::cudnnConvolutionDescriptor_t,
    activation: sys::cudnnActivationDescriptor_t,
}

/// Device addresses of a convolution's operands.
#[derive(Clone, Copy)]
struct Addresses {
    x: *const c_void,
    weight: *const c_void,
    bias: *const c_void,
    y: *mut c_void,
    is_onto: bool,
}

// SAFETY: cuDNN's handles and descriptors belong to no thread; "the same handle must not be used by several threads at once"
// (NVIDIA, cuDNN developer guide, Thread Safety), and whoever has `&mut Cudnn` is alone. It is neither `Sync` nor `Clone`.
unsafe impl Send for Cudnn {}

// === impl Cudnn ===

impl Cudnn {
    /// For work on this stream.
    pub(super) fn new(stream: &Arc<CudaStream>) -> Result<Self, EngineError> {
        stream.context().bind_to_thread().map_err(failed("cuCtxSetCurrent"))?;
        let handle = result::create_handle().map_err(failed("cudnnCreate"))?;
        let made = Self { handle, known: HashMap::new(), workspace: None };
        // SAFETY: both are live; the machine that holds this keeps the stream.
        unsafe { result::set_stream(handle, stream.cu_stream().cast()) }.map_err(failed("cudnnSetStream"))?;
        Ok(made)
    }

    /// Queues a convolution, if there is a way to run it. What is refused is refused before anything is written.
    pub(super) fn convolve(
        &mut self,
        stream: &Arc<CudaStream>,
        shape: &ConvShape,
        operands: Operands<'_>,
    ) -> Result<Supported, EngineError> {
        stream.context().bind_to_thread().map_err(failed("cuCtxSetCurrent"))?;
        let addresses = addresses(stream, shape, operands)?;
        if let Some(known) = self.known.get(shape) {
            let Some(known) = known else { return Ok(Supported::No) };
            let workspace = working_memory(&mut self.workspace, stream, known.workspace)?;
            let (plan, algorithm) = (&known.plan, known.algorithm);
            let done = plan.run(self.handle, shape.tail, (algorithm, workspace, known.workspace), addresses);
            return done.map(|()| Supported::Yes).map_err(failed("a convolution of cuDNN"));
        }
        if self.known.len() == REMEMBERED {
            self.known.clear();
        }
        let found = self.search(stream, shape, addresses)?;
        let is_there = if found.is_some() { Supported::Yes } else { Supported::No };
        if is_there == Supported::No {
            tracing::warn!(?shape, "cuDNN does not have this convolution");
        }
        self.known.insert(*shape, found);
        Ok(is_there)
    }

    /// Runs the convolution by the first algorithm that does it.
    fn search(
        &mut self,
        stream: &Arc<CudaStream>,
        shape: &ConvShape,
        addresses: Addresses,
    ) -> Result<Option<Known>, EngineError> {
        let plan = Plan::new(shape)?;
        let order = algorithms(&plan.ranked(self.handle), shape.tail, WORKSPACE);
        let mut workspace = 0;
        let found = first_that_runs(&order, |number| {
            let refusal = |error: result::CudnnError| match error.0 as u32 {
                status if is_unsupported(status, shape.tail) => Refusal::NotSupported(status),
                _ => Refusal::Failed(failed("a convolution of cuDNN")(error)),
            };
            let algorithm = algorithm(number);
            workspace = plan.workspace(self.handle, algorithm).map_err(refusal)?;
            if workspace > WORKSPACE {
                return Err(Refusal::NotSupported(0));
            }
            let memory = working_memory(&mut self.workspace, stream, workspace).map_err(Refusal::Failed)?;
            plan.run(self.handle, shape.tail, (algorithm, memory, workspace), addresses).map_err(refusal)
        })?;
        Ok(found.map(|number| Known { plan, algorithm: algorithm(number), workspace }))
    }
}

impl Drop for Cudnn {
    fn drop(&mut self) {
        self.known.clear();
        // SAFETY: made by `cudnnCreate`, and no descriptor of ours is left. What it says is nobody's concern any more.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

/// So many bytes to work in, which all convolutions share.
fn working_memory(
    held: &mut Option<CudaSlice<u8>>,
    stream: &Arc<CudaStream>,
    bytes: usize,
) -> Result<*mut c_void, EngineError> {
    if bytes == 0 {
        return Ok(ptr::null_mut());
    }
    if held.as_ref().is_none_or(|held| held.len() < bytes) {
        // The old one first: both together might be more than there is.
        *held = None;
        // SAFETY: cuDNN reads nothing of it that it has not written.
        *held = Some(unsafe { stream.alloc::<u8>(bytes) }.map_err(failed("cuMemAllocAsync"))?);
    }
    let address = held.as_mut().map_or(0, |held| held.device_ptr_mut(stream).0);
    Ok(address as *mut c_void)
}

fn addresses(stream: &Arc<CudaStream>, shape: &ConvShape, operands: Operands<'_>) -> Result<Addresses, EngineError> {
    let Operands { x, weight, bias, y, is_onto } = operands;
    let size = shape.precision.bytes();
    let read = shape.n * shape.h * shape.w * shape.inputs * size;
    let written = shape.n * shape.extent(shape.h) * shape.extent(shape.w) * shape.outputs * size;
    let filters = shape.outputs * shape.kernel * shape.kernel * shape.inputs * size;
    Ok(Addresses {
        x: address(stream, x.0, x.1 * size, read)? as *const c_void,
        weight: address(stream, weight, 0, filters)? as *const c_void,
        bias: address(stream, bias, 0, shape.outputs * size)? as *const c_void,
        y: address_mut(stream, y.0, y.1 * size, written)? as *mut c_void,
        is_onto,
    })
}

fn algorithm(number: u32) -> sys::cudnnConvolutionFwdAlgo_t {
    use sys::cudnnConvolutionFwdAlgo_t as A;
    match number {
        1 => A::CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_PRECOMP_GEMM,
        2 => A::CUDNN_CONVOLUTION_FWD_ALGO_GEMM,
        3 => A::CUDNN_CONVOLUTION_FWD_ALGO_DIRECT,
        4 => A::CUDNN_CONVOLUTION_FWD_ALGO_FFT,
        5 => A::CUDNN_CONVOLUTION_FWD_ALGO_FFT_TILING,
        6 => A::CUDNN_CONVOLUTION_FWD_ALGO_WINOGRAD,
        7 => A::CUDNN_CONVOLUTION_FWD_ALGO_WINOGRAD_NONFUSED,
        _ => A::CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_GEMM,
    }
}

// === impl Plan ===

impl Plan {
    fn new(shape: &ConvShape) -> Result<Self, EngineError> {
        // Filled one by one, so that what stands is dropped when the next is refused.
        let mut plan = Self {
            x: ptr::null_mut(),
            y: ptr::null_mut(),
            bias: ptr::null_mut(),
            weight: ptr::null_mut(),
            conv: ptr::null_mut(),
            activation: ptr::null_mut(),
        };
        plan.describe(shape).map_err(failed("describing a convolution to cuDNN"))?;
        Ok(plan)
    }

    fn describe(&mut self, shape: &ConvShape) -> Result<(), result::CudnnError> {
        let layout = sys::cudnnTensorFormat_t::CUDNN_TENSOR_NHWC;
        let (kind, math) = match shape.precision {
            Precision::F32 => (sys::cudnnDataType_t::CUDNN_DATA_FLOAT, sys::cudnnMathType_t::CUDNN_FMA_MATH),
            Precision::F16 => (sys::cudnnDataType_t::CUDNN_DATA_HALF, sys::cudnnMathType_t::CUDNN_TENSOR_OP_MATH),
            Precision::BF16 => (sys::cudnnDataType_t::CUDNN_DATA_BFLOAT16, sys::cudnnMathType_t::CUDNN_TENSOR_OP_MATH),
        };
        let relu = shape.tail == Tail::Fused { relu: true };
        let mode = if relu {
            sys::cudnnActivationMode_t::CUDNN_ACTIVATION_RELU
        } else {
            sys::cudnnActivationMode_t::CUDNN_ACTIVATION_IDENTITY
        };
        // All below 2^31: a tensor has fewer values than that.
        let [n, h, w, inputs] = [shape.n, shape.h, shape.w, shape.inputs].map(|v| v as i32);
        let [outputs, kernel, stride, pad] = [shape.outputs, shape.kernel, shape.stride, shape.pad].map(|v| v as i32);
        let [oh, ow] = [shape.extent(shape.h), shape.extent(shape.w)].map(|v| v as i32);
        self.x = result::create_tensor_descriptor()?;
        self.y = result::create_tensor_descriptor()?;
        self.bias = result::create_tensor_descriptor()?;
        self.weight = result::create_filter_descriptor()?;
        self.conv = result::create_convolution_descriptor()?;
        // SAFETY: descriptors are live, made just above, and written by value.
        unsafe {
            result::set_tensor4d_descriptor(self.x, layout, kind, [n, inputs, h, w])?;
            result::set_tensor4d_descriptor(self.y, layout, kind, [n, outputs, oh, ow])?;
            result::set_tensor4d_descriptor(self.bias, layout, kind, [1, outputs, 1, 1])?;
            result::set_filter4d_descriptor(self.weight, kind, layout, [outputs, inputs, kernel, kernel])?;
            result::set_convolution2d_descriptor(
                self.conv,
                pad,
                pad,
                stride,
                stride,
                1,
                1,
                sys::cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION,
                sys::cudnnDataType_t::CUDNN_DATA_FLOAT,
            )?;
            result::set_convolution_math_type(self.conv, math)?;
            sys::cudnnCreateActivationDescriptor(&raw mut self.activation).result()?;
            // NaN stays NaN, so that it shows in the answer.
            let nan = sys::cudnnNanPropagation_t::CUDNN_PROPAGATE_NAN;
            sys::cudnnSetActivationDescriptor(self.activation, mode, nan, 0.0).result()
        }
    }

    /// What the heuristics say, best first; nothing if they say nothing.
    fn ranked(&self, handle: sys::cudnnHandle_t) -> Vec<Ranked> {
        let mut count = 0;
        // SAFETY: plain numbers, for which zeros are values, and first ones of their enumerations.
        let mut rows: [sys::cudnnConvolutionFwdAlgoPerf_t; ALGORITHMS] = unsafe { std::mem::zeroed() };
        // SAFETY: all descriptors are live, and the array has as many rows as are asked for.
        let asked = unsafe {
            result::get_convolution_forward_algorithm(
                handle,
                self.x,
                self.weight,
                self.conv,
                self.y,
                ALGORITHMS as i32,
                &raw mut count,
                rows.as_mut_ptr(),
            )
        };
        if let Err(error) = asked {
            tracing::debug!(%error, "cuDNN's heuristics have no answer");
            return Vec::new();
        }
        let rows = rows.iter().take(count.clamp(0, ALGORITHMS as i32) as usize);
        rows.map(|row| Ranked {
            algorithm: row.algo as u32,
            is_offered: row.status == sys::cudnnStatus_t::CUDNN_STATUS_SUCCESS,
            workspace: row.memory,
        })
        .collect()
    }

    fn workspace(
        &self,
        handle: sys::cudnnHandle_t,
        algorithm: sys::cudnnConvolutionFwdAlgo_t,
    ) -> Result<usize, result::CudnnError> {
        // SAFETY: all descriptors are live.
        unsafe {
            result::get_convolution_forward_workspace_size(handle, self.x, self.weight, self.conv, self.y, algorithm)
        }
    }

    fn run(
        &self,
        handle: sys::cudnnHandle_t,
        tail: Tail,
        (algorithm, workspace, bytes): (sys::cudnnConvolutionFwdAlgo_t, *mut c_void, usize),
        at: Addresses,
    ) -> Result<(), result::CudnnError> {
        let (one, zero) = (1.0f32, 0.0f32);
        let (one, zero): (*const c_void, *const c_void) = ((&raw const one).cast(), (&raw const zero).cast());
        // SAFETY: handle and descriptors are live; the addresses have the bytes that the descriptors speak of, checked when they
        // were taken; the workspace has `bytes`; everything is used in the stream's order. The scales are f32 for all our types
        // and read before the calls return. With a scale of zero what y held is not read.
        unsafe {
            match tail {
                Tail::Plain => result::convolution_forward(
                    handle,
                    one,
                    self.x,
                    at.x,
                    self.weight,
                    at.weight,
                    self.conv,
                    algorithm,
                    workspace,
                    bytes,
                    zero,
                    self.y,
                    at.y,
                ),
                Tail::Fused { .. } => result::convolution_bias_activation_forward(
                    handle,
                    one,
                    self.x,
                    at.x,
                    self.weight,
                    at.weight,
                    self.conv,
                    algorithm,
                    workspace,
                    bytes,
                    if at.is_onto { one } else { zero },
                    self.y,
                    at.y,
                    self.bias,
                    at.bias,
                    self.activation,
                    self.y,
                    at.y,
                ),
            }
        }
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        // SAFETY: each was made by its `cudnnCreate...` or is null, and is used by nobody else. What the calls say is nobody's
        // concern any more.
        unsafe {
            for tensor in [self.x, self.y, self.bias] {
                if !tensor.is_null() {
                    let _ = result::destroy_tensor_descriptor(tensor);
                }
            }
            if !self.weight.is_null() {
                let _ = result::destroy_filter_descriptor(self.weight);
            }
            if !self.conv.is_null() {
                let _ = result::destroy_convolution_descriptor(self.conv);
            }
            if !self.activation.is_null() {
                let _ = sys::cudnnDestroyActivationDescriptor(self.activation);
            }
        }
    }
}
