//! A network that is one sequence of layers, as both tiny families are.

use super::super::checkpoint::Scope;
use super::super::conv::{Bias, Conv, Geometry};
use super::super::map::{Activation, Map};
use super::super::norm::GroupNorm;
use super::super::{EngineError, Run};

/// The layers in the order they run.
pub(in super::super) struct Sequence(pub(super) Vec<Layer>);

/// One layer.
#[expect(clippy::large_enum_variant, reason = "a few for each model, never moved once loaded")]
pub(super) enum Layer {
    Conv(Conv, Activation),
    Block(Block),
}

/// `relu(conv(relu(conv(relu(conv(y))))) + y)`, where `y = x + pool(x)` if there is a pool.
pub(super) struct Block {
    pool: Option<Pool>,
    convs: [Conv; 3],
}

/// 1x1 to four times the width, norm, relu, 1x1 back.
pub(super) struct Pool {
    widen: Conv,
    norm: GroupNorm,
    narrow: Conv,
}

// === impl Sequence ===

impl Sequence {
    /// Blocks of a run.
    pub(super) fn blocks(&self) -> u32 {
        self.0.len() as u32
    }

    /// The whole sequence.
    pub(super) fn run(&self, mut x: Map, run: &mut Run<'_>) -> Result<Map, EngineError> {
        for layer in &self.0 {
            x = match layer {
                Layer::Conv(conv, activation) => conv.run(&x, *activation)?,
                Layer::Block(block) => block.run(x)?,
            };
            run.block_done()?;
        }
        Ok(x)
    }
}

// === impl Layer ===

impl Layer {
    /// A convolution without an activation.
    pub(super) fn conv(scope: &Scope<'_>, geometry: Geometry, bias: Bias) -> Result<Self, EngineError> {
        Ok(Self::Conv(Conv::load(scope, geometry, bias)?, Activation::None))
    }

    /// A block of `width` channels.
    pub(super) fn block(scope: &Scope<'_>, width: usize, pool: Option<Pool>) -> Result<Self, EngineError> {
        let scope = scope.pp("conv");
        let conv = |i: usize| Conv::load(&scope.pp(i), Geometry::same(width, width), Bias::Present);
        Ok(Self::Block(Block { pool, convs: [conv(0)?, conv(2)?, conv(4)?] }))
    }
}

// === impl Block ===

impl Block {
    fn run(&self, mut x: Map) -> Result<Map, EngineError> {
        if let Some(pool) = &self.pool {
            let wide = pool.norm.run(pool.widen.run(&x, Activation::None)?, Activation::Relu)?;
            x = pool.narrow.run_onto(&wide, Some(x), Activation::None)?;
        }
        let mut h = self.convs[0].run(&x, Activation::Relu)?;
        h = self.convs[1].run(&h, Activation::Relu)?;
        self.convs[2].run_onto(&h, Some(x), Activation::Relu)
    }
}

// === impl Pool ===

impl Pool {
    /// The pool of a block of `width` channels; `groups` and `eps` are its norm's.
    pub(super) fn load(scope: &Scope<'_>, width: usize, groups: usize, eps: f64) -> Result<Self, EngineError> {
        let wide = 4 * width;
        Ok(Self {
            widen: Conv::load(&scope.pp(0), Geometry::pointwise(width, wide), Bias::Absent)?,
            norm: GroupNorm::load(&scope.pp(1), wide, groups, eps)?,
            narrow: Conv::load(&scope.pp(3), Geometry::pointwise(wide, width), Bias::Absent)?,
        })
    }
}
