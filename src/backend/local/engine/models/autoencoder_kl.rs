//! `AutoencoderKL`: the autoencoder of SD v1, SDXL and FLUX.1, exactly as diffusers computes it.

use super::super::attention::Attention;
use super::super::checkpoint::Scope;
use super::super::config::KlConfig;
use super::super::conv::{Bias, Conv, Geometry, Normed};
use super::super::map::{Activation, Map};
use super::super::norm::GroupNorm;
use super::super::residual::{Ahead, Residual, Step};
use super::super::{EngineError, Run};

/// Of every norm in this network.
const EPS: f64 = 1e-6;

/// `encoder` and `quant_conv`.
pub(in super::super) struct Encoder {
    conv_in: Conv,
    down_blocks: Vec<Stage>,
    mid_block: MidBlock,
    conv_norm_out: Normed,
    conv_out: Conv,
    quant_conv: Option<Conv>,
}

/// `post_quant_conv` and `decoder`.
pub(in super::super) struct Decoder {
    post_quant_conv: Option<Conv>,
    conv_in: Conv,
    mid_block: MidBlock,
    up_blocks: Vec<Stage>,
    conv_norm_out: Normed,
    conv_out: Conv,
}

/// Residual blocks of one width and the convolution that leads to the next size.
struct Stage {
    resnets: Vec<Residual>,
    resample: Option<Conv>,
}

struct MidBlock {
    first: Residual,
    attention: Option<Attention>,
    second: Residual,
}

// === impl Encoder ===

impl Encoder {
    pub(in super::super) fn load(root: &Scope<'_>, config: &KlConfig) -> Result<Self, EngineError> {
        let scope = root.pp("encoder");
        let (widths, groups) = (&config.block_out_channels, config.norm_num_groups);
        let top = widths[widths.len() - 1];
        let mut down_blocks = Vec::new();
        let mut inputs = widths[0];
        for (i, &width) in widths.iter().enumerate() {
            let scope = scope.pp("down_blocks").pp(i);
            let resample = if i + 1 < widths.len() {
                let scope = scope.pp("downsamplers.0.conv");
                Some(Conv::load(&scope, Geometry::halving_after(width), Bias::Present)?)
            } else {
                None
            };
            down_blocks.push(Stage::load(&scope, [inputs, width, config.layers_per_block], groups, resample)?);
            inputs = width;
        }
        let moments = 2 * config.latent_channels;
        let quant_conv = config
            .use_quant_conv
            .then(|| Conv::load(&root.pp("quant_conv"), Geometry::pointwise(moments, moments), Bias::Present))
            .transpose()?;
        Ok(Self {
            conv_in: Conv::load(&scope.pp("conv_in"), Geometry::same(config.in_channels, widths[0]), Bias::Present)?,
            down_blocks,
            mid_block: MidBlock::load(&scope.pp("mid_block"), top, config)?,
            conv_norm_out: normed(&scope.pp("conv_norm_out"), top, groups)?,
            conv_out: Conv::load(&scope.pp("conv_out"), Geometry::same(top, moments), Bias::Present)?,
            quant_conv,
        })
    }

    /// Blocks of a run.
    pub(in super::super) fn blocks(&self) -> u32 {
        2 + self.mid_block.blocks() + self.down_blocks.iter().map(Stage::blocks).sum::<u32>()
    }

    /// Pictures to moments: mean, then log-variance.
    pub(in super::super) fn run(&self, x: &Map, run: &mut Run<'_>) -> Result<Map, EngineError> {
        let mut x = self.conv_in.run(x, Activation::None)?;
        run.step_done()?;
        for stage in &self.down_blocks {
            x = stage.run(x.into(), run)?.whole()?;
        }
        let x = self.mid_block.run(x, run)?;
        let mut x = self.conv_out.run_onto(&x, Some(&self.conv_norm_out), None, Activation::None)?;
        if let Some(quant_conv) = &self.quant_conv {
            x = quant_conv.run(&x, Activation::None)?;
        }
        run.step_done()?;
        Ok(x)
    }
}

// === impl Decoder ===

impl Decoder {
    pub(in super::super) fn load(root: &Scope<'_>, config: &KlConfig) -> Result<Self, EngineError> {
        let scope = root.pp("decoder");
        let (widths, groups) = (&config.block_out_channels, config.norm_num_groups);
        let (latents, top) = (config.latent_channels, widths[widths.len() - 1]);
        let mut up_blocks = Vec::new();
        let mut inputs = top;
        for (i, &width) in widths.iter().rev().enumerate() {
            let scope = scope.pp("up_blocks").pp(i);
            let resample = if i + 1 < widths.len() {
                let scope = scope.pp("upsamplers.0.conv");
                Some(Conv::load(&scope, Geometry::upsampling(width, 2), Bias::Present)?)
            } else {
                None
            };
            up_blocks.push(Stage::load(&scope, [inputs, width, config.layers_per_block + 1], groups, resample)?);
            inputs = width;
        }
        let post_quant_conv = config
            .use_post_quant_conv
            .then(|| Conv::load(&root.pp("post_quant_conv"), Geometry::pointwise(latents, latents), Bias::Present))
            .transpose()?;
        let (first, last) = (Geometry::same(latents, top), Geometry::same(widths[0], config.out_channels));
        Ok(Self {
            post_quant_conv,
            conv_in: Conv::load(&scope.pp("conv_in"), first, Bias::Present)?,
            mid_block: MidBlock::load(&scope.pp("mid_block"), top, config)?,
            up_blocks,
            conv_norm_out: normed(&scope.pp("conv_norm_out"), widths[0], groups)?,
            conv_out: Conv::load(&scope.pp("conv_out"), last, Bias::Present)?,
        })
    }

