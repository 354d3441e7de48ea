//! TAEF2, the tiny autoencoder of FLUX.2's latents: like TAESD, with normed bottlenecks at the smallest size. Positions
//! in the sequences are the checkpoint's names.

use super::super::EngineError;
use super::super::checkpoint::Scope;
use super::super::config::Taef2Config;
use super::super::conv::{Bias, Conv, Geometry};
use super::super::map::Activation;
use super::sequence::{Layer, Pool, Sequence};

/// Whether a block has a pool.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pooled {
    Yes,
    No,
}

/// The encoder.
pub(super) fn encoder(root: &Scope<'_>, config: &Taef2Config) -> Result<Sequence, EngineError> {
    let (scope, width) = (root.pp("encoder"), config.width);
    let mut layers = vec![Layer::conv(&scope.pp(0), Geometry::same(config.in_channels, width), Bias::Present)?];
    layers.push(block(&scope.pp(1), config, Pooled::No)?);
    for pooled in [Pooled::No, Pooled::No, Pooled::Yes] {
        layers.push(Layer::conv(&scope.pp(layers.len()), Geometry::halving(width), Bias::Absent)?);
        for _ in 0..3 {
            layers.push(block(&scope.pp(layers.len()), config, pooled)?);
        }
    }
    let last = Geometry::same(width, config.latent_channels);
    layers.push(Layer::conv(&scope.pp(layers.len()), last, Bias::Present)?);
    Ok(Sequence(layers))
}

/// The decoder, from its position 1: the soft clip at 0 happens before.
pub(super) fn decoder(root: &Scope<'_>, config: &Taef2Config) -> Result<Sequence, EngineError> {
    let (scope, width) = (root.pp("decoder"), config.width);
    let first = Conv::load(&scope.pp(1), Geometry::same(config.latent_channels, width), Bias::Present)?;
    let mut layers = vec![Layer::Conv(first, Activation::Relu)];
    // Clip, convolution and relu are 0 to 2; each stage is three blocks, an upsampling and a convolution.
    let mut at = 3;
    for pooled in [Pooled::Yes, Pooled::No, Pooled::No] {
        for _ in 0..3 {
            layers.push(block(&scope.pp(at), config, pooled)?);
            at += 1;
        }
        layers.push(Layer::conv(&scope.pp(at + 1), Geometry::upsampling(width, 2), Bias::Absent)?);
        at += 2;
    }
    layers.push(block(&scope.pp(at), config, Pooled::No)?);
    layers.push(Layer::conv(&scope.pp(at + 1), Geometry::same(width, config.out_channels), Bias::Present)?);
    Ok(Sequence(layers))
}

fn block(scope: &Scope<'_>, config: &Taef2Config, pooled: Pooled) -> Result<Layer, EngineError> {
    let load = || Pool::load(&scope.pp("pool"), config.width, config.norm_num_groups, config.norm_eps);
    let pool = (pooled == Pooled::Yes).then(load).transpose()?;
    Layer::block(scope, config.width, pool)
}
