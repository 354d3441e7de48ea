//! The folder: names, the lock of its owner, and the few moves of files. Blocks; belongs on blocking threads.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};

use crate::{artifact::envelope::VERSION, key::ContentKey};

/// Damaged files that are kept for whoever wants to look at them.
const KEPT_ASIDE: usize = 16;

/// What is done to a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Opening a file to read it.
    Open,
    /// Reading a chunk.
    Read,
    /// Making a new file.
    Create,
    /// Writing a slice.
    Write,
    /// Forcing it to the medium.
    Sync,
    /// Making a file visible.
    Rename,
}

/// Asked before every operation: fails it, or takes its time. For tests of what a disk can do.
pub type Faults = Arc<dyn Fn(Operation) -> io::Result<()> + Send + Sync>;

/// Why a folder cannot be the disk tier's.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It cannot be made, read or written.
    #[error("cache.disk.path = {path}: it must be a folder that can be written", path = path.display())]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another process has it.
    #[error(
        "cache.disk.path = {path}: another latentgate has this folder; give each its own, or stop the other",
        path = path.display()
    )]
    Owned {
        /// Which.
        path: PathBuf,
    },
    /// The thread that reads the names cannot be started.
    #[error("cache.disk: no thread can be started")]
    Thread(#[source] io::Error),
}

/// The folder, owned.
pub(super) struct Folder {
    path: PathBuf,
    root: PathBuf,
    faults: Option<Faults>,
    next: AtomicU64,
    /// Locked for as long as it is open.
    lock: File,
    is_closed: AtomicBool,
}

impl Folder {
    /// Makes what is missing, takes the lock, removes what was being written when the last owner ended.
    pub(super) fn open(path: PathBuf, faults: Option<Faults>) -> Result<Self, OpenError> {
        let refused = |source| OpenError::Folder { path: path.clone(), source };
        fs::create_dir_all(&path).map_err(refused)?;
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(path.join("latentgate.lock"));
        let lock = lock.map_err(refused)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(OpenError::Owned { path }),
            Err(TryLockError::Error(source)) => return Err(refused(source)),
        }
        let root = path.join(format!("v{VERSION}"));
        let folder =
            Self { root, path: path.clone(), faults, next: AtomicU64::new(0), lock, is_closed: AtomicBool::new(false) };
        folder.prepare().map_err(refused)?;
        Ok(folder)
    }

    fn prepare(&self) -> io::Result<()> {
        for byte in 0..=u8::MAX {
            fs::create_dir_all(self.shelf(byte))?;
        }
        fs::create_dir_all(self.root.join("aside"))?;
        let new = self.root.join("new");
        fs::create_dir_all(&new)?;
        for orphan in fs::read_dir(&new)? {
            fs::remove_file(orphan?.path())?;
        }
        // A folder that cannot be written is found out now, and not by the first artifact.
        let (probe, file) = self.create()?;
        drop(file);
        fs::remove_file(probe)
    }

    /// As configured, for messages.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the folder up, for whoever wants it next. From now on nothing in it is touched.
    pub(super) fn close(&self) {
        self.is_closed.store(true, Ordering::Release);
        if let Err(error) = self.lock.unlock() {
            // The end of the process does it too.
            tracing::debug!(path = %self.path.display(), %error, "the lock of the disk tier stays");
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::Acquire)
    }

    /// To be asked by whoever goes on with a file.
    pub(super) fn faults(&self) -> Option<Faults> {
        self.faults.clone()
    }

    pub(super) fn before(&self, operation: Operation) -> io::Result<()> {
        self.faults.as_ref().map_or(Ok(()), |faults| faults(operation))
    }

    /// The folder of the keys that begin with `byte`.
    pub(super) fn shelf(&self, byte: u8) -> PathBuf {
        self.root.join(format!("{byte:02x}"))
    }

    /// Where the artifact of a key is.
    pub(super) fn place(&self, key: &ContentKey) -> PathBuf {
        let name = key.to_string();
        self.root.join(&name[..2]).join(&name[2..])
    }

    /// The key whose artifact a file name on a shelf is.
    pub(super) fn key(byte: u8, name: &str) -> Option<ContentKey> {
        ContentKey::from_hex(&format!("{byte:02x}{name}"))
    }

    /// The file of a key, if it can be opened without waiting for the disk. Not on a disk that fails as it is told to: faults
    /// are asked on the way over the threads.
    pub(super) fn open_cached(&self, key: &ContentKey) -> Option<File> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = || rustix::fs::openat2(CWD, self.place(key), flags, Mode::empty(), ResolveFlags::CACHED).ok();
        if self.faults.is_some() { None } else { file().map(File::from) }
    }

    pub(super) fn open_file(&self, key: &ContentKey) -> io::Result<File> {
        self.before(Operation::Open)?;
        File::open(self.place(key))
    }

    /// A new file under a name of its own, not visible yet.
    pub(super) fn create(&self) -> io::Result<(PathBuf, File)> {
        self.before(Operation::Create)?;
        let name = self.next.fetch_add(1, Ordering::Relaxed).to_string();
        let path = self.root.join("new").join(name);
        let file = OpenOptions::new().write(true).create_new(true).open(&path)?;
        Ok((path, file))
    }

    /// Makes a new file visible.
    pub(super) fn publish(&self, new: &Path, key: &ContentKey) -> io::Result<()> {
        self.before(Operation::Rename)?;
        fs::rename(new, self.place(key))
    }

    /// Forces a key's name to the medium.
    pub(super) fn sync_name(&self, key: &ContentKey) -> io::Result<()> {
        self.before(Operation::Sync)?;
        File::open(self.shelf(key.as_bytes()[0]))?.sync_all()
    }

    pub(super) fn remove(&self, key: &ContentKey) -> io::Result<()> {
        fs::remove_file(self.place(key))
    }

    /// Moves a damaged file out of the way. The eldest of too many goes.
    pub(super) fn set_aside(&self, key: &ContentKey) -> io::Result<()> {
        let aside = self.root.join("aside");
        let mut kept = Vec::new();
        for entry in fs::read_dir(&aside)? {
            let entry = entry?;
            kept.push((entry.metadata()?.modified()?, entry.path()));
        }
        kept.sort_unstable();
        for (_, eldest) in kept.iter().take((kept.len() + 1).saturating_sub(KEPT_ASIDE)) {
            fs::remove_file(eldest)?;
        }
        fs::rename(self.place(key), aside.join(key.to_string()))
    }

    /// Bytes that this process may still write on the file system.
    pub(super) fn free_bytes(&self) -> io::Result<u64> {
        let system = rustix::fs::statvfs(&self.root)?;
        Ok(system.f_bavail.saturating_mul(system.f_frsize))
    }
}
