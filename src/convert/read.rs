//! A layer's entries with all of their metadata; contents go to the spool, or nowhere.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;

use super::ConvertError;
use super::progress::Progress;
use super::source::Layer;
use super::spool::{Spool, SpoolWriter, Spot};
use crate::archive::{ArchiveError, Entry, Event, Kind, Parser, Place, place};
use crate::compression::{self, Decoded, Decoder, Resources};
use crate::hashing::Hasher;
use crate::image::{DiffId, Sha256};

/// Bytes that are decompressed at once.
const CHUNK_BYTES: usize = 256 << 10;

/// Holes of sparse files that are written out as zeros, of one layer: no image has so many, and a
/// header of 512 bytes can claim exabytes.
const HOLE_BYTES_MOST: u64 = 16 << 30;

/// What a regular file holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Content {
    pub(super) digest: Sha256,
    /// Bytes, holes included.
    pub(super) size: u64,
    /// Where it is spooled.
    pub(super) spot: Spot,
}

/// An entry, where it leads, and what it holds.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) place: Place,
    pub(super) entry: Entry,
    pub(super) content: Option<Content>,
}

/// All entries of a layer.
#[derive(Debug)]
pub(super) struct ReadLayer {
    pub(super) name: String,
    pub(super) entries: Vec<Found>,
    /// The archive's length in bytes.
    pub(super) archive_bytes: u64,
    /// The blob's size in bytes.
    pub(super) blob_bytes: u64,
}

/// The archive of a layer, hashed while it is read.
pub(super) struct Archive {
    decoder: Decoder,
    hasher: Hasher,
    pub(super) bytes: u64,
}

impl Archive {
    pub(super) fn open(layer: &Layer, progress: &Arc<Progress>) -> Result<Self, ConvertError> {
        let pieces = layer.open(progress)?;
        // One thread a layer: layers are read side by side.
        let decoder = compression::decoder(layer.compression, pieces, Resources::serial())
            .map_err(|error| ConvertError::of_layer(&layer.name, error.into()))?;
        Ok(Self { decoder, hasher: Hasher::default(), bytes: 0 })
    }

    /// The next bytes; `None` at the end.
    pub(super) fn next(&mut self) -> io::Result<Option<Bytes>> {
        let mut buffer = vec![0; CHUNK_BYTES];
        let bytes = match self.decoder.read(&mut buffer)? {
            Decoded::End => return Ok(None),
            Decoded::Piece(bytes) => bytes,
            Decoded::Filled(count) => {
                buffer.truncate(count);
                Bytes::from(buffer)
            }
        };
        self.hasher.update(&bytes);
        self.bytes += bytes.len() as u64;
        Ok(Some(bytes))
    }

    /// Reads what is left and checks that it was the archive that the image names.
    pub(super) fn finish(mut self, layer: &Layer) -> Result<u64, ConvertError> {
        let failed = |error| ConvertError::of_layer(&layer.name, error);
        while self.next().map_err(failed)?.is_some() {}
        let actual = DiffId(self.hasher.finish());
        if actual != layer.diff_id {
            return Err(ConvertError::Mismatch {
                layer: layer.name.clone(),
                what: "the DiffID",
                expected: layer.diff_id.to_string(),
                actual: actual.to_string(),
            });
        }
        Ok(self.bytes)
    }
}

/// Reads `layer` to its end, the `number`th from below. Contents are written to `spool`, if any.
///
/// # Errors
/// Where its bytes do not arrive, are not those that the image names, or are no archive.
pub(super) fn read_layer(
    layer: &Layer,
    number: usize,
    spool: Option<&mut SpoolWriter>,
    progress: &Arc<Progress>,
) -> Result<ReadLayer, ConvertError> {
    let mut archive = Archive::open(layer, progress)?;
    let mut reading =
        Reading { layer, number, spool, entries: Vec::new(), current: None, holes: 0 };
    {
        let mut parser = Parser::new(|| archive.next());
        let failed = |error: ArchiveError| ConvertError::of_layer(&layer.name, error.into());
        while let Some(event) = parser.next().map_err(failed)? {
            match event {
                Event::Entry(entry) => reading.entry(*entry)?,
                Event::Data { offset, bytes } => reading.data(offset, &bytes)?,
            }
        }
    }
    reading.close()?;
    let entries = reading.entries;
    let archive_bytes = archive.finish(layer)?;
    Ok(ReadLayer { name: layer.name.clone(), entries, archive_bytes, blob_bytes: layer.size })
}

/// A regular file whose data are arriving.
struct Current {
    hasher: Hasher,
    spot: Spot,
    written: u64,
    size: u64,
}

