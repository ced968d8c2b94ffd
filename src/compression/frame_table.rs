//! The table of a layer's frames with a SHA-256 of each, inside the layer: hoist's frame table, version 1.
//!
//! zstd's seek table says where frames are, not what they have to be. This table says both, so that whoever
//! trusts it can fetch, check, decompress and write each frame alone, in any order. It lies in a skippable
//! frame of its own between the last frame and the seek table, which lists it as a frame that decodes to
//! nothing, and every zstd decoder passes over it. What it says is bound to the manifest by an annotation
//! of the layer's descriptor, which has the table's place and its SHA-256 ([`FrameTableRef`]).
//!
//! ```text
//! 5D 2A 4D 18 │ size 4 │ "hoistfrm" 8 │ version 4 │ frames 4 │ entry…            little endian
//! entry, 40 bytes: compressed size 4 │ decompressed size 4 │ SHA-256 of the compressed frame 32
//! ```
//!
//! The frames follow each other from the layer's first byte on without gaps, up to this table.
//! `docs/format.md` tells the whole of it.

use std::fmt;
use std::str::FromStr;

use crate::image::Sha256;

/// The annotation of a layer's descriptor.
pub const ANNOTATION: &str = "dev.hoist.frames";

/// The most bytes that a table may have: 1.6 million frames.
pub const TABLE_BYTES_MOST: u64 = 64 << 20;

const MAGIC: u32 = 0x184D_2A5D;
const NAME: [u8; 8] = *b"hoistfrm";
const VERSION: u32 = 1;
const HEAD_BYTES: usize = 4 + 4 + 8 + 4 + 4;
const ENTRY_BYTES: usize = 4 + 4 + 32;

const _: () = assert!(HEAD_BYTES == 24 && ENTRY_BYTES == 40);

/// A frame of a layer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameEntry {
    /// Bytes of the frame.
    pub compressed: u32,
    /// Bytes that it decodes to.
    pub decompressed: u32,
    /// Of the compressed frame.
    pub digest: Sha256,
}

/// The frames of a layer, in order.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct FrameTable {
    /// The frames.
    pub entries: Vec<FrameEntry>,
}

/// Where a layer has its table, and what the table has to be: `OFFSET+SIZE@sha256:HEX`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameTableRef {
    /// Bytes of the layer before the table: the sum of all frames.
    pub offset: u64,
    /// Bytes of the table, with the header of its skippable frame.
    pub size: u64,
    /// Of these bytes.
    pub digest: Sha256,
}

/// Why a table cannot be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FrameTableError {
    /// The annotation is none.
    #[error("{0:?} names no frame table: expected OFFSET+SIZE@sha256:HEX")]
    Reference(String),
    /// The bytes are others than the annotation says.
    #[error("the frame table has SHA-256 {actual}, and the manifest says {expected}")]
    Digest {
        /// What the manifest says.
        expected: Sha256,
        /// What is there.
        actual: Sha256,
    },
    /// The bytes are no table, or one of another version.
    #[error("the frame table is wrong: {0}")]
    Wrong(String),
}

fn wrong(what: impl ToString) -> FrameTableError {
    FrameTableError::Wrong(what.to_string())
}

impl FrameTable {
    /// The table as it stands in the layer, with its skippable frame's header.
    ///
    /// # Errors
    /// Where there are more frames than [`TABLE_BYTES_MOST`] has room for.
    pub fn to_bytes(&self) -> Result<Vec<u8>, FrameTableError> {
        let size = HEAD_BYTES + self.entries.len() * ENTRY_BYTES;
        if size as u64 > TABLE_BYTES_MOST {
            return Err(wrong(format_args!("{} frames are too many", self.entries.len())));
        }
        let mut bytes = Vec::with_capacity(size);
        let body = u32::try_from(size - 8).expect("it is below the bound");
        let frames = u32::try_from(self.entries.len()).expect("it is below the bound");
        bytes.extend_from_slice(&MAGIC.to_le_bytes());
        bytes.extend_from_slice(&body.to_le_bytes());
        bytes.extend_from_slice(&NAME);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&frames.to_le_bytes());
        for entry in &self.entries {
            bytes.extend_from_slice(&entry.compressed.to_le_bytes());
            bytes.extend_from_slice(&entry.decompressed.to_le_bytes());
            bytes.extend_from_slice(entry.digest.as_bytes());
        }
        Ok(bytes)
    }

    /// Reads the table that `reference` names from its bytes, and checks that it is the one.
    ///
    /// # Errors
    /// Where the bytes are others, or no table of this version, or one whose frames do not fill the
    /// layer up to the table.
    pub fn parse(bytes: &[u8], reference: &FrameTableRef) -> Result<Self, FrameTableError> {
        let actual = Sha256::of(bytes);
        if actual != reference.digest {
            return Err(FrameTableError::Digest { expected: reference.digest, actual });
        }
        let number = |at: usize| {
            let four = bytes.get(at..at + 4).and_then(<[u8]>::first_chunk::<4>);
            four.map(|four| u32::from_le_bytes(*four)).ok_or_else(|| wrong("it ends too early"))
        };
        if number(0)? != MAGIC || bytes.get(8..16) != Some(&NAME[..]) {
            return Err(wrong("it does not begin as one"));
        }
        if number(16)? != VERSION {
            return Err(wrong(format_args!("its version is {}, not {VERSION}", number(16)?)));
        }
        let (body, frames) = (number(4)? as usize, number(20)? as usize);
        let size = frames.checked_mul(ENTRY_BYTES).and_then(|all| all.checked_add(HEAD_BYTES));
        if size != Some(bytes.len()) || body != bytes.len() - 8 {
            return Err(wrong(format_args!("{frames} frames do not fit to {} bytes", bytes.len())));
        }
        let rows = bytes[HEAD_BYTES..].chunks_exact(ENTRY_BYTES);
        let entries: Vec<FrameEntry> = rows
            .map(|row| {
                let number = |at: usize| {
                    u32::from_le_bytes(*row[at..].first_chunk().expect("rows have 40 bytes"))
                };
                let digest = *row[8..].first_chunk().expect("rows have 40 bytes");
                FrameEntry {
                    compressed: number(0),
                    decompressed: number(4),
                    digest: Sha256::from_bytes(digest),
                }
            })
            .collect();
        let sum: u64 = entries.iter().map(|entry| u64::from(entry.compressed)).sum();
        if sum != reference.offset {
            let offset = reference.offset;
            return Err(wrong(format_args!("{offset} bytes lie before it, its frames have {sum}")));
        }
        Ok(Self { entries })
    }
}

