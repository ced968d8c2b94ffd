//! zstd (RFC 8878), frame after frame, on the reference decoder's streaming context.

use zstd::zstd_safe::{self, DCtx, DParameter, InBuffer, OutBuffer};

use super::{CompressionError, Decoder, Input};

const FORMAT: &str = "zstd";

/// Base-2 logarithm of the largest window that is decoded: 128 MiB, the reference decoder's own
/// limit. A frame made with `--ultra --long=31` wants more and is refused.
const WINDOW_LOG_MAX: u32 = 27;

/// A zstd stream of any number of frames.
pub(super) struct Zstd {
    input: Input,
    context: DCtx<'static>,
    in_frame: bool,
}

impl Zstd {
    pub(super) fn new(input: Input) -> Result<Self, CompressionError> {
        let setup = |what: &str| input.corrupt(FORMAT, what);
        let mut context =
            DCtx::try_create().ok_or_else(|| setup("no memory for the decoder's state"))?;
        context
            .set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX))
            .map_err(|code| setup(zstd_safe::get_error_name(code)))?;
        Ok(Self { input, context, in_frame: false })
    }
}

impl Decoder for Zstd {
    fn read(&mut self, out: &mut [u8]) -> Result<usize, CompressionError> {
        let mut filled = 0;
        while filled < out.len() {
            let piece = self.input.peek()?;
            let ended = piece.is_empty();
            if ended && !self.in_frame {
                return Ok(filled);
            }
            let mut source = InBuffer::around(piece);
            let mut target = OutBuffer::around(&mut out[filled..]);
            let result = self.context.decompress_stream(&mut target, &mut source);
            let (taken, written) = (source.pos(), target.pos());
            self.input.take(taken);
            filled += written;
            match result {
                // 0 says that a frame is complete and written out whole.
                Ok(hint) => self.in_frame = hint != 0,
                Err(code) => {
                    return Err(self.input.corrupt(FORMAT, zstd_safe::get_error_name(code)));
                }
            }
            if taken == 0 && written == 0 {
                return Err(if ended {
                    self.input.truncated(FORMAT)
                } else {
                    self.input.corrupt(FORMAT, "the decoder makes no progress")
                });
            }
        }
        Ok(filled)
    }
}
