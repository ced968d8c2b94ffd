//! An image in the making.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use super::ImageError;
use super::attributes::Attributes;
use super::data::{Appender, Arriving, DataPlace, FileData};
use super::format::{
    self, BlockSize, DataLayout, Dirent, INCOMPAT_CHUNKED, Inode, PAGE, SLOT_BYTES, Superblock,
    XATTR_BODY_BYTES,
};
use super::layout::{self, Layout, Split};
use super::tree::{Body, Node, NodeId, Tree};

/// What a finished image came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Written {
    /// Bytes in the image's file, its holes not counted.
    pub bytes: u64,
    /// Inodes, the root included.
    pub inodes: u64,
}

/// An image in the making: file data go to the file, everything else into the tree.
#[derive(Debug)]
pub struct Image {
    appender: Appender,
    arriving: Option<Arriving>,
    /// What the image will hold.
    pub tree: Tree,
}

impl Image {
    /// Begins an image of such blocks in `file`, which is empty, with a root of these metadata.
    ///
    /// # Errors
    /// [`ImageError::Io`].
    pub fn new(file: File, block: BlockSize, root: Attributes) -> Result<Self, ImageError> {
        let appender = Appender::new(file, block)?;
        Ok(Self { appender, arriving: None, tree: Tree::new(root) })
    }

    /// Begins the data of a file of `size` bytes, of which `stored` will come; the rest are holes.
    ///
    /// # Errors
    /// [`ImageError::Io`], [`ImageError::TooLarge`].
    pub fn begin_data(&mut self, size: u64, stored: u64) -> Result<(), ImageError> {
        debug_assert!(self.arriving.is_none(), "one file after the other");
        self.arriving = Some(Arriving::new(size, stored, &mut self.appender)?);
        Ok(())
    }

    /// Takes data of the file that was begun, by rising offsets.
    ///
    /// # Errors
    /// [`ImageError::Io`], [`ImageError::TooLarge`].
    pub fn data(&mut self, offset: u64, bytes: &[u8]) -> Result<(), ImageError> {
        match &mut self.arriving {
            Some(file) => file.data(offset, bytes, &mut self.appender),
            None => Ok(()),
        }
    }

    /// Ends the file that was begun: where its data are.
    ///
    /// # Errors
    /// [`ImageError::Io`], [`ImageError::TooLarge`].
    pub fn end_data(&mut self) -> Result<FileData, ImageError> {
        match self.arriving.take() {
            Some(file) => file.end(&mut self.appender),
            None => Ok(FileData::empty()),
        }
    }

    /// Writes everything else, and the superblock last. Nothing is synced. `uuid` becomes the
    /// volume's, and is all in it that the content does not say.
    ///
    /// # Errors
    /// [`ImageError::Io`], [`ImageError::TooLarge`].
    pub fn finish(self, uuid: [u8; 16]) -> Result<Written, ImageError> {
        let Self { mut appender, tree, .. } = self;
        let (first, block) = (appender.align()?, appender.block());
        let layout = layout::plan(&tree, first, block)?;
        let mut writer = Writer { tree: &tree, layout: &layout, block, bytes: Vec::new() };
        for (id, _) in live(&tree) {
            writer.blocks(id, &mut appender)?;
        }
        debug_assert_eq!(appender.align()?, layout.meta_block, "as planned");
        let mut position = 0;
        for (id, node) in live(&tree) {
            let at = u64::from(layout.spots[id.index()].nid) * SLOT_BYTES;
            appender.zeros(at - position)?;
            writer.inode(id, node);
            appender.append(&writer.bytes)?;
            position = at + writer.bytes.len() as u64;
        }
        let blocks = appender.align_to(PAGE)?;
        let holes = appender.holes();
        let file = appender.into_file()?;
        let inodes = tree.inodes();
        let superblock = Superblock {
            block,
            root_nid: u16::try_from(layout.spots[0].nid).expect("the root is the first"),
            inodes,
            blocks,
            meta_block: layout.meta_block,
            xattr_block: 0,
            uuid,
            incompat: if layout.chunked { INCOMPAT_CHUNKED } else { 0 },
        };
        let bytes = u64::from(blocks) * block.bytes();
        // A hole at the end is not written yet.
        file.set_len(bytes).map_err(ImageError::io("setting the image's length"))?;
        file.write_all_at(&superblock.to_head(), 0)
            .map_err(ImageError::io("writing the image's superblock"))?;
        Ok(Written { bytes: bytes - holes, inodes })
    }
}

/// The inodes that have a name.
fn live(tree: &Tree) -> impl Iterator<Item = (NodeId, &Node)> {
    let all = tree.nodes.iter().enumerate();
    all.filter(|(_, node)| node.names > 0).map(|(index, node)| (NodeId::of_index(index), node))
}

/// A count of something that is in memory.
fn in_memory(count: u64) -> usize {
    usize::try_from(count).expect("it is in memory")
}

