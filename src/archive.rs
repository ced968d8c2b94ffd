//! Tar entries of a layer, without I/O.
//!
//! A [`Parser`] pulls uncompressed bytes from a [`Source`] and gives out [`Event`]s: an entry with
//! all of its metadata, then its data as slices of the very buffers that the source brought. It
//! reads what Go's `archive/tar` reads, because containerd unpacks with that: V7, USTAR, STAR,
//! PAX and GNU headers, long names of both kinds, sparse files of both kinds, numbers in octal and
//! base 256. What is bounded there is bounded here ([`MAX_EXTENSION_BYTES`]), and an archive that
//! it refuses is refused.
//!
//! The headers' layout is the `tar` crate's; names and numbers are read here, as the crate takes a
//! newline inside a PAX value (an ACL or a capability may hold one) for the end of its record.
//!
//! What an entry's name means below a layer's root, whiteouts included, is decided in `path`.

use std::io;

use bytes::Bytes;

mod entry;
mod fields;
mod header;
mod parser;
mod path;
mod pax;
mod sparse;

pub use entry::{Entry, Event, Kind, Time};
pub use parser::Parser;
pub use path::{LayerPath, PathError, Place, place};

/// The most bytes that a PAX header, a long name or a sparse map may have, 1 MiB: Go's limit. It
/// bounds the count of an entry's xattrs too.
pub const MAX_EXTENSION_BYTES: u64 = 1 << 20;

/// The length of tar's unit, in bytes.
const BLOCK_BYTES: usize = 512;

/// Uncompressed bytes of a layer, in order.
pub trait Source {
    /// The next bytes, of any length; `None` at the end.
    ///
    /// # Errors
    /// Whatever keeps the bytes from arriving. The error is carried as it is, so that the
    /// caller can take its own error out again.
    fn next_bytes(&mut self) -> io::Result<Option<Bytes>>;
}

impl<F: FnMut() -> io::Result<Option<Bytes>>> Source for F {
    fn next_bytes(&mut self) -> io::Result<Option<Bytes>> {
        self()
    }
}

/// Why an archive cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The uncompressed bytes stopped arriving; the source says why.
    #[error("reading the archive: {0}")]
    Source(#[source] io::Error),
    /// The archive ends inside an entry.
    #[error("the archive ends at byte {offset}, inside {what}")]
    Truncated {
        /// All bytes there were.
        offset: u64,
        /// The entry, or the part of the archive.
        what: String,
    },
    /// A header that is none, or that contradicts itself.
    #[error("entry {name:?} at byte {offset} of the archive is malformed: {what}")]
    Malformed {
        /// The entry's name as far as it is known.
        name: String,
        /// Where its header begins.
        offset: u64,
        /// What is wrong with it.
        what: String,
    },
}

impl From<ArchiveError> for io::Error {
    /// An [`ArchiveError::Source`] becomes what it was.
    fn from(error: ArchiveError) -> Self {
        match error {
            ArchiveError::Source(source) => source,
            ArchiveError::Truncated { .. } => Self::new(io::ErrorKind::UnexpectedEof, error),
            ArchiveError::Malformed { .. } => Self::new(io::ErrorKind::InvalidData, error),
        }
    }
}

#[cfg(test)]
mod tests;
