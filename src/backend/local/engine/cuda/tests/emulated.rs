//! The GPU of tests: kernels run by `tests/cuda/emulate.cpp`, which compiles their own text for the CPU; convolutions and products
//! by plain loops. Fresh memory reads as NaN.

#![allow(
    clippy::needless_pass_by_value,
    clippy::print_stdout,
    clippy::unnecessary_wraps,
    clippy::unused_self,
    clippy::unwrap_used,
    reason = "a test's, in the form of the GPU's"
)]

use std::{
    io::{BufReader, BufWriter, Read as _, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{Arc, LazyLock},
};

use half::{bf16, f16};
use parking_lot::Mutex;

use super::super::{EngineError, Precision};
use super::convolve::{ConvShape, Operands, Supported, Tail};
use super::{Arg, Launch, Product, Span, rounded};

/// What the GPU is like.
#[derive(Clone, Copy)]
pub(super) struct Traits {
    /// Whether threads take turns from the last to the first.
    pub(super) is_reversed: bool,
    /// Whether cuDNN has the fused call.
    pub(super) is_fused: bool,
}

/// One GPU.
pub(in super::super) struct Machine {
    traits: Traits,
    emulator: Mutex<Emulator>,
}

struct Emulator {
    child: Child,
    input: Option<BufWriter<ChildStdin>>,
    output: BufReader<ChildStdout>,
}

/// Its memory.
#[derive(Debug)]
pub(super) struct Buffer(pub(super) Vec<u8>);

/// The emulator, compiled once; nothing where there is no compiler.
static PROGRAM: LazyLock<Option<(tempfile::TempDir, PathBuf)>> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("emulate");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cuda/emulate.cpp");
    for compiler in ["c++", "g++", "clang++"] {
        let mut command = Command::new(compiler);
        // Without contraction, as one rounding for two would differ from machine to machine.
        command.args(["-std=c++17", "-O2", "-fno-strict-aliasing", "-ffp-contract=off", "-Wno-unknown-pragmas", "-o"]);
        match command.arg(&program).arg(&source).output() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            ran => {
                let ran = ran.unwrap();
                assert!(ran.status.success(), "{compiler}: {}", String::from_utf8_lossy(&ran.stderr));
                return Some((folder, program));
            }
        }
    }
    None
});

// === impl Machine ===

