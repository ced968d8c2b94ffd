//! An EROFS image, written while its content arrives.
//!
//! One file holds a whole layer, so that a layer of sixty thousand files is one sequential write
//! instead of as many creates. The kernel mounts it read-only. The format is that of Linux
//! `fs/erofs/erofs_fs.h` and of the "core on-disk format" of the EROFS documentation:
//!
//! ```text
//! 4,096 bytes        1,024 bytes unused, superblock (128 bytes) at 1,024, zeros
//! blocks             data of regular files as they arrive, each file from a block's beginning
//! then               blocks of directories and of long symbolic links
//! meta_blkaddr..     inodes in slots of 32 bytes: inode (64), xattrs, inline tail or chunk index
//! xattr_blkaddr..    shared xattrs, only where a directory was amended afterwards ([`amend`])
//! ```
//!
//! - Data are never compressed and never packed: a file is `FLAT_PLAIN`, so its pages come straight
//!   out of the image. Blocks are of 512 bytes where the kernel takes them ([`BlockSize`]), as half a
//!   block is wasted behind every file. A file with holes is `CHUNK_BASED`, its holes are chunks without a block.
//! - Everything else is known only at the end and kept in memory until then, in a [`Tree`].
//!   [`Image::finish`] writes it behind the data, and the superblock last: an image that was not
//!   finished cannot be mounted.
//! - A directory may be *provisional*: room for xattrs is left behind its inode, so that its mode,
//!   owner and xattrs can be amended in place when they become known.
//! - Nothing but the input decides what is written: the same calls make the same bytes.
//!
//! What EROFS cannot hold: access times (they read as the modification time), and an image of more
//! than 2^32 blocks.

use std::io;
use std::path::PathBuf;

mod amend;
mod attributes;
mod data;
mod format;
mod layout;
mod tree;
mod write;

pub use amend::{Amendment, amend};
pub use attributes::Attributes;
pub use data::FileData;
pub use format::BlockSize;
pub use tree::{Kind, NodeId, Tree};
pub use write::{Image, Written};

/// The longest name in a directory, in bytes (`EROFS_NAME_LEN`).
pub const LONGEST_NAME_BYTES: usize = 255;

/// The longest target of a symbolic link, in bytes: what Linux takes.
pub const LONGEST_TARGET_BYTES: usize = 4095;

/// The largest value of one xattr, in bytes (`e_value_size`).
pub const LARGEST_XATTR_BYTES: usize = u16::MAX as usize;

/// The most bytes that the xattrs of one inode may take in the image (`i_xattr_icount`).
pub const LARGEST_XATTRS_BYTES: usize = 12 + 4 * (u16::MAX as usize - 1);

/// Why an image cannot be written or amended.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The image's file cannot be written or read.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// What the system says.
        source: io::Error,
    },
    /// More than the format can address.
    #[error("the image would be larger than EROFS can address (2^32 blocks); unpack it into files")]
    TooLarge,
    /// An image that this room did not write, or that was damaged since.
    #[error("the image is malformed: {what}; remove the layer and pull it again")]
    Malformed {
        /// What is wrong.
        what: String,
    },
    /// There is no provisional directory of that name to amend.
    #[error("the image has no directory {} that can be amended", path.display())]
    NotProvisional {
        /// The directory.
        path: PathBuf,
    },
}

impl ImageError {
    pub(crate) fn io(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what, source }
    }
}
