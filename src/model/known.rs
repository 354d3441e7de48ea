//! The models known by name, before the configuration adds to them or changes them.
//!
//! Numbers are those of each checkpoint's `config.json` on the Hub. Weights of known models are looked for in the local
//! Hub cache and never downloaded unasked.

use super::{Endpoints, Family, ModelId, ModelSpec, ModelTable, Scaling, Task, WeightsSource};
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
    /// First labels of the public endpoints' host names, for decode and encode.
    endpoints: [Option<&'static str>; 2],
}

const fn known(id: &'static str, family: Family, channels: usize) -> Known {
    let scaling = Scaling::NONE;
    Known { id, family, channels, scaling, preview: None, repo: None, subfolder: None, endpoints: [None, None] }
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

const fn served(known: Known, decode: &'static str, encode: Option<&'static str>) -> Known {
    Known { endpoints: [Some(decode), encode], ..known }
}

const KL: Family = Family::AutoencoderKl;
const TINY: Family = Family::AutoencoderTiny;

/// The public endpoints of Hugging Face's hybrid inference, as diffusers' `remote_utils` and SD.Next know them.
const ENDPOINT_DOMAIN: &str = "us-east-1.aws.endpoints.huggingface.cloud";

/// Frames a latent frame of HunyuanVideo.
const HUNYUAN_TEMPORAL_SCALE: usize = 4;

static KNOWN: &[Known] = &[
    served(
        shown(at("stabilityai/sd-vae-ft-mse", scaled(known("sd-v1", KL, 4), 0.182_15, 0.0)), &preview::SD_V1),
        "q1bj3bpq6kzilnsu",
        Some("qc6479g0aac6qwy9"),
    ),
    served(
        shown(at("madebyollin/sdxl-vae-fp16-fix", scaled(known("sd-xl", KL, 4), 0.130_25, 0.0)), &preview::SD_XL),
        "x2dmsqunjd6k9prw",
        Some("xjqqhmyn62rog84g"),
    ),
    served(
        shown(
            inside(at("black-forest-labs/FLUX.1-schnell", scaled(known("flux", KL, 16), 0.3611, 0.1159)), "vae"),
            &preview::FLUX_1,
        ),
        "whhx50ex1aryqvw6",
        Some("ptccx55jz97f9zgo"),
    ),
    served(
        scaled(known("hunyuan-video", Family::AutoencoderKlHunyuanVideo, 16), 0.476_986, 0.0),
        "o7ywnmrahorts457",
        None,
    ),
    shown(at("madebyollin/taesd", known("taesd", TINY, 4)), &preview::SD_V1),
    shown(at("madebyollin/taesdxl", known("taesdxl", TINY, 4)), &preview::SD_XL),
    shown(at("madebyollin/taesd3", known("taesd3", TINY, 16)), &preview::SD_3),
    shown(at("madebyollin/taef1", known("taef1", TINY, 16)), &preview::FLUX_1),
    shown(known("taef2", Family::Taef2, 32), &preview::FLUX_2),
];

/// Other names of the known models: those that SD.Next's table of endpoints uses, which sends further models to the same
/// autoencoders.
static ALIASES: &[(&str, &str)] = &[
    ("sd", "sd-v1"),
    ("pixartalpha", "sd-v1"),
    ("sdxl", "sd-xl"),
    ("pixartsigma", "sd-xl"),
    ("hunyuandit", "sd-xl"),
    ("auraflow", "sd-xl"),
    ("omnigen", "sd-xl"),
    ("f1", "flux"),
    ("h1", "flux"),
    ("hidream", "flux"),
    ("chroma", "flux"),
    ("zimage", "flux"),
    ("lumina2", "flux"),
    ("hunyuanvideo", "hunyuan-video"),
];

/// The model inside this binary.
pub const BUILTIN: &str = "builtin";

impl ModelTable {
    /// The models known by name, the builtin one included.
    pub fn known() -> Self {
        let mut table = Self { aliases: ALIASES.iter().copied().collect(), ..Self::default() };
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
            temporal_scale: matches!(self.family, Family::AutoencoderKlHunyuanVideo).then_some(HUNYUAN_TEMPORAL_SCALE),
            scaling: self.scaling,
            tasks: self.tasks(),
            revision: "main".to_owned(),
            preview: self.preview,
            weights: self.repo.map_or(WeightsSource::Unset, |repo| WeightsSource::Hub {
                repo: repo.to_owned(),
                subfolder: self.subfolder.map(str::to_owned),
            }),
            endpoints: Endpoints { decode: self.urls(0), encode: self.urls(1) },
            time_to_live: None,
        }
    }

    /// Nobody encodes videos yet.
    fn tasks(&self) -> Vec<Task> {
        match self.family {
            Family::AutoencoderKlHunyuanVideo => vec![Task::Decode],
            _ => vec![Task::Decode, Task::Encode],
        }
    }

    fn urls(&self, task: usize) -> Vec<String> {
        self.endpoints[task].map(|label| format!("https://{label}.{ENDPOINT_DOMAIN}")).into_iter().collect()
    }
}
