//! gzip and zstd, streaming, on one thread or several.
//!
//! A layer arrives as pieces of compressed bytes, in order. A [`Decoder`] pulls them from its
//! [`Pieces`] one by one and writes what they hold straight into the buffer that its caller brings;
//! nothing is copied on the way, and nothing beyond one piece and the format's own window is held.
//! That is all there is to a stream of one gzip member or one zstd frame, which nearly every layer
//! is today.
//!
//! Where a second member or frame follows the first, the stream can be cut, and a [`Pool`] helps:
//! segments are decoded by several threads, each into a buffer of its own, which is handed out
//! whole ([`ahead`]). Their memory is borrowed; until it is there, and where a part of the stream
//! cannot be cut, the stream goes on serially. What comes out is the same in all cases, errors
//! included, because whatever does not decode by itself is left to the serial decoder.
//!
//! A single gzip member, which most layers are, cannot be cut, but guessed at where threads are idle
//! ([`speculative`]): helpers inflate from where blocks seem to begin, and what they made counts where
//! the serial decoder comes to just there.
//!
//! What counts as a whole stream is what containerd's own decoders take for one. gzip: any number
//! of members, none included, so that a layer of 0 bytes is an empty layer; anything else behind a
//! member is an error, zero padding too. zstd: any number of frames, skippable frames are passed
//! over; windows up to [`WINDOW_BYTES_MAX`] (containerd's decoder takes up to 512 MiB). A stream
//! that ends inside a member or frame is truncated, never short.
//!
//! [`seek_table`] is the table at the end of a zstd stream that says where its frames are;
//! [`frame_table`] says what they have to be, too.

use std::io;
use std::time::Duration;

use bytes::Bytes;

use crate::image::Compression;

mod ahead;
mod cut;
pub mod frame_table;
mod frames;
mod gzip;
mod input;
mod members;
mod memory;
mod pool;
pub mod seek_table;
mod speculative;
mod zstandard;

use ahead::Ahead;
use cut::{Cut, Cutter, Sizes};
use gzip::Gzip;
use input::{Input, Supply};
use pool::Entered;
use pool::OnHelp;
pub use pool::Pool;
pub use speculative::Speculation;
use speculative::Speculative;
use zstandard::Zstd;

/// The largest zstd window that is decoded, in bytes: the reference decoder's own limit, and what
/// `zstd --long` makes. A frame made with `--ultra --long=31` wants more and is refused.
pub const WINDOW_BYTES_MAX: u64 = 128 << 20;

/// Compressed bytes in order.
pub trait Pieces {
    /// The next bytes, which may be of any length; `None` at the end.
    ///
    /// # Errors
    /// Whatever keeps the bytes from arriving; it comes out as [`CompressionError::Input`].
    fn next_piece(&mut self) -> io::Result<Option<Bytes>>;

    /// The next bytes if they are there. A source that cannot tell waits for them.
    ///
    /// # Errors
    /// Those of [`next_piece`](Self::next_piece).
    fn ready_piece(&mut self) -> io::Result<Arrival> {
        Ok(self.next_piece()?.map_or(Arrival::End, Arrival::Piece))
    }
}

/// What [`Pieces::ready_piece`] finds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Arrival {
    /// The next bytes.
    Piece(Bytes),
    /// They have not arrived yet.
    Later,
    /// There are no more.
    End,
}

impl<F: FnMut() -> io::Result<Option<Bytes>>> Pieces for F {
    fn next_piece(&mut self) -> io::Result<Option<Bytes>> {
        self()
    }
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
    /// A zstd frame needs more memory for its window than it may take.
    #[error(
        "the zstd data needs a window of {needed} bytes, and {allowed} may be used; a larger limits.memory_budget allows more"
    )]
    Window {
        /// What the frame's header says, in bytes.
        needed: u64,
        /// [`Resources::window_bytes`].
        allowed: u64,
    },
}

impl CompressionError {
    /// Whether the bytes are at fault, and not the source or the machine.
    pub fn is_bad_data(&self) -> bool {
        matches!(self, Self::Corrupt { .. } | Self::Truncated { .. })
    }
}

