//! A network that is one sequence of layers, as both tiny families are.

use super::super::checkpoint::Scope;
use super::super::conv::{Bias, Conv, Geometry, Normed};
use super::super::map::{Activation, Map};
use super::super::norm::GroupNorm;
use super::super::residual::{Residual, Step};
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
    convs: Residual,
}

/// 1x1 to four times the width, norm, relu, 1x1 back.
pub(super) struct Pool {
    widen: Conv,
    norm: Normed,
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
                Layer::Block(block) => block.run(x, run)?,
            };
            run.step_done()?;
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
        let step = |i: usize| {
            let conv = Conv::load(&scope.pp(i), Geometry::same(width, width), Bias::Present)?;
            Ok::<_, EngineError>(Step { norm: None, conv, activation: Activation::Relu })
        };
        let steps = vec![step(0)?, step(2)?, step(4)?];
        Ok(Self::Block(Block { pool, convs: Residual { steps, shortcut: None, activation: Activation::Relu } }))
    }
}

// === impl Block ===

impl Block {
    fn run(&self, mut x: Map, run: &mut Run<'_>) -> Result<Map, EngineError> {
        if let Some(pool) = &self.pool {
            let wide = pool.widen.run(&x, Activation::None)?;
            x = pool.narrow.run_onto(&wide, Some(&pool.norm), Some(x), Activation::None)?;
        }
        self.convs.run(x.into(), run)
    }
}

// === impl Pool ===

impl Pool {
    /// The pool of a block of `width` channels; `groups` and `eps` are its norm's.
    pub(super) fn load(scope: &Scope<'_>, width: usize, groups: usize, eps: f64) -> Result<Self, EngineError> {
        let wide = 4 * width;
        Ok(Self {
            widen: Conv::load(&scope.pp(0), Geometry::pointwise(width, wide), Bias::Absent)?,
            norm: Normed { norm: GroupNorm::load(&scope.pp(1), wide, groups, eps)?, activation: Activation::Relu },
            narrow: Conv::load(&scope.pp(3), Geometry::pointwise(wide, width), Bias::Absent)?,
        })
    }
}
