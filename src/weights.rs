//! Finding weights: inside the binary, in a directory, in a single file, in the local Hub cache.
//!
//! Finding reads the small things (`config.json`, the header of the safetensors file) and hashes the large one once, so
//! that weights which change under a name change the content key. The tensors are read when the engine loads the model.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use memmap2::MmapMut;

use crate::model::{ModelSpec, Task, WeightsSource};

mod config;
mod hub;

pub use config::Numbers;

/// The builtin model, trained by `tools/train_builtin`.
const BUILTIN_CONFIG: &str = include_str!("../assets/builtin/config.json");
const BUILTIN_TENSORS: &[u8] = include_bytes!("../assets/builtin/diffusion_pytorch_model.safetensors");

/// Longest safetensors header read: a full-size autoencoder's is 40 KB.
const MAX_HEADER_BYTES: u64 = 16 << 20;

/// A checkpoint that is there.
#[derive(Clone, Debug)]
pub struct Found {
    /// Text of `config.json`: the checkpoint's own, or what the model's numbers imply where a bare file has none.
    pub config: String,
    /// What the text says.
    pub numbers: Numbers,
    /// What its tensors allow.
    pub tasks: Vec<Task>,
    /// First 16 hex digits of the BLAKE3 of config and tensors.
    pub fingerprint: String,
    tensors: Tensors,
}

#[derive(Clone, Debug)]
enum Tensors {
    Builtin,
    File(PathBuf),
}

