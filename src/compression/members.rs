//! Where gzip members seem to begin (RFC 1952, section 2.3).
//!
//! ```text
//! member: 1f 8b 08 │ flags 1 │ mtime 4 │ extra flags 1 │ system 1 │ optional fields │ deflate… │ CRC 4 │ ISIZE 4
//! ```
//!
//! Nothing in a member says how long it is (bgzip and pgzip do in extra fields, each otherwise), so
//! the next member's header is looked for, of which ten bytes have few values that anybody writes.
//! Compressed data hold such bytes by chance once in some 2^38 positions; a layer that holds `.gz`
//! files stored as they are holds them on purpose. Both are found out: the four bytes before a
//! header are the length of the member that ends there, and must fit to its compressed size; and
//! the decoder of a segment has to end, CRC right, exactly where the segment ends.

use memchr::memmem;

use super::cut::{Cut, Sizes};

/// Magic number and the only method there is, deflate.
const MAGIC: [u8; 3] = [0x1F, 0x8B, 8];

/// The bytes of a header that every member has.
const HEADER_BYTES: usize = 10;

/// The shortest member: a header, an empty block, the trailer.
const MEMBER_BYTES_MIN: usize = HEADER_BYTES + 2 + TRAILER_BYTES;
const TRAILER_BYTES: usize = 8;

/// Deflate's best ratio is 258 bytes in two bits.
const RATIO_MAX: u64 = 1032;

/// Cuts a stream where members seem to begin.
#[derive(Debug)]
pub(super) struct Search {
    sizes: Sizes,
    /// The next header is looked for from here on.
    at: usize,
    /// Where the last member ends that seems whole.
    boundary: usize,
    /// What the members until there decode to, if they are members.
    content: usize,
}

impl Search {
    pub(super) fn new(sizes: Sizes) -> Self {
        Self { sizes, at: 0, boundary: 0, content: 0 }
    }

    /// See [`Cutter::next`](super::cut::Cutter::next).
    pub(super) fn next(&mut self, bytes: &[u8], ended: bool) -> Cut {
        if bytes.len() < MEMBER_BYTES_MIN {
            return if ended { Cut::None } else { Cut::More(MEMBER_BYTES_MIN) };
        }
        if !is_header(bytes) {
            return Cut::None;
        }
        self.at = self.at.max(MEMBER_BYTES_MIN);
        while let Some(found) =
            bytes.get(self.at..).and_then(|rest| memmem::find(rest, &MAGIC)).map(|at| self.at + at)
        {
            if bytes.len() < found + HEADER_BYTES && !ended {
                self.at = found;
                return Cut::More(found + HEADER_BYTES);
            }
            self.at = found + 1;
            if !is_header(&bytes[found..]) {
                continue;
            }
            let Some(size) = self.member(&bytes[..found]) else { continue };
            if self.content + size > self.sizes.max_content {
                break;
            }
            self.boundary = found;
            self.content += size;
            self.at = found + MEMBER_BYTES_MIN;
            if self.content >= self.sizes.target_content
                || self.boundary >= self.sizes.target_compressed
            {
                return self.close();
            }
        }
        if ended {
            return self.last(bytes);
        }
        // In steps, since nobody knows how much is needed.
        let step = self.sizes.target_compressed / 8;
        if bytes.len() + step > self.sizes.max_compressed {
            return self.close();
        }
        // A magic number may have begun.
        self.at = self.at.max(bytes.len() - (MAGIC.len() - 1));
        Cut::More(bytes.len() + step)
    }

    /// The length that the member before the end of `bytes` says it has, if it can be true.
    fn member(&self, bytes: &[u8]) -> Option<usize> {
        let compressed = bytes.len().checked_sub(self.boundary)?;
        let (_, size) = bytes.split_last_chunk::<4>()?;
        let size = u32::from_le_bytes(*size);
        let most = compressed as u64 * RATIO_MAX;
        (compressed >= MEMBER_BYTES_MIN && u64::from(size) <= most).then_some(size as usize)
    }

    /// The stream's last member ends with the stream.
    fn last(&mut self, bytes: &[u8]) -> Cut {
        if let Some(size) = self.member(bytes)
            && self.content + size <= self.sizes.max_content
            && bytes.len() <= self.sizes.max_compressed
        {
            self.boundary = bytes.len();
            self.content += size;
        }
        self.close()
    }

    fn close(&self) -> Cut {
        match self.boundary {
            0 => Cut::None,
            compressed => Cut::At { compressed, content: self.content },
        }
    }
}

/// Whether `bytes` begin with a header as somebody writes it.
fn is_header(bytes: &[u8]) -> bool {
    let Some(header) = bytes.first_chunk::<HEADER_BYTES>() else { return false };
    let [_, _, _, flags, .., extra, system] = *header;
    // Reserved flags are 0; extra flags tell of the fastest or best level; 13 systems have a number.
    header.starts_with(&MAGIC)
        && flags & 0xE0 == 0
        && matches!(extra, 0 | 2 | 4)
        && (system <= 13 || system == 255)
}
