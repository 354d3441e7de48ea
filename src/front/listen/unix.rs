//! A Unix socket beside the data port, for clients on this machine.
//!
//! It costs less than TCP over the loopback, and file permissions say who may ask. The file names nobody but its owner
//! before it can be connected to: it is bound, gets its mode, and only then listens. What a dead process left at the path
//! is replaced, and nothing else is: a socket that somebody listens on and a file that is no socket are errors. At the
//! end the file goes, if it is still ours. Two servers that start in the same instant are not told apart: the later one
//! has the path.

use std::{
    fmt, fs, io,
    os::unix::{
        fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
        net::SocketAddr,
    },
    path::{Path, PathBuf},
    str::FromStr,
};

use serde::{Deserialize, Serialize};
use tokio::net::{UnixListener, UnixSocket, UnixStream};

/// Connections that wait to be accepted; the kernel's own bound (`net.core.somaxconn`) stands below it.
const BACKLOG: u32 = 1024;

/// A listening socket and its file, which goes with it.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    file: File,
}

/// A file at a path, told from a later one at the same path.
#[derive(Debug)]
struct File {
    path: PathBuf,
    identity: (u64, u64),
}

/// Permissions of the file, in octal: `0600` is for its owner alone, `0660` for its group too.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Mode(u32);

/// Not a mode.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no mode of a socket: wanted octal digits from \"0600\", its owner alone, to \"0777\", everybody")]
pub struct ModeError(String);

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody listens there.
    #[error("listen.socket = {path}: another process listens there: stop it, or name another path")]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// A file that is not ours to remove.
    #[error("listen.socket = {path}: is there and is no socket: remove it, or name another path")]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// Anything else.
    #[error("listen.socket = {path}: cannot be bound: name a file in a folder that this user may write to")]
    Io {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

// === impl Socket ===

impl Socket {
    /// Binds now, in place of what a dead process left at `path`.
    pub async fn bind(path: &Path, mode: Mode) -> Result<Self, BindError> {
        let failed = |source| BindError::Io { path: path.to_owned(), source };
        clear(path).await?;
        let socket = UnixSocket::new_stream().map_err(failed)?;
        socket.bind(path).map_err(failed)?;
        let file = File::at(path).map_err(failed)?;
        fs::set_permissions(path, fs::Permissions::from_mode(mode.0)).map_err(failed)?;
        Ok(Self { listener: socket.listen(BACKLOG).map_err(failed)?, file })
    }

    pub(super) async fn accept(&self) -> io::Result<UnixStream> {
        Ok(self.listener.accept().await?.0)
    }

    /// Where its file is.
    pub fn path(&self) -> &Path {
        &self.file.path
    }
}

/// Removes a socket that nobody listens on.
async fn clear(path: &Path) -> Result<(), BindError> {
    let failed = |source| BindError::Io { path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(found) if !found.file_type().is_socket() => return Err(BindError::NotASocket { path: path.to_owned() }),
        Ok(_) => {}
    }
    match UnixStream::connect(path).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path).map_err(failed),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        // A full backlog is somebody's, too.
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(failed(error)),
        Ok(_) | Err(_) => Err(BindError::InUse { path: path.to_owned() }),
    }
}

// === impl File ===

impl File {
    fn at(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), identity: identity(path)? })
    }
}

impl Drop for File {
    fn drop(&mut self) {
        // A successor's file stays.
        if identity(&self.path).is_ok_and(|now| now == self.identity)
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "the socket's file stays behind");
        }
    }
}

/// Device and inode: what a file is, whatever its path.
fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let found = fs::symlink_metadata(path)?;
    Ok((found.dev(), found.ino()))
}

/// Whether a socket can have this path: an address of the kernel's holds about a hundred bytes.
pub fn is_path(path: &Path) -> bool {
    !path.as_os_str().is_empty() && SocketAddr::from_pathname(path).is_ok()
}

// === impl Mode ===

/// A server that its own user cannot ask is a slip.
const OWNER: u32 = 0o600;
const EVERYBODY: u32 = 0o777;

impl Default for Mode {
    fn default() -> Self {
        Self(OWNER)
    }
}

impl FromStr for Mode {
    type Err = ModeError;

    fn from_str(text: &str) -> Result<Self, ModeError> {
        let is_octal = text.bytes().all(|digit| matches!(digit, b'0'..=b'7'));
        let mode = u32::from_str_radix(text, 8).ok().filter(|mode| is_octal && *mode <= EVERYBODY);
        mode.filter(|mode| mode & OWNER == OWNER).map(Self).ok_or_else(|| ModeError(text.to_owned()))
    }
}

impl TryFrom<String> for Mode {
    type Error = ModeError;

    fn try_from(text: String) -> Result<Self, ModeError> {
        text.parse()
    }
}

impl From<Mode> for String {
    fn from(mode: Mode) -> Self {
        mode.to_string()
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

impl fmt::Debug for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
