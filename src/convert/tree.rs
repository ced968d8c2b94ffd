//! The final file system of a stack of layers (OCI image specification, layer.md, "Applying").
//!
//! A layer is applied in two steps: first its whiteouts, against what lower layers brought, then
//! its entries. So neither an opaque whiteout nor a plain one hides anything of its own layer,
//! whatever their order in the archive, and what was below a removed directory is gone with it.
//!
//! Names lead to inodes, as on disk. A hard link is a second name for one, also for one of a lower
//! layer; replacing one name leaves the others what they were.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::CString;

use super::ConvertError;
use super::read::{Content, Found, ReadLayer};
use super::spool::Spot;
use crate::archive::{Entry, Kind, LayerPath, Place, Time};
use crate::image::Sha256;

/// Symbolic links followed for one name; containerd's number.
const LINKS_FOLLOWED: usize = 255;

/// The longest path in bytes, through symbolic links; the kernel's PATH_MAX.
const PATH_BYTES_MOST: usize = 4096;

/// The mode's bit for a directory that hands its group on.
const SETGID: u32 = 0o2000;

/// The index of an inode.
pub(super) type InodeId = usize;

/// The root's inode.
pub(super) const ROOT: InodeId = 0;

/// What an inode is.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Node {
    Directory(BTreeMap<Box<[u8]>, InodeId>),
    File(Content),
    Symlink(CString),
    Fifo,
    CharDevice { major: u32, minor: u32 },
    BlockDevice { major: u32, minor: u32 },
}

/// What a container sees of something, but its names.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Inode {
    pub(super) node: Node,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Time,
    /// By name.
    pub(super) xattrs: Vec<(CString, Vec<u8>)>,
    /// The layer it came with.
    pub(super) layer: usize,
}

impl Inode {
    /// A directory that no entry describes, as containerd makes it.
    fn implied(layer: usize) -> Self {
        let (node, xattrs) = (Node::Directory(BTreeMap::new()), Vec::new());
        Self { node, mode: 0o755, uid: 0, gid: 0, mtime: Time::default(), xattrs, layer }
    }
}

/// A file system in memory, without contents.
#[derive(Clone, Debug)]
pub(super) struct Tree {
    inodes: Vec<Inode>,
    /// Whether a layer had an entry for the root itself.
    pub(super) root_described: bool,
    /// Content of all entries, in bytes, whether they can be seen in the end or not.
    pub(super) content_bytes: u64,
    /// Layers that were applied.
    layers: usize,
}

impl Default for Tree {
    /// An empty root.
    fn default() -> Self {
        let inodes = vec![Inode::implied(0)];
        Self { inodes, root_described: false, content_bytes: 0, layers: 0 }
    }
}

impl Tree {
    /// Applies `layers`, the lowest first.
    ///
    /// # Errors
    /// Where an entry cannot be applied: a hard link to nothing, a loop of symbolic links.
    pub(super) fn of_layers(layers: Vec<ReadLayer>) -> Result<Self, ConvertError> {
        let mut tree = Self::default();
        for layer in layers {
            tree.apply(layer)?;
        }
        Ok(tree)
    }

    /// Applies one more layer.
    ///
    /// # Errors
    /// As [`Tree::of_layers`].
    pub(super) fn apply(&mut self, layer: ReadLayer) -> Result<(), ConvertError> {
        let number = self.layers;
        self.layers += 1;
        for found in &layer.entries {
            self.hide(&found.place, &layer.name)?;
        }
        for found in layer.entries {
            self.put(found, number, &layer.name)?;
        }
        Ok(())
    }

    /// An inode that no name leads to: what the marker of a whiteout is.
    pub(super) fn marker(&mut self) -> InodeId {
        let digest = Sha256::of(b"");
        let content = Content { digest, size: 0, spot: Spot { spool: 0, offset: 0 } };
        self.inodes.push(Inode { node: Node::File(content), mode: 0o644, ..Inode::implied(0) });
        self.inodes.len() - 1
    }

    pub(super) fn inode(&self, id: InodeId) -> &Inode {
        &self.inodes[id]
    }

