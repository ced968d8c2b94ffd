//! The directories of a root:
//!
//! ```text
//! lock                  held by the daemon that works here
//! metadata.db           what stands (the rest is swept)
//! snapshots/ID/fs       the layer of a snapshot that was prepared the ordinary way
//! snapshots/ID/work     overlay's work directory, while it is active
//! trees/ID/fs           a layer that hoist unpacked
//! trees/ID/layer.erofs  its image, where it is one; then that is mounted on `fs`
//! trash/N               what is being removed
//! pulls/ID.json         records of pulls, which are `timeline`'s
//! ```
//!
//! The database is always told first: a directory without a row is garbage, so making one ends
//! with the commit of its row and removing one begins with the removal of its row. Names are short
//! because 128 of them have to fit into one page of mount options.

use std::fs::{self, DirBuilder, File, Permissions, TryLockError};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::error::Error;
use super::records::Layer;
use crate::pull::trees::TreeId;

/// The mode of a layer's root, which overlay shows as the root of the container.
const LAYER_MODE: u32 = 0o755;

#[derive(Debug)]
pub(super) struct Layout {
    root: PathBuf,
    next_trash: AtomicU64,
}

impl Layout {
    /// Makes the directories that are missing. The root is for its owner alone: layers hold files
    /// with the set-user-ID bit.
    pub(super) fn open(root: &Path) -> Result<Self, Error> {
        for directory in [root, &root.join("snapshots"), &root.join("trees"), &root.join("trash")] {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(directory)
                .map_err(Error::io("creating", directory))?;
        }
        let root = root.canonicalize().map_err(Error::io("resolving", root))?;
        Ok(Self { root, next_trash: AtomicU64::new(0) })
    }

    /// Takes the lock of the root; the kernel lets it go when the daemon ends, however it ends.
    pub(super) fn lock(&self) -> Result<File, Error> {
        let path = &self.root.join("lock");
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)
            .map_err(Error::io("opening", path))?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => Err(Error::Locked(self.root.clone())),
            Err(TryLockError::Error(error)) => Err(Error::io("locking", path)(error)),
        }
    }

    /// Overlay needs a file system that tells the types of entries in its directories.
    pub(super) fn check_directory_types(&self) -> Result<(), Error> {
        use nix::dir::Dir;
        use nix::fcntl::OFlag;
        use nix::sys::stat::Mode;
        let root = self.root();
        let failed = |errno: nix::Error| Error::io("reading", root)(errno.into());
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let mut directory = Dir::open(root, flags, Mode::empty()).map_err(failed)?;
        for entry in directory.iter() {
            let entry = entry.map_err(failed)?;
            if entry.file_name().to_bytes() == b"snapshots" && entry.file_type().is_none() {
                return Err(Error::NoDirectoryTypes(root.to_owned()));
            }
        }
        Ok(())
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Waits until the whole file system is on disk: one call for all files of a layer, where a sync
    /// of each would be a journal commit of each.
    pub(super) fn sync(&self) -> Result<(), Error> {
        let root = File::open(&self.root).map_err(Error::io("opening", &self.root))?;
        let synced = nix::unistd::syncfs(root).map_err(std::io::Error::from);
        synced.map_err(Error::io("syncing", &self.root))
    }

    pub(super) fn snapshots(&self) -> PathBuf {
        self.root.join("snapshots")
    }

    pub(super) fn trees(&self) -> PathBuf {
        self.root.join("trees")
    }

    pub(super) fn trash(&self) -> PathBuf {
        self.root.join("trash")
    }

    pub(super) fn snapshot(&self, id: i64) -> PathBuf {
        self.root.join(format!("snapshots/{id}"))
    }

    pub(super) fn upper(&self, id: i64) -> PathBuf {
        self.root.join(format!("snapshots/{id}/fs"))
    }

    pub(super) fn work(&self, id: i64) -> PathBuf {
        self.root.join(format!("snapshots/{id}/work"))
    }

    pub(super) fn tree(&self, id: TreeId) -> PathBuf {
        self.root.join(format!("trees/{id}"))
    }

    pub(super) fn tree_root(&self, id: TreeId) -> PathBuf {
        self.root.join(format!("trees/{id}/fs"))
    }

    pub(super) fn tree_image(&self, id: TreeId) -> PathBuf {
        self.root.join(format!("trees/{id}/layer.erofs"))
    }

    /// Where a layer's files are.
    pub(super) fn layer(&self, layer: Layer) -> PathBuf {
        layer.tree.map_or_else(|| self.upper(layer.snapshot), |tree| self.tree_root(tree))
    }

    /// Makes the directories of a snapshot; `writable` ones get a work directory too.
    pub(super) fn make_snapshot(
        &self,
        id: i64,
        writable: bool,
        owner: Option<(u32, u32)>,
    ) -> Result<(), Error> {
        make(&self.snapshot(id), 0o700)?;
        let upper = self.upper(id);
        make(&upper, LAYER_MODE)?;
        if let Some((user, group)) = owner {
            chown(&upper, Some(user), Some(group))
                .map_err(Error::io("changing the owner of", &upper))?;
        }
        if writable { make(&self.work(id), 0o711) } else { Ok(()) }
    }

    /// Makes the directory of a tree.
    pub(super) fn make_tree(&self, id: TreeId) -> Result<PathBuf, Error> {
        make(&self.tree(id), 0o700)?;
        let root = self.tree_root(id);
        make(&root, LAYER_MODE)?;
        Ok(root)
    }

    /// Moves a directory out of the way in one step, so that its name is free at once and its
    /// files can be removed whenever there is time. One that is not there is well.
    pub(super) fn discard(&self, directory: &Path) -> Result<(), Error> {
        loop {
            let number = self.next_trash.fetch_add(1, Ordering::Relaxed);
            let target = self.trash().join(number.to_string());
            // Names of an earlier life may still lie there; rename would replace an empty one.
            if target.symlink_metadata().is_ok() {
                continue;
            }
            return match fs::rename(directory, target) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    Err(Error::io("moving to the trash", directory)(error))
                }
                _ => Ok(()),
            };
        }
    }
}

/// Makes one directory with exactly `mode`, whatever the umask.
fn make(directory: &Path, mode: u32) -> Result<(), Error> {
    fs::create_dir(directory).map_err(Error::io("creating", directory))?;
    fs::set_permissions(directory, Permissions::from_mode(mode))
        .map_err(Error::io("setting the mode of", directory))
}
