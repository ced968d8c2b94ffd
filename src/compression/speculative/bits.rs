//! The bits of a deflate stream that lies in two pieces, lowest bit first (RFC 1951, section 3.1.1).

/// A reader of bits. Behind the last byte it finds zeros, and says so by
/// [`ran_out`](Self::ran_out).
#[derive(Clone)]
pub(super) struct Bits<'a> {
    part: &'a [u8],
    /// What comes behind `part`.
    next: &'a [u8],
    /// The next byte of `part` that is not in `buffer`.
    at: usize,
    /// Bytes before `part`.
    before: usize,
    /// The next bits. Above the valid ones there may be more of the same stream.
    buffer: u64,
    valid: u32,
    /// Bytes of zeros behind the end that are in `buffer` or were taken from it.
    made_up: usize,
}

impl<'a> Bits<'a> {
    /// The bits from the `bit`th on of `part` and then `next`.
    pub(super) fn new(part: &'a [u8], next: &'a [u8], bit: usize) -> Self {
        let (part, next, before, at) = match (bit / 8).checked_sub(part.len()) {
            None => (part, next, 0, bit / 8),
            Some(at) => (next, &[][..], part.len(), at.min(next.len())),
        };
        let mut bits = Self { part, next, at, before, buffer: 0, valid: 0, made_up: 0 };
        bits.refill();
        bits.skip((bit % 8) as u32);
        bits
    }

    /// Sees to it that there are 56 bits at least.
    #[inline(always)]
    pub(super) fn refill(&mut self) {
        if let Some(word) = self.part.get(self.at..).and_then(|rest| rest.first_chunk::<8>()) {
            self.buffer |= u64::from_le_bytes(*word) << self.valid;
            self.at += ((63 - self.valid) >> 3) as usize;
            self.valid |= 56;
        } else {
            self.refill_by_bytes();
        }
    }

    #[cold]
    #[inline(never)]
    fn refill_by_bytes(&mut self) {
        while self.valid < 56 {
            if self.at == self.part.len() && !self.next.is_empty() {
                self.before += self.part.len();
                self.part = std::mem::take(&mut self.next);
                self.at = 0;
            }
            let byte = self.part.get(self.at).copied().unwrap_or(0);
            if self.at < self.part.len() {
                self.at += 1;
            } else {
                self.made_up += 1;
            }
            self.buffer |= u64::from(byte) << self.valid;
            self.valid += 8;
        }
    }

    /// The bits that are there, and others above them.
    #[inline(always)]
    pub(super) fn peek(&self) -> u64 {
        self.buffer
    }

    /// Passes over `count` bits, of which there have to be as many since the last refill.
    #[inline(always)]
    pub(super) fn skip(&mut self, count: u32) {
        self.buffer >>= count;
        self.valid -= count;
    }

    /// The next `count` bits, at most 16.
    #[inline(always)]
    pub(super) fn take(&mut self, count: u32) -> u32 {
        let bits = self.buffer as u32 & ((1 << count) - 1);
        self.skip(count);
        bits
    }

    /// How many bits lie before the next one.
    pub(super) fn position(&self) -> usize {
        (self.before + self.at + self.made_up) * 8 - self.valid as usize
    }

    /// Whether bits were taken that are not there.
    pub(super) fn ran_out(&self) -> bool {
        self.made_up * 8 > self.valid as usize
    }

    /// Goes to the next whole byte.
    pub(super) fn align(&mut self) {
        self.skip(self.valid % 8);
    }

    /// Copies the next whole bytes, at most `most`, out of the pieces; the reader stands at a whole
    /// byte. Empty only where the pieces have ended.
    pub(super) fn bytes(&mut self, most: usize) -> &'a [u8] {
        let at = self.position() / 8;
        let (part, start) = match at.checked_sub(self.before) {
            Some(start) => (self.part, start),
            // The piece before, of which bits are in the buffer: left to who takes bits.
            None => return &[],
        };
        let Some(rest) = part.get(start..).filter(|rest| !rest.is_empty()) else { return &[] };
        let taken = &rest[..most.min(rest.len())];
        self.at = start + taken.len();
        (self.buffer, self.valid, self.made_up) = (0, 0, 0);
        self.refill();
        taken
    }
}
