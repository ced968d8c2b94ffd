//! gzip (RFC 1952) on zlib-rs, member after member.

use flate2::{Decompress, FlushDecompress, Status};

use super::{CompressionError, Decoder, Input};

const FORMAT: &str = "gzip";

/// Base-2 logarithm of deflate's largest window, which every gzip member may use.
const WINDOW_BITS: u8 = 15;

/// A gzip stream of any number of members. The inflater checks each member's CRC and length.
pub(super) struct Gzip {
    input: Input,
    inflate: Decompress,
    in_member: bool,
}

impl Gzip {
    pub(super) fn new(input: Input) -> Self {
        Self { input, inflate: Decompress::new_gzip(WINDOW_BITS), in_member: false }
    }
}

impl Decoder for Gzip {
    fn read(&mut self, out: &mut [u8]) -> Result<usize, CompressionError> {
        let mut filled = 0;
        while filled < out.len() {
            let piece = self.input.peek()?;
            let ended = piece.is_empty();
            if ended && !self.in_member {
                return Ok(filled);
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
            self.input.take(taken);
            filled += written;
            match status {
                Ok(Status::StreamEnd) => self.in_member = false,
                Ok(_) if taken > 0 || written > 0 => {}
                Ok(_) if ended => return Err(self.input.truncated(FORMAT)),
                Ok(_) => return Err(self.input.corrupt(FORMAT, "the decoder makes no progress")),
                Err(error) => {
                    let what = error.message().unwrap_or("invalid data").to_owned();
                    return Err(self.input.corrupt(FORMAT, what));
                }
            }
        }
        Ok(filled)
    }
}
