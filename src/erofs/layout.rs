//! Where everything that is no file's data will stand: decided before any of it is written, as
//! names in directories are numbers of inodes.

use std::ops::Range;

use super::ImageError;
use super::format::{BlockSize, DIRENT_BYTES, INODE_BYTES, SLOT_BYTES, XATTR_BODY_BYTES};
use super::tree::{Body, Node, NodeId, Tree};

/// A tail longer than a block without so much does not stand behind its inode. It must not cross a
/// block's end, so it might find no place; it gets a block.
const NOT_INLINE_BYTES: u64 = 96;

/// Shared xattrs that an amended directory may have: the format's `EROFS_MAX_SHARED_XATTRS`.
pub(super) const AMENDED_XATTRS: usize = 128;

/// Where one inode stands.
#[derive(Clone, Copy, Default)]
pub(super) struct Spot {
    /// Its number: slots from the beginning of the metadata.
    pub(super) nid: u32,
    /// The first block of what stands in blocks of its own.
    pub(super) block: u32,
}

/// Where all inodes stand, in the order of [`Tree::nodes`].
pub(super) struct Layout {
    pub(super) spots: Vec<Spot>,
    pub(super) meta_block: u32,
    /// Whether there is a chunked file.
    pub(super) chunked: bool,
}

/// How an inode's content is split: whole blocks elsewhere, a tail behind the inode.
pub(super) struct Split {
    /// The length that the inode tells.
    pub(super) size: u64,
    pub(super) blocks: u64,
    /// Bytes behind the inode and its xattrs, without crossing a block's end.
    pub(super) tail: u64,
}

/// A directory's entries as they are stored: sorted, with the two dot names.
pub(super) fn entries(tree: &Tree, id: NodeId) -> Vec<(&[u8], NodeId)> {
    let directory = tree.node(id).directory().expect("asked of directories only");
    let mut all: Vec<(&[u8], NodeId)> = Vec::with_capacity(directory.names.len() + 2);
    all.extend(directory.names.iter().map(|(name, id)| (&**name, *id)));
    for dot in [(&b"."[..], id), (b"..", directory.parent)] {
        let at = all.partition_point(|(name, _)| *name < dot.0);
        all.insert(at, dot);
    }
    all
}

/// Which entries stand in which block, with the bytes that they take there.
pub(super) fn directory_blocks(
    entries: &[(&[u8], NodeId)],
    block: BlockSize,
) -> Vec<(Range<usize>, usize)> {
    let (mut blocks, mut begin, mut used) = (Vec::new(), 0, 0);
    for (index, (name, _)) in entries.iter().enumerate() {
        let bytes = DIRENT_BYTES + name.len();
        if used + bytes > block.length() {
            blocks.push((begin..index, used));
            (begin, used) = (index, 0);
        }
        used += bytes;
    }
    blocks.push((begin..entries.len(), used));
    blocks
}

/// How the content of a directory or a symbolic link is split.
pub(super) fn split(tree: &Tree, id: NodeId, block: BlockSize) -> Split {
    let node = tree.node(id);
    let (size, may_inline) = match &node.body {
        Body::Directory(directory) => {
            let blocks = directory_blocks(&entries(tree, id), block);
            let (_, last) = blocks.last().expect("the dot names are there");
            let size = (blocks.len() as u64 - 1) * block.bytes() + *last as u64;
            (size, !directory.provisional)
        }
        Body::Symlink(target) => (target.len() as u64, true),
        _ => return Split { size: 0, blocks: 0, tail: 0 },
    };
    let block = block.bytes();
    let tail = size % block;
    if may_inline && (1..=block - NOT_INLINE_BYTES).contains(&tail) {
        Split { size, blocks: size / block, tail }
    } else {
        Split { size, blocks: size.div_ceil(block), tail: 0 }
    }
}

/// Bytes kept free behind a provisional directory's inode, its own xattrs included.
pub(super) fn reserved(node: &Node) -> usize {
    match node.directory() {
        Some(directory) if directory.provisional => {
            node.attributes.xattr_bytes().max(XATTR_BODY_BYTES) + 4 * AMENDED_XATTRS
        }
        _ => 0,
    }
}

/// Decides where all inodes stand, with what has blocks of its own from block `first` on.
pub(super) fn plan(tree: &Tree, first: u32, size: BlockSize) -> Result<Layout, ImageError> {
    let mut spots = vec![Spot::default(); tree.nodes.len()];
    let (mut block, mut chunked) = (u64::from(first), false);
    // Number 0 is left out: it reads as "none" elsewhere in the format.
    let mut free = 2 * SLOT_BYTES;
    for (index, node) in tree.nodes.iter().enumerate().filter(|(_, node)| node.names > 0) {
        let split = split(tree, NodeId::of_index(index), size);
        let xattrs = node.attributes.xattr_bytes();
        let head = (INODE_BYTES + xattrs) as u64;
        let mut at = free.next_multiple_of(SLOT_BYTES);
        if (at + head) % size.bytes() + split.tail > size.bytes() {
            at = ((at + head).next_multiple_of(size.bytes()) - head).next_multiple_of(SLOT_BYTES);
        }
        spots[index] = Spot {
            nid: u32::try_from(at / SLOT_BYTES).map_err(|_| ImageError::TooLarge)?,
            block: u32::try_from(block).map_err(|_| ImageError::TooLarge)?,
        };
        block += split.blocks;
        let behind = match &node.body {
            Body::File(data) => {
                let chunks = data.chunk_count(size);
                chunked |= chunks > 0;
                4 * chunks
            }
            _ => reserved(node).saturating_sub(xattrs) as u64,
        };
        free = at + head + split.tail + behind;
    }
    let meta_block = u32::try_from(block).map_err(|_| ImageError::TooLarge)?;
    Ok(Layout { spots, meta_block, chunked })
}