    fn children(&self, id: InodeId) -> Option<&BTreeMap<Box<[u8]>, InodeId>> {
        match &self.inodes[id].node {
            Node::Directory(children) => Some(children),
            _ => None,
        }
    }

    fn children_mut(&mut self, id: InodeId) -> Option<&mut BTreeMap<Box<[u8]>, InodeId>> {
        match &mut self.inodes[id].node {
            Node::Directory(children) => Some(children),
            _ => None,
        }
    }

    /// Every name below the root with its inode, directories before what is in them, otherwise by
    /// the bytes of the names.
    pub(super) fn walk(&self) -> Vec<(LayerPath, InodeId)> {
        let mut all = Vec::new();
        let mut stack = vec![(LayerPath::default(), ROOT)];
        while let Some((path, id)) = stack.pop() {
            if let Some(children) = self.children(id) {
                stack.extend(children.iter().rev().map(|(name, &child)| (path.join(name), child)));
            }
            if id != ROOT {
                all.push((path, id));
            }
        }
        all
    }

    fn hide(&mut self, place: &Place, layer: &str) -> Result<(), ConvertError> {
        match place {
            Place::Opaque(directory) => {
                let mut lookup = Lookup { tree: self, make: None };
                if let Some(id) = lookup
                    .directory(directory)
                    .map_err(|reason| entry_error(layer, directory, reason))?
                    && let Some(children) = self.children_mut(id)
                {
                    children.clear();
                }
            }
            Place::Whiteout { parent, name } => {
                let mut lookup = Lookup { tree: self, make: None };
                if let Some(id) =
                    lookup.directory(parent).map_err(|reason| entry_error(layer, parent, reason))?
                    && let Some(children) = self.children_mut(id)
                {
                    children.remove(name.as_bytes());
                }
            }
            Place::Root | Place::Put { .. } => {}
        }
        Ok(())
    }

    fn put(&mut self, found: Found, number: usize, layer: &str) -> Result<(), ConvertError> {
        let Found { place, entry, content } = found;
        let refuse = |reason: String, entry: &Entry| ConvertError::Entry {
            layer: layer.to_owned(),
            entry: entry.display_name(),
            reason,
        };
        self.content_bytes += content.map_or(0, |content| content.size);
        let (parent, name) = match place {
            Place::Put { parent, name } => (parent, name),
            Place::Root if entry.kind == Kind::Directory => {
                self.root_described = true;
                self.describe(ROOT, entry, number);
                return Ok(());
            }
            _ => return Ok(()),
        };
        let mut lookup = Lookup { tree: self, make: Some(number) };
        let parent = lookup.directory(&parent).map_err(|reason| refuse(reason, &entry))?;
        let parent = parent.expect("missing directories are made");
        let node = match &entry.kind {
            Kind::HardLink(target) => {
                let target = self.linked(target).map_err(|reason| refuse(reason, &entry))?;
                let children = self.children_mut(parent).expect("it was looked up as a directory");
                children.insert(name.as_bytes().into(), target);
                return Ok(());
            }
            Kind::Directory => {
                let there = self.children(parent).and_then(|c| c.get(name.as_bytes())).copied();
                if let Some(id) = there.filter(|&id| self.children(id).is_some()) {
                    self.describe(id, entry, number);
                    return Ok(());
                }
                Node::Directory(BTreeMap::new())
            }
            Kind::Regular { .. } => Node::File(content.expect("files are read to their ends")),
            Kind::Symlink(target) => Node::Symlink(target.clone()),
            Kind::Fifo => Node::Fifo,
            &Kind::CharDevice { major, minor } => Node::CharDevice { major, minor },
            &Kind::BlockDevice { major, minor } => Node::BlockDevice { major, minor },
        };
        let id = self.inodes.len();
        self.inodes.push(Inode { node, ..Inode::implied(number) });
        self.describe(id, entry, number);
        let children = self.children_mut(parent).expect("it was looked up as a directory");
        children.insert(name.as_bytes().into(), id);
        Ok(())
    }

