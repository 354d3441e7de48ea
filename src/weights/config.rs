//! What the product needs of a checkpoint's `config.json`; the engine reads the rest itself.

use serde::Deserialize;

use crate::model::{Family, ModelSpec, Scaling};

/// The numbers of a checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct Numbers {
    /// Its architecture.
    pub family: Family,
    /// Channels of its latents.
    pub latent_channels: usize,
    /// Its factor, where it says one: the published `sd-vae-ft-mse` does not.
    pub scaling_factor: Option<f32>,
    /// Its shift, where it says one.
    pub shift_factor: Option<f32>,
}

#[derive(Deserialize)]
struct Text {
    #[serde(rename = "_class_name")]
    class_name: String,
    latent_channels: usize,
    scaling_factor: Option<f32>,
    shift_factor: Option<f32>,
    block_out_channels: Option<Vec<usize>>,
    num_decoder_blocks: Option<Vec<usize>>,
    upsampling_scaling_factor: Option<usize>,
}

/// Pixels a latent, on each side, of every autoencoder served here: inputs are cut to multiples of it.
pub(super) const SPATIAL_SCALE: usize = 8;

impl Numbers {
    /// Reads them, or says what is wrong.
    pub fn parse(config: &str) -> Result<Self, String> {
        let text: Text = serde_json::from_str(config).map_err(|error| error.to_string())?;
        let family = Family::from_class_name(&text.class_name)
            .ok_or_else(|| format!("_class_name {:?} is not an autoencoder known here", text.class_name))?;
        let scale = text.spatial_scale();
        if scale != Some(SPATIAL_SCALE) {
            return Err(format!("wanted {SPATIAL_SCALE} pixels a latent on each side, this one has {scale:?}"));
        }
        let (scaling_factor, shift_factor) = (text.scaling_factor, text.shift_factor);
        if scaling_factor.is_some_and(|factor| !factor.is_normal()) || shift_factor.is_some_and(|s| !s.is_finite()) {
            return Err(format!("scaling_factor {scaling_factor:?} or shift_factor {shift_factor:?} is not usable"));
        }
        Ok(Self { family, latent_channels: text.latent_channels, scaling_factor, shift_factor })
    }
}

impl Text {
    /// Pixels a latent; none if it does not fit a number. TAEF2 has one shape.
    fn spatial_scale(&self) -> Option<usize> {
        let stages = |blocks: &Vec<usize>| u32::try_from(blocks.len()).ok()?.checked_sub(1);
        if let Some(widths) = &self.block_out_channels {
            return 2usize.checked_pow(stages(widths)?);
        }
        match &self.num_decoder_blocks {
            Some(blocks) => self.upsampling_scaling_factor.unwrap_or(2).checked_pow(stages(blocks)?),
            None => Some(SPATIAL_SCALE),
        }
    }
}

/// The config of a bare `.safetensors` file: the published one of the model's family, by the model's numbers.
pub(super) fn implied(spec: &ModelSpec, names: &[String]) -> String {
    let has = |name: &str| names.iter().any(|n| n == name);
    let Scaling { factor, shift } = spec.scaling;
    let config = match spec.family {
        // `find` has refused what has no engine; its diffusers config would say no more than its name.
        Family::AutoencoderKlHunyuanVideo => serde_json::json!({ "_class_name": spec.family.class_name() }),
        Family::AutoencoderKl => serde_json::json!({
            "_class_name": "AutoencoderKL",
            "in_channels": 3,
            "out_channels": 3,
            "block_out_channels": [128, 256, 512, 512],
            "layers_per_block": 2,
            "norm_num_groups": 32,
            "act_fn": "silu",
            "latent_channels": spec.latent_channels,
            "scaling_factor": factor,
            "shift_factor": shift,
            "use_quant_conv": has("quant_conv.weight"),
            "use_post_quant_conv": has("post_quant_conv.weight"),
        }),
        Family::AutoencoderTiny => serde_json::json!({
            "_class_name": "AutoencoderTiny",
            "in_channels": 3,
            "out_channels": 3,
            "encoder_block_out_channels": [64, 64, 64, 64],
            "decoder_block_out_channels": [64, 64, 64, 64],
            "num_encoder_blocks": [1, 3, 3, 3],
            "num_decoder_blocks": [3, 3, 3, 1],
            "act_fn": "relu",
            "upsampling_scaling_factor": 2,
            "latent_channels": spec.latent_channels,
            "scaling_factor": factor,
            "shift_factor": shift,
        }),
        Family::Taef2 => serde_json::json!({
            "_class_name": "Taef2",
            "in_channels": 3,
            "out_channels": 3,
            "latent_channels": spec.latent_channels,
            "width": 64,
            "scaling_factor": factor,
            "shift_factor": shift,
            "norm_num_groups": 4,
            "norm_eps": 1e-5,
        }),
    };
    config.to_string()
}
