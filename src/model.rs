//! Models: what a name stands for, and the table of names.

use std::{borrow::Borrow, collections::BTreeMap, fmt, sync::Arc};

use crate::preview::Projection;

mod known;

pub use known::BUILTIN;

/// What can be asked of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Task {
    /// Latents to pixels.
    Decode,
    /// Pixels to latents.
    Encode,
}

/// A model's name, as clients spell it and as metrics label it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModelId(Arc<str>);

/// The autoencoder's architecture, by the class name of diffusers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// The autoencoder of Stable Diffusion, SD XL and FLUX.1.
    AutoencoderKl,
    /// The TAESD family.
    AutoencoderTiny,
    /// The tiny autoencoder of FLUX.2.
    Taef2,
}

/// The linear map between what a denoiser sees and what the autoencoder takes.
/// Decode computes `z / factor + shift`, encode `(z - shift) * factor`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scaling {
    /// Not zero, finite.
    pub factor: f32,
    /// Finite.
    pub shift: f32,
}

/// Where local weights are looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WeightsSource {
    /// Nobody has said.
    Unset,
    /// Inside this binary.
    Builtin,
    /// A diffusers directory or a single `.safetensors` file.
    Path(std::path::PathBuf),
    /// A repository of the Hugging Face Hub, looked for in the local Hub cache.
    Hub {
        /// `owner/name`.
        repo: String,
        /// Folder inside the repository, such as `vae`.
        subfolder: Option<String>,
    },
}

/// Everything the product knows about one model.
#[derive(Clone, Debug)]
pub struct ModelSpec {
    /// Its name.
    pub id: ModelId,
    /// Its architecture.
    pub family: Family,
    /// Channels of its latents.
    pub latent_channels: usize,
    /// Pixels a latent, on each side.
    pub spatial_scale: usize,
    /// What `scaling` left out of a request means.
    pub scaling: Scaling,
    /// What it does, in order.
    pub tasks: Vec<Task>,
    /// Part of the content key: another revision is another answer.
    pub revision: String,
    /// How its latents are shown at a glance.
    pub preview: Option<&'static Projection>,
    /// Where its weights are.
    pub weights: WeightsSource,
}

/// All models of this process, by name.
#[derive(Clone, Debug, Default)]
pub struct ModelTable(BTreeMap<ModelId, Arc<ModelSpec>>);

// === impl Task ===

impl Task {
    /// Metric label, and the task's name in messages.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Decode => "decode",
            Self::Encode => "encode",
        }
    }
}

// === impl ModelId ===

impl ModelId {
    /// Longest name: it stands in URLs, labels and file names.
    pub const MAX_LEN: usize = 64;

    /// A name of 1 to 64 letters, digits, `-`, `_`, `.`; it starts with a letter or a digit.
    pub fn try_new(name: &str) -> Option<Self> {
        let fits = (1..=Self::MAX_LEN).contains(&name.len())
            && name.starts_with(|c: char| c.is_ascii_alphanumeric())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
        fits.then(|| Self(name.into()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name, shared.
    pub fn shared(&self) -> &Arc<str> {
        &self.0
    }
}

impl Borrow<str> for ModelId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ModelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

// === impl Family ===

impl Family {
    /// The class name of diffusers (and of `config.json`).
    pub const fn class_name(self) -> &'static str {
        match self {
            Self::AutoencoderKl => "AutoencoderKL",
            Self::AutoencoderTiny => "AutoencoderTiny",
            Self::Taef2 => "Taef2",
        }
    }

    /// Whether the encoder gives a distribution to sample from.
    pub const fn has_posterior(self) -> bool {
        matches!(self, Self::AutoencoderKl)
    }

    /// What a `config.json` that says nothing of scaling means, by diffusers' defaults.
    pub const fn default_scaling(self) -> Scaling {
        match self {
            Self::AutoencoderKl => Scaling::new(0.182_15, 0.0),
            Self::AutoencoderTiny | Self::Taef2 => Scaling::NONE,
        }
    }

    /// The family of a class name.
    pub fn from_class_name(name: &str) -> Option<Self> {
        [Self::AutoencoderKl, Self::AutoencoderTiny, Self::Taef2].into_iter().find(|f| f.class_name() == name)
    }
}

// === impl Scaling ===

impl Scaling {
    /// Changes nothing.
    pub const NONE: Self = Self { factor: 1.0, shift: 0.0 };

    /// A factor and a shift.
    pub const fn new(factor: f32, shift: f32) -> Self {
        Self { factor, shift }
    }
}

// === impl ModelTable ===

impl ModelTable {
    /// Adds a model, or replaces the one of the same name.
    pub fn insert(&mut self, spec: ModelSpec) {
        self.0.insert(spec.id.clone(), Arc::new(spec));
    }

    /// The model of that name.
    pub fn get(&self, name: &str) -> Option<&Arc<ModelSpec>> {
        self.0.get(name)
    }

    /// All models, in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<ModelSpec>> {
        self.0.values()
    }
}
