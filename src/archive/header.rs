//! One header block: its fields as bytes and numbers.
//!
//! The layout is the `tar` crate's; which of the formats a block is in, and how a number is
//! written, goes as Go's reader has it.

use tar::{GnuHeader, Header, OldHeader};

use super::BLOCK_BYTES;

/// The dialect of a header, told by its magic bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Dialect {
    /// No magic: no prefix, no device numbers.
    V7,
    /// POSIX, with a prefix of 155 bytes.
    Ustar,
    /// Jörg Schilling's, with a prefix of 131 bytes and times behind it.
    Star,
    /// GNU, with sparse map and times in the prefix's place.
    Gnu,
}

/// A header block whose checksum is right.
pub(super) struct RawHeader {
    header: Header,
    pub(super) dialect: Dialect,
}

/// What is wrong with a header, in words that end a sentence.
pub(super) type Fault = String;

impl RawHeader {
    /// Takes `block` for a header.
    ///
    /// # Errors
    /// Where the checksum is wrong.
    pub(super) fn new(block: &[u8; BLOCK_BYTES]) -> Result<Self, Fault> {
        let header = Header::from_byte_slice(block).clone();
        let dialect = dialect(block);
        let raw = Self { header, dialect };
        let told = octal(&raw.old().cksum).ok_or("its checksum is no number")?;
        let (unsigned, signed) = checksums(block);
        let told = i64::try_from(told).unwrap_or(i64::MAX);
        if told != unsigned && told != signed {
            return Err(format!("its checksum is {told} and should be {unsigned}"));
        }
        Ok(raw)
    }

    pub(super) fn old(&self) -> &OldHeader {
        self.header.as_old()
    }

    pub(super) fn type_flag(&self) -> u8 {
        self.old().linkflag[0]
    }

    /// The name, with its prefix if the dialect has one.
    pub(super) fn name(&self) -> Vec<u8> {
        let name = text(&self.old().name);
        let bytes = self.header.as_bytes();
        let prefix = match self.dialect {
            Dialect::V7 | Dialect::Gnu => &[][..],
            Dialect::Ustar => text(&bytes[345..500]),
            Dialect::Star => text(&bytes[345..476]),
        };
        if prefix.is_empty() { name.to_vec() } else { [prefix, name].join(&b'/') }
    }

    pub(super) fn link_name(&self) -> &[u8] {
        text(&self.old().linkname)
    }

    /// Device numbers; 0:0 in a dialect that has none.
    ///
    /// # Errors
    /// Where a field is not a number.
    pub(super) fn device(&self) -> Result<(i64, i64), Fault> {
        let bytes = self.header.as_bytes();
        match self.dialect {
            Dialect::V7 => Ok((0, 0)),
            Dialect::Ustar | Dialect::Star | Dialect::Gnu => Ok((
                number(&bytes[329..337], "device major")?,
                number(&bytes[337..345], "device minor")?,
            )),
        }
    }

    /// The GNU header, for its sparse map and access time.
    pub(super) fn gnu(&self) -> Option<&GnuHeader> {
        // The crate's own test of the magic is the same as `dialect`'s.
        if self.dialect == Dialect::Gnu { self.header.as_gnu() } else { None }
    }
}

fn dialect(block: &[u8; BLOCK_BYTES]) -> Dialect {
    match (&block[257..263], &block[263..265], &block[508..512]) {
        (b"ustar\0", _, b"tar\0") => Dialect::Star,
        (b"ustar\0", _, _) => Dialect::Ustar,
        (b"ustar ", b" \0", _) => Dialect::Gnu,
        _ => Dialect::V7,
    }
}

/// The sum of all bytes with the checksum's own taken as spaces; taken as unsigned and, as some
/// old writers did, as signed.
fn checksums(block: &[u8; BLOCK_BYTES]) -> (i64, i64) {
    let mut block = *block;
    block[148..156].fill(b' ');
    let (mut unsigned, mut high) = (0, 0);
    // A plain loop, as the tests read all their archives without the optimizer.
    for byte in block {
        unsigned += i64::from(byte);
        high += i64::from(byte >> 7);
    }
    (unsigned, unsigned - 256 * high)
}

/// A field up to its first zero byte.
pub(super) fn text(field: &[u8]) -> &[u8] {
    field.split(|&b| b == 0).next().unwrap_or_default()
}

/// An octal number between spaces and zero bytes; an empty field is 0.
fn octal(field: &[u8]) -> Option<u64> {
    let blank = |b: &u8| *b == b' ' || *b == 0;
    let Some(first) = field.iter().position(|b| !blank(b)) else { return Some(0) };
    let last = field.iter().rposition(|b| !blank(b)).unwrap_or(first);
    let digits = std::str::from_utf8(text(&field[first..=last])).ok()?;
    // `from_str_radix` takes a sign; an archive's number has none.
    if digits.starts_with(['+', '-']) { None } else { u64::from_str_radix(digits, 8).ok() }
}

/// A number in base 256, two's complement, with the top bit of the first byte set as its mark.
fn base_256(field: &[u8]) -> Option<i64> {
    let negative = field.first()? & 0x40 != 0;
    let mut value: i128 = if negative { -1 } else { 0 };
    for (at, &byte) in field.iter().enumerate() {
        // The mark is taken away for a positive number and is part of a negative one's sign.
        let byte = if at == 0 && !negative { byte & 0x7f } else { byte };
        value = (value << 8) | i128::from(byte);
        i64::try_from(value).ok()?;
    }
    i64::try_from(value).ok()
}

/// A numeric field, octal or base 256.
///
/// # Errors
/// Where it is neither, or does not fit in 63 bits.
pub(super) fn number(field: &[u8], what: &str) -> Result<i64, Fault> {
    let value = if field.first().is_some_and(|b| b & 0x80 != 0) {
        base_256(field)
    } else {
        octal(field).and_then(|value| i64::try_from(value).ok())
    };
    value.ok_or_else(|| format!("its {what} is no number: {}", field.escape_ascii()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_base_256() {
        for (field, value) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b" 644 \0\0\0", Some(0o644)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"77777777", Some(0o77_777_777)),
            (b"0000008\0", None),
            (b"-000001\0", None),
            (b"\x80\0\0\0\0\x01\0\0", Some(65_536)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2)),
            (b"\x80\x7f\xff\xff\xff\xff\xff\xff\xff", Some(i64::MAX)),
            (b"\x80\x80\0\0\0\0\0\0\0", None),
            (b"\x81\0\0\0\0\0\0\0\0\0\0\0", None),
        ] {
            assert_eq!(number(field, "field").ok(), value, "{}", field.escape_ascii());
        }
    }
}
