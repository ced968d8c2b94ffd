//! How many bytes the stages of a layer may hold between them, by the layer's size.
//!
//! A layer reserves so much of the memory budget before it begins ([`Footprint::bytes`]), and its
//! queues are made with these bounds: it can always go on, whatever other layers hold.

use super::buffers::{BUFFER_BYTES, BUFFERS};
use crate::image::Compression;

/// Compressed bytes of a layer that wait to be hashed, at most.
const BLOB_BYTES_UNHASHED: usize = 4 << 20;

/// Bytes of a decoder's own state, its window apart.
const DECODER_BYTES: u64 = 1 << 20;

/// The zstd window that every layer has room for: what BuildKit makes at its default level, and the
/// `zstd` tool up to level 19. (`zstd -3` has 2 MiB, gzip 32 KiB.)
pub(super) const ORDINARY_WINDOW_BYTES: u64 = 8 << 20;

/// Buffers of the smallest layer. The unpacker keeps a batch that spans 1 MiB and the small file
/// after it, which lie in four buffers at most, and a hash that waits for a partner a quarter of
/// all: two are left for the decoder to go on with.
const BUFFERS_LEAST: usize = 8;

/// What the stages of a layer may hold between them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Footprint {
    /// Of uncompressed bytes, each of [`BUFFER_BYTES`].
    pub(super) buffers: usize,
    /// Compressed bytes that have left the window of their fetch and wait to be hashed.
    pub(super) blob_unhashed: usize,
}

impl Footprint {
    /// For a layer of `size` compressed bytes: a small one is over before it fills much, and many
    /// of them are in work at once.
    pub(super) fn of(size: u64) -> Self {
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        Self {
            buffers: size.div_ceil(BUFFER_BYTES / 2).clamp(BUFFERS_LEAST, BUFFERS),
            blob_unhashed: size.clamp(1, BLOB_BYTES_UNHASHED),
        }
    }

    /// Uncompressed bytes that wait to be hashed: half of the buffers, so that a hash that waits for
    /// a partner never keeps the decoder from going on.
    pub(super) fn archive_unhashed(self) -> usize {
        self.buffers * BUFFER_BYTES / 2
    }

    /// What a layer in work takes of the memory budget beside the window of its fetch: the buffers,
    /// what waits for the blob's hash, and the decoder with its window. What a stream of several
    /// frames holds beside that is borrowed by `compression` itself.
    pub(super) fn bytes(self, compression: Compression, window_bytes: u64) -> u64 {
        let queues = (self.buffers * BUFFER_BYTES + self.blob_unhashed) as u64;
        let window = if compression == Compression::Zstd { window_bytes } else { 0 };
        queues + DECODER_BYTES + window
    }
}
