//! Entries onto disk.
//!
//! [`unpack`] turns one layer's archive into a tree in overlay form while the archive arrives. The
//! calling thread reads entries, makes the directories and decides on order; writer threads make
//! everything else:
//!
//! - Small files, links and devices go to the writers in batches: a create costs about 30 µs, most
//!   of it in the kernel, and two writers are nearly twice as fast as one.
//! - A large file is opened once; each piece of its data goes to whichever writer is free, and who
//!   writes the last piece sets the metadata.
//! - Nothing is sent to the writers that could depend on what they still do. Parents are made
//!   before their children are sent; hard links wait until all before them is written; a path that
//!   comes a second time is a *barrier*: all writers finish, then the later entry replaces the
//!   earlier one.
//! - Directories get their times last, as everything made in them changes these.
//!
//! Where a name leads is never left to the kernel alone: every operation is on one name in a
//! directory handle that was opened below the layer's root, without following a link. A symbolic
//! link of the same layer in a parent's place is followed as text, inside the root, as containerd
//! does.
//!
//! What odd archives become is told, with a test each, in `docs/semantics.md`. Directories that an
//! archive implies without naming them are reported, and [`settle`] gives them the lower layers'
//! metadata.

use std::any::Any;
use std::io;
use std::path::PathBuf;

use crate::archive::{ArchiveError, PathError};
use crate::budget::rate::RateLimit;
use crate::erofs::ImageError;
use crate::panics;
use crate::sys::priority::Priority;
use crate::sys::space::is_full;
use crate::timeline::{Blocked, Limit, Phase, Stall};

mod coordinator;
mod directories;
mod files;
mod image;
mod merge;
mod queue;
mod read;
mod room;
mod settle;

pub use coordinator::unpack;
pub use image::{ImageLabel, unpack_image};
pub use merge::merge;
pub use room::{MinFree, NoRoom, Room};
pub use settle::{Settled, implied_metadata, settle, settle_image};

/// Symbolic links followed for one name; containerd's number.
const LINKS_FOLLOWED: usize = 255;

/// The longest path below the root that is followed, in bytes: what the kernel takes in one call.
/// An archive's names and links can be far longer, and following those takes quadratic time.
const LONGEST_PATH_BYTES: usize = 4095;

/// How whiteouts are left on disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Whiteouts {
    /// A device 0:0 for a hidden name, `trusted.overlay.opaque` on an opaque directory.
    #[default]
    Overlay,
    /// The same with `user.overlay.opaque`, for mounts with `userxattr`; the archive's own
    /// `user.overlay.*` attributes are dropped.
    OverlayUser,
    /// Not at all, for a tree that will have nothing below it.
    Drop,
}

/// What bounds an unpacking.
#[derive(Clone, Debug)]
pub struct Options {
    /// Writer threads; at least 1. As many as there are processors is best.
    pub writers: usize,
    /// The most bytes that the archive may have, uncompressed: a bound on compression bombs.
    pub max_bytes: u64,
    /// The most entries that the archive may have.
    pub max_entries: u64,
    /// Directory handles kept open for reuse.
    pub directory_handles: usize,
    /// How whiteouts are left on disk.
    pub whiteouts: Whiteouts,
    /// The most bytes that names and metadata of a layer that becomes an image may take in memory
    /// until its end.
    pub image_tree_bytes: u64,
    /// What all that share it may write in a second: the data of files, not what the file system
    /// makes of their names and metadata.
    pub rate: RateLimit,
    /// The file system that is written to, with what has to stay free of it.
    pub room: Room,
    /// What whoever calls should run the unpacking with, on a thread of its own; writers inherit it.
    pub priority: Priority,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            writers: std::thread::available_parallelism().map_or(2, std::num::NonZero::get),
            max_bytes: 1 << 40,
            max_entries: 20_000_000,
            // Archives are in the order of their directories, so that few are in use at once.
            directory_handles: 128,
            whiteouts: Whiteouts::Overlay,
            // Some three million entries.
            image_tree_bytes: 512 << 20,
            rate: RateLimit::default(),
            room: Room::default(),
            priority: Priority::default(),
        }
    }
}

/// Waits until so many bytes may be written, of which `space` are taken on disk.
fn wait_to_write(
    (rate, room): (&RateLimit, &Room),
    (bytes, space): (u64, u64),
    blocked: &Blocked<'_>,
) -> Result<(), NoRoom> {
    let recorder = blocked.recorder();
    room.write(space, recorder.counted(Phase::Write))?;
    let Some(turn) = rate.take(bytes) else { return Ok(()) };
    let from = std::time::Instant::now();
    blocked.except(|| turn.block());
    recorder.stalled(Stall::DiskRate, from);
    recorder.limited(&Limit {
        stall: Stall::DiskRate,
        bytes_per_second: turn.bytes_per_second,
        registry: None,
    });
    Ok(())
}

