//! Where in a deflate stream a block seems to begin.
//!
//! Nothing marks it. But the header of a dynamic block (RFC 1951, section 3.2.7) has to make three
//! prefix codes that are complete, which random bits do once in some 10^10 places; and a stored
//! block has its length twice, which is less, so that the block behind it has to be one too. Fixed
//! blocks cannot be told from anything. What is found is a guess all the same, which the end of the
//! part before proves or disproves.

use super::bits::Bits;
use super::codes::Lengths;

/// Where a block begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Start {
    /// A dynamic block that is not the last: the bit of its header.
    Dynamic(usize),
    /// A stored block that is not the last: the byte of its length. Between its header and that
    /// there are up to seven bits of nothing, so that where the header is cannot be told.
    Stored(usize),
}

impl Start {
    /// The bytes before it that are needed to come to it.
    pub(super) fn byte(self) -> usize {
        match self {
            Self::Dynamic(bit) => bit.div_ceil(8),
            Self::Stored(byte) => byte,
        }
    }

    /// What a decoder that is given the bytes from [`byte`](Self::byte) on has to have had of the
    /// block, as the lowest bits and how many: of `bytes`, which it is in, or the header itself.
    pub(super) fn bits_before(self, bytes: &[u8]) -> (u8, u32) {
        match self {
            Self::Dynamic(bit) if bit.is_multiple_of(8) => (0, 0),
            Self::Dynamic(bit) => (bytes[bit / 8] >> (bit % 8), 8 - (bit % 8) as u32),
            Self::Stored(_) => (0, 3),
        }
    }

    /// The same place, where so many bytes come before.
    pub(super) fn behind(self, bytes: usize) -> Self {
        match self {
            Self::Dynamic(bit) => Self::Dynamic(bytes * 8 + bit),
            Self::Stored(byte) => Self::Stored(bytes + byte),
        }
    }

    /// Whether a block whose header is at `bit`, and begins with the lowest bits of `header`, begins
    /// here.
    pub(super) fn is_at(self, bit: usize, header: u32) -> bool {
        match self {
            Self::Dynamic(at) => at == bit,
            Self::Stored(at) => header & 7 == 0 && (bit + 3).div_ceil(8) == at,
        }
    }
}

/// The first block that seems to begin in `bytes`, with all of its header there: what comes behind
/// them makes no difference.
pub(super) fn first(bytes: &[u8]) -> Option<Start> {
    let dynamic = first_dynamic(bytes);
    let until = dynamic.map_or(bytes.len(), |bit| bit / 8);
    first_stored(&bytes[..until], bytes).or(dynamic.map(Start::Dynamic))
}

/// How many places are looked at at once; their headers' first 13 bits are in a word of 64.
const PLACES: usize = 48;

fn first_dynamic(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    // Three bits of header, 14 of counts, 57 of code lengths, from any bit of the 48.
    while let Some(window) = bytes.get(at..).and_then(|rest| rest.first_chunk::<16>()) {
        let word = u64::from_le_bytes(*window.first_chunk().expect("eight of sixteen"));
        let mut places = plausible(word) & ((1 << PLACES) - 1);
        if places != 0 {
            let window = u128::from_le_bytes(*window);
            while places != 0 {
                let place = places.trailing_zeros();
                places &= places - 1;
                if precode_is_complete((window >> place) as u64, (window >> (place + 17)) as u64) {
                    let bit = at * 8 + place as usize;
                    if is_dynamic(bytes, bit) {
                        return Some(bit);
                    }
                }
            }
        }
        at += PLACES / 8;
    }
    None
}

/// Bit i says whether the 13 bits from i on may begin a dynamic block: not the last one, of type 2,
/// at most 286 literals and 30 distances.
fn plausible(word: u64) -> u64 {
    let pairs = word & word >> 1;
    let fours = pairs & pairs >> 2;
    !word & !(word >> 1) & word >> 2 & !(fours >> 4) & !(fours >> 9)
}

/// What four code lengths of three bits take of all words, in 2^-7.
static TAKEN: [u16; 4096] = {
    let mut table = [0; 4096];
    let mut four = 0;
    while four < 4096 {
        let mut rest = four;
        while rest != 0 {
            if rest & 7 != 0 {
                table[four] += 128 >> (rest & 7);
            }
            rest >>= 3;
        }
        four += 1;
    }
    table
};

/// Whether the code of code lengths of the header in `header`, whose lengths are `lengths`, has as
/// many words as it can have.
fn precode_is_complete(header: u64, lengths: u64) -> bool {
    let count = 4 + (header >> 13 & 15);
    let lengths = lengths & ((1 << (3 * count)) - 1);
    let four = |place: u32| TAKEN[(lengths >> (12 * place) & 0xFFF) as usize];
    four(0) + four(1) + four(2) + four(3) + four(4) == 128
}

fn is_dynamic(bytes: &[u8], bit: usize) -> bool {
    let mut bits = Bits::new(bytes, &[], bit);
    bits.refill();
    bits.take(3) == 0b100 && Lengths::read(&mut bits).is_some()
}

fn first_stored(searched: &[u8], bytes: &[u8]) -> Option<Start> {
    // The byte before the length ends with the header at least.
    let is_header = |window: &[u8]| {
        window[0] >> 5 == 0 && window[1] ^ window[3] == 0xFF && window[2] ^ window[4] == 0xFF
    };
    searched
        .windows(5)
        .enumerate()
        .filter(|(_, window)| is_header(window))
        .map(|(at, _)| at + 1)
        .find(|&at| is_stored(bytes, at))
        .map(Start::Stored)
}

/// Whether a stored block with its length at `at` is followed by blocks.
fn is_stored(bytes: &[u8], mut at: usize) -> bool {
    // Two of them one behind the other are 54 bits that are known.
    for is_second in [false, true] {
        let mut bits = Bits::new(bytes, &[], at * 8);
        bits.refill();
        let (length, check) = (bits.take(16), bits.take(16));
        if length ^ check != 0xFFFF {
            return false;
        }
        if is_second {
            break;
        }
        at += 4 + length as usize;
        let is_flush = length == 0;
        bits = Bits::new(bytes, &[], at * 8);
        bits.refill();
        let header = bits.take(3);
        if bits.ran_out() {
            return false;
        }
        match header {
            0b100 => return Lengths::read(&mut bits).is_some(),
            0b000 if !is_flush => at += 1,
            // With nothing in it a stored block is 35 bits that are known, which is enough.
            _ => return is_flush && header & 0b110 != 0b110,
        }
    }
    true
}
