//! A checkpoint's config.json, by its `_class_name`.
//!
//! Names and defaults are diffusers'. Keys that do not change the numbers (`sample_size`, the names of block types) are
//! read over; values that would need another network are refused by name.

use serde::Deserialize;

use super::EngineError;

/// What config.json describes.
#[derive(Debug, Deserialize)]
#[serde(tag = "_class_name")]
pub(super) enum Config {
    AutoencoderKL(KlConfig),
    AutoencoderTiny(TinyConfig),
    Taef2(Taef2Config),
}

/// `AutoencoderKL`.
#[derive(Debug, Deserialize)]
#[serde(default)]
#[expect(clippy::struct_excessive_bools, reason = "the switches are config.json's")]
pub(super) struct KlConfig {
    pub(super) in_channels: usize,
    pub(super) out_channels: usize,
    pub(super) latent_channels: usize,
    pub(super) block_out_channels: Vec<usize>,
    pub(super) layers_per_block: usize,
    pub(super) norm_num_groups: usize,
    pub(super) act_fn: String,
    pub(super) scaling_factor: Option<f32>,
    pub(super) shift_factor: Option<f32>,
    pub(super) force_upcast: bool,
    pub(super) use_quant_conv: bool,
    pub(super) use_post_quant_conv: bool,
    pub(super) mid_block_add_attention: bool,
    down_block_types: Vec<String>,
    up_block_types: Vec<String>,
}

/// `AutoencoderTiny`.
#[derive(Debug, Deserialize)]
#[serde(default)]
pub(super) struct TinyConfig {
    pub(super) in_channels: usize,
    pub(super) out_channels: usize,
    pub(super) latent_channels: usize,
    pub(super) encoder_block_out_channels: Vec<usize>,
    pub(super) decoder_block_out_channels: Vec<usize>,
    pub(super) num_encoder_blocks: Vec<usize>,
    pub(super) num_decoder_blocks: Vec<usize>,
    pub(super) act_fn: String,
    pub(super) upsample_fn: String,
    pub(super) upsampling_scaling_factor: usize,
    pub(super) scaling_factor: Option<f32>,
    pub(super) shift_factor: Option<f32>,
}

/// TAEF2, whose structure is fixed but for its widths.
#[derive(Debug, Deserialize)]
#[serde(default)]
pub(super) struct Taef2Config {
    pub(super) in_channels: usize,
    pub(super) out_channels: usize,
    pub(super) latent_channels: usize,
    pub(super) width: usize,
    pub(super) norm_num_groups: usize,
    pub(super) norm_eps: f64,
    pub(super) scaling_factor: Option<f32>,
    pub(super) shift_factor: Option<f32>,
}

// === impl Config ===

impl Config {
    /// Parses and checks.
    pub(super) fn parse(json: &str) -> Result<Self, EngineError> {
        let config: Self = serde_json::from_str(json).map_err(|e| EngineError::Config(e.to_string()))?;
        match &config {
            Self::AutoencoderKL(c) => c.check()?,
            Self::AutoencoderTiny(c) => c.check()?,
            Self::Taef2(c) => check_channels(&[c.in_channels, c.out_channels, c.latent_channels, c.width])?,
        }
        Ok(config)
    }
}

fn check_channels(channels: &[usize]) -> Result<(), EngineError> {
    // No published autoencoder has more than 2048; the bound keeps products of channels within every integer here.
    match channels.iter().find(|&&c| c == 0 || c > 1 << 14) {
        Some(c) => Err(EngineError::Config(format!("{c} channels"))),
        None => Ok(()),
    }
}

fn unsupported(what: &str, value: impl std::fmt::Display) -> EngineError {
    EngineError::Unsupported { what: format!("{what} {value}") }
}

// === impl KlConfig ===