impl From<CompressionError> for io::Error {
    /// An [`CompressionError::Input`] becomes what it was; the others keep themselves inside.
    fn from(error: CompressionError) -> Self {
        match error {
            CompressionError::Input(source) => source,
            CompressionError::Corrupt { .. } => Self::new(io::ErrorKind::InvalidData, error),
            CompressionError::Window { .. } => Self::new(io::ErrorKind::OutOfMemory, error),
            CompressionError::Truncated { .. } => Self::new(io::ErrorKind::UnexpectedEof, error),
        }
    }
}

/// What a decoder may use.
#[derive(Clone)]
pub struct Resources {
    /// Bytes that a zstd frame's window may take; a stream that needs more ends with
    /// [`CompressionError::Window`].
    pub window_bytes: u64,
    /// Who helps with a stream of several members or frames.
    pub pool: Option<Pool>,
    /// When the pool helps with a single gzip member too.
    pub speculation: Speculation,
    /// All compressed bytes that will come, as far as that is known.
    pub compressed_bytes: u64,
    /// Told from when to when a helper has worked for this stream.
    pub on_help: Option<OnHelp>,
}

impl Resources {
    /// One thread, and any window that the format may have.
    pub fn serial() -> Self {
        Self {
            window_bytes: WINDOW_BYTES_MAX,
            pool: None,
            speculation: Speculation::Off,
            compressed_bytes: 0,
            on_help: None,
        }
    }
}

/// The formats that are decoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Format {
    Gzip,
    Zstd,
}

impl Format {
    fn as_str(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }
}

/// What a [`Decoder::read`] comes to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Decoded {
    /// So many bytes, at least one, were written to the beginning of the caller's buffer.
    Filled(usize),
    /// The next bytes, at least one; the caller's buffer was not used. They lie in a buffer that
    /// the decoder needs again: until they are dropped it has less to work with.
    Piece(Bytes),
    /// There are no more.
    End,
}

/// Uncompressed bytes in order.
pub struct Decoder {
    input: Input,
    serial: Serial,
    /// Bytes that the current member or frame has come to.
    unit: u64,
    ahead: Option<Ahead>,
    /// Whether `ahead` is at work, and not `serial`.
    runs_ahead: bool,
    speculative: Option<Speculative>,
    _entered: Option<Entered>,
}

enum Serial {
    Stored,
    Gzip(Box<Gzip>),
    Zstd(Zstd),
}

/// A decoder of what `input` brings.
///
/// # Errors
/// Where the decoder's own state cannot be set up (no memory).
pub fn decoder(
    compression: Compression,
    input: Box<dyn Pieces + Send>,
    resources: Resources,
) -> Result<Decoder, CompressionError> {
    let Resources { window_bytes, pool, speculation, compressed_bytes, on_help } = resources;
    let pool = pool.filter(|pool| pool.helpers() > 0);
    let entered = pool.as_ref().map(Pool::enter);
    let input = Input::new(input);
    let ahead = |format| Some(Ahead::new(format, pool.clone()?, on_help.clone()));
    let (serial, ahead) = match compression {
        Compression::None => (Serial::Stored, None),
        Compression::Gzip => (Serial::Gzip(Box::new(Gzip::new())), ahead(Format::Gzip)),
        Compression::Zstd => (Serial::Zstd(Zstd::new(&input, window_bytes)?), ahead(Format::Zstd)),
    };
    let guesses = compression == Compression::Gzip && speculation != Speculation::Off;
    let speculative = pool
        .filter(|_| guesses)
        .map(|pool| Speculative::new(speculation, compressed_bytes, pool, on_help));
    let (unit, runs_ahead) = (0, false);
    Ok(Decoder { input, serial, unit, ahead, runs_ahead, speculative, _entered: entered })
}

/// A part of a stream that is decoded apart from the others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    /// Its length in the stream, in bytes.
    pub compressed: usize,
    /// What it decodes to, in bytes, at most.
    pub content: usize,
}

