//! What an image will hold, beside the data of files: names, inodes, xattrs, in memory.
//!
//! An inode takes 72 bytes, a name in a directory 24 and its own length, each rounded up by the
//! allocator, a directory with anything in it some 250 at least: 130 to 180 bytes an entry, 150 MB
//! for a million of them. [`Tree::memory`] says how much it is.

use std::collections::BTreeMap;
use std::mem::size_of;

use super::attributes::Attributes;
use super::data::FileData;
use super::format;

/// What an entry in a directory costs beside the bytes of its name.
const NAME_BYTES: usize = 48;

/// What a directory costs beside its inode and its names.
const DIRECTORY_BYTES: usize = 300;

/// Names an inode of one [`Tree`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct NodeId(u32);

impl NodeId {
    pub(super) fn of_index(index: usize) -> Self {
        Self(u32::try_from(index).expect("memory ends before"))
    }

    pub(super) fn index(self) -> usize {
        self.0 as usize
    }
}

/// What an inode is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind<'a> {
    /// A directory.
    Directory,
    /// A regular file.
    Regular,
    /// A symbolic link with its target.
    Symlink(&'a [u8]),
    /// What overlayfs takes for a whiteout: the character device 0:0.
    Whiteout,
    /// Another device, or a pipe.
    Special,
}

#[derive(Debug)]
pub(super) enum Body {
    Directory(Box<Directory>),
    File(FileData),
    Symlink(Box<[u8]>),
    CharDevice(u32),
    BlockDevice(u32),
    Fifo,
}

#[derive(Debug)]
pub(super) struct Directory {
    pub(super) parent: NodeId,
    pub(super) names: BTreeMap<Box<[u8]>, NodeId>,
    pub(super) provisional: bool,
}

#[derive(Debug)]
pub(super) struct Node {
    pub(super) attributes: Attributes,
    pub(super) body: Body,
    /// Names that it has; 0 for one that was removed.
    pub(super) names: u32,
}

impl Node {
    /// Linux's number for the type, as directories have it, and the type in a mode.
    pub(super) fn kind_numbers(&self) -> (u8, u32) {
        match self.body {
            Body::File(_) => (1, libc::S_IFREG),
            Body::Directory(_) => (2, libc::S_IFDIR),
            Body::CharDevice(_) => (3, libc::S_IFCHR),
            Body::BlockDevice(_) => (4, libc::S_IFBLK),
            Body::Fifo => (5, libc::S_IFIFO),
            Body::Symlink(_) => (7, libc::S_IFLNK),
        }
    }

    pub(super) fn directory(&self) -> Option<&Directory> {
        match &self.body {
            Body::Directory(directory) => Some(directory),
            _ => None,
        }
    }
}

/// Names and inodes, from a root down.
#[derive(Debug)]
pub struct Tree {
    /// In the order in which they came; the root is the first. Removed ones keep their place.
    pub(super) nodes: Vec<Node>,
    memory: usize,
}

/// The root.
const ROOT: NodeId = NodeId(0);

impl Tree {
    /// A root and nothing in it.
    pub fn new(root: Attributes) -> Self {
        let mut tree = Self { nodes: Vec::new(), memory: 0 };
        tree.push(root, Self::directory_body(ROOT, false));
        tree.nodes[0].names = 1;
        tree
    }

    /// The root.
    pub fn root(&self) -> NodeId {
        ROOT
    }

    /// About what it takes in memory, in bytes. It does not fall when something is removed.
    pub fn memory(&self) -> usize {
        self.memory
    }

    /// Inodes that there are, the root included.
    pub fn inodes(&self) -> u64 {
        self.nodes.iter().filter(|node| node.names > 0).count() as u64
    }

    fn directory_body(parent: NodeId, provisional: bool) -> Body {
        Body::Directory(Box::new(Directory { parent, names: BTreeMap::new(), provisional }))
    }

    fn push(&mut self, attributes: Attributes, body: Body) -> NodeId {
        let id = NodeId::of_index(self.nodes.len());
        self.memory += size_of::<Node>()
            + attributes.memory()
            + match &body {
                Body::Directory(_) => DIRECTORY_BYTES,
                Body::Symlink(target) => target.len(),
                Body::File(data) => data.memory(),
                _ => 0,
            };
        self.nodes.push(Node { attributes, body, names: 0 });
        id
    }