/// Turns inodes into bytes.
struct Writer<'a> {
    tree: &'a Tree,
    layout: &'a Layout,
    block: BlockSize,
    /// What was made last; the memory is used again.
    bytes: Vec<u8>,
}

impl Writer<'_> {
    /// Writes those whole blocks that a directory or a symbolic link has.
    fn blocks(&mut self, id: NodeId, to: &mut Appender) -> Result<(), ImageError> {
        let Split { blocks, size, tail } = layout::split(self.tree, id, self.block);
        if blocks == 0 {
            return Ok(());
        }
        match &self.tree.node(id).body {
            Body::Symlink(target) => to.append(&target[..in_memory(size - tail)])?,
            _ => {
                let entries = layout::entries(self.tree, id);
                let ranges = layout::directory_blocks(&entries, self.block);
                for (range, _) in ranges.into_iter().take(in_memory(blocks)) {
                    self.bytes.clear();
                    self.directory_block(&entries[range]);
                    self.bytes.resize(self.block.length(), 0);
                    to.append(&self.bytes)?;
                }
            }
        }
        to.align().map(drop)
    }

    fn directory_block(&mut self, entries: &[(&[u8], NodeId)]) {
        let dirent = |&(name, id): &(_, NodeId)| Dirent {
            name,
            nid: u64::from(self.layout.spots[id.index()].nid),
            kind: self.tree.node(id).kind_numbers().0,
        };
        let entries: Vec<Dirent<'_>> = entries.iter().map(dirent).collect();
        format::directory_block(&entries, &mut self.bytes);
    }

    /// An inode with its xattrs and what stands behind them.
    fn inode(&mut self, id: NodeId, node: &Node) {
        self.bytes.clear();
        let split = layout::split(self.tree, id, self.block);
        let (layout, size, value) = self.content(id, node, &split);
        let Attributes { mode, uid, gid, seconds, nanos, .. } = node.attributes;
        let inode = Inode {
            layout,
            xattr_bytes: node.attributes.xattr_bytes(),
            mode: u16::try_from(node.kind_numbers().1 | mode).expect("sixteen bits"),
            size,
            value,
            number: u32::try_from(id.index()).expect("it was an id") + 1,
            uid,
            gid,
            seconds,
            nanos,
            links: self.links(id, node),
        };
        self.bytes.extend_from_slice(&inode.to_bytes());
        self.xattrs(&node.attributes);
        match &node.body {
            Body::File(data) => {
                for block in data.chunk_blocks(self.block) {
                    self.bytes.extend_from_slice(&block.to_le_bytes());
                }
            }
            Body::Symlink(target) if split.tail > 0 => {
                self.bytes.extend_from_slice(&target[in_memory(split.size - split.tail)..]);
            }
            Body::Directory(_) if split.tail > 0 => {
                let entries = layout::entries(self.tree, id);
                let (last, _) =
                    layout::directory_blocks(&entries, self.block).pop().expect("one at least");
                self.directory_block(&entries[last]);
            }
            _ => {}
        }
        let kept = format::INODE_BYTES + layout::reserved(node);
        if self.bytes.len() < kept {
            self.bytes.resize(kept, 0);
        }
    }

    fn content(&self, id: NodeId, node: &Node, split: &Split) -> (DataLayout, u64, u32) {
        match &node.body {
            Body::File(FileData { size, place: DataPlace::Plain { block } }) => {
                (DataLayout::Plain, *size, *block)
            }
            Body::File(FileData { size, place: DataPlace::Chunked { bits, .. } }) => {
                (DataLayout::Chunked, *size, *bits)
            }
            Body::CharDevice(number) | Body::BlockDevice(number) => (DataLayout::Plain, 0, *number),
            Body::Fifo => (DataLayout::Plain, 0, 0),
            Body::Directory(_) | Body::Symlink(_) => {
                let layout = if split.tail > 0 { DataLayout::Inline } else { DataLayout::Plain };
                let block = if split.blocks > 0 { self.layout.spots[id.index()].block } else { 0 };
                (layout, split.size, block)
            }
        }
    }

    fn links(&self, id: NodeId, node: &Node) -> u32 {
        let Some(directory) = node.directory() else { return node.names };
        let is_directory = |id: &&NodeId| self.tree.node(**id).directory().is_some();
        debug_assert!(node.names == 1, "{id:?}: a directory has one name");
        2 + u32::try_from(directory.names.values().filter(is_directory).count()).expect("ids fit")
    }

    fn xattrs(&mut self, attributes: &Attributes) {
        if attributes.xattrs().is_empty() {
            return;
        }
        self.bytes.extend_from_slice(&[0; XATTR_BODY_BYTES]);
        for (name, value) in attributes.xattrs() {
            let (prefix, rest) = format::xattr_prefix(name).expect("checked when it was set");
            format::xattr_entry(prefix, rest, value, &mut self.bytes);
        }
    }
}
