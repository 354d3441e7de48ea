//! The whole configuration: each room's own, composed; read once, from defaults < file < environment < flags.
//!
//! Unknown keys, impossible values and missing files are errors that name the key, the value and the remedy. What
//! serde cannot know is judged by [`Config::validate`], all faults at once. Nothing else reads the environment.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use bytesize::ByteSize;
use figment::{
    Figment,
    providers::{Env, Format as _, Serialized, Toml},
};
use serde::{Deserialize, Serialize};

use crate::{
    backend::upstream,
    cache::{disk, memory},
    clients,
    front::cors,
    pipeline::Keep,
    route, telemetry,
};

mod listen;
mod models;
mod validate;

pub use listen::Listen;
pub use models::{ModelConfig, UpstreamUrls};

/// Prefix of environment variables; `__` separates levels: `LATENTGATE__CACHE__MEMORY__CAPACITY=2GiB`.
const ENV_PREFIX: &str = "LATENTGATE__";

/// Everything that can be configured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where it listens.
    pub listen: Listen,
    /// Which web pages may ask.
    pub cors: cors::Config,
    /// Who may ask, and how much.
    pub clients: clients::Config,
    /// What it takes in at a time.
    pub admission: Admission,
    /// What one request may ask for.
    pub limits: Limits,
    /// What it keeps.
    pub cache: Cache,
    /// Who is asked for what is not kept.
    pub route: route::Config,
    /// How computations are shared.
    pub flight: Flight,
    /// The engine in this process.
    #[cfg(feature = "local")]
    pub engine: crate::backend::local::Config,
    /// The endpoints elsewhere.
    pub upstream: upstream::Config,
    /// Where weights are looked for.
    pub weights: Weights,
    /// Models, by name: more of them, or changes to known ones.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub models: BTreeMap<String, ModelConfig>,
    /// Host names that stand for a task of a model: `"vae.example" = "decode/sd-v1"`. The public endpoints' are built in.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub hosts: BTreeMap<String, crate::front::http::Target>,
    /// What it says.
    pub log: telemetry::log::Config,
    /// Where its traces go.
    pub trace: telemetry::traces::Config,
    /// When files are read again.
    pub reload: Reload,
    /// How it ends.
    pub shutdown: Shutdown,
}

/// Bounds on what is in flight.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Admission {
    /// Requests between their spec and the end of their answer; more are refused.
    pub max_requests: usize,
    /// Memory for inputs and for answers in the making; more is refused. Beside it stand the cache, the weights and one
    /// run's working memory.
    pub memory: ByteSize,
}

/// Bounds on one request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Pixels of all pictures of a request together.
    pub max_pixels: u64,
    /// Pictures in a batch.
    pub max_batch: usize,
    /// Bytes of an input.
    pub max_input: ByteSize,
    /// The longest a request may take, whatever its client allows.
    #[serde(with = "humantime_serde")]
    pub request_time: Duration,
    /// The longest a client may say nothing while its input is awaited.
    #[serde(with = "humantime_serde")]
    pub stall_time: Duration,
}

/// Tiers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cache {
    /// What of a decode is kept: `requested`, the form that was asked for; `pixels`, the decoder's numbers, of which every
    /// form is made; or `both`.
    pub keep: Keep,
    /// Part of every content key: programs of different namespaces share nothing, not even a folder's files.
    pub namespace: String,
    /// The memory tier.
    pub memory: memory::Config,
    /// The disk tier.
    pub disk: disk::Config,
}

/// Shared computations.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Flight {
    /// Share of its steps, 0 to 1, from which a run is finished and kept although nobody waits any more.
    pub keep_from: f32,
    /// The longest a run may take, its wait in the queue included.
    #[serde(with = "humantime_serde")]
    pub time: Duration,
}

/// Places of weights.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Weights {
    /// The local Hub cache; default: what `HF_HUB_CACHE`, `HF_HOME` or the home directory say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hub_cache: Option<PathBuf>,
}

/// Files that may change while the server runs: certificates, clients.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Reload {
    /// How often they are looked at; 0s: by order only.
    #[serde(with = "humantime_serde")]
    pub every: Duration,
}

