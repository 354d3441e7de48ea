//! Kernels of the CPU path, in safe Rust: feature maps in f32, pixels outermost and channels innermost.
//!
//! candle's own CPU convolution spends half of its time filling a 9-fold copy of its input; these kernels read the
//! input where it lies and bound their scratch memory per thread. SIMD comes from `pulp`, which picks the widest
//! instruction set of the machine at run time, so no `unsafe` is needed here.

#![expect(clippy::inline_always, reason = "what is not inlined into the dispatched function loses its instruction set")]

pub(super) mod attend;
pub(super) mod convolve;
pub(super) mod elementwise;
pub(super) mod product;
pub(super) mod winograd;

use std::cell::RefCell;

use super::Precision;

/// A feature map in f32, `[n, h, w, c]`; what a residual block hands on is representable in `precision`.
#[derive(Clone)]
pub(super) struct HostMap {
    pub(super) n: usize,
    pub(super) h: usize,
    pub(super) w: usize,
    pub(super) c: usize,
    pub(super) precision: Precision,
    pub(super) data: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Lends `len` floats of a buffer that stays with the thread, so that no kernel pays for fresh pages on each call.
/// The contents are whatever the last borrower left.
pub(super) fn with_scratch<R>(len: usize, run: impl FnOnce(&mut [f32]) -> R) -> R {
    let mut buffer = SCRATCH.take();
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    let result = run(&mut buffer[..len]);
    SCRATCH.set(buffer);
    result
}

// === impl HostMap ===

impl HostMap {
    pub(super) fn zeros_like(&self, h: usize, w: usize, c: usize) -> Self {
        Self { n: self.n, h, w, c, precision: self.precision, data: vec![0.0; self.n * h * w * c] }
    }

    /// From row-major `[n, c, h, w]`. An input is not rounded: it is no layer's result, and the first layer reads f32.
    pub(super) fn from_planes(planes: &[f32], [n, c, h, w]: [usize; 4], precision: Precision) -> Self {
        let mut data = vec![0.0; planes.len()];
        let pixels = h * w;
        for (image, planes) in data.chunks_exact_mut(pixels * c).zip(planes.chunks_exact(pixels * c)) {
            for (p, pixel) in image.chunks_exact_mut(c).enumerate() {
                for (k, value) in pixel.iter_mut().enumerate() {
                    *value = planes[k * pixels + p];
                }
            }
        }
        Self { n, h, w, c, precision, data }
    }

    /// To row-major `[n, c, h, w]`.
    pub(super) fn to_planes(&self) -> Vec<f32> {
        let pixels = self.h * self.w;
        let mut planes = vec![0.0; self.data.len()];
        for (planes, image) in planes.chunks_exact_mut(pixels * self.c).zip(self.data.chunks_exact(pixels * self.c)) {
            for (p, pixel) in image.chunks_exact(self.c).enumerate() {
                for (k, &value) in pixel.iter().enumerate() {
                    planes[k * pixels + p] = value;
                }
            }
        }
        planes
    }

    /// Rounds to the map's precision: what storing the layer's result in that type would do.
    pub(super) fn round(&mut self) {
        elementwise::round(&mut self.data, self.precision);
    }
}