impl Options {
    /// Whether so many bytes are allowed.
    fn check_bytes(&self, bytes: u64) -> Result<(), UnpackError> {
        let limit = self.max_bytes;
        if bytes > limit { Err(UnpackError::TooLarge { limit, what: "bytes" }) } else { Ok(()) }
    }

    /// Whether so many entries are allowed.
    fn check_entries(&self, entries: u64) -> Result<(), UnpackError> {
        let limit = self.max_entries;
        if entries > limit { Err(UnpackError::TooLarge { limit, what: "entries" }) } else { Ok(()) }
    }
}

/// What an unpacking made.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Summary {
    /// Bytes on disk, as containerd counts them: blocks, not lengths; the root included.
    pub bytes: u64,
    /// Inodes, the root included.
    pub inodes: u64,
    /// Entries of the archive.
    pub entries: u64,
    /// Whiteouts and opaque marks that were made.
    pub whiteouts: u64,
    /// Directories that the archive implies and never names: relative, parents first.
    pub implied: Vec<PathBuf>,
}

/// Why a layer cannot be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The archive cannot be read.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// An entry's name leads nowhere.
    #[error("entry {name:?} at byte {offset} of the archive: {source}")]
    Name {
        /// The entry.
        name: String,
        /// Where its header begins.
        offset: u64,
        /// What is wrong with the name.
        source: PathError,
    },
    /// An entry cannot be made.
    #[error("entry {name:?} at byte {offset} of the archive: {what}: {source}")]
    Entry {
        /// The entry.
        name: String,
        /// Where its header begins.
        offset: u64,
        /// What was being done.
        what: &'static str,
        /// What the system says.
        source: io::Error,
    },
    /// The archive is larger than allowed.
    #[error("the layer has more than {limit} {what}; raise the limit if that is meant to be")]
    TooLarge {
        /// The limit.
        limit: u64,
        /// What there are too many of.
        what: &'static str,
    },
    /// More names and metadata than an image's writer may hold in memory.
    #[error(
        "the layer's names and metadata take more than {limit} bytes of memory; unpack it into files"
    )]
    ImageTree {
        /// The limit.
        limit: u64,
    },
    /// The layer's tree itself cannot be worked on.
    #[error("{what} {}: {source}", path.display())]
    Tree {
        /// What was being done.
        what: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The layer's image cannot be written or changed.
    #[error("{}: {source}", path.display())]
    Image {
        /// The image's file.
        path: PathBuf,
        /// What is wrong.
        source: ImageError,
    },
    /// Too little would stay free.
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
    /// A writer thread ended by a panic; a defect of hoist.
    #[error("a writer panicked: {said}; this is a defect of hoist, please report it with the log")]
    Panicked {
        /// Its words.
        said: String,
    },
}

impl UnpackError {
    /// The error of a thread that ended with this payload.
    pub(crate) fn panicked(payload: &(dyn Any + Send)) -> Self {
        let said = panics::said(payload);
        tracing::error!(said, "a writer panicked");
        Self::Panicked { said }
    }

    /// Whether the archive itself is to blame, and would be whoever unpacked it.
    pub fn is_bad_archive(&self) -> bool {
        match self {
            Self::Archive(ArchiveError::Source(_)) => false,
            Self::Archive(_) | Self::Name { .. } | Self::TooLarge { .. } => true,
            Self::Entry { .. }
            | Self::ImageTree { .. }
            | Self::Tree { .. }
            | Self::Image { .. }
            | Self::NoRoom(_)
            | Self::Panicked { .. } => false,
        }
    }

    /// Whether the disk is full, or as full as it may be.
    pub fn is_no_space(&self) -> bool {
        match self {
            Self::NoRoom(_) => true,
            Self::Entry { source, .. }
            | Self::Tree { source, .. }
            | Self::Image { source: ImageError::Io { source, .. }, .. } => is_full(source),
            _ => false,
        }
    }

    /// Whether the layer is too much for an image, and can be unpacked into files all the same.
    pub fn is_of_the_image(&self) -> bool {
        matches!(self, Self::ImageTree { .. } | Self::Image { source: ImageError::TooLarge, .. })
    }

    /// Whether this host cannot take the layer, whatever its bytes are: no space, an I/O error.
    pub fn is_of_the_host(&self) -> bool {
        let (Self::Entry { source, .. }
        | Self::Tree { source, .. }
        | Self::Image { source: ImageError::Io { source, .. }, .. }) = self
        else {
            return matches!(self, Self::Panicked { .. } | Self::NoRoom(_));
        };
        let codes = [libc::EROFS, libc::EIO, libc::ENOMEM, libc::EMFILE, libc::ENFILE];
        is_full(source) || source.raw_os_error().is_some_and(|code| codes.contains(&code))
    }
}

#[cfg(test)]
mod tests;
