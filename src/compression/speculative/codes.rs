//! The prefix codes of a deflate block (RFC 1951, sections 3.2.5 to 3.2.7), as tables to decode by.
//!
//! ```text
//! entry:  31       30…16                 15…13                  12…8                  7…0
//!         literal │ byte, base, subtable │ end, subtable, other │ bits of the code │ bits with the extra ones
//! ```
//!
//! A code of up to [`LITERAL_BITS`] or [`DISTANCE_BITS`] bits is found by the next bits at once, a
//! longer one by a second look, in the table that the first one's entry names.
//!
//! What is taken for a header is what zlib takes, and less: every code has to be complete, but for
//! a distance code of one word or none. Whatever else there is goes to the serial decoder.

use super::bits::Bits;

/// The bits by which a literal or length is looked up first.
const LITERAL_BITS: u32 = 11;
/// The bits by which a distance is looked up first.
const DISTANCE_BITS: u32 = 9;
const PRECODE_BITS: u32 = 7;

const LITERALS_MOST: usize = 286;
const DISTANCES_MOST: usize = 30;
const WORD_BITS_MOST: usize = 15;

/// Set in the entry of a literal.
pub(super) const LITERAL: u32 = 1 << 31;
/// Set where an entry is neither a literal nor a length or distance.
pub(super) const OTHER: u32 = 1 << 13;
/// Set beside [`OTHER`] where the entry names a table for the bits that follow.
const SUBTABLE: u32 = 1 << 14;
/// Set beside [`OTHER`] at the end of a block.
pub(super) const END: u32 = 1 << 15;

/// A table and its subtables: for each of the 2^`BITS` next bits first, then what they name.
/// The size is a power of two, which spares a check at each look.
type Table<const SIZE: usize> = Box<[u32; SIZE]>;

/// Room for the subtables of any complete code: 286 words of 15 bits at most need 2,342 entries with
/// 11 bits first, 30 need 594 with 9 (counted by zlib's `enough`).
const LITERAL_ENTRIES: usize = 4096;
const DISTANCE_ENTRIES: usize = 1024;

/// The two codes of a block.
pub(super) struct Codes {
    literals: Table<LITERAL_ENTRIES>,
    distances: Table<DISTANCE_ENTRIES>,
    /// Whether the tables are those of fixed blocks.
    fixed: bool,
}

/// The code lengths of a dynamic block.
pub(super) struct Lengths {
    bits: [u8; LITERALS_MOST + DISTANCES_MOST + 4],
    literals: usize,
    distances: usize,
}

/// In which order the lengths of the code of code lengths come.
const PRECODE_ORDER: [usize; 19] =
    [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];

impl Lengths {
    /// Reads the header of a dynamic block behind its first three bits, if it is one.
    pub(super) fn read(bits: &mut Bits<'_>) -> Option<Self> {
        bits.refill();
        let literals = 257 + bits.take(5) as usize;
        let distances = 1 + bits.take(5) as usize;
        let count = 4 + bits.take(4) as usize;
        if literals > LITERALS_MOST || distances > DISTANCES_MOST {
            return None;
        }
        let mut precode = [0_u8; 19];
        for place in &PRECODE_ORDER[..count] {
            bits.refill();
            precode[*place] = bits.take(3) as u8;
        }
        let table = precode_table(&precode)?;
        let mut lengths =
            Self { bits: [0; LITERALS_MOST + DISTANCES_MOST + 4], literals, distances };
        let (mut at, all) = (0, literals + distances);
        while at < all {
            bits.refill();
            let entry = table[(bits.peek() & ((1 << PRECODE_BITS) - 1)) as usize];
            bits.skip(u32::from(entry >> 5));
            let (times, value) = match entry & 31 {
                length @ 0..=15 => (1, length),
                16 => (3 + bits.take(2) as usize, *lengths.bits.get(at.checked_sub(1)?)?),
                17 => (3 + bits.take(3) as usize, 0),
                _ => (11 + bits.take(7) as usize, 0),
            };
            if at + times > all {
                return None;
            }
            lengths.bits[at..at + times].fill(value);
            at += times;
        }
        (!bits.ran_out() && lengths.are_codes()).then_some(lengths)
    }