/// Why there are no weights. The message tells the remedy.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// Nothing says where they are.
    #[error("no weights: set models.{model}.weights to a diffusers directory or a .safetensors file{hint}")]
    Absent {
        /// Whose.
        model: String,
        /// Another way, if there is one.
        hint: String,
    },
    /// Weights would be of no use.
    #[error("{0} has no local engine yet; an upstream endpoint can serve it")]
    NoEngine(&'static str),
    /// The path is there, and not what it should be.
    #[error("{path}: {what}")]
    Unusable {
        /// Which path.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// Reading failed.
    #[error("{path}")]
    Io {
        /// Which path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Finds the weights of a model. Reads and hashes files: off the async threads.
pub fn find(spec: &ModelSpec, hub_cache: Option<&Path>) -> Result<Found, WeightsError> {
    if !spec.family.has_engine() {
        return Err(WeightsError::NoEngine(spec.family.class_name()));
    }
    let absent = |hint: String| WeightsError::Absent { model: spec.id.to_string(), hint };
    match &spec.weights {
        WeightsSource::Builtin => Ok(builtin()),
        WeightsSource::Unset => Err(absent(String::new())),
        WeightsSource::Path(path) => at_path(path, spec),
        WeightsSource::Hub { repo, subfolder } => {
            let hint = || format!(", or bring {repo} into the Hub cache ({})", hub::shown(hub_cache));
            let folder = hub_cache.and_then(|cache| hub::snapshot(cache, repo)).ok_or_else(|| absent(hint()))?;
            at_path(&subfolder.as_ref().map_or(folder.clone(), |sub| folder.join(sub)), spec)
        }
    }
}

impl Found {
    /// Reads the tensors. Blocks.
    pub fn read(&self) -> io::Result<Bytes> {
        match &self.tensors {
            Tensors::Builtin => Ok(Bytes::from_static(BUILTIN_TENSORS)),
            Tensors::File(path) => read_whole(path),
        }
    }
}

/// Into pages of its own: hundreds of megabytes that are wanted for a moment go back to the system afterwards. Not mapped
/// from the file, which others may cut short meanwhile.
fn read_whole(path: &Path) -> io::Result<Bytes> {
    let mut file = File::open(path)?;
    let len = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
    if len == 0 {
        return Ok(Bytes::new());
    }
    let mut pages = MmapMut::map_anon(len)?;
    file.read_exact(&mut pages)?;
    Ok(Bytes::from_owner(pages))
}

fn builtin() -> Found {
    let mut hasher = blake3::Hasher::new();
    hasher.update(BUILTIN_CONFIG.as_bytes()).update(BUILTIN_TENSORS);
    Found {
        config: BUILTIN_CONFIG.to_owned(),
        numbers: Numbers::parse(BUILTIN_CONFIG).expect("the builtin config is valid, a test says so"),
        tasks: vec![Task::Decode, Task::Encode],
        fingerprint: short(&hasher),
        tensors: Tensors::Builtin,
    }
}

fn at_path(path: &Path, spec: &ModelSpec) -> Result<Found, WeightsError> {
    let unusable = |what: String| WeightsError::Unusable { path: path.to_owned(), what };
    let file = if path.is_dir() { file_in(path)? } else { path.to_owned() };
    let names = tensor_names(&file)?;
    let beside = file.with_file_name("config.json");
    let config = match fs::read_to_string(&beside) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => config::implied(spec, &names),
        Err(source) => return Err(WeightsError::Io { path: beside, source }),
    };
    let numbers = Numbers::parse(&config).map_err(|error| unusable(format!("config.json: {error}")))?;
    if !numbers.family.has_engine() {
        return Err(WeightsError::NoEngine(numbers.family.class_name()));
    }
    let has = |half: &str| names.iter().any(|name| name.starts_with(half));
    let halves = [(Task::Decode, has("decoder.")), (Task::Encode, has("encoder."))];
    let tasks: Vec<Task> = halves.into_iter().filter_map(|(task, there)| there.then_some(task)).collect();
    if tasks.is_empty() {
        return Err(unusable("no tensor is named encoder.* or decoder.*".to_owned()));
    }
    let fingerprint = fingerprint(&config, &file)?;
    Ok(Found { config, numbers, tasks, fingerprint, tensors: Tensors::File(file) })
}

/// The safetensors file of a diffusers directory, or of its `vae` folder.
fn file_in(directory: &Path) -> Result<PathBuf, WeightsError> {
    const NAMES: [&str; 2] = ["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"];
    let candidates = ["", "vae"].iter().flat_map(|sub| NAMES.map(|name| directory.join(sub).join(name)));
    candidates.into_iter().find(|path| path.is_file()).ok_or_else(|| WeightsError::Unusable {
        path: directory.to_owned(),
        what: format!("no {} here nor in vae/", NAMES[0]),
    })
}

/// Names of the tensors, from the file's header: eight bytes of length, then JSON.
fn tensor_names(file: &Path) -> Result<Vec<String>, WeightsError> {
    let failed = |source| WeightsError::Io { path: file.to_owned(), source };
    let unusable = |what: String| WeightsError::Unusable { path: file.to_owned(), what };
    let mut reader = File::open(file).map_err(failed)?;
    let mut length = [0; 8];
    reader.read_exact(&mut length).map_err(failed)?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER_BYTES {
        return Err(unusable(format!("not a safetensors file: its header claims {length} bytes")));
    }
    let mut header = Vec::new();
    reader.take(length).read_to_end(&mut header).map_err(failed)?;
    let map: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(&header).map_err(|error| unusable(format!("not a safetensors file: {error}")))?;
    Ok(map.into_iter().map(|(name, _)| name).filter(|name| name != "__metadata__").collect())
}

fn fingerprint(config: &str, file: &Path) -> Result<String, WeightsError> {
    let failed = |source| WeightsError::Io { path: file.to_owned(), source };
    let mut hasher = blake3::Hasher::new();
    hasher.update(config.as_bytes());
    hasher.update_reader(File::open(file).map_err(failed)?).map_err(failed)?;
    Ok(short(&hasher))
}

fn short(hasher: &blake3::Hasher) -> String {
    hasher.finalize().to_hex()[..16].to_owned()
}

#[cfg(test)]
mod tests;
