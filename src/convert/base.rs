//! What lies above a base image whose layers stay as they are.
//!
//! A layer above another says what is new and, with whiteouts, what is gone. So of the final file system
//! the new layers get everything but what the base shows in the same way, and the lowest of them hides the
//! names that the base has and the final file system does not.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::source::{self, Image, Reach};
use super::tree::{InodeId, Node, ROOT, Tree};
use super::{ConvertError, Place, document};
use crate::archive::LayerPath;
use crate::image::Platform;
use crate::layout::Staging;

/// Has the lowest layers of `image` come from `base`, as far as they are the same archives, and be kept
/// while they are read. Returns how many.
pub(super) fn put_on_base(
    image: &mut Image,
    base: &Place,
    staging: &Arc<Staging>,
    reach: &Reach,
) -> Result<usize, ConvertError> {
    let platform = document::platform(&image.config).unwrap_or_else(Platform::host);
    let opened = source::open(base, Some(&platform), reach)?;
    let below = opened.images.into_iter().next().expect("one platform is one image").layers;
    let pairs = image.layers.iter_mut().zip(below);
    let mut kept = 0;
    for (own, below) in pairs.take_while(|(own, below)| own.diff_id == below.diff_id) {
        if below.digest.is_some() {
            *own = below;
        } else if own.digest.is_none() {
            break;
        }
        own.keep = Some(Arc::clone(staging));
        kept += 1;
    }
    if kept == 0 {
        let reason = "the image does not begin with its layers, so none of them can be kept";
        return Err(ConvertError::Base { base: base.to_string(), reason });
    }
    Ok(kept)
}

/// The difference of a file system from its base.
#[derive(Debug, Default)]
pub(super) struct Above {
    /// Inodes that the base shows already, directories among them.
    pub(super) same: HashSet<InodeId>,
    /// Names to hide: the outermost ones that are gone.
    pub(super) gone: Vec<LayerPath>,
}

impl Above {
    /// The difference of `tree`, whose names are `walked`, from `base`.
    pub(super) fn of(tree: &Tree, walked: &[(LayerPath, InodeId)], base: &Tree) -> Self {
        let below: HashMap<LayerPath, InodeId> = base.walk().into_iter().collect();
        let mut names: HashMap<InodeId, Vec<&LayerPath>> = HashMap::new();
        for (path, id) in walked {
            names.entry(*id).or_default().push(path);
        }
        // Names that are one file in the base stay one: two files of it cannot be told apart there.
        let mut shared: HashMap<InodeId, InodeId> = HashMap::new();
        let mut torn = HashSet::new();
        for (path, id) in walked {
            if let Some(&old) = below.get(path)
                && *shared.entry(old).or_insert(*id) != *id
            {
                torn.insert(old);
            }
        }
        let is_same = |id: InodeId, paths: &[&LayerPath]| {
            let first = below.get(paths[0]);
            first.is_some_and(|&old| {
                !torn.contains(&old)
                    && paths.iter().all(|path| below.get(*path) == Some(&old))
                    && looks_the_same(tree, id, base, old)
            })
        };
        let mut same: HashSet<InodeId> =
            names.iter().filter(|(id, paths)| is_same(**id, paths)).map(|(id, _)| *id).collect();
        if looks_the_same(tree, ROOT, base, ROOT) {
            same.insert(ROOT);
        }
        let now: HashMap<&LayerPath, InodeId> =
            walked.iter().map(|(path, id)| (path, *id)).collect();
        let is_directory = |path: &LayerPath| {
            path.is_root()
                || now
                    .get(path)
                    .is_some_and(|&id| matches!(tree.inode(id).node, Node::Directory(_)))
        };
        let gone = base.walk().into_iter().map(|(path, _)| path).filter(|path| {
            let parent = path.split().map(|(parent, _)| parent);
            !now.contains_key(path) && parent.is_some_and(|parent| is_directory(&parent))
        });
        Self { same, gone: gone.collect() }
    }
}

/// Whether both are the same but for the names in directories.
fn looks_the_same(tree: &Tree, id: InodeId, base: &Tree, old: InodeId) -> bool {
    let (a, b) = (tree.inode(id), base.inode(old));
    let alike =
        (a.mode, a.uid, a.gid, a.mtime, &a.xattrs) == (b.mode, b.uid, b.gid, b.mtime, &b.xattrs);
    alike
        && match (&a.node, &b.node) {
            (Node::Directory(_), Node::Directory(_)) => true,
            (Node::File(x), Node::File(y)) => (x.digest, x.size) == (y.digest, y.size),
            (x, y) => x == y,
        }
}
