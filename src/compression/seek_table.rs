//! The table of a zstd stream's frames, at its end: zstd's seekable format, version 0.1.0
//! (`contrib/seekable_format` of the reference implementation).
//!
//! ```text
//! 5E 2A 4D 18 │ size 4 │ entry… │ frames 4 │ descriptor 1 │ B1 EA 92 8F      little endian
//!    a skippable frame │        └──────────── footer, 9 bytes ────────────┘
//! entry: compressed size 4 │ decompressed size 4 │ checksum 4, if bit 7 of the descriptor is set
//! ```
//!
//! The frames follow each other from the stream's first byte on, without gaps: skippable frames
//! among them are entries of decompressed size 0. A decoder that knows nothing of the table passes
//! over it. A checksum is the lower half of the XXH64 of what a frame decodes to.

/// Bytes at the end of a stream that say how long its table is.
pub const FOOTER_BYTES: usize = 9;

/// The most frames that a table may have, by the format.
pub const FRAMES_MAX: usize = 0x800_0000;

/// The most bytes that a frame may decode to, by the format.
pub const FRAME_CONTENT_BYTES_MAX: u32 = 0x4000_0000;

const SKIPPABLE_MAGIC: u32 = 0x184D_2A5E;
const FOOTER_MAGIC: u32 = 0x8F92_EAB1;
const HEADER_BYTES: usize = 8;
const CHECKSUMS: u8 = 0x80;
/// Bits 2 to 6 have to be 0; 0 and 1 may be anything.
const RESERVED: u8 = 0x7C;

/// What the table says of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Entry {
    /// Bytes of the frame.
    pub compressed: u32,
    /// Bytes that it decodes to; at most [`FRAME_CONTENT_BYTES_MAX`].
    pub decompressed: u32,
    /// The lower half of the XXH64 of the decoded bytes; 0 in a table without checksums.
    pub checksum: u32,
}

/// The frames of a stream, in order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SeekTable {
    checksums: bool,
    entries: Vec<Entry>,
}

/// Why a table cannot be read or written.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SeekTableError {
    /// The stream does not end with a table.
    #[error("the zstd stream ends without a seek table")]
    Missing,
    /// It ends with something like one.
    #[error("the zstd stream's seek table is wrong: {0}")]
    Wrong(String),
    /// The table cannot say it.
    #[error("a zstd seek table cannot hold {0}")]
    TooLarge(String),
}

fn wrong(what: impl ToString) -> SeekTableError {
    SeekTableError::Wrong(what.to_string())
}

fn number(bytes: &[u8], at: usize) -> u32 {
    let bytes = bytes[at..].first_chunk::<4>().expect("the caller has checked the length");
    u32::from_le_bytes(*bytes)
}

impl SeekTable {
    /// An empty table, with checksums or without.
    pub fn new(checksums: bool) -> Self {
        Self { checksums, entries: Vec::new() }
    }

    /// Whether the entries have checksums.
    pub fn has_checksums(&self) -> bool {
        self.checksums
    }

    /// The frames, in the stream's order.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Adds the next frame.
    ///
    /// # Errors
    /// [`SeekTableError::TooLarge`] where the format has no room for it.
    pub fn push(&mut self, entry: Entry) -> Result<(), SeekTableError> {
        if entry.decompressed > FRAME_CONTENT_BYTES_MAX {
            let bytes = entry.decompressed;
            return Err(SeekTableError::TooLarge(format!("a frame of {bytes} decoded bytes")));
        }
        // The skippable frame that all lies in counts its bytes in 32 bits.
        let most = (u32::MAX as usize - FOOTER_BYTES) / self.entry_bytes();
        if self.entries.len() >= FRAMES_MAX.min(most) {
            let frames = self.entries.len() + 1;
            return Err(SeekTableError::TooLarge(format!("{frames} frames")));
        }
        self.entries.push(entry);
        Ok(())
    }

    /// What has to be written behind the last frame.
    pub fn to_bytes(&self) -> Vec<u8> {
        let size = self.entries.len() * self.entry_bytes() + FOOTER_BYTES;
        let mut bytes = Vec::with_capacity(HEADER_BYTES + size);
        let mut put = |number: u32| bytes.extend_from_slice(&number.to_le_bytes());
        put(SKIPPABLE_MAGIC);
        put(u32::try_from(size).expect("push holds it below the bound"));
        for entry in &self.entries {
            put(entry.compressed);
            put(entry.decompressed);
            if self.checksums {
                put(entry.checksum);
            }
        }
        put(u32::try_from(self.entries.len()).expect("push holds it below the bound"));
        bytes.push(if self.checksums { CHECKSUMS } else { 0 });
        bytes.extend_from_slice(&FOOTER_MAGIC.to_le_bytes());
        bytes
    }

    /// How many bytes at the end of a stream its table takes, from the last of them.
    ///
    /// # Errors
    /// Where they are not the end of a table.
    pub fn length(footer: &[u8; FOOTER_BYTES]) -> Result<u64, SeekTableError> {
        let (frames, entry_bytes, _) = read_footer(footer)?;
        Ok((HEADER_BYTES + frames * entry_bytes + FOOTER_BYTES) as u64)
    }

