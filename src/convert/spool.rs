//! The contents of files, compressed, in a file of our own, to be read in any order.
//!
//! A layer is a stream: what lies in the middle of a gzip member can only be had by reading all
//! before it. New layers want files in another order, so contents are taken out of the source's
//! layers once and written, as zstd at its fastest level, into one file a layer. It is cut into
//! frames of [`FRAME_BYTES`] of content each, so that any byte is one division, one read and one
//! short decompression away. What is spooled is about as large as the compressed image.

use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use super::ConvertError;

/// Bytes of content in a frame. Small, because a small file costs the decompression of a whole one;
/// zstd's own blocks are no larger.
pub(super) const FRAME_BYTES: usize = 128 << 10;

/// zstd's level: this data is written once and read once.
const LEVEL: i32 = 1;

/// Decompressed frames that a reader keeps, 8 MiB: files are often taken in the order they came.
const FRAMES_KEPT: usize = 64;

/// Where content begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Spot {
    /// Which spool.
    pub(super) spool: u32,
    /// Uncompressed bytes before it.
    pub(super) offset: u64,
}

/// A spool being written.
pub(super) struct SpoolWriter {
    out: BufWriter<File>,
    compressor: zstd::bulk::Compressor<'static>,
    buffer: Vec<u8>,
    /// Where frames begin, and where the last one ends.
    starts: Vec<u64>,
    written: u64,
}

impl SpoolWriter {
    /// A spool in a file without a name: it is gone when nobody has it open any more.
    pub(super) fn new(directory: &Path, number: usize) -> Result<Self, ConvertError> {
        let path = directory.join(format!("spool-{number}"));
        let make = || {
            let file = File::options().read(true).write(true).create_new(true).open(&path)?;
            std::fs::remove_file(&path)?;
            zstd::bulk::Compressor::new(LEVEL).map(|compressor| (file, compressor))
        };
        let (file, compressor) = make().map_err(ConvertError::disk("making", &path))?;
        let (buffer, starts) = (Vec::with_capacity(FRAME_BYTES), vec![0]);
        Ok(Self {
            out: BufWriter::with_capacity(1 << 20, file),
            compressor,
            buffer,
            starts,
            written: 0,
        })
    }

    /// Uncompressed bytes so far.
    pub(super) fn position(&self) -> u64 {
        self.written + self.buffer.len() as u64
    }

    pub(super) fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let count = bytes.len().min(FRAME_BYTES - self.buffer.len());
            self.buffer.extend_from_slice(&bytes[..count]);
            bytes = &bytes[count..];
            if self.buffer.len() == FRAME_BYTES {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        let frame = self.compressor.compress(&self.buffer)?;
        self.out.write_all(&frame)?;
        let start = self.starts.last().copied().unwrap_or(0);
        self.starts.push(start + frame.len() as u64);
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    pub(super) fn finish(mut self) -> io::Result<Spool> {
        if !self.buffer.is_empty() {
            self.flush()?;
        }
        let file = self.out.into_inner().map_err(io::IntoInnerError::into_error)?;
        Ok(Spool { file, starts: self.starts })
    }
}

/// A spool that can be read.
pub(super) struct Spool {
    file: File,
    starts: Vec<u64>,
}

/// Reads spools; one for each thread.
pub(super) struct SpoolReader<'a> {
    spools: &'a [Spool],
    decompressor: zstd::bulk::Decompressor<'static>,
    /// Frames by spool and number, the one used last at the end.
    kept: Vec<((u32, usize), Vec<u8>)>,
}

impl<'a> SpoolReader<'a> {
    pub(super) fn new(spools: &'a [Spool]) -> io::Result<Self> {
        let decompressor = zstd::bulk::Decompressor::new()?;
        Ok(Self { spools, decompressor, kept: Vec::new() })
    }

    /// Appends `length` bytes from `spot` on to `out`.
    pub(super) fn read(
        &mut self,
        spot: Spot,
        mut length: u64,
        out: &mut Vec<u8>,
    ) -> io::Result<()> {
        let mut offset = spot.offset;
        let frame_bytes = FRAME_BYTES as u64;
        while length > 0 {
            let number = usize::try_from(offset / frame_bytes).map_err(io::Error::other)?;
            let within = usize::try_from(offset % frame_bytes).map_err(io::Error::other)?;
            let frame = self.frame(spot.spool, number)?;
            let rest = frame.get(within..).filter(|rest| !rest.is_empty());
            let rest = rest.ok_or_else(|| io::Error::other("a temporary file is damaged"))?;
            let count = rest.len().min(usize::try_from(length).unwrap_or(usize::MAX));
            out.extend_from_slice(&rest[..count]);
            offset += count as u64;
            length -= count as u64;
        }
        Ok(())
    }

    fn frame(&mut self, spool: u32, number: usize) -> io::Result<&[u8]> {
        let key = (spool, number);
        let kept = match self.kept.iter().rposition(|(other, _)| *other == key) {
            Some(at) => self.kept.remove(at),
            None => {
                if self.kept.len() >= FRAMES_KEPT {
                    self.kept.remove(0);
                }
                (key, self.decompress(spool, number)?)
            }
        };
        self.kept.push(kept);
        Ok(&self.kept.last().expect("it was just pushed").1)
    }

    fn decompress(&mut self, spool: u32, number: usize) -> io::Result<Vec<u8>> {
        let damaged = || io::Error::other("a temporary file is shorter than it was");
        let spool = self.spools.get(spool as usize).ok_or_else(damaged)?;
        let (Some(&start), Some(&end)) = (spool.starts.get(number), spool.starts.get(number + 1))
        else {
            return Err(damaged());
        };
        let mut compressed = vec![0; usize::try_from(end - start).map_err(io::Error::other)?];
        spool.file.read_exact_at(&mut compressed, start)?;
        self.decompressor.decompress(&compressed, FRAME_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_part_can_be_read_again() {
        let home = tempfile::tempdir().unwrap();
        let mut writer = SpoolWriter::new(home.path(), 0).unwrap();
        assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 0, "it has no name");
        let all: Vec<u8> =
            (0..FRAME_BYTES * 3 / 4).flat_map(|n| (n as u32).to_le_bytes()).collect();
        for piece in all.chunks(70_001) {
            writer.write(piece).unwrap();
        }
        assert_eq!(writer.position(), all.len() as u64);
        let spools = [writer.finish().unwrap()];
        let mut reader = SpoolReader::new(&spools).unwrap();
        for (from, to) in [(0, 1), (0, all.len()), (131_071, 131_073), (262_144, 300_000), (5, 5)] {
            let mut out = vec![7];
            let spot = Spot { spool: 0, offset: from as u64 };
            reader.read(spot, (to - from) as u64, &mut out).unwrap();
            assert!(out[0] == 7 && out[1..] == all[from..to], "{from}..{to}");
        }
        let past = Spot { spool: 0, offset: all.len() as u64 };
        assert!(reader.read(past, 1, &mut Vec::new()).is_err());
    }
}
