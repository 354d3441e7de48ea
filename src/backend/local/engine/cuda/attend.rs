//! Attention of one head over all pixels: two products and a softmax for some queries at a time, so that no pixels x pixels
//! matrix exists.

use super::super::{EngineError, Precision};
use super::grid::{self, stored};
use super::{Arg, CudaMap, Launch, Product, Span, int};

/// Scores held at once: 128 MiB in f32, and as many weights in the precision.
pub(in super::super) const SCORES: usize = 32 << 20;

/// What the weights of a query sum to (`WEIGHTS_SUM` in `kernels.cu`): a power of two, so that dividing by it rounds nothing.
const WEIGHTS_SUM: f32 = 1024.0;

/// `softmax(q k^T / sqrt(c)) v` of each image, over maps of one shape.
pub(in super::super) fn attend(q: &CudaMap, k: &CudaMap, v: &CudaMap) -> Result<CudaMap, EngineError> {
    let (machine, precision, pixels, width) = (&q.machine, q.precision, q.pixels(), stored(q.c));
    let mut seen = q.like()?;
    let lines = (SCORES / pixels).clamp(1, pixels);
    let mut scores = machine.alloc(lines * pixels * Precision::F32.bytes())?;
    let mut weights = machine.alloc(lines * pixels * precision.bytes())?;
    for image in 0..q.n {
        for start in (0..pixels).step_by(lines) {
            let lines = lines.min(pixels - start);
            let (image, first) = (image * pixels * width, (image * pixels + start) * width);
            let of_keys = Product {
                a: Span { buffer: &q.data, first },
                b: Span { buffer: &k.data, first: image },
                is_transposed: true,
                sizes: [lines, width, pixels],
                scale: 1.0 / (q.c as f32).sqrt(),
                precision,
                out: Precision::F32,
            };
            machine.product(&of_keys, (&mut scores, 0))?;
            machine.launch(
                Launch { kernel: "softmax", precision: Some(precision), grid: grid::of_lines(lines) },
                &mut [Arg::In(&scores), Arg::Out(&mut weights), int(pixels)],
            )?;
            let of_values = Product {
                a: Span { buffer: &weights, first: 0 },
                b: Span { buffer: &v.data, first: image },
                is_transposed: false,
                sizes: [lines, pixels, width],
                scale: 1.0 / WEIGHTS_SUM,
                precision,
                out: precision,
            };
            machine.product(&of_values, (&mut seen.data, first))?;
        }
    }
    Ok(seen)
}
