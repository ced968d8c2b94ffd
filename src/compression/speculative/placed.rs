//! A part that is decoded, and whose windows on both sides are known: its place in the stream is sure.
//!
//! What is left is to put bytes for the markers, and to make their CRC. Neither asks for the part before,
//! so that helpers do it, several parts at once; the stream's own thread puts the CRCs together.

use std::collections::VecDeque;

use bytes::Bytes;
use zlib_rs::crc32::crc32_combine;

use super::markers::WINDOW;
use super::output::{Piece, Window};
use crate::sys::inflate::crc32;

/// A window whose bytes are known. Clones share them.
#[derive(Clone)]
pub(super) struct Known(Bytes);

impl Known {
    /// The last 32 KiB of `bytes`, if there are as many.
    pub(super) fn last(bytes: Bytes) -> Option<Self> {
        let from = bytes.len().checked_sub(WINDOW)?;
        Some(Self(bytes.slice(from..)))
    }

    pub(super) fn bytes(&self) -> &Window {
        self.0.first_chunk().expect("it was made as long as that")
    }
}

/// A part between two windows that are known.
pub(super) struct Placed {
    pieces: VecDeque<Piece>,
    before: Known,
    behind: Known,
}

impl Placed {
    pub(super) fn new(pieces: VecDeque<Piece>, before: Known, behind: Known) -> Self {
        Self { pieces, before, behind }
    }

    /// The last 32 KiB of it, and of what is before it.
    pub(super) fn behind(&self) -> &Known {
        &self.behind
    }

    /// The next of its bytes, with which `crc` goes on.
    fn next(&mut self, crc: &mut u32) -> Option<Bytes> {
        let bytes = self.pieces.pop_front()?.resolve(self.before.bytes());
        *crc = crc32(*crc, &bytes);
        Some(bytes)
    }

    /// Puts bytes for all markers.
    pub(super) fn resolve(mut self) -> Resolved {
        let mut crc = 0;
        let pieces: VecDeque<_> = std::iter::from_fn(|| self.next(&mut crc)).collect();
        let count = pieces.iter().map(|bytes| bytes.len() as u64).sum();
        Resolved { pieces, crc, count, behind: self.behind }
    }
}

/// The bytes of a part.
pub(super) struct Resolved {
    pieces: VecDeque<Bytes>,
    /// Of these bytes alone.
    crc: u32,
    count: u64,
    behind: Known,
}

/// What helpers have made of a part, as far as they came.
pub(super) enum Made {
    Placed(Placed),
    Resolved(Resolved),
}

impl Made {
    pub(super) fn behind(&self) -> &Known {
        match self {
            Self::Placed(placed) => placed.behind(),
            Self::Resolved(resolved) => &resolved.behind,
        }
    }

    /// The next of its bytes. `crc`, that of the member before them, becomes that of the member with them; in a part
    /// that was resolved elsewhere it is that with all of the part from its first bytes on.
    pub(super) fn next(&mut self, crc: &mut u32) -> Option<Bytes> {
        match self {
            Self::Placed(placed) => placed.next(crc),
            Self::Resolved(resolved) => {
                let bytes = resolved.pieces.pop_front()?;
                let count = std::mem::take(&mut resolved.count);
                if count > 0 {
                    *crc = crc32_combine(*crc, resolved.crc, count);
                }
                Some(bytes)
            }
        }
    }
}