impl Machine {
    /// A GPU like this, unless no compiler is there to make one; that is said.
    pub(super) fn emulated(traits: Traits, test: &str) -> Option<Arc<Self>> {
        let Some((_, program)) = PROGRAM.as_ref() else {
            println!("NOT RUN: no C++ compiler: {test}");
            return None;
        };
        let mut child = Command::new(program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let input = Some(BufWriter::new(child.stdin.take().unwrap()));
        let output = BufReader::new(child.stdout.take().unwrap());
        Some(Arc::new(Self { traits, emulator: Mutex::new(Emulator { child, input, output }) }))
    }

    pub(in super::super) fn open(_: usize) -> Result<Arc<Self>, EngineError> {
        Err(EngineError::Unsupported { what: "the CUDA device of a test build".into() })
    }

    pub(super) fn alloc(&self, bytes: usize) -> Result<Buffer, EngineError> {
        Ok(Buffer(vec![0xff; bytes]))
    }

    pub(super) fn upload(&self, bytes: &[u8]) -> Result<Buffer, EngineError> {
        Ok(Buffer(bytes.to_vec()))
    }

    pub(super) fn download(&self, buffer: &Buffer) -> Result<Vec<u8>, EngineError> {
        Ok(buffer.0.clone())
    }

    pub(super) fn launch(&self, launch: Launch, args: &mut [Arg<'_>]) -> Result<(), EngineError> {
        let name = match launch.precision {
            Some(precision) => format!("{}_{}", launch.kernel, format!("{precision:?}").to_lowercase()),
            None => launch.kernel.to_owned(),
        };
        let mut message = Vec::new();
        message.extend(u32::from(self.traits.is_reversed).to_le_bytes());
        message.extend(launch.grid.iter().flat_map(|side| side.to_le_bytes()));
        message.extend((name.len() as u32).to_le_bytes());
        message.extend(name.as_bytes());
        message.extend((args.len() as u32).to_le_bytes());
        for arg in &*args {
            arg.tell(&mut message);
        }
        self.emulator.lock().run(&name, &message, args);
        Ok(())
    }

    pub(super) fn convolve(&self, shape: &ConvShape, operands: Operands<'_>) -> Result<Supported, EngineError> {
        if shape.tail != Tail::Plain && !self.traits.is_fused {
            return Ok(Supported::No);
        }
        let (oh, ow) = (shape.extent(shape.h), shape.extent(shape.w));
        let x = numbers(operands.x.0, operands.x.1, shape.n * shape.h * shape.w * shape.inputs, shape.precision);
        let taps = shape.kernel * shape.kernel * shape.inputs;
        let weight = numbers(operands.weight, 0, shape.outputs * taps, shape.precision);
        let bias = numbers(operands.bias, 0, shape.outputs, shape.precision);
        let (y, first) = operands.y;
        let size = shape.precision.bytes();
        for (at, place) in (0..shape.n * oh * ow).enumerate() {
            let (image, row, column) = (place / (oh * ow), place / ow % oh, place % ow);
            let mut sums = vec![0.0; shape.outputs];
            for tap in 0..shape.kernel * shape.kernel {
                let inside = |at: usize, tap: usize, side: usize| {
                    (at * shape.stride + tap).checked_sub(shape.pad).filter(|&at| at < side)
                };
                let from = (inside(row, tap / shape.kernel, shape.h), inside(column, tap % shape.kernel, shape.w));
                let (Some(iy), Some(ix)) = from else { continue };
                let pixel = &x[((image * shape.h + iy) * shape.w + ix) * shape.inputs..][..shape.inputs];
                for (sum, filter) in sums.iter_mut().zip(weight.chunks_exact(taps)) {
                    let filter = &filter[tap * shape.inputs..][..shape.inputs];
                    *sum += filter.iter().zip(pixel).map(|(w, v)| w * v).sum::<f32>();
                }
            }
            let (start, len) = ((first + at * shape.outputs) * size, shape.outputs * size);
            if let Tail::Fused { relu } = shape.tail {
                let onto = numbers(y, first + at * shape.outputs, shape.outputs, shape.precision);
                for ((sum, bias), onto) in sums.iter_mut().zip(&bias).zip(onto) {
                    *sum += bias + if operands.is_onto { onto } else { 0.0 };
                    // NaN stays NaN.
                    *sum = if relu && *sum < 0.0 { 0.0 } else { *sum };
                }
            }
            y.0[start..start + len].copy_from_slice(&rounded(&sums, shape.precision));
        }
        Ok(Supported::Yes)
    }

    pub(super) fn product(&self, product: &Product<'_>, out: (&mut Buffer, usize)) -> Result<(), EngineError> {
        let [rows, inner, columns] = product.sizes;
        let read = |span: Span<'_>, len| numbers(span.buffer, span.first, len, product.precision);
        let (a, b) = (read(product.a, rows * inner), read(product.b, inner * columns));
        let mut made = Vec::with_capacity(rows * columns);
        for line in a.chunks_exact(inner) {
            for column in 0..columns {
                let at = |i: usize| if product.is_transposed { b[column * inner + i] } else { b[i * columns + column] };
                made.push(line.iter().enumerate().map(|(i, v)| v * at(i)).sum::<f32>() * product.scale);
            }
        }
        let bytes = rounded(&made, product.out);
        let first = out.1 * product.out.bytes();
        out.0.0[first..first + bytes.len()].copy_from_slice(&bytes);
        Ok(())
    }
}

/// Elements of a buffer, widened.
pub(super) fn numbers(buffer: &Buffer, first: usize, len: usize, precision: Precision) -> Vec<f32> {
    let bytes = &buffer.0[first * precision.bytes()..(first + len) * precision.bytes()];
    match precision {
        Precision::F32 => bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
        Precision::F16 => bytes.as_chunks().0.iter().map(|&b| f16::from_le_bytes(b).to_f32()).collect(),
        Precision::BF16 => bytes.as_chunks().0.iter().map(|&b| bf16::from_le_bytes(b).to_f32()).collect(),
    }
}

// === impl Arg ===

impl Arg<'_> {
    fn tell(&self, message: &mut Vec<u8>) {
        match self {
            Arg::Int(value) => {
                message.push(0);
                message.extend(value.to_le_bytes());
            }
            Arg::Long(value) => {
                message.push(1);
                message.extend(value.to_le_bytes());
            }
            Arg::Double(value) => {
                message.push(2);
                message.extend(value.to_le_bytes());
            }
            Arg::In(Buffer(bytes)) | Arg::Out(Buffer(bytes)) => {
                message.push(3);
                message.extend((bytes.len() as u64).to_le_bytes());
                message.extend(bytes);
            }
            Arg::Null => message.push(4),
        }
    }
}

// === impl Emulator ===

impl Emulator {
    fn run(&mut self, name: &str, message: &[u8], args: &mut [Arg<'_>]) {
        let input = self.input.as_mut().unwrap();
        let sent = input.write_all(message).and_then(|()| input.flush());
        assert!(sent.is_ok(), "the emulator ended before {name}");
        for arg in args {
            match arg {
                Arg::In(buffer) => {
                    let mut after = vec![0; buffer.0.len()];
                    self.output.read_exact(&mut after).unwrap_or_else(|_| panic!("the emulator ended in {name}"));
                    assert!(after == buffer.0, "{name} writes what it is to read");
                }
                Arg::Out(buffer) => {
                    self.output.read_exact(&mut buffer.0).unwrap_or_else(|_| panic!("the emulator ended in {name}"));
                }
                Arg::Null | Arg::Int(_) | Arg::Long(_) | Arg::Double(_) => {}
            }
        }
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        // The end of its input ends it.
        self.input = None;
        drop(self.child.wait());
    }
}
