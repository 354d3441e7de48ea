//! The models known by name, before the configuration adds to them or changes them.
//!
//! Numbers are those of each checkpoint's `config.json` on the Hub. Weights of known models are looked for in the local
//! Hub cache and never downloaded unasked.

use super::{Family, ModelId, ModelSpec, ModelTable, Scaling, Task, WeightsSource};
use crate::preview::{self, Projection};

#[derive(Clone, Copy)]
struct Known {
    id: &'static str,
    family: Family,
    channels: usize,
    scaling: Scaling,
    preview: Option<&'static Projection>,
    /// Repository of the Hub; none where nobody publishes this layout.
    repo: Option<&'static str>,
    subfolder: Option<&'static str>,
}

const fn known(id: &'static str, family: Family, channels: usize) -> Known {
    Known { id, family, channels, scaling: Scaling::NONE, preview: None, repo: None, subfolder: None }
}

const fn at(repo: &'static str, known: Known) -> Known {
    Known { repo: Some(repo), ..known }
}

const fn scaled(known: Known, factor: f32, shift: f32) -> Known {
    Known { scaling: Scaling::new(factor, shift), ..known }
}

const fn shown(known: Known, preview: &'static Projection) -> Known {
    Known { preview: Some(preview), ..known }
}

const fn inside(known: Known, folder: &'static str) -> Known {
    Known { subfolder: Some(folder), ..known }
}

const KL: Family = Family::AutoencoderKl;
const TINY: Family = Family::AutoencoderTiny;

static KNOWN: &[Known] = &[
    shown(at("stabilityai/sd-vae-ft-mse", scaled(known("sd-v1", KL, 4), 0.182_15, 0.0)), &preview::SD_V1),
    shown(at("madebyollin/sdxl-vae-fp16-fix", scaled(known("sd-xl", KL, 4), 0.130_25, 0.0)), &preview::SD_XL),
    shown(
        inside(at("black-forest-labs/FLUX.1-schnell", scaled(known("flux", KL, 16), 0.3611, 0.1159)), "vae"),
        &preview::FLUX_1,
    ),
    shown(at("madebyollin/taesd", known("taesd", TINY, 4)), &preview::SD_V1),
    shown(at("madebyollin/taesdxl", known("taesdxl", TINY, 4)), &preview::SD_XL),
    shown(at("madebyollin/taesd3", known("taesd3", TINY, 16)), &preview::SD_3),
    shown(at("madebyollin/taef1", known("taef1", TINY, 16)), &preview::FLUX_1),
    shown(known("taef2", Family::Taef2, 32), &preview::FLUX_2),
];

/// The model inside this binary.
pub const BUILTIN: &str = "builtin";

impl ModelTable {
    /// The models known by name, the builtin one included.
    pub fn known() -> Self {
        let mut table = Self::default();
        for known in KNOWN {
            table.insert(known.spec());
        }
        table.insert(ModelSpec {
            id: ModelId::try_new(BUILTIN).expect("the constant is a valid name"),
            weights: WeightsSource::Builtin,
            preview: Some(&preview::BUILTIN),
            ..known(BUILTIN, TINY, 4).spec()
        });
        table
    }
}

impl Known {
    fn spec(&self) -> ModelSpec {
        ModelSpec {
            id: ModelId::try_new(self.id).expect("the constants are valid names"),
            family: self.family,
            latent_channels: self.channels,
            spatial_scale: 8,
            scaling: self.scaling,
            tasks: vec![Task::Decode, Task::Encode],
            revision: "main".to_owned(),
            preview: self.preview,
            weights: self.repo.map_or(WeightsSource::Unset, |repo| WeightsSource::Hub {
                repo: repo.to_owned(),
                subfolder: self.subfolder.map(str::to_owned),
            }),
        }
    }
}
