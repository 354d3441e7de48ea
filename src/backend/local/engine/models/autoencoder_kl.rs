//! `AutoencoderKL`: the autoencoder of SD v1, SDXL and FLUX.1, exactly as diffusers computes it.

use super::super::attention::Attention;
use super::super::checkpoint::Scope;
use super::super::config::KlConfig;
use super::super::conv::{Bias, Conv, Geometry};
use super::super::map::{Activation, Map};
use super::super::norm::GroupNorm;
use super::super::{EngineError, Run};

/// Of every norm in this network.
const EPS: f64 = 1e-6;

/// `encoder` and `quant_conv`.
pub(in super::super) struct Encoder {
    conv_in: Conv,
    down_blocks: Vec<Stage>,
    mid_block: MidBlock,
    conv_norm_out: GroupNorm,
    conv_out: Conv,
    quant_conv: Option<Conv>,
}

/// `post_quant_conv` and `decoder`.
pub(in super::super) struct Decoder {
    post_quant_conv: Option<Conv>,
    conv_in: Conv,
    mid_block: MidBlock,
    up_blocks: Vec<Stage>,
    conv_norm_out: GroupNorm,
    conv_out: Conv,
}

/// Residual blocks of one width and the convolution that leads to the next size.
struct Stage {
    resnets: Vec<Resnet>,
    resample: Option<Conv>,
}

struct MidBlock {
    first: Resnet,
    attention: Option<Attention>,
    second: Resnet,
}

struct Resnet {
    norm1: GroupNorm,
    conv1: Conv,
    norm2: GroupNorm,
    conv2: Conv,
    conv_shortcut: Option<Conv>,
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
            conv_norm_out: GroupNorm::load(&scope.pp("conv_norm_out"), top, groups, EPS)?,
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
        run.block_done()?;
        for stage in &self.down_blocks {
            x = stage.run(x, run)?;
        }
        let x = self.mid_block.run(x, run)?;
        let x = self.conv_norm_out.run(x, Activation::Silu)?;
        let mut x = self.conv_out.run(&x, Activation::None)?;
        if let Some(quant_conv) = &self.quant_conv {
            x = quant_conv.run(&x, Activation::None)?;
        }
        run.block_done()?;
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
            conv_norm_out: GroupNorm::load(&scope.pp("conv_norm_out"), widths[0], groups, EPS)?,
            conv_out: Conv::load(&scope.pp("conv_out"), last, Bias::Present)?,
        })
    }

    /// Blocks of a run.
    pub(in super::super) fn blocks(&self) -> u32 {
        2 + self.mid_block.blocks() + self.up_blocks.iter().map(Stage::blocks).sum::<u32>()
    }

    /// Latents to pictures, not clamped.
    pub(in super::super) fn run(&self, z: &Map, run: &mut Run<'_>) -> Result<Map, EngineError> {
        let mut x = match &self.post_quant_conv {
            Some(conv) => self.conv_in.run(&conv.run(z, Activation::None)?, Activation::None)?,
            None => self.conv_in.run(z, Activation::None)?,
        };
        run.block_done()?;
        x = self.mid_block.run(x, run)?;
        for stage in &self.up_blocks {
            x = stage.run(x, run)?;
        }
        let x = self.conv_norm_out.run(x, Activation::Silu)?;
        let x = self.conv_out.run(&x, Activation::None)?;
        run.block_done()?;
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
            .map(|j| Resnet::load(&scope.pp("resnets").pp(j), if j == 0 { inputs } else { width }, width, groups))
            .collect::<Result<_, _>>()?;
        Ok(Self { resnets, resample })
    }

    fn blocks(&self) -> u32 {
        self.resnets.len() as u32 + u32::from(self.resample.is_some())
    }

    fn run(&self, mut x: Map, run: &mut Run<'_>) -> Result<Map, EngineError> {
        for resnet in &self.resnets {
            x = resnet.run(x)?;
            run.block_done()?;
        }
        if let Some(conv) = &self.resample {
            x = conv.run(&x, Activation::None)?;
            run.block_done()?;
        }
        Ok(x)
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
            first: Resnet::load(&scope.pp("resnets.0"), width, width, groups)?,
            attention,
            second: Resnet::load(&scope.pp("resnets.1"), width, width, groups)?,
        })
    }

    fn blocks(&self) -> u32 {
        2 + u32::from(self.attention.is_some())
    }

    fn run(&self, x: Map, run: &mut Run<'_>) -> Result<Map, EngineError> {
        let mut x = self.first.run(x)?;
        run.block_done()?;
        if let Some(attention) = &self.attention {
            x = attention.run(x)?;
            run.block_done()?;
        }
        let x = self.second.run(x)?;
        run.block_done()?;
        Ok(x)
    }
}

// === impl Resnet ===

impl Resnet {
    fn load(scope: &Scope<'_>, inputs: usize, outputs: usize, groups: usize) -> Result<Self, EngineError> {
        let conv_shortcut = (inputs != outputs)
            .then(|| Conv::load(&scope.pp("conv_shortcut"), Geometry::pointwise(inputs, outputs), Bias::Present))
            .transpose()?;
        Ok(Self {
            norm1: GroupNorm::load(&scope.pp("norm1"), inputs, groups, EPS)?,
            conv1: Conv::load(&scope.pp("conv1"), Geometry::same(inputs, outputs), Bias::Present)?,
            norm2: GroupNorm::load(&scope.pp("norm2"), outputs, groups, EPS)?,
            conv2: Conv::load(&scope.pp("conv2"), Geometry::same(outputs, outputs), Bias::Present)?,
            conv_shortcut,
        })
    }

    fn run(&self, x: Map) -> Result<Map, EngineError> {
        // Assigned, not shadowed: each map is freed as soon as the next one stands.
        let mut h = self.norm1.run(x.clone(), Activation::Silu)?;
        h = self.conv1.run(&h, Activation::None)?;
        h = self.norm2.run(h, Activation::Silu)?;
        let x = match &self.conv_shortcut {
            Some(conv) => conv.run(&x, Activation::None)?,
            None => x,
        };
        self.conv2.run_onto(&h, Some(x), Activation::None)
    }
}
