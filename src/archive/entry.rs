//! What a parser gives out.

use std::ffi::CString;

use bytes::Bytes;

/// A point in time as an archive has it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Time {
    /// Seconds since 1970; may be negative.
    pub seconds: i64,
    /// Nanoseconds after `seconds`, below 10^9.
    pub nanos: u32,
}

/// What an entry is, with what only that kind has.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A regular file. Its data follow as [`Event::Data`].
    Regular {
        /// Whether there may be holes between the data.
        sparse: bool,
    },
    /// A directory.
    Directory,
    /// A symbolic link with its target, as it stands in the archive.
    Symlink(CString),
    /// Another name for an earlier entry, whose name stands here as it is in the archive.
    HardLink(CString),
    /// A named pipe.
    Fifo,
    /// A character device.
    CharDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
}

/// One entry of an archive, extensions applied.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// The name as it stands in the archive; [`super::place`] says where it leads.
    pub name: Vec<u8>,
    /// Where its own header begins, in bytes from the archive's beginning.
    pub offset: u64,
    /// What it is.
    pub kind: Kind,
    /// Permissions with setuid, setgid and sticky: the low twelve bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Owning group.
    pub gid: u32,
    /// When it was modified last.
    pub mtime: Time,
    /// When it was read last, if the archive says so.
    pub atime: Option<Time>,
    /// A regular file's length, holes included; else 0.
    pub size: u64,
    /// A regular file's bytes of data that follow in [`Event::Data`]; less than `size` only where
    /// there are holes.
    pub stored: u64,
    /// Extended attributes, in the archive's order.
    pub xattrs: Vec<(CString, Vec<u8>)>,
}

impl Entry {
    /// The name for messages.
    pub fn display_name(&self) -> String {
        String::from_utf8_lossy(&self.name).into_owned()
    }
}

/// A step through an archive.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// The next entry.
    Entry(Box<Entry>),
    /// Data of the last entry, a regular file; in the order of their offsets.
    Data {
        /// Where in the file they belong.
        offset: u64,
        /// The data: at least one byte, part of one of the source's buffers.
        bytes: Bytes,
    },
}