impl KlConfig {
    fn check(&self) -> Result<(), EngineError> {
        check_channels(&[self.in_channels, self.out_channels, self.latent_channels])?;
        check_channels(&self.block_out_channels)?;
        if self.block_out_channels.is_empty() || self.block_out_channels.len() > 8 {
            return Err(EngineError::Config("block_out_channels needs 1 to 8 entries".into()));
        }
        if self.layers_per_block == 0 {
            return Err(unsupported("layers_per_block", self.layers_per_block));
        }
        if self.act_fn != "silu" && self.act_fn != "swish" {
            return Err(unsupported("act_fn", &self.act_fn));
        }
        let types = self.down_block_types.iter().chain(&self.up_block_types);
        match types.into_iter().find(|t| !matches!(t.as_str(), "DownEncoderBlock2D" | "UpDecoderBlock2D")) {
            Some(other) => Err(unsupported("block type", other)),
            None => Ok(()),
        }
    }
}

impl Default for KlConfig {
    fn default() -> Self {
        Self {
            in_channels: 3,
            out_channels: 3,
            latent_channels: 4,
            block_out_channels: vec![64],
            layers_per_block: 1,
            norm_num_groups: 32,
            act_fn: "silu".into(),
            scaling_factor: Some(0.18215),
            shift_factor: None,
            // Configs that do not say it are older than the key, and their models have always been run in half precision.
            force_upcast: false,
            use_quant_conv: true,
            use_post_quant_conv: true,
            mid_block_add_attention: true,
            down_block_types: Vec::new(),
            up_block_types: Vec::new(),
        }
    }
}

// === impl TinyConfig ===

impl TinyConfig {
    fn check(&self) -> Result<(), EngineError> {
        check_channels(&[self.in_channels, self.out_channels, self.latent_channels])?;
        let stages = [
            (&self.encoder_block_out_channels, &self.num_encoder_blocks),
            (&self.decoder_block_out_channels, &self.num_decoder_blocks),
        ];
        for (channels, blocks) in stages {
            check_channels(channels)?;
            if channels.is_empty() || channels.len() > 8 || channels.len() != blocks.len() {
                return Err(EngineError::Config("block_out_channels and num_blocks need 1 to 8 entries each".into()));
            }
            // Each stage's convolutions keep the width, so stages of two widths do not fit together.
            if channels.iter().any(|c| c != &channels[0]) {
                return Err(unsupported("stages of different widths", format!("{channels:?}")));
            }
        }
        if self.act_fn != "relu" {
            return Err(unsupported("act_fn", &self.act_fn));
        }
        if self.upsample_fn != "nearest" {
            return Err(unsupported("upsample_fn", &self.upsample_fn));
        }
        if !(1..=8).contains(&self.upsampling_scaling_factor) {
            return Err(unsupported("upsampling_scaling_factor", self.upsampling_scaling_factor));
        }
        Ok(())
    }
}

impl Default for TinyConfig {
    fn default() -> Self {
        Self {
            in_channels: 3,
            out_channels: 3,
            latent_channels: 4,
            encoder_block_out_channels: vec![64; 4],
            decoder_block_out_channels: vec![64; 4],
            num_encoder_blocks: vec![1, 3, 3, 3],
            num_decoder_blocks: vec![3, 3, 3, 1],
            act_fn: "relu".into(),
            upsample_fn: "nearest".into(),
            upsampling_scaling_factor: 2,
            scaling_factor: Some(1.0),
            shift_factor: Some(0.0),
        }
    }
}

// === impl Taef2Config ===

impl Default for Taef2Config {
    fn default() -> Self {
        Self {
            in_channels: 3,
            out_channels: 3,
            latent_channels: 32,
            width: 64,
            norm_num_groups: 4,
            norm_eps: 1e-5,
            scaling_factor: Some(1.0),
            shift_factor: Some(0.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_config_that_is_older_than_the_key_is_not_upcast() {
        let upcast = |text: &str| match Config::parse(text).unwrap() {
            Config::AutoencoderKL(config) => config.force_upcast,
            _ => panic!("{text} is another network"),
        };
        let with = |more: &str| format!(r#"{{"_class_name": "AutoencoderKL", "block_out_channels": [32]{more}}}"#);
        assert!(!upcast(&with("")) && !upcast(&with(r#", "force_upcast": false"#)));
        assert!(upcast(&with(r#", "force_upcast": true"#)));
    }
}
