//! gzip (RFC 1952) on zlib-rs: one member after the other, and many at once.

use flate2::{Decompress, FlushDecompress, Status};

use super::input::Input;
use super::{CompressionError, Format};

/// Base-2 logarithm of deflate's largest window, which every gzip member may use.
const WINDOW_BITS: u8 = 15;

/// The members of a gzip stream, in order. The inflater checks each member's CRC and length.
pub(super) struct Gzip {
    inflate: Decompress,
    in_member: bool,
}

impl Gzip {
    pub(super) fn new() -> Self {
        Self { inflate: Decompress::new_gzip(WINDOW_BITS), in_member: false }
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
            if ended && !self.in_member {
                break;
            }
            if !self.in_member && self.inflate.total_in() > 0 {
                self.inflate.reset(true);
            }
            self.in_member = true;
            let (in_before, out_before) = (self.inflate.total_in(), self.inflate.total_out());
            let status = self.inflate.decompress(piece, &mut out[filled..], FlushDecompress::None);
            let taken = usize::try_from(self.inflate.total_in() - in_before)
                .expect("no more is taken than the piece has");
            let written = usize::try_from(self.inflate.total_out() - out_before)
                .expect("no more is written than the buffer takes");
            input.take(taken);
            filled += written;
            match status {
                Ok(Status::StreamEnd) => {
                    self.in_member = false;
                    break;
                }
                Ok(_) if taken > 0 || written > 0 => {}
                Ok(_) if ended => return Err(input.truncated(format)),
                Ok(_) => return Err(input.corrupt(format, "the decoder makes no progress")),
                Err(error) => {
                    let what = error.message().unwrap_or("invalid data").to_owned();
                    return Err(input.corrupt(format, what));
                }
            }
        }
        Ok(filled)
    }
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
