//! A layer that is there: written, or kept as it was.

use crate::compression::frame_table::FrameTableRef;
use crate::image::{BlobDigest, Compression, DiffId};

/// A layer that was written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Written {
    /// The blob.
    pub digest: BlobDigest,
    /// Its size in bytes.
    pub size: u64,
    /// The archive.
    pub diff_id: DiffId,
    /// Its length in bytes.
    pub archive_bytes: u64,
    /// Names in it.
    pub entries: u64,
    /// How it is compressed.
    pub compression: Compression,
    /// Its frame table, where it has one.
    pub frames: Option<FrameTableRef>,
    /// Whether it is a layer of the source as it was.
    pub kept: bool,
}
