//! What a pull needs of a place that keeps layer trees.
//!
//! A layer's tree is extracted once for each DiffID and shared by every chain, image and namespace.
//! Its life: [`TreeStore::stage`] gives a pull an empty directory; the pull writes the layer there
//! and hands it in with [`TreeStore::publish`], from where on [`TreeStore::find`] shows it; or it
//! gives up and [`TreeStore::discard`]s it. A published tree that nobody refers to is swept away
//! after a while, so a pull holds a [`TreePin`] from the moment it counts on a tree until the
//! snapshot that refers to it stands.
//!
//! A tree is files in a directory, or an image file that the store mounts there; what a layer becomes
//! is the pull's choice where the store offers an image. The store mounts it when it is settled.
//!
//! Directories that an archive implies but never names take their metadata from the layers below.
//! Which ones those are is known when the tree is published; what they became is told later, with
//! [`TreeStore::settled`], and from then on the tree fits only chains that settle it equally.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::erofs::BlockSize;
use crate::image::DiffId;
use crate::sys::space::is_full;

/// Names one tree for as long as its store exists; ids are never used again.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct TreeId(pub i64);

impl fmt::Display for TreeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// A tree that is being written. Give it back with `publish` or `discard`; what is left behind by a
/// daemon that died is removed when the store is opened again.
#[derive(Clone, Debug)]
pub struct StagedTree {
    /// The id that it keeps when it is published.
    pub id: TreeId,
    /// The layer's root directory: it exists, is empty, and has mode 0755.
    pub path: PathBuf,
    /// To be made an EROFS image of the layer instead of files in `path`; `None` where the store
    /// wants files.
    pub image: Option<StagedImage>,
}

/// Where a layer's image is to be made.
#[derive(Clone, Debug)]
pub struct StagedImage {
    /// A file that does not exist yet.
    pub path: PathBuf,
    /// Such blocks as the store can mount.
    pub block: BlockSize,
}

/// What was written into a staged tree.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Content {
    /// It is the image that the store offered, not files.
    pub is_image: bool,
    /// What it occupies, in bytes, as counted while it was written.
    pub bytes: u64,
    /// How many inodes it occupies.
    pub inodes: u64,
    /// Directories that the archive implied without naming them, relative to the root.
    pub implied: Vec<PathBuf>,
}

/// A published tree.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TreeInfo {
    /// Its id.
    pub id: TreeId,
    /// The layer's root directory.
    pub path: PathBuf,
    /// The image file that is mounted there, once the tree is settled; `None`: it is files.
    pub image: Option<PathBuf>,
    /// The layer whose content it holds.
    pub diff_id: DiffId,
    /// What it occupies, in bytes, as counted while it was written.
    pub bytes: u64,
    /// How many inodes it occupies.
    pub inodes: u64,
    /// Directories that the archive implied without naming them, relative to the root.
    pub implied: Vec<PathBuf>,
    /// What the implied directories became, in a canonical form; `None`: not settled yet.
    pub settled: Option<Vec<u8>>,
}

/// Why a store could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The tree was swept away or discarded.
    #[error("layer tree {0} is gone; fetch the layer again")]
    Gone(TreeId),
    /// The tree's implied directories are settled already, with other metadata.
    #[error("layer tree {0} was settled for another chain; it cannot be shared with this one")]
    SettledOtherwise(TreeId),
    /// The file system refused.
    #[error("{doing}: {source}")]
    Io {
        /// What was tried.
        doing: String,
        /// The system's answer.
        source: io::Error,
    },
    /// The store's own records could not be read or written.
    #[error("the records of layer trees: {0}")]
    Records(String),
}

impl StoreError {
    /// Whether the disk is full.
    pub fn is_no_space(&self) -> bool {
        matches!(self, Self::Io { source, .. } if is_full(source))
    }
}

