//! `AutoencoderTiny`: TAESD and its kin. The networks work on pictures in 0..1; the engine speaks -1..1.

use super::super::EngineError;
use super::super::checkpoint::Scope;
use super::super::config::TinyConfig;
use super::super::conv::{Bias, Conv, Geometry};
use super::super::map::Activation;
use super::sequence::{Layer, Sequence};

/// The encoder. A stage is a convolution, halving but for the first, and blocks.
pub(super) fn encoder(root: &Scope<'_>, config: &TinyConfig) -> Result<Sequence, EngineError> {
    let scope = root.pp("encoder.layers");
    let mut layers = Vec::new();
    let stages = config.encoder_block_out_channels.iter().zip(&config.num_encoder_blocks);
    for (i, (&width, &blocks)) in stages.enumerate() {
        let (geometry, bias) = match i {
            0 => (Geometry::same(config.in_channels, width), Bias::Present),
            _ => (Geometry::halving(width), Bias::Absent),
        };
        layers.push(Layer::conv(&scope.pp(layers.len()), geometry, bias)?);
        for _ in 0..blocks {
            layers.push(Layer::block(&scope.pp(layers.len()), width, None)?);
        }
    }
    let last = config.encoder_block_out_channels[config.encoder_block_out_channels.len() - 1];
    let geometry = Geometry::same(last, config.latent_channels);
    layers.push(Layer::conv(&scope.pp(layers.len()), geometry, Bias::Present)?);
    Ok(Sequence(layers))
}

/// The decoder. A stage is blocks and a convolution, after upsampling but for the last.
pub(super) fn decoder(root: &Scope<'_>, config: &TinyConfig) -> Result<Sequence, EngineError> {
    let scope = root.pp("decoder.layers");
    let widths = &config.decoder_block_out_channels;
    let first = Conv::load(&scope.pp(0), Geometry::same(config.latent_channels, widths[0]), Bias::Present)?;
    let mut layers = vec![Layer::Conv(first, Activation::Relu)];
    // The activation and the upsampling are layers of their own in the checkpoint's numbering.
    let mut at = 2;
    for (i, (&width, &blocks)) in widths.iter().zip(&config.num_decoder_blocks).enumerate() {
        for _ in 0..blocks {
            layers.push(Layer::block(&scope.pp(at), width, None)?);
            at += 1;
        }
        let (geometry, bias) = if i + 1 == widths.len() {
            (Geometry::same(width, config.out_channels), Bias::Present)
        } else {
            at += 1;
            (Geometry::upsampling(width, config.upsampling_scaling_factor), Bias::Absent)
        };
        layers.push(Layer::conv(&scope.pp(at), geometry, bias)?);
        at += 1;
    }
    Ok(Sequence(layers))
}
