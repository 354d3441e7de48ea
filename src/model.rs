//! Models: what a name stands for, and the table of names.

use std::{borrow::Borrow, collections::BTreeMap, fmt, sync::Arc, time::Duration};

use crate::{
    error::{Error, ErrorKind, Resource},
    preview::Projection,
};

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
    /// The video autoencoder of HunyuanVideo. No local engine yet: upstream serves it.
    AutoencoderKlHunyuanVideo,
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

/// Upstream endpoints of a model: base URLs, any of which answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endpoints {
    /// For decodes.
    pub decode: Vec<String>,
    /// For encodes.
    pub encode: Vec<String>,
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
    /// Frames a latent frame, the first of which stands for one alone; none for picture models.
    pub temporal_scale: Option<usize>,
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
    /// Who else computes it.
    pub endpoints: Endpoints,
    /// How long its answers are kept at most; none is as long as there is room.
    pub time_to_live: Option<Duration>,
}

/// All models of this process, by name, and the other names they go by.
#[derive(Clone, Debug, Default)]
pub struct ModelTable {
    models: BTreeMap<ModelId, Arc<ModelSpec>>,
    aliases: BTreeMap<&'static str, &'static str>,
}

// === impl Task ===

impl Task {
    /// Every task.
    pub const ALL: [Self; 2] = [Self::Decode, Self::Encode];

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
            Self::AutoencoderKlHunyuanVideo => "AutoencoderKLHunyuanVideo",
        }
    }

    /// Whether the encoder gives a distribution to sample from.
    pub const fn has_posterior(self) -> bool {
        matches!(self, Self::AutoencoderKl | Self::AutoencoderKlHunyuanVideo)
    }

    /// Whether the engine of this program can run it.
    pub const fn has_engine(self) -> bool {
        !matches!(self, Self::AutoencoderKlHunyuanVideo)
    }

    /// What a `config.json` that says nothing of scaling means, by diffusers' defaults.
    pub const fn default_scaling(self) -> Scaling {
        match self {
            Self::AutoencoderKl => Scaling::new(0.182_15, 0.0),
            Self::AutoencoderTiny | Self::Taef2 => Scaling::NONE,
            Self::AutoencoderKlHunyuanVideo => Scaling::new(0.476_986, 0.0),
        }
    }

    /// The family of a class name.
    pub fn from_class_name(name: &str) -> Option<Self> {
        let all = [Self::AutoencoderKl, Self::AutoencoderTiny, Self::Taef2, Self::AutoencoderKlHunyuanVideo];
        all.into_iter().find(|family| family.class_name() == name)
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
        self.models.insert(spec.id.clone(), Arc::new(spec));
    }

    /// The model of that name, or of the one that the name stands for. A model's own name comes first.
    pub fn get(&self, name: &str) -> Option<&Arc<ModelSpec>> {
        self.models.get(name).or_else(|| self.models.get(*self.aliases.get(name)?))
    }

    /// The model of that name, if it does `task`.
    pub fn find(&self, name: &str, task: Task) -> Result<&Arc<ModelSpec>, Error> {
        if name.is_empty() {
            return Err(Error::bad_request("model", "required, and absent; ListModels tells the names"));
        }
        let model = self.get(name).ok_or_else(|| {
            // A name beyond any model's length is not worth repeating whole.
            let name: String = name.chars().take(ModelId::MAX_LEN).collect();
            Error::missing(
                ErrorKind::UnknownModel,
                Resource { sort: "model", name: name.clone() },
                format!("model: no model is called {name:?}; ListModels tells the names"),
            )
        })?;
        if model.tasks.contains(&task) {
            return Ok(model);
        }
        Err(Error::new(ErrorKind::TaskUnsupported, format!("model {} does not {}", model.id, task.label())))
    }

    /// The other names a model goes by, in order.
    pub fn aliases_of<'a>(&'a self, id: &'a ModelId) -> impl Iterator<Item = &'static str> + 'a {
        self.aliases.iter().filter(|(_, model)| **model == id.as_str()).map(|(alias, _)| *alias)
    }

    /// All models, in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<ModelSpec>> {
        self.models.values()
    }
}

// === impl ModelSpec ===

impl ModelSpec {
    /// Whether its latents have frames, `[n, c, f, h, w]`.
    pub const fn is_video(&self) -> bool {
        self.temporal_scale.is_some()
    }

    /// Frames of pixels that `frames` latent frames decode to: the first gives one, every other one a whole scale.
    pub fn decoded_frames(&self, frames: usize) -> usize {
        frames.saturating_sub(1).saturating_mul(self.temporal_scale.unwrap_or(1)).saturating_add(1)
    }

    /// Its upstream endpoints for a task.
    pub fn endpoints(&self, task: Task) -> &[String] {
        match task {
            Task::Decode => &self.endpoints.decode,
            Task::Encode => &self.endpoints.encode,
        }
    }
}