/// Keeps a tree from being swept away while it is held.
#[must_use = "the tree may be swept away as soon as the pin is dropped"]
pub struct TreePin {
    id: TreeId,
    release: Option<Box<dyn FnOnce() + Send + Sync>>,
}

impl TreePin {
    /// A pin on `id` that calls `release` when it is dropped.
    pub fn new(id: TreeId, release: impl FnOnce() + Send + Sync + 'static) -> Self {
        Self { id, release: Some(Box::new(release)) }
    }

    /// The tree that is held.
    pub fn id(&self) -> TreeId {
        self.id
    }
}

impl fmt::Debug for TreePin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TreePin").field(&self.id).finish()
    }
}

impl Drop for TreePin {
    fn drop(&mut self) {
        if let Some(release) = self.release.take() {
            release();
        }
    }
}

/// A tree that somebody counts on: it stays while any clone of this is there.
#[derive(Clone, Debug)]
pub struct HeldTree {
    /// The tree.
    pub tree: TreeInfo,
    _pin: Arc<TreePin>,
}

impl HeldTree {
    /// A tree with a pin on it.
    pub fn new(tree: TreeInfo, pin: TreePin) -> Self {
        Self { tree, _pin: Arc::new(pin) }
    }

    /// Pins `tree` in `store`.
    ///
    /// # Errors
    /// As [`TreeStore::pin`].
    pub fn pin(store: &dyn TreeStore, tree: TreeInfo) -> Result<Self, StoreError> {
        let pin = store.pin(tree.id)?;
        Ok(Self::new(tree, pin))
    }

    /// The first published tree of a layer, if there is one.
    ///
    /// # Errors
    /// As [`TreeStore::find`].
    pub fn find(store: &dyn TreeStore, diff_id: DiffId) -> Result<Option<Self>, StoreError> {
        for tree in store.find(diff_id)? {
            match Self::pin(store, tree) {
                Ok(held) => return Ok(Some(held)),
                // It was swept away between the two calls.
                Err(StoreError::Gone(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }
}

/// A place that keeps layer trees. The calls block for milliseconds; none walks a tree.
pub trait TreeStore: Send + Sync + 'static {
    /// The published trees of a layer. They stay for the store's grace period at least; hold them
    /// longer with [`TreeStore::pin`].
    ///
    /// # Errors
    /// [`StoreError::Records`].
    fn find(&self, diff_id: DiffId) -> Result<Vec<TreeInfo>, StoreError>;

    /// A new directory for the layer `diff_id`.
    ///
    /// # Errors
    /// [`StoreError::Io`], [`StoreError::Records`].
    fn stage(&self, diff_id: DiffId) -> Result<StagedTree, StoreError>;

    /// Takes in a tree that is written and verified whole. An image without implied directories is
    /// mounted now.
    ///
    /// # Errors
    /// [`StoreError::Gone`] if it was discarded, [`StoreError::Records`], [`StoreError::Io`] where
    /// an image cannot be mounted.
    fn publish(&self, tree: StagedTree, content: Content) -> Result<TreeInfo, StoreError>;

    /// Notes what the implied directories of a published tree became, and mounts it if it is an
    /// image. Telling the same twice is well; of two callers that tell different things the second
    /// is refused.
    ///
    /// # Errors
    /// [`StoreError::SettledOtherwise`], [`StoreError::Gone`], [`StoreError::Records`],
    /// [`StoreError::Io`] where an image cannot be mounted.
    fn settled(&self, id: TreeId, metadata: Vec<u8>) -> Result<(), StoreError>;

    /// Holds a published tree.
    ///
    /// # Errors
    /// [`StoreError::Gone`] if it was swept away, [`StoreError::Records`].
    fn pin(&self, id: TreeId) -> Result<TreePin, StoreError>;

    /// Gives a staged tree up; its files are removed in the background. One that was published meanwhile
    /// (where publishing failed afterwards) stays.
    fn discard(&self, tree: StagedTree);
}
