//! The data of regular files, appended to the image as they arrive.

use std::fs::File;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::mem::size_of;

use super::ImageError;
use super::format::{BlockSize, CHUNK_BITS_MAX, HEAD_BYTES, HOLE, PAGE, PAGE_BYTES};

/// Small pieces are collected up to this, so that a thousand small files are one call.
const BUFFER_BYTES: usize = 1 << 20;

/// Larger pieces go to the file as they are, without being copied.
const COPIED_BYTES: usize = 32 << 10;

/// A file of so many bytes begins at a page's beginning of the image, whatever its blocks: its pages
/// are then the image's, and what that wastes is next to nothing of it.
const PAGED_BYTES: u64 = 128 << 10;

/// Chunks that a file with holes may always have; more only in proportion to its data.
const CHUNKS_FREE: u64 = 64;

/// Bytes of data for each further chunk. Four bytes of index are then never more than the data's
/// 128th part, however an archive lays its holes.
const BYTES_A_CHUNK: u64 = 512;

/// Where the data of a regular file are in the image.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FileData {
    pub(super) size: u64,
    pub(super) place: DataPlace,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum DataPlace {
    /// In one piece from a block on.
    Plain { block: u32 },
    /// In chunks of 2^`bits` blocks; those that are not named are holes.
    Chunked { bits: u32, chunks: Vec<(u32, u32)> },
}

impl FileData {
    /// No data.
    pub fn empty() -> Self {
        Self { size: 0, place: DataPlace::Plain { block: 0 } }
    }

    pub(super) fn memory(&self) -> usize {
        match &self.place {
            DataPlace::Plain { .. } => 0,
            DataPlace::Chunked { chunks, .. } => chunks.len() * size_of::<(u32, u32)>(),
        }
    }

    /// How many chunks a chunked file has; 0 for one in one piece.
    pub(super) fn chunk_count(&self, block: BlockSize) -> u64 {
        match &self.place {
            DataPlace::Plain { .. } => 0,
            DataPlace::Chunked { bits, .. } => self.size.div_ceil(block.bytes() << bits),
        }
    }

    /// The block of every chunk, in order.
    pub(super) fn chunk_blocks(&self, block: BlockSize) -> Vec<u32> {
        let count = usize::try_from(self.chunk_count(block)).expect("bounded by the data");
        let mut blocks = vec![HOLE; count];
        if let DataPlace::Chunked { chunks, .. } = &self.place {
            for &(chunk, block) in chunks {
                blocks[chunk as usize] = block;
            }
        }
        blocks
    }
}

/// Appends to the image's file.
#[derive(Debug)]
pub(super) struct Appender {
    file: File,
    block: BlockSize,
    buffer: Vec<u8>,
    /// Where the next byte goes.
    position: u64,
    /// Bytes that were passed over.
    holes: u64,
}

impl Appender {
    /// Goes on behind the head of an empty file, which is written at the end.
    pub(super) fn new(mut file: File, block: BlockSize) -> Result<Self, ImageError> {
        let position = HEAD_BYTES as u64;
        file.seek(SeekFrom::Start(position)).map_err(ImageError::io("writing the image"))?;
        Ok(Self { file, block, buffer: Vec::with_capacity(BUFFER_BYTES), position, holes: 0 })
    }

    pub(super) fn block(&self) -> BlockSize {
        self.block
    }

    pub(super) fn holes(&self) -> u64 {
        self.holes
    }

    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<(), ImageError> {
        self.position += bytes.len() as u64;
        if bytes.len() < COPIED_BYTES {
            if self.buffer.len() + bytes.len() > BUFFER_BYTES {
                self.flush()?;
            }
            self.buffer.extend_from_slice(bytes);
            return Ok(());
        }
        self.flush()?;
        self.file.write_all(bytes).map_err(ImageError::io("writing the image"))
    }

    pub(super) fn flush(&mut self) -> Result<(), ImageError> {
        let written = self.file.write_all(&self.buffer);
        self.buffer.clear();
        written.map_err(ImageError::io("writing the image"))
    }

