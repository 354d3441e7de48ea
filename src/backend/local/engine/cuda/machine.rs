//! The GPU: its memory, its stream, our kernels, cuBLAS; cuDNN is in `cudnn`.
//!
//! The only `unsafe` of this program is in these two files. Three things make it sound, and each block says which it leans on:
//!
//! 1. **Order.** Everything that touches device memory is queued on the one stream of a [`Machine`], which runs it in order, and
//!    memory is freed on that stream as well. So nothing reads what is not written yet or writes what is freed.
//! 2. **Sizes.** What a kernel reads and writes follows from the integers it is given; callers make buffers of those sizes, and
//!    `tests` runs every kernel through the same callers with guarded buffers. NVIDIA's libraries are given buffers whose lengths
//!    are checked here.
//! 3. **Handles.** cuBLAS's and cuDNN's are used by one thread at a time, behind the lock.

#![expect(unsafe_code, reason = "a GPU is reached through C")]

mod cudnn;

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
};

use candle_core::cuda_backend::cudarc::{
    cublas::{CudaBlas, result::gemm_ex, sys as blas},
    driver::{
        CudaContext, CudaFunction, CudaSlice, CudaStream, DevicePtr as _, DevicePtrMut as _, DriverError, LaunchConfig,
        PinnedHostSlice, PushKernelArg as _, sys,
    },
    nvrtc::Ptx,
};
use parking_lot::Mutex;

use self::cudnn::Cudnn;
use super::super::{EngineError, Precision};
use super::convolve::{ConvShape, Operands, Supported};
use super::grid::THREADS;
use super::{Arg, Launch, Product};

/// `kernels.cu`, compiled by build.rs. The driver translates it for the GPU that it finds.
const KERNELS: &str = include_str!(concat!(env!("OUT_DIR"), "/kernels.ptx"));
/// Kernels that are there for each precision, and the one that is not.
const FOR_EACH: [&str; 11] = [
    "group_partials",
    "norm_apply",
    "finish",
    "spread",
    "from_planes",
    "from_bytes",
    "to_f32",
    "to_f16",
    "to_bf16",
    "to_bytes",
    "softmax",
];
const FOR_ALL: &str = "group_affine";

/// Memory of the host that answers are copied to at the full speed of the bus; larger answers take the slower way.
const PINNED: usize = 256 << 20;

/// GPUs that models are on, by their ordinal: models of one GPU share its stream, so that their runs follow each other, and cuDNN's
/// working memory.
static OPENED: Mutex<Vec<(usize, Weak<Machine>)>> = Mutex::new(Vec::new());

/// One GPU.
pub(in super::super) struct Machine {
    stream: Arc<CudaStream>,
    kernels: HashMap<(&'static str, Option<Precision>), CudaFunction>,
    libraries: Mutex<Libraries>,
    pinned: Mutex<Option<PinnedHostSlice<u8>>>,
}

struct Libraries {
    blas: CudaBlas,
    cudnn: Cudnn,
}

/// Device memory.
pub(super) struct Buffer(CudaSlice<u8>);

/// What NVIDIA's libraries say, as an error of the engine.
fn failed<E: std::error::Error + Send + Sync + 'static>(call: &'static str) -> impl FnOnce(E) -> EngineError {
    move |source| EngineError::Cuda { call, source: Box::new(source) }
}

// === impl Machine ===

impl Machine {
    /// The GPU of this ordinal, opened once for all models that are on it.
    pub(in super::super) fn open(ordinal: usize) -> Result<Arc<Self>, EngineError> {
        let mut opened = OPENED.lock();
        opened.retain(|(_, machine)| machine.strong_count() > 0);
        if let Some(machine) = opened.iter().find(|(of, _)| *of == ordinal).and_then(|(_, machine)| machine.upgrade()) {
            return Ok(machine);
        }
        let machine = Arc::new(Self::start(ordinal)?);
        opened.push((ordinal, Arc::downgrade(&machine)));
        Ok(machine)
    }

