//! Where a stream can be cut into segments that are decoded apart from each other.
//!
//! zstd says by its headers where a frame ends ([`frames`](super::frames)). gzip does not: where a
//! member seems to begin is a guess ([`members`](super::members)), which the decoders prove or
//! disprove, since a segment is taken only if its members end exactly at its end.

use super::{Format, frames, members};

/// How large segments are, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Sizes {
    /// Segments are made of small frames until they decode to this much: beside it the hand-over to
    /// another thread costs nothing.
    pub(super) target_content: usize,
    /// Where nobody says what members decode to, so many compressed bytes are enough too.
    pub(super) target_compressed: usize,
    /// A frame that decodes to more than fits into a segment of this size is decoded by one thread
    /// as it comes.
    pub(super) max_content: usize,
    /// A frame that is longer likewise.
    pub(super) max_compressed: usize,
    /// Compressed bytes of a part that is decoded on a guess, at most: a block of some tens of KiB is
    /// looked for in each.
    pub(super) part: usize,
}

impl Sizes {
    /// pzstd's frames have 8 MiB of content at its default level and 16 or 32 MiB above; those of
    /// zstd:chunked, eStargz and `hoist convert` are up to 4 MiB.
    pub(super) const DEFAULT: Self = Self {
        target_content: 1 << 20,
        target_compressed: 512 << 10,
        max_content: 16 << 20,
        max_compressed: 8 << 20,
        part: 1 << 20,
    };
}

/// What a search for the next cut comes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Cut {
    /// So many bytes have to be there to say.
    More(usize),
    /// The first `compressed` bytes are a segment that decodes to `content` bytes at most.
    At { compressed: usize, content: usize },
    /// There is none near enough.
    None,
}

/// Looks for the next cut.
#[derive(Debug)]
pub(super) enum Cutter {
    Frames(frames::Walk),
    Members(members::Search),
}

impl Cutter {
    pub(super) fn new(format: Format, sizes: Sizes) -> Self {
        match format {
            Format::Zstd => Self::Frames(frames::Walk::new(sizes)),
            Format::Gzip => Self::Members(members::Search::new(sizes)),
        }
    }

    /// Looks in `bytes`, which begin where the last cut was made and grow from call to call;
    /// `ended` says that they do not any more.
    pub(super) fn next(&mut self, bytes: &[u8], ended: bool) -> Cut {
        match self {
            Self::Frames(walk) => walk.next(bytes, ended),
            Self::Members(search) => search.next(bytes, ended),
        }
    }
}