    /// Whether the lengths make codes that are decoded here.
    fn are_codes(&self) -> bool {
        let (literals, distances) = self.split();
        literals[256] != 0
            && is_complete(literals)
            && (is_complete(distances) || is_single(distances))
    }

    fn split(&self) -> (&[u8], &[u8]) {
        self.bits[..self.literals + self.distances].split_at(self.literals)
    }
}

/// How much of all words the words of these lengths take, in 2^-15.
fn taken(lengths: &[u8]) -> u32 {
    lengths.iter().filter(|&&bits| bits > 0).map(|&bits| 1 << (WORD_BITS_MOST as u8 - bits)).sum()
}

fn is_complete(lengths: &[u8]) -> bool {
    taken(lengths) == 1 << WORD_BITS_MOST
}

/// No word, or one of one bit.
fn is_single(lengths: &[u8]) -> bool {
    let mut words = lengths.iter().filter(|&&bits| bits > 0);
    words.next().is_none_or(|&bits| bits == 1) && words.next().is_none()
}

/// For the next seven bits: the length of the code's word in the upper three bits, what it means
/// below.
fn precode_table(lengths: &[u8; 19]) -> Option<[u8; 1 << PRECODE_BITS]> {
    if !is_complete(lengths) {
        return None;
    }
    let mut table = [0; 1 << PRECODE_BITS];
    let mut word = 0_u32;
    for bits in 1..=PRECODE_BITS {
        for (symbol, _) in lengths.iter().enumerate().filter(|(_, l)| u32::from(**l) == bits) {
            let reversed = word.reverse_bits() >> (32 - bits);
            for at in (reversed as usize..table.len()).step_by(1 << bits) {
                table[at] = (bits as u8) << 5 | symbol as u8;
            }
            word += 1;
        }
        word <<= 1;
    }
    Some(table)
}

impl Codes {
    pub(super) fn new() -> Self {
        Self {
            literals: Box::new([0; LITERAL_ENTRIES]),
            distances: Box::new([0; DISTANCE_ENTRIES]),
            fixed: false,
        }
    }

    /// Becomes the codes of a dynamic block.
    pub(super) fn set(&mut self, lengths: &Lengths) {
        let (literals, distances) = lengths.split();
        self.fixed = false;
        build(&mut self.literals[..], LITERAL_BITS, literals, literal);
        build(&mut self.distances[..], DISTANCE_BITS, distances, distance);
    }

    /// Becomes the codes of a fixed block.
    pub(super) fn set_fixed(&mut self) {
        if std::mem::replace(&mut self.fixed, true) {
            return;
        }
        let mut lengths = [8; 288];
        lengths[144..256].fill(9);
        lengths[256..280].fill(7);
        build(&mut self.literals[..], LITERAL_BITS, &lengths, literal);
        build(&mut self.distances[..], DISTANCE_BITS, &[5; 32], distance);
    }

    /// The entry of the next literal or length. It passes over the first bits of a long word.
    #[inline(always)]
    pub(super) fn literal(&self, bits: &mut Bits<'_>) -> u32 {
        next(&self.literals, LITERAL_BITS, bits)
    }

    /// The entry of the next distance. It passes over the first bits of a long word.
    #[inline(always)]
    pub(super) fn distance(&self, bits: &mut Bits<'_>) -> u32 {
        next(&self.distances, DISTANCE_BITS, bits)
    }
}

/// The entry of the next word in a table that is looked into by so many bits first.
#[inline(always)]
fn next<const ENTRIES: usize>(table: &[u32; ENTRIES], first_bits: u32, bits: &mut Bits<'_>) -> u32 {
    let entry = table[(bits.peek() & ((1 << first_bits) - 1)) as usize];
    if entry & (OTHER | SUBTABLE) == OTHER | SUBTABLE {
        bits.skip(first_bits);
        return table[named(entry, bits) % ENTRIES];
    }
    entry
}

/// Where the entry of a long word is.
#[inline(always)]
fn named(entry: u32, bits: &Bits<'_>) -> usize {
    let width = entry & 0xFF;
    (entry >> 16 & 0x7FFF) as usize + (bits.peek() & ((1 << width) - 1)) as usize
}

/// The value of a length or distance: its base and what the extra bits in `word` add.
#[inline(always)]
pub(super) fn value(entry: u32, word: u64) -> usize {
    let (all, code) = (entry & 0xFF, entry >> 8 & 0x1F);
    ((entry >> 16) as u64 + ((word & ((1 << all) - 1)) >> code)) as usize
}