    /// Blocks of a run.
    pub(in super::super) fn blocks(&self) -> u32 {
        2 + self.mid_block.blocks() + self.up_blocks.iter().map(Stage::blocks).sum::<u32>()
    }

    /// Latents to pictures, not clamped.
    pub(in super::super) fn run(&self, z: &Map, run: &mut Run<'_>) -> Result<Map, EngineError> {
        let x = match &self.post_quant_conv {
            Some(conv) => self.conv_in.run(&conv.run(z, Activation::None)?, Activation::None)?,
            None => self.conv_in.run(z, Activation::None)?,
        };
        run.step_done()?;
        let mut ahead = Ahead::from(self.mid_block.run(x, run)?);
        for stage in &self.up_blocks {
            ahead = stage.run(ahead, run)?;
        }
        let x = ahead.whole()?;
        let x = self.conv_out.run_onto(&x, Some(&self.conv_norm_out), None, Activation::None)?;
        run.step_done()?;
        Ok(x)
    }
}

// === impl Stage ===

impl Stage {
    fn load(
        scope: &Scope<'_>,
        [inputs, width, count]: [usize; 3],
        groups: usize,
        resample: Option<Conv>,
    ) -> Result<Self, EngineError> {
        let resnets = (0..count)
            .map(|j| resnet(&scope.pp("resnets").pp(j), if j == 0 { inputs } else { width }, width, groups))
            .collect::<Result<_, _>>()?;
        Ok(Self { resnets, resample })
    }

    fn blocks(&self) -> u32 {
        self.resnets.len() as u32 + u32::from(self.resample.is_some())
    }

    /// The last block's map, and the convolution to the next size yet to be made.
    fn run(&self, x: Ahead<'_>, run: &mut Run<'_>) -> Result<Ahead<'_>, EngineError> {
        let (first, others) =
            self.resnets.split_first().ok_or_else(|| EngineError::Config("a stage without blocks".into()))?;
        let mut map = first.run(x, run)?;
        run.step_done()?;
        for resnet in others {
            map = resnet.run(map.into(), run)?;
            run.step_done()?;
        }
        if self.resample.is_some() {
            run.step_done()?;
        }
        Ok(Ahead { map, conv: self.resample.as_ref() })
    }
}

// === impl MidBlock ===

impl MidBlock {
    fn load(scope: &Scope<'_>, width: usize, config: &KlConfig) -> Result<Self, EngineError> {
        let groups = config.norm_num_groups;
        let attention = config
            .mid_block_add_attention
            .then(|| Attention::load(&scope.pp("attentions.0"), width, groups, EPS))
            .transpose()?;
        Ok(Self {
            first: resnet(&scope.pp("resnets.0"), width, width, groups)?,
            attention,
            second: resnet(&scope.pp("resnets.1"), width, width, groups)?,
        })
    }

    fn blocks(&self) -> u32 {
        2 + u32::from(self.attention.is_some())
    }

    fn run(&self, x: Map, run: &mut Run<'_>) -> Result<Map, EngineError> {
        let mut x = self.first.run(x.into(), run)?;
        run.step_done()?;
        if let Some(attention) = &self.attention {
            x = attention.run(x)?;
            run.step_done()?;
        }
        let x = self.second.run(x.into(), run)?;
        run.step_done()?;
        Ok(x)
    }
}

/// The norm of the scope, and the SiLU that follows every norm of this network but that of attention.
fn normed(scope: &Scope<'_>, channels: usize, groups: usize) -> Result<Normed, EngineError> {
    Ok(Normed { norm: GroupNorm::load(scope, channels, groups, EPS)?, activation: Activation::Silu })
}

fn resnet(scope: &Scope<'_>, inputs: usize, outputs: usize, groups: usize) -> Result<Residual, EngineError> {
    let shortcut = (inputs != outputs)
        .then(|| Conv::load(&scope.pp("conv_shortcut"), Geometry::pointwise(inputs, outputs), Bias::Present))
        .transpose()?;
    let step = |norm: &str, conv: &str, inputs: usize| {
        let norm = Some(normed(&scope.pp(norm), inputs, groups)?);
        let conv = Conv::load(&scope.pp(conv), Geometry::same(inputs, outputs), Bias::Present)?;
        Ok::<_, EngineError>(Step { norm, conv, activation: Activation::None })
    };
    let steps = vec![step("norm1", "conv1", inputs)?, step("norm2", "conv2", outputs)?];
    Ok(Residual { steps, shortcut, activation: Activation::None })
}
