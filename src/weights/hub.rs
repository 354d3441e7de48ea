//! The local Hub cache, as `huggingface_hub` lays it out: `models--owner--name/{refs/main, snapshots/<commit>/...}`.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The folder of a repository's `main` snapshot, if it has been downloaded.
pub(super) fn snapshot(cache: &Path, repo: &str) -> Option<PathBuf> {
    let root = cache.join(format!("models--{}", repo.replace('/', "--")));
    let commit = fs::read_to_string(root.join("refs/main")).ok()?;
    let folder = root.join("snapshots").join(commit.trim());
    folder.is_dir().then_some(folder)
}

/// The cache's place, for messages.
pub(super) fn shown(cache: Option<&Path>) -> String {
    cache.map_or_else(|| "weights.hub_cache is not set".to_owned(), |path| path.display().to_string())
}
