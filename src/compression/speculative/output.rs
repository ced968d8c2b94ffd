//! What a part of a stream decodes to, while the window before it is not known, and after.
//!
//! ```text
//! clean:  │ bytes … │
//! marked: │ lower bytes of the symbols │ upper bytes │   the upper ones are 0 for a byte
//! ```
//!
//! Apart from each other the halves cost little to resolve: where no upper byte is set, and that is
//! most of it, the lower ones are what is asked for, and stand where they have to.

use bytes::Bytes;

use super::super::memory::{Buffer, Promise};
use super::markers::{BATCH, Failure, MARKER, Sink, WINDOW};
use super::placed::{Known, Placed};

/// All buffers are of this size, so that each can be used again for any other.
pub(super) const BUFFER_BYTES: usize = 2 * BATCH;

/// Symbols that are looked at at once.
const LANE: usize = 32;

/// The window's symbols as bytes.
pub(in super::super) type Window = [u8; WINDOW];

/// Some symbols of a part.
pub(in super::super) struct Piece {
    buffer: Buffer,
    /// How many of them are markers or bytes with a place for the upper half; the others are bytes.
    marked: bool,
}

impl Piece {
    /// Fills an empty buffer.
    fn of(mut buffer: Buffer, symbols: &[u16]) -> Self {
        let bytes = buffer.bytes();
        let marked = is_marked(symbols);
        bytes.extend(symbols.iter().map(|symbol| *symbol as u8));
        if marked {
            bytes.extend(symbols.iter().map(|symbol| (symbol >> 8) as u8));
        }
        Self { buffer, marked }
    }

    /// The bytes, now that the window is known.
    pub(in super::super) fn resolve(mut self, window: &Window) -> Bytes {
        if self.marked {
            let bytes = self.buffer.bytes();
            let count = bytes.len() / 2;
            let (lower, upper) = bytes.split_at_mut(count);
            resolve(lower, upper, window);
            bytes.truncate(count);
        }
        self.buffer.freeze()
    }
}

fn is_marked(symbols: &[u16]) -> bool {
    symbols.iter().fold(0, |all, symbol| all | symbol) >= MARKER
}

fn resolve(lower: &mut [u8], upper: &[u8], window: &Window) {
    for (lower, upper) in lower.chunks_mut(LANE).zip(upper.chunks(LANE)) {
        if upper.iter().fold(0, |all, upper| all | upper) == 0 {
            continue;
        }
        for (lower, upper) in lower.iter_mut().zip(upper) {
            let place = usize::from(*upper) << 8 | usize::from(*lower);
            let known = window[place % WINDOW];
            *lower = if *upper == 0 { *lower } else { known };
        }
    }
}

/// Takes in what a part decodes to.
pub(super) struct Output {
    promise: Promise,
    pieces: Vec<Piece>,
    count: usize,
}

impl Output {
    pub(super) fn new(promise: Promise) -> Self {
        Self { promise, pieces: Vec::new(), count: 0 }
    }

    /// An empty buffer of [`BUFFER_BYTES`].
    pub(super) fn buffer(&mut self) -> Result<Buffer, Failure> {
        self.promise.buffer(BUFFER_BYTES).ok_or(Failure::TooMuch)
    }

    /// Takes in a buffer of bytes.
    pub(super) fn bytes(&mut self, buffer: Buffer) {
        self.count += buffer.as_ref().len();
        if !buffer.as_ref().is_empty() {
            self.pieces.push(Piece { buffer, marked: false });
        }
    }

    /// The pieces in their order, and how many bytes they come to, with the last 32 KiB apart.
    pub(super) fn end(mut self, window: &[u16; WINDOW]) -> Result<Inflated, Failure> {
        let window = Piece::of(self.buffer()?, window);
        Ok(Inflated { pieces: self.pieces, count: self.count, window })
    }
}

impl Sink for Output {
    fn take(&mut self, symbols: &[u16]) -> Result<(), Failure> {
        if symbols.is_empty() {
            return Ok(());
        }
        self.count += symbols.len();
        if let Some(Piece { buffer, marked: false }) = self.pieces.last_mut()
            && buffer.as_ref().len() + symbols.len() <= BUFFER_BYTES
            && !is_marked(symbols)
        {
            buffer.bytes().extend(symbols.iter().map(|symbol| *symbol as u8));
            return Ok(());
        }
        let buffer = self.buffer()?;
        self.pieces.push(Piece::of(buffer, symbols));
        Ok(())
    }
}

/// What a part decodes to.
pub(in super::super) struct Inflated {
    pub(in super::super) pieces: Vec<Piece>,
    /// How many bytes they come to.
    pub(in super::super) count: usize,
    /// The last 32 KiB again, of the part and what was before it.
    pub(in super::super) window: Piece,
}

impl Inflated {
    /// Now that the window before it is known, so is the one behind it.
    pub(super) fn place(self, before: &Known) -> Placed {
        let behind = Known::last(self.window.resolve(before.bytes()));
        let behind = behind.expect("a window is as long as a window");
        Placed::new(self.pieces.into(), before.clone(), behind)
    }
}
