//! One part of a stream, from the block that seems to begin in it to the one that seems to begin in
//! the next.
//!
//! Symbols are decoded until the last 32 KiB hold no marker any more, if that ever comes; then nothing
//! is unknown, and the fastest decoder goes on from the next block. Both have to come out exactly
//! where the next part begins.

use super::bits::Bits;
use super::markers::{Failure, Markers, WINDOW};
use super::output::{BUFFER_BYTES, Inflated, Output};
use super::search::Start;
use crate::compression::memory::Promise;
use crate::sys::inflate::Inflate;

/// The tools of one thread.
pub(in super::super) struct Inflater {
    markers: Markers,
    inflate: Inflate,
}

impl Inflater {
    pub(in super::super) fn new() -> Self {
        Self { markers: Markers::new(), inflate: Inflate::without_crc() }
    }

    /// Inflates from `start` in `bytes` to `stop` in `next`, the bytes behind them.
    ///
    /// # Errors
    /// Where that cannot be done.
    pub(super) fn run(
        &mut self,
        bytes: &[u8],
        next: &[u8],
        (start, stop): (Start, Start),
        promise: Promise,
    ) -> Result<Inflated, Failure> {
        let stop = stop.behind(bytes.len());
        let mut output = Output::new(promise);
        self.markers.begin();
        let (at, is_stop) =
            self.markers.decode((bytes, next), start, stop, &mut output, Markers::is_clean)?;
        if is_stop {
            return output.end(self.markers.window());
        }
        let window = self.markers.window().map(|symbol| symbol as u8);
        self.clean(bytes, next, &window, (at, stop), &mut output)?;
        let mut known = [0; WINDOW];
        for (symbol, byte) in known.iter_mut().zip(self.inflate.window()) {
            *symbol = u16::from(*byte);
        }
        output.end(&known)
    }

    /// Goes on from a block at the bit `at`, behind `window`.
    fn clean(
        &mut self,
        bytes: &[u8],
        next: &[u8],
        window: &[u8; WINDOW],
        (at, stop): (usize, Start),
        output: &mut Output,
    ) -> Result<(), Failure> {
        let mut bits = Bits::new(bytes, next, at);
        let count = (8 - at % 8) as u32 % 8;
        bits.refill();
        self.inflate.resume(window, (bits.take(count) as u8, count), 0);
        let (from, until) = (at.div_ceil(8), stop.byte());
        let middle = bytes.len();
        let parts = [
            &bytes[from.min(middle)..until.min(middle)],
            &next[from.max(middle) - middle..until.max(middle) - middle],
        ];
        let mut buffer = output.buffer()?;
        buffer.bytes().resize(BUFFER_BYTES, 0);
        let mut filled = 0;
        for mut part in parts {
            loop {
                if filled == BUFFER_BYTES {
                    output.bytes(buffer);
                    buffer = output.buffer()?;
                    buffer.bytes().resize(BUFFER_BYTES, 0);
                    filled = 0;
                }
                let step = self
                    .inflate
                    .inflate(part, &mut buffer.bytes()[filled..])
                    .map_err(|_| Failure::NotDeflate)?;
                if step.ended {
                    return Err(Failure::LastBlock);
                }
                part = &part[step.taken..];
                filled += step.written;
                if step.taken == 0 && step.written == 0 {
                    break;
                }
            }
        }
        buffer.bytes().truncate(filled);
        output.bytes(buffer);
        let (unused, header) = self.inflate.boundary().ok_or(Failure::NotInStep)?;
        let is_stop = stop.is_at(until * 8 - unused as usize, header);
        if is_stop { Ok(()) } else { Err(Failure::NotInStep) }
    }
}