struct Reading<'a> {
    layer: &'a Layer,
    number: usize,
    spool: Option<&'a mut SpoolWriter>,
    entries: Vec<Found>,
    current: Option<Current>,
    holes: u64,
}

impl Reading<'_> {
    fn refuse(&self, entry: &Entry, reason: String) -> ConvertError {
        ConvertError::Entry { layer: self.layer.name.clone(), entry: entry.display_name(), reason }
    }

    fn entry(&mut self, entry: Entry) -> Result<(), ConvertError> {
        self.close()?;
        let place = place(&entry.name).map_err(|error| self.refuse(&entry, error.to_string()))?;
        if matches!(entry.kind, Kind::Regular { .. }) {
            self.holes += entry.size - entry.stored.min(entry.size);
            if self.holes > HOLE_BYTES_MOST {
                let reason = format!(
                    "sparse files of the layer have more than {HOLE_BYTES_MOST} bytes of holes"
                );
                return Err(self.refuse(&entry, reason));
            }
            let spool = u32::try_from(self.number).expect("images have few layers");
            let offset = self.spool.as_ref().map_or(0, |spool| spool.position());
            let spot = Spot { spool, offset };
            self.current =
                Some(Current { hasher: Hasher::default(), spot, written: 0, size: entry.size });
        }
        self.entries.push(Found { place, entry, content: None });
        Ok(())
    }

    fn data(&mut self, offset: u64, bytes: &[u8]) -> Result<(), ConvertError> {
        self.zeros_up_to(offset)?;
        self.write(bytes)
    }

    fn zeros_up_to(&mut self, offset: u64) -> Result<(), ConvertError> {
        static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
        while let Some(current) = &self.current
            && current.written < offset
        {
            let left = usize::try_from(offset - current.written).unwrap_or(usize::MAX);
            self.write(&ZEROS[..left.min(ZEROS.len())])?;
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), ConvertError> {
        let current = self.current.as_mut().expect("data follow a regular file");
        current.hasher.update(bytes);
        current.written += bytes.len() as u64;
        if let Some(spool) = &mut self.spool {
            let failed = |source| ConvertError::Disk {
                what: "writing",
                path: "a temporary file".into(),
                source,
            };
            spool.write(bytes).map_err(failed)?;
        }
        Ok(())
    }

    /// Ends the file whose data were arriving.
    fn close(&mut self) -> Result<(), ConvertError> {
        let Some(size) = self.current.as_ref().map(|current| current.size) else { return Ok(()) };
        self.zeros_up_to(size)?;
        if let (Some(current), Some(found)) = (self.current.take(), self.entries.last_mut()) {
            let digest = current.hasher.finish();
            found.content = Some(Content { digest, size, spot: current.spot });
        }
        Ok(())
    }
}

/// Reads layers at once, with `threads` threads; contents go to spools in `directory`, if any.
pub(super) fn read_all(
    layers: &[Layer],
    directory: Option<&Path>,
    threads: usize,
    progress: &Arc<Progress>,
) -> Result<(Vec<ReadLayer>, Vec<Spool>), ConvertError> {
    // The largest first, so that none of them is begun when the others have ended.
    let mut order: Vec<usize> = (0..layers.len()).collect();
    order.sort_by_key(|&at| (std::cmp::Reverse(layers[at].size), at));
    let next = AtomicUsize::new(0);
    let thread = || {
        let mut done = Vec::new();
        while let Some(&at) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
            let mut spool = directory.map(|dir| SpoolWriter::new(dir, at)).transpose()?;
            let read = read_layer(&layers[at], at, spool.as_mut(), progress)?;
            let failed = ConvertError::disk("writing", Path::new("a temporary file"));
            let spool = spool.map(SpoolWriter::finish).transpose().map_err(failed)?;
            done.push((at, read, spool));
        }
        Ok(done)
    };
    let ended: Vec<Result<Vec<_>, ConvertError>> = std::thread::scope(|scope| {
        let all: Vec<_> =
            (0..threads.clamp(1, layers.len().max(1))).map(|_| scope.spawn(thread)).collect();
        all.into_iter().map(|thread| thread.join().expect("a reader does not panic")).collect()
    });
    let mut all = Vec::new();
    for done in ended {
        all.extend(done?);
    }
    all.sort_by_key(|(at, ..)| *at);
    let (mut read, mut spools) = (Vec::new(), Vec::new());
    for (_, layer, spool) in all {
        read.push(layer);
        spools.extend(spool);
    }
    Ok((read, spools))
}