    fn start(ordinal: usize) -> Result<Self, EngineError> {
        let context = CudaContext::new(ordinal).map_err(failed("opening the GPU"))?;
        // SAFETY: events are for memory that several streams use. There is one here, and copies that the host reads are waited for.
        unsafe { context.disable_event_tracking() };
        keep_freed_memory(&context);
        let stream = context.new_stream().map_err(failed("cuStreamCreate"))?;
        let module = context.load_module(Ptx::from_src(KERNELS)).map_err(failed("loading the kernels"))?;
        let mut kernels = HashMap::new();
        let mut load = |kernel: &'static str, precision: Option<Precision>, name: &str| {
            let function = module.load_function(name).map_err(failed("cuModuleGetFunction"))?;
            kernels.insert((kernel, precision), function);
            Ok::<_, EngineError>(())
        };
        load(FOR_ALL, None, FOR_ALL)?;
        for kernel in FOR_EACH {
            for (precision, name) in [(Precision::F32, "f32"), (Precision::F16, "f16"), (Precision::BF16, "bf16")] {
                load(kernel, Some(precision), &format!("{kernel}_{name}"))?;
            }
        }
        let blas = CudaBlas::new(stream.clone()).map_err(failed("cublasCreate"))?;
        let libraries = Mutex::new(Libraries { blas, cudnn: Cudnn::new(&stream)? });
        Ok(Self { stream, kernels, libraries, pinned: Mutex::new(None) })
    }

    /// So many bytes of any values.
    pub(super) fn alloc(&self, bytes: usize) -> Result<Buffer, EngineError> {
        // SAFETY: it is written before it is read: every caller hands it to a kernel or a library as what is to be written.
        let slice = unsafe { self.stream.alloc::<u8>(bytes.max(1)) };
        slice.map(Buffer).map_err(failed("cuMemAllocAsync"))
    }

    /// A copy of these bytes. The driver has taken them when this returns.
    pub(super) fn upload(&self, bytes: &[u8]) -> Result<Buffer, EngineError> {
        self.stream.clone_htod(bytes).map(Buffer).map_err(failed("cuMemcpyHtoDAsync"))
    }

    /// Waits for all that is queued, and copies.
    pub(super) fn download(&self, buffer: &Buffer) -> Result<Vec<u8>, EngineError> {
        let copy = failed::<DriverError>;
        let len = buffer.0.len();
        if len > PINNED {
            let bytes = self.stream.clone_dtoh(&buffer.0).map_err(copy("cuMemcpyDtoHAsync"))?;
            self.stream.synchronize().map_err(copy("cuStreamSynchronize"))?;
            return Ok(bytes);
        }
        let mut pinned = self.pinned.lock();
        let held = match pinned.take() {
            Some(held) if held.len() >= len => held,
            _ => {
                // SAFETY: all of what is read of it below is copied over before.
                // No flag: memory that is written combined is read very slowly by the host.
                let fresh = unsafe { self.stream.context().alloc_pinned_with_flags::<u8>(len.next_power_of_two(), 0) };
                fresh.map_err(copy("cuMemHostAlloc"))?
            }
        };
        let held = pinned.insert(held);
        let host = &mut held.as_mut_slice().map_err(copy("cuEventSynchronize"))?[..len];
        self.stream.memcpy_dtoh(&buffer.0, host).map_err(copy("cuMemcpyDtoHAsync"))?;
        self.stream.synchronize().map_err(copy("cuStreamSynchronize"))?;
        Ok(host.to_vec())
    }

    /// Queues a kernel.
    pub(super) fn launch(&self, launch: Launch, args: &mut [Arg<'_>]) -> Result<(), EngineError> {
        let function = self.kernels.get(&(launch.kernel, launch.precision)).ok_or(EngineError::Place)?;
        let mut builder = self.stream.launch_builder(function);
        for arg in args {
            match arg {
                Arg::In(buffer) => builder.arg(&buffer.0),
                Arg::Out(buffer) => builder.arg(&mut buffer.0),
                Arg::Null => builder.arg(&0u64),
                Arg::Int(value) => builder.arg(&*value),
                Arg::Long(value) => builder.arg(&*value),
                Arg::Double(value) => builder.arg(&*value),
            };
        }
        let [x, y, z] = launch.grid;
        let config = LaunchConfig { grid_dim: (x, y, z), block_dim: (THREADS as u32, 1, 1), shared_mem_bytes: 0 };
        // SAFETY: order and sizes, as above. The emulation counts and types the arguments of each launch as the kernel does.
        unsafe { builder.launch(config) }.map_err(failed("cuLaunchKernel"))?;
        Ok(())
    }

    /// Queues a convolution, if cuDNN has it.
    pub(super) fn convolve(&self, shape: &ConvShape, operands: Operands<'_>) -> Result<Supported, EngineError> {
        self.libraries.lock().cudnn.convolve(&self.stream, shape, operands)
    }

    /// Queues a product.
    pub(super) fn product(&self, product: &Product<'_>, (to, first): (&mut Buffer, usize)) -> Result<(), EngineError> {
        let [rows, inner, columns] = product.sizes;
        let int = |size: usize| i32::try_from(size).map_err(failed("a product of such sizes"));
        let (m, n, k) = (int(columns)?, int(rows)?, int(inner)?);
        let size = product.precision.bytes();
        let a = address(&self.stream, product.a.buffer, product.a.first * size, rows * inner * size)?;
        let b = address(&self.stream, product.b.buffer, product.b.first * size, inner * columns * size)?;
        let size = product.out.bytes();
        let out = address_mut(&self.stream, to, first * size, rows * columns * size)?;
        // cuBLAS counts by columns: to it the result is its own transpose, columns x rows, and so are a and b.
        let (of_b, of_a) = (blas::cublasOperation_t::CUBLAS_OP_T, blas::cublasOperation_t::CUBLAS_OP_N);
        let (of_b, stride_b) = if product.is_transposed { (of_b, k) } else { (of_a, m) };
        self.stream.context().bind_to_thread().map_err(failed("cuCtxSetCurrent"))?;
        let (zero, kind) = (0.0f32, data_type(product.precision));
        let libraries = self.libraries.lock();
        // SAFETY: order; the three addresses have as many bytes behind them as these sizes and strides reach; the handle is ours
        // while the lock is held; the scale is read before the call returns, as the handle's pointers are the host's.
        // CUBLAS_COMPUTE_32F in cuBLAS's default mode sums in f32 and does not round f32 operands to TF32.
        let done = unsafe {
            gemm_ex(
                *libraries.blas.handle(),
                of_b,
                of_a,
                m,
                n,
                k,
                (&raw const product.scale).cast(),
                b as *const _,
                kind,
                stride_b,
                a as *const _,
                kind,
                k,
                (&raw const zero).cast(),
                out as *mut _,
                data_type(product.out),
                m,
                blas::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                blas::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        };
        done.map_err(failed("cublasGemmEx"))
    }
}

/// Where some bytes of a buffer lie, which must be there.
fn address(
    stream: &Arc<CudaStream>,
    buffer: &Buffer,
    first: usize,
    len: usize,
) -> Result<sys::CUdeviceptr, EngineError> {
    check(buffer, first, len)?;
    Ok(buffer.0.device_ptr(stream).0 + first as u64)
}

/// The same of bytes that are to be written.
fn address_mut(
    stream: &Arc<CudaStream>,
    buffer: &mut Buffer,
    first: usize,
    len: usize,
) -> Result<sys::CUdeviceptr, EngineError> {
    check(buffer, first, len)?;
    Ok(buffer.0.device_ptr_mut(stream).0 + first as u64)
}

fn check(buffer: &Buffer, first: usize, len: usize) -> Result<(), EngineError> {
    if first.checked_add(len).is_some_and(|end| end <= buffer.0.len()) {
        return Ok(());
    }
    Err(EngineError::Unsupported { what: format!("{len} bytes from {first} of {}", buffer.0.len()) })
}

fn data_type(precision: Precision) -> blas::cudaDataType {
    match precision {
        Precision::F32 => blas::cudaDataType::CUDA_R_32F,
        Precision::F16 => blas::cudaDataType::CUDA_R_16F,
        Precision::BF16 => blas::cudaDataType::CUDA_R_16BF,
    }
}

/// Has the driver keep freed memory for the next run, as it would otherwise give it back to the system whenever the host waits. A
/// driver that refuses is only slower.
fn keep_freed_memory(context: &Arc<CudaContext>) {
    let mut pool = std::ptr::null_mut();
    let mut most = u64::MAX;
    let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    // SAFETY: both calls write or read the one value that they are given, and the device is open.
    let answer = unsafe {
        match sys::cuDeviceGetDefaultMemPool(&raw mut pool, context.cu_device()) {
            sys::CUresult::CUDA_SUCCESS => sys::cuMemPoolSetAttribute(pool, attribute, (&raw mut most).cast()),
            refused => refused,
        }
    };
    if answer != sys::CUresult::CUDA_SUCCESS {
        tracing::warn!(?answer, "the driver does not keep freed memory: runs will be slower");
    }
}