    /// Zeros; whole pages of them become a hole in the image's file, as below that no file system
    /// has holes.
    pub(super) fn zeros(&mut self, mut count: u64) -> Result<(), ImageError> {
        const ZEROS: [u8; PAGE_BYTES] = [0; PAGE_BYTES];
        let to_page = (self.position.wrapping_neg() % PAGE).min(count);
        self.append(&ZEROS[..usize::try_from(to_page).expect("less than a page")])?;
        count -= to_page;
        let whole = count - count % PAGE;
        if whole > 0 {
            self.flush()?;
            let behind = self.position.checked_add(whole);
            self.position = behind
                .filter(|position| position / self.block.bytes() < u64::from(HOLE))
                .ok_or(ImageError::TooLarge)?;
            self.holes += whole;
            let place = SeekFrom::Start(self.position);
            self.file.seek(place).map_err(ImageError::io("writing the image"))?;
        }
        self.append(&ZEROS[..usize::try_from(count - whole).expect("less than a page")])
    }

    /// Fills the current block up; the next one's number.
    pub(super) fn align(&mut self) -> Result<u32, ImageError> {
        self.align_to(self.block.bytes())
    }

    /// The same, to a multiple of a block.
    pub(super) fn align_to(&mut self, bytes: u64) -> Result<u32, ImageError> {
        self.zeros(self.position.wrapping_neg() % bytes)?;
        let block = self.position / self.block.bytes();
        // The last number means a hole.
        u32::try_from(block).ok().filter(|&block| block != HOLE).ok_or(ImageError::TooLarge)
    }

    pub(super) fn into_file(mut self) -> Result<File, ImageError> {
        self.flush()?;
        Ok(self.file)
    }
}

/// A regular file whose data arrive.
#[derive(Debug)]
pub(super) struct Arriving {
    size: u64,
    place: DataPlace,
    /// Where in the file the next byte would go, of the chunk that is being written.
    next: u64,
}

impl Arriving {
    /// Begins a file of `size` bytes of which `stored` will come.
    pub(super) fn new(size: u64, stored: u64, to: &mut Appender) -> Result<Self, ImageError> {
        let place = if stored == size {
            let block = if size < PAGED_BYTES { to.align()? } else { to.align_to(PAGE)? };
            DataPlace::Plain { block }
        } else {
            let most = CHUNKS_FREE + stored / BYTES_A_CHUNK;
            let fits = |bits: &u32| size.div_ceil(to.block.bytes() << bits) <= most;
            let bits = (0..=CHUNK_BITS_MAX).find(fits).ok_or(ImageError::TooLarge)?;
            DataPlace::Chunked { bits, chunks: Vec::new() }
        };
        Ok(Self { size, place, next: 0 })
    }

    /// Takes data at an offset, which never falls.
    pub(super) fn data(
        &mut self,
        mut offset: u64,
        mut bytes: &[u8],
        to: &mut Appender,
    ) -> Result<(), ImageError> {
        let DataPlace::Chunked { bits, chunks } = &mut self.place else {
            return to.append(bytes);
        };
        let chunk_bytes = to.block.bytes() << *bits;
        while !bytes.is_empty() {
            let chunk = u32::try_from(offset / chunk_bytes).expect("bounded by the data");
            let (begin, end) = (u64::from(chunk) * chunk_bytes, offset - offset % chunk_bytes);
            let end = end + chunk_bytes;
            if chunks.last().is_none_or(|(last, _)| *last != chunk) {
                // A chunk is whole in the image, whatever of it has data.
                if !chunks.is_empty() {
                    to.zeros(self.next.wrapping_neg() % chunk_bytes)?;
                }
                chunks.push((chunk, to.align()?));
                self.next = begin;
            }
            to.zeros(offset - self.next)?;
            let room = usize::try_from(end - offset).unwrap_or(usize::MAX);
            let (now, later) = bytes.split_at(bytes.len().min(room));
            to.append(now)?;
            offset += now.len() as u64;
            self.next = offset;
            bytes = later;
        }
        Ok(())
    }

    /// All has come.
    pub(super) fn end(mut self, to: &mut Appender) -> Result<FileData, ImageError> {
        if let DataPlace::Chunked { bits, chunks } = &mut self.place
            && !chunks.is_empty()
        {
            // Up to the chunk's end or the file's, whichever comes first.
            let in_chunk = self.next.wrapping_neg() % (to.block.bytes() << *bits);
            to.zeros(in_chunk.min(self.size.saturating_sub(self.next)))?;
            chunks.shrink_to_fit();
        }
        to.align()?;
        Ok(FileData { size: self.size, place: self.place })
    }
}