/// Where a whole stream can be cut for several threads, from its beginning to the first part that
/// cannot be. Of gzip it is a guess, as nothing is decoded here.
pub fn segments(compression: Compression, stream: &[u8]) -> Vec<Segment> {
    let format = match compression {
        Compression::None => return Vec::new(),
        Compression::Gzip => Format::Gzip,
        Compression::Zstd => Format::Zstd,
    };
    let (mut segments, mut rest) = (Vec::new(), stream);
    while !rest.is_empty() {
        let mut cutter = Cutter::new(format, Sizes::DEFAULT);
        let mut cut = Cut::More(1);
        while let Cut::More(wanted) = cut {
            let there = wanted.min(rest.len());
            cut = cutter.next(&rest[..there], there < wanted);
        }
        let Cut::At { compressed, content } = cut else { break };
        segments.push(Segment { compressed, content });
        rest = &rest[compressed..];
    }
    segments
}

impl Decoder {
    /// The next uncompressed bytes, in `out`, which must not be empty, or in a buffer of their own.
    ///
    /// # Errors
    /// Where the compressed bytes do not arrive, are not of the format, end too early or need more
    /// memory than there is.
    pub fn read(&mut self, out: &mut [u8]) -> Result<Decoded, CompressionError> {
        let mut filled = 0;
        while filled < out.len() {
            if let Some(ahead) = self.ahead.as_mut().filter(|_| self.runs_ahead) {
                if filled > 0 {
                    break;
                }
                if let Some(piece) = ahead.next(&mut self.input) {
                    return Ok(Decoded::Piece(piece));
                }
                self.runs_ahead = false;
            }
            // A member that is guessed at is handed on as it comes, since what comes next may be a
            // piece; nothing was filled before.
            let (count, guessed) = match self.guess(&mut out[filled..])? {
                Some(Decoded::Piece(piece)) => {
                    self.unit += piece.len() as u64;
                    return Ok(Decoded::Piece(piece));
                }
                Some(Decoded::Filled(count)) => (count, true),
                _ => (self.serial.read(&mut self.input, &mut out[filled..])?, false),
            };
            filled += count;
            self.unit += count as u64;
            if self.serial.between() {
                if self.input.supply(true) == Supply::End {
                    break;
                }
                self.end_of_unit();
            }
            if guessed {
                break;
            }
        }
        Ok(if filled > 0 { Decoded::Filled(filled) } else { Decoded::End })
    }

    /// The next bytes where several threads guess at them; `None` where they do not.
    fn guess(&mut self, out: &mut [u8]) -> Result<Option<Decoded>, CompressionError> {
        match (&mut self.speculative, &mut self.serial) {
            (Some(speculative), Serial::Gzip(gzip)) if !gzip.between() => {
                speculative.read(gzip, &mut self.input, out)
            }
            _ => Ok(None),
        }
    }

    /// A member or frame has ended and another follows.
    fn end_of_unit(&mut self) {
        let content = std::mem::take(&mut self.unit);
        // Skippable frames and empty members are no sign of more to come.
        if content > 0
            && let Some(ahead) = &mut self.ahead
        {
            self.runs_ahead = ahead.ready(content);
        }
    }

    /// How long [`read`](Self::read) has waited for helpers since the last call: time in which this
    /// thread did not decode.
    pub fn take_waited(&mut self) -> Duration {
        let ahead = self.ahead.as_mut().map_or(Duration::ZERO, Ahead::take_waited);
        let guessing = self.speculative.as_mut();
        ahead + guessing.map_or(Duration::ZERO, Speculative::take_waited)
    }
}

impl Serial {
    /// Fills `out`; short only at the end of a member, of a frame or of the stream.
    fn read(&mut self, input: &mut Input, out: &mut [u8]) -> Result<usize, CompressionError> {
        match self {
            Self::Stored => {
                let count = input.peek()?.len().min(out.len());
                out[..count].copy_from_slice(&input.peek()?[..count]);
                input.take(count);
                Ok(count)
            }
            Self::Gzip(gzip) => gzip.read(input, out),
            Self::Zstd(zstd) => zstd.read(input, out),
        }
    }

    /// Whether the input stands between two members or frames.
    fn between(&self) -> bool {
        match self {
            Self::Stored => true,
            Self::Gzip(gzip) => gzip.between(),
            Self::Zstd(zstd) => zstd.between(),
        }
    }
}

#[cfg(test)]
mod tests;
