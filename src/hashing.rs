//! SHA-256 of many streams at once.
//!
//! A pull hashes every layer twice, compressed and uncompressed: a quarter to a third of its CPU
//! time. Two streams that are hashed together cost little more than one (see
//! [`crate::sys::sha256`]), so the streams of all layers go to the [`Hashers`], a few threads that
//! take them in pairs. Nobody needs a digest before its stream has ended, and so a stream may wait
//! for a partner, within a bound of bytes.
//!
//! [`Hasher`] is the state of one stream. It is our own and not `sha2`'s, which has no way to hash
//! two; blocks that come alone go to `sha2`'s compression function.

use crate::image::Sha256;
use crate::sys::sha256::{self, BLOCK_BYTES};

mod pool;

pub use pool::{HashStream, Hashed, Hashers};

/// One stream's hash so far (FIPS 180-4, section 6.2).
#[derive(Clone, Debug)]
pub struct Hasher {
    state: [u32; 8],
    /// The beginning of a block that is not whole yet.
    tail: [u8; BLOCK_BYTES],
    filled: usize,
    bytes: u64,
}

impl Default for Hasher {
    fn default() -> Self {
        Self { state: sha256::INITIAL, tail: [0; BLOCK_BYTES], filled: 0, bytes: 0 }
    }
}

impl Hasher {
    /// Takes bytes in.
    pub fn update(&mut self, data: &[u8]) {
        let data = self.align(data);
        sha256::compress(&mut self.state, data);
        self.keep(data);
    }

    /// Takes bytes of two streams in, as fast as two can be together as far as both reach.
    pub fn update_both(hashers: [&mut Self; 2], data: [&[u8]; 2]) {
        let [first, second] = hashers;
        let (a, b) = (first.align(data[0]), second.align(data[1]));
        let both = a.len().min(b.len()) / BLOCK_BYTES * BLOCK_BYTES;
        sha256::compress_pair([&mut first.state, &mut second.state], [&a[..both], &b[..both]]);
        first.update_aligned(&a[both..]);
        second.update_aligned(&b[both..]);
    }

    fn update_aligned(&mut self, data: &[u8]) {
        sha256::compress(&mut self.state, data);
        self.keep(data);
    }

    /// Completes the block that was begun and returns what is left of `data`, which begins a block.
    fn align<'a>(&mut self, data: &'a [u8]) -> &'a [u8] {
        self.bytes += data.len() as u64;
        if self.filled == 0 {
            return data;
        }
        let (head, rest) = data.split_at(data.len().min(BLOCK_BYTES - self.filled));
        self.tail[self.filled..self.filled + head.len()].copy_from_slice(head);
        self.filled += head.len();
        if self.filled == BLOCK_BYTES {
            sha256::compress(&mut self.state, &self.tail);
            self.filled = 0;
        }
        rest
    }

    /// Keeps what is no whole block at the end of `data`.
    fn keep(&mut self, data: &[u8]) {
        let end = data.as_chunks::<BLOCK_BYTES>().1;
        if !end.is_empty() {
            self.tail[..end.len()].copy_from_slice(end);
            self.filled = end.len();
        }
    }

    /// The digest of all bytes.
    pub fn finish(mut self) -> Sha256 {
        let bits = self.bytes.wrapping_mul(8);
        let zeros = (BLOCK_BYTES * 2 - 9 - self.filled) % BLOCK_BYTES;
        let mut padding = [0; BLOCK_BYTES + 8 + 1];
        padding[0] = 0x80;
        padding[1 + zeros..zeros + 9].copy_from_slice(&bits.to_be_bytes());
        self.update(&padding[..zeros + 9]);
        debug_assert_eq!(self.filled, 0);
        let mut digest = [0; 32];
        for (bytes, word) in digest.as_chunks_mut::<4>().0.iter_mut().zip(self.state) {
            *bytes = word.to_be_bytes();
        }
        Sha256::from_bytes(digest)
    }
}

#[cfg(test)]
mod tests;