    /// Gives an inode the metadata of an entry.
    fn describe(&mut self, id: InodeId, entry: Entry, layer: usize) {
        let Entry { mode, uid, gid, mtime, mut xattrs, .. } = entry;
        // A later one of the same name counts, as when they are set one after the other.
        xattrs.reverse();
        xattrs.sort_by(|a, b| a.0.cmp(&b.0));
        xattrs.dedup_by(|later, first| later.0 == first.0);
        let inode = &mut self.inodes[id];
        (inode.mode, inode.uid, inode.gid, inode.mtime) = (mode, uid, gid, mtime);
        (inode.xattrs, inode.layer) = (xattrs, layer);
    }

    /// The inode that a hard link names.
    fn linked(&mut self, target: &CString) -> Result<InodeId, String> {
        let path = LayerPath::clean(target.as_bytes());
        let shown = || String::from_utf8_lossy(target.as_bytes()).into_owned();
        let missing = || format!("it is a hard link to {:?}, which is not there", shown());
        let (parent, name) = path.split().ok_or_else(missing)?;
        let parent = Lookup { tree: self, make: None }.directory(&parent)?.ok_or_else(missing)?;
        let id = self.children(parent).and_then(|children| children.get(name)).copied();
        let id = id.ok_or_else(missing)?;
        if self.children(id).is_some() {
            return Err(format!("it is a hard link to {:?}, a directory", shown()));
        }
        Ok(id)
    }
}

fn entry_error(layer: &str, path: &LayerPath, reason: String) -> ConvertError {
    let entry = String::from_utf8_lossy(path.as_bytes()).into_owned();
    ConvertError::Entry { layer: layer.to_owned(), entry, reason }
}

/// Follows a path as the kernel would below a root that cannot be left.
struct Lookup<'a> {
    tree: &'a mut Tree,
    /// The layer for which missing directories are made; `None` to make none.
    make: Option<usize>,
}

impl Lookup<'_> {
    /// The directory at `path`; `None` where there is none and none is to be made. Something that
    /// is no directory and in the way is replaced by one where one is to be made.
    fn directory(&mut self, path: &LayerPath) -> Result<Option<InodeId>, String> {
        let mut parts: VecDeque<Box<[u8]>> = path.parts().map(Into::into).collect();
        let mut stack = vec![ROOT];
        let (mut followed, mut bytes) = (0, path.as_bytes().len());
        while let Some(part) = parts.pop_front() {
            let at = *stack.last().expect("the root is never popped");
            if part[..] == *b".." {
                if stack.len() > 1 {
                    stack.pop();
                }
                continue;
            }
            let children = self.tree.children(at).expect("only directories are entered");
            let child = children.get(&part).copied();
            match child.map(|id| (id, &self.tree.inodes[id].node)) {
                Some((id, Node::Directory(_))) => stack.push(id),
                Some((_, Node::Symlink(target))) => {
                    followed += 1;
                    bytes += target.as_bytes().len();
                    if followed > LINKS_FOLLOWED || bytes > PATH_BYTES_MOST * LINKS_FOLLOWED {
                        return Err("its path leads through too many symbolic links".to_owned());
                    }
                    let target = target.as_bytes();
                    if target.starts_with(b"/") {
                        stack.truncate(1);
                    }
                    let more = target.split(|&b| b == b'/').filter(|p| !p.is_empty() && *p != b".");
                    for part in more.rev() {
                        parts.push_front(part.into());
                    }
                }
                _ => {
                    let Some(layer) = self.make else { return Ok(None) };
                    let id = self.tree.inodes.len();
                    // The kernel gives what is made below setgid the group; containerd sets the mode.
                    let parent = &self.tree.inodes[at];
                    let gid = if parent.mode & SETGID != 0 { parent.gid } else { 0 };
                    self.tree.inodes.push(Inode { gid, ..Inode::implied(layer) });
                    let children =
                        self.tree.children_mut(at).expect("only directories are entered");
                    children.insert(part, id);
                    stack.push(id);
                }
            }
        }
        Ok(stack.last().copied())
    }
}
