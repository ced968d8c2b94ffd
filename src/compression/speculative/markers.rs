//! Inflating from the middle of a deflate stream, without the 32 KiB before.
//!
//! What comes out are symbols of 16 bits: bytes, and markers for the bytes that were copied from what
//! is not known. A marker is a place in the unknown window, and is copied like a byte.

use super::bits::Bits;
use super::codes::{self, Codes, Lengths};
use super::search::Start;

/// Deflate's window, in bytes.
pub(in super::super) const WINDOW: usize = 32 << 10;

/// Set in a symbol that is a place in the window before, not a byte.
pub(super) const MARKER: u16 = 1 << 15;

/// So many symbols are handed on at once; with the window they fit a core's second cache.
pub(super) const BATCH: usize = 128 << 10;

/// What one turn of the loop may write beyond the end of a batch: three literals and the longest
/// match, which is copied in blocks.
const BEYOND: usize = 3 + 258 + COPIED;

/// Symbols copied at once.
const COPIED: usize = 8;

/// Why a part cannot be decoded by itself. What is wrong is for the serial decoder to say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Failure {
    /// The bits are not deflate, or end too early.
    NotDeflate,
    /// The part does not end where the next begins: that was no block's beginning, or this is none.
    NotInStep,
    /// The last block ends in the part.
    LastBlock,
    /// It decodes to more than there is room for.
    TooMuch,
}

/// Takes symbols in.
pub(super) trait Sink {
    /// The next symbols, [`BATCH`] at most.
    ///
    /// # Errors
    /// [`Failure::TooMuch`].
    fn take(&mut self, symbols: &[u16]) -> Result<(), Failure>;
}

/// The tools of one thread.
pub(super) struct Markers {
    codes: Codes,
    /// The window, then a batch.
    symbols: Box<[u16; WINDOW + BATCH + BEYOND]>,
    /// Symbols in use.
    end: usize,
}

/// How a block ended.
#[derive(PartialEq, Eq)]
enum Block {
    Ended,
    Last,
}

impl Markers {
    pub(super) fn new() -> Self {
        let symbols = vec![0; WINDOW + BATCH + BEYOND].into_boxed_slice();
        Self { codes: Codes::new(), symbols: symbols.try_into().expect("it is so long"), end: 0 }
    }

    /// Forgets everything: the window is unknown.
    pub(super) fn begin(&mut self) {
        for (symbol, place) in self.symbols.iter_mut().zip(0..WINDOW as u16) {
            *symbol = MARKER | place;
        }
        self.end = WINDOW;
    }

    /// Whether nothing of the last 32 KiB is unknown.
    pub(super) fn is_clean(&self) -> bool {
        self.window().iter().fold(0, |all, symbol| all | symbol) < MARKER
    }

    /// The last 32 KiB.
    pub(super) fn window(&self) -> &[u16; WINDOW] {
        self.symbols[..self.end].last_chunk().expect("the window is there from the beginning")
    }

    /// Decodes blocks from `start` until `stop`, or until the end of a block where `pause` says so.
    /// Returns the bit behind the last block, and whether that is `stop`.
    ///
    /// # Errors
    /// Where the blocks cannot be decoded, or `stop` is not where one ends.
    pub(super) fn decode(
        &mut self,
        (bytes, next): (&[u8], &[u8]),
        start: Start,
        stop: Start,
        sink: &mut impl Sink,
        pause: impl Fn(&Self) -> bool,
    ) -> Result<(usize, bool), Failure> {
        let mut bits = match start {
            Start::Dynamic(bit) => Bits::new(bytes, next, bit),
            Start::Stored(byte) => {
                let mut bits = Bits::new(bytes, next, byte * 8);
                self.stored(&mut bits, sink)?;
                bits
            }
        };
        loop {
            let at = bits.position();
            bits.refill();
            let is_stop = stop.is_at(at, bits.peek() as u32);
            if is_stop || pause(self) {
                self.flush(sink)?;
                return Ok((at, is_stop));
            }
            if at >= stop.byte() * 8 {
                return Err(Failure::NotInStep);
            }
            if self.block(&mut bits, sink)? == Block::Last {
                return Err(Failure::LastBlock);
            }
            if bits.ran_out() {
                return Err(Failure::NotDeflate);
            }
        }
    }

    fn block(&mut self, bits: &mut Bits<'_>, sink: &mut impl Sink) -> Result<Block, Failure> {
        bits.refill();
        let last = bits.take(1) == 1;
        match bits.take(2) {
            0 => {
                bits.align();
                self.stored(bits, sink)?;
            }
            1 => {
                self.codes.set_fixed();
                self.coded(bits, sink)?;
            }
            2 => {
                let lengths = Lengths::read(bits).ok_or(Failure::NotDeflate)?;
                self.codes.set(&lengths);
                self.coded(bits, sink)?;
            }
            _ => return Err(Failure::NotDeflate),
        }
        Ok(if last { Block::Last } else { Block::Ended })
    }

