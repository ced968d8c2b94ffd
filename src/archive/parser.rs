//! From bytes to entries.

use bytes::{Buf as _, Bytes};
use tar::GnuExtSparseHeader;

use super::fields::{fields, kind};
use super::header::{Fault, RawHeader, number, text};
use super::pax::Pax;
use super::sparse::{self, Extent};
use super::{ArchiveError, BLOCK_BYTES, Entry, Event, Kind, MAX_EXTENSION_BYTES, Source};

const BLOCK: u64 = BLOCK_BYTES as u64;

/// Reads an archive from `S`, step by step.
///
/// It goes on after the end of the archive no further than it must; what the source has behind it
/// is for its owner. After an error it must not be asked again.
pub struct Parser<S> {
    source: S,
    chunk: Bytes,
    /// Bytes of the archive that were taken.
    position: u64,
    /// Extents of the current file that were not given out, last first.
    extents: Vec<Extent>,
    /// Bytes behind the current file's data, up to the next header.
    padding: u64,
    /// The current file, for messages.
    current: (String, u64),
}

/// What the headers before an entry's own one say of it.
#[derive(Default)]
struct Extensions {
    pax: Pax,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl<S: Source> Parser<S> {
    /// A parser at the beginning of an archive.
    pub fn new(source: S) -> Self {
        Self {
            source,
            chunk: Bytes::new(),
            position: 0,
            extents: Vec::new(),
            padding: 0,
            current: ("the first header".to_owned(), 0),
        }
    }

    /// Bytes of the archive that were taken so far.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Bytes that the source gave and that were not taken.
    pub fn unread(&self) -> usize {
        self.chunk.len()
    }

    /// The next step; `None` at the end of the archive.
    ///
    /// # Errors
    /// Where the source fails, or its bytes are not an archive.
    #[allow(clippy::should_implement_trait, reason = "an iterator would hide that errors end it")]
    pub fn next(&mut self) -> Result<Option<Event>, ArchiveError> {
        if let Some(extent) = self.extents.last_mut() {
            let offset = extent.offset;
            let length = extent.length;
            let bytes = self.take(length)?;
            let taken = bytes.len() as u64;
            // Taken again, as reading borrowed the parser; it is still the same.
            let extent = self.extents.last_mut().expect("reading leaves the extents alone");
            extent.offset += taken;
            extent.length -= taken;
            if extent.length == 0 {
                self.extents.pop();
            }
            return Ok(Some(Event::Data { offset, bytes }));
        }
        // The last file's padding may be missing.
        let padding = std::mem::take(&mut self.padding);
        self.skip(padding)?;
        Ok(self.entry()?.map(|entry| Event::Entry(Box::new(entry))))
    }

    /// Reads headers up to and with an entry's own.
    fn entry(&mut self) -> Result<Option<Entry>, ArchiveError> {
        let mut extensions = Extensions::default();
        loop {
            let offset = self.position;
            let Some(block) = self.header_block()? else { return Ok(None) };
            let raw = RawHeader::new(&block).map_err(|what| self.malformed(offset, what))?;
            self.current = (String::from_utf8_lossy(&raw.name()).into_owned(), offset);
            match raw.type_flag() {
                b'x' => {
                    let data = self.extension(&raw)?;
                    extensions.pax =
                        Pax::parse(&data).map_err(|what| self.malformed(offset, what))?;
                }
                b'g' => {
                    self.extension(&raw)?;
                    extensions = Extensions::default();
                }
                b'L' => extensions.long_name = Some(text(&self.extension(&raw)?).to_vec()),
                b'K' => extensions.long_link = Some(text(&self.extension(&raw)?).to_vec()),
                _ => return self.own_header(&raw, extensions, offset).map(Some),
            }
        }
    }

    /// The next header's block; `None` at the end, which is a zero block followed by another or by
    /// nothing, or just nothing.
    fn header_block(&mut self) -> Result<Option<[u8; BLOCK_BYTES]>, ArchiveError> {
        let offset = self.position;
        let block = self.block()?;
        if block != Some([0; BLOCK_BYTES]) {
            return Ok(block);
        }
        match self.block()? {
            None => Ok(None),
            Some(second) if second == [0; BLOCK_BYTES] => Ok(None),
            Some(_) => {
                Err(self.malformed(offset, "one block of zeros is followed by something".into()))
            }
        }
    }

    /// The data of an extension's header.
    fn extension(&mut self, raw: &RawHeader) -> Result<Vec<u8>, ArchiveError> {
        let offset = self.current.1;
        let size = number(&raw.old().size, "size").map_err(|what| self.malformed(offset, what))?;
        let size = u64::try_from(size).ok().filter(|&size| size <= MAX_EXTENSION_BYTES);
        let Some(size) = size else {
            let what = format!("its extension is larger than {MAX_EXTENSION_BYTES} bytes");
            return Err(self.malformed(offset, what));
        };
        let data = self.read(size)?;
        self.skip(padding_of(size))?;
        Ok(data)
    }

    fn own_header(
        &mut self,
        raw: &RawHeader,
        extensions: Extensions,
        offset: u64,
    ) -> Result<Entry, ArchiveError> {
        let Extensions { mut pax, long_name, long_link } = extensions;
        let link = long_link
            .filter(|name| !name.is_empty())
            .or_else(|| pax.link_path.take())
            .unwrap_or_else(|| raw.link_name().to_vec());
        let mut entry = fields(raw, &pax).map_err(|what| self.malformed(offset, what))?;
        entry.offset = offset;
        entry.name = long_name
            .filter(|name| !name.is_empty())
            .or_else(|| pax.path.take())
            .unwrap_or_else(|| raw.name());
        self.current = (entry.display_name(), offset);
        entry.kind = kind(raw, &entry.name, link).map_err(|what| self.malformed(offset, what))?;
        entry.xattrs = std::mem::take(&mut pax.xattrs);
        if matches!(entry.kind, Kind::Regular { .. }) {
            self.data_of(raw, &pax, &mut entry)?;
        } else {
            // Whatever the size says: such entries have no data.
            (entry.size, entry.stored) = (0, 0);
        }
        Ok(entry)
    }

    /// Finds out where a regular file's data lie.
    fn data_of(
        &mut self,
        raw: &RawHeader,
        pax: &Pax,
        entry: &mut Entry,
    ) -> Result<(), ArchiveError> {
        let offset = entry.offset;
        let in_archive = entry.stored;
        self.padding = padding_of(in_archive);
        if raw.type_flag() == b'S' {
            let map = self.old_gnu_map(raw, entry)?;
            return self.sparse(map, entry);
        }
        let version = (&pax.sparse.major[..], &pax.sparse.minor[..]);
        let map = match (version, &pax.sparse.map) {
            ((b"1", b"0"), _) => self.map_in_data(entry)?,
            ((b"0", b"0" | b"1") | (b"", b""), Some(numbers)) => {
                sparse::pairs(numbers, pax.sparse.block_count)
                    .map_err(|what| self.malformed(offset, what))?
            }
            ((b"0", b"0" | b"1"), None) => Vec::new(),
            // No sparse file, or of a version that nobody wrote yet: its data as they are.
            _ => {
                if in_archive > 0 {
                    self.extents = vec![Extent { offset: 0, length: in_archive }];
                }
                return Ok(());
            }
        };
        if !pax.sparse.name.is_empty() {
            entry.name.clone_from(&pax.sparse.name);
            self.current.0 = entry.display_name();
        }
        if let Some(size) = pax.sparse.real_size {
            entry.size = u64::try_from(size)
                .map_err(|_| self.malformed(offset, "its size is negative".into()))?;
        }
        self.sparse(map, entry)
    }

    fn sparse(&mut self, map: Vec<(i64, i64)>, entry: &mut Entry) -> Result<(), ArchiveError> {
        let checked = sparse::check(map, entry.size, entry.stored);
        self.extents = checked.map_err(|what| self.malformed(entry.offset, what))?;
        self.extents.reverse();
        entry.kind = Kind::Regular { sparse: true };
        Ok(())
    }

    /// The map in an old GNU header and in the blocks behind it.
    fn old_gnu_map(
        &mut self,
        raw: &RawHeader,
        entry: &mut Entry,
    ) -> Result<Vec<(i64, i64)>, ArchiveError> {
        let offset = entry.offset;
        let Some(gnu) = raw.gnu() else {
            return Err(self.malformed(offset, "it is sparse, but no GNU header".into()));
        };
        let mut map = Vec::new();
        let size = number(&gnu.realsize, "real size").and_then(|size| {
            sparse::old_gnu(&gnu.sparse, &mut map)?;
            u64::try_from(size).map_err(|_| "its real size is negative".to_owned())
        });
        entry.size = size.map_err(|what| self.malformed(offset, what))?;
        let mut more = gnu.isextended[0] != 0;
        while more {
            if map.len() as u64 * 24 > MAX_EXTENSION_BYTES {
                return Err(self.malformed(offset, "its sparse map is too long".into()));
            }
            let block = self.block()?.ok_or_else(|| self.truncated())?;
            let mut extended = GnuExtSparseHeader::new();
            extended.as_mut_bytes().copy_from_slice(&block);
            sparse::old_gnu(extended.sparse(), &mut map)
                .map_err(|what| self.malformed(offset, what))?;
            more = extended.is_extended();
        }
        Ok(map)
    }

    /// The map of version 1.0, which stands before the data and is not part of them.
    fn map_in_data(&mut self, entry: &mut Entry) -> Result<Vec<(i64, i64)>, ArchiveError> {
        let offset = entry.offset;
        let mut lines = sparse::Lines::default();
        let mut taken = 0;
        loop {
            if taken + BLOCK > entry.stored || taken >= MAX_EXTENSION_BYTES {
                return Err(self.malformed(offset, "its sparse map has no end".into()));
            }
            let block = self.block()?.ok_or_else(|| self.truncated())?;
            taken += BLOCK;
            let map = lines.feed(&block).map_err(|what| self.malformed(offset, what))?;
            if let Some(map) = map {
                entry.stored -= taken;
                return Ok(map);
            }
        }
    }

    /// Makes sure that there are bytes in the chunk; false at the end of the source.
    fn fill(&mut self) -> Result<bool, ArchiveError> {
        while self.chunk.is_empty() {
            // The used-up chunk goes first: its memory may be what the source waits for.
            self.chunk = Bytes::new();
            match self.source.next_bytes().map_err(ArchiveError::Source)? {
                Some(bytes) => self.chunk = bytes,
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Between 1 and `most` bytes, of one chunk.
    fn take(&mut self, most: u64) -> Result<Bytes, ArchiveError> {
        if !self.fill()? {
            return Err(self.truncated());
        }
        let count = self.chunk.len().min(usize::try_from(most).unwrap_or(usize::MAX));
        self.position += count as u64;
        Ok(self.chunk.split_to(count))
    }

    /// A block; `None` if the source ends before it.
    fn block(&mut self) -> Result<Option<[u8; BLOCK_BYTES]>, ArchiveError> {
        let mut block = [0; BLOCK_BYTES];
        let mut filled = 0;
        while filled < BLOCK_BYTES {
            if !self.fill()? {
                return if filled == 0 { Ok(None) } else { Err(self.truncated()) };
            }
            let count = self.chunk.len().min(BLOCK_BYTES - filled);
            block[filled..filled + count].copy_from_slice(&self.chunk[..count]);
            self.chunk.advance(count);
            self.position += count as u64;
            filled += count;
        }
        Ok(Some(block))
    }

    /// `size` bytes, at most [`MAX_EXTENSION_BYTES`].
    fn read(&mut self, size: u64) -> Result<Vec<u8>, ArchiveError> {
        let mut data = Vec::new();
        while (data.len() as u64) < size {
            let bytes = self.take(size - data.len() as u64)?;
            data.extend_from_slice(&bytes);
        }
        Ok(data)
    }

    /// Passes over `count` bytes, or as many as there are.
    fn skip(&mut self, mut count: u64) -> Result<(), ArchiveError> {
        while count > 0 && self.fill()? {
            count -= self.take(count)?.len() as u64;
        }
        Ok(())
    }

    fn truncated(&self) -> ArchiveError {
        ArchiveError::Truncated { offset: self.position, what: format!("{:?}", self.current.0) }
    }

    fn malformed(&self, offset: u64, what: Fault) -> ArchiveError {
        ArchiveError::Malformed { name: self.current.0.clone(), offset, what }
    }
}

/// Bytes from the end of `size` bytes to the next block.
fn padding_of(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK
}
