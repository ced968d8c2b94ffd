//! Deflate (RFC 1951), inflated by ISA-L: the fastest decoder there is for one stream on one core.
//!
//! Only the raw format is left to it, and the CRC-32 of what comes out, which it makes on the way.
//! What stands around a deflate stream (gzip's header and trailer) is for the caller: ISA-L's own
//! reader of headers forgets which fields follow when a header arrives in two pieces.

#![allow(unsafe_code, reason = "calls into a C library")]

use isal_sys::igzip_lib as isal;

/// Deflate's window.
const WINDOW_BYTES: usize = 32 << 10;

/// The most bytes of one buffer that are used in one call: the library counts in 32 bits.
const CALL_BYTES_MOST: usize = 1 << 30;

/// The decoder of one deflate stream after the other.
pub struct Inflate(Box<isal::inflate_state>);

// SAFETY: the state owns what it has; its two pointers into buffers are set anew by every call and
// not followed between calls.
unsafe impl Send for Inflate {}

/// What one call did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Step {
    /// Bytes taken from the front of the input.
    pub taken: usize,
    /// Bytes written to the front of the output.
    pub written: usize,
    /// Whether the stream has ended and all of it is written.
    pub ended: bool,
}

impl Inflate {
    /// A decoder at the beginning of a stream.
    pub fn new() -> Self {
        // In its place on the heap: it is 90 KiB.
        let state = Box::<isal::inflate_state>::new_zeroed();
        // SAFETY: all of its fields are numbers, arrays of numbers and pointers, for which zero is
        // a value.
        let mut state = unsafe { state.assume_init() };
        // SAFETY: the state is a valid one to write to.
        unsafe { isal::isal_inflate_init(&raw mut *state) };
        state.crc_flag = isal::ISAL_GZIP_NO_HDR;
        Self(state)
    }

    /// A decoder that leaves the CRC out: [`crc`](Self::crc) means nothing.
    pub fn without_crc() -> Self {
        let mut inflate = Self::new();
        inflate.0.crc_flag = isal::ISAL_DEFLATE;
        inflate
    }

    /// Stands in the middle of a stream, where a block begins: `window` (at most 32 KiB) was written
    /// before, with the CRC `crc` from the beginning on, and the lowest `count` of `bits` (at most
    /// seven) come before what [`inflate`](Self::inflate) is given.
    pub fn resume(&mut self, window: &[u8], (bits, count): (u8, u32), crc: u32) {
        self.reset();
        let window = &window[window.len().saturating_sub(WINDOW_BYTES)..];
        // SAFETY: the state was reset, as it has to be; `window` is only read, and of its bytes no
        // more than are given.
        unsafe {
            isal::isal_inflate_set_dict(
                &raw mut *self.0,
                window.as_ptr().cast_mut(),
                window.len() as u32,
            );
        }
        let count = count.min(7);
        self.0.read_in = u64::from(bits) & ((1 << count) - 1);
        self.0.read_in_length = count as i32;
        self.0.crc = crc;
    }

    /// Where all that was taken is written and what comes next is the header of a block: how many
    /// bits were taken of it or lie before it, and the first of them.
    pub fn boundary(&self) -> Option<(u32, u32)> {
        let state = &*self.0;
        let is_header = state.block_state == isal::isal_block_state_ISAL_BLOCK_NEW_HDR
            || state.block_state == isal::isal_block_state_ISAL_BLOCK_HDR;
        if !is_header || state.tmp_out_processed != state.tmp_out_valid {
            return None;
        }
        let held = state.read_in_length.clamp(0, 64) as u32;
        let kept = usize::try_from(state.tmp_in_size).ok()?;
        let first = u64::from(*state.tmp_in_buffer.get(..kept)?.first().unwrap_or(&0));
        let known = state.read_in & 1_u64.checked_shl(held).map_or(u64::MAX, |bit| bit - 1);
        let bits = known | first.checked_shl(held).unwrap_or(0);
        Some((held + 8 * kept as u32, bits as u32))
    }

    /// The last bytes that were written, 32 KiB at most; where [`boundary`](Self::boundary) is.
    pub fn window(&self) -> &[u8] {
        let end = usize::try_from(self.0.tmp_out_valid).unwrap_or(0);
        &self.0.tmp_out_buffer[end.saturating_sub(WINDOW_BYTES)..end]
    }

    /// Stands at the beginning of a stream again.
    pub fn reset(&mut self) {
        // SAFETY: the state was initialized by `new`.
        unsafe { isal::isal_inflate_reset(&raw mut *self.0) };
    }

    /// Goes on with the stream. Without progress in either, the stream needs more input or more
    /// room.
    ///
    /// # Errors
    /// What is wrong with the stream; there is no going on then but by [`reset`](Self::reset).
    pub fn inflate(&mut self, input: &[u8], out: &mut [u8]) -> Result<Step, &'static str> {
        let (given, room) = (input.len().min(CALL_BYTES_MOST), out.len().min(CALL_BYTES_MOST));
        let state = &mut *self.0;
        (state.next_in, state.avail_in) = (input.as_ptr().cast_mut(), given as u32);
        (state.next_out, state.avail_out) = (out.as_mut_ptr(), room as u32);
        // SAFETY: the state was initialized by `new`; it reads at most `avail_in` bytes of `input`,
        // which it does not write to, and writes at most `avail_out` bytes to `out`. Both live
        // longer than the call.
        let code = unsafe { isal::isal_inflate(state) };
        (state.next_in, state.next_out) = (std::ptr::null_mut(), std::ptr::null_mut());
        if let Some(what) = failure(code) {
            return Err(what);
        }
        Ok(Step {
            taken: given - state.avail_in as usize,
            written: room - state.avail_out as usize,
            ended: state.block_state == isal::isal_block_state_ISAL_BLOCK_FINISH,
        })
    }

    /// The CRC-32 (RFC 1952, section 8) of what was written since the beginning of the stream.
    pub fn crc(&self) -> u32 {
        self.0.crc
    }

    /// Bytes that were taken and lie behind the end of a stream that has ended: up to eight, in the
    /// order of the input, and how many.
    pub fn behind(&self) -> ([u8; 8], usize) {
        let bits = self.0.read_in_length.clamp(0, 64) as u32;
        let whole = self.0.read_in.checked_shr(bits % 8).unwrap_or(0);
        (whole.to_le_bytes(), (bits / 8) as usize)
    }
}

// SAFETY: so it is declared in the library's crc.h, of which no bindings are made.
unsafe extern "C" {
    fn crc32_gzip_refl(init_crc: u32, buf: *const u8, len: u64) -> u32;
}

/// The CRC-32 (RFC 1952, section 8) of `bytes` behind others, of which it is `crc`; 0 for none.
pub fn crc32(crc: u32, bytes: &[u8]) -> u32 {
    // SAFETY: it reads `len` bytes from `buf` on, and nothing else.
    unsafe { crc32_gzip_refl(crc, bytes.as_ptr(), bytes.len() as u64) }
}

impl Default for Inflate {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for Inflate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Inflate")
    }
}

/// What a code of the library says is wrong.
fn failure(code: i32) -> Option<&'static str> {
    match code {
        isal::ISAL_INVALID_BLOCK => Some("invalid block"),
        isal::ISAL_INVALID_SYMBOL => Some("invalid symbol"),
        isal::ISAL_INVALID_LOOKBACK => Some("invalid distance too far back"),
        code if code < 0 => Some("invalid data"),
        _ => None,
    }
}
