//! Attention of one head over all pixels, chunked by queries so that no pixels x pixels matrix exists.

use candle_core::{D, DType, Tensor};

use super::EngineError;
use super::checkpoint::Scope;
use super::conv::{Bias, Conv, Geometry};
use super::cuda;
use super::host::attend;
use super::map::{Activation, Map};
use super::norm::GroupNorm;

/// Scores that candle may hold at once: 64 Mi values, 256 MiB in f32.
const SCORES: usize = 64 << 20;

/// `x + out(softmax(q k^T / sqrt(c)) v)` with q, k, v linear in the normed x.
pub(super) struct Attention {
    group_norm: GroupNorm,
    to_q: Conv,
    to_k: Conv,
    to_v: Conv,
    to_out: Conv,
}

impl Attention {
    /// Reads either generation of names: `to_q to_k to_v to_out.0`, or `query key value proj_attn`.
    pub(super) fn load(scope: &Scope<'_>, channels: usize, groups: usize, eps: f64) -> Result<Self, EngineError> {
        let old = scope.has("query.weight");
        let conv = |new: &str, name: &str| {
            let scope = scope.pp(if old { name } else { new });
            Conv::load(&scope, Geometry::pointwise(channels, channels), Bias::Present)
        };
        Ok(Self {
            group_norm: GroupNorm::load(&scope.pp("group_norm"), channels, groups, eps)?,
            to_q: conv("to_q", "query")?,
            to_k: conv("to_k", "key")?,
            to_v: conv("to_v", "value")?,
            to_out: conv("to_out.0", "proj_attn")?,
        })
    }

    /// The block, residual included.
    pub(super) fn run(&self, x: Map) -> Result<Map, EngineError> {
        let normed = self.group_norm.apply(&x, Activation::None)?;
        let q = self.to_q.run(&normed, Activation::None)?;
        let k = self.to_k.run(&normed, Activation::None)?;
        let v = self.to_v.run(&normed, Activation::None)?;
        drop(normed);
        let seen = match (q, k, v) {
            (Map::Host(q), Map::Host(k), Map::Host(v)) => Map::Host(attend::attend(&q, &k, &v)),
            (Map::Device(q), Map::Device(k), Map::Device(v)) => Map::Device(on_device(&q, &k, &v)?),
            (Map::Cuda(q), Map::Cuda(k), Map::Cuda(v)) => Map::Cuda(cuda::attend(&q, &k, &v)?),
            _ => return Err(EngineError::Place),
        };
        self.to_out.run_onto(&seen, None, Some(x), Activation::None)
    }
}

fn on_device(q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor, EngineError> {
    let (n, c, h, w) = q.dims4()?;
    let pixels = h * w;
    let q = (q.reshape((n, c, pixels))?.transpose(1, 2)? / (c as f64).sqrt())?.contiguous()?;
    let k = k.reshape((n, c, pixels))?.contiguous()?;
    let v = v.reshape((n, c, pixels))?.transpose(1, 2)?.contiguous()?;
    let queries = (SCORES / (n * pixels)).clamp(1, pixels);
    let mut parts = Vec::new();
    for start in (0..pixels).step_by(queries) {
        let q = q.narrow(1, start, queries.min(pixels - start))?.contiguous()?;
        let scores = q.matmul(&k)?.to_dtype(DType::F32)?;
        let weights = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
        let weights = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?;
        parts.push(weights.to_dtype(v.dtype())?.matmul(&v)?);
    }
    Ok(Tensor::cat(&parts, 1)?.transpose(1, 2)?.reshape((n, c, h, w))?.contiguous()?)
}