    /// Reads a table, of which `bytes` are all that [`length`](Self::length) says, at the end of a
    /// stream of `stream_bytes`.
    ///
    /// # Errors
    /// Where it is none, or does not describe a stream of that length.
    pub fn parse(bytes: &[u8], stream_bytes: u64) -> Result<Self, SeekTableError> {
        let (_, footer) = bytes.split_last_chunk().ok_or(SeekTableError::Missing)?;
        let (frames, entry_bytes, checksums) = read_footer(footer)?;
        let size = frames * entry_bytes + FOOTER_BYTES;
        if bytes.len() != HEADER_BYTES + size {
            return Err(wrong(format_args!("{frames} frames do not fit to {} bytes", bytes.len())));
        }
        if number(bytes, 0) != SKIPPABLE_MAGIC || number(bytes, 4) as usize != size {
            return Err(wrong("it does not begin as a skippable frame"));
        }
        let rows = bytes[HEADER_BYTES..HEADER_BYTES + frames * entry_bytes].chunks(entry_bytes);
        let entries: Vec<Entry> = rows
            .map(|row| Entry {
                compressed: number(row, 0),
                decompressed: number(row, 4),
                checksum: if checksums { number(row, 8) } else { 0 },
            })
            .collect();
        if let Some(large) = entries.iter().find(|e| e.decompressed > FRAME_CONTENT_BYTES_MAX) {
            return Err(wrong(format_args!("a frame of {} decoded bytes", large.decompressed)));
        }
        let all: u64 = entries.iter().map(|entry| u64::from(entry.compressed)).sum();
        if all + bytes.len() as u64 != stream_bytes {
            let described = all + bytes.len() as u64;
            return Err(wrong(format_args!("of {stream_bytes} bytes it describes {described}")));
        }
        Ok(Self { checksums, entries })
    }

    fn entry_bytes(&self) -> usize {
        entry_bytes(self.checksums)
    }
}

fn entry_bytes(checksums: bool) -> usize {
    if checksums { 12 } else { 8 }
}

/// Frames, bytes of an entry, and whether there are checksums.
fn read_footer(footer: &[u8; FOOTER_BYTES]) -> Result<(usize, usize, bool), SeekTableError> {
    if number(footer, 5) != FOOTER_MAGIC {
        return Err(SeekTableError::Missing);
    }
    let (frames, descriptor) = (number(footer, 0) as usize, footer[4]);
    if descriptor & RESERVED != 0 {
        return Err(wrong(format_args!("reserved bits are set in its descriptor {descriptor:#x}")));
    }
    if frames > FRAMES_MAX {
        return Err(wrong(format_args!("{frames} frames are more than there may be")));
    }
    let checksums = descriptor & CHECKSUMS != 0;
    Ok((frames, entry_bytes(checksums), checksums))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn footer(bytes: &[u8]) -> &[u8; FOOTER_BYTES] {
        bytes.last_chunk().unwrap()
    }

    fn entries() -> impl Strategy<Value = Vec<Entry>> {
        let entry = (any::<u32>(), 0..=FRAME_CONTENT_BYTES_MAX, any::<u32>()).prop_map(
            |(compressed, decompressed, checksum)| Entry { compressed, decompressed, checksum },
        );
        proptest::collection::vec(entry, 0..40)
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(checksums: bool, entries in entries()) {
            let mut table = SeekTable::new(checksums);
            for mut entry in entries {
                entry.checksum *= u32::from(checksums);
                table.push(entry).unwrap();
            }
            let bytes = table.to_bytes();
            let frames: u64 = table.entries().iter().map(|e| u64::from(e.compressed)).sum();
            let stream = frames + bytes.len() as u64;
            prop_assert_eq!(SeekTable::length(footer(&bytes)), Ok(bytes.len() as u64));
            let read = SeekTable::parse(&bytes, stream);
            prop_assert_eq!(read.as_ref(), Ok(&table));
            prop_assert!(SeekTable::parse(&bytes, stream + 1).is_err());
            prop_assert!(SeekTable::parse(&bytes[1..], stream).is_err());
        }

        #[test]
        fn nothing_makes_the_reader_panic(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..200),
            whole: bool,
            stream: u64,
        ) {
            if whole && bytes.len() >= FOOTER_BYTES {
                let end = bytes.len() - 4;
                bytes[end..].copy_from_slice(&FOOTER_MAGIC.to_le_bytes());
            }
            if let Some(footer) = bytes.last_chunk() {
                let _ = SeekTable::length(footer);
            }
            let _ = SeekTable::parse(&bytes, stream);
        }
    }

    /// By the reference decoder, which knows nothing of it.
    #[test]
    fn a_decoder_passes_over_it() {
        let mut table = SeekTable::new(true);
        let mut stream = Vec::new();
        for part in [&b"first"[..], b"second"] {
            let frame = zstd::bulk::compress(part, 1).unwrap();
            let [compressed, decompressed] = [frame.len(), part.len()].map(|len| len as u32);
            table.push(Entry { compressed, decompressed, checksum: 7 }).unwrap();
            stream.extend(frame);
        }
        stream.extend(table.to_bytes());
        assert_eq!(zstd::stream::decode_all(&stream[..]).unwrap(), b"firstsecond");
    }

    #[test]
    fn what_the_format_has_no_room_for_is_refused() {
        let entry = Entry { compressed: 1, decompressed: FRAME_CONTENT_BYTES_MAX + 1, checksum: 0 };
        let error = SeekTable::new(false).push(entry).unwrap_err();
        assert!(matches!(error, SeekTableError::TooLarge(_)), "{error}");
        let mut bytes = SeekTable::new(false).to_bytes();
        let descriptor = bytes.len() - 5;
        bytes[descriptor] = 4;
        let error = SeekTable::parse(&bytes, bytes.len() as u64).unwrap_err();
        assert!(error.to_string().contains("reserved bits"), "{error}");
        assert_eq!(SeekTable::length(b"123456789"), Err(SeekTableError::Missing));
    }
}
