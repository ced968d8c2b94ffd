//! Pulling an image into a plain directory, without containerd and without a daemon.
//!
//! The layers are unpacked side by side as they are for containerd, each into a tree below a
//! staging directory inside the destination (so that it is the same file system), and merged into
//! the destination by renaming. Whatever is half done when the [`DirectoryStore`] is dropped is
//! removed with it, what was merged of an image that did not come whole too.

use std::collections::HashMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::trees::{
    Content, HeldTree, StagedTree, StoreError, TreeId, TreeInfo, TreePin, TreeStore,
};
use crate::image::DiffId;
use crate::unpack::{self, UnpackError};

/// The staging directory's name inside the destination.
const STAGING: &str = ".hoist-pull";

/// The way out where the destination is not one.
const NAME_ANOTHER: &str = "name an empty or a new directory";

/// Trees of one pull into a directory.
#[derive(Debug)]
pub struct DirectoryStore {
    dest: PathBuf,
    /// Whether the destination was made for the pull.
    is_new: bool,
    staging: PathBuf,
    /// A merge has begun.
    merging: AtomicBool,
    /// It has come to its end: the image is there.
    whole: AtomicBool,
    next: AtomicI64,
    /// Those that are written, and those that are being written.
    trees: Mutex<HashMap<TreeId, (DiffId, Option<TreeInfo>)>>,
}

impl DirectoryStore {
    /// Makes `dest` if it is not there.
    ///
    /// # Errors
    /// Where `dest` cannot be made, or has something in it: a pull never mixes with other files.
    pub fn new(dest: &Path) -> Result<Self, StoreError> {
        let doing = format!("cannot pull into {}", dest.display());
        let refused = |error| failed(&doing, error);
        let wrong = |kind, what: &str| {
            Err(failed(&doing, std::io::Error::new(kind, format!("it {what}; {NAME_ANOTHER}"))))
        };
        let is_new = match fs::symlink_metadata(dest) {
            Ok(_) if !dest.is_dir() => return wrong(ErrorKind::NotADirectory, "is no directory"),
            found => found.is_err(),
        };
        fs::create_dir_all(dest).map_err(refused)?;
        if fs::read_dir(dest).map_err(refused)?.next().is_some() {
            return wrong(ErrorKind::DirectoryNotEmpty, "is not empty");
        }
        let staging = dest.join(STAGING);
        fs::create_dir(&staging).map_err(refused)?;
        Ok(Self {
            dest: dest.to_owned(),
            is_new,
            staging,
            merging: AtomicBool::new(false),
            whole: AtomicBool::new(false),
            next: AtomicI64::new(1),
            trees: Mutex::default(),
        })
    }

    /// Merges `trees`, lowest first, into the destination.
    ///
    /// # Errors
    /// Where a file cannot be moved.
    pub fn merge(&self, trees: &[HeldTree]) -> Result<(), UnpackError> {
        let paths: Vec<PathBuf> = trees.iter().map(|held| held.tree.path.clone()).collect();
        self.merging.store(true, Relaxed);
        unpack::merge(&paths, &self.dest)?;
        self.whole.store(true, Relaxed);
        Ok(())
    }

    /// The destination.
    pub fn dest(&self) -> &Path {
        &self.dest
    }

    fn trees(&self) -> MutexGuard<'_, HashMap<TreeId, (DiffId, Option<TreeInfo>)>> {
        self.trees.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for DirectoryStore {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.staging) {
            tracing::warn!(path = %self.staging.display(), %error, "could not remove the staging directory");
        }
        if self.whole.load(Relaxed) {
            return;
        }
        if self.merging.load(Relaxed) {
            // It was empty before: all that is in it was merged.
            let removed =
                fs::read_dir(&self.dest).and_then(|mut entries| entries.try_for_each(remove));
            if let Err(error) = removed {
                tracing::warn!(path = %self.dest.display(), %error, "a part of the image stays");
            }
        }
        if self.is_new {
            // One with something in it stays.
            let _ = fs::remove_dir(&self.dest);
        }
    }
}

fn remove(entry: std::io::Result<fs::DirEntry>) -> std::io::Result<()> {
    let entry = entry?;
    if entry.file_type()?.is_dir() {
        fs::remove_dir_all(entry.path())
    } else {
        fs::remove_file(entry.path())
    }
}

fn failed(doing: &str, source: std::io::Error) -> StoreError {
    StoreError::Io { doing: doing.to_owned(), source }
}

impl TreeStore for DirectoryStore {
    fn find(&self, diff_id: DiffId) -> Result<Vec<TreeInfo>, StoreError> {
        let trees = self.trees();
        let written = trees.values().filter_map(|(_, tree)| tree.as_ref());
        Ok(written.filter(|tree| tree.diff_id == diff_id).cloned().collect())
    }

    fn stage(&self, diff_id: DiffId) -> Result<StagedTree, StoreError> {
        let id = TreeId(self.next.fetch_add(1, Relaxed));
        let path = self.staging.join(id.to_string());
        fs::create_dir(&path)
            .map_err(|e| failed(&format!("make a directory for layer {diff_id}"), e))?;
        self.trees().insert(id, (diff_id, None));
        Ok(StagedTree { id, path, image: None })
    }

    fn publish(&self, staged: StagedTree, content: Content) -> Result<TreeInfo, StoreError> {
        let StagedTree { id, path, .. } = staged;
        let Content { bytes, inodes, implied, .. } = content;
        let mut trees = self.trees();
        let (diff_id, written) = trees.get_mut(&id).ok_or(StoreError::Gone(id))?;
        let (image, diff_id, settled) = (None, *diff_id, None);
        let tree = TreeInfo { id, path, image, diff_id, bytes, inodes, implied, settled };
        *written = Some(tree.clone());
        Ok(tree)
    }

    fn settled(&self, id: TreeId, metadata: Vec<u8>) -> Result<(), StoreError> {
        let mut trees = self.trees();
        let tree =
            trees.get_mut(&id).and_then(|(_, tree)| tree.as_mut()).ok_or(StoreError::Gone(id))?;
        match &tree.settled {
            Some(settled) if *settled != metadata => Err(StoreError::SettledOtherwise(id)),
            _ => {
                tree.settled = Some(metadata);
                Ok(())
            }
        }
    }

    /// Trees stay until the whole store is dropped.
    fn pin(&self, id: TreeId) -> Result<TreePin, StoreError> {
        Ok(TreePin::new(id, || ()))
    }

    fn discard(&self, staged: StagedTree) {
        let mut trees = self.trees();
        if trees.get(&staged.id).is_some_and(|(_, published)| published.is_some()) {
            return;
        }
        trees.remove(&staged.id);
        drop(trees);
        if let Err(error) = fs::remove_dir_all(&staged.path) {
            tracing::warn!(path = %staged.path.display(), %error, "could not remove a half-made layer");
        }
    }
}