    /// A stored block from its length on.
    fn stored(&mut self, bits: &mut Bits<'_>, sink: &mut impl Sink) -> Result<(), Failure> {
        bits.refill();
        let (length, check) = (bits.take(16), bits.take(16));
        if length ^ check != 0xFFFF {
            return Err(Failure::NotDeflate);
        }
        let mut left = length as usize;
        while left > 0 {
            if self.end >= WINDOW + BATCH {
                self.flush_batch(sink)?;
            }
            let room = WINDOW + BATCH - self.end;
            let bytes = bits.bytes(left.min(room));
            for (symbol, byte) in self.symbols[self.end..].iter_mut().zip(bytes) {
                *symbol = u16::from(*byte);
            }
            (self.end, left) = (self.end + bytes.len(), left - bytes.len());
            if bytes.is_empty() {
                bits.refill();
                self.symbols[self.end] = bits.take(8) as u16;
                (self.end, left) = (self.end + 1, left - 1);
                if bits.ran_out() {
                    return Err(Failure::NotDeflate);
                }
            }
        }
        Ok(())
    }

    /// The words of a block, by its codes, until its end.
    fn coded(&mut self, from: &mut Bits<'_>, sink: &mut impl Sink) -> Result<(), Failure> {
        // On the stack, and in registers: through the reference each word would be written back.
        let mut bits = from.clone();
        loop {
            if self.end >= WINDOW + BATCH {
                if bits.ran_out() {
                    return Err(Failure::NotDeflate);
                }
                self.flush_batch(sink)?;
            }
            let ended;
            (self.end, ended) = words(&self.codes, &mut self.symbols, self.end, &mut bits)?;
            if ended {
                *from = bits;
                return Ok(());
            }
        }
    }

    /// Hands on what is full, and keeps the rest behind its window.
    fn flush_batch(&mut self, sink: &mut impl Sink) -> Result<(), Failure> {
        sink.take(&self.symbols[WINDOW..WINDOW + BATCH])?;
        self.symbols.copy_within(BATCH..self.end, 0);
        self.end -= BATCH;
        Ok(())
    }

    /// Hands on all that was not yet.
    fn flush(&mut self, sink: &mut impl Sink) -> Result<(), Failure> {
        if self.end >= WINDOW + BATCH {
            self.flush_batch(sink)?;
        }
        sink.take(&self.symbols[WINDOW..self.end])?;
        self.symbols.copy_within(self.end - WINDOW..self.end, 0);
        self.end = WINDOW;
        Ok(())
    }
}

/// Decodes words behind `end` until a batch is full or the block has ended, and says where it ends
/// now, and whether the block has.
fn words(
    codes: &Codes,
    symbols: &mut [u16; WINDOW + BATCH + BEYOND],
    mut end: usize,
    bits: &mut Bits<'_>,
) -> Result<(usize, bool), Failure> {
    while end < WINDOW + BATCH {
        bits.refill();
        let mut entry = codes.literal(bits);
        if entry & codes::LITERAL != 0 {
            bits.skip(codes::width(entry));
            symbols[end] = (entry >> 16) as u16 & 0xFF;
            end += 1;
            entry = codes.literal(bits);
            if entry & codes::LITERAL != 0 {
                bits.skip(codes::width(entry));
                symbols[end] = (entry >> 16) as u16 & 0xFF;
                end += 1;
                // Two words of 15 bits leave 26 of 56: enough for one more.
                entry = codes.literal(bits);
                if entry & codes::LITERAL != 0 {
                    bits.skip(codes::width(entry));
                    symbols[end] = (entry >> 16) as u16 & 0xFF;
                    end += 1;
                    continue;
                }
            }
            // The first bits of a long word are passed over already, which is no harm.
            bits.refill();
        }
        if entry & codes::OTHER != 0 {
            bits.skip(codes::width(entry));
            let is_end = entry & codes::END != 0;
            return if is_end { Ok((end, true)) } else { Err(Failure::NotDeflate) };
        }
        // A length takes 20 bits at most and a distance 28.
        let length = codes::value(entry, bits.peek());
        bits.skip(codes::width(entry));
        let entry = codes.distance(bits);
        if entry & codes::OTHER != 0 {
            return Err(Failure::NotDeflate);
        }
        let distance = codes::value(entry, bits.peek());
        bits.skip(codes::width(entry));
        copy(symbols, end, distance, length);
        end += length;
    }
    Ok((end, false))
}

/// Copies `length` symbols from `distance` before `end` to there; what lies behind may be
/// overwritten.
#[inline(always)]
fn copy(symbols: &mut [u16; WINDOW + BATCH + BEYOND], end: usize, distance: usize, length: usize) {
    // The window before is whole, and no distance is longer.
    let from = end - distance;
    if distance >= COPIED {
        let mut at = 0;
        while at < length {
            let block: [u16; COPIED] =
                *symbols[from + at..].first_chunk().expect("it is before the end");
            symbols[end + at..end + at + COPIED].copy_from_slice(&block);
            at += COPIED;
        }
    } else if distance == 1 {
        let symbol = symbols[from];
        symbols[end..end + length].fill(symbol);
    } else {
        for at in 0..length {
            symbols[end + at] = symbols[from + at];
        }
    }
}
