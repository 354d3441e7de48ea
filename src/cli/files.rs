//! Files of the command line: tensors and pictures in, answers out.
//!
//! The extension says what a file is. Answers are written under another name and renamed when they are whole, so that
//! a broken stream or a full disk never leaves half a file under the name that was asked for.

use std::{
    ffi::OsString,
    fmt,
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use bytes::Bytes;

use crate::tensor::Tensor;

mod npy;
mod safetensors;

/// What a file is, by its extension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// `.png`.
    Png,
    /// `.jpg`, `.jpeg`.
    Jpeg,
    /// `.webp`.
    Webp,
    /// `.safetensors`.
    Safetensors,
    /// `.npy`.
    Npy,
}

/// What an input file holds.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Input {
    /// A picture file, as it is.
    Picture(Bytes),
    /// A tensor.
    Tensor(Tensor),
}

// === impl Format ===

impl Format {
    /// What the file of a path is.
    pub(super) fn of(path: &Path) -> anyhow::Result<Self> {
        let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
        match extension.as_str() {
            "png" => Ok(Self::Png),
            "jpg" | "jpeg" => Ok(Self::Jpeg),
            "webp" => Ok(Self::Webp),
            "safetensors" => Ok(Self::Safetensors),
            "npy" => Ok(Self::Npy),
            _ => bail!(
                "{}: the extension says what a file is; known are .safetensors and .npy for tensors, .png, .jpg, \
                 .jpeg and .webp for pictures",
                path.display()
            ),
        }
    }

    /// Whether it is a picture, and not a tensor.
    pub(super) const fn is_picture(self) -> bool {
        matches!(self, Self::Png | Self::Jpeg | Self::Webp)
    }

    /// The content type of an answer in this form.
    pub(super) const fn content_type(self) -> &'static str {
        match self {
            Self::Png => "image/png",
            Self::Jpeg => "image/jpeg",
            Self::Webp => "image/webp",
            Self::Safetensors | Self::Npy => "application/octet-stream",
        }
    }

    /// The file of a tensor, called `name` where the format has names.
    pub(super) fn file_of(self, name: &str, tensor: &Tensor) -> anyhow::Result<Bytes> {
        match self {
            Self::Safetensors => safetensors::write(name, tensor),
            Self::Npy => npy::write(tensor),
            picture => bail!("a tensor cannot be written as {picture}; wanted .safetensors or .npy"),
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Png => ".png",
            Self::Jpeg => ".jpg",
            Self::Webp => ".webp",
            Self::Safetensors => ".safetensors",
            Self::Npy => ".npy",
        })
    }
}

/// Reads a tensor or a picture. `tensor` names the one to take from a `.safetensors` file.
pub(super) fn read(path: &Path, tensor: Option<&str>) -> anyhow::Result<Input> {
    let format = Format::of(path)?;
    if tensor.is_some() && format != Format::Safetensors {
        bail!("{}: tensors have names in .safetensors files only; leave --tensor out", path.display());
    }
    let file = Bytes::from(fs::read(path).with_context(|| format!("{} cannot be read", path.display()))?);
    let read = match format {
        Format::Safetensors => safetensors::read(&file, tensor).map(Input::Tensor),
        Format::Npy => npy::read(&file).map(Input::Tensor),
        Format::Png | Format::Jpeg | Format::Webp => Ok(Input::Picture(file)),
    };
    read.with_context(|| path.display().to_string())
}

/// Whether a file can be put there, as far as can be told before the work that makes it.
pub(super) fn check_place(path: &Path) -> anyhow::Result<()> {
    let folder = folder(path);
    if !folder.is_dir() {
        bail!("{}: there is no folder {}; create it first", path.display(), folder.display());
    }
    if path.is_dir() {
        bail!("{} is a folder; name a file in it", path.display());
    }
    Ok(())
}

/// Writes a whole file, or none.
pub(super) fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let partial = Partial(partial_name(path)?);
    let written =
        File::create_new(&partial.0).and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()));
    written.and_then(|()| fs::rename(&partial.0, path)).with_context(|| format!("{} cannot be written", path.display()))
}

/// A file on its way, which goes with whatever breaks it off. Once renamed, there is nothing left to remove.
struct Partial(PathBuf);

impl Drop for Partial {
    fn drop(&mut self) {
        // After the rename this name is gone, which is the good end.
        let _ = fs::remove_file(&self.0);
    }
}

/// A name beside the file's own, so that renaming stays within one file system.
fn partial_name(path: &Path) -> anyhow::Result<PathBuf> {
    let name = path.file_name().with_context(|| format!("{} names no file", path.display()))?;
    let mut partial = OsString::from(".");
    partial.push(name);
    partial.push(format!(".{}.part", std::process::id()));
    Ok(folder(path).join(partial))
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests;