/// The end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Shutdown {
    /// How long open requests may take to finish after SIGTERM or Ctrl-C.
    #[serde(with = "humantime_serde")]
    pub grace: Duration,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Keys or values that cannot be.
    #[error("{0}")]
    Unreadable(String),
    /// The file that was named is not there.
    #[error("the configuration file {0} cannot be read: {1}")]
    File(PathBuf, std::io::Error),
    /// Values that cannot be, all of them.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Invalid(Vec<Fault>),
}

/// One impossible value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key} = {value}: {remedy}")]
pub struct Fault {
    /// Dotted name.
    pub key: String,
    /// What it is set to.
    pub value: String,
    /// What would be right.
    pub remedy: String,
}

impl Default for Admission {
    fn default() -> Self {
        Self { max_requests: 1024, memory: ByteSize::gib(1) }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            // Four times the largest picture the endpoints took (2048 x 2048).
            max_pixels: 4 * 2048 * 2048,
            max_batch: 16,
            max_input: ByteSize::mib(256),
            request_time: Duration::from_mins(10),
            stall_time: Duration::from_secs(30),
        }
    }
}

impl Default for Flight {
    fn default() -> Self {
        Self { keep_from: 0.5, time: Duration::from_mins(10) }
    }
}

impl Default for Reload {
    fn default() -> Self {
        Self { every: Duration::from_secs(5) }
    }
}

impl Default for Shutdown {
    fn default() -> Self {
        Self { grace: Duration::from_secs(30) }
    }
}

impl Config {
    /// Reads and judges the configuration. `flags` stands above everything else.
    pub fn load(file: Option<&Path>, flags: &Overrides) -> Result<Self, ConfigError> {
        let mut figment = Figment::from(Serialized::defaults(Self::default()));
        if let Some(path) = file {
            // figment takes a file that is absent for an empty one.
            std::fs::File::open(path).map_err(|error| ConfigError::File(path.to_owned(), error))?;
            figment = figment.merge(Toml::file_exact(path));
        }
        let figment = figment.merge(Env::prefixed(ENV_PREFIX).split("__")).merge(Serialized::defaults(flags));
        let mut config: Self = figment.extract().map_err(|error| ConfigError::unreadable(&error))?;
        config.weights.hub_cache = config.weights.hub_cache.or_else(default_hub_cache);
        config.upstream.token = hub_token();
        config.validate()?;
        Ok(config)
    }

    /// The configuration as a file: every key with its value.
    pub fn to_toml(&self) -> String {
        toml::to_string_pretty(self).expect("every value has a TOML form")
    }
}

impl ConfigError {
    /// figment's errors, a line each: which key, what is wrong, where it was said.
    fn unreadable(error: &figment::Error) -> Self {
        let line = |error: figment::Error| {
            let place = error.metadata.as_ref().map(|data| match &data.source {
                Some(source) => format!(" (in {source})"),
                None => format!(" (in {})", data.name),
            });
            let key = if error.path.is_empty() { "the configuration".to_owned() } else { error.path.join(".") };
            format!("{key}: {}{}", error.kind, place.unwrap_or_default())
        };
        Self::Unreadable(error.clone().into_iter().map(line).collect::<Vec<_>>().join("\n"))
    }
}

/// What the common flags say. Absent ones change nothing.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Overrides {
    /// `--listen`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<ListenOverrides>,
}

/// Flags of the listeners.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ListenOverrides {
    /// `--listen`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<SocketAddr>,
    /// `--admin`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub admin: Option<SocketAddr>,
}

/// What `huggingface_hub` takes for the user's token.
fn hub_token() -> Option<upstream::Secret> {
    #[expect(clippy::disallowed_methods, reason = "this is where configuration is read")]
    let token = std::env::var("HF_TOKEN").ok();
    token.filter(|token| !token.trim().is_empty()).map(|token| upstream::Secret::new(&token))
}

/// Where `huggingface_hub` keeps its downloads on this machine.
fn default_hub_cache() -> Option<PathBuf> {
    #[expect(clippy::disallowed_methods, reason = "this is where configuration is read")]
    let var = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty()).map(PathBuf::from);
    var("HF_HUB_CACHE")
        .or_else(|| var("HF_HOME").map(|home| home.join("hub")))
        .or_else(|| var("XDG_CACHE_HOME").map(|cache| cache.join("huggingface/hub")))
        .or_else(|| var("HOME").map(|home| home.join(".cache/huggingface/hub")))
}

#[cfg(test)]
mod tests;