/// The bits that an entry's word takes, with the extra bits.
#[inline(always)]
pub(super) fn width(entry: u32) -> u32 {
    entry & 0xFF
}

/// The entry of a literal or length without its code's bits.
fn literal(symbol: usize) -> u32 {
    match symbol {
        0..=255 => LITERAL | (symbol as u32) << 16,
        256 => OTHER | END,
        257..=264 => (symbol as u32 - 254) << 16,
        265..=284 => {
            let (extra, step) = ((symbol - 261) / 4, (symbol - 261) % 4);
            (((4 + step) << extra) as u32 + 3) << 16 | extra as u32
        }
        285 => 258 << 16,
        // Only fixed blocks have words for them, which mean nothing.
        _ => OTHER,
    }
}

/// The entry of a distance without its code's bits.
fn distance(symbol: usize) -> u32 {
    match symbol {
        0..=3 => (symbol as u32 + 1) << 16,
        4..=29 => {
            let (extra, step) = (symbol / 2 - 1, symbol % 2);
            (((2 + step) << extra) as u32 + 1) << 16 | extra as u32
        }
        _ => OTHER,
    }
}

/// Fills a table for words of these lengths, which are a complete code, or a word of one bit or
/// none; what no word begins means nothing.
fn build(table: &mut [u32], first_bits: u32, lengths: &[u8], entry: fn(usize) -> u32) {
    table[..1 << first_bits].fill(OTHER);
    // The symbols in the order of their words: by length, then by number.
    let mut places = [0_usize; WORD_BITS_MOST + 2];
    for &bits in lengths {
        places[usize::from(bits) + 1] += 1;
    }
    let none = places[1];
    let mut before = 0;
    for place in &mut places {
        before += *place;
        *place = before;
    }
    let mut ordered = [0_u16; 288];
    for (symbol, &bits) in lengths.iter().enumerate() {
        ordered[places[usize::from(bits)]] = symbol as u16;
        places[usize::from(bits)] += 1;
    }
    let ordered = &ordered[none..lengths.len()];
    let mut next_free = 1_usize << first_bits;
    let (mut word, mut last_bits) = (0_u32, 0);
    // The table that words with these first bits are in, and how many bits it takes.
    let mut subtable = (u32::MAX, 0_usize, 0_u32);
    for (place, &symbol) in ordered.iter().enumerate() {
        let bits = u32::from(lengths[usize::from(symbol)]);
        word <<= bits - last_bits;
        last_bits = bits;
        let reversed = word.reverse_bits() >> (32 - bits);
        let meaning = entry(usize::from(symbol));
        if bits <= first_bits {
            let meaning = meaning + (bits << 8 | bits);
            for at in (reversed as usize..1 << first_bits).step_by(1 << bits) {
                table[at] = meaning;
            }
        } else {
            let prefix = reversed & ((1 << first_bits) - 1);
            if subtable.0 != prefix {
                let width = subtable_bits(lengths, &ordered[place..], first_bits);
                subtable = (prefix, next_free, width);
                next_free += 1 << width;
                table[prefix as usize] = OTHER | SUBTABLE | (subtable.1 as u32) << 16 | width;
            }
            let (_, base, width) = subtable;
            let rest = bits - first_bits;
            let meaning = meaning + (rest << 8 | rest);
            for at in ((reversed >> first_bits) as usize..1 << width).step_by(1 << rest) {
                table[base + at] = meaning;
            }
        }
        word += 1;
    }
}

/// How many bits behind the first ones tell the words apart that begin as the first of `symbols`,
/// which are ordered by their words: so many that a complete code's words fill the table.
fn subtable_bits(lengths: &[u8], symbols: &[u16], first_bits: u32) -> u32 {
    let length = |symbol: u16| u32::from(lengths[usize::from(symbol)]);
    let mut width = length(symbols[0]) - first_bits;
    let mut filled = 0_u32;
    for &symbol in symbols {
        let rest = length(symbol) - first_bits;
        if rest > width {
            filled <<= rest - width;
            width = rest;
        }
        filled += 1 << (width - rest);
        if filled >= 1 << width {
            break;
        }
    }
    width
}
