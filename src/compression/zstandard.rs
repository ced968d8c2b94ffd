//! zstd (RFC 8878) on the reference decoder: one frame after the other, and many at once.

use zstd::zstd_safe::{self, DCtx, DParameter, InBuffer, OutBuffer};

use super::frames::{self, Header};
use super::input::Input;
use super::{CompressionError, Format};

/// Base-2 logarithm of [`WINDOW_BYTES_MAX`](super::WINDOW_BYTES_MAX).
const WINDOW_LOG_MAX: u32 = super::WINDOW_BYTES_MAX.ilog2();

/// The frames of a zstd stream, in order.
pub(super) struct Zstd {
    context: DCtx<'static>,
    in_frame: bool,
    /// What a frame's window may take, in bytes.
    window_bytes: u64,
}

impl Zstd {
    pub(super) fn new(input: &Input, window_bytes: u64) -> Result<Self, CompressionError> {
        let setup = |what: &str| input.corrupt(Format::Zstd.as_str(), what);
        let mut context =
            DCtx::try_create().ok_or_else(|| setup("no memory for the decoder's state"))?;
        context
            .set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX))
            .map_err(|code| setup(zstd_safe::get_error_name(code)))?;
        Ok(Self { context, in_frame: false, window_bytes })
    }

    /// Whether the input stands between two frames.
    pub(super) fn between(&self) -> bool {
        !self.in_frame
    }

    /// Fills `out` from the current frame, or from a new one; short at the end of the frame.
    pub(super) fn read(
        &mut self,
        input: &mut Input,
        out: &mut [u8],
    ) -> Result<usize, CompressionError> {
        let format = Format::Zstd.as_str();
        let mut filled = 0;
        while filled < out.len() {
            if !self.in_frame {
                self.check_window(input)?;
            }
            let piece = input.peek()?;
            let ended = piece.is_empty();
            if ended && !self.in_frame {
                break;
            }
            let mut source = InBuffer::around(piece);
            let mut target = OutBuffer::around(&mut out[filled..]);
            let result = self.context.decompress_stream(&mut target, &mut source);
            let (taken, written) = (source.pos(), target.pos());
            input.take(taken);
            filled += written;
            match result {
                // 0 says that a frame is complete and written out whole.
                Ok(hint) => self.in_frame = hint != 0,
                Err(code) => return Err(input.corrupt(format, zstd_safe::get_error_name(code))),
            }
            if !self.in_frame {
                break;
            }
            if taken == 0 && written == 0 {
                return Err(if ended {
                    input.truncated(format)
                } else {
                    input.corrupt(format, "the decoder makes no progress")
                });
            }
        }
        Ok(filled)
    }

    /// Refuses a frame whose window takes more than it may, before the decoder sets memory aside.
    fn check_window(&self, input: &mut Input) -> Result<(), CompressionError> {
        let Header::Frame(frame) = frames::header(input.prefix(frames::HEADER_BYTES_MAX)?) else {
            return Ok(());
        };
        // What is above the format's own bound is the decoder's to refuse.
        if frame.memory() > self.window_bytes && frame.window <= super::WINDOW_BYTES_MAX {
            let (needed, allowed) = (frame.memory(), self.window_bytes);
            return Err(CompressionError::Window { needed, allowed });
        }
        Ok(())
    }
}

/// Decodes whole frames.
pub(super) struct Frames(DCtx<'static>);

impl Frames {
    /// `None` where there is no memory for it.
    pub(super) fn new() -> Option<Self> {
        DCtx::try_create().map(Self)
    }

    /// Decodes `compressed`, whole frames and nothing else, into the empty `out` without letting it
    /// grow. Whether it could. No window is needed: what a frame refers to lies in `out`.
    pub(super) fn decode(&mut self, compressed: &[u8], out: &mut Vec<u8>) -> bool {
        self.0.decompress(out, compressed).is_ok()
    }
}