    pub(super) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.index()]
    }

    fn names_mut(&mut self, directory: NodeId) -> &mut BTreeMap<Box<[u8]>, NodeId> {
        match &mut self.nodes[directory.index()].body {
            Body::Directory(directory) => &mut directory.names,
            _ => unreachable!("names are put into directories only"),
        }
    }

    /// What has the name `name` in `directory`; nothing where that is no directory.
    pub fn lookup(&self, directory: NodeId, name: &[u8]) -> Option<NodeId> {
        self.node(directory).directory()?.names.get(name).copied()
    }

    /// What an inode is.
    pub fn kind(&self, id: NodeId) -> Kind<'_> {
        match &self.node(id).body {
            Body::Directory(_) => Kind::Directory,
            Body::File(_) => Kind::Regular,
            Body::Symlink(target) => Kind::Symlink(target),
            Body::CharDevice(0) => Kind::Whiteout,
            Body::CharDevice(_) | Body::BlockDevice(_) | Body::Fifo => Kind::Special,
        }
    }

    /// An inode's metadata.
    pub fn attributes(&self, id: NodeId) -> &Attributes {
        &self.node(id).attributes
    }

    /// An inode's metadata, to be changed.
    pub fn attributes_mut(&mut self, id: NodeId) -> &mut Attributes {
        &mut self.nodes[id.index()].attributes
    }

    /// The directory that a directory is in; the root is in itself.
    pub fn parent(&self, id: NodeId) -> NodeId {
        self.node(id).directory().map_or(ROOT, |directory| directory.parent)
    }

    /// Gives an inode one more name. `name` is not in `directory`, is 1 to 255 bytes long, and
    /// neither a dot name nor has a slash or a zero byte in it.
    pub fn link(&mut self, directory: NodeId, name: &[u8], id: NodeId) {
        debug_assert!((1..=super::LONGEST_NAME_BYTES).contains(&name.len()), "a name's length");
        self.memory += NAME_BYTES + name.len();
        let before = self.names_mut(directory).insert(name.into(), id);
        debug_assert!(before.is_none(), "the caller made way");
        self.nodes[id.index()].names += 1;
    }

    fn add(
        &mut self,
        directory: NodeId,
        name: &[u8],
        attributes: Attributes,
        body: Body,
    ) -> NodeId {
        let id = self.push(attributes, body);
        self.link(directory, name, id);
        id
    }

    /// Makes a directory; a `provisional` one can be amended in the finished image.
    pub fn add_directory(
        &mut self,
        parent: NodeId,
        name: &[u8],
        attributes: Attributes,
        provisional: bool,
    ) -> NodeId {
        self.add(parent, name, attributes, Self::directory_body(parent, provisional))
    }

    /// Makes a regular file of data that are in the image.
    pub fn add_file(
        &mut self,
        parent: NodeId,
        name: &[u8],
        attributes: Attributes,
        data: FileData,
    ) -> NodeId {
        self.add(parent, name, attributes, Body::File(data))
    }

    /// Gives a regular file its data.
    pub fn set_data(&mut self, id: NodeId, data: FileData) {
        self.memory += data.memory();
        self.nodes[id.index()].body = Body::File(data);
    }

    /// Makes a symbolic link. Its target is 1 to [`super::LONGEST_TARGET_BYTES`] bytes long.
    pub fn add_symlink(
        &mut self,
        parent: NodeId,
        name: &[u8],
        attributes: Attributes,
        target: &[u8],
    ) -> NodeId {
        self.add(parent, name, attributes, Body::Symlink(target.into()))
    }

    /// Makes a named pipe.
    pub fn add_fifo(&mut self, parent: NodeId, name: &[u8], attributes: Attributes) -> NodeId {
        self.add(parent, name, attributes, Body::Fifo)
    }

    /// Makes a device; `None` where its number is none of Linux's.
    pub fn add_device(
        &mut self,
        parent: NodeId,
        name: &[u8],
        attributes: Attributes,
        block: bool,
        (major, minor): (u32, u32),
    ) -> Option<NodeId> {
        let number = format::device(major, minor)?;
        let body = if block { Body::BlockDevice(number) } else { Body::CharDevice(number) };
        Some(self.add(parent, name, attributes, body))
    }

    /// Whether a directory may still be amended in the finished image.
    pub fn is_provisional(&self, id: NodeId) -> bool {
        self.node(id).directory().is_some_and(|directory| directory.provisional)
    }

    /// A directory is known for certain.
    pub fn confirm(&mut self, id: NodeId) {
        if let Body::Directory(directory) = &mut self.nodes[id.index()].body {
            directory.provisional = false;
        }
    }

    /// Takes a name away, and all that is below it where it is a directory's. Data stay in the
    /// image as bytes that nobody names.
    pub fn remove(&mut self, directory: NodeId, name: &[u8]) {
        let Some(id) = self.names_mut(directory).remove(name) else { return };
        let mut waiting = vec![id];
        while let Some(id) = waiting.pop() {
            let node = &mut self.nodes[id.index()];
            node.names -= 1;
            if let Body::Directory(directory) = &mut node.body {
                waiting.extend(std::mem::take(&mut directory.names).into_values());
            }
        }
    }

    /// The paths of all provisional directories, as bytes, sorted.
    pub fn provisional(&self) -> Vec<Vec<u8>> {
        let mut found = Vec::new();
        for (index, node) in self.nodes.iter().enumerate() {
            let provisional = node.directory().is_some_and(|directory| directory.provisional);
            if provisional && node.names > 0 {
                found.push(self.path(NodeId::of_index(index)));
            }
        }
        found.sort();
        found
    }

    /// The path of a directory. Names are looked for, so this is not for many.
    fn path(&self, mut id: NodeId) -> Vec<u8> {
        let mut parts: Vec<&[u8]> = Vec::new();
        while id != ROOT {
            let parent = self.parent(id);
            let names = &self.node(parent).directory().expect("a parent is a directory").names;
            let name = names.iter().find(|(_, other)| **other == id);
            parts.push(name.expect("a live directory has a name").0);
            id = parent;
        }
        parts.reverse();
        parts.join(&b'/')
    }
}
