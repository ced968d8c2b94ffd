//! gzip and zstd, streaming.
//!
//! A layer arrives as pieces of compressed bytes, in order. A [`Decoder`] pulls them from its
//! [`Pieces`] one by one and writes what they hold straight into the buffer that its caller brings;
//! nothing is copied on the way, and nothing beyond one piece and the format's own window is held.
//! No threads: who calls decides where the work is done.
//!
//! What counts as a whole stream is what containerd's own decoders take for one. gzip: any number
//! of members, none included, so that a layer of 0 bytes is an empty layer; anything else behind a
//! member is an error, zero padding too. zstd: any number of frames, skippable frames are passed
//! over; windows up to 128 MiB, as the reference decoder has it. A stream that ends inside a member
//! or frame is truncated, never short.

use std::io;

use bytes::Bytes;

use crate::image::Compression;

mod gzip;
mod zstandard;

/// Compressed bytes in order.
pub trait Pieces {
    /// The next bytes, which may be of any length; `None` at the end.
    ///
    /// # Errors
    /// Whatever keeps the bytes from arriving; it comes out as [`CompressionError::Input`].
    fn next_piece(&mut self) -> io::Result<Option<Bytes>>;
}

impl<F: FnMut() -> io::Result<Option<Bytes>>> Pieces for F {
    fn next_piece(&mut self) -> io::Result<Option<Bytes>> {
        self()
    }
}

/// Uncompressed bytes in order.
pub trait Decoder {
    /// Fills `out` with uncompressed bytes and says how many; fewer than its length only at the
    /// end of the stream or of a piece, 0 only at the end of the stream.
    ///
    /// # Errors
    /// Where the compressed bytes do not arrive, are not of the format, or end too early.
    fn read(&mut self, out: &mut [u8]) -> Result<usize, CompressionError>;
}

/// Why a layer cannot be decompressed.
#[derive(Debug, thiserror::Error)]
pub enum CompressionError {
    /// The compressed bytes stopped arriving; the source says why.
    #[error("reading compressed bytes: {0}")]
    Input(#[source] io::Error),
    /// The bytes are not of the format.
    #[error("{format} data is corrupt after {offset} compressed bytes: {what}")]
    Corrupt {
        /// `gzip` or `zstd`.
        format: &'static str,
        /// Compressed bytes taken until then.
        offset: u64,
        /// What the decoder says.
        what: String,
    },
    /// The stream ends inside a member or a frame.
    #[error("{format} data ends in the middle, after {offset} compressed bytes")]
    Truncated {
        /// `gzip` or `zstd`.
        format: &'static str,
        /// All compressed bytes there were.
        offset: u64,
    },
}

impl From<CompressionError> for io::Error {
    /// An [`CompressionError::Input`] becomes what it was; the others keep themselves inside.
    fn from(error: CompressionError) -> Self {
        match error {
            CompressionError::Input(source) => source,
            CompressionError::Corrupt { .. } => Self::new(io::ErrorKind::InvalidData, error),
            CompressionError::Truncated { .. } => Self::new(io::ErrorKind::UnexpectedEof, error),
        }
    }
}

/// A decoder of what `input` brings.
///
/// # Errors
/// Where the decoder's own state cannot be set up (no memory).
pub fn decoder(
    compression: Compression,
    input: Box<dyn Pieces + Send>,
) -> Result<Box<dyn Decoder + Send>, CompressionError> {
    let input = Input::new(input);
    Ok(match compression {
        Compression::None => Box::new(Stored(input)),
        Compression::Gzip => Box::new(gzip::Gzip::new(input)),
        Compression::Zstd => Box::new(zstandard::Zstd::new(input)?),
    })
}

/// The piece that is being decoded, and where the next ones come from.
struct Input {
    pieces: Box<dyn Pieces + Send>,
    piece: Bytes,
    /// Compressed bytes that were taken.
    taken: u64,
    ended: bool,
}

impl Input {
    fn new(pieces: Box<dyn Pieces + Send>) -> Self {
        Self { pieces, piece: Bytes::new(), taken: 0, ended: false }
    }

    /// Compressed bytes not yet taken; empty only at the end.
    fn peek(&mut self) -> Result<&[u8], CompressionError> {
        while self.piece.is_empty() && !self.ended {
            match self.pieces.next_piece().map_err(CompressionError::Input)? {
                Some(piece) => self.piece = piece,
                None => self.ended = true,
            }
        }
        Ok(&self.piece)
    }

    fn take(&mut self, count: usize) {
        // A piece that is used up goes at once: its memory is somebody's budget.
        self.piece =
            if count == self.piece.len() { Bytes::new() } else { self.piece.slice(count..) };
        self.taken += count as u64;
    }

    fn corrupt(&self, format: &'static str, what: impl ToString) -> CompressionError {
        CompressionError::Corrupt { format, offset: self.taken, what: what.to_string() }
    }

    fn truncated(&self, format: &'static str) -> CompressionError {
        CompressionError::Truncated { format, offset: self.taken }
    }
}

/// Bytes that are not compressed.
struct Stored(Input);

impl Decoder for Stored {
    fn read(&mut self, out: &mut [u8]) -> Result<usize, CompressionError> {
        let piece = self.0.peek()?;
        let count = piece.len().min(out.len());
        out[..count].copy_from_slice(&piece[..count]);
        self.0.take(count);
        Ok(count)
    }
}

#[cfg(test)]
mod tests;