impl fmt::Display for FrameTableRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}@{}", self.offset, self.size, self.digest)
    }
}

impl FromStr for FrameTableRef {
    type Err = FrameTableError;

    fn from_str(text: &str) -> Result<Self, FrameTableError> {
        let refuse = || FrameTableError::Reference(text.to_owned());
        let (place, digest) = text.split_once('@').ok_or_else(refuse)?;
        let (offset, size) = place.split_once('+').ok_or_else(refuse)?;
        let number = |text: &str| {
            let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
            text.parse::<u64>().ok().filter(|_| plain).ok_or_else(refuse)
        };
        let (offset, size) = (number(offset)?, number(size)?);
        if size > TABLE_BYTES_MOST || size < HEAD_BYTES as u64 {
            return Err(refuse());
        }
        Ok(Self { offset, size, digest: digest.parse().map_err(|_| refuse())? })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn table() -> impl Strategy<Value = FrameTable> {
        let entry = (any::<u32>(), any::<u32>(), any::<[u8; 32]>()).prop_map(
            |(compressed, decompressed, digest)| FrameEntry {
                compressed,
                decompressed,
                digest: Sha256::from_bytes(digest),
            },
        );
        proptest::collection::vec(entry, 0..40).prop_map(|entries| FrameTable { entries })
    }

    fn reference(table: &FrameTable, bytes: &[u8]) -> FrameTableRef {
        let offset = table.entries.iter().map(|entry| u64::from(entry.compressed)).sum();
        FrameTableRef { offset, size: bytes.len() as u64, digest: Sha256::of(bytes) }
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(table in table()) {
            let bytes = table.to_bytes().unwrap();
            let reference = reference(&table, &bytes);
            let read = FrameTable::parse(&bytes, &reference);
            prop_assert_eq!(read.as_ref(), Ok(&table));
            prop_assert_eq!(reference.to_string().parse::<FrameTableRef>(), Ok(reference));
            let short = FrameTableRef { offset: reference.offset + 1, ..reference };
            prop_assert!(FrameTable::parse(&bytes, &short).is_err());
        }

        /// A table that is not the one that the manifest binds is never taken.
        #[test]
        fn one_bit_is_enough_to_refuse_it(table in table(), at: prop::sample::Index, bit in 0..8_u8) {
            let mut bytes = table.to_bytes().unwrap();
            let reference = reference(&table, &bytes);
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            let error = FrameTable::parse(&bytes, &reference).unwrap_err();
            let is_digest = matches!(error, FrameTableError::Digest { .. });
            prop_assert!(is_digest);
        }

        /// Even where the manifest binds them.
        #[test]
        fn no_bytes_make_the_reader_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            table in table(),
            cut: prop::sample::Index,
            change: prop::sample::Index,
            value: u8,
            text in ".{0,40}",
        ) {
            for mut bytes in [bytes, table.to_bytes().unwrap()] {
                bytes.truncate(cut.index(bytes.len() + 1));
                if !bytes.is_empty() {
                    let at = change.index(bytes.len());
                    bytes[at] = value;
                }
                let reference = reference(&table, &bytes);
                if let Ok(read) = FrameTable::parse(&bytes, &reference) {
                    prop_assert_eq!(read.to_bytes().unwrap(), bytes);
                }
            }
            let _ = text.parse::<FrameTableRef>();
        }
    }

    #[test]
    fn annotations_that_are_none_are_refused() {
        let digest = Sha256::of(b"");
        for text in [
            String::new(),
            format!("1+24@{digest}x"),
            format!("+1+24@{digest}"),
            format!("1+23@{digest}"),
            format!("1+{}@{digest}", TABLE_BYTES_MOST + 1),
            format!("1+24@{}", digest.hex()),
            format!("99999999999999999999+24@{digest}"),
        ] {
            assert!(text.parse::<FrameTableRef>().is_err(), "{text}");
        }
        assert!(format!("1+24@{digest}").parse::<FrameTableRef>().is_ok());
    }
}
