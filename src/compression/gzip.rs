//! gzip (RFC 1952), one member after the other.
//!
//! ```text
//! member: 1f 8b 08 │ flags 1 │ mtime 4 │ extra flags 1 │ system 1 │ [extra] [name] [comment] [CRC 2] │ deflate… │ CRC 4 │ length 4
//! ```
//!
//! The deflate streams go through ISA-L ([`crate::sys::inflate`]); members that several threads
//! decode at once go through zlib-rs ([`Members`]), which is as fast where they are small. Both take
//! and refuse the same.

use flate2::{Crc, Decompress, FlushDecompress, Status};

use super::input::Input;
use super::{CompressionError, Format};
use crate::sys::inflate::{Inflate, Step};

/// Base-2 logarithm of deflate's largest window, which every gzip member may use.
const WINDOW_BITS: u8 = 15;

const HEADER_BYTES: usize = 10;
const TRAILER_BYTES: usize = 8;

/// Bits of the header's flags (RFC 1952, section 2.3.1).
const CHECKSUM: u8 = 1 << 1;
const EXTRA: u8 = 1 << 2;
const NAME: u8 = 1 << 3;
const COMMENT: u8 = 1 << 4;
const RESERVED: u8 = 0b1110_0000;

/// The members of a gzip stream, in order, each member's CRC and length checked.
pub(super) struct Gzip {
    inflate: Inflate,
    in_member: bool,
    /// Bytes that the current member has held so far; gzip counts them modulo 2^32.
    length: u32,
}

impl Gzip {
    pub(super) fn new() -> Self {
        Self { inflate: Inflate::new(), in_member: false, length: 0 }
    }

    /// Whether the input stands between two members.
    pub(super) fn between(&self) -> bool {
        !self.in_member
    }

    /// Fills `out` from the current member, or from a new one; short at the end of the member.
    pub(super) fn read(
        &mut self,
        input: &mut Input,
        out: &mut [u8],
    ) -> Result<usize, CompressionError> {
        let format = Format::Gzip.as_str();
        let mut filled = 0;
        while filled < out.len() {
            let piece = input.peek()?;
            let ended = piece.is_empty();
            if !self.in_member {
                if ended {
                    break;
                }
                header(input)?;
                self.inflate.reset();
                (self.in_member, self.length) = (true, 0);
                continue;
            }
            let step = match self.step(piece, &mut out[filled..]) {
                Ok(step) => step,
                Err(what) => return Err(input.corrupt(format, what)),
            };
            input.take(step.taken);
            filled += step.written;
            if step.ended {
                self.end_member(input)?;
                break;
            }
            if step.taken == 0 && step.written == 0 {
                return Err(match ended {
                    true => input.truncated(format),
                    false => input.corrupt(format, "the decoder makes no progress"),
                });
            }
        }
        Ok(filled)
    }

    /// Goes on with the member that is in work.
    pub(super) fn step(&mut self, piece: &[u8], out: &mut [u8]) -> Result<Step, &'static str> {
        let step = self.inflate.inflate(piece, out)?;
        self.passed(step.written);
        Ok(step)
    }

    /// Notes that `count` bytes of the member came from elsewhere.
    pub(super) fn passed(&mut self, count: usize) {
        self.length = self.length.wrapping_add(count as u32);
    }

    /// The member's deflate stream has ended: what is behind it is next in `input`.
    pub(super) fn end_member(&mut self, input: &mut Input) -> Result<(), CompressionError> {
        self.trailer(input)?;
        self.in_member = false;
        Ok(())
    }

    /// The decoder of the member that is in work.
    pub(super) fn inflate(&mut self) -> &mut Inflate {
        &mut self.inflate
    }

    /// Reads the member's CRC and length, of which the decoder may have taken some bytes already.
    fn trailer(&self, input: &mut Input) -> Result<(), CompressionError> {
        let (mut trailer, taken) = self.inflate.behind();
        let missing = TRAILER_BYTES - taken;
        if missing > 0 {
            trailer[taken..].copy_from_slice(exactly(input, missing)?);
            input.take(missing);
        }
        let [crc, length] = [0, 4].map(|at| {
            u32::from_le_bytes(trailer[at..at + 4].try_into().expect("a slice of four bytes"))
        });
        let what = if crc != self.inflate.crc() {
            "incorrect data check"
        } else if length != self.length {
            "incorrect length check"
        } else {
            return Ok(());
        };
        Err(input.corrupt(Format::Gzip.as_str(), what))
    }
}

/// The next `count` bytes, which are not taken yet. Where the stream ends before, all are taken.
fn exactly(input: &mut Input, count: usize) -> Result<&[u8], CompressionError> {
    let there = input.prefix(count)?.len();
    if there < count {
        input.take(there);
        return Err(input.truncated(Format::Gzip.as_str()));
    }
    input.prefix(count)
}

/// Reads a member's header.
fn header(input: &mut Input) -> Result<(), CompressionError> {
    let format = Format::Gzip.as_str();
    let mut crc = Crc::new();
    let mut take =
        |input: &mut Input, count: usize| -> Result<[u8; HEADER_BYTES], CompressionError> {
            let mut bytes = [0; HEADER_BYTES];
            bytes[..count].copy_from_slice(exactly(input, count)?);
            crc.update(&bytes[..count]);
            input.take(count);
            Ok(bytes)
        };
    // The magic number first: what is no gzip is told as that, however short it is.
    for (expected, what) in [
        (0x1F, "incorrect header check"),
        (0x8B, "incorrect header check"),
        (8, "unknown compression method"),
    ] {
        if take(input, 1)?[0] != expected {
            return Err(input.corrupt(format, what));
        }
    }
    let flags = take(input, 7)?[0];
    if flags & RESERVED != 0 {
        return Err(input.corrupt(format, "unknown header flags set"));
    }
    if flags & EXTRA != 0 {
        let [low, high, ..] = take(input, 2)?;
        for _ in 0..u16::from_le_bytes([low, high]) {
            take(input, 1)?;
        }
    }
    for text in [NAME, COMMENT] {
        // Of any length, so that nothing is kept of it.
        while flags & text != 0 && take(input, 1)?[0] != 0 {}
    }
    if flags & CHECKSUM != 0 {
        let expected = crc.sum() as u16;
        let there = exactly(input, 2)?;
        if there != expected.to_le_bytes() {
            return Err(input.corrupt(format, "header crc mismatch"));
        }
        input.take(2);
    }
    Ok(())
}

/// Inflates whole members.
pub(super) struct Members(Decompress);

impl Members {
    pub(super) fn new() -> Self {
        Self(Decompress::new_gzip(WINDOW_BITS))
    }

    /// Inflates `compressed`, whole members and nothing else, into the empty `out` without letting
    /// it grow. Whether it could.
    pub(super) fn decode(&mut self, mut compressed: &[u8], out: &mut Vec<u8>) -> bool {
        while !compressed.is_empty() {
            self.0.reset(true);
            loop {
                let (in_before, out_before) = (self.0.total_in(), out.len());
                let status = self.0.decompress_vec(compressed, out, FlushDecompress::None);
                let taken = usize::try_from(self.0.total_in() - in_before)
                    .expect("no more is taken than there is");
                compressed = &compressed[taken..];
                match status {
                    Ok(Status::StreamEnd) => break,
                    Ok(_) if taken > 0 || out.len() > out_before => {}
                    _ => return false,
                }
            }
        }
        true
    }
}
